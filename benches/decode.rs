//! Decoding speed of the quantised decoder: a batch of sequences, a token each a step, without drafts and without an adapter; for one
//! sequence beside candle-transformers' decoder on the same GGUF file, turn by turn.
//!
//! `cargo bench --bench decode -- MODEL.gguf [--batch N] [--tokens N] [--runs N] [--threads N] [--alone]` (`detoxd model pull smollm2-135m` prints a path).
//! Prints a JSON line with the tokens a second of each run. `benches/peers.py` puts them beside other programs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use detoxd::model::Decoder;
use detoxd::model::kv_cache::{CachedSequence, KvCache};
use detoxd::model::layers::Adaptation;
use detoxd::model::weights::{ModelFiles, Purpose};
use serde_json::json;

/// Tokens of each prompt; prompts differ. Reading them is not counted.
const PROMPT: usize = 16;

struct Settings {
    model: Option<PathBuf>,
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
        batch: 1,
        tokens: 48,
        runs: 5,
        threads: 0,
        alone: false,
    };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let mut number = || -> anyhow::Result<usize> { Ok(arguments.next().context("a number is missing")?.parse()?) };
        match argument.as_str() {
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
    let config = decoder.config();
    let mut caches: Vec<KvCache> = (0..batch).map(|_| KvCache::new(config, PROMPT + new_tokens)).collect();
    let mut tokens = prompts(batch, config.vocab_size);
    let (mut written, mut start) = (Vec::new(), Instant::now());
    for step in 0..=new_tokens {
        let len = tokens.len() / batch;
        let mut sequences: Vec<CachedSequence<'_>> =
            caches.iter_mut().map(|cache| CachedSequence { cache, len }).collect();
        let hidden = decoder.forward_cached(&tokens, &mut sequences, Adaptation::Base)?;
        let last: Vec<u32> = (1..=batch).map(|number| (number * len - 1) as u32).collect();
        let last = hidden.index_select(&Tensor::from_vec(last, batch, &Device::Cpu)?, 0)?;
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

fn main() -> anyhow::Result<()> {
    let settings = settings()?;
    let Some(path) = &settings.model else {
        println!("usage: cargo bench --bench decode -- MODEL.gguf");
        return Ok(());
    };
    let decoder = ModelFiles::open(path)?.load(Purpose::ServeQuantized, &Device::Cpu)?;
    let mut peer = (settings.batch == 1 && !settings.alone)
        .then(|| candle(path))
        .transpose()?;
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
    println!("{report}");
    Ok(())
}
