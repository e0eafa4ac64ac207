//! One attempt at a job, from the claim to what became of it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checkpoints::Uploader;
use super::child::{self, Child, Ending, Event, Line, Step};
use super::claims::{Claim, ClaimError, Healing, Heartbeat};
use super::finish::{self, Evaluated};
use super::heartbeat::Heart;
use super::job::{JobError, JobState, Phase, Progress};
use super::metrics::Outcome;
use super::prepare::{self, Prepared};
use super::worker::Worker;

/// How long a child gets to write a checkpoint, and that to be uploaded, when the worker is to end.
const HAND_BACK: Duration = Duration::from_secs(20);
/// How often progress is recorded at most.
const RECORD: Duration = Duration::from_secs(1);
/// How long a record of progress may take: the next one comes soon.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a job that was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It stands there now: `queued` when it will be tried again or was handed back.
    As(JobState),
    /// It was no longer this worker's, or it is not known whether it is.
    Lost,
}

/// Why an attempt ends before its job is done.
#[derive(Debug)]
pub(super) enum Interrupted {
    /// Somebody wants the job stopped.
    Cancelled,
    /// The worker is to end.
    Stopping,
    /// The job is no longer this worker's.
    Lost,
    /// It failed.
    Failed(JobError, Healing),
}

impl Interrupted {
    pub(super) fn failed(kind: &str, message: impl std::fmt::Display, healing: Healing) -> Self {
        let (kind, message) = (kind.to_owned(), message.to_string());
        Self::Failed(JobError { kind, message }, healing)
    }
}

impl From<ClaimError> for Interrupted {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Lost => Self::Lost,
            ClaimError::Db(error) => Self::failed("failed", error, Healing::Possible),
        }
    }
}

/// Runs a claimed job.
pub(super) async fn run(worker: &Worker, claim: Claim, stop: &CancellationToken) -> Ended {
    tracing::info!(
        job = claim.job.id,
        attempt = claim.job.attempts,
        epoch = claim.epoch,
        "job claimed"
    );
    let attempt = match Heart::start(worker.queue.database(), &claim, worker.config.lease) {
        Ok(heart) => Attempt {
            worker,
            folder: worker.runs().join(&claim.job.id),
            claim,
            heart,
            stop,
        },
        // Without a heartbeat the job goes to another worker in the end.
        Err(error) => {
            tracing::error!(%error, "no thread for the heartbeat");
            return Ended::Lost;
        }
    };
    let worked = attempt.work().await;
    attempt.end(worked).await
}

pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Worker,
    pub(super) claim: Claim,
    /// Of the run: data, checkpoints, the result.
    pub(super) folder: PathBuf,
    heart: Heart,
    stop: &'a CancellationToken,
}

