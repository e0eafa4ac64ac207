//! The program as people run it, on the micro model of the fixtures: nothing to download.

mod training;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

mod clients;
mod evaluate;
mod generate;
mod health;
mod hub;
mod jobs;
mod judges;
mod overload;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/micro");
const ADAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/micro/adapter");

fn detoxd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_detoxd"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Serves on a thread of its own until the tests end.
fn serving(listener: std::net::TcpListener, router: axum::Router) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
}

fn rewrite(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = detoxd(&["rewrite", "--model", MODEL, "--adapter", ADAPTER]);
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn rewrite_gives_a_line_for_a_line_and_nothing_else() {
    let lines = [
        "The train leaves at 10:45.",
        "",
        "You are a stupid fool, Anna forgot the letter yesterday.",
        "  \u{200b}😀\u{202e} ",
        "let x = 1; // идёт дождь",
        "Paul sold the garden on Monday, you idiot.",
    ];
    let output = rewrite(&[], format!("{}\n", lines.join("\n")).as_bytes());
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let got: Vec<&str> = text.strip_suffix('\n').unwrap().split('\n').collect();
    assert_eq!(got.len(), lines.len());
    for same in [0, 1, 3, 4] {
        assert_eq!(got[same], lines[same], "byte for byte");
    }
    for (line, kept) in [(2, "letter"), (5, "garden")] {
        assert!(
            !got[line].contains("idiot") && !got[line].contains("stupid"),
            "{}",
            got[line]
        );
        assert!(got[line].contains(kept), "{}", got[line]);
    }
}

#[test]
fn the_model_within_the_program_rewrites_without_a_network() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = detoxd(&["rewrite", "--json", "--model", "tiny"]);
    command
        .env("DETOXD_CACHE_DIR", cache.path())
        .env("HTTPS_PROXY", "http://127.0.0.1:9")
        .env("PIP_INDEX_URL", "http://127.0.0.1:9");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let input = b"Stop talking, you idiot, the meeting with Anna is at 5.\n";
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["segments"][0]["action"], "rewritten", "{result}");
    assert_eq!(
        (&result["model"], &result["adapter"]),
        (&"tiny".into(), &"tiny@1".into())
    );
    let text = result["text"].as_str().unwrap();
    assert!(
        text.contains("meeting") && text.contains('5') && !text.contains("idiot"),
        "{text}"
    );
}

#[test]
fn json_results_are_objects_that_name_their_adapter() {
    let output = rewrite(&["--json"], b"You stupid fool, close the window.\n");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["adapter"], "adapter@1");
    assert_eq!(result["changed"], true);
    let toxicity = |when: &str| result["toxicity"][when].as_f64().unwrap();
    assert!(toxicity("output") < toxicity("input"));
}

#[test]
fn a_line_that_is_not_utf8_is_named() {
    let output = rewrite(&[], b"Fine.\n\xff\xfe\n");
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("line 2"), "{message}");
    assert_eq!(output.stdout, b"Fine.\n");
}

#[test]
fn a_start_that_cannot_be_says_the_next_step() {
    for (arguments, word) in [
        (vec!["rewrite", "--model", "no-such-model"], "model list"),
        (
            vec!["rewrite", "--model", MODEL, "--adapter", "default@1"],
            "--model smollm2-135m",
        ),
        (
            vec!["rewrite", "--model", MODEL, "--adapter", "./no-such-folder"],
            "no-such-folder",
        ),
        (vec!["serve", "--threshold", "7"], "threshold"),
    ] {
        let output = detoxd(&arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(word), "{arguments:?}: {message}");
    }
}

/// A running service that is killed at the end of its test.
struct Service {
    child: Child,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        // Already ended is what it should be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve() -> Service {
    serve_with(&[])
}

fn serve_with(arguments: &[&str]) -> Service {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap().to_owned();
    let mut child = detoxd(&[
        "serve",
        "--model",
        MODEL,
        "--adapter",
        ADAPTER,
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--log-format",
        "json",
    ])
    .args(arguments)
    .spawn()
    .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let started = Instant::now();
    let mut address = None;
    while address.is_none() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "the service does not start"
        );
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the service ended");
        let found = line.find("http://").map(|at| &line[at + 7..]);
        address = found.and_then(|rest| rest.split('/').next()).map(str::to_owned);
    }
    // The log must be read for as long as the service writes it.
    std::thread::spawn(move || for _ in log.lines() {});
    Service {
        child,
        address: address.unwrap(),
    }
}

