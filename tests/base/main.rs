//! The default base model against `transformers` and `peft` on the same weights. Runs where `DETOXD_TEST_BASE` names the GGUF file
//! of SmolLM2-135M-Instruct; the `record_*.py` in `tests/parity` wrote the recordings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use detoxd::adapters::ShippedAdapter;
use detoxd::model::Decoder;
use detoxd::model::layers::{Adaptation, LoraSpan};
use detoxd::model::lora::LoraModel;
use detoxd::model::ops::Target;
use detoxd::model::packing::Packing;
use detoxd::model::weights::{ModelFiles, Purpose};
use serde_json::Value;

fn file(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {variable} is not set");
    }
    path
}

fn load(path: &Path, purpose: Purpose) -> Decoder {
    ModelFiles::open(path).unwrap().load(purpose, &Device::Cpu).unwrap()
}

fn ids(row: &Value) -> Vec<u32> {
    row["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

fn single(len: usize) -> Arc<Packing> {
    let mut packing = Packing::new();
    packing.push_sequence(len);
    Arc::new(packing)
}

/// Largest difference from the recorded logits of one position.
fn difference(logits: &[f32], want: &Value) -> f64 {
    let numbers =
        |value: &Value| -> Vec<f64> { value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let tops = numbers(&want["top"]["ids"])
        .into_iter()
        .map(|id| id as usize)
        .zip(numbers(&want["top"]["logits"]));
    let stride = want["strided"]["stride"].as_u64().unwrap() as usize;
    let strided = numbers(&want["strided"]["logits"])
        .into_iter()
        .enumerate()
        .map(|(n, logit)| (n * stride, logit));
    tops.chain(strided)
        .map(|(id, logit)| (f64::from(logits[id]) - logit).abs())
        .fold(0.0, f64::max)
}

fn mean_nll(decoder: &Decoder, tokens: &[u32]) -> f64 {
    let hidden = decoder
        .forward_packed(tokens, &single(tokens.len()), Adaptation::Base)
        .unwrap();
    let targets: Vec<Target> = tokens[1..]
        .iter()
        .enumerate()
        .map(|(row, &token)| Target { row: row as u32, token })
        .collect();
    let nll = decoder
        .cross_entropy(&hidden, &targets, Adaptation::Base)
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    nll.iter().map(|&value| f64::from(value)).sum::<f64>() / nll.len() as f64
}

#[test]
fn logits_and_likelihoods_are_those_of_transformers() {
    let Some(path) = file("DETOXD_TEST_BASE") else { return };
    let recording: Value = serde_json::from_str(include_str!("../parity/logits.json")).unwrap();
    let rows = recording["rows"].as_array().unwrap();
    let (dense, quantised) = (load(&path, Purpose::ServeDense), load(&path, Purpose::ServeQuantized));
    let (mut largest, mut largest_nll, mut dense_total, mut quantised_total) = (0f64, 0f64, 0f64, 0f64);
    let mut texts = 0;
    for row in rows {
        let tokens = ids(row);
        let hidden = dense
            .forward_packed(&tokens, &single(tokens.len()), Adaptation::Base)
            .unwrap();
        let logits = dense
            .logits(&hidden, Adaptation::Base)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        for position in row["positions"].as_array().unwrap() {
            largest = largest.max(difference(&logits[position["at"].as_u64().unwrap() as usize], position));
        }
        // A text of one token predicts nothing.
        let Some(want) = row["mean_nll"].as_f64() else { continue };
        let nll = mean_nll(&dense, &tokens);
        largest_nll = largest_nll.max((nll - want).abs());
        texts += 1;
        dense_total += nll;
        quantised_total += mean_nll(&quantised, &tokens);
    }
    let change = ((quantised_total - dense_total) / f64::from(texts)).exp() - 1.0;
    println!(
        "{} texts: logits within {largest:.1e}, likelihoods within {largest_nll:.1e}",
        rows.len()
    );
    println!(
        "quantised activations change the perplexity by {:+.2} %",
        change * 100.0
    );
    assert!(largest < 1e-3, "logits differ by {largest}");
    assert!(largest_nll < 1e-4, "likelihoods differ by {largest_nll}");
    assert!(change.abs() < 0.03, "quantised perplexity changes by {change}");
}

#[test]
fn logits_with_an_adapter_trained_by_peft_are_those_of_peft() {
    let (Some(path), Some(folder)) = (file("DETOXD_TEST_BASE"), file("DETOXD_TEST_PEFT_ADAPTER")) else {
        return;
    };
    let recording: Value = serde_json::from_str(include_str!("../parity/peft.json")).unwrap();
    let decoder = load(&path, Purpose::ServeDense);
    let adapter = Arc::new(LoraModel::load(&folder, decoder.config(), &Device::Cpu).unwrap());
    let mut largest = 0f64;
    for row in recording["rows"].as_array().unwrap() {
        let tokens = ids(row);
        for (name, strength) in [("adapted", 1.0), ("half_strength", 0.5), ("base", 0.0)] {
            let spans = [LoraSpan {
                rows: 0..tokens.len(),
                adapter: adapter.clone(),
                strength,
            }];
            let hidden = decoder
                .forward_packed(&tokens, &single(tokens.len()), Adaptation::Mixed(&spans))
                .unwrap();
            let last = hidden.narrow(0, tokens.len() - 1, 1).unwrap();
            let logits = decoder
                .logits(&last, Adaptation::Base)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            largest = largest.max(difference(&logits[0], &row[name]));
        }
    }
    println!("logits with the adapter within {largest:.1e}");
    assert!(largest < 1e-3, "logits differ by {largest}");
}

#[test]
fn the_shipped_adapters_fit() {
    let Some(path) = file("DETOXD_TEST_BASE") else { return };
    let decoder = load(&path, Purpose::ServeQuantized);
    for name in ["default@1", "default@2", "default@3", "default@4"] {
        let shipped = ShippedAdapter::find(&name.parse().unwrap()).unwrap();
        let lease = shipped.load(decoder.config(), decoder.placement()).unwrap();
        assert_eq!(lease.version().to_string(), name);
    }
    let newest = ShippedAdapter::for_base("smollm2-135m").unwrap();
    assert_eq!(newest.version().to_string(), "default@4");
}
