//! `/jobs`: what became of `POST /train`.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    paging::{Parameters, time},
    path::InPath,
    problem::{KeptProblems, OneKeptProblems, Problem, Reason},
    state::AppState,
    train::TrainBody,
};
use crate::{
    access::Actor,
    db::now,
    jobs::{
        Job, JobState, Phase,
        queue::{JobFilter, QueueError},
    },
};

/// A training job.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobAnswer {
    /// Its id; sorts by time.
    #[schema(example = "01932b80-1c8e-7d31-9d0a-3c5a5a1f0d22")]
    id: String,
    /// Where it stands.
    status: StatusWord,
    /// What a worker is doing with it, while it is running.
    phase: Option<PhaseWord>,
    /// How far training is, once it has begun.
    progress: Option<ProgressAnswer>,
    /// The version that it registered.
    #[schema(example = "milder@1")]
    adapter: Option<String>,
    /// How the result compares with the version that was active, and what was decided.
    #[schema(value_type = Option<Object>)]
    metrics: Option<Value>,
    /// Why the last attempt failed.
    error: Option<JobErrorAnswer>,
    /// What was asked for, with `evaluate` in numbers.
    #[schema(value_type = TrainBody)]
    request: Value,
    /// Jobs of a higher one are run first.
    priority: i64,
    /// Times it was begun and not handed back.
    attempts: i64,
    /// Times it is begun at most.
    max_attempts: i64,
    /// Whether it was told to stop; a running job stops within a step.
    cancel_requested: bool,
    /// Step of the last checkpoint, from which another attempt goes on.
    checkpoint_step: Option<i64>,
    /// When it was accepted.
    #[schema(format = "date-time")]
    created_at: String,
    /// Who asked for it: the id of a key, or `anonymous`.
    created_by: String,
    /// When it was first begun.
    #[schema(format = "date-time")]
    started_at: Option<String>,
    /// When nothing more was to happen to it.
    #[schema(format = "date-time")]
    finished_at: Option<String>,
    /// When it is tried again, for a queued job that has failed before.
    #[schema(format = "date-time")]
    retry_at: Option<String>,
    /// When its worker was last heard of.
    #[schema(format = "date-time")]
    heartbeat_at: Option<String>,
    /// The worker that has it, or had it last.
    worker: Option<String>,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum StatusWord {
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

/// What a worker is doing: `preparing` data and checkpoint, `training`, `evaluating`, or `registering` the result.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PhaseWord {
    Preparing,
    Training,
    Evaluating,
    Registering,
}

/// How far training is.
#[derive(Debug, Serialize, ToSchema)]
struct ProgressAnswer {
    /// Optimizer steps made.
    step: u64,
    /// Of how many.
    steps: u64,
    /// The objective's value at that step.
    loss: f64,
    /// Over the whole run.
    tokens_per_second: f64,
    /// What is left at that speed.
    eta_seconds: f64,
}

/// Why an attempt failed.
#[derive(Debug, Serialize, ToSchema)]
struct JobErrorAnswer {
    /// A word that stays the same over versions: `invalid`, `diverged`, `failed`, `killed`, `lost`, `evaluation`, `registration`.
    #[schema(example = "diverged")]
    kind: String,
    /// What happened.
    message: String,
}

/// Jobs, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    /// The jobs of this page.
    jobs: Vec<JobAnswer>,
    /// `before` of the next page, when there is one.
    next: Option<String>,
}

impl From<Job> for JobAnswer {
    fn from(job: Job) -> Self {
        let waits = job.state == JobState::Queued && job.run_after > now();
        Self {
            id: job.id,
            status: job.state.into(),
            phase: job.phase.filter(|_| job.state == JobState::Running).map(Into::into),
            progress: job.progress.map(|progress| ProgressAnswer {
                step: progress.step,
                steps: progress.steps,
                loss: progress.loss,
                tokens_per_second: progress.tokens_per_second,
                eta_seconds: progress.eta_seconds,
            }),
            adapter: job.adapter.map(|version| version.to_string()),
            metrics: job.metrics,
            error: job.error.map(|error| JobErrorAnswer {
                kind: error.kind,
                message: error.message,
            }),
            request: serde_json::to_value(&job.request).unwrap_or_default(),
            priority: job.priority,
            attempts: job.attempts,
            max_attempts: job.max_attempts,
            cancel_requested: job.cancel_requested,
            checkpoint_step: job.checkpoint.map(|(_, step)| step),
            created_at: time(job.created_at),
            created_by: job.created_by,
            started_at: job.started_at.map(time),
            finished_at: job.finished_at.map(time),
            retry_at: waits.then(|| time(job.run_after)),
            heartbeat_at: job.heartbeat_at.map(time),
            worker: job.worker,
        }
    }
}

