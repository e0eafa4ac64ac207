//! Decoding speed of the quantised decoder beside candle-transformers' on the same GGUF file, one sequence at a time.
//!
//! `cargo bench --bench decode -- MODEL.gguf` (`detoxd model pull smollm2-135m` prints a path). Prints medians over runs that take turns.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use detoxd::model::Decoder;
use detoxd::model::kv_cache::{CachedSequence, KvCache};
use detoxd::model::layers::Adaptation;
use detoxd::model::weights::{ModelFiles, Purpose};

const NEW_TOKENS: usize = 48;
const RUNS: usize = 5;

fn argmax(logits: &Tensor) -> anyhow::Result<u32> {
    Ok(logits.flatten_all()?.argmax(0)?.to_scalar::<u32>()?)
}

fn ours(decoder: &Decoder, prompt: &[u32]) -> anyhow::Result<Vec<u32>> {
    let mut cache = KvCache::new(decoder.config(), prompt.len() + NEW_TOKENS);
    let (mut tokens, mut out) = (prompt.to_vec(), Vec::new());
    while out.len() < NEW_TOKENS {
        let mut sequences = [CachedSequence {
            cache: &mut cache,
            len: tokens.len(),
        }];
        let hidden = decoder.forward_cached(&tokens, &mut sequences, Adaptation::Base)?;
        let last = hidden.narrow(0, tokens.len() - 1, 1)?;
        let token = argmax(&decoder.logits(&last, Adaptation::Base)?)?;
        out.push(token);
        tokens = vec![token];
    }
    Ok(out)
}

fn theirs(model: &mut ModelWeights, prompt: &[u32]) -> anyhow::Result<Vec<u32>> {
    let (mut tokens, mut out, mut position) = (prompt.to_vec(), Vec::new(), 0);
    while out.len() < NEW_TOKENS {
        let input = Tensor::new(tokens.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let token = argmax(&model.forward(&input, position)?)?;
        position += tokens.len();
        out.push(token);
        tokens = vec![token];
    }
    Ok(out)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let Some(path) = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .map(PathBuf::from)
    else {
        println!("usage: cargo bench --bench decode -- MODEL.gguf");
        return Ok(());
    };
    let files = ModelFiles::open(&path)?;
    let prompt = files
        .tokenizer()?
        .encode("The old house by the river was sold last year, and the new owners said that")?;
    let decoder = files.load(Purpose::ServeQuantized, &Device::Cpu)?;
    let mut file = File::open(&path)?;
    let mut model = ModelWeights::from_gguf(Content::read(&mut file)?, &mut file, &Device::Cpu)?;
    let (mut our_seconds, mut their_seconds, mut same) = (Vec::new(), Vec::new(), 0);
    for run in 0..=RUNS {
        let start = Instant::now();
        let our_tokens = ours(&decoder, &prompt)?;
        let our_time = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let their_tokens = theirs(&mut model, &prompt)?;
        let their_time = start.elapsed().as_secs_f64();
        // The first run warms up.
        if run > 0 {
            our_seconds.push(our_time);
            their_seconds.push(their_time);
        }
        same = our_tokens.iter().zip(&their_tokens).take_while(|(a, b)| a == b).count();
    }
    let (our_time, their_time) = (median(our_seconds), median(their_seconds));
    println!(
        "prompt of {} tokens and {NEW_TOKENS} new ones, the first {same} of them equal",
        prompt.len()
    );
    println!("detoxd              {:7.1} tokens/s", NEW_TOKENS as f64 / our_time);
    println!("candle-transformers {:7.1} tokens/s", NEW_TOKENS as f64 / their_time);
    println!("ratio               {:7.2}", their_time / our_time);
    Ok(())
}
