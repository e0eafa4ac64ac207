//! The kernels of the decoder one by one at the shapes of SmolLM2-135M, candle's own beside them.
//!
//! `cargo bench --bench kernels [-- FILTER]`, where a name is `kernel/shape/rows/who`; with `RAYON_NUM_THREADS=1` for one thread, of either. What reads
//! memory once is in GB/s (`bandwidth` says what the machine gives), the rest in GFLOP/s, which criterion writes as `Gelem/s`. Weights take turns
//! with copies of theirs that no cache holds all of, as the layers of a model do.

#![expect(
    clippy::disallowed_types,
    reason = "candle's own product is what ours is measured against"
)]

use std::borrow::Cow;
use std::time::Duration;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use detoxd::engine::sampling::{Row, Sampler, Sampling};
use detoxd::model::DecoderConfig;
use detoxd::model::kernels::bf16::PackedBf16;
use detoxd::model::kernels::quantized::{BlockFormat, Path, QuantizedMatrix};
use detoxd::model::kv_cache::{CacheSpace, CachedSequence, advance, attend};
use detoxd::model::ops::{AttentionShape, RotaryTable, low_rank};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;

/// Name, inner size and width of the weights.
const WEIGHTS: [(&str, usize, usize); 4] = [
    ("qkv", 576, 960),
    ("gate_up", 576, 3072),
    ("down", 1536, 576),
    ("head", 576, 49_152),
];
const ROWS: [usize; 4] = [1, 4, 8, 32];
/// Bytes that no cache holds.
const UNCACHED: usize = 128 << 20;

fn random(count: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(7);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor(rows: usize, columns: usize) -> Tensor {
    Tensor::from_vec(random(rows * columns), (rows, columns), &Device::Cpu).unwrap()
}

/// As many of a weight as no cache holds.
fn copies<T>(bytes: usize, one: impl Fn() -> T) -> Vec<T> {
    (0..UNCACHED.div_ceil(bytes)).map(|_| one()).collect()
}

/// Times the product of `m` rows with each of `weights` in turn; a weight of `bytes` has `n` rows of `k`.
fn products<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (who, m): (&str, usize),
    (bytes, n, k): (usize, usize, usize),
    weights: &[T],
    mut product: impl FnMut(&T),
) {
    group.throughput(match m {
        1 => Throughput::BytesDecimal(bytes as u64),
        _ => Throughput::Elements((2 * m * n * k) as u64),
    });
    let mut turns = weights.iter().cycle();
    group.bench_function(format!("m{m}/{who}"), |bencher| {
        bencher.iter(|| turns.next().map(&mut product));
    });
}

fn quantized(criterion: &mut Criterion) {
    let formats = [
        ("q4_1", BlockFormat::Q4_1, GgmlDType::Q4_1),
        ("q8_0", BlockFormat::Q8_0, GgmlDType::Q8_0),
    ];
    for (format_name, format, dtype) in formats {
        for (name, k, n) in WEIGHTS {
            let mut group = criterion.benchmark_group(format!("{format_name}/{name}"));
            let quantized = QTensor::quantize(&tensor(n, k), dtype).unwrap();
            let blocks = quantized.data().unwrap();
            let shape = (blocks.len(), n, k);
            for path in Path::supported() {
                let weights = copies(blocks.len(), || {
                    let matrix = QuantizedMatrix::from_blocks(format, &blocks, n, k).unwrap();
                    matrix.with_path(path).unwrap()
                });
                for m in ROWS {
                    let (x, mut out) = (random(m * k), vec![0.0; m * n]);
                    let who = format!("{path:?}").to_lowercase();
                    products(&mut group, (&who, m), shape, &weights, |weight| {
                        weight.matmul(&x, m, &mut out);
                    });
                }
            }
            let weights = copies(blocks.len(), || {
                let storage = QStorage::from_data(Cow::Borrowed(&*blocks), &Device::Cpu, dtype).unwrap();
                QMatMul::from_qtensor(QTensor::new(storage, (n, k)).unwrap()).unwrap()
            });
            for m in ROWS {
                let x = tensor(m, k);
                products(&mut group, ("candle", m), shape, &weights, |weight| {
                    weight.forward(&x).unwrap();
                });
            }
        }
    }
}

fn dense(criterion: &mut Criterion) {
    for (name, k, n) in WEIGHTS {
        let mut group = criterion.benchmark_group(format!("f32/{name}"));
        let shape = (4 * n * k, n, k);
        let weight = tensor(n, k);
        let weights = copies(shape.0, || weight.copy().unwrap());
        let slices: Vec<Vec<f32>> = copies(shape.0, || random(n * k));
        for m in ROWS {
            let (x, mut out) = (random(m * k), vec![0.0; m * n]);
            products(&mut group, ("rows", m), shape, &slices, |weight| {
                low_rank::project(&x, weight, m, n, k, &mut out);
            });
            let x = tensor(m, k);
            products(&mut group, ("candle", m), shape, &weights, |weight| {
                x.matmul(&weight.t().unwrap()).unwrap();
            });
        }
    }
}

