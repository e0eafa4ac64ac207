//! `detoxd generate`: training sets from models.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::{compose, judges};
use crate::config::{JudgeSettings, JudgesConfig, LogSettings, ModelSettings};
use crate::engine::Sampling;
use crate::generate::{
    Criteria, DEFAULT_PROMPTS, Llm, OpenAi, OpenAiSettings, ParaphraseGenerator, Prompts, SetGenerator, SideCounts,
    Summary, read_sentences,
};
use crate::outgoing;
use crate::pipeline::Judges;
use crate::train::dataset;

/// How often a log line says how far it is, where there is no terminal for a bar.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Arguments of `detoxd generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    command: GenerateCommand,
}

#[derive(Debug, Subcommand)]
enum GenerateCommand {
    /// Of harmless sentences: paraphrases and toxic paraphrases by an LLM, the local model or any OpenAI-compatible server.
    Paraphrases(Box<ParaphrasesArgs>),
    /// Of toxic texts: samples of a rewriter, sorted into positives and negatives by the scorers.
    Rewrites(Box<RewritesArgs>),
    /// Print the prompts and thresholds of `paraphrases`, to be changed and given by --prompts.
    Prompts,
}

/// Where sets come from and go to.
#[derive(Debug, Args)]
struct FilesArgs {
    /// Where the sets go, a line each, in the order of the data
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Go on with what an interrupted run left in --out
    #[arg(long)]
    resume: bool,
    /// Texts to skip
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Most texts to take
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Arguments of `detoxd generate paraphrases`.
#[derive(Debug, Args)]
struct ParaphrasesArgs {
    /// The local model, where no --llm-url is given. Its adapter is none unless one is named.
    #[command(flatten)]
    model: ModelSettings,
    #[command(flatten)]
    judges: JudgeSettings,
    #[command(flatten)]
    log: LogSettings,
    #[command(flatten)]
    files: FilesArgs,
    /// Sentences: one a line, or JSON lines if the name ends in .jsonl
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Field of the JSON lines [default: text, anchor, sentence, input or neutral, the first that is there]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Prompts and thresholds, as `detoxd generate prompts` prints them
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Chat template of the local model instead of its own, a Jinja file
    #[arg(long, value_name = "FILE", conflicts_with = "llm_url")]
    chat_template: Option<PathBuf>,
    /// OpenAI-compatible server to ask instead of the local model, up to /v1
    #[arg(long, env = "DETOXD_LLM_URL", value_name = "URL", requires = "llm_model")]
    llm_url: Option<String>,
    /// What that server calls the model
    #[arg(long, env = "DETOXD_LLM_MODEL", value_name = "NAME")]
    llm_model: Option<String>,
    /// Environment variable that holds the server's key
    #[arg(long, value_name = "VARIABLE", default_value = "DETOXD_LLM_KEY")]
    llm_key_env: String,
    /// Requests at once; for the local model, sentences at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    parallel: usize,
    /// Longest time for one request, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    request_timeout: u64,
    /// Attempts after the first, when the server fails or says that it is busy
    #[arg(long, value_name = "N", default_value_t = 6)]
    retries: u32,
    /// Seed of the answers; without it a server chooses, and the local model takes 0
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Arguments of `detoxd generate rewrites`.
#[derive(Debug, Args)]
struct RewritesArgs {
    /// The model and the adapter that is sampled.
    #[command(flatten)]
    model: ModelSettings,
    #[command(flatten)]
    judges: JudgeSettings,
    #[command(flatten)]
    log: LogSettings,
    #[command(flatten)]
    files: FilesArgs,
    /// Sources with human rewrites, JSON lines as for `train`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Samples a source
    #[arg(long, value_name = "N", default_value_t = 8)]
    samples: usize,
    /// Temperature of the samples
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Nucleus of the samples
    #[arg(long, value_name = "P", default_value_t = 0.98)]
    top_p: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Sources sampled at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: usize,
}

impl GenerateArgs {
    /// The settings of the log, where the command writes one.
    pub fn log(&self) -> Option<&LogSettings> {
        match &self.command {
            GenerateCommand::Paraphrases(args) => Some(&args.log),
            GenerateCommand::Rewrites(args) => Some(&args.log),
            GenerateCommand::Prompts => None,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// With what to change.
pub async fn run(args: GenerateArgs) -> anyhow::Result<()> {
    match args.command {
        GenerateCommand::Paraphrases(args) => paraphrases(*args).await,
        GenerateCommand::Rewrites(args) => rewrites(*args).await,
        GenerateCommand::Prompts => {
            print!("{DEFAULT_PROMPTS}");
            Ok(())
        }
    }
}

impl FilesArgs {
    fn portion<'a, T>(&self, all: &'a [T]) -> (usize, &'a [T]) {
        let first = self.skip.min(all.len());
        let end = self
            .limit
            .map_or(all.len(), |limit| first.saturating_add(limit).min(all.len()));
        (first, &all[first..end])
    }
}

async fn paraphrases(args: ParaphrasesArgs) -> anyhow::Result<()> {
    let prompts = match &args.prompts {
        Some(file) => Prompts::from_file(file)?,
        None => Prompts::embedded()?,
    };
    let sentences = read_sentences(&args.data, args.field.as_deref())?;
    let (_, anchors) = args.files.portion(&sentences);
    ensure!(!anchors.is_empty(), "there is no sentence in {}", args.data.display());
    let parallel = args.parallel.max(1);
    let judges = load_judges(args.judges.clone(), args.model.threads).await?;
    let (llm, in_flight, seed): (Arc<dyn Llm>, _, _) = match &args.llm_url {
        Some(url) => {
            let key = std::env::var(&args.llm_key_env).ok().filter(|key| !key.is_empty());
            let client = OpenAi::new(OpenAiSettings {
                url: url.clone(),
                model: args.llm_model.clone().unwrap_or_default(),
                key,
                more: request_fields(&prompts)?,
                parallel,
                timeout: Duration::from_secs(args.request_timeout.max(1)),
                retries: args.retries,
                first_wait: Duration::from_millis(500),
                certificates: outgoing::certificates_from_env(),
            })?;
            tracing::info!(url = client.url(), model = args.llm_model, parallel, "asking a server");
            // A sentence has several requests; twice as many in work keep all of them busy to the end of each.
            (Arc::new(client), parallel * 2, args.seed)
        }
        None => {
            let config = args.model.clone().try_into()?;
            let template = args.chat_template.clone();
            let local = tokio::task::spawn_blocking(move || compose::chat(&config, template.as_deref())).await??;
            (Arc::new(local), parallel, args.seed.or(Some(0)))
        }
    };
    let generator = ParaphraseGenerator {
        llm,
        prompts,
        in_flight,
        seed,
        toxicity: judges.toxicity,
        similarity: judges.similarity,
    };
    let mut progress = Progress::new("sentences", anchors.len());
    let summary = Arc::new(generator)
        .run(anchors, &args.files.out, args.files.resume, |done| progress.set(done))
        .await
        .with_context(|| {
            format!(
                "making {}; what is done stays, --resume goes on",
                args.files.out.display()
            )
        });
    progress.finish();
    let summary = summary?;
    eprint!("{}", report(&summary));
    ensure!(
        summary.written > 0 || summary.resumed > 0,
        "no set was made: change the prompts or the thresholds (`detoxd generate prompts`), or take a model that follows instructions better"
    );
    Ok(())
}

async fn rewrites(args: RewritesArgs) -> anyhow::Result<()> {
    let all = dataset::read(&args.data)?;
    let (first, examples) = args.files.portion(&all);
    let judges = load_judges(args.judges.clone(), args.model.threads).await?;
    let config = args.model.clone().try_into()?;
    let parts = tokio::task::spawn_blocking(move || compose::load(&config)).await??;
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
        toxicity: judges.toxicity,
        similarity: judges.similarity,
    };
    let mut progress = Progress::new("sources", examples.len());
    let summary = Arc::new(generator)
        .run(examples, first + 1, &args.files.out, args.files.resume, |done| {
            progress.set(done)
        })
        .await
        .with_context(|| {
            format!(
                "making {}; what is done stays, --resume goes on",
                args.files.out.display()
            )
        });
    progress.finish();
    let summary = summary?;
    eprintln!(
        "{} sources, {} of them done before: {} sets written, {} without a positive\n{} different samples; kept {} positives (human ones \
         among them) and {} negatives",
        summary.sources,
        summary.resumed,
        summary.written,
        summary.sources - summary.resumed - summary.written,
        summary.samples,
        summary.positives,
        summary.negatives,
    );
    Ok(())
}

async fn load_judges(settings: JudgeSettings, threads: Option<usize>) -> anyhow::Result<Judges> {
    let config = JudgesConfig::try_from(settings)?;
    Ok(tokio::task::spawn_blocking(move || judges::load(&config, threads)).await??)
}

/// The fields that the prompts' file adds to each request, as JSON.
fn request_fields(prompts: &Prompts) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    match serde_json::to_value(&prompts.request)? {
        serde_json::Value::Object(fields) => Ok(fields),
        _ => Ok(serde_json::Map::new()),
    }
}

/// What became of all, for people.
fn report(summary: &Summary) -> String {
    let Summary {
        anchors,
        resumed,
        written,
        toxic_anchors,
        without_positives,
        without_negatives,
        positives,
        negatives,
    } = summary;
    let mut text = format!(
        "{anchors} sentences, {resumed} of them done before: {written} sets written; left out: {toxic_anchors} toxic themselves, \
         {without_positives} without a positive, {without_negatives} without a negative\n"
    );
    for (name, side) in [("positives", positives), ("negatives", negatives)] {
        let SideCounts {
            asked,
            refused,
            too_long,
            cut_off,
            texts,
            copies,
            duplicates,
            toxicity,
            meaning,
            surplus,
            kept,
        } = side;
        let wrong = if name == "positives" {
            "too toxic"
        } else {
            "not toxic enough"
        };
        text += &format!(
            "{name}: asked {asked} (refused {refused}, too long {too_long}, cut off {cut_off}), {texts} texts in the answers: kept {kept}; \
             {copies} copies, {duplicates} duplicates, {toxicity} {wrong}, {meaning} of another meaning, {surplus} beyond what is kept\n"
        );
    }
    text
}

/// How far it is: a bar on a terminal, log lines elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    total: usize,
    /// When this run began, and with how many done.
    began: Option<(Instant, usize)>,
    said: Instant,
}

impl Progress {
    fn new(what: &'static str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64).with_message(what);
            bar.enable_steady_tick(Duration::from_secs(1));
            // The template is a constant and right; were it not, the plain bar would do.
            match ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {per_sec}  ETA {eta}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self {
            bar,
            what,
            total,
            began: None,
            said: Instant::now(),
        }
    }

    fn set(&mut self, done: usize) {
        let Some((began, first)) = self.began else {
            self.began = Some((Instant::now(), done));
            if let Some(bar) = &self.bar {
                bar.set_position(done as u64);
                bar.reset_eta();
            }
            return;
        };
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        } else if self.said.elapsed() >= LOG_INTERVAL || done == self.total {
            self.said = Instant::now();
            let per_second = (done - first) as f64 / began.elapsed().as_secs_f64().max(1e-3);
            let left = (self.total - done) as f64 / per_second.max(1e-9);
            let eta = Duration::try_from_secs_f64(left)
                .map_or_else(|_| "unknown".to_owned(), |left| HumanDuration(left).to_string());
            tracing::info!(
                done,
                total = self.total,
                per_second = (per_second * 100.0).round() / 100.0,
                eta,
                "{} done",
                self.what
            );
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
