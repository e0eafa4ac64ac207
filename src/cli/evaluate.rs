//! `detoxd evaluate`: measures two adapters on the same held-back sentences.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::child::{self, Ended, Kind};
use super::compose::{self, ComposeError, Parts};
use super::judges;
use crate::adapters::AdapterLease;
use crate::config::{DRAFT_TOKENS, JudgeSettings, JudgesConfig, LogSettings, ModelConfig, ModelSettings};
use crate::evaluate::{Comparison, EvaluateError, Evaluator, How, Metrics, decide};
use crate::jobs::request::ActivationPolicy;
use crate::pipeline::{Detoxifier, Judges, LanguageModelRewriter, ModelPerplexity};
use crate::scoring::{SimilarityScorer, ToxicityScorer};
use crate::train::TrainError;
use crate::train::dataset::{self, Example};

/// Compares two adapters of one model on held-back examples: toxicity, meaning, fluency of what they write, and what they do to
/// neutral text.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Base model: a name of the catalogue, a GGUF file, a folder in Hugging Face layout, or a hub id (owner/name)
    #[arg(long, env = "DETOXD_MODEL", default_value = "smollm2-135m")]
    model: String,
    /// Folder for models that are fetched [default: $XDG_CACHE_HOME/detoxd, else ~/.cache/detoxd]
    #[arg(long, env = "DETOXD_CACHE_DIR", value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Adapter to measure: a PEFT folder, `name@version` of a shipped one, `auto` (the one shipped for the model), or `none`
    #[arg(long, value_name = "ADAPTER")]
    candidate: String,
    /// Adapter it is compared with; `none` is the bare base model
    #[arg(long, value_name = "ADAPTER", default_value = "none")]
    baseline: String,
    /// Examples that neither was trained on, JSON lines as for `train`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Most examples to take, from the first
    #[arg(long, value_name = "N")]
    max_examples: Option<usize>,
    /// Who judges.
    #[command(flatten)]
    judges: JudgeSettings,
    /// What is measured
    #[arg(long, value_enum, default_value_t = Outputs::Greedy)]
    outputs: Outputs,
    /// Examples worked on at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: usize,
    /// Threads of the model; without it, one for each physical core
    #[arg(long, env = "DETOXD_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// What is written to standard output: a table for people, or JSON lines for programs, which may also write `stop` to standard
    /// input
    #[arg(long, value_enum, default_value_t = Report::Text)]
    report: Report,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Outputs {
    /// The likeliest rewrite, unchecked: the model without the verifier
    Greedy,
    /// As the service answers by default
    Served,
}

