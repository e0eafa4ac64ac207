//! Child processes of a worker: `detoxd train` and `detoxd evaluate` with `--report json`.
//!
//! A child's standard input stays open for as long as its worker lives and cares: at its end the child ends at once. So no child
//! outlives its worker, however that dies.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

use super::claims::Healing;
use super::job::{JobError, Progress};
use crate::config::{JudgesConfig, LogConfig, LogFormat};
use crate::evaluate::Report;

/// What a worker runs.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program: this one.
    pub path: PathBuf,
    /// 0 to 19: at 19 it takes what others leave.
    pub niceness: u8,
    /// Threads; `None` is one for each processor.
    pub threads: Option<usize>,
    /// Who judges what the child evaluates.
    pub judges: JudgesConfig,
    /// What the child logs, to the standard error that it shares with its worker.
    pub log: LogConfig,
}

/// What a child says, a line each.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Why it is about to end.
    Error {
        /// Kind and message.
        error: JobError,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// Name of its folder.
        checkpoint: String,
    },
    /// A step was made.
    Step(Step),
    /// So many examples were evaluated.
    Evaluated {
        /// Examples done.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// The result of an evaluation.
    Report(Box<Report>),
}

/// A step of the optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Step {
    /// How far training is.
    #[serde(flatten)]
    pub progress: Progress,
    /// Tokens of this step.
    #[serde(default)]
    pub tokens: u64,
}

/// What comes from a child next.
#[derive(Debug)]
pub enum Event {
    /// A line.
    Said(Line),
    /// It has ended.
    Ended(ExitStatus),
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its work is done.
    Done,
    /// Stopped because it was told to.
    Stopped,
    /// It failed.
    Failed(JobError, Healing),
}

/// Another try with the same input fails the same way: `EX_DATAERR` of `sysexits.h`.
const EX_DATAERR: i32 = 65;
/// Arguments that the program does not take: `EX_USAGE`.
const EX_USAGE: i32 = 64;
/// Stopped because it was told to: `EX_TEMPFAIL`.
const EX_TEMPFAIL: i32 = 75;

/// A process that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Child {
    process: tokio::process::Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts the program.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self, arguments: Vec<OsString>) -> std::io::Result<Child> {
        // `nice` becomes the program, so that from its first thread on it is as nice as it should be.
        let niceness = self.niceness.to_string();
        let nice: [&OsStr; 3] = ["-n".as_ref(), niceness.as_ref(), self.path.as_ref()];
        let spawned = match self.niceness {
            0 => self.command(&self.path, &[]).args(&arguments).spawn(),
            _ => self.command("nice", &nice).args(&arguments).spawn(),
        };
        let mut process = match spawned {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.niceness > 0 => {
                tracing::warn!("there is no program `nice` here: training competes with serving on equal terms");
                self.command(&self.path, &[]).args(&arguments).spawn()?
            }
            spawned => spawned?,
        };
        let missing = || std::io::Error::other("a pipe to the child is missing");
        Ok(Child {
            input: Some(process.stdin.take().ok_or_else(missing)?),
            output: BufReader::new(process.stdout.take().ok_or_else(missing)?).lines(),
            process,
        })
    }

    fn command(&self, program: impl AsRef<OsStr>, first: &[&OsStr]) -> Command {
        let mut command = Command::new(program);
        command
            .args(first)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if let Some(threads) = self.threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
            command.env("DETOXD_THREADS", threads.to_string());
        }
        command.envs(self.judges.environment());
        command.env("DETOXD_LOG", &self.log.filter);
        command.env(
            "DETOXD_LOG_FORMAT",
            match self.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
        );
        // What a terminal sends to this process by ctrl-c is not meant for the child: it is told by its worker.
        #[cfg(unix)]
        command.process_group(0);
        command
    }
}

impl Child {
    /// What comes next. May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// When the pipe or the system fails.
    pub async fn next(&mut self) -> std::io::Result<Event> {
        while let Some(line) = self.output.next_line().await? {
            match serde_json::from_str(&line) {
                Ok(line) => return Ok(Event::Said(line)),
                // The line itself may hold anything.
                Err(error) => tracing::debug!(%error, "a line of the child that is not understood"),
            }
        }
        Ok(Event::Ended(self.process.wait().await?))
    }

    /// Tells it to write a checkpoint and to end.
    pub async fn stop(&mut self) {
        if let Some(input) = &mut self.input {
            // One that is ending anyway does not listen.
            let _ = input.write_all(b"stop\n").await;
            let _ = input.flush().await;
        }
    }

