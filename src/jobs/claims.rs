//! The queue as workers see it: one statement a function.
//!
//! Who runs a job holds a [`Claim`]. All that its worker writes names the claim's epoch and the worker and asks that the job is
//! still running; a claim that is lost writes nothing, however late its worker wakes up.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe, Row, Transaction};

use super::job::{Job, JobError, JobState, Phase, Progress};
use super::queue::{Queue, to_json};
use super::row::{self, columns};
use crate::adapters::AdapterVersion;
use crate::db::{DbError, now};

/// First pause after a failed attempt is twice this, each further one twice the one before.
const BACKOFF: Duration = Duration::from_secs(5);
/// Longest pause after a failed attempt.
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// The condition of every write of a worker.
macro_rules! held {
    () => {
        " WHERE id = $1 AND epoch = $2 AND worker = $3 AND state = 'running'"
    };
}

/// A job in the hands of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The job as it was when it was claimed.
    pub job: Job,
    /// Which claim of the job it is, counted from 1.
    pub epoch: i64,
    /// Whose it is: an id of the worker's process, new at each start.
    pub worker: String,
}

/// Why a worker's write did not count.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The job is no longer this worker's: its lease ran out and another has it, or had it.
    #[error("the job is no longer this worker's")]
    Lost,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for ClaimError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// What a worker hears of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeat {
    /// It holds.
    Held {
        /// Somebody wants the job stopped.
        cancel_requested: bool,
    },
    /// The job is no longer this worker's.
    Lost,
}

/// What a failed attempt means for its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healing {
    /// Another try may go well.
    Possible,
    /// Another try would fail in the same way.
    Impossible,
}

