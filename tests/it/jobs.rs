//! `/jobs`: listing, events, cancelling, trying again.

use std::{future::poll_fn, pin::Pin, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::Request,
};
use detoxd::jobs::{
    JobError, Phase, Progress,
    claims::{Claim, Healing},
};
use futures_core::Stream;
use serde_json::{Value, json};

use crate::{
    support::app::{App, json as post},
    train::dataset,
};

const LEASE: Duration = Duration::from_secs(60);

async fn submit(app: &App, name: &str) -> String {
    let body = json!({ "name": name, "dataset": dataset(app).await });
    let answer = app.post("/train", body.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn claim(app: &App) -> Claim {
    app.state.backend.jobs.claim("worker", LEASE).await.unwrap().unwrap()
}

async fn act(app: &App, id: &str, verb: &str) -> crate::support::app::Answer {
    app.send(post(&format!("/jobs/{id}/{verb}"), "{}")).await
}

fn progress(step: u64) -> Progress {
    Progress {
        step,
        steps: 40,
        loss: 1.5,
        tokens_per_second: 900.0,
        eta_seconds: 12.0,
    }
}

/// A stream of events that is being read.
struct Following {
    body: BodyDataStream,
    read: String,
}

impl Following {
    async fn begin(app: &App, id: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(format!("/jobs/{id}/events"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(app.router.clone(), request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body().into_data_stream(),
            read: String::new(),
        }
    }

    /// The next event as name, id and data; none at the end.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.read = rest;
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(|v| v.trim().to_owned())
                };
                if let (Some(name), Some(id), Some(data)) = (field("event:"), field("id:"), field("data:")) {
                    return Some((name, id, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let next = poll_fn(|context| Pin::new(&mut self.body).poll_next(context));
            let chunk = tokio::time::timeout(Duration::from_secs(10), next)
                .await
                .expect("no event");
            self.read += std::str::from_utf8(&chunk?.unwrap()).unwrap();
        }
    }
}

#[tokio::test]
async fn a_job_is_followed_from_where_it_stands_to_its_end() {
    let app = App::new().await;
    let id = submit(&app, "milder").await;
    let queue = &app.state.backend.jobs;
    let mut events = Following::begin(&app, &id, None).await;
    let (name, _, job) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &job["status"]), ("status", &json!("queued")));
    assert_eq!(job, app.get(&format!("/jobs/{id}")).await.ok());

    let claim = claim(&app).await;
    let (name, _, job) = events.next().await.unwrap();
    assert_eq!(
        (name.as_str(), &job["status"], &job["phase"]),
        ("status", &json!("running"), &json!("preparing"))
    );
    queue.phase(&claim, Phase::Training).await.unwrap();
    events.next().await.unwrap();
    let mut ids = Vec::new();
    for step in [1, 2] {
        queue.progress(&claim, &progress(step)).await.unwrap();
        let (name, event_id, job) = events.next().await.unwrap();
        assert_eq!((name.as_str(), &job["progress"]["step"]), ("progress", &json!(step)));
        assert_eq!(job["progress"]["loss"], 1.5);
        ids.push(event_id);
    }
    // Somebody who saw the first of them is told what came after, and only that.
    let mut later = Following::begin(&app, &id, Some(&ids[0])).await;
    assert_eq!(later.next().await.unwrap().1, ids[1]);
    let mut latest = Following::begin(&app, &id, Some(&ids[1])).await;

    let error = JobError {
        kind: "diverged".to_owned(),
        message: "the loss is not finite at step 3".to_owned(),
    };
    queue.fail(&claim, &error, Healing::Impossible).await.unwrap();
    for events in [&mut events, &mut later, &mut latest] {
        let (name, last, job) = events.next().await.unwrap();
        assert_eq!((name.as_str(), &job["status"]), ("done", &json!("failed")));
        assert_eq!(
            job["error"],
            json!({ "kind": "diverged", "message": "the loss is not finite at step 3" })
        );
        assert!(events.next().await.is_none(), "the stream ends");
        let again = Request::get(format!("/jobs/{id}/events")).header("last-event-id", &last);
        assert_eq!(app.send(again.body(Body::empty()).unwrap()).await.status, 204);
    }
    let job = app.get(&format!("/jobs/{id}")).await.ok();
    insta::assert_json_snapshot!(job, {
        ".id" => "[id]", ".created_at" => "[time]", ".started_at" => "[time]", ".finished_at" => "[time]",
        ".heartbeat_at" => "[time]", ".request.dataset" => "[id]"
    });
    // Whoever comes late gets the end at once.
    let mut late = Following::begin(&app, &id, None).await;
    assert_eq!(late.next().await.unwrap().0, "done");
    assert!(late.next().await.is_none());
}

#[tokio::test]
async fn events_end_when_the_service_stops() {
    let app = App::new().await;
    let id = submit(&app, "milder").await;
    let mut events = Following::begin(&app, &id, None).await;
    events.next().await.unwrap();
    app.state.drain();
    let end = tokio::time::timeout(Duration::from_secs(2), events.next()).await;
    assert!(end.expect("the stream holds the shutdown").is_none());
}

#[tokio::test]
async fn events_outlast_a_database_that_is_away_for_a_moment() {
    let app = App::new().await;
    let id = submit(&app, "milder").await;
    let mut events = Following::begin(&app, &id, None).await;
    events.next().await.unwrap();
    let pool = app.state.backend.jobs.database().pool();
    let mut held = pool.begin_with("BEGIN EXCLUSIVE").await.unwrap();
    sqlx::query("UPDATE jobs SET priority = 3, revision = revision + 1")
        .execute(&mut *held)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    held.commit().await.unwrap();
    assert_eq!(events.next().await.unwrap().2["priority"], 3);
}

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once_and_a_running_one_is_told() {
    let app = App::new().await;
    let (first, second) = (submit(&app, "a").await, submit(&app, "b").await);
    let cancelled = act(&app, &second, "cancel").await.ok();
    assert_eq!(cancelled["status"], "cancelled");
    assert!(cancelled["finished_at"].is_string());
    let claim = claim(&app).await;
    let told = act(&app, &first, "cancel").await.ok();
    assert_eq!(
        (&told["status"], &told["cancel_requested"]),
        (&json!("running"), &json!(true))
    );
    app.state.backend.jobs.cancelled(&claim).await.unwrap();
    for id in [&first, &second] {
        let problem = act(&app, id, "cancel").await.problem(409);
        assert!(
            problem["detail"].as_str().unwrap().contains("is cancelled"),
            "{problem}"
        );
    }
    act(&app, "unknown", "cancel").await.problem(404);
    act(&app, "unknown", "retry").await.problem(404);
    app.get("/jobs/unknown").await.problem(404);
    app.get("/jobs/unknown/events").await.problem(404);
    for path in ["/jobs/%ff", "/adapters/%ff/1"] {
        app.get(path).await.problem(400);
    }
}

#[tokio::test]
async fn only_a_failed_or_cancelled_job_is_tried_again() {
    let app = App::new().await;
    let id = submit(&app, "a").await;
    let refused = act(&app, &id, "retry").await.problem(409);
    assert!(refused["detail"].as_str().unwrap().contains("is queued"), "{refused}");
    let first = claim(&app).await;
    act(&app, &id, "retry").await.problem(409);
    let error = JobError {
        kind: "failed".to_owned(),
        message: "exit code 1".to_owned(),
    };
    let queue = &app.state.backend.jobs;
    queue.fail(&first, &error, Healing::Possible).await.unwrap();
    let waiting = app.get(&format!("/jobs/{id}")).await.ok();
    assert_eq!(
        (&waiting["status"], &waiting["attempts"]),
        (&json!("queued"), &json!(1))
    );
    assert!(waiting["retry_at"].is_string(), "{waiting}");

    act(&app, &id, "cancel").await.ok();
    let again = act(&app, &id, "retry").await.ok();
    assert_eq!(
        (&again["status"], &again["attempts"], &again["error"]),
        (&json!("queued"), &json!(0), &Value::Null)
    );
    assert!(again["retry_at"].is_null(), "{again}");
    let audit = app.get("/audit").await.ok();
    let acts: Vec<_> = audit["acts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| act["action"].as_str().unwrap())
        .collect();
    assert_eq!(acts[..3], ["job.retry", "job.cancel", "job.submit"]);
}

#[tokio::test]
async fn jobs_are_listed_by_state_and_name_in_pages() {
    let app = App::new().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "a", "b", "a"] {
        ids.insert(0, submit(&app, name).await);
    }
    let list = async |query: &str| {
        let page = app.get(&format!("/jobs?{query}")).await.ok();
        let jobs = page["jobs"].as_array().unwrap();
        let ids: Vec<String> = jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
        (ids, page["next"].as_str().map(str::to_owned))
    };
    assert_eq!(list("").await, (ids.clone(), None));
    assert_eq!(list("limit=2").await, (ids[..2].to_vec(), Some(ids[1].clone())));
    assert_eq!(
        list(&format!("limit=3&before={}", ids[1])).await,
        (ids[2..].to_vec(), None)
    );
    assert_eq!(list("name=a").await.0, [&*ids[0], &ids[2], &ids[4]]);
    claim(&app).await;
    act(&app, &ids[0], "cancel").await.ok();
    assert_eq!(list("status=running").await.0, [&*ids[4]]);
    assert_eq!(list("status=running,cancelled&name=a").await.0, [&*ids[0], &ids[4]]);
    assert_eq!(list("status=succeeded").await.0, Vec::<String>::new());
    for query in [
        "status=done",
        "status=",
        "limit=201",
        "limit=x",
        "before=1",
        "state=queued",
    ] {
        app.get(&format!("/jobs?{query}")).await.problem(422);
    }
}

#[tokio::test]
async fn a_dataset_stays_while_a_job_needs_it() {
    let app = App::new().await;
    let id = submit(&app, "a").await;
    let dataset = dataset(&app).await;
    let delete = || {
        app.send(
            Request::delete(format!("/datasets/{dataset}"))
                .body(Body::empty())
                .unwrap(),
        )
    };
    let problem = delete().await.problem(409);
    assert!(problem["detail"].as_str().unwrap().contains(&id), "{problem}");
    act(&app, &id, "cancel").await.ok();
    assert_eq!(delete().await.status, 204);
    let job = app.get(&format!("/jobs/{id}")).await.ok();
    assert_eq!(
        job["request"]["dataset"],
        json!(dataset),
        "a job says what it was made of"
    );
}
