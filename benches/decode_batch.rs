//! Decoding speed of the quantised decoder: a batch of sequences, one token each a step, without drafts and without an adapter.
//!
//! `cargo bench --bench decode_batch -- MODEL.gguf BATCH NEW_TOKENS RUNS [THREADS]` prints a JSON line:
//! tokens a second of each run, and the bytes of weights that a step reads. `benches/peers.py` puts it beside other programs.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use candle_core::Device;
use detoxd::model::Decoder;
use detoxd::model::kv_cache::{CachedSequence, KvCache};
use detoxd::model::layers::Adaptation;
use detoxd::model::weights::{ModelFiles, Purpose};

/// Tokens of each prompt; prompts differ.
const PROMPT: usize = 16;

fn run(decoder: &Decoder, batch: usize, new_tokens: usize) -> anyhow::Result<f64> {
    let config = decoder.config();
    let mut caches: Vec<KvCache> = (0..batch).map(|_| KvCache::new(config, PROMPT + new_tokens)).collect();
    let mut tokens: Vec<u32> = (0..batch * PROMPT)
        .map(|index| (1000 + index as u32 * 37) % config.vocab_size as u32)
        .collect();
    let mut start = Instant::now();
    for step in 0..=new_tokens {
        let len = tokens.len() / batch;
        let mut sequences: Vec<CachedSequence<'_>> =
            caches.iter_mut().map(|cache| CachedSequence { cache, len }).collect();
        let hidden = decoder.forward_cached(&tokens, &mut sequences, Adaptation::Base)?;
        let last: Vec<u32> = (1..=batch).map(|number| (number * len - 1) as u32).collect();
        let last = candle_core::Tensor::from_vec(last, batch, &Device::Cpu)?;
        let logits = decoder.logits(&hidden.index_select(&last, 0)?, Adaptation::Base)?;
        tokens = logits.argmax(1)?.to_vec1()?;
        if step == 0 {
            // The prompts are read.
            start = Instant::now();
        }
    }
    Ok((batch * new_tokens) as f64 / start.elapsed().as_secs_f64())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let [path, batch, new_tokens, runs, threads @ ..] = arguments.as_slice() else {
        println!("usage: cargo bench --bench decode_batch -- MODEL.gguf BATCH NEW_TOKENS RUNS [THREADS]");
        return Ok(());
    };
    let number = |text: &String| text.parse::<usize>().with_context(|| format!("{text:?} is no number"));
    let (batch, new_tokens, runs) = (number(batch)?, number(new_tokens)?, number(runs)?);
    let threads = threads.first().map_or(Ok(0), number)?;
    let files = ModelFiles::open(&PathBuf::from(path))?;
    let decoder = files.load(Purpose::ServeQuantized, &Device::Cpu)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let speeds: Vec<f64> = pool.install(|| {
        (0..=runs)
            .map(|_| run(&decoder, batch, new_tokens))
            .collect::<anyhow::Result<_>>()
    })?;
    // The first run warms up.
    println!("{}", serde_json::json!({ "tokens_per_second": &speeds[1..] }));
    Ok(())
}
