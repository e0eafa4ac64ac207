//! Decoding speed: a batch of sequences, a token each a step, without drafts and without an adapter.
//!
//! `cargo bench --bench decode -- MODEL.gguf [--batch N] [--tokens N] [--runs N] [--threads N] [--alone]` (`detoxd model pull smollm2-135m` prints a path):
//! the quantised decoder on the CPU; for one sequence beside candle-transformers' decoder on the same GGUF file, turn by turn.
//!
//! `cargo bench --features cuda --bench decode -- --device cuda:0 --shape 7b [--dtype bf16|f16|f32] [--batch N] …`: random weights in the shape of Llama-2-7B, or
//! a `MODEL`, as a GPU serves them; `--device cpu --shape tiny` shows that it runs. Beside the speed: how fast the device copies memory, and what
//! share of that reading the weights once a step comes to.
//!
//! Prints a JSON line with the tokens a second of each run. `benches/peers.py` puts them beside other programs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use detoxd::model::config::ActivationKind;
use detoxd::model::kv_cache::{CachedSequence, KvCache};
use detoxd::model::layers::Adaptation;
use detoxd::model::ops::Backend;
use detoxd::model::weights::{ModelFiles, Purpose};
use detoxd::model::{Decoder, DecoderConfig, Placement, gpu};
use serde_json::json;

/// Tokens of each prompt; prompts differ. Reading them is not counted.
const PROMPT: usize = 16;

/// Shapes without weights, as their `config.json` would say.
const SHAPES: &str = include_str!("shapes.json");

struct Settings {
    model: Option<PathBuf>,
    /// A name in [`SHAPES`], in place of a model.
    shape: Option<String>,
    /// As a GPU serves, there or on the CPU; without it our own kernels.
    device: Option<String>,
    dtype: DType,
    batch: usize,
    tokens: usize,
    runs: usize,
    /// 0 for one a processor.
    threads: usize,
    alone: bool,
}

fn settings() -> anyhow::Result<Settings> {
    let mut settings = Settings {
        model: None,
        shape: None,
        device: None,
        dtype: DType::BF16,
        batch: 1,
        tokens: 48,
        runs: 5,
        threads: 0,
        alone: false,
    };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} lacks its value"));
        let mut number = || -> anyhow::Result<usize> { Ok(value()?.parse()?) };
        match argument.as_str() {
            "--shape" => settings.shape = Some(value()?),
            "--device" => settings.device = Some(value()?),
            "--dtype" => settings.dtype = value()?.parse().context("expected bf16, f16 or f32")?,
            "--batch" => settings.batch = number()?,
            "--tokens" => settings.tokens = number()?,
            "--runs" => settings.runs = number()?,
            "--threads" => settings.threads = number()?,
            "--alone" => settings.alone = true,
            _ => settings.model = Some(argument.into()),
        }
    }
    Ok(settings)
}

/// What was written, and tokens a second.
struct Run {
    written: Vec<u32>,
    speed: f64,
}

fn prompts(batch: usize, vocabulary: usize) -> Vec<u32> {
    let token = |index: usize| ((1000 + index * 37) % vocabulary) as u32;
    (0..batch * PROMPT).map(token).collect()
}

fn ours(decoder: &Decoder, batch: usize, new_tokens: usize) -> anyhow::Result<Run> {
    let longest = PROMPT + new_tokens + 1;
    let space = decoder.cache_space(batch * longest);
    let mut caches: Vec<KvCache> = (0..batch).map(|_| space.cache(longest)).collect();
    let mut tokens = prompts(batch, decoder.config().vocab_size);
    let (mut written, mut start) = (Vec::new(), Instant::now());
    for step in 0..=new_tokens {
        let len = tokens.len() / batch;
        let mut sequences: Vec<CachedSequence<'_>> =
            caches.iter_mut().map(|cache| CachedSequence { cache, len }).collect();
        let hidden = decoder.forward_cached(&tokens, &mut sequences, Adaptation::Base)?;
        let last: Vec<u32> = (1..=batch).map(|number| (number * len - 1) as u32).collect();
        let last = hidden.index_select(&Tensor::from_vec(last, batch, hidden.device())?, 0)?;
        tokens = decoder.logits(&last, Adaptation::Base)?.argmax(1)?.to_vec1()?;
        written.push(tokens[0]);
        if step == 0 {
            start = Instant::now();
        }
    }
    let speed = (batch * new_tokens) as f64 / start.elapsed().as_secs_f64();
    Ok(Run { written, speed })
}

