//! `detoxd evaluate`: measures adapters on the same held-back sentences.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::child::{self, Ended, Kind};
use super::compose::{self, ComposeError, Parts};
use super::judges;
use crate::adapters::AdapterLease;
use crate::config::{
    BUILT_IN, ConfigError, DRAFT_TOKENS, JudgeSettings, JudgesConfig, KV_CACHE_TOKENS, LogSettings, ModelConfig,
    ModelSettings,
};
use crate::evaluate::html::html;
use crate::evaluate::markdown::markdown;
use crate::evaluate::{Data, EvaluateError, Evaluator, How, Report, Setting, decide};
use crate::generate::read_sentences;
use crate::jobs::request::ActivationPolicy;
use crate::pipeline::{Detoxifier, Judges, LanguageModelRewriter, ModelPerplexity};
use crate::train::TrainError;
use crate::train::dataset::{self, Example};

/// Measures adapters of one model on the same held-back examples: toxicity, meaning, closeness to references and fluency of what they
/// write, how diverse it is, and what they do to neutral text; with intervals.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Base model: a name of the catalogue, a GGUF file, a folder in Hugging Face layout, or a hub id (owner/name)
    #[arg(long, env = "DETOXD_MODEL", default_value = "smollm2-135m")]
    model: String,
    /// Folder for models that are fetched [default: $XDG_CACHE_HOME/detoxd, else ~/.cache/detoxd]
    #[arg(long, env = "DETOXD_CACHE_DIR", value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Adapter to measure, again for others; the first is what they are compared with. A PEFT folder, `name@version` of a shipped one,
    /// `auto` (the one shipped for the model), or `none` for the bare base model
    #[arg(long = "adapter", value_name = "ADAPTER", required = true)]
    adapters: Vec<String>,
    /// Examples that none was trained on, JSON lines as for `train`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Most examples to take, from the first
    #[arg(long, value_name = "N")]
    max_examples: Option<usize>,
    /// Neutral texts, one a line, or JSON lines if the name ends in .jsonl: how many come back changed
    #[arg(long, value_name = "FILE")]
    neutral: Option<PathBuf>,
    /// Most neutral texts to take, from the first
    #[arg(long, value_name = "N")]
    max_neutral: Option<usize>,
    /// A plain text, whose perplexity is measured window by window
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Most tokens of a window of the plain text; a model of fewer positions has shorter ones
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// What is measured
    #[arg(long, value_enum, default_value_t = Outputs::Greedy)]
    outputs: Outputs,
    /// Candidates drawn of each source to see how diverse they are; 0 for none
    #[arg(long, value_name = "N", default_value_t = 8)]
    samples: usize,
    /// Who judges.
    #[command(flatten)]
    judges: JudgeSettings,
    /// Draws behind each interval
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// Which draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Texts worked on at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: usize,
    /// Threads of the model; without it, one for each physical core
    #[arg(long, env = "DETOXD_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// What is written to standard output: a page for people, or JSON lines for programs (progress, then the report), which may also write
    /// `stop` to standard input
    #[arg(long, value_enum, default_value_t = Form::Markdown)]
    report: Form,
    /// Writes the report as JSON as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes it as one HTML page with plots as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
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
enum Form {
    Markdown,
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
    if args.report == Form::Markdown {
        let bar = progress_bar();
        let progress = |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let report = evaluate(&args, progress).await.map_err(|failure| failure.error)?;
        bar.finish_and_clear();
        keep(&args, &report)?;
        print!("{}{}", markdown(&report), verdicts(&report));
        return Ok(());
    }
    let stop = child::listen();
    // A reader that has gone is noticed by the end of standard input.
    let progress = |done, total| drop(child::say(&Done { done, total }));
    let work = stop.run_until_cancelled_owned(evaluate(&args, progress));
    match work.await {
        None => Err(Ended(child::EX_TEMPFAIL).into()),
        Some(Ok(report)) => {
            keep(&args, &report)?;
            Ok(child::say(&report)?)
        }
        Some(Err(Failure { kind, error })) => Err(child::failed(kind, &error)),
    }
}

/// Writes the files that are asked for.
fn keep(args: &EvaluateArgs, report: &Report) -> anyhow::Result<()> {
    let write =
        |path: &Path, text: String| std::fs::write(path, text).with_context(|| format!("writing {}", path.display()));
    if let Some(path) = &args.json {
        write(path, serde_json::to_string_pretty(report)? + "\n")?;
    }
    if let Some(path) = &args.html {
        write(path, html(report))?;
    }
    Ok(())
}

async fn evaluate(args: &EvaluateArgs, mut progress: impl FnMut(usize, usize)) -> Result<Report, Failure> {
    let mut data = read(args)?;
    let configs: Vec<ModelConfig> = args
        .adapters
        .iter()
        .map(|adapter| settings(args, adapter))
        .collect::<Result<_, _>>()?;
    let judges = JudgesConfig::try_from(args.judges.clone()).map_err(|error| invalid(error.into()))?;
    let named = judges.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&configs, &judges));
    let Loaded {
        parts,
        systems,
        judges,
        note,
    } = loaded.await.map_err(|error| failed(error.into()))??;
    let positions = parts.engine.decoder().config().max_positions;
    let all = data.examples.len();
    data.examples.retain(|example| fits(example, &parts));
    data.neutral.retain(|text| has_room(text, &parts));
    let evaluator = evaluator(args, &parts, judges);
    let total = data.pieces(systems.len());
    progress(0, total);
    let measured = evaluator
        .measure(&data, &systems, |done| progress(done, total))
        .await
        .map_err(|error| Failure {
            kind: match error {
                EvaluateError::Empty => Kind::Invalid,
                EvaluateError::Rewrite(_) | EvaluateError::Broken => Kind::Failed,
            },
            error: anyhow::Error::new(error).context(format!("evaluating on {}", args.data.display())),
        })?;
    let judge = |model: Option<String>| model.unwrap_or_else(|| BUILT_IN.to_owned());
    let setting = Setting {
        model: parts.name,
        outputs: args.outputs.into(),
        toxicity_model: judge(named.toxicity),
        similarity_model: judge(named.similarity),
        skipped: (all - data.examples.len()) as u64,
        neutral_texts: data.neutral.len() as u64,
        samples: args.samples as u64,
        windows: measured.base.windows.len() as u64,
        window_tokens: evaluator.window.min(positions) as u64,
        resamples: args.resamples as u64,
        seed: args.seed,
    };
    let names = systems.iter().map(|system| system.version().to_string()).collect();
    Ok(Report::new(setting, names, &measured, note))
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