impl Queue {
    /// Takes the next job that is due: of those with the highest priority the one that was submitted first. `None` when none is
    /// due. It is the worker's for as long as `lease`, and longer by heartbeats.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim(&self, worker: &str, lease: Duration) -> Result<Option<Claim>, DbError> {
        let skip_locked = self.db.dialect().skip_locked();
        let statement = format!(
            concat!(
                "UPDATE jobs SET state = 'running', worker = $1, lease_until = $2, heartbeat_at = $3, epoch = epoch + 1, \
                 attempts = attempts + 1, started_at = COALESCE(started_at, $3), phase = 'preparing', revision = revision + 1 \
                 WHERE id = (SELECT id FROM jobs WHERE state = 'queued' AND run_after <= $3 \
                 ORDER BY priority DESC, id LIMIT 1 {skip_locked}) RETURNING ",
                columns!()
            ),
            skip_locked = skip_locked
        );
        let now = now();
        let claimed = sqlx::query(AssertSqlSafe(statement))
            .bind(worker)
            .bind(now + milliseconds(lease))
            .bind(now)
            .fetch_optional(self.db.pool())
            .await?;
        let Some(claimed) = claimed else {
            return Ok(None);
        };
        let job = row::job(&claimed)?;
        Ok(Some(Claim {
            epoch: job.epoch,
            worker: worker.to_owned(),
            job,
        }))
    }

    /// Says that the worker is alive, and hears whether the job is still its own.
    ///
    /// # Errors
    /// When the database fails: then it is not known.
    pub async fn heartbeat(&self, claim: &Claim, lease: Duration) -> Result<Heartbeat, DbError> {
        let now = now();
        let held = of(
            claim,
            concat!(
                "UPDATE jobs SET lease_until = $4, heartbeat_at = $5",
                held!(),
                " RETURNING cancel_requested"
            ),
        )
        .bind(now + milliseconds(lease))
        .bind(now)
        .fetch_optional(self.db.pool())
        .await?;
        Ok(match held {
            Some(row) => Heartbeat::Held {
                cancel_requested: row.try_get::<i64, _>("cancel_requested")? != 0,
            },
            None => Heartbeat::Lost,
        })
    }

    /// Records how far training is.
    ///
    /// # Errors
    /// When the claim is lost or the database fails.
    pub async fn progress(&self, claim: &Claim, progress: &Progress) -> Result<(), ClaimError> {
        let statement = concat!(
            "UPDATE jobs SET step = $4, steps = $5, loss = $6, tokens_per_second = $7, eta_seconds = $8, revision = revision + 1",
            held!()
        );
        let query = of(claim, statement)
            .bind(integer(progress.step))
            .bind(integer(progress.steps))
            .bind(progress.loss)
            .bind(progress.tokens_per_second)
            .bind(progress.eta_seconds);
        counted(query.execute(self.db.pool()).await?.rows_affected())
    }

    /// Records what the worker is doing.
    ///
    /// # Errors
    /// When the claim is lost or the database fails.
    pub async fn phase(&self, claim: &Claim, phase: Phase) -> Result<(), ClaimError> {
        let statement = concat!("UPDATE jobs SET phase = $4, revision = revision + 1", held!());
        let query = of(claim, statement).bind(phase.as_str());
        counted(query.execute(self.db.pool()).await?.rows_affected())
    }

    /// Records a checkpoint that is in the store. Returns the key of the one before, which nobody needs any more.
    ///
    /// # Errors
    /// When the claim is lost or the database fails: then the checkpoint must be taken for not recorded.
    pub async fn checkpoint(&self, claim: &Claim, key: &str, step: u64) -> Result<Option<String>, ClaimError> {
        let mut transaction = self.db.begin().await?;
        let before = of(claim, concat!("SELECT checkpoint FROM jobs", held!()))
            .fetch_optional(&mut *transaction)
            .await?;
        let before: Option<String> = before.ok_or(ClaimError::Lost)?.try_get("checkpoint")?;
        let statement = concat!(
            "UPDATE jobs SET checkpoint = $4, checkpoint_step = $5, revision = revision + 1",
            held!()
        );
        let query = of(claim, statement).bind(key).bind(integer(step));
        counted(query.execute(&mut *transaction).await?.rows_affected())?;
        transaction.commit().await?;
        Ok(before.filter(|before| before != key))
    }

    /// Hands a job back without spending an attempt: the worker is to end. A job that is to be stopped is cancelled instead.
    ///
    /// # Errors
    /// When the claim is lost or the database fails.
    pub async fn release(&self, claim: &Claim) -> Result<JobState, ClaimError> {
        self.leave(
            claim,
            concat!(
                "UPDATE jobs SET state = CASE cancel_requested WHEN 1 THEN 'cancelled' ELSE 'queued' END, \
                 finished_at = CASE cancel_requested WHEN 1 THEN $4 ELSE finished_at END, attempts = attempts - 1, run_after = $4, \
                 lease_until = NULL, phase = NULL, revision = revision + 1",
                held!(),
                " RETURNING state"
            ),
            None,
        )
        .await
    }

    /// Ends an attempt that failed: the job is tried again after a pause when that may heal it and attempts are left, else it has
    /// failed. Returns where it stands now.
    ///
    /// # Errors
    /// When the claim is lost or the database fails.
    pub async fn fail(&self, claim: &Claim, error: &JobError, healing: Healing) -> Result<JobState, ClaimError> {
        let error = to_json(error)?;
        let tried_again = healing == Healing::Possible && claim.job.attempts < claim.job.max_attempts;
        if !tried_again {
            let statement = concat!(
                "UPDATE jobs SET state = 'failed', finished_at = $4, error = $5, lease_until = NULL, phase = NULL, \
                 revision = revision + 1",
                held!(),
                " RETURNING state"
            );
            return self.leave(claim, statement, Some(&error)).await;
        }
        let pause = backoff(&claim.job.id, claim.job.attempts);
        let statement = concat!(
            "UPDATE jobs SET state = CASE cancel_requested WHEN 1 THEN 'cancelled' ELSE 'queued' END, \
             finished_at = CASE cancel_requested WHEN 1 THEN $4 ELSE finished_at END, error = $5, run_after = $6, \
             lease_until = NULL, phase = NULL, revision = revision + 1",
            held!(),
            " RETURNING state"
        );
        let now = now();
        let query = of(claim, statement)
            .bind(now)
            .bind(error)
            .bind(now + milliseconds(pause));
        state(query.fetch_optional(self.db.pool()).await?)
    }

    /// Ends a job that was to be stopped.
    ///
    /// # Errors
    /// When the claim is lost or the database fails.
    pub async fn cancelled(&self, claim: &Claim) -> Result<JobState, ClaimError> {
        self.leave(
            claim,
            concat!(
                "UPDATE jobs SET state = 'cancelled', finished_at = $4, lease_until = NULL, phase = NULL, revision = revision + 1",
                held!(),
                " RETURNING state"
            ),
            None,
        )
        .await
    }

    /// Takes jobs away from workers that were not heard of within their lease. The attempt is spent: a job that ends every worker
    /// it meets does not go round for ever, it has failed after its last attempt, of an error of the kind `lost`. Returns the
    /// jobs and where they stand now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rescue(&self) -> Result<Vec<(String, JobState)>, DbError> {
        self.take_away(None).await
    }

    /// Takes its jobs away from a worker that is known to have ended, without waiting for the lease: otherwise as [`Queue::rescue`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rescue_from(&self, worker: &str) -> Result<Vec<(String, JobState)>, DbError> {
        self.take_away(Some(worker)).await
    }

    async fn take_away(&self, worker: Option<&str>) -> Result<Vec<(String, JobState)>, DbError> {
        let lost = JobError {
            kind: "lost".to_owned(),
            message: match worker {
                Some(_) => "the worker ended in the middle of it".to_owned(),
                None => "the worker was not heard of within its lease".to_owned(),
            },
        };
        let rows = sqlx::query(
            "UPDATE jobs SET state = CASE WHEN cancel_requested = 1 THEN 'cancelled' WHEN attempts >= max_attempts THEN 'failed' \
             ELSE 'queued' END, \
             finished_at = CASE WHEN cancel_requested = 1 OR attempts >= max_attempts THEN $1 ELSE finished_at END, \
             error = CASE WHEN cancel_requested = 1 THEN error ELSE $2 END, \
             run_after = $1, lease_until = NULL, phase = NULL, revision = revision + 1 \
             WHERE state = 'running' AND (lease_until < $1 OR worker = $3) RETURNING id, state",
        )
        .bind(now())
        .bind(to_json(&lost)?)
        .bind(worker)
        .fetch_all(self.db.pool())
        .await?;
        rows.into_iter()
            .map(|row| Ok((row.try_get("id")?, word(&row)?)))
            .collect()
    }

    async fn leave(&self, claim: &Claim, statement: &'static str, error: Option<&str>) -> Result<JobState, ClaimError> {
        let mut query = of(claim, statement).bind(now());
        if let Some(error) = error {
            query = query.bind(error.to_owned());
        }
        state(query.fetch_optional(self.db.pool()).await?)
    }
}

