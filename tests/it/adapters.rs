//! The registry of adapters and the change from one to another, through the router.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use detoxd::adapters::{AdapterFiles, Budget, write_archive};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use crate::support::adapters::{Serving, changed, files, scaled};
use crate::support::fake::{MILDER, SLOW, TOXIC};

fn gzip(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/gzip")
        .body(body.into())
        .unwrap()
}

#[tokio::test]
async fn an_adapter_is_imported_exported_and_the_same_when_imported_again() {
    let serving = Serving::fake().await;
    let answer = serving.import("polite", &files()).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert_eq!(answer.header("location"), Some("/adapters/polite/1"));
    let adapter = answer.json();
    assert_eq!(adapter["adapter"], "polite@1");
    assert_eq!((&adapter["rank"], &adapter["state"]), (&json!(4), &json!("registered")));
    assert_eq!(adapter["sha256"], files().sha256());
    assert_eq!(serving.import("polite", &files()).await.ok()["adapter"], "polite@1");

    let archive = Request::get("/adapters/polite/1/archive").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(serving.router.clone(), archive)
        .await
        .unwrap();
    assert_eq!(
        response.headers()["content-disposition"],
        "attachment; filename=\"polite-1.tar.gz\""
    );
    let archive = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let same = serving.send(gzip("/adapters?name=polite", archive.clone())).await;
    assert_eq!(same.ok()["adapter"], "polite@1");
    let other = serving.send(gzip("/adapters?name=other", archive)).await;
    assert_eq!(other.status, 201);
    assert_eq!(other.json()["adapter"], "other@1");
    let list = serving.get("/adapters").await.ok();
    assert_eq!(list["adapters"].as_array().unwrap().len(), 2);
    assert_eq!(list["memory"]["versions"], 0, "nothing stays in memory of an import");
}

