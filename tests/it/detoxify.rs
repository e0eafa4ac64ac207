//! `POST /detoxify`.

use axum::{body::Body, http::Request};
use insta::assert_json_snapshot;
use serde_json::json;

use crate::support::{
    app::App,
    fake::{MILDER, TOXIC},
};

#[tokio::test]
async fn a_toxic_sentence_is_rewritten_and_the_rest_kept() {
    let text = format!("Hello. {TOXIC} Bye.");
    let answer = App::new().await.detoxify(json!({ "text": text })).await;
    assert_eq!(answer.header("x-detoxd-adapter"), Some("none@0"));
    assert_eq!(answer.header("x-detoxd-changed"), Some("true"));
    assert_json_snapshot!(answer.ok(), {
        ".id" => "[id]",
        ".toxicity" => "[toxicity]",
        ".segments[].toxicity" => "[toxicity]",
        ".similarity" => "[similarity]",
        ".timing_ms.total" => "[ms]",
    });
}

#[tokio::test]
async fn a_text_that_is_not_toxic_comes_back_byte_for_byte() {
    for text in [
        "The file is missing a semicolon.",
        " \t\n ",
        "\u{200b}\u{200f}",
        "👍🏽 👩‍👩‍👧 🏳️‍🌈",
        "שלום \u{202e}עולם\u{202c}, مرحبا",
        "Der Bericht kommt schon wieder zu spät.\r\n\r\nBis morgen!",
        "fn main() {\n    println!(\"{}\", 1 + 1);\n}\n",
        "NUL \0 and \u{feff} and e\u{301}",
    ] {
        let answer = App::new()
            .await
            .detoxify(json!({ "text": text, "threshold": 0.9 }))
            .await;
        let result = answer.ok();
        assert_eq!(result["text"], text);
        assert_eq!(result["changed"], false, "{text:?}");
        assert_eq!(result["edits"], json!([]));
        assert_eq!(answer.header("x-detoxd-changed"), Some("false"));
    }
}

#[tokio::test]
async fn offsets_are_code_points_of_the_input() {
    let text = format!("👩‍👩‍👧 Grüße. {TOXIC}");
    let result = App::new().await.detoxify(json!({ "text": text })).await.ok();
    let points: Vec<char> = text.chars().collect();
    let segments = result["segments"].as_array().unwrap();
    assert_eq!(segments.last().unwrap()["end"], points.len());
    for edit in result["edits"].as_array().unwrap() {
        let (start, end) = (edit["start"].as_u64().unwrap(), edit["end"].as_u64().unwrap());
        let from: String = points[start as usize..end as usize].iter().collect();
        assert_eq!(edit["from"], from);
    }
}

#[tokio::test]
async fn several_texts_give_results_in_order() {
    let texts: Vec<_> = (0..64).map(|n| format!("Report {n}. {TOXIC}")).collect();
    let answer = App::new().await.detoxify(json!({ "texts": texts })).await;
    assert_eq!(answer.header("x-detoxd-changed"), Some("true"));
    let results = answer.ok();
    let results = results["results"].as_array().unwrap();
    assert_eq!(results.len(), 64);
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result["text"], format!("Report {n}. {MILDER}"));
    }
}

#[tokio::test]
async fn one_text_in_a_list_gives_a_list() {
    let answer = App::new().await.detoxify(json!({ "texts": [TOXIC] })).await;
    assert_eq!(answer.ok()["results"][0]["text"], MILDER);
}

#[tokio::test]
async fn explain_tells_what_there_was_to_choose_from() {
    let app = App::new().await;
    let body = |explain: bool| json!({ "text": format!("Hello. {TOXIC}"), "explain": explain });
    let told = app.detoxify(body(true)).await.ok();
    let [kept, rewritten] = &told["segments"].as_array().unwrap()[..] else {
        panic!("{told}")
    };
    assert!(kept.get("candidates").is_none());
    let best = &rewritten["candidates"][0];
    assert!(told["text"].as_str().unwrap().ends_with(best["text"].as_str().unwrap()));
    assert_eq!((&best["mean_nll"], &best["base_nll"]), (&json!(1.0), &json!(null)));
    assert_eq!(best["toxicity"], rewritten["toxicity"]["output"]);
    let silent = app.detoxify(body(false)).await.ok();
    assert!(silent["segments"][1].get("candidates").is_none());
}

#[tokio::test]
async fn a_sentence_that_the_model_must_not_see_says_why() {
    let app = App::new().await;
    let text = "See you at noon. Du bist ein Idiot. You idiot!";
    let told = app.detoxify(json!({ "text": text })).await.ok();
    let reasons: Vec<_> = told["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["reason"])
        .collect();
    assert_eq!(reasons, [&json!(null), &json!("language"), &json!("nothing_neutral")]);
    assert_eq!(told["text"], "See you at noon. Du bist ein ***. You ***!");
    assert_eq!(told["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn every_option_is_taken() {
    let answer = App::new()
        .await
        .detoxify(json!({
            "text": TOXIC,
            "threshold": 0.5,
            "action": "rewrite",
            "adapter": "none",
            "strength": 1.5,
            "candidates": 16,
            "seed": 7,
            "format": "markdown",
            "timeout_ms": 1_000_000,
        }))
        .await;
    assert_eq!(answer.ok()["text"], MILDER);
}

#[tokio::test]
async fn a_threshold_of_one_keeps_everything() {
    let answer = App::new()
        .await
        .detoxify(json!({ "text": TOXIC, "threshold": 1 }))
        .await;
    assert_eq!(answer.ok()["text"], TOXIC);
}

#[tokio::test]
async fn a_request_id_is_echoed_or_made() {
    let app = App::new().await;
    let ask = |id: &str| {
        let mut request = Request::get("/health/live");
        if !id.is_empty() {
            request = request.header("x-request-id", id);
        }
        app.send(request.body(Body::empty()).unwrap())
    };
    assert_eq!(ask("abc-1").await.header("x-request-id"), Some("abc-1"));
    let made = ask("").await;
    assert_eq!(made.header("x-request-id").unwrap().len(), 36);
    // An id that could garble a log is replaced.
    assert_eq!(ask("a b").await.header("x-request-id").unwrap().len(), 36);
    assert_eq!(ask(&"x".repeat(129)).await.header("x-request-id").unwrap().len(), 36);
}
