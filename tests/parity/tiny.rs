//! The small models and the adapter in `tests/fixtures/llama-tiny`, and what the tests do with them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use detoxd::model::Decoder;
use detoxd::model::kv_cache::{CacheSpace, CachedSequence, KvCache};
use detoxd::model::layers::{Adaptation, LoraSpan};
use detoxd::model::lora::{LoraConfig, LoraModel};
use detoxd::model::packing::Packing;
use detoxd::model::weights::{ModelFiles, Purpose};
use detoxd::train::batch::TokenSet;
use detoxd::train::objectives::{ContrastivePerplexity, Objective, Phi, Sides, Similarity};
use detoxd::train::optimizer::{AdamWConfig, Schedule};
use detoxd::train::trainable::Trainable;
use detoxd::train::trainer::{Goal, Schedules, Trainer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub const VOCABULARY: u32 = 300;

pub const DIRECTED: ContrastivePerplexity = ContrastivePerplexity {
    phi: Phi::LogPerplexity,
    similarity: Similarity::Directed { margin: 50.0 },
    tau: 0.5,
    alpha: 1.0,
    detach_prototype: false,
    sides: Sides::Both,
    weight: 1.0,
    sft_weight: 0.3,
};

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/llama-tiny")
        .join(name)
}

pub fn decoder(name: &str, purpose: Purpose) -> Decoder {
    let files = ModelFiles::open(&folder(name)).unwrap();
    files.load(purpose, &Device::Cpu).unwrap()
}

/// The tied model in f32.
pub fn tied() -> Decoder {
    decoder("tied", Purpose::ServeDense)
}

/// Serving on a device as it is done there, but on the CPU and in single precision.
pub const ON_DEVICE: Purpose = Purpose::ServeOnDevice { dtype: DType::F32 };

/// The tied model in f32, by our loops and as on a device.
pub fn both_ways() -> [Decoder; 2] {
    [tied(), decoder("tied", ON_DEVICE)]
}

/// The recorded adapter: all seven linears, rank 4, scale 2.
pub fn adapter(decoder: &Decoder) -> LoraModel {
    let adapter = LoraModel::load(&folder("adapter"), decoder.config(), &Device::Cpu).unwrap();
    adapter.placed(decoder.config(), decoder.placement()).unwrap()
}

/// Another one, of rank 2, that leaves gaps within the fused projections.
pub fn other_adapter(decoder: &Decoder) -> LoraModel {
    let config = LoraConfig {
        r: 2,
        lora_alpha: 3.0,
        lora_dropout: 0.0,
        use_rslora: false,
        target_modules: ["q_proj", "v_proj", "up_proj", "down_proj"].map(str::to_owned).into(),
        base_model_name_or_path: "llama-tiny".to_owned(),
    };
    let mut rng = StdRng::seed_from_u64(3);
    let adapter = LoraModel::initialise(config, decoder.config(), &Device::Cpu, &mut rng).unwrap();
    for (_, tensor) in adapter.parameters() {
        randomise(&tensor, 0.3, &mut rng);
    }
    adapter.placed(decoder.config(), decoder.placement()).unwrap()
}

/// Gives a variable random values of up to `size`.
pub fn randomise(variable: &Tensor, size: f32, rng: &mut StdRng) {
    let values = (0..variable.elem_count())
        .map(|_| rng.random_range(-size..size))
        .collect();
    set(variable, values);
}

/// Gives a variable new values.
pub fn set(variable: &Tensor, values: Vec<f32>) {
    let values = Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap();
    Var::from_tensor(variable).unwrap().set(&values).unwrap();
}

/// Sequences of these lengths, always the same.
pub fn sequences(lengths: &[usize], seed: u64) -> Vec<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sequence = |len: &usize| (0..*len).map(|_| rng.random_range(3..VOCABULARY)).collect();
    lengths.iter().map(&mut sequence).collect()
}

/// Training sets with two positives and three negatives each.
pub fn sets(count: usize, seed: u64) -> Vec<TokenSet> {
    (0..count)
        .map(|index| {
            let n = index % 3;
            let mut all = sequences(&[4 + n, 3, 5 + n, 2, 4, 1 + n], seed + index as u64);
            let prompt = all.remove(0);
            let negatives = all.split_off(2);
            TokenSet {
                prompt,
                positives: all,
                negatives,
                random: Vec::new(),
            }
        })
        .collect()
}

/// Tensors of a recording.
pub fn recorded(file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(file), &Device::Cpu).unwrap()
}

