//! What `/metrics` shows of jobs, on each kind of database.

use std::time::Duration;

use detoxd::{
    access::Actor,
    jobs::{JobMetrics, NewJob, Outcome, Progress, Queue, TrainRequest},
    tasks::observe,
};
use prometheus::{Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

use crate::support::databases;

fn new_job(name: &str) -> NewJob {
    let request: TrainRequest = serde_json::from_value(serde_json::json!({
        "name": name, "base": "fake", "dataset": "data", "objective": "cp", "hyperparameters": {},
        "evaluate": { "held_back": 0.0, "max_examples": 0 }, "activate": "never",
    }))
    .unwrap();
    NewJob {
        request,
        priority: 0,
        idempotency_key: None,
        max_attempts: 3,
        created_by: "anonymous".to_owned(),
    }
}

fn render(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

/// Waits until the metrics have this line.
async fn shows(registry: &Registry, line: &str) {
    let found = async {
        while !render(registry).lines().any(|found| found == line) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), found).await;
    assert!(found.is_ok(), "no {line} in\n{}", render(registry));
}

#[tokio::test]
async fn jobs_are_counted_and_a_database_that_is_away_is_said() {
    for database in databases::each().await {
        let queue = Queue::new(database.db.clone());
        let actor = Actor::part("test");
        sqlx::query("INSERT INTO datasets (id, sha256, examples, bytes, created_at, created_by) VALUES ('data', 'x', 1, 1, 0, 'test')")
            .execute(database.db.pool())
            .await
            .unwrap();
        queue.submit(new_job("first"), &actor).await.unwrap();
        let registry = Registry::new();
        let metrics = JobMetrics::new(&registry).unwrap();
        let stop = CancellationToken::new();
        let observing = tokio::spawn(observe::run_every(
            Duration::from_millis(5),
            queue.clone(),
            metrics.clone(),
            stop.clone(),
        ));
        shows(&registry, "detoxd_jobs{state=\"queued\"} 1").await;
        shows(&registry, "detoxd_jobs{state=\"succeeded\"} 0").await;
        shows(&registry, "detoxd_database_up 1").await;
        shows(&registry, "detoxd_job_heartbeat_age_seconds 0").await;
        assert!(render(&registry).contains("\ndetoxd_jobs_oldest_queued_seconds 0"));

        queue.submit(new_job("second"), &actor).await.unwrap();
        let claim = queue.claim("me", Duration::from_secs(30)).await.unwrap().unwrap();
        let progress = Progress {
            step: 40,
            steps: 120,
            loss: 1.5,
            tokens_per_second: 600.0,
            eta_seconds: 80.0,
        };
        queue.progress(&claim, &progress).await.unwrap();
        shows(&registry, "detoxd_jobs{state=\"running\"} 1").await;
        shows(&registry, "detoxd_job_step{name=\"first\"} 40").await;
        shows(&registry, "detoxd_job_steps{name=\"first\"} 120").await;
        shows(&registry, "detoxd_job_loss{name=\"first\"} 1.5").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!render(&registry).contains("\ndetoxd_job_heartbeat_age_seconds 0\n"));
        queue.release(&claim).await.unwrap();
        shows(&registry, "detoxd_jobs{state=\"queued\"} 2").await;
        assert!(
            !render(&registry).contains("detoxd_job_step{"),
            "a job that does not run has no step"
        );

        database.db.pool().close().await;
        shows(&registry, "detoxd_database_up 0").await;
        // What was known last stays.
        shows(&registry, "detoxd_jobs{state=\"queued\"} 2").await;
        stop.cancel();
        observing.await.unwrap();
        database.drop().await;
    }
}

#[test]
fn a_worker_counts_what_it_did() {
    let registry = Registry::new();
    let metrics = JobMetrics::new(&registry).unwrap();
    assert!(render(&registry).contains("detoxd_job_attempts_total{outcome=\"lost\"} 0\n"));
    metrics.attempt_ended(Outcome::Retried);
    metrics.lease_lost();
    metrics.rescued(2);
    metrics.trained(300);
    metrics.resumed(7);
    let text = render(&registry);
    for line in [
        "detoxd_job_attempts_total{outcome=\"retried\"} 1",
        "detoxd_job_lease_lost_total 1",
        "detoxd_job_rescued_total 2",
        "detoxd_train_tokens_total 300",
        "detoxd_job_resume_steps_lost_total 7",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(JobMetrics::new(&registry).is_err(), "a name is used once");
}
