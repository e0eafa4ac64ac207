//! `detoxd jobs watch`: follows a job's events, and comes back to them when the connection or the service goes.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::{Client, ClientError};
use super::table;

/// How long a service that was there may be away.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause before coming back.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two lines where there is no bar.
const QUIET: Duration = Duration::from_secs(10);

/// Follows the job at `path` to its end.
///
/// # Errors
/// When the service is not there, or stays away, and when the job has not succeeded.
pub fn run(client: &Client, path: &str, as_json: bool) -> anyhow::Result<()> {
    let mut view = View::new(as_json);
    let mut last = None;
    let mut heard = None;
    let job = loop {
        match follow(client, path, &mut last, &mut view) {
            Ok(Some(job)) => break job,
            // The service stops, or a proxy has cut the stream.
            Ok(None) => heard = Some(Instant::now()),
            Err(error) => match heard {
                Some(heard) if may_come_back(&error) && Instant::elapsed(&heard) < PATIENCE => {
                    view.bar.set_message(format!("waiting for the service: {error}"));
                }
                _ => return Err(error.into()),
            },
        }
        std::thread::sleep(PAUSE);
    };
    view.end(&job)
}

fn may_come_back(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Strange { .. } => true,
        ClientError::Refused(refusal) => refusal.status >= 500,
        ClientError::File { .. } => false,
    }
}

/// Reads one stream to its end: the job when it is finished, nothing when there is more to come.
fn follow(
    client: &Client,
    path: &str,
    last: &mut Option<String>,
    view: &mut View,
) -> Result<Option<Value>, ClientError> {
    let headers = [
        ("accept", "text/event-stream"),
        ("last-event-id", last.as_deref().unwrap_or_default()),
    ];
    let (status, stream) = client.read(&format!("{path}/events"), &headers[..1 + usize::from(last.is_some())])?;
    if status == 204 {
        return client.get(path).map(Some);
    }
    let mut event = Event::default();
    // A stream that breaks is one that ends.
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let Some(done) = event.read(&line) else { continue };
        if let Some(id) = done.id {
            *last = Some(id);
        }
        let Ok(job) = serde_json::from_str::<Value>(&done.data) else {
            continue;
        };
        view.show(&job);
        if done.name == "done" {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// An event of a stream, line by line.
#[derive(Debug, Default, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    data: String,
}

impl Event {
    /// Takes a line; the event when it is complete. Comments keep the connection alive and say nothing.
    fn read(&mut self, line: &str) -> Option<Self> {
        if line.is_empty() {
            let done = std::mem::take(self);
            return (!done.data.is_empty()).then_some(done);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" => self.id = Some(value.to_owned()),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

/// What a person sees: a bar on a terminal, else a line now and then; or JSON lines for programs.
struct View {
    bar: ProgressBar,
    as_json: bool,
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

impl View {
    fn new(as_json: bool) -> Self {
        let bar = match ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}") {
            Ok(style) if !as_json => ProgressBar::new(0).with_style(style),
            _ => ProgressBar::hidden(),
        };
        Self {
            bar,
            as_json,
            said: None,
        }
    }

    fn show(&mut self, job: &Value) {
        if self.as_json {
            println!("{job}");
            return;
        }
        let standing = standing(job);
        let number = |name: &str| job.pointer(&format!("/progress/{name}")).and_then(Value::as_f64);
        let (step, steps) = (number("step").unwrap_or(0.0), number("steps").unwrap_or(0.0));
        let message = match number("loss") {
            Some(loss) => format!(
                "{standing}  loss {loss:.3}  {:.0} tokens/s  ETA {}",
                number("tokens_per_second").unwrap_or(0.0),
                HumanDuration(Duration::from_secs_f64(
                    number("eta_seconds").unwrap_or(0.0).clamp(0.0, 1e9)
                ))
            ),
            None => standing.clone(),
        };
        self.bar.set_length(steps as u64);
        self.bar.set_position(step as u64);
        self.bar.set_message(message.clone());
        let news = self
            .said
            .as_ref()
            .is_none_or(|(said, at)| *said != standing || at.elapsed() > QUIET);
        if self.bar.is_hidden() && news {
            eprintln!("step {step}/{steps}  {message}");
            self.said = Some((standing, Instant::now()));
        }
    }

    fn end(&self, job: &Value) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        let text = |at: &str| job.pointer(at).and_then(Value::as_str);
        match text("/status") {
            Some("succeeded") => {
                if !self.as_json {
                    println!("succeeded: {}", text("/adapter").unwrap_or("no adapter"));
                    table::print_fields(job, &[("metrics", "/metrics")]);
                }
                Ok(())
            }
            Some("failed") => bail!(
                "the job has failed: {}",
                text("/error/message").unwrap_or("no reason given")
            ),
            status => bail!("the job is {}", status.unwrap_or("in no state")),
        }
    }
}

/// Where a job stands, in a few words.
fn standing(job: &Value) -> String {
    let text = |at: &str| job.pointer(at).and_then(Value::as_str);
    let status = text("/status").unwrap_or("?");
    let mut standing = text("/phase")
        .filter(|_| status == "running")
        .unwrap_or(status)
        .to_owned();
    if let Some(attempts) = job["attempts"].as_i64().filter(|attempts| *attempts > 1) {
        standing.push_str(&format!(", attempt {attempts}"));
    }
    if let (Some(error), "queued") = (text("/error/message"), status) {
        standing.push_str(&format!(", tried again after: {error}"));
    }
    standing
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_read_line_by_line() {
        let mut event = Event::default();
        let mut done = Vec::new();
        for line in [
            "event: status",
            "id: 3",
            "data: {\"a\":",
            "data: 1}",
            "",
            ":",
            "",
            "data:x",
            "",
            "retry: 5",
            "",
        ] {
            done.extend(event.read(line));
        }
        assert_eq!(done[0].name, "status");
        assert_eq!(done[0].id.as_deref(), Some("3"));
        assert_eq!(done[0].data, "{\"a\":\n1}");
        assert_eq!((done.len(), &*done[1].data), (2, "x"));
    }

    #[test]
    fn a_job_is_told_in_a_few_words() {
        for (job, words) in [
            (json!({ "status": "queued", "attempts": 0 }), "queued"),
            (
                json!({ "status": "running", "phase": "training", "attempts": 1 }),
                "training",
            ),
            (
                json!({ "status": "running", "phase": "training", "attempts": 2 }),
                "training, attempt 2",
            ),
            (
                json!({ "status": "queued", "attempts": 1, "error": { "message": "killed by signal 9" } }),
                "queued, tried again after: killed by signal 9",
            ),
        ] {
            assert_eq!(standing(&job), words);
        }
    }
}
