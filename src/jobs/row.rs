//! A row of the table `jobs` as a [`Job`].

use sqlx::Row;
use sqlx::any::AnyRow;

use super::job::{Job, JobState, Phase, Progress};
use crate::adapters::AdapterVersion;
use crate::db::DbError;

/// The columns that [`job`] reads, for `SELECT` and `RETURNING`.
macro_rules! columns {
    () => {
        "id, state, priority, request, created_at, created_by, run_after, attempts, max_attempts, cancel_requested, epoch, \
         worker, heartbeat_at, started_at, finished_at, phase, step, steps, loss, tokens_per_second, eta_seconds, checkpoint, \
         checkpoint_step, metrics, error, adapter_name, adapter_number, revision"
    };
}
pub(super) use columns;

/// Reads a row.
///
/// # Errors
/// When a column holds what no version of this program writes.
pub(super) fn job(row: &AnyRow) -> Result<Job, DbError> {
    let step: Option<i64> = row.try_get("step")?;
    Ok(Job {
        id: row.try_get("id")?,
        state: word(row, "state")?.ok_or_else(|| malformed("state", "it is empty"))?,
        priority: row.try_get("priority")?,
        request: json(row, "request")?.ok_or_else(|| malformed("request", "it is empty"))?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        run_after: row.try_get("run_after")?,
        attempts: row.try_get("attempts")?,
        max_attempts: row.try_get("max_attempts")?,
        cancel_requested: row.try_get::<i64, _>("cancel_requested")? != 0,
        epoch: row.try_get("epoch")?,
        worker: row.try_get("worker")?,
        heartbeat_at: row.try_get("heartbeat_at")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        phase: word(row, "phase")?,
        progress: match step {
            None => None,
            Some(step) => Some(Progress {
                step: step.unsigned_abs(),
                steps: row.try_get::<i64, _>("steps")?.unsigned_abs(),
                loss: row.try_get("loss")?,
                tokens_per_second: row.try_get("tokens_per_second")?,
                eta_seconds: row.try_get("eta_seconds")?,
            }),
        },
        checkpoint: row
            .try_get::<Option<String>, _>("checkpoint")?
            .zip(row.try_get("checkpoint_step")?),
        metrics: json(row, "metrics")?,
        error: json(row, "error")?,
        adapter: adapter(row)?,
        revision: row.try_get("revision")?,
    })
}

fn adapter(row: &AnyRow) -> Result<Option<AdapterVersion>, DbError> {
    let name: Option<String> = row.try_get("adapter_name")?;
    let number: Option<i64> = row.try_get("adapter_number")?;
    let Some((name, number)) = name.zip(number) else {
        return Ok(None);
    };
    let number = u32::try_from(number).map_err(|error| malformed("adapter_number", &error.to_string()))?;
    Ok(Some(AdapterVersion::new(name, number)))
}

fn word<T: Word>(row: &AnyRow, column: &str) -> Result<Option<T>, DbError> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| T::read(&text).ok_or_else(|| malformed(column, "unknown word")))
        .transpose()
}

trait Word: Sized {
    fn read(text: &str) -> Option<Self>;
}

impl Word for JobState {
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Word for Phase {
    fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text)
    }
}

fn json<T: serde::de::DeserializeOwned>(row: &AnyRow, column: &str) -> Result<Option<T>, DbError> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|error| malformed(column, &error.to_string())))
        .transpose()
}

fn malformed(column: &str, reason: &str) -> DbError {
    DbError::Statement(sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: reason.to_owned().into(),
    })
}
