//! Health, metrics, the OpenAPI document and the pages.

use std::{collections::BTreeSet, time::Duration};

use detoxd::{config::Limits, http::openapi};
use serde_json::json;

use crate::support::{
    app::{App, service},
    fake::TOXIC,
};

#[tokio::test]
async fn live_at_once_ready_once_loaded_and_until_drained() {
    let app = App::loading(Limits::default()).await;
    app.get("/health/live").await.ok();
    let loading = app.get("/health/ready").await;
    assert_eq!(loading.problem(503)["type"], "urn:detoxd:problem:starting");
    assert_eq!(loading.header("retry-after"), Some("1"));
    app.detoxify(json!({ "text": "a" })).await.problem(503);
    app.get("/metrics").await;

    app.state.loaded(service(&app.rewriter));
    let ready = app.get("/health/ready").await.ok();
    assert_eq!(ready, json!({ "status": "ready", "adapter": "none@0" }));

    app.state.drain();
    let draining = app.get("/health/ready").await.problem(503);
    assert_eq!(draining["type"], "urn:detoxd:problem:draining");
    app.get("/health/live").await.ok();
    app.detoxify(json!({ "text": TOXIC })).await.ok();
}

#[tokio::test]
async fn work_without_progress_is_not_live() {
    let app = App::with(Limits {
        max_stall: Duration::from_millis(20),
        ..Limits::default()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    app.get("/health/live").await.ok();
    app.rewriter.activity.submitted();
    app.get("/health/live").await.ok();
    tokio::time::sleep(Duration::from_millis(30)).await;
    let stalled = app.get("/health/live").await.problem(503);
    assert_eq!(stalled["type"], "urn:detoxd:problem:stalled");
}

#[tokio::test]
async fn metrics() {
    let app = App::new().await;
    app.detoxify(json!({ "text": format!("Hello there. {TOXIC}") }))
        .await
        .ok();
    app.detoxify(json!({ "text": "" })).await.problem(422);
    app.get("/no/such/route").await.problem(404);
    let answer = app.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    let text = answer.body;
    for line in [
        "detoxd_requests_total{route=\"/detoxify\",status=\"200\"} 1",
        "detoxd_requests_total{route=\"/detoxify\",status=\"422\"} 1",
        "detoxd_requests_total{route=\"unmatched\",status=\"404\"} 1",
        "detoxd_requests_rejected_total{reason=\"invalid-request\"} 1",
        "detoxd_requests_capacity 64",
        "detoxd_requests_running 0",
        "detoxd_sentences_total{action=\"kept\"} 1",
        "detoxd_sentences_total{action=\"rewritten\"} 1",
        "detoxd_tokens_total{kind=\"prompt\"} 12",
        "detoxd_sentence_toxicity_count{stage=\"before\"} 2",
        "detoxd_sentence_toxicity_count{stage=\"after\"} 2",
        "detoxd_request_inference_seconds_count 1",
        "detoxd_request_duration_seconds_count{route=\"/detoxify\"} 2",
        "detoxd_adapter_info{name=\"none\",state=\"active\",version=\"0\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    let names: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        // Those of the process depend on the system.
        .filter(|line| !line.starts_with("process_"))
        .collect();
    insta::assert_json_snapshot!(names);
    assert!(text.contains("\nprocess_resident_memory_bytes "));
}

/// The committed document is the code's.
#[tokio::test]
async fn the_openapi_document_is_current() {
    let committed = include_str!("../../openapi/openapi.json");
    let current = openapi::document().unwrap();
    assert!(
        committed == current,
        "openapi/openapi.json is not what the code says; if the change is meant, run\n    \
         cargo run --release -- openapi > openapi/openapi.json"
    );
    let served = App::new().await.get("/openapi.json").await.ok();
    assert_eq!(served, serde_json::from_str::<serde_json::Value>(&current).unwrap());
}

#[tokio::test]
async fn the_documentation_needs_no_network() {
    let app = App::new().await;
    assert_eq!(app.get("/docs").await.header("location"), Some("/docs/"));
    let page = app.get("/docs/").await;
    assert_eq!(page.status, 200);
    assert!(!page.body.contains("https://") && !page.body.contains("http://"));
    let script = app.get("/docs/swagger-initializer.js").await;
    assert!(script.body.contains("/openapi.json"));
    assert_eq!(app.get("/docs/swagger-ui-bundle.js").await.status, 200);
}

#[tokio::test]
async fn the_playground_loads_nothing_from_elsewhere() {
    let page = App::new().await.get("/").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("default-src 'none'")
    );
    assert!(!page.body.contains("://"));
}
