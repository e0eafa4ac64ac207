//! The queue as clients see it: one statement a function. What workers do with it is in [`super::claims`].

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row};
use tokio::sync::Notify;

use super::job::{Job, JobState};
use super::request::TrainRequest;
use super::row::{self, columns};
use crate::access::{self, Actor};
use crate::db::{Database, DbError, new_id, now};

/// The queue of jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queue {
    pub(super) db: Database,
    queued: Arc<Notify>,
}

/// A job to be.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// What is asked for.
    pub request: TrainRequest,
    /// Higher ones first.
    pub priority: i64,
    /// Of the same asker's jobs with the same key there is but one.
    pub idempotency_key: Option<String>,
    /// Most attempts, at least 1.
    pub max_attempts: u32,
    /// Who asks: the id of a key, or `anonymous`.
    pub created_by: String,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// A new job.
    New(Job),
    /// This asker used this key for the same request before: its job as it stands now.
    Same(Job),
}

/// Why the queue did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The idempotency key was used for another request.
    #[error("this idempotency key was used for another request")]
    KeyReused,
    /// There is no such job.
    #[error("there is no such job")]
    NotFound,
    /// The job's state does not allow it.
    #[error("the job is {0}")]
    WrongState(JobState),
}

impl From<sqlx::Error> for QueueError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Which jobs are listed.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// In one of these states; none is any.
    pub states: Vec<JobState>,
    /// That train this adapter.
    pub name: Option<String>,
    /// Older than this job: the last one of the page before.
    pub before: Option<String>,
    /// So many at most.
    pub limit: u32,
}

/// How full the queue is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Jobs by state; a state without jobs may be absent.
    pub by_state: BTreeMap<JobState, u64>,
    /// When the oldest queued job was submitted, in milliseconds since 1970.
    pub oldest_queued_at: Option<i64>,
}

impl QueueCounts {
    /// Jobs in a state.
    pub fn of(&self, state: JobState) -> u64 {
        self.by_state.get(&state).copied().unwrap_or(0)
    }
}

impl Queue {
    /// The queue in a database.
    pub fn new(db: Database) -> Self {
        Self {
            db,
            queued: Arc::default(),
        }
    }

    /// Where it is kept.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Returns when a job was queued through this handle or a clone of it since the last call: what spares a worker in the same
    /// process the rest of its pause.
    pub async fn queued(&self) {
        self.queued.notified().await;
    }

    /// Puts a job into the queue.
    ///
    /// # Errors
    /// When the idempotency key was used for another request, or the database fails.
    pub async fn submit(&self, new: NewJob, actor: &Actor) -> Result<Submitted, QueueError> {
        let mut transaction = self.db.begin().await?;
        // The key is what conflicts: a client that tries again at the same time waits here for the first try to be committed.
        let inserted = sqlx::query(concat!(
            "INSERT INTO jobs (id, kind, state, priority, request, name, dataset, idempotency_key, created_at, created_by, run_after, \
             max_attempts) VALUES ($1, 'train', 'queued', $2, $3, $4, $5, $6, $7, $8, $7, $9) \
             ON CONFLICT (created_by, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING RETURNING ",
            columns!()
        ))
        .bind(new_id())
        .bind(new.priority)
        .bind(to_json(&new.request)?)
        .bind(&new.request.name)
        .bind(&new.request.dataset)
        .bind(&new.idempotency_key)
        .bind(now())
        .bind(&new.created_by)
        .bind(i64::from(new.max_attempts.max(1)))
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(inserted) = inserted else {
            let first = sqlx::query(concat!(
                "SELECT ",
                columns!(),
                " FROM jobs WHERE created_by = $1 AND idempotency_key = $2"
            ))
            .bind(&new.created_by)
            .bind(&new.idempotency_key)
            .fetch_one(&mut *transaction)
            .await?;
            let first = row::job(&first)?;
            if first.request != new.request || first.priority != new.priority {
                return Err(QueueError::KeyReused);
            }
            return Ok(Submitted::Same(first));
        };
        let job = row::job(&inserted)?;
        access::record(&mut transaction, actor, "job.submit", &job.id, None).await?;
        transaction.commit().await?;
        self.queued.notify_one();
        Ok(Submitted::New(job))
    }

