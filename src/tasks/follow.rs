//! Follows the last deployment, whoever made it: loads what it needs, changes over, and says so in the database.
//!
//! **Invariant:** what is served stays as it is for as long as what is wanted can't be had, or is not known.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::adapters::{Deployment, LeaseError, Registry, Replica, Residents};
use crate::db::{DbError, new_id, now};

/// Longest time between two tries of what failed.
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// Time between two notes in the database when nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// A process that was not heard of for so long is forgotten, in milliseconds.
const FORGOTTEN: i64 = 3_600_000;

/// Follows deployments for one process.
pub struct Follower {
    residents: Arc<Residents>,
    registry: Registry,
    replica: Replica,
    interval: Duration,
    /// What was last written to the database, and when.
    reported: Option<(Replica, Instant)>,
    failures: u32,
    /// Not before this time is a failed change tried again, unless there is a newer one.
    not_before: Option<(i64, Instant)>,
}

/// What one look came to.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to do.
    UpToDate,
    /// New requests get something else.
    Switched(Deployment),
    /// It can't be followed; what was served still is.
    Failed(LeaseError),
    /// It failed before, and its next try is not yet due.
    Waiting,
}

impl Follower {
    /// For a process that serves `residents`, with a look every `interval`. None when they come from no registry.
    pub fn new(residents: Arc<Residents>, interval: Duration) -> Option<Self> {
        let loader = residents.loader()?;
        let replica = Replica {
            id: new_id(),
            base: loader.base().name.clone(),
            revision: residents.revision(),
            active: residents.active().version().clone(),
            error: None,
            seen_at: 0,
        };
        Some(Self {
            registry: loader.registry().clone(),
            residents,
            replica,
            interval,
            reported: None,
            failures: 0,
            not_before: None,
        })
    }

    /// Looks at once, when `notified`, and every interval, until told to stop.
    pub async fn run(mut self, notified: Arc<Notify>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = async { self.tick().await; } => {}
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = notified.notified() => {}
                () = stop.cancelled() => break,
            }
        }
        // A process that ends is no replica. Without a database it is forgotten in an hour.
        let _ = self.registry.forget_replicas(0, Some(&self.replica.id)).await;
    }

    /// One look.
    pub async fn tick(&mut self) -> Outcome {
        let outcome = self.look().await;
        match &outcome {
            Outcome::UpToDate | Outcome::Switched(_) => {
                if self.failures > 0 {
                    tracing::info!(failures = self.failures, "following deployments again");
                }
                (self.failures, self.not_before, self.replica.error) = (0, None, None);
            }
            Outcome::Failed(error) => {
                self.replica.error = Some(error.to_string());
                // A database that is away says nothing of a revision: the next look asks again.
                if !matches!(error, LeaseError::Db(_)) {
                    let wait = self
                        .interval
                        .saturating_mul(1 << self.failures.min(16))
                        .min(MOST_PATIENCE);
                    let revision = self.not_before.map_or(0, |(revision, _)| revision);
                    self.not_before = Some((revision, Instant::now() + wait));
                    tracing::warn!(%error, wait_seconds = wait.as_secs_f64(), "a deployment can't be followed yet");
                } else if self.failures == 0 {
                    tracing::warn!(%error, "the deployments can't be read; what is served stays");
                }
                self.failures = self.failures.saturating_add(1);
            }
            Outcome::Waiting => {}
        }
        if let Err(error) = self.report().await {
            tracing::debug!(%error, "what is served here can't be noted");
        }
        outcome
    }

    async fn look(&mut self) -> Outcome {
        let last = match self.registry.deployment().await {
            Ok(Some(last)) => last,
            Ok(None) => return Outcome::UpToDate,
            Err(error) => return Outcome::Failed(error.into()),
        };
        if let Some((revision, due)) = self.not_before
            && revision == last.revision
            && Instant::now() < due
        {
            return Outcome::Waiting;
        }
        self.not_before = Some((last.revision, Instant::now()));
        self.residents.is_to_follow(last.revision);
        match self.residents.follow(&last).await {
            Ok(true) => Outcome::Switched(last),
            Ok(false) => self
                .forget_deleted()
                .await
                .map_or_else(Outcome::Failed, |()| Outcome::UpToDate),
            Err(error) => {
                if let Some(loader) = self.residents.loader() {
                    loader.metrics().activated("failed");
                }
                Outcome::Failed(error)
            }
        }
    }

    /// Lets go of versions that were asked for by name here and deleted elsewhere.
    async fn forget_deleted(&self) -> Result<(), LeaseError> {
        for version in self.residents.kept() {
            if self.registry.get(&version).await?.is_none() {
                self.residents.forget(&version);
            }
        }
        Ok(())
    }

    /// Notes what is served here, when it has changed or was noted long ago.
    async fn report(&mut self) -> Result<(), DbError> {
        self.replica.revision = self.residents.revision();
        self.replica.active = self.residents.active().version().clone();
        let is_known = self
            .reported
            .as_ref()
            .is_some_and(|(replica, at)| *replica == self.replica && at.elapsed() < HEARTBEAT);
        if is_known {
            return Ok(());
        }
        self.registry.report(&self.replica).await?;
        self.registry.forget_replicas(now() - FORGOTTEN, None).await?;
        self.reported = Some((self.replica.clone(), Instant::now()));
        Ok(())
    }
}