impl From<JobState> for StatusWord {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Queued => Self::Queued,
            JobState::Running => Self::Running,
            JobState::Succeeded => Self::Succeeded,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<Phase> for PhaseWord {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Preparing => Self::Preparing,
            Phase::Training => Self::Training,
            Phase::Evaluating => Self::Evaluating,
            Phase::Registering => Self::Registering,
        }
    }
}

/// List jobs
#[utoipa::path(
    get,
    path = "/jobs",
    tag = "training",
    params(
        ("status" = Option<String>, Query, example = "queued,running", description = "In one of these states, separated by commas"),
        ("name" = Option<String>, Query, description = "That train this adapter"),
        ("before" = Option<String>, Query, description = "Older than this one: `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Most of a page; 50 without it"),
    ),
    responses((status = 200, description = "A page of them", body = JobList), KeptProblems)
)]
pub async fn list(State(state): State<Arc<AppState>>, mut parameters: Parameters) -> Result<Json<JobList>, Problem> {
    let mut states = Vec::new();
    for word in parameters.text("status").iter().flat_map(|list| list.split(',')) {
        match word.parse::<JobState>() {
            Ok(state) => states.push(state),
            Err(error) => parameters.error("status", error),
        }
    }
    let name = parameters.text("name");
    let page = parameters.only_page()?;
    let filter = JobFilter {
        states,
        name,
        before: page.before.clone(),
        limit: page.look_ahead(),
    };
    let mut found = state.backend.jobs.list(&filter).await?;
    let next = page.cut(&mut found, |job| &job.id);
    Ok(Json(JobList {
        jobs: found.into_iter().map(Into::into).collect(),
        next,
    }))
}

/// Look at a job
#[utoipa::path(
    get,
    path = "/jobs/{id}",
    tag = "training",
    params(("id" = String, Path, description = "Of the job")),
    responses((status = 200, description = "The job", body = JobAnswer), OneKeptProblems)
)]
pub async fn show(State(state): State<Arc<AppState>>, InPath(id): InPath<String>) -> Result<Json<JobAnswer>, Problem> {
    let found = state.backend.jobs.get(&id).await?;
    Ok(Json(found.ok_or(QueueError::NotFound)?.into()))
}

/// Stop a job
///
/// A queued job is cancelled at once, a running one stops within a step; what it has learnt stays in its last checkpoint.
#[utoipa::path(
    post,
    path = "/jobs/{id}/cancel",
    tag = "training",
    params(("id" = String, Path, description = "Of the job")),
    responses(
        (status = 200, description = "The job: `cancelled`, or `running` with `cancel_requested`", body = JobAnswer),
        (status = 409, description = "It is finished", body = Problem, content_type = "application/problem+json"),
        OneKeptProblems,
    )
)]
pub async fn cancel(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(id): InPath<String>,
) -> Result<Json<JobAnswer>, Problem> {
    Ok(Json(state.backend.jobs.cancel(&id, &actor).await?.into()))
}

/// Try a job again
///
/// A failed or cancelled job is queued with all its attempts, and goes on from its last checkpoint.
#[utoipa::path(
    post,
    path = "/jobs/{id}/retry",
    tag = "training",
    params(("id" = String, Path, description = "Of the job")),
    responses(
        (status = 200, description = "The job, `queued`", body = JobAnswer),
        (status = 409, description = "It has neither failed nor been cancelled", body = Problem, content_type = "application/problem+json"),
        OneKeptProblems,
    )
)]
pub async fn retry(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(id): InPath<String>,
) -> Result<Json<JobAnswer>, Problem> {
    Ok(Json(state.backend.jobs.retry(&id, &actor).await?.into()))
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Db(error) => error.into(),
            QueueError::KeyReused => Self::new(Reason::Conflict, error.to_string()),
            QueueError::NotFound => Self::new(Reason::NotFound, "there is no job of this id"),
            QueueError::WrongState(state) => Self::new(
                Reason::Conflict,
                format!(
                    "the job is {state}; a queued or running job can be cancelled, a failed or cancelled one tried again"
                ),
            ),
        }
    }
}
