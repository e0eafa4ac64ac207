//! The training loop.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::batch::{self, Batch, Portions, TokenSet};
use super::checkpoint::{self, Progress};
use super::curves;
use super::objectives::{Objective, Scored};
use super::optimizer::{AdamW, AdamWConfig, Gradients, Schedule};
use super::rollout::{PolicyOptimisation, Rollout};
use super::trainable::{Reference, Start, Trainable};

/// How long and how fast to train, and in what portions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedules {
    /// Passes over the dataset; fractions are allowed.
    pub epochs: f64,
    /// Stops there if it comes first.
    pub max_steps: Option<usize>,
    /// Most tokens in one packed batch.
    pub batch_tokens: usize,
    /// Most sets in one.
    pub batch_size: Option<usize>,
    /// Batches whose gradients make up one step.
    pub gradient_accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps to reach it.
    pub warmup_steps: usize,
    /// What follows.
    pub schedule: Schedule,
    /// Seed of everything random.
    pub seed: u64,
    /// Most positives a set.
    pub num_positives: usize,
    /// Most negatives a set.
    pub num_negatives: usize,
    /// Candidates of other anchors beside them.
    pub random_negatives: usize,
    /// The optimizer's settings.
    pub adamw: AdamWConfig,
}

/// One line of the loss log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Counted from 1.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// The objective's value.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens of the step.
    pub tokens: usize,
    /// Over the whole run.
    pub tokens_per_second: f64,
    /// Seconds spent, over all interruptions.
    pub seconds: f64,
    /// Mean reward of a text that the model wrote (ppo).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// Mean divergence of such a text from the reference, in nats (ppo).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
}

/// What a run is after.
#[derive(Clone, Copy)]
pub enum Goal<'a> {
    /// To make a loss of the data's texts small.
    Loss(&'a dyn Objective),
    /// To write texts of high reward for the data's prompts.
    Reward(&'a PolicyOptimisation<'a>),
}

impl Goal<'_> {
    fn needs_reference(&self) -> bool {
        match self {
            Self::Loss(objective) => objective.needs_reference(),
            Self::Reward(_) => true,
        }
    }
}

/// Who is told how a run goes on. A closure that takes a [`StepReport`] is one.
pub trait Observer {
    /// A step was made. `false` stops the run, after a checkpoint.
    fn step(&mut self, report: &StepReport) -> bool;

    /// A checkpoint was written to this folder.
    fn checkpoint(&mut self, folder: &Path) {
        let _ = folder;
    }
}

impl<F: FnMut(&StepReport) -> bool> Observer for F {
    fn step(&mut self, report: &StepReport) -> bool {
        self(report)
    }
}

/// A run: its folder, and on what it trains.
pub struct Trainer<'a> {
    /// Holds `loss.jsonl`, `curves.svg`, `checkpoints/` and in the end `adapter/` or `model/`.
    pub run: &'a Path,
    /// The training sets.
    pub sets: &'a [TokenSet],
    /// What for.
    pub goal: Goal<'a>,
    /// How.
    pub schedules: &'a Schedules,
    /// Everything that makes this run this run; a checkpoint with other settings is refused.
    pub settings: serde_json::Value,
    /// How often to write a checkpoint.
    pub checkpoint_every: Duration,
    /// Element type of the finished file.
    pub save_dtype: DType,
}

