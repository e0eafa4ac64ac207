//! Versions of an adapter on a model, the micro one: what they write, how they begin, what is remembered of them.

use std::sync::Arc;

use detoxd::config::AdapterSource;
use serde_json::{Value, json};

use crate::support::adapters::{Serving, model, scaled};

/// Sentences that the micro model rewrites.
const TOXIC_LINES: [&str; 4] = [
    "You are a stupid fool, Anna forgot the letter yesterday.",
    "Paul sold the garden on Monday, you idiot.",
    "You stupid fool, close the window.",
    "You idiot, read page 12 of the book again.",
];

fn folder(path: &str) -> AdapterSource {
    AdapterSource::Folder(model().join(path))
}

#[tokio::test]
async fn on_a_model_mixed_versions_give_what_each_gives_alone_while_versions_change() {
    let serving = Arc::new(Serving::micro(folder("adapter")).await);
    assert_eq!(serving.adapter_of(None).await, "adapter@1");
    serving.import_scaled(&[60.0, -40.0]).await;
    let requests: Vec<Value> = TOXIC_LINES
        .iter()
        .flat_map(|text| {
            ["a@1", "a@2", "adapter@1", "none@0"]
                .map(|adapter| json!({ "text": text, "adapter": adapter, "seed": 7, "candidates": 3 }))
        })
        .chain([json!({ "text": TOXIC_LINES[0], "adapter": "a@1", "strength": 0.3, "seed": 7 })])
        .collect();
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(serving.detoxify(request.clone()).await.ok()["text"].clone());
    }
    assert!(
        alone.iter().collect::<std::collections::HashSet<_>>().len() > TOXIC_LINES.len(),
        "versions differ: {alone:?}"
    );
    let tasks: Vec<_> = requests
        .iter()
        .map(|request| {
            let (serving, request) = (serving.clone(), request.clone());
            tokio::spawn(async move { serving.detoxify(request).await.ok() })
        })
        .collect();
    for number in [1, 2, 1, 2] {
        assert_eq!(serving.activate(number).await.ok()["active"], format!("a@{number}"));
    }
    for ((request, task), alone) in requests.iter().zip(tasks).zip(alone) {
        let answer = task.await.unwrap();
        assert_eq!(answer["adapter"], request["adapter"]);
        assert_eq!(answer["text"], alone, "{request}");
    }
    let score = json!({ "text": "The train leaves at 10:45.", "adapter": "a@1" });
    assert_eq!(serving.post("/score", score.to_string()).await.ok()["adapter"], "a@1");
}

#[tokio::test]
async fn what_was_rewritten_before_is_remembered_by_version() {
    let serving = Serving::micro_remembering(folder("adapter")).await;
    serving.import_scaled(&[6.0]).await;
    let ask = async |adapter: &str| {
        let request = json!({ "text": "You are a stupid idiot, Anna.", "adapter": adapter });
        serving.post("/detoxify", request.to_string()).await.ok()
    };
    let first = ask("adapter@1").await;
    let again = ask("adapter@1").await;
    assert_ne!(first["usage"]["completion_tokens"], 0);
    assert_eq!(again["usage"]["completion_tokens"], 0);
    for field in ["text", "toxicity", "similarity", "segments", "edits", "adapter"] {
        assert_eq!(first[field], again[field], "{field}");
    }
    assert_ne!(ask("a@1").await["usage"]["completion_tokens"], 0);
    let metrics = serving.get("/metrics").await.body;
    assert!(metrics.contains("detoxd_rewrite_cache_hits_total 1"), "{metrics}");
    assert!(metrics.contains("detoxd_rewrite_cache_misses_total 2"), "{metrics}");
}

#[tokio::test]
async fn the_canary_runs_the_model() {
    let serving = Serving::micro(AdapterSource::None).await;
    // No effect; effects beyond what numbers hold; and one that is fine.
    serving.import_scaled(&[0.0, 1e38, 8.0]).await;
    for (number, word) in [(1, "no effect"), (2, "not finite")] {
        let problem = serving.activate(number).await.problem(422);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
        assert_eq!(serving.adapter_of(None).await, "none@0");
    }
    serving.activate(3).await.ok();
    assert_eq!(serving.adapter_of(None).await, "a@3");
}

#[tokio::test]
async fn a_start_takes_what_was_deployed_unless_told_otherwise() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let start = async |adapter| Serving::micro_at(data.clone(), adapter).await;
    // Nothing deployed, and nothing shipped for this model.
    let error = start(AdapterSource::Auto).await.err().unwrap().to_string();
    assert!(error.contains("no adapter is shipped"), "{error}");
    let first = start(folder("adapter")).await.unwrap();
    first.import_scaled(&[6.0]).await;
    first.activate(1).await.ok();
    drop(first);
    assert_eq!(start(AdapterSource::Auto).await.unwrap().adapter_of(None).await, "a@1");
    // The same folder is the same version, and active from now on.
    let third = start(folder("adapter")).await.unwrap();
    assert_eq!(third.adapter_of(None).await, "adapter@1");
    let history = third.get("/adapters/deployments").await.ok();
    let actions: Vec<_> = history["deployments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|made| made["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["start", "activate", "start"]);
    assert_eq!(
        third.get("/adapters").await.ok()["adapters"].as_array().unwrap().len(),
        2
    );
    // Active already: nothing changes.
    start(AdapterSource::Named("adapter@1".parse().unwrap())).await.unwrap();
    assert_eq!(
        third
            .state
            .backend
            .registry
            .deployment()
            .await
            .unwrap()
            .unwrap()
            .revision,
        3
    );
    let fourth = start(AdapterSource::None).await.unwrap();
    assert_eq!(fourth.adapter_of(None).await, "none@0");
    let error = start(AdapterSource::Named("b@1".parse().unwrap())).await.err().unwrap();
    assert!(error.to_string().contains("no such adapter"), "{error}");
    let error = start(AdapterSource::Named("default@1".parse().unwrap()))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("--model smollm2-135m"), "{error}");

    // What was deployed and can't be loaded ends the start: no other takes its place.
    fourth.activate(1).await.ok();
    let store = fourth.state.backend.registry.store().clone();
    store
        .delete(&format!("adapters/{}/adapter_model.safetensors", scaled(6.0).sha256()))
        .await
        .unwrap();
    let error = start(AdapterSource::Auto).await.err().unwrap().to_string();
    assert!(error.contains("a@1") && error.contains("--adapter none"), "{error}");
}
