//! `detoxd rewrite`: one text a line in, one text a line out, in the same order.

use std::{
    collections::VecDeque,
    io::{self, BufRead, IsTerminal, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{sync::mpsc, task::JoinError};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::{ConfigError, JudgeSettings, LogSettings, ModelSettings, Policy, PolicySettings},
    http::{DetoxifyResult, Service},
    pipeline::{Detoxified, Detoxifier, DetoxifyError, Guidance, Options, OutOfRange, RewriteError, Strength},
};

/// Arguments of `detoxd rewrite`.
#[derive(Debug, clap::Args)]
pub struct RewriteArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelSettings,
    /// The judges.
    #[command(flatten)]
    pub judges: JudgeSettings,
    /// The policy.
    #[command(flatten)]
    pub policy: PolicySettings,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
    /// How to rewrite.
    #[command(flatten)]
    pub how: How,
}

/// How to rewrite, beyond the settings of the service.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Rewriting")]
pub struct How {
    /// Print result objects (JSON, one a line) instead of texts.
    #[arg(long)]
    pub json: bool,
    /// Scale of the adapter: 0 is the bare base model, 1 the adapter as trained, at most 2.
    #[arg(long, value_name = "SCALE", default_value_t = 1.0)]
    pub strength: f32,
    /// Model arithmetic at every token: how far beyond the adapter, away from the bare base model, the log-probabilities are taken, at most 2.
    /// Twice the work.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0)]
    pub guidance: f32,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Take the model's likeliest rewrite without checking it.
    #[arg(long)]
    pub no_verify: bool,
    /// Rewrite every sentence, toxic or not.
    #[arg(long)]
    pub always: bool,
    /// Treat each line as one sentence.
    #[arg(long)]
    pub whole_line: bool,
    /// With --json: tell the rewrites there were to choose from, and how each was judged.
    #[arg(long, requires = "json")]
    pub explain: bool,
    /// Lines worked on at once, so that the model can batch them.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub in_flight: u16,
}

impl How {
    /// The pipeline's options for every line.
    ///
    /// # Errors
    /// When the strength is out of range.
    pub fn options(&self, policy: &Policy, service: &Service) -> Result<Options, RewriteFailure> {
        let mut options = policy.options(service.residents.active());
        let invalid = |setting, value: f32, reason: OutOfRange| {
            RewriteFailure::Config(ConfigError::Invalid {
                setting,
                value: value.to_string(),
                reason: reason.to_string(),
            })
        };
        options.strength = Strength::new(self.strength).map_err(|reason| invalid("strength", self.strength, reason))?;
        options.guidance = Guidance::new(self.guidance).map_err(|reason| invalid("guidance", self.guidance, reason))?;
        options.seed = self.seed;
        options.verify = !self.no_verify;
        options.whole_text = self.whole_line;
        options.always = self.always;
        options.explain = self.explain;
        Ok(options)
    }
}

