//! `detoxd train` and what is made of its result, on the micro model.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

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

/// Killed without a warning at moments that no step knows of, checkpoints after every step: what is left is always a run to go on with.
#[test]
fn a_run_that_is_killed_at_any_moment_ends_with_the_adapter_of_an_unbroken_one() {
    let flags = [
        "--epochs",
        "1000",
        "--max-steps",
        "60",
        "--checkpoint-minutes",
        "0",
        "--lora-dropout",
        "0.1",
    ];
    let adapter = |folder: &Path| fs::read(folder.join("run/adapter/adapter_model.safetensors")).unwrap();
    let unbroken = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let (trained, message) = train(unbroken.path(), &flags);
    assert!(trained, "{message}");
    let whole = start.elapsed();

    let killed = tempfile::tempdir().unwrap();
    let (data, run) = (killed.path().join("data.jsonl"), killed.path().join("run"));
    fs::write(&data, SETS).unwrap();
    let mut kills = 0;
    for share in [0.13, 0.29, 0.37, 0.51, 0.43, 0.61, 0.23] {
        let paths = ["--data", data.to_str().unwrap(), "--out", run.to_str().unwrap()];
        let mut child = detoxd(&["train", "--model", MODEL, "--dtype", "f32", "--warmup-steps", "1"])
            .args(paths)
            .args(flags)
            .arg("--resume")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(share));
        // SIGKILL.
        child.kill().unwrap();
        kills += usize::from(!child.wait().unwrap().success());
    }
    assert!(kills > 2, "the run was over before it could be killed");
    let resumed: Vec<&str> = flags.iter().copied().chain(["--resume"]).collect();
    let (trained, message) = train(killed.path(), &resumed);
    assert!(trained, "{message}");
    assert!(
        adapter(killed.path()) == adapter(unbroken.path()),
        "the adapters differ"
    );
    let steps = |folder: &Path| -> Vec<Value> {
        let log = fs::read_to_string(folder.join("run/loss.jsonl")).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        log.lines()
            .map(line)
            .map(|line| serde_json::json!([line["step"], line["loss"]]))
            .collect()
    };
    assert_eq!(steps(killed.path()), steps(unbroken.path()));
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