impl Attempt<'_> {
    async fn work(&self) -> Result<(), Interrupted> {
        let prepared = self.unless_interrupted(prepare::prepare(self)).await?;
        let made = self.claim.job.progress.map_or(0, |progress| progress.step);
        let kept = self
            .claim
            .job
            .checkpoint
            .as_ref()
            .map_or(0, |(_, step)| step.unsigned_abs());
        self.worker.count(|metrics| metrics.resumed(made.saturating_sub(kept)));
        self.enter(Phase::Training).await?;
        self.train(&prepared).await?;
        self.enter(Phase::Evaluating).await?;
        let evaluated = self.evaluate(&prepared).await?;
        self.enter(Phase::Registering).await?;
        self.unless_interrupted(finish::finish(self, &prepared, evaluated))
            .await
    }

    async fn enter(&self, phase: Phase) -> Result<(), Interrupted> {
        tracing::info!(job = self.claim.job.id, phase = phase.as_str(), "job");
        match self.worker.queue.phase(&self.claim, phase).await {
            Err(ClaimError::Lost) => Err(Interrupted::Lost),
            // What follows is the same whether or not it is known.
            Err(ClaimError::Db(error)) => {
                tracing::warn!(job = self.claim.job.id, %error, "the phase was not recorded");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Waits for something that may be left half-way.
    async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, Interrupted>>,
    ) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            interrupted = self.interrupted() => Err(interrupted),
            () = self.stop.cancelled() => Err(Interrupted::Stopping),
            done = work => done,
        }
    }

    async fn interrupted(&self) -> Interrupted {
        match self.heart.interrupted().await {
            Heartbeat::Lost => Interrupted::Lost,
            Heartbeat::Held { .. } => Interrupted::Cancelled,
        }
    }

    async fn train(&self, prepared: &Prepared) -> Result<(), Interrupted> {
        let mut child = self.spawn(prepare::training(self, prepared))?;
        let (queue, store) = (self.worker.queue.clone(), self.worker.registry.store().clone());
        let uploader = Uploader::start(queue, store, self.claim.clone(), self.folder.clone());
        let mut told: Option<Instant> = None;
        let (mut said, mut progress, mut recorded) = (None, None, Instant::now() - RECORD);
        let status = loop {
            let killed_at = told.unwrap_or_else(Instant::now) + HAND_BACK;
            let event = tokio::select! {
                biased;
                interrupted = self.interrupted() => {
                    child.kill().await;
                    return Err(interrupted);
                }
                () = self.stop.cancelled(), if told.is_none() => {
                    told = Some(Instant::now());
                    child.stop().await;
                    continue;
                }
                () = tokio::time::sleep_until(killed_at), if told.is_some() => {
                    child.kill().await;
                    break None;
                }
                event = child.next() => event.map_err(io)?,
            };
            match event {
                Event::Said(Line::Step(Step { progress: step, tokens })) => {
                    self.worker.count(|metrics| metrics.trained(tokens));
                    progress = Some(step);
                    if recorded.elapsed() >= RECORD || step.step == step.steps {
                        recorded = Instant::now();
                        self.record(&step).await?;
                        progress = None;
                    }
                }
                Event::Said(Line::Checkpoint { checkpoint }) => uploader.offer(checkpoint),
                Event::Said(Line::Error { error }) => said = Some(error),
                Event::Said(_) => {}
                Event::Ended(status) => break Some(status),
            }
        };
        if let Some(progress) = progress {
            self.record(&progress).await?;
        }
        let left = told.map_or(HAND_BACK, |told| HAND_BACK.saturating_sub(told.elapsed()));
        // The last checkpoint is worth waiting for: it saves the next worker the steps since the one before.
        tokio::select! {
            biased;
            interrupted = self.interrupted() => return Err(interrupted),
            _ = tokio::time::timeout(left, uploader.finish()) => {}
        }
        match status.map(|status| child::ending(status, said)) {
            Some(Ending::Done) => Ok(()),
            Some(Ending::Failed(error, Healing::Impossible)) => Err(Interrupted::Failed(error, Healing::Impossible)),
            // Told to end, it may also have been killed by who told the worker.
            _ if told.is_some() => Err(Interrupted::Stopping),
            Some(Ending::Failed(error, healing)) => Err(Interrupted::Failed(error, healing)),
            Some(Ending::Stopped) | None => Err(Interrupted::failed(
                "failed",
                "the training process stopped by itself",
                Healing::Possible,
            )),
        }
    }

    /// Records progress; when the database is away, later.
    async fn record(&self, progress: &Progress) -> Result<(), Interrupted> {
        let recording = self.worker.queue.progress(&self.claim, progress);
        match tokio::time::timeout(PATIENCE, recording).await {
            Ok(Err(ClaimError::Lost)) => Err(Interrupted::Lost),
            _ => Ok(()),
        }
    }

    /// Compares the result with what is active, on the examples that were held back; `None` without any.
    async fn evaluate(&self, prepared: &Prepared) -> Result<Option<Evaluated>, Interrupted> {
        if prepared.held == 0 {
            return Ok(None);
        }
        let baseline = self.unless_interrupted(finish::baseline(self, prepared)).await?;
        let mut child = self.spawn(prepare::evaluation(self, prepared, &baseline))?;
        let (mut said, mut report) = (None, None);
        let status = loop {
            // Left half-way it is begun again by the next worker: it takes seconds, and training is not made again.
            let next = async { child.next().await.map_err(io) };
            match self.unless_interrupted(next).await {
                Ok(Event::Said(Line::Report(result))) => report = Some(*result),
                Ok(Event::Said(Line::Error { error })) => said = Some(error),
                Ok(Event::Said(_)) => {}
                Ok(Event::Ended(status)) => break status,
                Err(interrupted) => {
                    child.kill().await;
                    return Err(interrupted);
                }
            }
        };
        let of_evaluation = |message: String, healing| Err(Interrupted::failed("evaluation", message, healing));
        // The active version is measured first, the new one second.
        let comparison = report.and_then(|report| report.comparison(1));
        match (child::ending(status, said), comparison) {
            (Ending::Done, Some(comparison)) => Ok(Some(baseline.evaluated(comparison, &self.claim.job.request.name))),
            (Ending::Failed(error, healing), _) => of_evaluation(error.message, healing),
            _ => of_evaluation("the evaluation ended without a result".to_owned(), Healing::Possible),
        }
    }

    fn spawn(&self, arguments: Vec<std::ffi::OsString>) -> Result<Child, Interrupted> {
        self.worker.program.spawn(arguments).map_err(io)
    }

    /// Records what became of the attempt.
    async fn end(&self, worked: Result<(), Interrupted>) -> Ended {
        let id = &self.claim.job.id;
        let released = matches!(worked, Err(Interrupted::Stopping));
        let ended = match worked {
            Ok(()) => Ended::As(JobState::Succeeded),
            Err(Interrupted::Lost) => Ended::Lost,
            Err(interrupted) => self.hand_over(interrupted).await,
        };
        self.count(ended, released);
        let is_over = match ended {
            Ended::As(state) => {
                tracing::info!(job = id, %state, "job ended here");
                state.is_final()
            }
            Ended::Lost => {
                tracing::warn!(job = id, "job lost; nothing of it counts any more");
                false
            }
        };
        if is_over && let Err(error) = tokio::fs::remove_dir_all(&self.folder).await {
            tracing::warn!(job = id, %error, "the run's folder stays");
        }
        ended
    }

    fn count(&self, ended: Ended, released: bool) {
        let outcome = match ended {
            Ended::As(JobState::Succeeded) => Outcome::Succeeded,
            Ended::As(JobState::Cancelled) => Outcome::Cancelled,
            Ended::As(JobState::Queued | JobState::Running) if released => Outcome::Released,
            Ended::As(JobState::Queued | JobState::Running) => Outcome::Retried,
            Ended::As(JobState::Failed) => Outcome::Failed,
            Ended::Lost => Outcome::Lost,
        };
        self.worker.count(|metrics| {
            metrics.attempt_ended(outcome);
            if outcome == Outcome::Lost {
                metrics.lease_lost();
            }
        });
    }

    /// Writes a state that ends the claim, for as long as it may be this worker's to write.
    async fn hand_over(&self, interrupted: Interrupted) -> Ended {
        let queue = &self.worker.queue;
        let begun = Instant::now();
        loop {
            let written = match &interrupted {
                Interrupted::Cancelled => queue.cancelled(&self.claim).await,
                Interrupted::Failed(error, healing) => {
                    tracing::warn!(
                        job = self.claim.job.id,
                        kind = error.kind,
                        reason = error.message,
                        "attempt failed"
                    );
                    queue.fail(&self.claim, error, *healing).await
                }
                Interrupted::Stopping => queue.release(&self.claim).await,
                Interrupted::Lost => return Ended::Lost,
            };
            match written {
                Ok(state) => return Ended::As(state),
                Err(ClaimError::Lost) => return Ended::Lost,
                // The lease runs out by itself: then the job is rescued by whoever sees the database first.
                Err(ClaimError::Db(error)) if begun.elapsed() > self.worker.config.lease => {
                    tracing::error!(job = self.claim.job.id, %error, "what became of a job can't be recorded");
                    return Ended::Lost;
                }
                Err(ClaimError::Db(_)) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }
}

fn io(error: std::io::Error) -> Interrupted {
    Interrupted::failed("failed", error, Healing::Possible)
}
