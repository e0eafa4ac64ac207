//! A queue to test: on each kind of database, with a dataset that jobs may name.

use std::time::Duration;

use detoxd::access::Actor;
use detoxd::db::{Database, new_id};
use detoxd::jobs::request::{ActivationPolicy, Evaluation, Hyperparameters, ObjectiveName};
use detoxd::jobs::{Claim, Job, JobError, NewJob, Progress, Queue, Submitted, TrainRequest};

use super::databases::{self, TestDatabase};

pub const LEASE: Duration = Duration::from_secs(30);
/// Runs out at once.
pub const NO_LEASE: Duration = Duration::ZERO;

/// A queue with a dataset that jobs may name.
pub struct Bench {
    pub queue: Queue,
    pub db: Database,
    pub dataset: String,
}

/// Runs a test on each kind of database.
pub async fn on_each(test: impl AsyncFn(&Bench)) {
    for database in databases::each().await {
        let bench = Bench::on(&database).await;
        test(&bench).await;
        database.drop().await;
    }
}

impl Bench {
    pub async fn on(database: &TestDatabase) -> Self {
        let (db, dataset) = (database.db.clone(), new_id());
        sqlx::query("INSERT INTO datasets (id, sha256, examples, bytes, created_at, created_by) VALUES ($1, 'x', 1, 1, 0, 'test')")
            .bind(&dataset)
            .execute(db.pool())
            .await
            .unwrap();
        Self {
            queue: Queue::new(db.clone()),
            db,
            dataset,
        }
    }

    pub fn new_job(&self, name: &str) -> NewJob {
        NewJob {
            request: TrainRequest {
                name: name.to_owned(),
                base: "micro".to_owned(),
                dataset: self.dataset.clone(),
                objective: ObjectiveName::Cp,
                hyperparameters: Hyperparameters {
                    learning_rate: Some(0.0003),
                    ..Hyperparameters::default()
                },
                evaluate: Evaluation::default(),
                activate: ActivationPolicy::Never,
            },
            priority: 0,
            idempotency_key: None,
            max_attempts: 3,
            created_by: "asker".to_owned(),
        }
    }

    pub async fn put(&self, new: NewJob) -> Job {
        match self.queue.submit(new, &actor()).await.unwrap() {
            Submitted::New(job) => job,
            Submitted::Same(job) => panic!("not new: {job:?}"),
        }
    }

    pub async fn claim(&self) -> Option<Claim> {
        self.queue.claim("worker", LEASE).await.unwrap()
    }

    pub async fn job(&self, id: &str) -> Job {
        self.queue.get(id).await.unwrap().unwrap()
    }

    /// A job that waits for its time is due now.
    pub async fn forget_pauses(&self) {
        sqlx::query("UPDATE jobs SET run_after = 0")
            .execute(self.db.pool())
            .await
            .unwrap();
    }

    pub async fn audited(&self) -> Vec<(String, String)> {
        sqlx::query_as("SELECT action, subject FROM audit ORDER BY id")
            .fetch_all(self.db.pool())
            .await
            .unwrap()
    }
}

pub fn actor() -> Actor {
    Actor::part("asker")
}

pub fn error(kind: &str) -> JobError {
    JobError {
        kind: kind.to_owned(),
        message: "it went wrong".to_owned(),
    }
}

pub const PROGRESS: Progress = Progress {
    step: 3,
    steps: 40,
    loss: 1.5,
    tokens_per_second: 600.0,
    eta_seconds: 74.0,
};
