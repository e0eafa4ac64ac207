//! Judges that are models of their own: on the small random encoders of the fixtures, whose verdicts are recorded.

use super::{ADAPTER, MODEL, detoxd, evaluate, post, rewrite, serve_with};

macro_rules! judge {
    ($name:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/judges/", $name)
    };
}
pub const CLASSIFIER: &str = judge!("roberta");
pub const EMBEDDER: &str = judge!("embed-mean");

/// What transformers says of "You are an idiot." (`expected.json`).
pub const OF_IDIOT: f64 = 0.827;

#[test]
fn rewrite_asks_the_judges_that_it_is_given() {
    let arguments = ["--json", "--toxicity-model", CLASSIFIER, "--similarity-model", EMBEDDER];
    let output = rewrite(&arguments, b"You are an idiot.\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let toxicity = result["toxicity"]["input"].as_f64().unwrap();
    assert!((toxicity - OF_IDIOT).abs() < 2e-3, "{result}");
    // A random classifier finds everything toxic: what was tried is masked or blocked in the end, and no worse than it should be.
    assert!(result["toxicity"]["output"].as_f64().unwrap() <= 0.5, "{result}");
    // A scorer's verdict on the whole text, by another judge than the built-in one.
    let built_in = rewrite(&["--json"], b"You are an idiot.\n");
    let built_in: serde_json::Value = serde_json::from_slice(&built_in.stdout).unwrap();
    assert_ne!(built_in["toxicity"]["input"], result["toxicity"]["input"]);
}

#[test]
fn the_service_asks_them_and_answers_others_meanwhile() {
    let service = serve_with(&["--toxicity-model", CLASSIFIER, "--similarity-model", EMBEDDER]);
    let score = post(&service, "/score", r#"{"text": "You are an idiot."}"#);
    assert!((score["toxicity"].as_f64().unwrap() - OF_IDIOT).abs() < 1e-3, "{score}");
    let body = r#"{"texts": ["You are an idiot.", "Please close the window."], "seed": 1}"#;
    let first = post(&service, "/detoxify", body);
    let again: Vec<serde_json::Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| post(&service, "/detoxify", body)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for answer in again {
        for text in 0..2 {
            assert_eq!(answer["results"][text]["text"], first["results"][text]["text"]);
            assert_eq!(answer["results"][text]["toxicity"], first["results"][text]["toxicity"]);
        }
    }
}

#[test]
fn evaluate_measures_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let data = evaluate::data(folder.path());
    let by = |judges: &[&str]| {
        let output = detoxd(&[
            "evaluate",
            "--model",
            MODEL,
            "--adapter",
            ADAPTER,
            "--data",
            &data,
            "--max-examples",
            "2",
        ])
        .args(judges)
        .output()
        .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let line = |text: &str, name: &str| {
        let begins = format!("| {name} ");
        text.lines().find(|line| line.starts_with(&begins)).unwrap().to_owned()
    };
    let (own, others) = (
        by(&[]),
        by(&["--toxicity-model", CLASSIFIER, "--similarity-model", EMBEDDER]),
    );
    for figure in ["toxicity", "similarity"] {
        assert_ne!(line(&own, figure), line(&others, figure));
    }
}

#[test]
fn a_judge_that_cannot_be_had_is_named_and_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    for (arguments, words) in [
        (
            ["--toxicity-model", "./no-such"],
            ["toxicity model `./no-such`", "hub id"],
        ),
        (["--toxicity-model", empty], ["toxicity model", "config.json"]),
        (["--toxicity-model", MODEL], ["`model_type` is llama", "bert, roberta"]),
        (["--toxicity-model", EMBEDDER], ["embed-mean", "id2label"]),
        (
            ["--similarity-model", MODEL],
            ["similarity model", "`model_type` is llama"],
        ),
        (["--toxicity-label", "toxic"], ["toxicity_label", "built-in"]),
    ] {
        let output = rewrite(&arguments, b"x\n");
        assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        for word in words {
            assert!(message.contains(word), "{arguments:?}: {message}");
        }
    }
    let output = rewrite(&["--toxicity-model", CLASSIFIER, "--toxicity-label", "rude"], b"x\n");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("`rude`; it has neutral, toxic"), "{message}");
}