impl From<Outputs> for How {
    fn from(outputs: Outputs) -> Self {
        match outputs {
            Outputs::Greedy => Self::Greedy,
            Outputs::Served => Self::Served,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Report {
    Text,
    Json,
}

#[derive(Serialize)]
struct Done {
    done: usize,
    total: usize,
}

/// A failure, and whether another try can help.
struct Failure {
    kind: Kind,
    error: anyhow::Error,
}

/// Runs the command.
///
/// # Errors
/// With what to change. With `--report json` it has been said on standard output, and the error is only the exit code ([`Ended`]).
pub async fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    if args.report == Report::Text {
        let bar = progress_bar();
        let report = |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let comparison = compare(&args, report).await.map_err(|failure| failure.error)?;
        bar.finish_and_clear();
        print!("{}", table(&comparison));
        return Ok(());
    }
    let stop = child::listen();
    // A reader that has gone is noticed by the end of standard input.
    let report = |done, total| drop(child::say(&Done { done, total }));
    match until(stop, compare(&args, report)).await {
        None => Err(Ended(child::EX_TEMPFAIL).into()),
        Some(Ok(comparison)) => Ok(child::say(&comparison)?),
        Some(Err(Failure { kind, error })) => Err(child::failed(kind, &error)),
    }
}

async fn until<T>(stop: CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    stop.run_until_cancelled_owned(work).await
}

async fn compare(args: &EvaluateArgs, mut report: impl FnMut(usize, usize)) -> Result<Comparison, Failure> {
    let mut examples = dataset::read(&args.data).map_err(|error| Failure {
        kind: match error {
            TrainError::Io { .. } => Kind::Failed,
            _ => Kind::Invalid,
        },
        error: error.into(),
    })?;
    examples.truncate(args.max_examples.unwrap_or(usize::MAX));
    let [candidate, baseline] = [&args.candidate, &args.baseline].map(|adapter| settings(args, adapter));
    let (candidate, baseline) = (candidate?, baseline?);
    let judges = JudgesConfig::try_from(args.judges.clone()).map_err(|error| invalid(error.into()))?;
    let loaded = tokio::task::spawn_blocking(move || load(&candidate, &baseline, &judges));
    let Loaded {
        parts,
        baseline,
        judges,
        note,
    } = loaded.await.map_err(|error| failed(error.into()))??;
    let all = examples.len();
    examples.retain(|example| fits(example, &parts));
    let skipped = (all - examples.len()) as u64;
    let evaluator = evaluator(args, &parts, judges).map_err(failed)?;
    let total = examples.len();
    report(0, total);
    let comparison = evaluator
        .compare(&examples, &parts.adapter, &baseline, |done| report(done, total))
        .await
        .map_err(|error| Failure {
            kind: match error {
                EvaluateError::Empty => Kind::Invalid,
                EvaluateError::Rewrite(_) | EvaluateError::Broken => Kind::Failed,
            },
            error: anyhow::Error::new(error).context(format!("evaluating on {}", args.data.display())),
        })?;
    Ok(Comparison {
        skipped,
        note,
        ..comparison
    })
}

fn failed(error: anyhow::Error) -> Failure {
    Failure {
        kind: Kind::Failed,
        error,
    }
}

fn invalid(error: anyhow::Error) -> Failure {
    Failure {
        kind: Kind::Invalid,
        error,
    }
}

fn settings(args: &EvaluateArgs, adapter: &str) -> Result<ModelConfig, Failure> {
    let settings = ModelSettings {
        cache_dir: args.cache_dir.clone(),
        model: args.model.clone(),
        adapter: adapter.to_owned(),
        device: "cpu".to_owned(),
        dtype: "auto".to_owned(),
        quantize: "auto".to_owned(),
        threads: args.threads,
        draft_tokens: DRAFT_TOKENS,
    };
    settings
        .try_into()
        .map_err(|error: crate::config::ConfigError| invalid(error.into()))
}

struct Loaded {
    /// The adapter in it is the candidate.
    parts: Parts,
    baseline: AdapterLease,
    judges: Judges,
    note: Option<String>,
}

/// One engine for both: their sequences share its batch.
fn load(candidate: &ModelConfig, baseline: &ModelConfig, judges: &JudgesConfig) -> Result<Loaded, Failure> {
    let judges = judges::load(judges, candidate.threads).map_err(|error| failed(error.into()))?;
    let parts = compose::load(candidate).map_err(|error| match error {
        ComposeError::Adapter { .. } => invalid(error.into()),
        _ => failed(error.into()),
    })?;
    let (baseline, note) = match compose::adapter(baseline, parts.engine.decoder()) {
        Ok(lease) => (lease, None),
        // What is active may be of another base; the candidate can be measured all the same.
        Err(error) => {
            let note = format!("compared with the bare base model instead: {error}");
            tracing::warn!("{note}");
            (AdapterLease::none(), Some(note))
        }
    };
    Ok(Loaded {
        parts,
        baseline,
        judges,
        note,
    })
}

/// Whether an example's source, its rewrite and its references have room in the model's context.
fn fits(example: &Example, parts: &Parts) -> bool {
    let positions = parts.engine.decoder().config().max_positions;
    let tokens = |text: &str| {
        parts
            .tokenizer
            .encode(text.trim())
            .map_or(usize::MAX, |tokens| tokens.len())
    };
    let source = tokens(&example.anchor);
    let rewritten = source.saturating_mul(5) / 2;
    rewritten.saturating_add(32) <= positions && example.positives.iter().all(|text| tokens(text) <= positions)
}

fn evaluator(args: &EvaluateArgs, parts: &Parts, judges: Judges) -> anyhow::Result<Evaluator> {
    let toxicity = Arc::new(ToxicityScorer::embedded().context("reading the scorers")?);
    let rewriter = LanguageModelRewriter::new(
        parts.engine.clone(),
        parts.tokenizer.clone(),
        parts.prompt.clone(),
        &*parts.name,
    );
    Ok(Evaluator {
        detoxifier: Arc::new(Detoxifier::new(Arc::new(rewriter), judges)),
        perplexity: Arc::new(ModelPerplexity::new(parts.engine.clone(), parts.tokenizer.clone())),
        overlap: Arc::new(SimilarityScorer::new(toxicity)),
        how: args.outputs.into(),
        in_flight: args.in_flight,
    })
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{bar:30} {pos}/{len} examples  ETA {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

type Figure = (&'static str, fn(&Metrics) -> f64);

/// For people.
fn table(comparison: &Comparison) -> String {
    let Comparison {
        candidate, baseline, ..
    } = comparison;
    let mut lines = vec![row("", &candidate.adapter, &baseline.adapter)];
    let figures: [Figure; 8] = [
        ("toxicity rate", |metrics| metrics.toxicity_rate),
        ("toxicity", |metrics| metrics.toxicity),
        ("similarity", |metrics| metrics.similarity),
        ("overlap with references", |metrics| metrics.overlap),
        ("fluency", |metrics| metrics.fluency),
        ("J", |metrics| metrics.j),
        ("copied", |metrics| metrics.copied),
        ("empty", |metrics| metrics.empty),
    ];
    let share = |value: f64| format!("{value:.3}");
    lines.extend(figures.map(|(name, of)| row(name, &share(of(candidate)), &share(of(baseline)))));
    let perplexity = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    lines.push(row(
        "neutral perplexity",
        &perplexity(candidate.neutral_perplexity),
        &perplexity(baseline.neutral_perplexity),
    ));
    let base = perplexity(candidate.base_perplexity);
    lines.push(format!("perplexity of the base alone: {base}"));
    lines.push(format!(
        "{} examples, {} left out as too long",
        candidate.examples, comparison.skipped
    ));
    lines.extend(comparison.note.clone());
    let decision = decide(ActivationPolicy::IfBetter, Some(comparison));
    let verdict = if decision.activate { "would" } else { "would not" };
    lines.push(format!("if_better {verdict} activate it: {}", decision.reason));
    lines.join("\n") + "\n"
}

fn row(name: &str, candidate: &str, baseline: &str) -> String {
    format!("{name:24} {candidate:>14} {baseline:>14}")
}
