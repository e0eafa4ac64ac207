//! `detoxd train`: trains an adapter or a new model from JSON lines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::child::{self, Ended, Kind};
use crate::config::LogSettings;
use crate::model::lora::{ALL_LINEAR, LoraConfig, LoraModel};
use crate::model::tokenizer::TextTokenizer;
use crate::model::weights::{FourBit, ModelFiles, Purpose};
use crate::model::whole::Blueprint;
use crate::model::{Decoder, ModelError};
use crate::prompt::{MissingMarker, RewritePrompt};
use crate::train::objectives::{ContrastivePerplexity, Objective, Phi, Sft, Similarity};
use crate::train::optimizer::{AdamWConfig, Schedule};
use crate::train::trainable::Start;
use crate::train::trainer::{Observer, Schedules, StepReport, Trainer};
use crate::train::{TrainError, batch, dataset};

/// Trains a LoRA adapter for the rewrite prompt, or a new model.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Base model: a name of the catalogue, a GGUF file, or a folder in Hugging Face layout
    #[arg(long, env = "DETOXD_MODEL", default_value = "smollm2-135m")]
    model: String,
    /// Instead of an adapter on --model, trains every weight of a new model from random ones: a folder with its config.json and
    /// tokenizer.json
    #[arg(long, value_name = "FOLDER", conflicts_with = "init_adapter")]
    new_model: Option<PathBuf>,
    /// Folder for models that are fetched [default: $XDG_CACHE_HOME/detoxd, else ~/.cache/detoxd]
    #[arg(long, env = "DETOXD_CACHE_DIR", value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// What the adapter's configuration calls the base model [default: --model as it is]
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// Training data, JSON lines: {"anchor","positives","negatives"}, {"toxic","neutral"} or {"input","paraphrases","paraphrases_toxic"}
    #[arg(long)]
    data: PathBuf,
    /// Folder of the run: loss log, checkpoints and in the end adapter/ or model/
    #[arg(long)]
    out: PathBuf,
    /// What is minimised
    #[arg(long, value_enum, default_value_t = ObjectiveName::Cp)]
    objective: ObjectiveName,
    /// Adapter to start from, a PEFT folder; a new one without it
    #[arg(long)]
    init_adapter: Option<PathBuf>,
    /// Goes on from the run's last checkpoint
    #[arg(long)]
    resume: bool,
    /// Type of the products with frozen weights: bf16 where the processor has them
    #[arg(long, value_enum, default_value_t = TrainDType::Bf16)]
    dtype: TrainDType,
    /// Holds the frozen weights in 4 bits instead, for models that would not fit
    #[arg(long, value_enum, conflicts_with = "new_model")]
    quantize: Option<QuantizeName>,
    /// Keeps only what goes into each block and computes the rest again in the backward pass: about a tenth of what
    /// activations take, for up to half more time
    #[arg(long, conflicts_with = "new_model")]
    checkpoint_activations: bool,
    /// Type of the numbers in the finished file
    #[arg(long, value_enum, default_value_t = SaveDType::F16)]
    save_dtype: SaveDType,
    /// Minutes between checkpoints
    #[arg(long, default_value_t = 2.0)]
    checkpoint_minutes: f64,
    /// What is written to standard output: nothing, with a progress bar beside the log, or JSON lines for programs, which may also
    /// write `stop` to standard input
    #[arg(long, value_enum, default_value_t = Report::Text)]
    report: Report,
    #[command(flatten)]
    hyperparameters: Hyperparameters,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Report {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum ObjectiveName {
    /// Contrastive perplexity
    Cp,
    /// Supervised fine-tuning on the positives
    Sft,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TrainDType {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum QuantizeName {
    /// NF4 with double quantisation, as QLoRA has it
    Nf4,
    /// GGUF's Q4_K; rows must be multiples of 256
    #[value(name = "q4_k")]
    #[serde(rename = "q4_k")]
    Q4K,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SaveDType {
    F32,
    F16,
    Bf16,
}

impl From<TrainDType> for DType {
    fn from(dtype: TrainDType) -> Self {
        match dtype {
            TrainDType::F32 => Self::F32,
            TrainDType::Bf16 => Self::BF16,
        }
    }
}

impl From<SaveDType> for DType {
    fn from(dtype: SaveDType) -> Self {
        match dtype {
            SaveDType::F32 => Self::F32,
            SaveDType::F16 => Self::F16,
            SaveDType::Bf16 => Self::BF16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum SimilarityName {
    /// exp(-|phi - c|) / tau
    Paper,
    /// exp(-|phi - c| / tau)
    Symmetric,
    /// exp(-(phi - c) / tau) for negatives
    Directed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum PhiName {
    Perplexity,
    LogPerplexity,
}

#[derive(Debug, Args, Serialize)]
struct Hyperparameters {
    /// Passes over the data
    #[arg(long, default_value_t = 1.0)]
    epochs: f64,
    /// Stops after so many steps
    #[arg(long)]
    max_steps: Option<usize>,
    /// Most tokens in a packed batch
    #[arg(long, default_value_t = 2048)]
    batch_tokens: usize,
    /// Batches a step
    #[arg(long, default_value_t = 1)]
    gradient_accumulation: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-4)]
    learning_rate: f64,
    /// Steps to reach it
    #[arg(long, default_value_t = 30)]
    warmup_steps: usize,
    /// What follows
    #[arg(long, value_enum, default_value_t = Schedule::Cosine)]
    schedule: Schedule,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rank of a new adapter
    #[arg(long, default_value_t = 16)]
    lora_rank: usize,
    /// A new adapter's updates are scaled by alpha / rank
    #[arg(long, default_value_t = 32.0)]
    lora_alpha: f64,
    /// Share of an update's inputs that are left out in training
    #[arg(long, default_value_t = 0.0)]
    lora_dropout: f64,
    /// Modules a new adapter updates, by the names the model gives them; all-linear are those of the blocks, lm_head is the output head
    #[arg(long, value_delimiter = ',', default_value = ALL_LINEAR)]
    target_modules: Vec<String>,
    /// Longest prompt with its rewrite, in tokens
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Most positives a set (|P|)
    #[arg(long, default_value_t = 4)]
    num_positives: usize,
    /// Most negatives a set (|N|); none are used by sft
    #[arg(long, default_value_t = 6)]
    num_negatives: usize,
    /// What is compared
    #[arg(long, value_enum, default_value_t = PhiName::LogPerplexity)]
    phi: PhiName,
    /// How distance from the prototype becomes similarity
    #[arg(long, value_enum, default_value_t = SimilarityName::Directed)]
    similarity: SimilarityName,
    /// Negatives so far above the prototype are left alone (directed)
    #[arg(long, default_value_t = 1.0)]
    margin: f64,
    /// Temperature
    #[arg(long, default_value_t = 0.3)]
    tau: f64,
    /// Weight of the negatives
    #[arg(long, default_value_t = 1.0)]
    alpha: f64,
    /// The prototype is a constant for the gradient
    #[arg(long)]
    detach_prototype: bool,
    /// Weight of the contrastive term
    #[arg(long, default_value_t = 0.75)]
    cp_weight: f64,
    /// Weight of the likelihood of the positives
    #[arg(long, default_value_t = 1.0)]
    sft_weight: f64,
}

impl Hyperparameters {
    fn objective(&self, name: ObjectiveName) -> Box<dyn Objective> {
        match name {
            ObjectiveName::Sft => Box::new(Sft),
            ObjectiveName::Cp => Box::new(ContrastivePerplexity {
                phi: match self.phi {
                    PhiName::Perplexity => Phi::Perplexity,
                    PhiName::LogPerplexity => Phi::LogPerplexity,
                },
                similarity: match self.similarity {
                    SimilarityName::Paper => Similarity::Paper,
                    SimilarityName::Symmetric => Similarity::Symmetric,
                    SimilarityName::Directed => Similarity::Directed { margin: self.margin },
                },
                tau: self.tau,
                alpha: self.alpha,
                detach_prototype: self.detach_prototype,
                weight: self.cp_weight,
                sft_weight: self.sft_weight,
            }),
        }
    }

    fn schedules(&self, objective: ObjectiveName) -> Schedules {
        Schedules {
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_tokens: self.batch_tokens,
            gradient_accumulation: self.gradient_accumulation,
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps,
            schedule: self.schedule,
            seed: self.seed,
            num_positives: self.num_positives,
            num_negatives: if objective == ObjectiveName::Sft {
                0
            } else {
                self.num_negatives
            },
            adamw: AdamWConfig::default(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// With what to change. With `--report json` it has been said on standard output, and the error is only the exit code ([`Ended`]).
pub fn run(args: TrainArgs) -> anyhow::Result<()> {
    if args.report == Report::Text {
        let folder = train(&args, Bar::new())?;
        if let Some(folder) = folder {
            tracing::info!(folder = %folder.display(), "training finished");
        }
        return Ok(());
    }
    let stop = child::listen();
    match train(&args, Lines { stop }) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Ended(child::EX_TEMPFAIL).into()),
        Err(error) => Err(child::failed(kind(&error), &error)),
    }
}

/// Whether another try with the same input can go better.
fn kind(error: &anyhow::Error) -> Kind {
    let of_model = |error: &ModelError| match error {
        ModelError::Io { .. } | ModelError::Candle(_) => Kind::Failed,
        _ => Kind::Invalid,
    };
    if let Some(error) = error.downcast_ref::<TrainError>() {
        return match error {
            TrainError::Diverged { .. } => Kind::Diverged,
            TrainError::Io { .. } | TrainError::Candle(_) => Kind::Failed,
            TrainError::Model(error) => of_model(error),
            _ => Kind::Invalid,
        };
    }
    match error.downcast_ref::<ModelError>() {
        Some(error) => of_model(error),
        None if error.is::<MissingMarker>() => Kind::Invalid,
        None => Kind::Failed,
    }
}

/// Trains; `None` when `observer` stopped the run.
fn train(args: &TrainArgs, observer: impl Observer) -> anyhow::Result<Option<PathBuf>> {
    let hyperparameters = &args.hyperparameters;
    if hyperparameters.epochs <= 0.0 || hyperparameters.gradient_accumulation == 0 || hyperparameters.tau <= 0.0 {
        let message = "epochs, gradient-accumulation and tau must be positive";
        return Err(TrainError::Setting(message.to_owned()).into());
    }
    let trained = Trained::open(args)?;
    let tokenizer = trained.tokenizer();
    let prompt = RewritePrompt::new(tokenizer)?;
    let examples = dataset::read(&args.data)?;
    let sets = batch::tokenise(&examples, tokenizer, &prompt, hyperparameters.max_tokens)?;
    let objective = hyperparameters.objective(args.objective);
    let schedules = hyperparameters.schedules(args.objective);
    let mut settings = serde_json::to_value(hyperparameters)?;
    settings["objective"] = serde_json::to_value(args.objective)?;
    settings["examples"] = sets.len().into();
    if let Some(quantize) = args.quantize {
        settings["quantize"] = serde_json::to_value(quantize)?;
    }
    if args.new_model.is_some() {
        settings["new_model"] = true.into();
    }
    let base;
    let start = match &trained {
        Trained::NewModel(blueprint) => Start::NewModel {
            blueprint,
            device: Device::Cpu,
        },
        Trained::Adapter(files, _) => {
            let purpose = match args.quantize {
                None => Purpose::Train {
                    dtype: args.dtype.into(),
                },
                Some(QuantizeName::Nf4) => Purpose::TrainFourBit(FourBit::Nf4),
                Some(QuantizeName::Q4K) => Purpose::TrainFourBit(FourBit::Q4K),
            };
            base = files
                .load(purpose, &Device::Cpu)?
                .recomputing(args.checkpoint_activations);
            adapter(args, &base)?
        }
    };
    let trainer = Trainer {
        run: &args.out,
        sets: &sets,
        objective: &*objective,
        schedules: &schedules,
        settings: settings.clone(),
        checkpoint_every: Duration::from_secs_f64(args.checkpoint_minutes.max(0.0) * 60.0),
        save_dtype: args.save_dtype.into(),
    };
    std::fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    std::fs::write(args.out.join("config.json"), format!("{settings:#}\n"))?;
    Ok(trainer.train(start, args.resume, observer)?)
}

/// The files of what is trained.
enum Trained {
    NewModel(Blueprint),
    Adapter(ModelFiles, TextTokenizer),
}

impl Trained {
    fn open(args: &TrainArgs) -> anyhow::Result<Self> {
        if let Some(folder) = &args.new_model {
            return Ok(Self::NewModel(Blueprint::open(folder).context("reading --new-model")?));
        }
        let files = ModelFiles::open(&super::model_path(&args.model, args.cache_dir.as_deref())?)?;
        let tokenizer = files.tokenizer()?;
        Ok(Self::Adapter(files, tokenizer))
    }

    fn tokenizer(&self) -> &TextTokenizer {
        match self {
            Self::NewModel(blueprint) => blueprint.tokenizer(),
            Self::Adapter(_, tokenizer) => tokenizer,
        }
    }
}

fn adapter<'a>(args: &TrainArgs, base: &'a Decoder) -> anyhow::Result<Start<'a>> {
    let hyperparameters = &args.hyperparameters;
    Ok(match &args.init_adapter {
        Some(folder) => Start::Adapter {
            base,
            adapter: LoraModel::load(folder, base.config(), base.device()).context("reading --init-adapter")?,
        },
        None => Start::NewAdapter {
            base,
            config: LoraConfig {
                r: hyperparameters.lora_rank,
                lora_alpha: hyperparameters.lora_alpha,
                lora_dropout: hyperparameters.lora_dropout,
                use_rslora: false,
                target_modules: hyperparameters.target_modules.iter().cloned().collect(),
                base_model_name_or_path: args.base_name.clone().unwrap_or_else(|| args.model.clone()),
            },
        },
    })
}

/// For people: a bar, or a line in the log now and then where there is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        Self(
            match ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}  ETA {eta}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            },
        )
    }
}

impl Observer for Bar {
    fn step(&mut self, step: &StepReport) -> bool {
        let Self(bar) = self;
        bar.set_length(step.steps as u64);
        bar.set_position(step.step as u64);
        bar.set_message(format!("loss {:.3}  {:.0} tokens/s", step.loss, step.tokens_per_second));
        if bar.is_hidden() && (step.step.is_multiple_of(20) || step.step == step.steps) {
            tracing::info!(
                step = step.step,
                steps = step.steps,
                loss = step.loss,
                tokens_per_second = step.tokens_per_second,
                "trained"
            );
        }
        if step.step == step.steps {
            bar.finish();
        }
        true
    }
}

/// For programs: a line a step, and one a checkpoint.
struct Lines {
    stop: CancellationToken,
}

#[derive(Serialize)]
struct StepLine<'a> {
    #[serde(flatten)]
    report: &'a StepReport,
    eta_seconds: f64,
}

#[derive(Serialize)]
struct CheckpointLine<'a> {
    checkpoint: &'a str,
}

impl Observer for Lines {
    fn step(&mut self, report: &StepReport) -> bool {
        let left = (report.steps - report.step) as f64;
        let eta_seconds = left * report.seconds / report.step as f64;
        // A reader that has gone is noticed by the end of standard input.
        let _ = child::say(&StepLine { report, eta_seconds });
        !self.stop.is_cancelled()
    }

    fn checkpoint(&mut self, folder: &Path) {
        if let Some(checkpoint) = folder.file_name().and_then(|name| name.to_str()) {
            let _ = child::say(&CheckpointLine { checkpoint });
        }
    }
}
