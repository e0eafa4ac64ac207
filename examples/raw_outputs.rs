//! Prints what the model itself writes for each line of standard input, before the pipeline tidies, checks or joins
//! anything: greedy continuations of the rewrite prompt, as JSON lines with their token ids.
//!
//! `cargo run --release --example raw_outputs -- --model MODEL --adapter FOLDER --quantize none < sources.txt > outputs.jsonl`

use std::io::BufRead;

use clap::Parser;
use detoxd::cli::compose;
use detoxd::config::{ModelConfig, ModelSettings};
use detoxd::engine::{Generation, Sampling};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelSettings,
    /// Most tokens of an output
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Scale of the adapter
    #[arg(long, default_value_t = 1.0)]
    strength: f32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: ModelConfig = arguments.model.try_into()?;
    let parts = compose::load(&config)?;
    let adapter = parts
        .adapter
        .adapter()
        .map(|adapter| (adapter.clone(), arguments.strength));
    let lines: Vec<String> = std::io::stdin().lock().lines().collect::<Result<_, _>>()?;
    for chunk in lines.chunks(32) {
        let mut tasks = Vec::with_capacity(chunk.len());
        for line in chunk {
            let generation = Generation {
                prompt: parts.prompt.tokens(&parts.tokenizer.encode(line)?),
                end: parts.prompt.end(),
                max_new_tokens: arguments.max_new_tokens,
                candidates: 1,
                sampling: Sampling {
                    temperature: 0.0,
                    top_p: 1.0,
                    seed: 0,
                },
                adapter: adapter.clone(),
                guidance: 0.0,
                deadline: None,
                draft: Vec::new(),
                fairness: 0,
            };
            let engine = parts.engine.clone();
            tasks.push(tokio::spawn(async move { engine.generate(generation).await }));
        }
        for (line, task) in chunk.iter().zip(tasks) {
            for completion in task.await??.completions {
                let output = parts.tokenizer.decode(&completion.tokens)?;
                println!(
                    "{}",
                    serde_json::json!({
                        "source": line, "output": output, "ids": completion.tokens,
                        "mean_nll": completion.mean_nll, "finished": completion.finished,
                    })
                );
            }
        }
    }
    Ok(())
}
