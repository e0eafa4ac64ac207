//! A job as it is kept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::request::TrainRequest;
use crate::adapters::AdapterVersion;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for a worker, or for the time of its next attempt.
    Queued,
    /// A worker has it.
    Running,
    /// Done.
    Succeeded,
    /// Given up; `error` says why.
    Failed,
    /// Stopped because somebody asked for it.
    Cancelled,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its word in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens to it by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No state's word.
#[derive(Debug, thiserror::Error)]
#[error("expected queued, running, succeeded, failed or cancelled")]
pub struct UnknownState;

impl FromStr for JobState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(UnknownState)
    }
}

/// What a worker is doing with a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Fetches data and the last checkpoint.
    Preparing,
    /// Trains.
    Training,
    /// Compares the result with the active adapter.
    Evaluating,
    /// Puts the result into the registry.
    Registering,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Preparing, Self::Training, Self::Evaluating, Self::Registering];

    /// Its word in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
            Self::Registering => "registering",
        }
    }
}

/// How far a training run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps made.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// The objective's value at that step.
    pub loss: f64,
    /// Over the whole run.
    pub tokens_per_second: f64,
    /// What is left at that speed.
    pub eta_seconds: f64,
}

/// Why a job failed, in its last attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A word that stays the same over versions: `invalid` (the request or its data can't work), `diverged`, `failed` (the training
    /// process ended with an error), `killed` (by a signal), `lost` (the worker was not heard of), `evaluation`, `registration`.
    pub kind: String,
    /// What happened, without any text of the data.
    pub message: String,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// A UUID; sorts by time.
    pub id: String,
    /// Where it stands.
    pub state: JobState,
    /// Higher ones first.
    pub priority: i64,
    /// What was asked for.
    pub request: TrainRequest,
    /// Milliseconds since 1970, as all times here.
    pub created_at: i64,
    /// Who asked: the id of a key, or `anonymous`.
    pub created_by: String,
    /// Not to be claimed before.
    pub run_after: i64,
    /// Times it was claimed and not handed back.
    pub attempts: i64,
    /// Most attempts.
    pub max_attempts: i64,
    /// Whether it is to be stopped.
    pub cancel_requested: bool,
    /// Counts the claims.
    pub epoch: i64,
    /// Who has it, or had it last.
    pub worker: Option<String>,
    /// When the worker was last heard of.
    pub heartbeat_at: Option<i64>,
    /// First claim.
    pub started_at: Option<i64>,
    /// When it became final.
    pub finished_at: Option<i64>,
    /// What the worker is doing.
    pub phase: Option<Phase>,
    /// How far training is.
    pub progress: Option<Progress>,
    /// Key of the last checkpoint in the store, and its step.
    pub checkpoint: Option<(String, i64)>,
    /// Metrics of the evaluation and the decision, once there.
    pub metrics: Option<serde_json::Value>,
    /// Why the last attempt failed.
    pub error: Option<JobError>,
    /// What it registered.
    pub adapter: Option<AdapterVersion>,
    /// Counts the changes of the job.
    pub revision: i64,
}