fn candles(model: &mut ModelWeights, vocabulary: usize, new_tokens: usize) -> anyhow::Result<Run> {
    let mut tokens = prompts(1, vocabulary);
    let (mut written, mut position, mut start) = (Vec::new(), 0, Instant::now());
    for step in 0..=new_tokens {
        let input = Tensor::new(tokens.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let token = model.forward(&input, position)?.flatten_all()?.argmax(0)?.to_scalar()?;
        position += tokens.len();
        written.push(token);
        tokens = vec![token];
        if step == 0 {
            start = Instant::now();
        }
    }
    let speed = new_tokens as f64 / start.elapsed().as_secs_f64();
    Ok(Run { written, speed })
}

fn candle(path: &Path) -> anyhow::Result<ModelWeights> {
    let mut file = File::open(path)?;
    Ok(ModelWeights::from_gguf(
        Content::read(&mut file)?,
        &mut file,
        &Device::Cpu,
    )?)
}

fn median(speeds: &[f64]) -> f64 {
    let mut sorted = speeds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The decoder to measure.
fn decoder(settings: &Settings) -> anyhow::Result<Decoder> {
    let device = match settings.device.as_deref() {
        None | Some("cpu") => Device::Cpu,
        Some(gpu) => gpu::open(
            gpu.trim_start_matches("cuda:")
                .parse()
                .context("expected cpu or cuda:N")?,
        )?,
    };
    if let Some(shape) = &settings.shape {
        let shapes: serde_json::Value = serde_json::from_str(SHAPES)?;
        let config = shapes
            .get(shape)
            .with_context(|| format!("no shape is called {shape}"))?;
        let placement = Placement {
            device,
            dtype: settings.dtype,
            backend: Backend::Candle,
        };
        return Ok(Decoder::random(
            DecoderConfig::from_hugging_face(&config.to_string())?,
            placement,
        )?);
    }
    let path = settings.model.as_ref().context("a model or a --shape is needed")?;
    let purpose = match settings.device {
        Some(_) => Purpose::ServeOnDevice { dtype: settings.dtype },
        None => Purpose::ServeQuantized,
    };
    Ok(ModelFiles::open(path)?.load(purpose, &device)?)
}

/// Bytes of the matrices that a step reads: all but the embedding.
fn bytes_read(decoder: &Decoder) -> usize {
    let config = decoder.config();
    let (hidden, width) = (config.hidden_size, config.num_heads * config.head_dim);
    let gate_up = if config.activation == ActivationKind::SwiGlu {
        2
    } else {
        1
    };
    let layer = hidden * (config.qkv_size() + width + (gate_up + 1) * config.intermediate_size);
    (config.num_layers * layer + config.vocab_size * hidden) * decoder.placement().dtype.size_in_bytes()
}

/// Bytes a second that a device reads and writes when it copies.
fn copy_speed(device: &Device) -> anyhow::Result<f64> {
    const BYTES: usize = 1 << 28;
    let from = Tensor::zeros(BYTES / 4, DType::F32, device)?;
    let copy = |times: usize| -> anyhow::Result<f64> {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..times {
            from.copy()?;
        }
        device.synchronize()?;
        Ok((2 * BYTES * times) as f64 / start.elapsed().as_secs_f64())
    };
    copy(2)?;
    copy(10)
}

fn main() -> anyhow::Result<()> {
    let settings = settings()?;
    if settings.model.is_none() && settings.shape.is_none() {
        println!("usage: cargo bench --bench decode -- MODEL.gguf | --shape 7b --device cuda:0");
        return Ok(());
    }
    let decoder = decoder(&settings)?;
    let has_peer = settings.batch == 1 && !settings.alone && settings.device.is_none() && settings.shape.is_none();
    let mut peer = match &settings.model {
        Some(path) if has_peer => Some(candle(path)?),
        _ => None,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build()?;
    let (mut own, mut others, mut equal) = (Vec::new(), Vec::new(), 0);
    for run in 0..=settings.runs {
        let our_run = pool.install(|| ours(&decoder, settings.batch, settings.tokens))?;
        let their_run = match &mut peer {
            Some(model) => Some(candles(model, decoder.config().vocab_size, settings.tokens)?),
            None => None,
        };
        // The first run warms up.
        if run > 0 {
            own.push(our_run.speed);
            others.extend(their_run.as_ref().map(|run| run.speed));
        }
        let same = |run: Run| {
            our_run
                .written
                .iter()
                .zip(&run.written)
                .take_while(|(a, b)| a == b)
                .count()
        };
        equal = their_run.map_or(0, same);
    }
    let mut report = json!({ "tokens_per_second": &own });
    if !others.is_empty() {
        report["candle_transformers"] = json!({
            "tokens_per_second": &others, "ratio": median(&own) / median(&others),
            "first_tokens_equal": equal, "of": settings.tokens + 1
        });
    }
    if decoder.placement().backend == Backend::Candle {
        let (bytes, copied) = (bytes_read(&decoder), copy_speed(decoder.device())?);
        let read = median(&own) / settings.batch as f64 * bytes as f64;
        report["bytes_of_weights"] = bytes.into();
        report["bytes_copied_per_second"] = copied.into();
        report["share_of_bandwidth"] = (read / copied).into();
    }
    println!("{report}");
    Ok(())
}
