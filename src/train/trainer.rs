//! The training loop.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::batch::{self, Batch, SetSize, TokenSet};
use super::checkpoint::{self, Progress};
use super::objectives::Objective;
use super::optimizer::{AdamW, AdamWConfig, Gradients, Schedule};
use super::trainable::{Start, Trainable};

/// How long and how fast to train, and in what portions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedules {
    /// Passes over the dataset; fractions are allowed.
    pub epochs: f64,
    /// Stops there if it comes first.
    pub max_steps: Option<usize>,
    /// Most tokens in one packed batch.
    pub batch_tokens: usize,
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
    /// The optimizer's settings.
    pub adamw: AdamWConfig,
}

/// One line of the loss log.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Holds `loss.jsonl`, `checkpoints/` and in the end `adapter/` or `model/`.
    pub run: &'a Path,
    /// The training sets.
    pub sets: &'a [TokenSet],
    /// What is minimised.
    pub objective: &'a dyn Objective,
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
        let steps = self.steps();
        let (begun, seconds_before) = (Instant::now(), progress.seconds);
        let mut saved = Instant::now();
        let mut batches = Batches::new(self);
        while progress.step < steps {
            let step = progress.step;
            let learning_rate =
                self.schedules.learning_rate * self.schedules.schedule.factor(step, self.schedules.warmup_steps, steps);
            let mut sum: Option<Gradients> = None;
            let (mut loss, mut tokens) = (0.0, 0);
            for part in 0..self.schedules.gradient_accumulation {
                let batch = batches.get(step * self.schedules.gradient_accumulation + part);
                tokens += batch.tokens.len();
                let (value, gradients) = self.gradients(&batch, &trainable, &optimizer)?;
                loss += value / self.schedules.gradient_accumulation as f64;
                match &mut sum {
                    None => sum = Some(gradients),
                    Some(sum) => sum.add(&gradients)?,
                }
            }
            let diverged = |what| TrainError::Diverged { what, step: step + 1 };
            if !loss.is_finite() {
                return Err(diverged("loss"));
            }
            let gradient_norm = match &mut sum {
                Some(gradients) => {
                    if self.schedules.gradient_accumulation > 1 {
                        gradients.scale((self.schedules.gradient_accumulation as f64).recip())?;
                    }
                    optimizer.step(gradients, learning_rate)?
                }
                None => 0.0,
            };
            if !gradient_norm.is_finite() {
                return Err(diverged("gradient"));
            }
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
            };
            let json = serde_json::to_string(&line).map_err(|error| TrainError::Setting(error.to_string()))?;
            let path = self.log_path();
            writeln!(log, "{json}").map_err(TrainError::io(&path))?;
            let go_on = observer.step(&line);
            if progress.step < steps && (!go_on || saved.elapsed() >= self.checkpoint_every) {
                observer.checkpoint(&checkpoint::save(self.run, &progress, &trainable, &optimizer)?);
                saved = Instant::now();
                if !go_on {
                    return Ok(None);
                }
            }
        }
        observer.checkpoint(&checkpoint::save(self.run, &progress, &trainable, &optimizer)?);
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

    /// The loss of one batch and its gradients.
    ///
    /// # Errors
    /// When the model cannot run the batch.
    pub fn gradients(
        &self,
        batch: &Batch,
        trainable: &Trainable<'_>,
        optimizer: &AdamW,
    ) -> Result<(f64, Gradients), TrainError> {
        let decoder = trainable.decoder();
        let adaptation = trainable.adaptation(batch.dropout_seed);
        let pass = decoder.training_pass(&batch.tokens, &batch.packing, adaptation)?;
        let nll = decoder.cross_entropy(pass.hidden(), &batch.targets, adaptation)?;
        let loss = self.objective.loss(&nll.to_vec1::<f32>()?, &batch.sets);
        // The objective's derivatives enter the graph as constants: the gradient of this sum is that of the loss.
        let weights: Vec<f32> = loss.gradient.iter().map(|&value| value as f32).collect();
        let weights = Tensor::from_vec(weights, nll.shape(), nll.device())?;
        let store = pass.backward(&(nll * weights)?.sum_all()?)?;
        Ok((loss.value, optimizer.gradients(&store)?))
    }

    fn epoch(&self, epoch: usize) -> Vec<Vec<TokenSet>> {
        let size = SetSize {
            positives: self.schedules.num_positives,
            negatives: self.schedules.num_negatives,
        };
        batch::epoch(self.sets, size, self.schedules.batch_tokens, self.schedules.seed, epoch)
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

    fn get(&mut self, index: usize) -> Batch {
        // Epochs may differ a little in their number of batches, so a resumed run counts through those before.
        while index >= self.first + self.batches.len() {
            self.first += self.batches.len();
            self.epoch += 1;
            self.batches = self.trainer.epoch(self.epoch);
        }
        let mut batch = Batch::pack(&self.batches[index - self.first]);
        batch.dropout_seed = self.trainer.schedules.seed.rotate_left(32) ^ index as u64;
        batch
    }
}