#[tokio::test]
async fn what_is_no_adapter_for_the_model_is_refused_with_the_reason() {
    let serving = Serving::fake().await;
    let with_weights = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut files = files();
        change(&mut files.weights);
        files
    };
    let end = files().weights.len();
    let cases: [(AdapterFiles, &str); 8] = [
        // Half precision: not a number.
        (
            with_weights(&|weights| weights[end - 2..].copy_from_slice(&[0, 0x7e])),
            "not finite",
        ),
        (
            with_weights(&|weights| weights.truncate(end - 100)),
            "adapter_model.safetensors",
        ),
        (
            with_weights(&|weights| weights.truncate(20)),
            "adapter_model.safetensors",
        ),
        (changed("\"r\": 4", "\"r\": 2"), "has shape"),
        (changed("\"down_proj\",", ""), "fits no module"),
        (changed("\"use_dora\": false", "\"use_dora\": true"), "use_dora"),
        (changed("\"bias\": \"none\"", "\"bias\": \"all\""), "bias"),
        (
            changed("\"r\": 4", "\"rank_pattern\": {\"q_proj\": 8}, \"r\": 4"),
            "rank_pattern",
        ),
    ];
    for (files, word) in cases {
        let problem = serving.import("a", &files).await.problem(422);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
        assert_eq!(problem["errors"][0]["field"], "path");
    }
    for path in ["../../etc", "/etc", "no-such-folder"] {
        let body = json!({ "name": "a", "path": path }).to_string();
        let problem = serving.post("/adapters", body).await.problem(422);
        assert!(problem["detail"].as_str().unwrap().contains("import_dir"), "{problem}");
    }
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    let mut header = tar::Header::new_gnu();
    header.set_size(64 << 20);
    header.set_path("adapter_model.safetensors").unwrap();
    header.set_cksum();
    bomb.write_all(header.as_bytes()).unwrap();
    bomb.write_all(&vec![0; 64 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    let problem = serving.send(gzip("/adapters?name=a", bomb)).await.problem(422);
    assert!(problem["detail"].as_str().unwrap().contains("expands"), "{problem}");

    let about = detoxd::adapters::About {
        adapter: "a@1".to_owned(),
        sha256: files().sha256(),
        base: "other".to_owned(),
        base_fingerprint: "0".repeat(64),
    };
    let archive = write_archive("a", &files(), &about).unwrap();
    let problem = serving.send(gzip("/adapters?name=a", archive)).await.problem(422);
    assert!(problem["detail"].as_str().unwrap().contains("fingerprint"), "{problem}");

    for (body, field) in [
        (json!({ "name": "a b", "path": "x" }), "name"),
        (json!({ "name": "none", "path": "x" }), "name"),
        (json!({ "name": "a@1", "path": "x" }), "name"),
        (json!({ "name": "a" }), "path"),
        (json!({ "name": "a", "path": "x", "hub": "a/b" }), "path"),
        (json!({ "name": "a", "hub": "../b" }), "hub"),
    ] {
        let problem = serving.post("/adapters", body.to_string()).await.problem(422);
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    serving.send(gzip("/adapters", "")).await.problem(422);
    let list = serving.get("/adapters").await.ok();
    assert_eq!(list["adapters"], json!([]), "nothing was registered");
}

#[tokio::test]
async fn an_activation_is_compared_and_set() {
    let serving = Serving::fake().await;
    serving.import_scaled(&[8.0, 6.0]).await;
    assert_eq!(serving.adapter_of(None).await, "none@0");
    let first = serving.activate_if(1, "none@0").await.ok();
    assert_eq!((&first["revision"], &first["active"]), (&json!(1), &json!("a@1")));
    assert_eq!(serving.adapter_of(None).await, "a@1");

    let problem = serving.activate_if(2, "a@2").await.problem(409);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("a@2") && detail.contains("a@1"), "{detail}");
    assert_eq!(serving.adapter_of(None).await, "a@1");
    assert_eq!(serving.get("/health/ready").await.ok()["adapter"], "a@1");

    assert_eq!(serving.activate_if(2, "a@1").await.ok()["revision"], 2);
    assert_eq!(serving.adapter_of(None).await, "a@2");
    serving.activate(9).await.problem(404);
    serving.post("/adapters/a/x/activate", "{}").await.problem(404);
    let wrong = serving.activate_if(1, "a").await.problem(422);
    assert_eq!(wrong["errors"][0]["field"], "expected");
    let history = serving.get("/adapters/deployments?limit=1").await.ok();
    assert_eq!(history["deployments"][0]["active"], "a@2");
    assert_eq!(history["deployments"][0]["actor"], "anonymous");
    // The version that was left is not in memory any more.
    assert_eq!(serving.state_of("/adapters/a/1").await, "registered");
    assert_eq!(serving.state_of("/adapters/a/2").await, "active");
    assert_eq!(serving.get("/adapters").await.ok()["memory"]["versions"], 1);
}

#[tokio::test]
async fn a_refused_canary_changes_nothing() {
    let serving = Serving::fake().await;
    serving.import_scaled(&[8.0, 6.0]).await;
    serving.activate(1).await.ok();
    serving.canary.refuses.store(true, Ordering::SeqCst);
    let problem = serving.activate(2).await.problem(422);
    assert!(problem["detail"].as_str().unwrap().contains("no effect"), "{problem}");
    assert_eq!(serving.adapter_of(None).await, "a@1");
    let list = serving.get("/adapters").await.ok();
    assert_eq!(list["deployment"]["revision"], 1);
    assert_eq!(list["memory"]["versions"], 1, "what was refused is not kept");
    // Neither does a request get it that names it.
    serving
        .detoxify(json!({ "text": TOXIC, "adapter": "a@2" }))
        .await
        .problem(422);
    let metrics = serving.get("/metrics").await.body;
    for line in [
        "detoxd_adapter_loads_total{result=\"refused\"} 2",
        "detoxd_adapter_activations_total{result=\"failed\"} 1",
        "detoxd_adapter_activations_total{result=\"ok\"} 1",
        "detoxd_adapter_info{name=\"a\",state=\"active\",version=\"1\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
}

#[tokio::test]
async fn a_running_request_finishes_on_its_version_and_then_its_memory_is_given_back() {
    let serving = Arc::new(Serving::fake().await);
    serving.import_scaled(&[8.0, 6.0]).await;
    serving.activate(1).await.ok();
    let running = tokio::spawn({
        let serving = serving.clone();
        async move { serving.detoxify(json!({ "text": SLOW })).await.ok() }
    });
    serving.slow_started(1).await;
    let bytes = serving.get("/adapters/a/1").await.ok()["resident_bytes"]
        .as_u64()
        .unwrap();
    serving.activate(2).await.ok();
    let retired = serving.get("/adapters/a/1").await.ok();
    assert_eq!((&retired["state"], &retired["leases"]), (&json!("retired"), &json!(1)));
    assert_eq!(serving.get("/adapters").await.ok()["memory"]["bytes"], 2 * bytes);
    let metrics = serving.get("/metrics").await.body;
    assert!(metrics.contains("detoxd_adapter_retired_versions 1"), "{metrics}");
    assert!(
        metrics.contains("detoxd_adapter_requests_running{name=\"a\",version=\"1\"} 1"),
        "{metrics}"
    );
    // One that comes meanwhile gets the new one.
    assert_eq!(serving.adapter_of(None).await, "a@2");

    serving.rewriter.finish.notify_one();
    assert_eq!(running.await.unwrap()["adapter"], "a@1");
    assert_eq!(serving.state_of("/adapters/a/1").await, "registered");
    assert_eq!(serving.get("/adapters").await.ok()["memory"]["bytes"], bytes);
}

#[tokio::test]
async fn a_second_activation_beside_a_load_is_told_to_come_again() {
    let serving = Arc::new(Serving::fake().await);
    serving.import_scaled(&[8.0, 6.0, 4.0]).await;
    serving.activate(1).await.ok();
    serving.canary.close();
    let loading = tokio::spawn({
        let serving = serving.clone();
        async move { serving.activate(2).await.ok() }
    });
    while serving.canary.runs.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let busy = serving.activate(3).await;
    assert_eq!(busy.problem(429)["type"], "urn:detoxd:problem:busy");
    assert_eq!(busy.header("retry-after"), Some("1"));
    // What is in memory needs no load.
    serving.activate(1).await.ok();
    // A request waits for its turn, but not longer than it may.
    let late = json!({ "text": TOXIC, "adapter": "a@3", "timeout_ms": 50 });
    serving.detoxify(late).await.problem(504);
    // Served all the while.
    assert_eq!(serving.detoxify(json!({ "text": TOXIC })).await.ok()["text"], MILDER);
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let serving = serving.clone();
            tokio::spawn(async move { serving.adapter_of(Some("a@3")).await })
        })
        .collect();
    serving.canary.open();
    assert_eq!(loading.await.unwrap()["active"], "a@2");
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), "a@3");
    }
    // a@1, a@2, and a@3 once for all who waited.
    assert_eq!(serving.canary.runs.load(Ordering::SeqCst), 3);
    assert_eq!(serving.state_of("/adapters/a/3").await, "loaded");
}