fn bf16(criterion: &mut Criterion) {
    let who = if PackedBf16::is_supported() {
        "vdpbf16ps"
    } else {
        "portable"
    };
    for (name, k, n) in &WEIGHTS[..3] {
        let mut group = criterion.benchmark_group(format!("bf16/{name}"));
        let weight = PackedBf16::pack(&random(n * k), *n, *k);
        for m in [32, 256] {
            let (x, mut out) = (random(m * k), vec![0.0; m * n]);
            products(&mut group, (who, m), (weight.bytes(), *n, *k), &[&weight], |weight| {
                weight.matmul(&x, m, &mut out, false);
            });
        }
    }
}

/// An adapter of rank 16 on queries, keys and values, as one projection has it.
fn adapter(criterion: &mut Criterion) {
    const RANK: usize = 16;
    const PARTS: [(usize, usize); 3] = [(0, 576), (576, 192), (768, 192)];
    let (k, n, ranks) = (576, 960, 3 * RANK);
    let mut a = Vec::new();
    low_rank::pack_a(&random(ranks * k), ranks, &mut a);
    let parts = PARTS.map(|(column, width)| {
        let mut b = Vec::new();
        low_rank::pack_b(&random(width * RANK), RANK, &mut b);
        (column, b)
    });
    let mut group = criterion.benchmark_group("adapter/qkv");
    for m in ROWS {
        let (x, mut hidden, mut out) = (random(m * k), vec![0.0; m * ranks], vec![0.0; m * n]);
        group.throughput(Throughput::Elements((2 * m * ranks * k) as u64));
        group.bench_function(format!("m{m}/gather"), |bencher| {
            bencher.iter(|| low_rank::gather(&x, &a, k, ranks, &mut hidden));
        });
        group.throughput(Throughput::Elements((2 * m * n * RANK) as u64));
        group.bench_function(format!("m{m}/spread"), |bencher| {
            bencher.iter(|| {
                for (part, (column, b)) in parts.iter().enumerate() {
                    let spread = low_rank::Spread {
                        hidden: &hidden,
                        ranks,
                        first: part * RANK,
                        b,
                        rank: RANK,
                        scale: 1e-3,
                    };
                    spread.add_to(&mut out, n, *column);
                }
            });
        });
    }
}

/// A token of one layer after 64 and 512 others.
fn attention(criterion: &mut Criterion) {
    let config = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 1, "vocab_size": 8,
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 1024}"#;
    let config = DecoderConfig::from_hugging_face(config).unwrap();
    let shape = AttentionShape {
        num_heads: config.num_heads,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        window: usize::MAX,
    };
    let frequencies = config.rope_scaling.frequencies(config.rope_theta, config.head_dim);
    let rotary = RotaryTable::new(config.max_positions, &frequencies);
    let mut group = criterion.benchmark_group("attention");
    for past in [64, 512] {
        let mut cache = CacheSpace::on_host(&config).cache(past + 1);
        let mut append = |tokens: &Tensor| {
            let len = tokens.dim(0).unwrap();
            let mut sequences = [CachedSequence { cache: &mut cache, len }];
            let out = attend(tokens, 0, &mut sequences, shape, &rotary).unwrap();
            advance(&mut sequences).unwrap();
            cache.truncate(past);
            out
        };
        append(&tensor(past, shape.row()));
        let token = tensor(1, shape.row());
        group.throughput(Throughput::BytesDecimal(
            (past * 2 * 4 * config.num_kv_heads * config.head_dim) as u64,
        ));
        group.bench_function(format!("past{past}"), |bencher| bencher.iter(|| append(&token)));
    }
}

fn sampling(criterion: &mut Criterion) {
    let logits: Vec<f32> = random(WEIGHTS[3].2).iter().map(|logit| 10.0 * logit).collect();
    let drawn = Sampling {
        temperature: 0.8,
        top_p: 0.95,
        seed: 1,
    };
    let mut group = criterion.benchmark_group("sampling");
    group.throughput(Throughput::Elements(logits.len() as u64));
    for (name, candidate, sampling) in [("greedy", 0, None), ("nucleus", 1, Some(drawn))] {
        let mut sampler = Sampler::new(drawn, candidate);
        group.bench_function(name, |bencher| {
            bencher.iter(|| sampler.choose(&Row::new(&logits, sampling)));
        });
    }
}

/// Reading memory from end to end, by so many threads.
fn bandwidth(criterion: &mut Criterion) {
    let values = vec![1u64; 4 * UNCACHED / size_of::<u64>()];
    let mut group = criterion.benchmark_group("bandwidth");
    group.throughput(Throughput::BytesDecimal(size_of_val(values.as_slice()) as u64));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let part = values.len() / threads;
        group.bench_function(format!("threads{threads}"), |bencher| {
            bencher.iter(|| {
                pool.install(|| {
                    values
                        .par_chunks(part)
                        .map(|part| part.iter().sum::<u64>())
                        .sum::<u64>()
                })
            });
        });
    }
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = bandwidth, quantized, dense, bf16, adapter, attention, sampling
}
criterion_main!(kernels);