/// The recorded sequences, and the logits of a variant for each of their tokens.
pub fn recorded_logits(variant: &str) -> (Vec<Vec<u32>>, Tensor) {
    let expected = recorded("expected.safetensors");
    let ids = expected["ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
    let logits = expected[&format!("{variant}.logits")].flatten(0, 1).unwrap();
    (ids, logits)
}

/// Logits of whole sequences in one batch, `[Σ tokens, vocabulary]`.
pub fn packed_logits(decoder: &Decoder, sequences: &[Vec<u32>], adaptation: Adaptation<'_>) -> Tensor {
    let mut packing = Packing::new();
    for sequence in sequences {
        packing.push_sequence(sequence.len());
    }
    let hidden = decoder
        .forward_packed(&sequences.concat(), &Arc::new(packing), adaptation)
        .unwrap();
    decoder.logits(&hidden, adaptation).unwrap().detach()
}

/// Logits of new tokens of one sequence; the cache takes them up.
pub fn cached_logits(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32], adaptation: Adaptation<'_>) -> Tensor {
    let len = tokens.len();
    let hidden = decoder
        .forward_cached(tokens, &mut [CachedSequence { cache, len }], adaptation)
        .unwrap();
    decoder.logits(&hidden, adaptation).unwrap()
}

/// Room for the caches of a test.
pub fn caches(decoder: &Decoder) -> CacheSpace {
    decoder.cache_space(2048)
}

/// One in a space of its own.
pub fn cache(decoder: &Decoder) -> KvCache {
    caches(decoder).cache(16)
}

/// An adapter on the first `rows` rows.
pub fn span(adapter: &Arc<LoraModel>, rows: usize, strength: f32) -> Vec<LoraSpan> {
    vec![LoraSpan {
        rows: 0..rows,
        adapter: adapter.clone(),
        strength,
    }]
}

#[track_caller]
pub fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

/// Root mean square of a difference, as a share of the root mean square of what was wanted.
pub fn relative(got: &Tensor, want: &Tensor) -> f32 {
    let size = |tensor: &Tensor| {
        tensor
            .sqr()
            .unwrap()
            .mean_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            .sqrt()
    };
    size(&(got - want).unwrap()) / size(want)
}

#[track_caller]
pub fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    let difference = largest_difference(got, want);
    assert!(difference < tolerance, "{what}: they differ by {difference}");
}

/// The modules that a stacked parameter (`layers.0.Qkv.lora_A`) holds, under PEFT's names less its prefix, and their rows.
pub fn modules(parameter: &str) -> Vec<(String, Range<usize>)> {
    let [_, layer, projection, matrix] = parameter.split('.').collect::<Vec<_>>()[..] else {
        panic!("{parameter}")
    };
    let parts: &[(&str, usize)] = match projection {
        "Qkv" => &[
            ("self_attn.q_proj", 64),
            ("self_attn.k_proj", 32),
            ("self_attn.v_proj", 32),
        ],
        "Output" => &[("self_attn.o_proj", 64)],
        "GateUp" => &[("mlp.gate_proj", 96), ("mlp.up_proj", 96)],
        _ => &[("mlp.down_proj", 64)],
    };
    let mut next = 0;
    let mut place = |(module, rows): &(&str, usize)| {
        let rows = if matrix == "lora_A" { 4 } else { *rows };
        next += rows;
        (
            format!("model.layers.{layer}.{module}.{matrix}.weight"),
            next - rows..next,
        )
    };
    parts.iter().map(&mut place).collect()
}

/// Twelve short steps and a bit, over three epochs.
pub fn schedules() -> Schedules {
    Schedules {
        epochs: 3.0,
        max_steps: None,
        batch_tokens: 120,
        batch_size: None,
        gradient_accumulation: 1,
        learning_rate: 3e-3,
        warmup_steps: 3,
        schedule: Schedule::Cosine,
        seed: 11,
        num_positives: 2,
        num_negatives: 2,
        random_negatives: 0,
        adamw: AdamWConfig::default(),
    }
}

pub fn trainer<'a>(
    run: &'a Path,
    sets: &'a [TokenSet],
    objective: &'a dyn Objective,
    schedules: &'a Schedules,
) -> Trainer<'a> {
    Trainer {
        run,
        sets,
        goal: Goal::Loss(objective),
        schedules,
        settings: serde_json::json!({ "name": "tiny", "schedules": schedules }),
        checkpoint_every: Duration::from_secs(3600),
        save_dtype: DType::F32,
    }
}

/// An adapter as what a run trains; it shares the adapter's variables.
pub fn trainable<'a>(decoder: &'a Decoder, adapter: &LoraModel) -> Trainable<'a> {
    Trainable::Adapter {
        base: decoder,
        adapter: adapter.clone(),
    }
}
