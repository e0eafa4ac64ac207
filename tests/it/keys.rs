//! Keys: which route asks for which, and their making and revoking.

use axum::{
    body::Body,
    http::{Method, Request},
};
use detoxd::{
    access::{Actor, Scope},
    config::Limits,
};
use serde_json::json;

use crate::support::app::{Answer, App, service};

/// An application that asks for keys.
async fn closed() -> App {
    let app = App::build(Limits::default(), |backend| backend.key_needed = true).await;
    app.state.loaded(service(&app.rewriter));
    app
}

async fn key(app: &App, scope: Scope) -> (String, String) {
    let keys = &app.state.backend.keys;
    let (record, secret) = keys.create(scope.as_str(), scope, &Actor::part("cli")).await.unwrap();
    (record.id, secret.expose().to_owned())
}

async fn send(app: &App, method: &str, path: &str, key: Option<&str>) -> Answer {
    let mut request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    app.send(request.body(Body::from("{}")).unwrap()).await
}

/// Each route of the OpenAPI document, with the scope that it says it needs.
async fn routes(app: &App) -> Vec<(String, String, Option<String>)> {
    let document = app.get("/openapi.json").await.ok();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let scope = operation["security"][0]["bearer"][0].as_str().map(str::to_owned);
            let path = path
                .replace("{id}", "x")
                .replace("{name}", "x")
                .replace("{version}", "1");
            routes.push((method.to_uppercase(), path, scope));
        }
    }
    routes
}

#[tokio::test]
async fn each_route_asks_for_the_scope_that_the_document_says() {
    let app = closed().await;
    let mut keys = Vec::new();
    for scope in Scope::ALL {
        keys.push((scope, key(&app, scope).await.1));
    }
    let routes = routes(&app).await;
    let summary: Vec<String> = routes
        .iter()
        .map(|(method, path, scope)| format!("{:5} {method} {path}", scope.as_deref().unwrap_or("open")))
        .collect();
    insta::assert_json_snapshot!(summary);
    for (method, path, scope) in routes {
        let Some(scope) = scope else {
            assert!(
                ![401, 403].contains(&send(&app, &method, &path, None).await.status.as_u16()),
                "{path}"
            );
            continue;
        };
        let needed: Scope = scope.parse().unwrap();
        let without = send(&app, &method, &path, None).await;
        let problem = without.problem(401);
        assert_eq!(without.header("www-authenticate"), Some("Bearer"), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains(&scope), "{problem}");
        for (held, key) in &keys {
            let answer = send(&app, &method, &path, Some(key)).await;
            if *held < needed {
                let problem = answer.problem(403);
                let detail = problem["detail"].as_str().unwrap();
                assert!(
                    detail.contains(&format!("`{needed}`")) && detail.contains(&format!("`{held}`")),
                    "{detail}"
                );
            } else {
                assert!(
                    ![401, 403].contains(&answer.status.as_u16()),
                    "{held} {method} {path}: {}",
                    answer.body
                );
            }
        }
    }
}

#[tokio::test]
async fn pages_probes_and_the_document_need_no_key() {
    let app = closed().await;
    for path in [
        "/",
        "/docs/",
        "/openapi.json",
        "/metrics",
        "/health/live",
        "/health/ready",
    ] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    app.get("/no/such/route").await.problem(404);
}

#[tokio::test]
async fn a_key_is_made_shown_once_listed_and_revoked() {
    let app = closed().await;
    let (_, admin) = key(&app, Scope::Admin).await;
    let as_admin = |request: axum::http::request::Builder, body: &str| {
        let request = request
            .header("x-api-key", &admin)
            .header("content-type", "application/json");
        app.send(request.body(Body::from(body.to_owned())).unwrap())
    };
    let made = as_admin(Request::post("/keys"), r#"{"name": "chat", "scope": "use"}"#).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let made = made.json();
    let (id, secret) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    insta::assert_json_snapshot!(made, {
        ".id" => "[id]", ".key" => "[key]", ".created_at" => "[time]", ".created_by" => "[id]"
    });
    let listed = as_admin(Request::get("/keys"), "").await.ok();
    assert_eq!(listed["keys"][0]["id"], id);
    assert!(!listed.to_string().contains(secret), "a key is shown once");

    let detoxify = async |key: &str| {
        let request = Request::post("/detoxify")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {key}"));
        app.send(request.body(Body::from(r#"{"text": "Hello."}"#)).unwrap())
            .await
    };
    detoxify(secret).await.ok();
    let revoked = as_admin(Request::delete(format!("/keys/{id}")), "").await.ok();
    assert!(revoked["revoked_at"].is_string());
    let refused = detoxify(secret).await.problem(401);
    assert!(refused["detail"].as_str().unwrap().contains("revoked"), "{refused}");
    as_admin(Request::delete(format!("/keys/{id}")), "").await.ok();
    as_admin(Request::delete("/keys/x"), "").await.problem(404);
    let audit = as_admin(Request::get("/audit?limit=2"), "").await.ok();
    let acts: Vec<_> = audit["acts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| (&act["action"], &act["subject"]))
        .collect();
    assert_eq!(
        acts,
        [(&json!("key.revoke"), &json!(id)), (&json!("key.create"), &json!(id))]
    );
    assert_eq!(audit["next"], audit["acts"][1]["id"]);

    let wrong = as_admin(
        Request::post("/keys"),
        r#"{"name": "", "scope": "root", "key": "mine"}"#,
    )
    .await;
    let problem = wrong.problem(422);
    let fields: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| &error["field"])
        .collect();
    assert_eq!(fields, ["name", "scope", "key"]);
}

#[tokio::test]
async fn a_wrong_key_is_refused_even_where_none_is_needed() {
    let app = App::new().await;
    let (id, secret) = key(&app, Scope::Use).await;
    for wrong in ["dtx_00000000000000000000000000000000", "nonsense", ""] {
        send(&app, "GET", "/jobs", Some(wrong)).await.problem(401);
    }
    send(&app, "GET", "/jobs", None).await.ok();
    send(&app, "GET", "/jobs", Some(&secret)).await.problem(403);
    app.state.backend.keys.revoke(&id, &Actor::part("cli")).await.unwrap();
    send(&app, "GET", "/jobs", Some(&secret)).await.problem(401);
    // A scheme that is not ours is for a proxy before us.
    let basic = Request::get("/jobs").header("authorization", "Basic YTpi");
    app.send(basic.body(Body::empty()).unwrap()).await.ok();
}

#[tokio::test]
async fn a_text_is_served_without_the_database_for_whoever_came_lately() {
    let app = closed().await;
    let (_, known) = key(&app, Scope::Use).await;
    let (_, unseen) = key(&app, Scope::Use).await;
    let detoxify = async |key: &str| {
        let request = Request::post("/detoxify")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {key}"));
        app.send(request.body(Body::from(r#"{"text": "Hello."}"#)).unwrap())
            .await
    };
    detoxify(&known).await.ok();
    app.state.backend.keys.database().pool().close().await;
    detoxify(&known).await.ok();
    assert_eq!(
        detoxify(&unseen).await.problem(503)["type"],
        "urn:detoxd:problem:storage-unavailable"
    );
}
