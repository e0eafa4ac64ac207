//! `detoxd evaluate`, for people and as the child of a worker.

use std::io::Write;
use std::path::Path;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;

use super::{ADAPTER, MODEL, detoxd};

const OTHER_BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama-tiny/adapter");

pub fn data(folder: &Path) -> String {
    let lines: Vec<String> = [
        "You are a stupid fool, Anna forgot the letter yesterday.",
        "Paul sold the garden on Monday, you idiot.",
        "You stupid fool, close the window.",
        "The idiot left the door open.",
    ]
    .iter()
    .map(|toxic| serde_json::json!({ "toxic": toxic, "neutral": ["Please close the window."] }).to_string())
    .collect();
    let file = folder.join("held.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

/// As a worker does: standard input stays open until the end.
fn evaluate(arguments: &[&str], data: &str) -> (Output, Vec<Value>) {
    let mut command = detoxd(&["evaluate", "--model", MODEL, "--report", "json", "--data", data]);
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let lines = String::from_utf8(output.stdout.clone())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    (output, lines)
}

#[test]
fn a_worker_gets_progress_and_then_a_comparison_on_the_same_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let (output, lines) = evaluate(&["--candidate", ADAPTER, "--max-examples", "3"], &data(folder.path()));
    assert!(output.status.success());
    let progress: Vec<Value> = (0..=3)
        .map(|done| serde_json::json!({ "done": done, "total": 3 }))
        .collect();
    assert_eq!(lines[..4], progress);
    assert_eq!(lines.len(), 5);
    let comparison: detoxd::evaluate::Comparison = serde_json::from_value(lines[4].clone()).unwrap();
    let (candidate, baseline) = (&comparison.candidate, &comparison.baseline);
    assert_eq!((candidate.examples, baseline.examples), (3, 3));
    assert_eq!(
        (candidate.adapter.as_str(), baseline.adapter.as_str()),
        ("adapter@1", "none@0")
    );
    // The micro model rewrites by itself; its adapter was trained a little further.
    for measured in [candidate, baseline] {
        assert!(measured.toxicity < 0.5 && measured.j > 0.4, "{measured:?}");
        assert_eq!((measured.copied, measured.empty), (0.0, 0.0));
    }
    assert_eq!(
        baseline.neutral_perplexity, baseline.base_perplexity,
        "no adapter, so the same"
    );
    assert_ne!(candidate.neutral_perplexity, candidate.base_perplexity);
}

#[test]
fn the_same_adapter_twice_has_the_same_figures_whatever_shares_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let (_, lines) = evaluate(&["--candidate", ADAPTER, "--baseline", ADAPTER], &data);
    let both = lines.last().unwrap();
    assert_eq!(both["candidate"], both["baseline"]);
    let (_, lines) = evaluate(&["--candidate", ADAPTER, "--in-flight", "1"], &data);
    assert_eq!(lines.last().unwrap()["candidate"], both["candidate"]);
}

#[test]
fn a_baseline_of_another_base_is_said_and_replaced_by_the_bare_one() {
    let folder = tempfile::tempdir().unwrap();
    let (output, lines) = evaluate(
        &["--candidate", ADAPTER, "--baseline", OTHER_BASE],
        &data(folder.path()),
    );
    assert!(output.status.success());
    let comparison = lines.last().unwrap();
    assert_eq!(comparison["baseline"]["adapter"], "none@0");
    assert!(
        comparison["note"].as_str().unwrap().contains("bare base"),
        "{comparison}"
    );
}

#[test]
fn what_no_other_try_can_heal_ends_with_65_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let good = data(folder.path());
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"toxic\": \"a\", \"neutral\": [\"b\"]}\n{\"toxic\": 1}\n").unwrap();
    let empty = folder.path().join("empty.jsonl");
    std::fs::write(&empty, "\n").unwrap();
    for (candidate, data, word) in [
        (ADAPTER, bad.to_str().unwrap(), "line 2"),
        (ADAPTER, empty.to_str().unwrap(), "no example"),
        (OTHER_BASE, &*good, "adapter"),
    ] {
        let (output, lines) = evaluate(&["--candidate", candidate], data);
        assert_eq!(output.status.code(), Some(65), "{word}");
        let error = &lines.last().unwrap()["error"];
        assert_eq!(error["kind"], "invalid");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    let (output, lines) = evaluate(&["--candidate", ADAPTER], "./no-such-file.jsonl");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines.last().unwrap()["error"]["kind"], "failed");
}

#[test]
fn told_to_stop_or_left_alone_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    for told in [&b"stop\n"[..], b""] {
        let arguments = ["evaluate", "--model", MODEL, "--report", "json", "--candidate", ADAPTER];
        let mut command = detoxd(&arguments);
        let mut child = command.args(["--data", &data]).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(told).unwrap();
        if told.is_empty() {
            drop(stdin);
            assert_eq!(child.wait().unwrap().code(), Some(75));
        } else {
            assert_eq!(child.wait().unwrap().code(), Some(75));
            drop(stdin);
        }
    }
}

#[test]
fn people_get_a_table_with_a_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let output = detoxd(&["evaluate", "--model", MODEL, "--candidate", ADAPTER])
        .args(["--data", &data(folder.path()), "--outputs", "served"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for word in ["adapter@1", "none@0", "toxicity rate", "4 examples", "if_better would"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}
