//! Shows in `/metrics` what the database says of jobs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::db::{self, DbError};
use crate::jobs::{JobFilter, JobMetrics, JobState, Queue};

/// Time between two looks: shorter than the usual 15 s between two scrapes.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long a look may take: a connection to a server that is gone without a word stays silent for minutes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Running jobs that are looked at: one a machine, so more than there will be.
const MAX_RUNNING: u32 = 256;

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
}

/// Looks at once and then every few seconds, until `stop` is cancelled. A database that is away is said once, and shows as
/// `detoxd_database_up 0`.
pub async fn run(queue: Queue, metrics: JobMetrics, stop: CancellationToken) {
    run_every(INTERVAL, queue, metrics, stop).await;
}

/// [`run`], with another time between two looks.
pub async fn run_every(interval: Duration, queue: Queue, metrics: JobMetrics, stop: CancellationToken) {
    let mut away = false;
    let looking = async {
        loop {
            let looked = look(&queue, &metrics).await;
            match &looked {
                Ok(()) if away => tracing::info!("the database is back"),
                Err(error) if !away => tracing::warn!(%error, "the state of jobs can't be read; trying again"),
                Ok(()) | Err(_) => {}
            }
            away = looked.is_err();
            if away {
                metrics.database_is_away();
            }
            tokio::time::sleep(interval).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

async fn look(queue: &Queue, metrics: &JobMetrics) -> Result<(), LookError> {
    let filter = JobFilter {
        states: vec![JobState::Running],
        limit: MAX_RUNNING,
        ..JobFilter::default()
    };
    let asked = async { Ok::<_, DbError>((queue.counts().await?, queue.list(&filter).await?)) };
    let (counts, running) = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| LookError::Late)??;
    metrics.observe(&counts, &running, db::now());
    Ok(())
}
