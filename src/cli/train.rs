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
use super::judges;
use crate::config::{JudgeSettings, LogSettings};
use crate::model::lora::{LoraConfig, LoraModel};
use crate::model::tokenizer::TextTokenizer;
use crate::model::weights::{FourBit, ModelFiles, Purpose};
use crate::model::whole::Blueprint;
use crate::model::{Decoder, ModelError};
use crate::pipeline::Judges;
use crate::prompt::{MissingMarker, RewritePrompt};
use crate::train::TrainError;
use crate::train::dataset::Examples;
use crate::train::rollout::{PolicyOptimisation, Reward};
use crate::train::settings::{ConditioningName, Hyperparameters, ObjectiveName, Quantize, Settings};
use crate::train::tokenise::{Conditioning, TokenSets, tokenise};
use crate::train::trainable::Start;
use crate::train::trainer::{Goal, Observer, StepReport, Trainer};

/// Trains a LoRA adapter for the rewrite prompt, or a new model.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Base model: a name of the catalogue, a GGUF file, a folder in Hugging Face layout, or a hub id (owner/name)
    #[arg(long, env = "DETOXD_MODEL", default_value = "smollm2-135m")]
    model: String,
    /// Instead of an adapter on --model, trains every weight of a model of its own: a folder with its config.json and
    /// tokenizer.json, and *.safetensors where training is not to begin with random weights
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
    /// Who says what a rewrite is worth, in `ppo`.
    #[command(flatten)]
    judges: JudgeSettings,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TrainDType {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SaveDType {
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
    let mut settings = Settings::resolve(&args.hyperparameters, args.objective)?;
    if args.new_model.is_some() {
        if args
            .hyperparameters
            .quantize
            .is_some_and(|given| given != Quantize::None)
        {
            return Err(
                TrainError::Setting("a new model has no frozen weights: quantize must be none".to_owned()).into(),
            );
        }
        settings.quantize = Quantize::None;
    }
    let trained = Trained::open(args)?;
    let tokenizer = trained.tokenizer();
    let prompt = match settings.conditioning {
        ConditioningName::Prompt => Some(RewritePrompt::new(tokenizer)?),
        ConditioningName::Nothing => None,
    };
    let conditioning = prompt.clone().map_or(Conditioning::Nothing, Conditioning::Prompt);
    let examples = Examples::open(&args.data)?;
    let TokenSets { sets, left_out } = tokenise(examples, tokenizer, &conditioning, settings.max_tokens)?;
    if left_out > 0 {
        tracing::warn!(left_out, used = sets.len(), "some examples are too long or too short");
    }
    let schedules = settings.schedules();
    let objective = settings.objective();
    let scores;
    let policy;
    let goal = match (&objective, prompt) {
        (Some(objective), _) => Goal::Loss(&**objective),
        (None, Some(prompt)) => {
            scores = RewriteScores(judges::load(&args.judges.clone().try_into()?, None)?);
            policy = PolicyOptimisation {
                settings: settings.policy(),
                reward: &scores,
                tokenizer,
                prompt,
            };
            Goal::Reward(&policy)
        }
        (None, None) => return Err(TrainError::Setting("this objective needs the rewrite prompt".to_owned()).into()),
    };
    let mut recorded = serde_json::to_value(&settings)?;
    recorded["examples"] = sets.len().into();
    if args.new_model.is_some() {
        recorded["new_model"] = true.into();
    }
    let base;
    let start = match &trained {
        Trained::NewModel(blueprint) => Start::NewModel {
            blueprint,
            device: Device::Cpu,
        },
        Trained::Adapter(files, _) => {
            let purpose = match settings.quantize {
                Quantize::None => Purpose::Train {
                    dtype: args.dtype.into(),
                },
                Quantize::Nf4 => Purpose::TrainFourBit(FourBit::Nf4),
                Quantize::Q4K => Purpose::TrainFourBit(FourBit::Q4K),
            };
            base = files
                .load(purpose, &Device::Cpu)?
                .recomputing(args.checkpoint_activations);
            adapter(args, &settings, &base)?
        }
    };
    let trainer = Trainer {
        run: &args.out,
        sets: &sets,
        goal,
        schedules: &schedules,
        settings: recorded.clone(),
        checkpoint_every: Duration::from_secs_f64(args.checkpoint_minutes.max(0.0) * 60.0),
        save_dtype: args.save_dtype.into(),
    };
    std::fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    std::fs::write(args.out.join("config.json"), format!("{recorded:#}\n"))?;
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

/// What a text that the model wrote is worth: similarity in meaning times the probability of not being toxic. A copy of a toxic
/// source is as worthless as a harmless text about something else.
struct RewriteScores(Judges);

impl Reward for RewriteScores {
    fn reward(&self, source: &str, rewrite: &str) -> f64 {
        let Self(judges) = self;
        let worth =
            f64::from(judges.similarity.score(source, rewrite)) * (1.0 - f64::from(judges.toxicity.score(rewrite)));
        // Where a judge can't tell, which is not a number, nothing.
        worth.max(0.0)
    }
}

fn adapter<'a>(args: &TrainArgs, settings: &Settings, base: &'a Decoder) -> anyhow::Result<Start<'a>> {
    Ok(match &args.init_adapter {
        Some(folder) => Start::Adapter {
            base,
            adapter: LoraModel::load(folder, base.config(), base.device()).context("reading --init-adapter")?,
        },
        None => Start::NewAdapter {
            base,
            config: LoraConfig {
                r: settings.lora_rank,
                lora_alpha: settings.lora_alpha,
                lora_dropout: settings.lora_dropout,
                use_rslora: false,
                target_modules: settings.target_modules.iter().cloned().collect(),
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

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::scoring::{Similarity, Toxicity};

    /// Says the same of every text.
    struct Always(f32);

    impl Toxicity for Always {
        fn score(&self, _: &str) -> f32 {
            self.0
        }

        fn attributions(&self, _: &str) -> Vec<(Range<usize>, f32)> {
            Vec::new()
        }
    }

    impl Similarity for Always {
        fn score(&self, _: &str, _: &str) -> f32 {
            self.0
        }
    }

    #[test]
    fn a_text_that_cannot_be_judged_is_worth_nothing() {
        let worth = |toxicity: f32, similarity: f32| {
            let (toxicity, similarity) = (Arc::new(Always(toxicity)), Arc::new(Always(similarity)));
            RewriteScores(Judges { toxicity, similarity }).reward("a", "b")
        };
        assert_eq!(worth(0.25, 0.5), 0.375);
        assert_eq!(worth(f32::NAN, 0.5), 0.0);
        assert_eq!(worth(0.25, f32::NAN), 0.0);
    }
}