#[tokio::test]
async fn a_version_that_is_named_is_loaded_within_the_budget() {
    let budget = Budget {
        max_resident: 3,
        ..Budget::default()
    };
    let serving = Arc::new(Serving::fake_at(Arc::new(tempfile::tempdir().unwrap()), budget).await);
    serving.import_scaled(&[8.0, 7.0, 6.0, 5.0]).await;
    serving.activate(1).await.ok();
    for number in [2, 3, 4] {
        let name = format!("a@{number}");
        assert_eq!(serving.adapter_of(Some(&name)).await, name);
    }
    // The least recently used of those that nothing deploys went.
    let mut states = Vec::new();
    for number in 1..=4 {
        states.push(serving.state_of(&format!("/adapters/a/{number}")).await);
    }
    assert_eq!(states, ["active", "registered", "loaded", "loaded"]);
    // A name alone is the active version, and an unknown one an error.
    assert_eq!(serving.adapter_of(Some("a")).await, "a@1");
    assert_eq!(serving.adapter_of(Some("none")).await, "none@0");
    for unknown in ["a@9", "b", "none@1"] {
        let answer = serving.detoxify(json!({ "text": TOXIC, "adapter": unknown })).await;
        assert_eq!(answer.problem(422)["errors"][0]["field"], "adapter");
    }
    // With all of it in use there is no room.
    let held: Vec<_> = ["a@3", "a@4"]
        .map(|adapter| {
            let serving = serving.clone();
            let body = json!({ "text": SLOW, "adapter": adapter });
            tokio::spawn(async move { serving.detoxify(body).await.ok() })
        })
        .into();
    serving.slow_started(2).await;
    let full = serving.detoxify(json!({ "text": TOXIC, "adapter": "a@2" })).await;
    assert_eq!(full.problem(503)["type"], "urn:detoxd:problem:overloaded");
    assert!(full.body.contains("max_adapters"), "{}", full.body);
    serving.rewriter.finish.notify_one();
    serving.rewriter.finish.notify_one();
    for held in held {
        held.await.unwrap();
    }
    assert_eq!(serving.adapter_of(Some("a@2")).await, "a@2");

    let small = Budget {
        max_rank: 2,
        max_bytes: 1000,
        ..Budget::default()
    };
    let serving = Serving::fake_at(Arc::new(tempfile::tempdir().unwrap()), small).await;
    let problem = serving.import("a", &files()).await.problem(422);
    assert!(
        problem["detail"].as_str().unwrap().contains("max_adapter_bytes"),
        "{problem}"
    );
}

