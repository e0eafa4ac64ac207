//! `detoxd scorer`: trains and measures the built-in toxicity scorer.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::scoring::corpus::json_lines;
use crate::scoring::evaluate::evaluate;
use crate::scoring::toxicity::ToxicityScorer;
use crate::scoring::train::{Settings, train};
use crate::scoring::train_similarity::{self, Pair};

/// Trains and measures the built-in toxicity scorer.
#[derive(Debug, Args)]
pub struct ScorerArgs {
    #[command(subcommand)]
    command: ScorerCommand,
}

#[derive(Debug, Subcommand)]
enum ScorerCommand {
    /// Trains a scorer and writes weights and metadata.
    Train(TrainArgs),
    /// Fits the similarity scorer to cosines of sentence embeddings
    TrainSimilarity(SimilarityArgs),
    /// Prints accuracy, calibration and false alarms as JSON.
    Evaluate(EvaluateArgs),
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// Folder with toxicity/, detox/, text/ and lexicon.txt
    #[arg(long)]
    data: PathBuf,
    /// Folder to write the scorer to
    #[arg(long)]
    out: PathBuf,
    /// Benign paragraphs, one a line (plain text)
    #[arg(long)]
    background: Option<PathBuf>,
    /// At most this many background sentences
    #[arg(long, default_value_t = 60_000)]
    background_sentences: usize,
    /// Cost of an error on a background sentence, against 1 for a text of a toxic-neutral pair
    #[arg(long, default_value_t = 0.5)]
    background_weight: f32,
    /// The same of a harmless comment.
    #[arg(long, default_value_t = 4.0)]
    comment_weight: f32,
    /// The same of a hurtful sentence from a template.
    #[arg(long, default_value_t = 1.0)]
    hurtful_weight: f32,
    /// Cost of an error on a labelled text, against 1 for a text of a toxic-neutral pair
    #[arg(long, default_value_t = 0.3)]
    labelled_weight: f32,
    /// How far a feature's scale follows its class contrast instead of its rarity, 0 to 1
    #[arg(long, default_value_t = 0.7)]
    contrast: f32,
    /// Inverse regularisation strength
    #[arg(long, default_value_t = 4.0)]
    cost: f32,
    /// Passes over the data
    #[arg(long, default_value_t = 20)]
    passes: usize,
    /// Ignore features in fewer texts than this
    #[arg(long, default_value_t = 3)]
    min_texts: u32,
    /// The share of toxic texts for which 0.5 means one half
    #[arg(long, default_value_t = 0.48)]
    prior: f32,
    /// Parts the data is cut into for calibration
    #[arg(long, default_value_t = 6)]
    folds: usize,
    /// Order of examples and choice of background
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct SimilarityArgs {
    /// Folder with toxicity/ and detox/
    #[arg(long)]
    data: PathBuf,
    /// Folder of a trained toxicity scorer, to write to as well
    #[arg(long)]
    out: PathBuf,
    /// Plain text for counting words, one paragraph a line
    #[arg(long)]
    background: Option<PathBuf>,
    /// Pairs to fit to: {"a", "b", "cosine", "kind"} a line
    #[arg(long)]
    pairs: PathBuf,
    /// Pairs to measure on, of the same form
    #[arg(long)]
    held_out: PathBuf,
}

#[derive(Debug, Args)]
struct EvaluateArgs {
    /// Folder with toxicity/, detox/ and text/
    #[arg(long)]
    data: PathBuf,
    /// Folder of a trained scorer; the built-in one without it
    #[arg(long)]
    scorer: Option<PathBuf>,
}

/// Runs `detoxd scorer`.
pub fn run(args: ScorerArgs) -> Result<()> {
    match args.command {
        ScorerCommand::Train(args) => {
            let settings = Settings {
                data: args.data,
                background: args.background,
                background_sentences: args.background_sentences,
                background_weight: args.background_weight,
                comment_weight: args.comment_weight,
                hurtful_weight: args.hurtful_weight,
                labelled_weight: args.labelled_weight,
                contrast: args.contrast,
                cost: args.cost,
                passes: args.passes,
                min_texts: args.min_texts,
                prior: args.prior,
                folds: args.folds,
                seed: args.seed,
            };
            let summary = train(&settings, &args.out, |line| eprintln!("{line}"))?;
            println!("{}", serde_json::to_string_pretty(&summary)?);
        }
        ScorerCommand::TrainSimilarity(args) => {
            let toxicity = Arc::new(ToxicityScorer::from_folder(&args.out)?);
            let pairs: Vec<Pair> = json_lines(&args.pairs)?;
            let scorer = train_similarity::train(toxicity, &args.data, args.background.as_deref(), &pairs, &args.out)?;
            let held_out: Vec<Pair> = json_lines(&args.held_out)?;
            println!(
                "{}",
                serde_json::to_string_pretty(&train_similarity::agreement(&scorer, &held_out))?
            );
        }
        ScorerCommand::Evaluate(args) => {
            let scorer = match &args.scorer {
                Some(folder) => ToxicityScorer::from_folder(folder)?,
                None => ToxicityScorer::embedded()?,
            };
            println!("{}", serde_json::to_string_pretty(&evaluate(&scorer, &args.data)?)?);
        }
    }
    Ok(())
}
