//! `POST /score`.

use serde_json::json;

use crate::support::{app::App, fake::TOXIC};

#[tokio::test]
async fn scores_a_text() {
    let scores = App::new()
        .await
        .post("/score", json!({ "text": TOXIC }).to_string())
        .await
        .ok();
    insta::assert_json_snapshot!(scores, { ".toxicity" => "[probability]" });
    assert!(scores["toxicity"].as_f64().unwrap() > 0.5);
}

#[tokio::test]
async fn a_single_token_has_no_perplexity() {
    let scores = App::new()
        .await
        .post("/score", json!({ "text": "Hello" }).to_string())
        .await
        .ok();
    assert_eq!(scores["perplexity"], json!({ "base": null, "adapter": null }));
}

#[tokio::test]
async fn bad_input_is_refused() {
    let app = App::new().await;
    for body in [
        json!({}),
        json!({ "text": "" }),
        json!({ "text": "a", "threshold": 0.5 }),
    ] {
        app.post("/score", body.to_string()).await.problem(422);
    }
    app.post("/score", "{").await.problem(400);
    let long = json!({ "text": "a".repeat(100_001) }).to_string();
    app.post("/score", long).await.problem(413);
}
