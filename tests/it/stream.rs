//! `POST /detoxify` as server-sent events.

use std::{future::poll_fn, pin::Pin, sync::atomic::Ordering, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use futures_core::Stream;
use insta::assert_json_snapshot;
use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App},
    fake::{FAIL, MILDER, SLOW, TOXIC},
};

fn request(body: Value) -> Request<Body> {
    Request::post("/detoxify")
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// Name and data of each event.
fn events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let field = |event: &str, name: &str| {
        event
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    answer
        .body
        .split_terminator("\n\n")
        .map(|event| {
            let data = serde_json::from_str(&field(event, "data:")).unwrap();
            (field(event, "event:"), data)
        })
        .collect()
}

#[tokio::test]
async fn sentences_then_the_result() {
    let text = format!("Hello there. {TOXIC} Bye.");
    let app = App::new().await;
    let answer = app.send(request(json!({ "text": text }))).await;
    assert_eq!(answer.header("x-detoxd-adapter"), Some("none@0"));
    let events = events(&answer);
    let (name, result) = events.last().unwrap();
    assert_eq!(name, "result");
    let whole = app.detoxify(json!({ "text": text })).await.ok();
    assert_eq!(result["text"], whole["text"]);

    let segments = &events[..events.len() - 1];
    assert!(segments.iter().all(|(name, _)| name == "segment"));
    let segments: Vec<_> = segments.iter().map(|(_, segment)| segment).collect();
    let texts: String = segments
        .iter()
        .map(|segment| segment["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, whole["text"], "the segments are the text");
    assert_json_snapshot!(segments, { "[].toxicity" => "[toxicity]" });
}

#[tokio::test]
async fn a_sentence_is_sent_while_the_next_is_worked_on() {
    let app = App::new().await;
    let request = request(json!({ "text": format!("Hello there. {TOXIC} {SLOW}") }));
    let response = tower::ServiceExt::oneshot(app.router.clone(), request).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    let mut read = String::new();
    while read.matches("event: segment").count() < 2 {
        let next = poll_fn(|context| Pin::new(&mut body).poll_next(context));
        let chunk = tokio::time::timeout(Duration::from_secs(10), next).await;
        read += std::str::from_utf8(&chunk.expect("held back").unwrap().unwrap()).unwrap();
    }
    assert!(read.contains(MILDER));
    app.slow_started(1).await;
    app.rewriter.finish.notify_one();
    while let Some(chunk) = poll_fn(|context| Pin::new(&mut body).poll_next(context)).await {
        read += std::str::from_utf8(&chunk.unwrap()).unwrap();
    }
    assert_eq!(read.matches("event: segment").count(), 3);
    assert!(read.contains("event: result"));
}

#[tokio::test]
async fn a_failure_midway_is_a_problem_event() {
    let app = App::new().await;
    let text = format!("Hello there. {FAIL}");
    let events = events(&app.send(request(json!({ "text": text }))).await);
    let (name, problem) = events.last().unwrap();
    assert_eq!(name, "problem");
    assert_eq!(problem["status"], 500);
    assert!(events.iter().all(|(name, _)| name != "result"));
    assert!(
        app.get("/metrics")
            .await
            .body
            .contains("rejected_total{reason=\"internal\"} 1")
    );
}

#[tokio::test]
async fn a_deadline_midway_is_a_problem_event() {
    let body = json!({ "text": format!("Hello there. {SLOW}"), "timeout_ms": 50 });
    let events = events(&App::new().await.send(request(body)).await);
    assert_eq!(events.last().unwrap().1["status"], 504);
}

#[tokio::test]
async fn a_failure_before_is_an_ordinary_problem() {
    App::new()
        .await
        .send(request(json!({ "text": "a", "threshold": 7 })))
        .await
        .problem(422);
    let list = App::new()
        .await
        .send(request(json!({ "texts": ["a"] })))
        .await
        .problem(422);
    assert_eq!(list["errors"][0]["field"], "texts");
}

#[tokio::test]
async fn a_client_that_leaves_withdraws_the_work() {
    let app = App::new().await;
    let slow = request(json!({ "text": format!("Hello there. {SLOW}") }));
    let response = tower::ServiceExt::oneshot(app.router.clone(), slow).await.unwrap();
    assert_eq!(app.state.metrics.running.get(), 1, "a stream keeps its place");
    let reading = tokio::spawn(axum::body::to_bytes(response.into_body(), usize::MAX));
    app.slow_started(1).await;
    reading.abort();
    assert!(reading.await.is_err());
    assert_eq!(app.rewriter.withdrawn.load(Ordering::SeqCst), 1);
    assert_eq!(app.state.metrics.running.get(), 0);
}