fn read(args: &EvaluateArgs) -> Result<Data, Failure> {
    let mut examples = dataset::read(&args.data).map_err(|error| Failure {
        kind: match error {
            TrainError::Io { .. } => Kind::Failed,
            _ => Kind::Invalid,
        },
        error: error.into(),
    })?;
    examples.truncate(args.max_examples.unwrap_or(usize::MAX));
    let mut neutral = Vec::new();
    if let Some(path) = &args.neutral {
        let sentences = read_sentences(path, None).map_err(|error| failed(error.into()))?;
        neutral.extend(sentences.into_iter().map(|sentence| sentence.text));
        neutral.truncate(args.max_neutral.unwrap_or(usize::MAX));
    }
    let text = args.text.as_deref().map(std::fs::read_to_string).transpose();
    let text = text.with_context(|| format!("reading {}", args.text.clone().unwrap_or_default().display()));
    Ok(Data {
        examples,
        neutral,
        text: text.map_err(failed)?,
    })
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
        kv_cache_tokens: KV_CACHE_TOKENS,
    };
    settings.try_into().map_err(|error: ConfigError| invalid(error.into()))
}

struct Loaded {
    parts: Parts,
    systems: Vec<AdapterLease>,
    judges: Judges,
    note: Option<String>,
}

/// One engine for all: their sequences share its batch.
fn load(configs: &[ModelConfig], judges: &JudgesConfig) -> Result<Loaded, Failure> {
    let of_adapter = |error: ComposeError| match error {
        ComposeError::Adapter { .. } => invalid(error.into()),
        _ => failed(error.into()),
    };
    let (Some((first, others)), Some(last)) = (configs.split_first(), configs.last()) else {
        return Err(invalid(anyhow::anyhow!("no adapter is named")));
    };
    let judges = judges::load(judges, first.threads).map_err(|error| failed(error.into()))?;
    let parts = compose::load(last).map_err(of_adapter)?;
    let decoder = parts.engine.decoder();
    let (first, note) = match compose::adapter(first, decoder) {
        Ok(lease) => (lease, None),
        // What is active may be of another base; the others can be measured all the same.
        Err(error) if !others.is_empty() => {
            let note = format!("compared with the bare base model instead: {error}");
            tracing::warn!("{note}");
            (AdapterLease::none(), Some(note))
        }
        Err(error) => return Err(of_adapter(error)),
    };
    let mut systems = vec![first];
    for config in others {
        systems.push(compose::adapter(config, decoder).map_err(of_adapter)?);
    }
    Ok(Loaded {
        parts,
        systems,
        judges,
        note,
    })
}

/// Whether an example's source, its rewrite and its references have room in the model's context.
fn fits(example: &Example, parts: &Parts) -> bool {
    let positions = parts.engine.decoder().config().max_positions;
    let has_room_alone = |text: &String| tokens(text, parts) <= positions;
    has_room(&example.anchor, parts) && example.positives.iter().all(has_room_alone)
}

/// Whether a text and its rewrite have room.
fn has_room(text: &str, parts: &Parts) -> bool {
    let rewritten = tokens(text, parts).saturating_mul(5) / 2;
    rewritten.saturating_add(32) <= parts.engine.decoder().config().max_positions
}

fn tokens(text: &str, parts: &Parts) -> usize {
    let tokens = parts.tokenizer.encode(text.trim());
    tokens.map_or(usize::MAX, |tokens| tokens.len())
}

fn evaluator(args: &EvaluateArgs, parts: &Parts, judges: Judges) -> Evaluator {
    let rewriter = Arc::new(LanguageModelRewriter::new(
        parts.engine.clone(),
        parts.tokenizer.clone(),
        parts.prompt.clone(),
        &*parts.name,
    ));
    Evaluator {
        detoxifier: Arc::new(Detoxifier::new(rewriter.clone(), judges)),
        rewriter,
        perplexity: Arc::new(ModelPerplexity::new(parts.engine.clone(), parts.tokenizer.clone())),
        how: args.outputs.into(),
        samples: args.samples,
        window: args.window as usize,
        in_flight: args.in_flight,
    }
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{bar:30} {pos}/{len}  ETA {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What a training job would make of each of the others.
fn verdicts(report: &Report) -> String {
    let comparisons = (1..report.systems.len()).filter_map(|place| report.comparison(place));
    let verdicts = comparisons.map(|comparison| {
        let decision = decide(ActivationPolicy::IfBetter, Some(&comparison));
        let verdict = if decision.activate { "would" } else { "would not" };
        let adapter = &comparison.candidate.adapter;
        format!("\n`if_better` {verdict} activate {adapter}: {}\n", decision.reason)
    });
    verdicts.collect()
}
