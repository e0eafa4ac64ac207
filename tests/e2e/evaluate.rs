//! `detoxd evaluate`, for people and as the child of a worker.

use std::io::Write;
use std::path::Path;
use std::process::Output;
use std::process::Stdio;

use detoxd::evaluate::{Metric, Report};
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
fn a_worker_gets_progress_and_then_a_report_on_the_same_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "--adapter",
        "none",
        "--adapter",
        ADAPTER,
        "--max-examples",
        "3",
        "--samples",
        "0",
    ];
    let (output, lines) = evaluate(&arguments, &data(folder.path()));
    assert!(output.status.success());
    let progress: Vec<Value> = (0..=3)
        .map(|done| serde_json::json!({ "done": done, "total": 3 }))
        .collect();
    assert_eq!(lines[..4], progress);
    assert_eq!(lines.len(), 5);
    let report: Report = serde_json::from_value(lines[4].clone()).unwrap();
    let [baseline, candidate] = &report.systems[..] else {
        panic!("{report:?}")
    };
    assert_eq!((candidate.examples, baseline.examples), (3, 3));
    assert_eq!(
        (candidate.adapter.as_str(), baseline.adapter.as_str()),
        ("adapter@1", "none@0")
    );
    // The micro model rewrites by itself; its adapter was trained a little further.
    for measured in [candidate, baseline] {
        let value = |metric| measured.value(metric).unwrap();
        assert!(value(Metric::Toxicity) < 0.5 && value(Metric::J) > 0.4, "{measured:?}");
        assert_eq!((value(Metric::Copied), value(Metric::Empty)), (0.0, 0.0));
        assert_eq!(measured.value(Metric::SelfBleu), None, "no samples were asked for");
        for figure in measured.figures.values() {
            assert!(figure.low <= figure.value && figure.value <= figure.high, "{figure:?}");
        }
    }
    for metric in [Metric::NeutralPerplexity, Metric::PerplexityGap] {
        assert_eq!(
            baseline.figures[&metric], report.base[&metric],
            "no adapter, so the same"
        );
        assert_ne!(candidate.figures[&metric], report.base[&metric]);
    }
    let difference = candidate.differences[&Metric::J].value;
    let values = [candidate, baseline].map(|system| system.value(Metric::J).unwrap());
    assert!((difference - (values[0] - values[1])).abs() < 1e-9);
    assert_eq!(
        (report.setting.skipped, report.setting.toxicity_model.as_str()),
        (0, "built-in")
    );
}

#[test]
fn the_same_adapter_twice_has_the_same_figures_whatever_shares_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let (_, lines) = evaluate(&["--adapter", ADAPTER, "--adapter", ADAPTER], &data);
    let both: Report = serde_json::from_value(lines.last().unwrap().clone()).unwrap();
    assert_eq!(both.systems[0].figures, both.systems[1].figures);
    assert!(
        both.systems[1]
            .differences
            .values()
            .all(|difference| difference.low == 0.0 && difference.high == 0.0)
    );
    let (_, lines) = evaluate(&["--adapter", ADAPTER, "--in-flight", "1"], &data);
    let alone: Report = serde_json::from_value(lines.last().unwrap().clone()).unwrap();
    assert_eq!(alone.systems[0].figures, both.systems[0].figures);
}

#[test]
fn a_baseline_of_another_base_is_said_and_replaced_by_the_bare_one() {
    let folder = tempfile::tempdir().unwrap();
    let (output, lines) = evaluate(
        &["--adapter", OTHER_BASE, "--adapter", ADAPTER, "--samples", "0"],
        &data(folder.path()),
    );
    assert!(output.status.success());
    let report = lines.last().unwrap();
    assert_eq!(report["systems"][0]["adapter"], "none@0");
    assert!(report["note"].as_str().unwrap().contains("bare base"), "{report}");
}

#[test]
fn all_that_the_field_reports_is_measured_and_written_in_three_forms() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(
        path("neutral.txt"),
        "The door is open.\nYou idiot, close the window.\nThe train leaves.\n",
    )
    .unwrap();
    std::fs::write(path("plain.txt"), "Anna forgot the letter yesterday. ".repeat(30)).unwrap();
    let output = detoxd(&["evaluate", "--model", MODEL, "--adapter", "none", "--adapter", ADAPTER])
        .args([
            "--adapter",
            ADAPTER,
            "--data",
            &data(folder.path()),
            "--samples",
            "3",
            "--resamples",
            "50",
        ])
        .args([
            "--neutral",
            &path("neutral.txt"),
            "--text",
            &path("plain.txt"),
            "--window",
            "32",
        ])
        .args(["--json", &path("report.json"), "--html", &path("report.html")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_slice(&std::fs::read(path("report.json")).unwrap()).unwrap();
    assert_eq!(report.systems.len(), 3);
    for system in &report.systems {
        let measured: Vec<Metric> = system.figures.keys().copied().collect();
        assert_eq!(measured, Metric::ALL);
        assert!((system.value(Metric::FalsePositives).unwrap() - 1.0 / 3.0).abs() < 1e-9);
    }
    assert_eq!(
        (
            report.setting.neutral_texts,
            report.setting.window_tokens,
            report.setting.resamples
        ),
        (3, 32, 50)
    );
    assert!(report.setting.windows > 2);
    let gap = report.base[&Metric::PerplexityGap];
    assert!(gap.low <= gap.value && gap.value.is_finite(), "{gap:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "| self-BLEU |",
        "| false positives ↓ |",
        "Differences from none@0",
        "`if_better` would",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let page = std::fs::read_to_string(path("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("adapter@1"));
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
        let (output, lines) = evaluate(&["--adapter", candidate], data);
        assert_eq!(output.status.code(), Some(65), "{word}");
        let error = &lines.last().unwrap()["error"];
        assert_eq!(error["kind"], "invalid");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    let (output, lines) = evaluate(&["--adapter", ADAPTER], "./no-such-file.jsonl");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines.last().unwrap()["error"]["kind"], "failed");
}

#[test]
fn told_to_stop_or_left_alone_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    for told in [&b"stop\n"[..], b""] {
        let arguments = ["evaluate", "--model", MODEL, "--report", "json", "--adapter", ADAPTER];
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
fn people_get_tables_with_a_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let output = detoxd(&["evaluate", "--model", MODEL, "--adapter", "none", "--adapter", ADAPTER])
        .args(["--data", &data(folder.path()), "--outputs", "served", "--samples", "0"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for word in [
        "adapter@1",
        "none@0",
        "toxicity rate",
        "4 examples",
        "outputs: served",
        "`if_better` would",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}
