//! Replicas of one registry: each follows what another has changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use detoxd::adapters::Budget;
use detoxd::tasks::follow::Outcome;
use serde_json::{Value, json};

use crate::support::adapters::Serving;
use crate::support::fake::TOXIC;

#[tokio::test]
async fn another_process_follows() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let one = Serving::fake_at(folder.clone(), Budget::default()).await;
    let mut two = Serving::fake_at(folder.clone(), Budget::default()).await;
    one.import_scaled(&[8.0, 7.0]).await;
    assert!(matches!(two.follower.tick().await, Outcome::UpToDate));
    one.activate(1).await.ok();
    assert_eq!(two.adapter_of(None).await, "none@0");
    assert!(matches!(two.follower.tick().await, Outcome::Switched(made) if made.revision == 1));
    assert!(matches!(two.follower.tick().await, Outcome::UpToDate));
    assert_eq!(two.adapter_of(None).await, "a@1");
    let replicas = one.get("/adapters").await.ok()["replicas"].clone();
    assert_eq!(replicas[0]["active"], "a@1");
    assert_eq!(
        (&replicas[0]["desired"], &replicas[0]["observed"]),
        (&json!(1), &json!(1))
    );

    // What does not pass there is not served there, and says so.
    two.canary.refuses.store(true, Ordering::SeqCst);
    one.activate(2).await.ok();
    assert!(matches!(two.follower.tick().await, Outcome::Failed(_)));
    assert_eq!(two.adapter_of(None).await, "a@1");
    let replicas = one.get("/adapters").await.ok()["replicas"].clone();
    assert!(
        replicas[0]["error"].as_str().unwrap().contains("no effect"),
        "{replicas}"
    );
    assert_eq!(
        (&replicas[0]["desired"], &replicas[0]["observed"]),
        (&json!(2), &json!(1))
    );
    let metrics = two.get("/metrics").await.body;
    assert!(!metrics.contains("detoxd_adapter_desired_lag_seconds 0\n"), "{metrics}");
    // It tries again, and again less often.
    two.canary.refuses.store(false, Ordering::SeqCst);
    let mut outcomes = Vec::new();
    for _ in 0..200 {
        outcomes.push(two.follower.tick().await);
        if matches!(outcomes.last(), Some(Outcome::Switched(_))) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(two.adapter_of(None).await, "a@2");
    let replicas = one.get("/adapters").await.ok()["replicas"].clone();
    assert_eq!(replicas[0]["error"], Value::Null);
    let metrics = two.get("/metrics").await.body;
    assert!(metrics.contains("detoxd_adapter_desired_lag_seconds 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_database_that_goes_away_changes_nothing_and_is_followed_when_it_is_back() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let one = Serving::fake_at(folder.clone(), Budget::default()).await;
    let mut two = Serving::fake_at(folder.clone(), Budget::default()).await;
    one.import_scaled(&[8.0, 7.0]).await;
    one.activate(1).await.ok();
    two.follower.tick().await;
    let pool = one.state.backend.registry.database().pool();
    let rename = async |from: &str, to: &str| {
        let statement = format!("ALTER TABLE {from} RENAME TO {to}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(pool).await.unwrap();
    };
    rename("deployments", "away").await;
    for _ in 0..3 {
        assert!(matches!(two.follower.tick().await, Outcome::Failed(_)));
        assert_eq!(two.detoxify(json!({ "text": TOXIC })).await.ok()["adapter"], "a@1");
    }
    rename("away", "deployments").await;
    assert!(matches!(two.follower.tick().await, Outcome::UpToDate));
    one.activate(2).await.ok();
    assert!(matches!(two.follower.tick().await, Outcome::Switched(_)));
}