#[test]
fn an_adapter_that_came_with_an_upgrade_is_mentioned_and_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let log_of_start = |more: &[&str]| {
        let data = folder.path().to_str().unwrap();
        let mut child = detoxd(&[
            "serve",
            "--model",
            "tiny",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            data,
        ])
        .args(more)
        .spawn()
        .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut log = Vec::new();
        for line in lines {
            log.push(line);
            if log.last().is_some_and(|line| line.contains("ready: ")) {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        log.join("\n")
    };
    let first = log_of_start(&["--adapter", "none"]);
    assert!(!first.contains("--adapter tiny@1"), "{first}");
    let second = log_of_start(&[]);
    assert!(second.contains("start with --adapter tiny@1 to serve it"), "{second}");
    assert!(!second.contains("an adapter is loaded"), "{second}");
}

fn post(service: &Service, path: &str, body: &str) -> serde_json::Value {
    let url = format!("http://{}{path}", service.address);
    let mut response = ureq::post(&url)
        .header("content-type", "application/json")
        .send(body)
        .unwrap();
    serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap()
}

#[test]
fn the_service_rewrites_scores_and_ends_when_told_with_its_last_request_answered() {
    let mut service = serve();
    let texts =
        r#"{"texts": ["You are a stupid fool, Anna forgot the letter yesterday.", "The door is open."], "seed": 3}"#;
    let first = post(&service, "/detoxify", texts);
    assert_eq!(first["results"][0]["changed"], true);
    assert_eq!(first["results"][1]["text"], "The door is open.");
    // Other requests in the batch change nothing.
    let again: Vec<serde_json::Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| post(&service, "/detoxify", texts)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for answer in again {
        assert_eq!(answer["results"][0]["text"], first["results"][0]["text"]);
    }
    let score = post(&service, "/score", r#"{"text": "The train leaves at 10:45."}"#);
    let perplexity = score["perplexity"]["base"].as_f64().unwrap();
    assert!(perplexity > 1.0 && perplexity.is_finite(), "{score}");

    let long = "You are a stupid fool, Anna forgot the letter yesterday. ".repeat(60);
    let body = serde_json::json!({ "text": long, "candidates": 16 }).to_string();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| post(&service, "/detoxify", &body));
        std::thread::sleep(Duration::from_millis(30));
        let told = Command::new("kill")
            .args(["-TERM", &service.child.id().to_string()])
            .status()
            .unwrap();
        assert!(told.success());
        assert_eq!(running.join().unwrap()["changed"], true);
    });
    assert!(service.child.wait().unwrap().success());
}

fn train(out: &Path, more: &[&str]) -> Command {
    let data = out.with_extension("jsonl");
    let line = |n: u32| {
        format!(
            "{{\"toxic\": \"You idiot, read page {n}.\", \"neutral\": [\"Read page {n}.\", \"Please read page {n}.\"]}}\n"
        )
    };
    std::fs::write(&data, (10..90).map(line).collect::<String>()).unwrap();
    let mut command = detoxd(&[
        "train",
        "--model",
        MODEL,
        "--objective",
        "cp",
        "--checkpoint-minutes",
        "0",
        "--warmup-steps",
        "2",
    ]);
    command
        .args([
            "--batch-tokens",
            "256",
            "--max-steps",
            "24",
            "--lora-rank",
            "4",
            "--dtype",
            "f32",
        ])
        .arg("--data")
        .arg(&data);
    command.arg("--out").arg(out).args(more);
    command
}

#[test]
fn a_killed_training_run_goes_on_to_the_weights_of_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    assert!(train(&whole, &[]).output().unwrap().status.success());
    let mut child = train(&broken, &[]).spawn().unwrap();
    let started = Instant::now();
    while !broken.join("checkpoints/step-00000003").exists() && !broken.join("checkpoints/step-00000004").exists() {
        assert!(started.elapsed() < Duration::from_secs(30), "no checkpoint");
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(train(&broken, &["--resume"]).output().unwrap().status.success());
    let weights = |run: &Path| std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&broken), "the adapters differ");
    let steps = |run: &Path| std::fs::read_to_string(run.join("loss.jsonl")).unwrap().lines().count();
    assert_eq!(steps(&whole), steps(&broken));
}