/// Makes sure, at the beginning of the transaction that finishes a job, that the claim holds until its end.
///
/// # Errors
/// When the claim is lost or the database fails.
pub async fn hold(transaction: &mut Transaction<'_, Any>, claim: &Claim) -> Result<(), ClaimError> {
    let query = of(claim, concat!("UPDATE jobs SET revision = revision + 1", held!()));
    counted(query.execute(&mut **transaction).await?.rows_affected())
}

/// Ends a job well, as part of the transaction that registers what it made. Returns the key of its last checkpoint, which nobody
/// needs once the transaction is committed.
///
/// # Errors
/// When the claim is lost or the database fails.
pub async fn succeed(
    transaction: &mut Transaction<'_, Any>,
    claim: &Claim,
    adapter: &AdapterVersion,
    metrics: Option<&serde_json::Value>,
) -> Result<Option<String>, ClaimError> {
    let checkpoint = of(claim, concat!("SELECT checkpoint FROM jobs", held!()))
        .fetch_optional(&mut **transaction)
        .await?;
    let checkpoint = checkpoint.ok_or(ClaimError::Lost)?.try_get("checkpoint")?;
    let statement = concat!(
        "UPDATE jobs SET state = 'succeeded', finished_at = $4, adapter_name = $5, adapter_number = $6, metrics = $7, error = NULL, \
         checkpoint = NULL, checkpoint_step = NULL, lease_until = NULL, phase = NULL, revision = revision + 1",
        held!()
    );
    let query = of(claim, statement)
        .bind(now())
        .bind(adapter.name().to_owned())
        .bind(i64::from(adapter.number()))
        .bind(metrics.map(to_json).transpose()?);
    counted(query.execute(&mut **transaction).await?.rows_affected())?;
    Ok(checkpoint)
}

fn of<'q>(claim: &'q Claim, statement: &'static str) -> Query<'q, Any, AnyArguments> {
    sqlx::query(statement)
        .bind(&claim.job.id)
        .bind(claim.epoch)
        .bind(&claim.worker)
}

fn counted(rows: u64) -> Result<(), ClaimError> {
    match rows {
        0 => Err(ClaimError::Lost),
        _ => Ok(()),
    }
}

fn state(row: Option<sqlx::any::AnyRow>) -> Result<JobState, ClaimError> {
    Ok(word(&row.ok_or(ClaimError::Lost)?)?)
}

fn word(row: &sqlx::any::AnyRow) -> Result<JobState, DbError> {
    let word: String = row.try_get("state")?;
    word.parse().map_err(|error: super::job::UnknownState| {
        DbError::Statement(sqlx::Error::ColumnDecode {
            index: "state".to_owned(),
            source: error.into(),
        })
    })
}

fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The pause after attempt `attempts` of a job: it doubles with each, and jobs that failed together come back apart.
fn backoff(job: &str, attempts: i64) -> Duration {
    let doublings = u32::try_from(attempts.clamp(0, 20)).unwrap_or(0);
    let pause = BACKOFF
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(LONGEST_BACKOFF);
    let hash = Sha256::digest(format!("{job}/{attempts}"));
    let share = f64::from(hash[0]) / 255.0;
    pause.mul_f64(0.75 + 0.25 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_and_differ_between_jobs() {
        for (attempts, most) in [(1, 10), (2, 20), (3, 40), (9, 300), (60, 300)] {
            let pauses: Vec<f64> = (0..50)
                .map(|job| backoff(&job.to_string(), attempts).as_secs_f64())
                .collect();
            let most = f64::from(most);
            assert!(
                pauses.iter().all(|&pause| pause <= most && pause >= 0.75 * most),
                "{attempts}: {pauses:?}"
            );
            assert!(pauses.iter().any(|&pause| pause < 0.85 * most) && pauses.iter().any(|&pause| pause > 0.9 * most));
        }
    }
}