    /// Ends it at once, and returns when it has ended.
    pub async fn kill(&mut self) {
        self.input = None;
        if let Err(error) = self.process.kill().await {
            tracing::warn!(%error, "a child can't be killed");
        }
    }
}

/// What an exit status means, with what the child said last.
pub fn ending(status: ExitStatus, said: Option<JobError>) -> Ending {
    let error = |kind: &str, message: String| JobError {
        kind: kind.to_owned(),
        message,
    };
    match status.code() {
        Some(0) => Ending::Done,
        Some(EX_TEMPFAIL) => Ending::Stopped,
        Some(EX_DATAERR) => {
            let said = said.unwrap_or_else(|| error("invalid", "the process refused its input".to_owned()));
            Ending::Failed(said, Healing::Impossible)
        }
        Some(EX_USAGE) => {
            let message = "the process refused its arguments: the hyperparameters are wrong; see the worker's log";
            Ending::Failed(error("invalid", message.to_owned()), Healing::Impossible)
        }
        Some(code) => {
            let said = said.unwrap_or_else(|| error("failed", format!("the process ended with exit code {code}")));
            Ending::Failed(said, Healing::Possible)
        }
        // By a signal: the system for want of memory, or a person.
        None => Ending::Failed(
            error("killed", format!("the process was killed ({status})")),
            Healing::Possible,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let parse = |line: &str| serde_json::from_str::<Line>(line).unwrap();
        let step = r#"{"step":3,"steps":40,"loss":1.5,"gradient_norm":0.1,"learning_rate":0.1,"tokens":9,"tokens_per_second":600.0,
            "seconds":2.0,"eta_seconds":74.0}"#;
        let progress = Progress {
            step: 3,
            steps: 40,
            loss: 1.5,
            tokens_per_second: 600.0,
            eta_seconds: 74.0,
        };
        assert_eq!(parse(step), Line::Step(Step { progress, tokens: 9 }));
        let checkpoint = "step-00000040".to_owned();
        assert_eq!(
            parse(r#"{"checkpoint":"step-00000040"}"#),
            Line::Checkpoint { checkpoint }
        );
        assert_eq!(
            parse(r#"{"done":3,"total":128}"#),
            Line::Evaluated { done: 3, total: 128 }
        );
        let error = JobError {
            kind: "invalid".to_owned(),
            message: "no".to_owned(),
        };
        assert_eq!(
            parse(r#"{"error":{"kind":"invalid","message":"no"}}"#),
            Line::Error { error }
        );
        assert!(serde_json::from_str::<Line>("[]").is_err());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn what_a_child_says_and_how_it_ends() {
        let log = LogConfig::default();
        for (niceness, script, expected) in [
            (
                0,
                r#"test "$DETOXD_TOXICITY_MODEL $DETOXD_SIMILARITY_MODEL" = "owner/judge built-in""#,
                Ending::Done,
            ),
            (
                19,
                r#"test $(nice) -ge 10 && read line && test $line = stop && exit 75"#,
                Ending::Stopped,
            ),
            (
                1,
                r#"echo noise; echo '{"error":{"kind":"diverged","message":"no"}}'; exit 65"#,
                Ending::Failed(
                    JobError {
                        kind: "diverged".to_owned(),
                        message: "no".to_owned(),
                    },
                    Healing::Impossible,
                ),
            ),
        ] {
            let program = Program {
                path: "sh".into(),
                niceness,
                threads: Some(1),
                judges: JudgesConfig {
                    toxicity: Some("owner/judge".to_owned()),
                    ..JudgesConfig::default()
                },
                log: log.clone(),
            };
            let mut child = program.spawn(["-c", script].map(OsString::from).to_vec()).unwrap();
            child.stop().await;
            let mut said = None;
            let status = loop {
                match child.next().await.unwrap() {
                    Event::Said(Line::Error { error }) => said = Some(error),
                    Event::Said(line) => panic!("{line:?}"),
                    Event::Ended(status) => break status,
                }
            };
            assert_eq!(ending(status, said), expected, "{script}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_killed_child_has_ended_and_says_so() {
        let program = Program {
            path: "sleep".into(),
            niceness: 5,
            threads: None,
            judges: JudgesConfig::default(),
            log: LogConfig::default(),
        };
        let mut child = program.spawn(vec!["60".into()]).unwrap();
        child.kill().await;
        let Event::Ended(status) = child.next().await.unwrap() else {
            panic!("it said something");
        };
        let Ending::Failed(error, Healing::Possible) = ending(status, None) else {
            panic!("{status}");
        };
        assert_eq!(error.kind, "killed");
    }
}