impl Trainer<'_> {
    /// Steps the whole run takes.
    pub fn steps(&self) -> usize {
        let batches = self.epoch(0).len();
        let steps =
            (self.schedules.epochs * batches as f64 / self.schedules.gradient_accumulation as f64).ceil() as usize;
        self.schedules.max_steps.map_or(steps, |most| most.min(steps)).max(1)
    }

    /// Trains, from the last checkpoint that can be read when `resume` is set and there is one; returns the folder of what was
    /// trained, or `None` when `observer` stopped the run; after the last step there is nothing to stop.
    ///
    /// # Errors
    /// When a file cannot be written, a checkpoint belongs to another run, or the loss is no longer a number.
    pub fn train(
        &self,
        start: Start<'_>,
        resume: bool,
        mut observer: impl Observer,
    ) -> Result<Option<PathBuf>, TrainError> {
        fs::create_dir_all(self.run).map_err(TrainError::io(self.run))?;
        let reference = start.reference().filter(|_| self.goal.needs_reference());
        if self.goal.needs_reference() && reference.is_none() {
            return Err(TrainError::Setting(
                "this objective compares with the model that training begins with, so it trains an adapter, not a whole model"
                    .to_owned(),
            ));
        }
        let resumed = if resume { self.resume(&start)? } else { None };
        let State {
            trainable,
            mut optimizer,
            mut progress,
        } = match resumed {
            Some(state) => state,
            None => self.begin(start)?,
        };
        let mut log = self.open_log(progress.step)?;
        let (path, steps) = (self.log_path(), self.steps());
        let (begun, seconds_before) = (Instant::now(), progress.seconds);
        let mut saved = Instant::now();
        let mut batches = Batches::new(self);
        while progress.step < steps {
            let step = progress.step;
            let learning_rate =
                self.schedules.learning_rate * self.schedules.schedule.factor(step, self.schedules.warmup_steps, steps);
            let parts = self.parts(&mut batches, step, &trainable, reference.as_ref())?;
            let tokens: usize = parts.iter().map(|part| part.batch().tokens.len()).sum();
            let (mut loss, mut gradient_norm) = (0.0, 0.0);
            for _ in 0..self.passes() {
                let (value, gradients) = self.averaged(&parts, &trainable, &optimizer, reference.as_ref())?;
                let diverged = |what| TrainError::Diverged { what, step: step + 1 };
                if !value.is_finite() {
                    return Err(diverged("loss"));
                }
                (loss, gradient_norm) = (value, optimizer.step(&gradients, learning_rate)?);
                if !gradient_norm.is_finite() {
                    return Err(diverged("gradient"));
                }
            }
            let over_parts = |value: fn(&Rollout) -> f64| {
                let values: Vec<f64> = parts.iter().filter_map(Part::rollout).map(value).collect();
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            };
            progress.step += 1;
            progress.tokens += tokens as u64;
            progress.seconds = seconds_before + begun.elapsed().as_secs_f64();
            let tokens_per_second = progress.tokens as f64 / progress.seconds;
            let line = StepReport {
                step: progress.step,
                steps,
                loss,
                gradient_norm,
                learning_rate,
                tokens,
                tokens_per_second,
                seconds: progress.seconds,
                reward: over_parts(|rollout| rollout.reward),
                divergence: over_parts(|rollout| rollout.divergence),
            };
            let json = serde_json::to_string(&line).map_err(|error| TrainError::Setting(error.to_string()))?;
            writeln!(log, "{json}").map_err(TrainError::io(&path))?;
            let go_on = observer.step(&line);
            if progress.step < steps && (!go_on || saved.elapsed() >= self.checkpoint_every) {
                observer.checkpoint(&checkpoint::save(self.run, &progress, &trainable, &optimizer)?);
                curves::draw(&path, &self.run.join("curves.svg"))?;
                saved = Instant::now();
                if !go_on {
                    return Ok(None);
                }
            }
        }
        observer.checkpoint(&checkpoint::save(self.run, &progress, &trainable, &optimizer)?);
        curves::draw(&self.log_path(), &self.run.join("curves.svg"))?;
        let folder = self.run.join(trainable.folder_name());
        fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        trainable.save(&folder, self.save_dtype)?;
        Ok(Some(folder))
    }

    fn begin<'b>(&self, start: Start<'b>) -> Result<State<'b>, TrainError> {
        let trainable = start.begin(self.schedules.seed)?;
        Ok(State {
            optimizer: AdamW::new(trainable.parameters()?, self.schedules.adamw)?,
            trainable,
            progress: Progress::new(self.settings.clone()),
        })
    }

    /// The newest checkpoint that can be read. One that was damaged, say by a full disk, costs the steps since the one before it.
    fn resume<'b>(&self, start: &Start<'b>) -> Result<Option<State<'b>>, TrainError> {
        let checkpoints = checkpoint::list(self.run)?;
        for folder in checkpoints.iter().rev() {
            match self.restore(start, folder) {
                Ok(state) => return Ok(Some(state)),
                // It is whole, but another run's: no older one would be this run's.
                Err(error @ TrainError::Checkpoint { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(checkpoint = %folder.display(), %error, "a checkpoint is damaged; trying the one before it");
                }
            }
        }
        if !checkpoints.is_empty() {
            tracing::warn!(run = %self.run.display(), "no checkpoint can be read; beginning at the first step");
        }
        Ok(None)
    }

    fn restore<'b>(&self, start: &Start<'b>, folder: &Path) -> Result<State<'b>, TrainError> {
        let progress = checkpoint::progress(folder, &self.settings)?;
        let trainable = start.resume(folder)?;
        let mut optimizer = AdamW::new(trainable.parameters()?, self.schedules.adamw)?;
        checkpoint::restore_optimizer(folder, &mut optimizer)?;
        Ok(State {
            trainable,
            optimizer,
            progress,
        })
    }

    /// Updates with the texts of one step.
    fn passes(&self) -> usize {
        match self.goal {
            Goal::Loss(_) => 1,
            Goal::Reward(policy) => policy.settings.epochs,
        }
    }

    /// What a step's gradient is computed of: batches of the data, or what the policy writes for their prompts.
    fn parts(
        &self,
        batches: &mut Batches<'_, '_>,
        step: usize,
        trainable: &Trainable<'_>,
        reference: Option<&Reference<'_>>,
    ) -> Result<Vec<Part>, TrainError> {
        let count = self.schedules.gradient_accumulation;
        (step * count..(step + 1) * count)
            .map(|index| {
                let sets = batches.get(index);
                Ok(match (self.goal, reference) {
                    (Goal::Reward(policy), Some(reference)) => {
                        Part::Rollout(policy.roll_out(sets, index as u64, trainable, reference)?)
                    }
                    _ => {
                        let mut batch = Batch::pack(sets);
                        batch.dropout_seed = self.schedules.seed.rotate_left(32) ^ index as u64;
                        Part::Data(batch)
                    }
                })
            })
            .collect()
    }

    /// The mean loss of a step's parts, and its gradients.
    fn averaged(
        &self,
        parts: &[Part],
        trainable: &Trainable<'_>,
        optimizer: &AdamW,
        reference: Option<&Reference<'_>>,
    ) -> Result<(f64, Gradients), TrainError> {
        let mut sum: Option<(f64, Gradients)> = None;
        for part in parts {
            let objective = match (part, self.goal) {
                (Part::Rollout(rollout), _) => &rollout.objective,
                (Part::Data(_), Goal::Loss(objective)) => objective,
                (Part::Data(_), Goal::Reward(_)) => continue,
            };
            let (loss, gradients) = gradients(part.batch(), objective, trainable, optimizer, reference)?;
            match &mut sum {
                None => sum = Some((loss, gradients)),
                Some((sum, all)) => {
                    *sum += loss;
                    all.add(&gradients)?;
                }
            }
        }
        let Some((loss, mut gradients)) = sum else {
            return Err(TrainError::Empty("a step has no batch".to_owned()));
        };
        if parts.len() > 1 {
            gradients.scale((parts.len() as f64).recip())?;
        }
        Ok((loss / parts.len() as f64, gradients))
    }

    fn epoch(&self, epoch: usize) -> Vec<Vec<TokenSet>> {
        let portions = Portions {
            positives: self.schedules.num_positives,
            negatives: self.schedules.num_negatives,
            random_negatives: self.schedules.random_negatives,
            max_tokens: self.schedules.batch_tokens,
            max_sets: self.schedules.batch_size.unwrap_or(usize::MAX),
        };
        batch::epoch(self.sets, portions, self.schedules.seed, epoch)
    }

    fn log_path(&self) -> PathBuf {
        self.run.join("loss.jsonl")
    }

    /// Opens the loss log; lines of steps after the checkpoint, which will be made again, are dropped.
    fn open_log(&self, steps_made: usize) -> Result<File, TrainError> {
        let path = self.log_path();
        let kept: Vec<String> = match fs::read_to_string(&path) {
            Ok(text) if steps_made > 0 => text.lines().take(steps_made).map(|line| format!("{line}\n")).collect(),
            _ => Vec::new(),
        };
        fs::write(&path, kept.concat()).map_err(TrainError::io(&path))?;
        OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path))
    }
}

