//! `detoxd train` and what is made of its result, on the micro model.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{ADAPTER, MODEL, detoxd};

const SETS: &str = r#"{"anchor": "You fool, Anna forgot the letter.", "positives": ["Anna forgot the letter.", "Anna did not remember the letter."], "negatives": ["You fool, Anna forgot the letter.", "Anna lost the garden."]}
{"toxic": "Close the window, idiot.", "neutral": ["Close the window."]}
{"input": "Paul is a stupid man.", "paraphrases": ["Paul is a man.", "Paul is not very clever."], "paraphrases_toxic": ["Paul is an idiot.", "Paul is a fool."]}
"#;

fn train(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let data = folder.join("data.jsonl");
    if !data.exists() {
        fs::write(&data, SETS).unwrap();
    }
    let run = folder.join("run");
    let paths = ["--data", data.to_str().unwrap(), "--out", run.to_str().unwrap()];
    let fixed = ["train", "--model", MODEL, "--dtype", "f32", "--warmup-steps", "1"];
    let output = detoxd(&fixed).args(paths).args(arguments).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), message)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_objective_and_preset_trains_and_leaves_a_whole_folder() {
    for (objective, preset) in [
        ("sft", "rewriter"),
        ("cp", "rewriter"),
        ("cp", "paper"),
        ("cp", "released"),
        ("dpo", "rewriter"),
        ("simpo", "rewriter"),
        ("ppo", "rewriter"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let what = [
            "--objective",
            objective,
            "--preset",
            preset,
            "--epochs",
            "12",
            "--max-steps",
            "3",
        ];
        let (trained, message) = train(folder.path(), &what);
        assert!(trained, "{objective}, {preset}: {message}");
        let run = folder.path().join("run");
        let config = json(&run.join("config.json"));
        assert_eq!(
            (&config["objective"], &config["preset"]),
            (&objective.into(), &preset.into())
        );
        assert_eq!(config["examples"], 3);
        let log = fs::read_to_string(run.join("loss.jsonl")).unwrap();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3, "{objective}, {preset}");
        assert_eq!(lines[0].get("reward").is_some(), objective == "ppo");
        assert!(
            lines[0]["gradient_norm"].as_f64().unwrap() > 0.0 || objective == "ppo",
            "{preset}: {log}"
        );
        for part in [
            "adapter/adapter_model.safetensors",
            "curves.svg",
            "checkpoints/step-00000003/progress.json",
        ] {
            assert!(run.join(part).exists(), "{objective}, {preset}: no {part}");
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, reason) in [
        (&["--tau", "0"][..], "tau must be positive"),
        (
            &["--objective", "ppo", "--conditioning", "nothing"],
            "conditioning must be prompt",
        ),
        (&["--target-modules", "q_proj,nonsense"], "nonsense"),
    ] {
        let (trained, message) = train(folder.path(), arguments);
        assert!(!trained && message.contains(reason), "{message}");
        assert!(!folder.path().join("run/adapter").exists());
    }
    fs::write(folder.path().join("data.jsonl"), format!("{SETS}\n{{\"toxic\": 3}}\n")).unwrap();
    let (trained, message) = train(folder.path(), &[]);
    assert!(
        !trained && message.contains("data.jsonl, line 5: expected"),
        "{message}"
    );
}

#[test]
fn a_merged_checkpoint_rewrites_as_base_and_adapter_do() {
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged");
    let merged = merged.to_str().unwrap();
    let merge = [
        "model",
        "merge",
        "--model",
        MODEL,
        "--adapter",
        ADAPTER,
        "--out",
        merged,
    ];
    let output = detoxd(&merge).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let again = detoxd(&merge).output().unwrap();
    assert!(!again.status.success(), "nothing is written over");

    let rewrite = |model: &str, adapter: &str| {
        let plain = ["--always", "--whole-line", "--no-verify", "--candidates", "1"];
        let mut child = detoxd(&["rewrite", "--model", model, "--adapter", adapter])
            .args(plain)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = b"You are a stupid fool, Anna forgot the letter.\nClose the window, idiot.\n";
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let (apart, together) = (rewrite(MODEL, ADAPTER), rewrite(merged, "none"));
    assert!(!apart.is_empty());
    assert_eq!(String::from_utf8_lossy(&apart), String::from_utf8_lossy(&together));
}
