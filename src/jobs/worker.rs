//! The worker: looks for a job, runs it, looks for the next.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::child::Program;
use super::job::JobState;
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

/// A device in the hands of one worker: a locked file that holds the worker's id. The lock is released when the file is closed,
/// however the process ends.
struct Device {
    file: File,
    /// Who took it last.
    before: Option<String>,
}

impl Device {
    /// None while another process has it.
    fn lock(path: &Path) -> std::io::Result<Option<Self>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut before = String::new();
        file.read_to_string(&mut before)?;
        Ok(Some(Self {
            file,
            before: Some(before).filter(|before| !before.is_empty()),
        }))
    }

    /// Says who has it now. When that can't be written the next one waits for the lease, that is all.
    fn take(&self, worker: &str) {
        let written = self.file.set_len(0).and_then(|()| {
            let mut file = &self.file;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(worker.as_bytes())
        });
        if let Err(error) = written {
            tracing::warn!(%error, "who has the device can't be written down");
        }
    }
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
        self.rescued(self.queue.rescue().await?);
        let Some(device) = self.lock_device() else {
            return Ok(TickOutcome::DeviceInUse);
        };
        // Who had the device before and has not given a job back has ended in the middle of it: nobody waits for that lease.
        if let Some(before) = device.before.as_deref().filter(|before| *before != self.id) {
            self.rescued(self.queue.rescue_from(before).await?);
        }
        device.take(&self.id);
        let Some(claim) = self.queue.claim(&self.id, self.config.lease).await? else {
            return Ok(TickOutcome::Idle);
        };
        Ok(TickOutcome::Ran(run::run(self, claim, stop).await))
    }

    fn rescued(&self, jobs: Vec<(String, JobState)>) {
        self.count(|metrics| metrics.rescued(jobs.len() as u64));
        for (job, state) in jobs {
            tracing::warn!(job, %state, "its worker has ended or was not heard of");
        }
    }

    /// The lock on this machine's processors: two trainings at once would take longer than one after the other.
    fn lock_device(&self) -> Option<Device> {
        let path = self.data_dir.join("device-cpu.lock");
        Device::lock(&path).unwrap_or_else(|error| {
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
