//! `detoxd bench`: drives a running service from a file of texts, and says how fast it answers.
//!
//! Closed loop: each client sends its next request when it has its answer; one that is refused waits for as long as it is told. Open loop (`--rate`): requests leave on time whether or not the
//! answers keep up, as in real overload; a client that is still waiting does not slow the others down.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use super::client::ServerArgs;

/// Drives a running service from a file of texts, and prints requests and tokens a second and how long answers take.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Texts, one a line; of JSON lines the field "text", "toxic" or "anchor"
    #[arg(long, value_name = "FILE")]
    texts: PathBuf,
    /// What is spoken: detoxd's own, or that of servers of language models
    #[arg(long, value_enum, default_value_t = Api::Detoxify)]
    api: Api,
    /// Fields that are put into every body
    #[arg(long, value_name = "JSON", default_value = "{}")]
    options: String,
    /// For `chat`: what is asked of the model; {text} stands for a text
    #[arg(
        long,
        default_value = "Rewrite the text so that it says the same without insults. Answer with the rewrite alone.\n\n{text}"
    )]
    instruction: String,
    /// Clients at once; several numbers are measured one after the other
    #[arg(long, value_delimiter = ',', default_value = "8", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Vec<u32>,
    /// Seconds for each
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds before, that do not count
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Requests a second that are sent whatever becomes of them; at most as many as there are clients are under way, the rest
    /// counts as not sent
    #[arg(long, value_name = "REQUESTS")]
    rate: Option<f64>,
    /// Prints JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Api {
    /// POST /detoxify
    Detoxify,
    /// POST /v1/chat/completions
    Chat,
}

/// What came of one number of clients.
#[derive(Debug, Serialize)]
struct Report {
    clients: u32,
    seconds: f64,
    /// Answers that are a success, by second.
    requests_per_second: f64,
    /// Tokens that the service says it wrote, by second.
    tokens_per_second: f64,
    /// Of successes, in milliseconds.
    latency_ms: Quantiles,
    /// Of refusals with 503, in milliseconds.
    refusal_ms: Option<Quantiles>,
    /// Answers by status; 0 for requests without one.
    statuses: BTreeMap<u16, u64>,
    /// Requests that were due while every client was busy.
    not_sent: u64,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Quantiles {
    fn of(mut milliseconds: Vec<f64>) -> Option<Self> {
        milliseconds.sort_by(f64::total_cmp);
        let at = |share: f64| milliseconds[((milliseconds.len() - 1) as f64 * share).round() as usize];
        (!milliseconds.is_empty()).then(|| Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

/// One answer.
struct Answer {
    status: u16,
    tokens: u64,
    sent: Instant,
    milliseconds: f64,
    retry_after: Option<Duration>,
}

/// Runs the command.
///
/// # Errors
/// When the texts can't be read or nothing was answered.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    ensure!(
        args.seconds > 0.0 && args.warm_up >= 0.0,
        "--seconds must be positive, --warm-up not negative"
    );
    let requests = Arc::new(Requests::new(args)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for &clients in &args.clients {
        let report = runtime.block_on(measure(args, clients, requests.clone()))?;
        if args.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            report.print();
        }
    }
    Ok(())
}

/// The bodies, and where they go.
struct Requests {
    client: reqwest::Client,
    url: String,
    key: Option<String>,
    bodies: Vec<bytes::Bytes>,
    next: AtomicUsize,
}

impl Requests {
    fn new(args: &BenchArgs) -> anyhow::Result<Self> {
        let extra: Value = serde_json::from_str(&args.options).context("--options")?;
        let Value::Object(extra) = extra else {
            bail!("--options must be a JSON object");
        };
        let file = std::fs::read_to_string(&args.texts).with_context(|| format!("reading {}", args.texts.display()))?;
        let bodies: Vec<bytes::Bytes> = file
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let text = text(line);
                let mut body = match args.api {
                    Api::Detoxify => json!({ "text": text }),
                    Api::Chat => {
                        let content = args.instruction.replace("{text}", &text);
                        json!({ "messages": [{ "role": "user", "content": content }] })
                    }
                };
                for (name, value) in &extra {
                    body[name] = value.clone();
                }
                bytes::Bytes::from(body.to_string())
            })
            .collect();
        ensure!(!bodies.is_empty(), "{} has no text", args.texts.display());
        let path = match args.api {
            Api::Detoxify => "/detoxify",
            Api::Chat => "/v1/chat/completions",
        };
        // The client asks for a TLS provider by name; the first call counts and there is but one in the program.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            client: reqwest::Client::builder()
                .pool_max_idle_per_host(usize::MAX)
                .no_proxy()
                .build()?,
            url: format!("{}{path}", args.server.address()?.0),
            key: args.server.key(),
            bodies,
            next: AtomicUsize::new(0),
        })
    }

    async fn send(&self) -> Answer {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .body(self.bodies[number % self.bodies.len()].clone());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let sent = Instant::now();
        let (mut status, mut body, mut retry_after) = (0, bytes::Bytes::new(), None);
        if let Ok(response) = request.send().await {
            status = response.status().as_u16();
            let header = response.headers().get("retry-after");
            retry_after = header.and_then(|value| value.to_str().ok()?.parse().ok().map(Duration::from_secs));
            match response.bytes().await {
                Ok(bytes) => body = bytes,
                Err(_) => status = 0,
            }
        }
        let milliseconds = sent.elapsed().as_secs_f64() * 1e3;
        Answer {
            status,
            tokens: tokens(&body),
            sent,
            milliseconds,
            retry_after,
        }
    }
}

