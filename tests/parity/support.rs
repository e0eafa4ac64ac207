//! Models and adapters of the fixtures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use detoxd::model::Decoder;
use detoxd::model::layers::Adaptation;
use detoxd::model::lora::LoraModel;
use detoxd::model::packing::Packing;
use detoxd::model::weights::{ModelFiles, Purpose};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/llama-tiny")
        .join(name)
}

pub fn decoder(name: &str, purpose: Purpose) -> Decoder {
    ModelFiles::open(&fixture(name))
        .unwrap()
        .load(purpose, &Device::Cpu)
        .unwrap()
}

pub fn adapter(decoder: &Decoder) -> LoraModel {
    LoraModel::load(&fixture("adapter"), decoder.config(), &Device::Cpu).unwrap()
}

pub fn recorded(file: &str, name: &str) -> Tensor {
    candle_core::safetensors::load(fixture(file), &Device::Cpu)
        .unwrap()
        .remove(name)
        .unwrap()
}

/// The two token sequences of `expected.safetensors`.
pub fn sequences() -> Vec<Vec<u32>> {
    recorded("expected.safetensors", "ids")
        .to_dtype(candle_core::DType::U32)
        .unwrap()
        .to_vec2()
        .unwrap()
}

/// Logits `[tokens, vocabulary]` of several sequences in one packed batch.
pub fn packed_logits(decoder: &Decoder, sequences: &[Vec<u32>], adaptation: Adaptation<'_>) -> Tensor {
    let mut packing = Packing::new();
    for sequence in sequences {
        packing.push_sequence(sequence.len());
    }
    let hidden = decoder
        .forward_packed(&sequences.concat(), &Arc::new(packing), adaptation)
        .unwrap();
    decoder.logits(&hidden).unwrap()
}

pub fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}