/// What a run carries from step to step.
struct State<'a> {
    trainable: Trainable<'a>,
    optimizer: AdamW,
    progress: Progress,
}

/// A part of a step.
enum Part {
    Data(Batch),
    Rollout(Rollout),
}

impl Part {
    fn batch(&self) -> &Batch {
        match self {
            Self::Data(batch) => batch,
            Self::Rollout(rollout) => &rollout.batch,
        }
    }

    fn rollout(&self) -> Option<&Rollout> {
        match self {
            Self::Data(_) => None,
            Self::Rollout(rollout) => Some(rollout),
        }
    }
}

/// The loss of one batch and its gradients.
///
/// # Errors
/// When the model cannot run the batch, or the objective needs a reference and there is none.
pub fn gradients(
    batch: &Batch,
    objective: &dyn Objective,
    trainable: &Trainable<'_>,
    optimizer: &AdamW,
    reference: Option<&Reference<'_>>,
) -> Result<(f64, Gradients), TrainError> {
    let beside = match reference.filter(|_| objective.needs_reference()) {
        Some(reference) => reference.nll(batch)?,
        None if objective.needs_reference() => {
            return Err(TrainError::Setting("the objective needs a reference".to_owned()));
        }
        None => Vec::new(),
    };
    let decoder = trainable.decoder();
    let adaptation = trainable.adaptation(batch.dropout_seed);
    let pass = decoder.training_pass(&batch.tokens, &batch.packing, adaptation)?;
    let nll = decoder.cross_entropy(pass.hidden(), &batch.targets, adaptation)?;
    let loss = objective.loss(&Scored {
        nll: &nll.to_vec1::<f32>()?,
        reference: &beside,
        sets: &batch.sets,
    });
    // The objective's derivatives enter the graph as constants: the gradient of this sum is that of the loss.
    let weights: Vec<f32> = loss.gradient.iter().map(|&value| value as f32).collect();
    let weights = Tensor::from_vec(weights, nll.shape(), nll.device())?;
    let store = pass.backward(&(nll * weights)?.sum_all()?)?;
    Ok((loss.value, optimizer.gradients(&store)?))
}

/// The batches of the run by number, an epoch at a time. Numbers asked for never fall.
struct Batches<'a, 'b> {
    trainer: &'a Trainer<'b>,
    epoch: usize,
    /// Number of the epoch's first batch.
    first: usize,
    batches: Vec<Vec<TokenSet>>,
}

impl<'a, 'b> Batches<'a, 'b> {
    fn new(trainer: &'a Trainer<'b>) -> Self {
        Self {
            trainer,
            epoch: 0,
            first: 0,
            batches: trainer.epoch(0),
        }
    }

    fn get(&mut self, index: usize) -> &[TokenSet] {
        // Epochs may differ a little in their number of batches, so a resumed run counts through those before.
        while index >= self.first + self.batches.len() {
            self.first += self.batches.len();
            self.epoch += 1;
            self.batches = self.trainer.epoch(self.epoch);
        }
        &self.batches[index - self.first]
    }
}