    /// A job.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn get(&self, id: &str) -> Result<Option<Job>, DbError> {
        let found = sqlx::query(concat!("SELECT ", columns!(), " FROM jobs WHERE id = $1"))
            .bind(id)
            .fetch_optional(self.db.pool())
            .await?;
        found.as_ref().map(row::job).transpose()
    }

    /// Jobs, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, DbError> {
        let states = match filter.states.as_slice() {
            [] => JobState::ALL.to_vec(),
            states => states.to_vec(),
        };
        // Words of an enumeration, never of a client.
        let states: Vec<String> = states.iter().map(|state| format!("'{state}'")).collect();
        let mut sql = format!(
            concat!("SELECT ", columns!(), " FROM jobs WHERE state IN ({})"),
            states.join(", ")
        );
        let mut values = Vec::new();
        for (condition, value) in [("name =", &filter.name), ("id <", &filter.before)] {
            if let Some(value) = value {
                values.push(value);
                sql.push_str(&format!(" AND {condition} ${}", values.len()));
            }
        }
        sql.push_str(&format!(" ORDER BY id DESC LIMIT {}", filter.limit));
        let query = values
            .into_iter()
            .fold(sqlx::query(AssertSqlSafe(sql)), |query, value| query.bind(value));
        query.fetch_all(self.db.pool()).await?.iter().map(row::job).collect()
    }

    /// Stops a job: a queued one is cancelled at once, a running one by its worker.
    ///
    /// # Errors
    /// When there is no such job, it is finished, or the database fails.
    pub async fn cancel(&self, id: &str, actor: &Actor) -> Result<Job, QueueError> {
        self.change(
            concat!(
                "UPDATE jobs SET state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END, \
                 finished_at = CASE state WHEN 'queued' THEN $2 ELSE finished_at END, \
                 cancel_requested = 1, revision = revision + 1 \
                 WHERE id = $1 AND state IN ('queued', 'running') RETURNING ",
                columns!()
            ),
            id,
            "job.cancel",
            actor,
        )
        .await
    }

    /// Queues a failed or cancelled job again, with all its attempts. It goes on from its last checkpoint.
    ///
    /// # Errors
    /// When there is no such job, it is in another state, or the database fails.
    pub async fn retry(&self, id: &str, actor: &Actor) -> Result<Job, QueueError> {
        let job = self
            .change(
                concat!(
                    "UPDATE jobs SET state = 'queued', attempts = 0, run_after = $2, cancel_requested = 0, error = NULL, \
                     finished_at = NULL, phase = NULL, revision = revision + 1 \
                     WHERE id = $1 AND state IN ('failed', 'cancelled') RETURNING ",
                    columns!()
                ),
                id,
                "job.retry",
                actor,
            )
            .await?;
        self.queued.notify_one();
        Ok(job)
    }

    /// How full the queue is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn counts(&self) -> Result<QueueCounts, DbError> {
        let rows = sqlx::query("SELECT state, COUNT(*) AS jobs, MIN(created_at) AS oldest FROM jobs GROUP BY state")
            .fetch_all(self.db.pool())
            .await?;
        let mut counts = QueueCounts::default();
        for row in rows {
            // A state of a newer program is not ours to count.
            let Ok(state) = row.try_get::<String, _>("state")?.parse::<JobState>() else {
                continue;
            };
            let jobs: i64 = row.try_get("jobs")?;
            counts.by_state.insert(state, jobs.unsigned_abs());
            if state == JobState::Queued {
                counts.oldest_queued_at = row.try_get("oldest")?;
            }
        }
        Ok(counts)
    }

    /// Changes a job by a statement with its id and the time, and records who did it.
    async fn change(&self, statement: &'static str, id: &str, action: &str, actor: &Actor) -> Result<Job, QueueError> {
        let mut transaction = self.db.begin().await?;
        let changed = sqlx::query(statement)
            .bind(id)
            .bind(now())
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(changed) = changed else {
            drop(transaction);
            return Err(match self.get(id).await? {
                Some(job) => QueueError::WrongState(job.state),
                None => QueueError::NotFound,
            });
        };
        access::record(&mut transaction, actor, action, id, None).await?;
        transaction.commit().await?;
        Ok(row::job(&changed)?)
    }
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, DbError> {
    serde_json::to_string(value).map_err(|error| DbError::Statement(sqlx::Error::Encode(error.into())))
}