#[tokio::test]
async fn what_is_deployed_or_pinned_is_not_deleted() {
    let serving = Serving::fake().await;
    serving.import_scaled(&[8.0, 7.0, 6.0, 5.0]).await;
    serving.activate(1).await.ok();
    let shared = json!({ "weights": [{ "adapter": "a@2", "weight": 0.5 }], "shadow": "a@3" });
    serving.put_json("/adapters/traffic", shared).await.ok();
    for (number, word) in [(1, "active"), (2, "traffic"), (3, "shadow")] {
        let problem = serving.delete(&format!("/adapters/a/{number}")).await.problem(409);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    serving.delete("/adapters/none/0").await.problem(409);
    serving.delete("/adapters/a/9").await.problem(404);
    assert_eq!(serving.put_json("/adapters/a/4/pin", json!({})).await.status, 204);
    assert_eq!(serving.get("/adapters/a/4").await.ok()["pinned"], true);
    serving.delete("/adapters/a/4").await.problem(409);
    assert_eq!(serving.delete("/adapters/a/4/pin").await.status, 204);
    assert_eq!(serving.adapter_of(Some("a@4")).await, "a@4");
    assert_eq!(serving.delete("/adapters/a/4").await.status, 204);
    serving.get("/adapters/a/4").await.problem(404);
    serving
        .detoxify(json!({ "text": TOXIC, "adapter": "a@4" }))
        .await
        .problem(422);
    let new = serving.import("a", &scaled(5.0)).await.json();
    assert_eq!(new["adapter"], "a@5", "a number is not given twice");
}

#[tokio::test]
async fn a_rollback_goes_back() {
    let serving = Serving::fake().await;
    let back = async || {
        let request = Request::post("/adapters/rollback").body(Body::empty()).unwrap();
        serving.send(request).await
    };
    back().await.problem(409);
    serving.import_scaled(&[8.0, 7.0, 6.0]).await;
    for number in [1, 2, 3] {
        serving.activate(number).await.ok();
    }
    serving.delete("/adapters/a/2").await;
    let expected = json!({ "expected": "a@1" }).to_string();
    serving.post("/adapters/rollback", expected).await.problem(409);
    let made = back().await.ok();
    assert_eq!((&made["active"], &made["action"]), (&json!("a@1"), &json!("rollback")));
    assert_eq!(serving.adapter_of(None).await, "a@1");
}

#[tokio::test]
async fn requests_are_shared_out_by_weight() {
    let serving = Serving::fake().await;
    serving.import_scaled(&[8.0, 7.0, 6.0]).await;
    serving.activate(1).await.ok();
    let shared = json!({
        "weights": [{ "adapter": "a@2", "weight": 0.25 }, { "adapter": "none@0", "weight": 0.1 }],
        "expected": "a@1",
    });
    let made = serving.put_json("/adapters/traffic", shared).await.ok();
    assert_eq!(made["weights"][0], json!({ "adapter": "a@2", "weight": 0.25 }));
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..200 {
        *counts.entry(serving.adapter_of(None).await).or_insert(0i32) += 1;
    }
    for (adapter, expected) in [("a@1", 130), ("a@2", 50), ("none@0", 20)] {
        assert!((counts[adapter] - expected).abs() <= 2, "{counts:?}");
    }
    // Who names an adapter gets it.
    assert_eq!(serving.adapter_of(Some("a@1")).await, "a@1");
    assert_eq!(serving.adapter_of(Some("a")).await, "a@1");
    let adapter = serving.get("/adapters/a/2").await.ok();
    assert_eq!(
        (&adapter["state"], &adapter["weight"]),
        (&json!("traffic"), &json!(0.25))
    );

    for (weights, field) in [
        (
            json!([{ "adapter": "a@2", "weight": 0.9 }, { "adapter": "a@3", "weight": 0.2 }]),
            "weights",
        ),
        (json!([{ "adapter": "a@2", "weight": -0.1 }]), "weights"),
        (json!([{ "adapter": "a", "weight": 0.1 }]), "weights[0].adapter"),
    ] {
        let problem = serving
            .put_json("/adapters/traffic", json!({ "weights": weights }))
            .await
            .problem(422);
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    let unknown = json!({ "weights": [], "shadow": "a@9" });
    serving.put_json("/adapters/traffic", unknown).await.problem(404);
    // An activation ends it.
    serving.activate(3).await.ok();
    for _ in 0..10 {
        assert_eq!(serving.adapter_of(None).await, "a@3");
    }
}

#[tokio::test]
async fn the_shadow_answers_unseen() {
    let serving = Serving::fake().await;
    serving.import_scaled(&[8.0, 7.0]).await;
    serving.activate(1).await.ok();
    let shadow = json!({ "weights": [], "shadow": "a@2" });
    serving.put_json("/adapters/traffic", shadow).await.ok();
    let compared = async || {
        let compared = serving.get("/adapters/compare?versions=a@1,a@2").await.ok();
        compared["versions"][1]["shadow"][0].clone()
    };
    let mut last = Value::Null;
    for count in 1..=3 {
        let answer = serving.detoxify(json!({ "text": TOXIC })).await;
        assert!(!answer.body.contains("a@2"), "{}", answer.body);
        assert_eq!(answer.ok()["adapter"], "a@1");
        for _ in 0..400 {
            last = compared().await;
            if last["texts"] == count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(
        (&last["served_by"], &last["texts"]),
        (&json!("a@1"), &json!(3)),
        "{last}"
    );
    assert_eq!((&last["better"], &last["worse"]), (&json!(0), &json!(0)));
    assert!(last["toxicity_before"].as_f64().unwrap() > 0.5, "{last}");
    let metrics = serving.get("/metrics").await.body;
    assert!(
        metrics.contains("detoxd_shadow_copies_total{result=\"compared\"} 3"),
        "{metrics}"
    );
    assert!(
        metrics.contains("detoxd_shadow_better_total{which=\"same\"} 3"),
        "{metrics}"
    );

    // The client does not wait for it: of many at once the first ones are copied, and the rest dropped.
    let texts = vec![TOXIC; 20];
    serving.detoxify(json!({ "texts": texts })).await.ok();
    let metrics = serving.get("/metrics").await.body;
    assert!(
        metrics.contains("detoxd_shadow_copies_total{result=\"dropped\"}"),
        "{metrics}"
    );
    // Who names an adapter, and who comes while the process ends, is not copied.
    let before = compared().await["texts"].clone();
    serving.detoxify(json!({ "text": TOXIC, "adapter": "a@1" })).await.ok();
    serving.state.drain();
    serving.detoxify(json!({ "text": TOXIC })).await.ok();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(compared().await["texts"].as_u64().unwrap() <= before.as_u64().unwrap() + 2);
    serving.get("/adapters/compare?versions=a@1,a@9").await.problem(404);
    serving.get("/adapters/compare?versions=").await.problem(422);
}
