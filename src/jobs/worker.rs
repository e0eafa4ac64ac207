//! The worker: looks for a job, runs it, looks for the next.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::child::Program;
use super::metrics::JobMetrics;
use super::queue::Queue;
use super::run::{self, Ended};
use crate::adapters::Registry;
use crate::config::JobsConfig;
use crate::datasets::Datasets;
use crate::db::{DbError, new_id};

/// Pause between two looks at a queue without a job that is due.
const PAUSE: Duration = Duration::from_secs(1);

/// Finds the files of a base model by the name that a job has for it. Blocks, for as long as a download takes.
pub type Bases = Arc<dyn Fn(&str) -> Result<PathBuf, BaseError> + Send + Sync>;

/// Why a base model can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// This worker knows no model of that name.
    #[error("there is no base model `{0}` here")]
    Unknown(String),
    /// It can't be had now.
    #[error("the base model can't be had: {0}")]
    Unavailable(String),
}

/// Runs jobs, one at a time.
pub struct Worker {
    /// New at each start: a job claimed by a former process of this machine is not this one's.
    pub(super) id: String,
    pub(super) queue: Queue,
    pub(super) datasets: Datasets,
    pub(super) registry: Registry,
    pub(super) config: JobsConfig,
    pub(super) data_dir: PathBuf,
    pub(super) program: Program,
    pub(super) bases: Bases,
    metrics: Option<JobMetrics>,
}

/// What a look at the queue led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TickOutcome {
    /// No job is due.
    Idle,
    /// Another process trains on this machine.
    DeviceInUse,
    /// A job was run.
    Ran(Ended),
}

impl Worker {
    /// A worker that keeps the folders of its runs under `data_dir` and runs `program` for training and evaluation.
    pub fn new(
        (queue, datasets, registry): (Queue, Datasets, Registry),
        config: JobsConfig,
        data_dir: PathBuf,
        program: Program,
        bases: Bases,
    ) -> Self {
        Self {
            id: new_id(),
            queue,
            datasets,
            registry,
            config,
            data_dir,
            program,
            bases,
            metrics: None,
        }
    }

    /// Counts what it does.
    #[must_use]
    pub fn with_metrics(mut self, metrics: JobMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    pub(super) fn count(&self, what: impl FnOnce(&JobMetrics)) {
        if let Some(metrics) = &self.metrics {
            what(metrics);
        }
    }

    /// Runs jobs until told to stop; the job it is at then is handed back, from where it stands.
    pub async fn run(&self, stop: CancellationToken) {
        self.sweep().await;
        let mut database_is_there = true;
        while !stop.is_cancelled() {
            let outcome = self.tick(&stop).await;
            if let Err(error) = &outcome
                && database_is_there
            {
                tracing::warn!(%error, "the queue can't be looked at; trying again each second");
            }
            database_is_there = outcome.is_ok();
            if matches!(outcome, Ok(TickOutcome::Ran(_))) {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.queue.queued() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Looks at the queue once: takes jobs away from workers that are not heard of any more, then runs the next one that is due.
    ///
    /// # Errors
    /// When the database fails before a job is claimed.
    pub async fn tick(&self, stop: &CancellationToken) -> Result<TickOutcome, DbError> {
        let rescued = self.queue.rescue().await?;
        self.count(|metrics| metrics.rescued(rescued.len() as u64));
        for (job, state) in rescued {
            tracing::warn!(job, %state, "its worker was not heard of");
        }
        let Some(_device) = self.lock_device() else {
            return Ok(TickOutcome::DeviceInUse);
        };
        let Some(claim) = self.queue.claim(&self.id, self.config.lease).await? else {
            return Ok(TickOutcome::Idle);
        };
        Ok(TickOutcome::Ran(run::run(self, claim, stop).await))
    }

    /// The lock on this machine's processors: two trainings at once would take longer than one after the other. It is released when
    /// the file is closed, however the process ends.
    fn lock_device(&self) -> Option<File> {
        let path = self.data_dir.join("device-cpu.lock");
        let opened = std::fs::create_dir_all(&self.data_dir)
            .and_then(|()| File::options().create(true).append(true).open(&path))
            .and_then(|file| match file.try_lock() {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            });
        opened.unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the lock of the device can't be had");
            None
        })
    }

    pub(super) fn runs(&self) -> PathBuf {
        self.data_dir.join("jobs")
    }

    /// Removes the folders of runs that nobody goes on with.
    async fn sweep(&self) {
        let Some(_device) = self.lock_device() else {
            return;
        };
        let Ok(entries) = std::fs::read_dir(self.runs()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str() else { continue };
            let is_over = match self.queue.get(id).await {
                Ok(Some(job)) => job.state.is_final(),
                Ok(None) => true,
                Err(_) => false,
            };
            if is_over && let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!(%error, path = %entry.path().display(), "the folder of a finished run can't be removed");
            }
        }
    }
}
