//! `detoxd generate`: training sets from samples of a rewriter.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::compose;
use crate::config::{LogSettings, ModelSettings};
use crate::engine::Sampling;
use crate::generate::{Criteria, SetGenerator};
use crate::scoring::{SimilarityScorer, ToxicityScorer};
use crate::train::dataset;

/// Samples a rewriter over toxic sources and sorts its rewrites into positives and negatives.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The model and the adapter that is sampled.
    #[command(flatten)]
    pub model: ModelSettings,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
    /// Sources with human rewrites, JSON lines as for `train`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where the sets go; an interrupted run goes on where it stopped
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Samples a source
    #[arg(long, value_name = "N", default_value_t = 8)]
    samples: usize,
    /// Temperature of the samples
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Nucleus of the samples
    #[arg(long, value_name = "P", default_value_t = 0.98)]
    top_p: f32,
    /// Examples to skip
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Most examples to take
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Sources sampled at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: usize,
}

/// Runs the command.
///
/// # Errors
/// With what to change.
pub async fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let examples = dataset::read(&args.data)?;
    let first = args.skip.min(examples.len());
    let end = args
        .limit
        .map_or(examples.len(), |limit| (first + limit).min(examples.len()));
    let config = args.model.try_into()?;
    let parts = tokio::task::spawn_blocking(move || compose::load(&config)).await??;
    let toxicity = Arc::new(ToxicityScorer::embedded()?);
    let generator = SetGenerator {
        engine: parts.engine,
        tokenizer: parts.tokenizer,
        prompt: parts.prompt,
        adapter: parts.adapter.adapter().cloned(),
        samples: args.samples.max(1),
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
        },
        in_flight: args.in_flight,
        criteria: Criteria::default(),
        similarity: Arc::new(SimilarityScorer::new(toxicity.clone())),
        toxicity,
    };
    let bar = ProgressBar::new((end - first) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} sources  {per_sec}  ETA {eta}") {
        bar.set_style(style);
    }
    Arc::new(generator)
        .run(&examples[first..end], &args.out, |done| bar.set_position(done as u64))
        .await
        .with_context(|| format!("making {}", args.out.display()))?;
    bar.finish();
    tracing::info!(sources = end - first, "sets written");
    Ok(())
}
