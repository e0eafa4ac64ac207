//! `POST /train`.

use std::ffi::OsString;

use axum::{body::Body, http::Request};
use detoxd::{
    access::{Actor, Scope},
    adapters::{NewVersion, Source, insert_version},
    cli,
    jobs::TrainRequest,
};
use serde_json::{Value, json};

use crate::{
    datasets::{LINES, request},
    support::app::{Answer, App},
};

/// Uploads a dataset; its id.
pub async fn dataset(app: &App) -> String {
    let answer = app.send(request("/datasets", LINES)).await;
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn train(app: &App, body: &Value) -> Answer {
    app.post("/train", body.to_string()).await
}

async fn train_with_key(app: &App, key: &str, body: &Value) -> Answer {
    let request = Request::post("/train")
        .header("content-type", "application/json")
        .header("idempotency-key", key);
    app.send(request.body(Body::from(body.to_string())).unwrap()).await
}

/// The fields that a 422 names.
#[track_caller]
fn fields(answer: &Answer) -> Vec<String> {
    let problem = answer.problem(422);
    let errors = problem["errors"].as_array().unwrap();
    errors
        .iter()
        .map(|error| error["field"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_shortest_request_gets_the_defaults() {
    let app = App::new().await;
    let dataset = dataset(&app).await;
    let answer = train(&app, &json!({ "name": "milder", "dataset": dataset })).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let accepted = answer.json();
    assert_eq!(accepted["status"], "queued");
    let location = format!("/jobs/{}", accepted["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(&*location));
    let job = app.get(&location).await.ok();
    insta::assert_json_snapshot!(job, {
        ".id" => "[id]", ".created_at" => "[time]", ".request.dataset" => "[id]"
    });
}

#[tokio::test]
async fn all_wrong_fields_are_named_at_once_with_their_paths() {
    let app = App::new().await;
    let body = json!({
        "name": "no spaces, please", "base": "gpt-9", "dataset": "unknown", "objective": "rlhf", "colour": "red",
        "hyperparameters": {
            "preset": "quick", "learning_rate": 7, "epochs": "two", "batch_size": 0, "lora_dropout": 1, "beta": -1,
            "target_modules": ["q_proj", "w_proj"], "schedule": "sometimes", "lora_rank": 100000, "learning_rat": 1
        },
        "evaluate": { "held_back": 0.9, "max_examples": 0, "how": "well" },
        "activate": "maybe", "priority": 1000
    });
    let problem = train(&app, &body).await.problem(422);
    insta::assert_json_snapshot!(problem["errors"]);
    assert_eq!(app.get("/jobs").await.ok()["jobs"], json!([]));
    assert_eq!(fields(&train(&app, &json!({})).await), ["name", "dataset"]);
    assert_eq!(fields(&train(&app, &json!([])).await), ["."]);
}

#[tokio::test]
async fn each_field_has_its_range() {
    let app = App::new().await;
    let dataset = dataset(&app).await;
    for (field, wrong, right) in [
        ("epochs", json!([0, -1, 1e9, "1"]), json!([0.5, 10000])),
        ("max_steps", json!([0, 1.5]), json!([1, 40.0])),
        ("batch_tokens", json!([1]), json!([256])),
        ("gradient_accumulation", json!([0]), json!([4])),
        ("learning_rate", json!([0, -1e-4, 2]), json!([2.2e-5])),
        ("warmup_steps", json!([-1]), json!([0])),
        ("schedule", json!(["cosin", 1]), json!(["cosine", "linear", "constant"])),
        ("seed", json!([-1, 0.5]), json!([0, 7])),
        ("lora_rank", json!([0, 257]), json!([256])),
        ("lora_alpha", json!([0]), json!([16])),
        ("lora_dropout", json!([-0.1, 1]), json!([0, 0.1])),
        ("quantize", json!(["int8", 4]), json!(["none", "nf4", "q4_k"])),
        (
            "target_modules",
            json!([[], "q_proj", ["q_proj", "q_proj"], ["head"]]),
            json!([["q_proj", "v_proj"]]),
        ),
        ("max_tokens", json!([0]), json!([128])),
        ("num_positives", json!([0]), json!([3])),
        ("num_negatives", json!([0]), json!([7])),
        (
            "phi",
            json!(["log-perplexity"]),
            json!(["perplexity", "log_perplexity"]),
        ),
        (
            "similarity",
            json!(["cosine"]),
            json!(["paper", "symmetric", "directed", "released"]),
        ),
        ("margin", json!([-1]), json!([0, 2])),
        ("tau", json!([0]), json!([0.1])),
        ("alpha", json!([-1]), json!([1.1])),
        ("detach_prototype", json!(["yes", 1]), json!([true, false])),
        ("cp_weight", json!([-1]), json!([0])),
        ("sft_weight", json!([-1]), json!([0])),
        (
            "preset",
            json!(["quick", 1]),
            json!(["rewriter", "paper", "released", null]),
        ),
        ("batch_size", json!([0]), json!([2])),
        ("random_negatives", json!([-1]), json!([0, 6])),
        ("conditioning", json!(["anchor"]), json!(["prompt", "nothing"])),
        ("sides", json!(["left"]), json!(["both", "positives", "negatives"])),
        ("beta", json!([0, -1]), json!([0.1])),
        ("gamma", json!([-1]), json!([0, 1.6])),
        ("length_normalised", json!([1]), json!([true])),
        ("samples", json!([1]), json!([8])),
        ("ppo_epochs", json!([0]), json!([4])),
        ("clip", json!([0, 1]), json!([0.1])),
        ("init_adapter", json!(["milder", "milder@1", "@1", 1]), json!([null])),
    ] {
        let send = async |value: &Value| {
            let body = json!({ "name": "milder", "dataset": dataset, "hyperparameters": { field: value } });
            train(&app, &body).await
        };
        for value in wrong.as_array().unwrap() {
            assert_eq!(
                fields(&send(value).await),
                [format!("hyperparameters.{field}")],
                "{value}"
            );
        }
        for value in right.as_array().unwrap() {
            let answer = send(value).await;
            assert_eq!(answer.status, 202, "{field} {value}: {}", answer.body);
            // What is accepted here must be accepted by the process that trains.
            let id = answer.json()["id"].as_str().unwrap().to_owned();
            let job = app.state.backend.jobs.get(&id).await.unwrap().unwrap();
            let mut arguments = vec!["detoxd", "train", "--data", "d", "--out", "o", "--objective", "cp"];
            let given = job.request.hyperparameters.arguments();
            arguments.extend(given.iter().map(String::as_str));
            let parsed = cli::parse(arguments.into_iter().map(OsString::from).collect());
            assert!(parsed.is_ok(), "{field} {value}: {given:?}: {}", parsed.unwrap_err());
        }
    }
}

#[tokio::test]
async fn the_other_fields_have_theirs() {
    let app = App::new().await;
    let dataset = dataset(&app).await;
    let send = async |more: Value| {
        let mut body = json!({ "name": "milder", "dataset": dataset });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        train(&app, &body).await
    };
    for (more, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": "none" }), "name"),
        (json!({ "name": "-x" }), "name"),
        (json!({ "name": "a@1" }), "name"),
        (json!({ "name": "a".repeat(65) }), "name"),
        (json!({ "name": 3 }), "name"),
        (json!({ "dataset": null }), "dataset"),
        (json!({ "base": "../etc" }), "base"),
        (json!({ "objective": "kto" }), "objective"),
        (json!({ "objective": "CP" }), "objective"),
        (json!({ "evaluate": "yes" }), "evaluate"),
        (json!({ "activate": true }), "activate"),
        (json!({ "evaluate": false, "activate": "if_better" }), "activate"),
        (json!({ "priority": 0.5 }), "priority"),
        (json!({ "hyperparameters": [] }), "hyperparameters"),
        (
            json!({ "hyperparameters": { "cp_weight": 0, "sft_weight": 0 } }),
            "hyperparameters.cp_weight",
        ),
    ] {
        assert_eq!(fields(&send(more.clone()).await), [field], "{more}");
    }
    for (more, path, expected) in [
        (json!({ "base": "fake" }), "/request/base", json!("fake")),
        (
            json!({ "base": "smollm2-135m" }),
            "/request/base",
            json!("smollm2-135m"),
        ),
        (json!({ "objective": "sft" }), "/request/objective", json!("sft")),
        (json!({ "objective": "simpo" }), "/request/objective", json!("simpo")),
        (json!({ "objective": "ppo" }), "/request/objective", json!("ppo")),
        (json!({ "evaluate": false }), "/request/evaluate/held_back", json!(0.0)),
        (
            json!({ "evaluate": true }),
            "/request/evaluate",
            json!({ "held_back": 0.1, "max_examples": 64 }),
        ),
        (
            json!({ "evaluate": { "held_back": 0.5 } }),
            "/request/evaluate",
            json!({ "held_back": 0.5, "max_examples": 64 }),
        ),
        (
            json!({ "activate": "if_better" }),
            "/request/activate",
            json!("if_better"),
        ),
        (json!({ "priority": -5 }), "/priority", json!(-5)),
    ] {
        let answer = send(more.clone()).await;
        assert_eq!(answer.status, 202, "{more}: {}", answer.body);
        let job = app.get(answer.header("location").unwrap()).await.ok();
        assert_eq!(job.pointer(path), Some(&expected), "{more}");
    }
}

#[tokio::test]
async fn a_run_may_begin_from_a_version_of_the_registry() {
    let app = App::new().await;
    let dataset = dataset(&app).await;
    let registry = &app.state.backend.registry;
    let mut transaction = registry.database().begin().await.unwrap();
    let new = NewVersion {
        name: "milder".to_owned(),
        sha256: "0".repeat(64),
        bytes: 1,
        rank: 4,
        base: "fake".to_owned(),
        base_fingerprint: "1".repeat(64),
        source: Source::Import,
        job: None,
        dataset: None,
        dataset_sha256: None,
        hyperparameters: None,
        metrics: None,
    };
    insert_version(&mut transaction, &new, &Actor::part("test"))
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    let send = async |hyperparameters: Value| {
        let body = json!({ "name": "milder", "dataset": dataset, "hyperparameters": hyperparameters });
        train(&app, &body).await
    };
    assert_eq!(send(json!({ "init_adapter": "milder@1" })).await.status, 202);
    assert_eq!(
        fields(&send(json!({ "init_adapter": "milder@2" })).await),
        ["hyperparameters.init_adapter"]
    );
    let both = send(json!({ "init_adapter": "milder@1", "lora_rank": 8 })).await;
    assert_eq!(fields(&both), ["hyperparameters.lora_rank"]);
}

#[tokio::test]
async fn a_request_that_is_sent_again_makes_one_job() {
    let app = App::new().await;
    let dataset = dataset(&app).await;
    let body = json!({ "name": "milder", "dataset": dataset });
    let first = train_with_key(&app, "order-1", &body).await;
    assert_eq!(first.status, 202);
    let again = train_with_key(&app, "order-1", &body).await;
    assert_eq!(
        (again.ok(), again.header("location")),
        (first.json(), first.header("location"))
    );
    // As the structured string that the draft asks for; with the defaults written out.
    let spelt =
        json!({ "name": "milder", "dataset": dataset, "objective": "cp", "activate": "never", "evaluate": true });
    assert_eq!(train_with_key(&app, "\"order-1\"", &spelt).await.ok(), first.json());
    let other = json!({ "name": "other", "dataset": dataset });
    train_with_key(&app, "order-1", &other).await.problem(409);
    assert_eq!(train_with_key(&app, "order-2", &body).await.status, 202);
    assert_eq!(app.get("/jobs").await.ok()["jobs"].as_array().unwrap().len(), 2);

    // Another asker's key of the same name is another key.
    let keys = &app.state.backend.keys;
    let (_, secret) = keys.create("a", Scope::Train, &Actor::part("cli")).await.unwrap();
    let request = Request::post("/train")
        .header("content-type", "application/json")
        .header("x-api-key", secret.expose())
        .header("idempotency-key", "order-1");
    let theirs = app.send(request.body(Body::from(body.to_string())).unwrap()).await;
    assert_eq!(theirs.status, 202);
    assert_ne!(theirs.json()["id"], first.json()["id"]);

    for key in ["", "\"\"", &"x".repeat(300)] {
        assert_eq!(fields(&train_with_key(&app, key, &body).await), ["Idempotency-Key"]);
    }
}

#[tokio::test]
async fn ten_tries_at_once_make_one_job() {
    let app = App::new().await;
    let body = json!({ "name": "milder", "dataset": dataset(&app).await });
    let tries = (0..10).map(|_| {
        let request = Request::post("/train")
            .header("content-type", "application/json")
            .header("idempotency-key", "once")
            .body(Body::from(body.to_string()))
            .unwrap();
        let router = app.router.clone();
        tokio::spawn(async move { tower::ServiceExt::oneshot(router, request).await.unwrap().status() })
    });
    let mut new = 0;
    for status in tries.collect::<Vec<_>>() {
        new += usize::from(status.await.unwrap() == 202);
    }
    assert_eq!(new, 1);
    assert_eq!(app.get("/jobs").await.ok()["jobs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn malformed_bodies_are_refused() {
    let app = App::new().await;
    for (body, status) in [
        ("", 400),
        ("{", 400),
        ("{\"name\": \"a\"} x", 400),
        ("null", 422),
        ("1e999", 400),
    ] {
        app.post("/train", body).await.problem(status);
    }
    app.post("/train", "[".repeat(100_000)).await.problem(400);
    let big = json!({ "name": "a".repeat(3 << 20) });
    train(&app, &big).await.problem(413);
    app.send(Request::post("/train").body(Body::from("{}")).unwrap())
        .await
        .problem(415);
}

/// A job's request can be read by an older and a newer program: what is kept names every field.
#[tokio::test]
async fn what_is_kept_is_what_was_asked_for() {
    let app = App::new().await;
    let dataset = dataset(&app).await;
    let body = json!({ "name": "milder", "dataset": dataset, "hyperparameters": { "epochs": 2, "phi": "perplexity" } });
    let answer = train(&app, &body).await;
    let job = app.get(answer.header("location").unwrap()).await.ok();
    let request: TrainRequest = serde_json::from_value(job["request"].clone()).unwrap();
    assert_eq!(request.hyperparameters.epochs, Some(2.0));
    assert_eq!(
        job["request"]["hyperparameters"],
        json!({ "epochs": 2.0, "phi": "perplexity" })
    );
}