/// A line as it is, or what a JSON object calls its text.
fn text(line: &str) -> String {
    let of_object = || {
        let object: Value = serde_json::from_str(line).ok()?;
        let names = ["text", "toxic", "anchor"];
        names
            .iter()
            .find_map(|name| object.get(name)?.as_str().map(str::to_owned))
    };
    of_object().unwrap_or_else(|| line.to_owned())
}

fn tokens(body: &[u8]) -> u64 {
    #[derive(serde::Deserialize)]
    struct Body {
        usage: Usage,
    }
    #[derive(serde::Deserialize)]
    struct Usage {
        completion_tokens: u64,
    }
    serde_json::from_slice::<Body>(body).map_or(0, |body| body.usage.completion_tokens)
}

async fn measure(args: &BenchArgs, clients: u32, requests: Arc<Requests>) -> anyhow::Result<Report> {
    let start = Instant::now() + Duration::from_secs_f64(args.warm_up);
    let end = start + Duration::from_secs_f64(args.seconds);
    let (mut answers, mut not_sent) = (Vec::new(), 0);
    let mut tasks = tokio::task::JoinSet::new();
    match args.rate {
        None => {
            for _ in 0..clients {
                let requests = requests.clone();
                tasks.spawn(async move {
                    let mut answers = Vec::new();
                    while Instant::now() < end {
                        let answer = requests.send().await;
                        let wait = answer.retry_after;
                        answers.push(answer);
                        // Not for nothing: even that takes a tick of the clock.
                        if let Some(wait) = wait {
                            tokio::time::sleep(wait.min(end - Instant::now())).await;
                        }
                    }
                    answers
                });
            }
        }
        Some(rate) => {
            ensure!(rate > 0.0, "--rate must be positive");
            let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            while Instant::now() < end {
                ticks.tick().await;
                while let Some(done) = tasks.try_join_next() {
                    answers.append(&mut done?);
                }
                if tasks.len() >= clients as usize {
                    not_sent += u64::from(Instant::now() >= start);
                    continue;
                }
                let requests = requests.clone();
                tasks.spawn(async move { vec![requests.send().await] });
            }
        }
    }
    while let Some(done) = tasks.join_next().await {
        answers.append(&mut done?);
    }
    answers.retain(|answer| answer.sent >= start);
    let seconds = start.elapsed().as_secs_f64();
    let mut statuses = BTreeMap::new();
    for answer in &answers {
        *statuses.entry(answer.status).or_insert(0) += 1;
    }
    let of = |wanted: fn(u16) -> bool| -> Vec<f64> {
        let chosen = answers.iter().filter(|answer| wanted(answer.status));
        chosen.map(|answer| answer.milliseconds).collect()
    };
    let successes = of(|status| (200..300).contains(&status));
    let requests_per_second = successes.len() as f64 / seconds;
    let Some(latency_ms) = Quantiles::of(successes) else {
        bail!("no request was answered with success; by status (0: no answer): {statuses:?}");
    };
    Ok(Report {
        clients,
        seconds,
        requests_per_second,
        tokens_per_second: answers.iter().map(|answer| answer.tokens).sum::<u64>() as f64 / seconds,
        latency_ms,
        refusal_ms: Quantiles::of(of(|status| status == 503)),
        statuses,
        not_sent,
    })
}

impl Report {
    fn print(&self) {
        let Quantiles { p50, p95, p99, max } = self.latency_ms;
        println!(
            "{:>5} clients  {:8.1} requests/s  {:8.1} tokens/s  p50 {p50:.1} ms  p95 {p95:.1} ms  p99 {p99:.1} ms  max {max:.1} ms  {:?}",
            self.clients, self.requests_per_second, self.tokens_per_second, self.statuses
        );
        if let Some(Quantiles { p50, p99, max, .. }) = self.refusal_ms {
            println!("      refusals: p50 {p50:.1} ms  p99 {p99:.1} ms  max {max:.1} ms");
        }
        if self.not_sent > 0 {
            println!("      not sent, every client being busy: {}", self.not_sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_as_lines_or_as_fields() {
        assert_eq!(text("just a line"), "just a line");
        assert_eq!(text(r#"{"toxic": "a text", "neutral": []}"#), "a text");
        assert_eq!(text("[1]"), "[1]");
        assert_eq!(text("17"), "17");
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let quantiles = Quantiles::of((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!(
            (quantiles.p50, quantiles.p95, quantiles.p99, quantiles.max),
            (50.0, 95.0, 99.0, 100.0)
        );
        assert!(Quantiles::of(Vec::new()).is_none());
    }

    #[test]
    fn tokens_are_read_where_they_are_said() {
        assert_eq!(tokens(br#"{"usage": {"prompt_tokens": 3, "completion_tokens": 5}}"#), 5);
        assert_eq!(tokens(b"no JSON"), 0);
    }
}
