//! Prints what the verifier chooses from: for each line of standard input, every candidate of the model with its
//! likelihood, toxicity and similarity, or why it was rejected. JSON lines; made for tuning `pipeline::verify::Weights`.
//!
//! `cargo run --release --example candidates -- ADAPTER_FOLDER CANDIDATES [STRENGTH] < sources.txt > candidates.jsonl`

use std::io::BufRead;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use detoxd::cli::compose;
use detoxd::config::{ModelConfig, ModelSettings};
use detoxd::pipeline::verify::{Source, Verifier, Weights};
use detoxd::pipeline::{LanguageModelRewriter, RewriteRequest, Rewriter, Threshold, Turn};
use detoxd::scoring::{SimilarityScorer, ToxicityScorer};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelSettings,
    /// Candidates a line
    #[arg(long, default_value_t = 8)]
    candidates: usize,
    /// Scale of the adapter
    #[arg(long, default_value_t = 1.0)]
    strength: f32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: ModelConfig = arguments.model.try_into()?;
    let parts = compose::load(&config)?;
    let toxicity = Arc::new(ToxicityScorer::embedded()?);
    let similarity = SimilarityScorer::new(toxicity.clone());
    let rewriter = Arc::new(LanguageModelRewriter::new(
        parts.engine,
        parts.tokenizer,
        parts.prompt,
        parts.name,
    ));
    let weights = Weights {
        min_similarity: 0.0,
        ..Weights::default()
    };
    let threshold = Threshold::new(1.0).context("a threshold of 1")?;
    let verifier = Verifier {
        toxicity: &*toxicity,
        similarity: &similarity,
        threshold,
        weights: &weights,
    };
    let lines: Vec<String> = std::io::stdin().lock().lines().collect::<Result<_, _>>()?;
    for chunk in lines.chunks(16) {
        let tasks: Vec<_> = chunk
            .iter()
            .map(|line| {
                let (rewriter, adapter, line) = (rewriter.clone(), parts.adapter.clone(), line.clone());
                let (candidates, strength) = (arguments.candidates, arguments.strength);
                tokio::spawn(async move {
                    let turn = Turn::new(None);
                    let request = RewriteRequest {
                        sentence: line.trim(),
                        adapter: &adapter,
                        strength,
                        candidates,
                        seed: 0,
                        deadline: None,
                        turn: &turn,
                    };
                    rewriter.rewrite(request).await
                })
            })
            .collect();
        for (line, task) in chunk.iter().zip(tasks) {
            let rewrites = task.await??;
            let source = Source {
                before: "",
                core: line.trim(),
                after: "",
                spans: &[],
            };
            let judged: Vec<_> = rewrites
                .candidates
                .iter()
                .map(|candidate| {
                    let ranking = verifier.rank(&source, std::slice::from_ref(candidate));
                    match (ranking.accepted.first(), ranking.rejected.first()) {
                        (Some(accepted), _) => serde_json::json!({
                            "text": accepted.text, "mean_nll": candidate.mean_nll,
                            "toxicity": accepted.toxicity, "similarity": accepted.similarity, "score": accepted.score,
                        }),
                        (None, reason) => serde_json::json!({
                            "text": candidate.text, "mean_nll": candidate.mean_nll,
                            "rejected": reason.map(|reason| reason.name()),
                        }),
                    }
                })
                .collect();
            println!(
                "{}",
                serde_json::json!({ "source": line, "source_toxicity": toxicity.score(line), "candidates": judged })
            );
        }
    }
    Ok(())
}
