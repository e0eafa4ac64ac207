//! The jobs that a process runs, and how.

use std::time::Duration;

use super::{ConfigError, JobSettings, server::time};

/// The jobs that a process runs, and how.
#[derive(Debug, Clone)]
pub struct JobsConfig {
    /// Whether `serve` runs any.
    pub run: bool,
    /// Threads of a training process; `None` is one for each physical core.
    pub threads: Option<usize>,
    /// Niceness of a training process, 0 to 19.
    pub niceness: u8,
    /// Time between two checkpoints.
    pub checkpoint_interval: Duration,
    /// Time after which a worker that is not heard of has lost its job.
    pub lease: Duration,
    /// Times a job is tried.
    pub max_attempts: u32,
}

impl TryFrom<JobSettings> for JobsConfig {
    type Error = ConfigError;

    fn try_from(raw: JobSettings) -> Result<Self, ConfigError> {
        if raw.train_threads == Some(0) {
            return Err(ConfigError::invalid("train_threads", 0, "must be at least 1"));
        }
        if raw.train_niceness > 19 {
            return Err(ConfigError::invalid(
                "train_niceness",
                raw.train_niceness,
                "must be 0 to 19",
            ));
        }
        if raw.max_attempts == 0 {
            return Err(ConfigError::invalid("max_attempts", 0, "must be at least 1"));
        }
        let lease = time("lease", &raw.lease)?;
        if lease < Duration::from_secs(3) {
            return Err(ConfigError::invalid("lease", raw.lease, "must be at least `3s`"));
        }
        Ok(Self {
            run: raw.run_jobs,
            threads: raw.train_threads,
            niceness: raw.train_niceness,
            checkpoint_interval: time("checkpoint_interval", &raw.checkpoint_interval)?,
            lease,
            max_attempts: raw.max_attempts,
        })
    }
}
