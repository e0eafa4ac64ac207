//! The heartbeat of a claim: from a thread of its own with a connection of its own, so that nothing the worker does can stop it.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::claims::{Claim, Heartbeat};
use super::queue::Queue;
use crate::db::Database;

/// Heartbeats a lease.
const BEATS: u32 = 5;
/// Longest pause between two tries while the database is away: whoever comes first when it is back has the job.
const RETRY: Duration = Duration::from_millis(500);

/// A heart that beats for a claim until it is dropped.
#[derive(Debug)]
pub struct Heart {
    heard: watch::Receiver<Heartbeat>,
    end: CancellationToken,
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Heart {
    /// Begins to beat.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(db: &Database, claim: &Claim, lease: Duration) -> std::io::Result<Self> {
        let held = Heartbeat::Held {
            cancel_requested: claim.job.cancel_requested,
        };
        let (tell, heard) = watch::channel(held);
        let end = CancellationToken::new();
        let beating = Beating {
            claim: claim.clone(),
            lease,
            tell,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (db, ended) = (db.clone(), end.clone());
        std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let queue = Queue::new(db.apart());
                    ended.run_until_cancelled(beating.beat(&queue)).await;
                });
            })?;
        Ok(Self { heard, end })
    }

    /// Returns when the job is no longer this worker's, or is to be stopped: what was heard then.
    pub async fn interrupted(&self) -> Heartbeat {
        let mut heard = self.heard.clone();
        let interrupts = |heard: &Heartbeat| {
            *heard
                != Heartbeat::Held {
                    cancel_requested: false,
                }
        };
        match heard.wait_for(interrupts).await {
            Ok(heard) => *heard,
            // The thread is gone, so nobody keeps the lease.
            Err(_) => Heartbeat::Lost,
        }
    }
}

struct Beating {
    claim: Claim,
    lease: Duration,
    tell: watch::Sender<Heartbeat>,
}

impl Beating {
    async fn beat(&self, queue: &Queue) {
        let interval = self.lease / BEATS;
        let mut pause = interval;
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(pause).await;
            // Awake again after the process was stopped for longer than the lease. Whether or not somebody has taken the job, all that
            // was going on here is of another time.
            let silent = last.elapsed();
            if silent > self.lease {
                tracing::warn!(
                    job = self.claim.job.id,
                    seconds = silent.as_secs_f64(),
                    "paused for longer than the lease"
                );
                self.tell.send_replace(Heartbeat::Lost);
                return;
            }
            last = Instant::now();
            let patience = self.lease / 3;
            match tokio::time::timeout(patience, queue.heartbeat(&self.claim, self.lease)).await {
                Ok(Ok(heard)) => {
                    self.tell.send_replace(heard);
                    if heard == Heartbeat::Lost {
                        return;
                    }
                    pause = interval;
                }
                // Training goes on: if nobody takes the job while the database is away it is still ours afterwards, and if somebody
                // does, nothing that is written here counts.
                failed => {
                    let error = failed.map_or_else(
                        |_| "no answer".to_owned(),
                        |result| result.map_or_else(|error| error.to_string(), |_| String::new()),
                    );
                    tracing::warn!(job = self.claim.job.id, error, "no heartbeat; trying again");
                    pause = interval.min(RETRY);
                }
            }
        }
    }
}
