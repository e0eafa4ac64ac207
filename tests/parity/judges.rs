//! Encoders that judge against what transformers and sentence-transformers recorded on small models of each architecture
//! (`tests/fixtures/judges`), and MiniLM, where it is at hand.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use detoxd::scoring::{Classifier, Embedder, Similarity, Toxicity};
use rayon::ThreadPool;
use serde_json::Value;

const TOLERANCE: f32 = 1e-4;
/// The text that spells control tokens: transformers obeys them, and we never do.
const SPELT: usize = 6;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/judges")
        .join(name)
}

fn threads() -> Arc<ThreadPool> {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap())
}

fn classifier(folder: &Path) -> Classifier {
    Classifier::open(folder, None, threads()).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

fn recording(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn texts(recording: &Value) -> Vec<&str> {
    recording["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect()
}

fn row(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap() as f32)
        .collect()
}

fn difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    got.iter()
        .zip(wanted)
        .map(|(got, wanted)| (got - wanted).abs())
        .fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers_padded_or_alone() {
    let recording = recording(&folder("expected.json"));
    let texts = texts(&recording);
    for name in ["bert", "roberta", "xlm-roberta", "deberta-v2", "distilbert"] {
        let classifier = classifier(&folder(name));
        let together = classifier.logits(&texts).unwrap();
        let (mut largest, mut padding) = (0f32, 0f32);
        for (number, text) in texts.iter().enumerate() {
            let wanted = row(&recording["models"][name]["logits"][number]);
            let alone = classifier.logits(&[text]).unwrap().remove(0);
            padding = padding.max(difference(&together[number], &alone));
            if number == SPELT {
                assert!(
                    difference(&together[number], &wanted) > 0.01,
                    "{name} obeys what is only spelt"
                );
            } else {
                largest = largest.max(difference(&together[number], &wanted));
            }
        }
        println!("{name}: logits within {largest:.1e}, within {padding:.1e} of those without padding");
        assert!(largest < TOLERANCE, "{name}: logits differ by {largest}");
        assert!(padding < 1e-5, "{name}: padding changes logits by {padding}");
    }
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    let recording = recording(&folder("expected.json"));
    let texts = texts(&recording);
    for name in ["embed-mean", "embed-cls"] {
        let embedder = Embedder::open(&folder(name), threads()).unwrap();
        let together = embedder.embed(&texts).unwrap();
        let mut largest = 0f32;
        for (number, got) in together.iter().enumerate().filter(|(number, _)| *number != SPELT) {
            let wanted = row(&recording["models"][name]["embeddings"][number]);
            largest = largest.max(difference(got, &wanted));
        }
        println!("{name}: embeddings within {largest:.1e}");
        assert!(largest < TOLERANCE, "{name}: embeddings differ by {largest}");
    }
}

#[test]
fn scores_are_probabilities_of_the_toxic_labels_and_cosines() {
    let recording = recording(&folder("expected.json"));
    let texts = texts(&recording);
    let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
    let logits = |name: &str, number: usize| row(&recording["models"][name]["logits"][number]);

    // toxic, insult and obscene of four that may hold together: the likeliest.
    let bert = classifier(&folder("bert"));
    let scores = bert.scores(&texts);
    let wanted = sigmoid(logits("bert", 1)[..3].iter().copied().fold(f32::MIN, f32::max));
    assert!((scores[1] - wanted).abs() < TOLERANCE, "{} {wanted}", scores[1]);
    assert_eq!(bert.score(texts[1]), bert.scores(&texts[1..2])[0]);
    let of_label = Classifier::open(&folder("bert"), Some("sexual_explicit"), threads()).unwrap();
    assert!((of_label.score(texts[1]) - sigmoid(logits("bert", 1)[3])).abs() < TOLERANCE);

    let roberta = classifier(&folder("roberta"));
    let [neutral, toxic] = logits("roberta", 0)[..] else {
        panic!()
    };
    assert!((roberta.score(texts[0]) - sigmoid(toxic - neutral)).abs() < TOLERANCE);

    // Leaving a word out changes the log odds by what is said.
    let text = "What a stupid idea";
    let odds = |text: &str| {
        let score = roberta.score(text);
        (score / (1.0 - score)).ln()
    };
    let words = roberta.attributions(text);
    let spelt: Vec<&str> = words.iter().map(|(word, _)| &text[word.clone()]).collect();
    assert_eq!(spelt, ["What", "a", "stupid", "idea"]);
    let without = odds(text) - odds("What a  idea");
    assert!((words[2].1 - without).abs() < 1e-3, "{} {without}", words[2].1);

    let embedder = Embedder::open(&folder("embed-cls"), threads()).unwrap();
    let rewrites = [texts[0], texts[1], texts[4]];
    let scores = embedder.scores(texts[0], &rewrites);
    let embeddings: Vec<Vec<f32>> = [0, 1, 4]
        .iter()
        .map(|&number| row(&recording["models"]["embed-cls"]["embeddings"][number]))
        .collect();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (score, embedding) in scores.iter().zip(&embeddings) {
        let cosine =
            dot(&embeddings[0], embedding) / (dot(&embeddings[0], &embeddings[0]) * dot(embedding, embedding)).sqrt();
        assert!((score - cosine).abs() < TOLERANCE, "{score} {cosine}");
    }
    assert!((scores[0] - 1.0).abs() < 1e-5 && scores[1] < 1.0);
}

/// A copy of a fixture, to be broken.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for item in std::fs::read_dir(folder(name)).unwrap() {
        let path = item.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

#[test]
fn what_does_not_fit_is_named() {
    enum Break {
        Set(&'static str, Value),
        Remove(&'static str),
    }
    use Break::{Remove, Set};
    let breaks = [
        ("bert", Set("model_type", "gpt2".into()), "`model_type` is gpt2"),
        ("bert", Set("num_hidden_layers", 3.into()), "bert.encoder.layer.2"),
        (
            "distilbert",
            Set("n_layers", 3.into()),
            "distilbert.transformer.layer.2.attention",
        ),
        (
            "roberta",
            Set("intermediate_size", 64.into()),
            "roberta.encoder.layer.0.intermediate.dense",
        ),
        ("bert", Set("hidden_act", "swish".into()), "`hidden_act` is swish"),
        (
            "deberta-v2",
            Set("conv_kernel_size", 3.into()),
            "`conv_kernel_size` is 3",
        ),
        (
            "deberta-v2",
            Set("position_biased_input", true.into()),
            "`position_biased_input`",
        ),
        ("bert", Set("vocab_size", 20.into()), "171 tokens"),
        ("bert", Remove("tokenizer.json"), "tokenizer.json"),
        (
            "bert",
            Remove("model.safetensors"),
            "neither a .safetensors file nor pytorch_model.bin",
        ),
        ("bert", Remove("config.json"), "config.json"),
    ];
    for (name, damage, word) in breaks {
        let copy = copy(name);
        match damage {
            Remove(file) => std::fs::remove_file(copy.path().join(file)).unwrap(),
            Set(key, value) => {
                let path = copy.path().join("config.json");
                let mut config = recording(&path);
                config[key] = value;
                std::fs::write(path, config.to_string()).unwrap();
            }
        }
        let error = Classifier::open(copy.path(), None, threads())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(word), "{name}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = Classifier::open(&folder("roberta"), Some("rude"), threads())
        .err()
        .unwrap();
    assert!(error.to_string().contains("`rude`; it has neutral, toxic"), "{error}");
    // An embedder has no labels, and no head.
    let error = Classifier::open(&folder("embed-mean"), None, threads()).err().unwrap();
    assert!(error.to_string().contains("id2label"), "{error}");
}

/// Runs where `DETOXD_TEST_MINILM` names the folder of all-MiniLM-L6-v2; `record_minilm.py` wrote the recording.
#[test]
fn minilm_is_that_of_sentence_transformers() {
    let Some(folder) = std::env::var_os("DETOXD_TEST_MINILM").map(PathBuf::from) else {
        eprintln!("skipped: DETOXD_TEST_MINILM is not set");
        return;
    };
    let recording: Value = serde_json::from_str(include_str!("minilm.json")).unwrap();
    let texts = texts(&recording);
    let embedder = Embedder::open(&folder, threads()).unwrap();
    let embeddings = embedder.embed(&texts).unwrap();
    let (mut largest, mut largest_cosine) = (0f32, 0f32);
    for (number, got) in embeddings.iter().enumerate() {
        largest = largest.max(difference(got, &row(&recording["embeddings"][number])));
        let cosines = embedder.scores(texts[number], &texts);
        let wanted: Vec<f32> = row(&recording["cosines"][number])
            .iter()
            .map(|cosine| cosine.max(0.0))
            .collect();
        largest_cosine = largest_cosine.max(difference(&cosines, &wanted));
    }
    println!(
        "{} texts: embeddings within {largest:.1e}, cosines within {largest_cosine:.1e}",
        texts.len()
    );
    assert!(largest < TOLERANCE && largest_cosine < TOLERANCE);
}
