//! Overload, deadlines, and failures of the model.

use std::{sync::atomic::Ordering, time::Duration};

use detoxd::config::Limits;
use serde_json::json;

use crate::support::{
    app::{App, json as post},
    fake::{FAIL, FULL, MILDER, PANIC, SLOW, TOXIC},
};

fn places(max_concurrent_requests: usize) -> Limits {
    Limits {
        max_concurrent_requests,
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_request_too_many_is_503_with_retry_after() {
    let app = App::with(places(1)).await;
    let slow = tokio::spawn({
        let request = post("/detoxify", json!({ "text": SLOW }).to_string());
        tower::ServiceExt::oneshot(app.router.clone(), request)
    });
    app.slow_started(1).await;

    let refused = app.detoxify(json!({ "text": TOXIC })).await;
    let problem = refused.problem(503);
    assert_eq!(problem["type"], "urn:detoxd:problem:overloaded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    app.post("/score", json!({ "text": "a b" }).to_string())
        .await
        .problem(503);
    // What operators look at is never refused.
    app.get("/health/ready").await.ok();

    app.rewriter.finish.notify_one();
    assert_eq!(slow.await.unwrap().unwrap().status(), 200);
    assert_eq!(app.detoxify(json!({ "text": TOXIC })).await.ok()["text"], MILDER);
    let metrics = app.get("/metrics").await.body;
    assert!(metrics.contains("detoxd_requests_rejected_total{reason=\"overloaded\"} 2"));
}

#[tokio::test]
async fn a_full_engine_says_when_to_come_back() {
    let answer = App::new().await.detoxify(json!({ "text": FULL })).await;
    answer.problem(503);
    assert_eq!(answer.header("retry-after"), Some("3"), "2.5 s, rounded up");
}

#[tokio::test]
async fn a_deadline_that_passes_is_504_and_withdraws_the_work() {
    let app = App::new().await;
    let problem = app
        .detoxify(json!({ "text": SLOW, "timeout_ms": 50 }))
        .await
        .problem(504);
    assert_eq!(problem["type"], "urn:detoxd:problem:deadline-passed");
    assert_eq!(app.rewriter.withdrawn.load(Ordering::SeqCst), 1);

    let many = json!({ "texts": [TOXIC, SLOW], "timeout_ms": 50 });
    app.detoxify(many).await.problem(504);
    // The texts of a list are tasks; their end is only asked for.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(app.rewriter.withdrawn.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_request_can_not_extend_the_timeout() {
    let timeout = Duration::from_millis(50);
    let app = App::with(Limits {
        timeout,
        ..Limits::default()
    })
    .await;
    app.detoxify(json!({ "text": SLOW, "timeout_ms": u64::MAX }))
        .await
        .problem(504);
}

#[tokio::test]
async fn a_client_that_leaves_withdraws_its_work_and_gives_its_place_back() {
    let app = App::with(places(1)).await;
    let leaving = tokio::spawn({
        let request = post("/detoxify", json!({ "text": SLOW }).to_string());
        tower::ServiceExt::oneshot(app.router.clone(), request)
    });
    app.slow_started(1).await;
    leaving.abort();
    assert!(leaving.await.is_err());
    assert_eq!(app.rewriter.withdrawn.load(Ordering::SeqCst), 1);
    app.detoxify(json!({ "text": TOXIC })).await.ok();
    let metrics = app.get("/metrics").await.body;
    assert!(metrics.contains("detoxd_requests_total{route=\"/detoxify\",status=\"499\"} 1"));
    assert!(metrics.contains("detoxd_requests_running 0"));
}

#[tokio::test]
async fn a_failure_or_a_panic_is_500_without_its_reason_and_the_service_goes_on() {
    let app = App::new().await;
    for body in [
        json!({ "text": FAIL }),
        json!({ "text": PANIC }),
        json!({ "texts": [TOXIC, PANIC] }),
        json!({ "texts": [TOXIC, FAIL] }),
    ] {
        let answer = app.detoxify(body).await;
        answer.problem(500);
        assert!(!answer.body.contains("memory") && !answer.body.contains("report"));
        assert!(!answer.body.contains("results"), "nothing half-done is returned");
    }
    assert_eq!(app.detoxify(json!({ "text": TOXIC })).await.ok()["text"], MILDER);
    assert!(app.get("/metrics").await.body.contains("detoxd_requests_running 0"));
}