/// Why not every line was rewritten.
#[derive(Debug, thiserror::Error)]
pub enum RewriteFailure {
    /// An argument is out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A line is not UTF-8.
    #[error("line {line} is not UTF-8: its byte {byte} is wrong")]
    NotUtf8 {
        /// From 1.
        line: usize,
        /// From 0.
        byte: usize,
    },
    /// Standard input can't be read.
    #[error("cannot read the input: {0}")]
    Read(#[source] io::Error),
    /// Standard output can't be written.
    #[error("cannot write the output: {0}")]
    Write(#[source] io::Error),
    /// A result can't be written as JSON.
    #[error("cannot write a result as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The pipeline failed on a line.
    #[error("line {line}: {error}")]
    Line {
        /// From 1.
        line: usize,
        /// Why.
        error: DetoxifyError,
    },
    /// The pipeline panicked.
    #[error("line {line}: the work on it broke off")]
    Broken {
        /// From 1.
        line: usize,
    },
}

type Outcome = Result<(Detoxified, Duration), DetoxifyError>;
type Running = AbortOnDropHandle<Outcome>;

/// Rewrites `input` to `output`. A reader of the output that has seen enough (broken pipe) is not
/// a failure.
///
/// # Errors
/// At the first line that fails; all lines before it have been written.
pub async fn run<R, W>(
    service: &Service,
    options: Options,
    how: &How,
    input: R,
    output: W,
) -> Result<(), RewriteFailure>
where
    R: BufRead + Send + 'static,
    W: Write,
{
    match rewrite_lines(service, Arc::new(options), how, input, output).await {
        Err(RewriteFailure::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => ended,
    }
}

async fn rewrite_lines<R, W>(
    service: &Service,
    options: Arc<Options>,
    how: &How,
    input: R,
    mut output: W,
) -> Result<(), RewriteFailure>
where
    R: BufRead + Send + 'static,
    W: Write,
{
    let in_flight = usize::from(how.in_flight);
    let mut lines = read_lines(input, in_flight);
    let mut running: VecDeque<Running> = VecDeque::with_capacity(in_flight);
    let mut failed = None;
    let mut reading = true;
    let mut written = 0;
    let progress = progress();
    while reading || !running.is_empty() {
        tokio::select! {
            line = lines.recv(), if reading && running.len() < in_flight => match line {
                Some(Ok(line)) => running.push_back(start(service, &options, line)),
                // The lines before it are still to be written.
                Some(Err(error)) => { failed = Some(error); reading = false; }
                None => reading = false,
            },
            done = first(&mut running) => {
                running.pop_front();
                written += 1;
                let (done, elapsed) = done
                    .map_err(|_| RewriteFailure::Broken { line: written })?
                    .map_err(|error| RewriteFailure::Line { line: written, error })?;
                let mut line = if how.json {
                    serde_json::to_string(&DetoxifyResult::new(done, elapsed))?
                } else {
                    one_line(&done.text)
                };
                line.push('\n');
                output
                    .write_all(line.as_bytes())
                    .and_then(|()| output.flush())
                    .map_err(RewriteFailure::Write)?;
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    failed.map_or(Ok(()), Err)
}

/// Reads on a thread of its own, a few lines ahead.
fn read_lines(
    mut input: impl BufRead + Send + 'static,
    ahead: usize,
) -> mpsc::Receiver<Result<String, RewriteFailure>> {
    let (sender, receiver) = mpsc::channel(ahead);
    // Not a task: standard input can block for ever, and must not hold up the end of the runtime.
    std::thread::spawn(move || {
        let mut number = 0;
        loop {
            let mut bytes = Vec::new();
            number += 1;
            let line = match input.read_until(b'\n', &mut bytes) {
                Ok(0) => break,
                Ok(_) => text_of(bytes, number),
                Err(error) => Err(RewriteFailure::Read(error)),
            };
            let last = line.is_err();
            if sender.blocking_send(line).is_err() || last {
                break;
            }
        }
    });
    receiver
}

/// A line without its end (`\n` or `\r\n`).
fn text_of(mut bytes: Vec<u8>, line: usize) -> Result<String, RewriteFailure> {
    if bytes.pop_if(|byte| *byte == b'\n').is_some() {
        bytes.pop_if(|byte| *byte == b'\r');
    }
    String::from_utf8(bytes).map_err(|error| RewriteFailure::NotUtf8 {
        line,
        byte: error.utf8_error().valid_up_to(),
    })
}

fn start(service: &Service, options: &Arc<Options>, line: String) -> Running {
    let detoxifier = Arc::clone(&service.detoxifier);
    let options = Arc::clone(options);
    AbortOnDropHandle::new(tokio::spawn(async move {
        let started = Instant::now();
        let done = patiently(&detoxifier, &line, &options).await?;
        Ok((done, started.elapsed()))
    }))
}

/// The outcome of the line that is next to be written; never, while there is none.
async fn first(running: &mut VecDeque<Running>) -> Result<Outcome, JoinError> {
    match running.front_mut() {
        Some(first) => first.await,
        None => std::future::pending().await,
    }
}

/// Waits and tries again where the engine has no room: unlike a client of the service, a pipe has
/// all the time it needs.
async fn patiently(detoxifier: &Detoxifier, line: &str, options: &Options) -> Result<Detoxified, DetoxifyError> {
    loop {
        match detoxifier.detoxify(line, options).await {
            Err(DetoxifyError::Rewrite(RewriteError::Overloaded { retry_after })) => {
                tokio::time::sleep(retry_after.min(Duration::from_secs(1))).await;
            }
            ended => return ended,
        }
    }
}

/// Line ends within a text become spaces, so that lines of input and output correspond.
fn one_line(text: &str) -> String {
    if text.contains(['\n', '\r']) {
        text.replace("\r\n", " ").replace(['\n', '\r'], " ")
    } else {
        text.to_owned()
    }
}

/// Lines so far and their rate, on stderr when a person is there to see it. With the output on the
/// same terminal the two would draw over each other.
fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() || io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {pos} lines, {per_sec}, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends() {
        assert_eq!(text_of(b"a\r\n".to_vec(), 1).unwrap(), "a");
        assert_eq!(text_of(b"a\n".to_vec(), 1).unwrap(), "a");
        assert_eq!(text_of(b"a\r".to_vec(), 1).unwrap(), "a\r");
        assert_eq!(one_line("a\r\nb\nc"), "a b c");
    }

    #[test]
    fn invalid_utf8_is_located() {
        let error = text_of(b"ab\xff\n".to_vec(), 7).unwrap_err();
        assert_eq!(error.to_string(), "line 7 is not UTF-8: its byte 2 is wrong");
    }
}
