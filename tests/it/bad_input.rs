//! Bad input is answered with a clear 4xx that names what is wrong. Never a 5xx, a panic, a hang.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};

use crate::support::{app::App, fake::TOXIC};

/// The fields that a 422 names.
#[track_caller]
fn fields(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"]
        .as_array()
        .unwrap_or_else(|| panic!("no errors: {problem}"));
    errors.iter().map(|error| error["field"].as_str().unwrap()).collect()
}

async fn wrong(body: Value) -> Value {
    App::new().await.detoxify(body).await.problem(422)
}

#[tokio::test]
async fn a_wrong_value_names_its_field() {
    for (body, field) in [
        (json!({ "text": "" }), "text"),
        (json!({ "text": 1 }), "text"),
        (json!({ "texts": [] }), "texts"),
        (json!({ "texts": ["a", ""] }), "texts[1]"),
        (json!({ "texts": ["a", 1] }), "texts[1]"),
        (json!({ "texts": vec!["a"; 65] }), "texts"),
        (json!({ "text": "a", "texts": ["b"] }), "texts"),
        (json!({}), "text"),
        (json!({ "text": "a", "threshold": 7 }), "threshold"),
        (json!({ "text": "a", "threshold": -0.1 }), "threshold"),
        (json!({ "text": "a", "threshold": "0.5" }), "threshold"),
        (json!({ "text": "a", "strength": 2.1 }), "strength"),
        (json!({ "text": "a", "guidance": 2.1 }), "guidance"),
        (json!({ "text": "a", "candidates": 0 }), "candidates"),
        (json!({ "text": "a", "candidates": 17 }), "candidates"),
        (json!({ "text": "a", "candidates": -1 }), "candidates"),
        (json!({ "text": "a", "seed": 1.5 }), "seed"),
        (json!({ "text": "a", "action": "shout" }), "action"),
        (json!({ "text": "a", "format": "html" }), "format"),
        (json!({ "text": "a", "timeout_ms": 0 }), "timeout_ms"),
        (json!({ "text": "a", "adapter": "nobody" }), "adapter"),
        (json!({ "text": "a", "adapter": "none@9" }), "adapter"),
        (json!({ "text": "a", "adapter": "a@b@c" }), "adapter"),
        (json!({ "text": "a", "adapter": "" }), "adapter"),
        (json!({ "text": "a", "treshold": 0.5 }), "treshold"),
    ] {
        let problem = wrong(body.clone()).await;
        assert_eq!(fields(&problem), [field], "{body}: {problem}");
    }
}

#[tokio::test]
async fn all_wrong_fields_are_named_at_once() {
    let problem = wrong(json!({ "text": "", "threshold": 7, "candidates": 99 })).await;
    assert_eq!(fields(&problem), ["text", "threshold", "candidates"]);
    insta::assert_json_snapshot!(problem);
}

#[tokio::test]
async fn malformed_bodies_are_400() {
    let app = App::new().await;
    for (body, says) in [
        (&b""[..], "empty"),
        (b"  ", "empty"),
        (b"{", "not JSON"),
        (b"{\"text\": \"a\"} x", "not JSON"),
        (b"{\"text\": \"a", "not JSON"),
        (b"{\"text\": \"\\ud800\"}", "not JSON"),
        (b"{\"text\": \"a\", \"threshold\": 1e999}", "not JSON"),
        (b"{\"text\": \"a\", \"threshold\": NaN}", "not JSON"),
        (b"{\"text\": \"ab\xff\"}", "byte 12"),
        (b"{\"text\": \"\xed\xa0\x80\"}", "byte 10"),
        (b"\xff\xfe{\0", "byte 0"),
    ] {
        let problem = app.post("/detoxify", body).await.problem(400);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{body:?}: {detail}");
    }
    let deep = "[".repeat(100_000);
    app.post("/detoxify", deep).await.problem(422);
    let deep = format!("{{\"text\": {}", "[".repeat(100_000));
    app.post("/detoxify", deep).await.problem(422);
}

#[tokio::test]
async fn a_body_that_is_no_object_is_422() {
    for body in ["[]", "1", "\"text\"", "null"] {
        App::new().await.post("/detoxify", body).await.problem(422);
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_by_its_type_is_415() {
    for kind in [
        "",
        "text/plain",
        "application/json; charset=latin1",
        "multipart/form-data",
    ] {
        let request = Request::post("/detoxify")
            .header("content-type", kind)
            .body(Body::from("{\"text\": \"a\"}"))
            .unwrap();
        App::new().await.send(request).await.problem(415);
    }
    let untyped = Request::post("/detoxify")
        .body(Body::from("{\"text\": \"a\"}"))
        .unwrap();
    App::new().await.send(untyped).await.problem(415);
}

#[tokio::test]
async fn a_megabyte_of_text_is_413_with_the_figures() {
    let text = "A neutral word. ".repeat(62_500);
    assert_eq!(text.len(), 1_000_000);
    let problem = App::new().await.detoxify(json!({ "text": text })).await.problem(413);
    let detail = "text: has 1000000 characters, at most 100000 are accepted";
    assert_eq!(problem["detail"], detail);
    assert_eq!(fields(&problem), ["text"]);
    let problem = App::new()
        .await
        .detoxify(json!({ "texts": ["a", text] }))
        .await
        .problem(413);
    assert_eq!(fields(&problem), ["texts[1]"]);
}

#[tokio::test]
async fn the_longest_text_is_counted_in_characters() {
    let text = "é".repeat(100_000);
    assert_eq!(
        App::new().await.detoxify(json!({ "text": text })).await.ok()["changed"],
        false
    );
    App::new()
        .await
        .detoxify(json!({ "text": text + "é" }))
        .await
        .problem(413);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413() {
    let body = json!({ "text": "a".repeat(3 * 1024 * 1024) }).to_string();
    let problem = App::new().await.post("/detoxify", body.clone()).await.problem(413);
    assert_eq!(problem["detail"], "the body is larger than 2097152 bytes");
    // A length that is declared is believed, one that is not is counted.
    let chunked = Request::post("/detoxify")
        .header("content-type", "application/json")
        .header("content-length", body.len())
        .body(Body::empty())
        .unwrap();
    App::new().await.send(chunked).await.problem(413);
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let app = App::new().await;
    app.get("/nothing").await.problem(404);
    app.get("/detoxify/1").await.problem(404);
    app.post("/nothing", "{").await.problem(404);
    let answer = app.get("/detoxify").await;
    answer.problem(405);
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = app.post("/metrics", "{}").await;
    answer.problem(405);
    assert_eq!(answer.header("allow"), Some("GET,HEAD"));
}

#[tokio::test]
async fn hard_texts_with_an_insult_in_them_are_handled() {
    for text in [
        format!("👍🏽 {TOXIC} 👩‍👩‍👧"),
        format!("\u{200f}{TOXIC}\u{200e}"),
        format!("שלום. {TOXIC} مرحبا."),
        format!("Du Idiot. {TOXIC}"),
        format!("let s = \"{TOXIC}\";"),
        format!("{TOXIC}\0{TOXIC}"),
        "you id\u{200b}iot stupid".to_owned(),
        TOXIC.repeat(200),
        "stupid".repeat(10_000),
    ] {
        let result = App::new().await.detoxify(json!({ "text": text })).await.ok();
        assert!(result["text"].is_string());
    }
}
