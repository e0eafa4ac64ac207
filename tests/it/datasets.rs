//! `/datasets`.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use detoxd::config::Limits;
use futures_core::Stream;
use serde_json::{Value, json};

use crate::support::app::{Answer, App};

pub const LINES: &str = concat!(
    r#"{"toxic": "You idiot, read page 1.", "neutral": ["Please read page 1."]}"#,
    "\n",
    r#"{"anchor": "You idiot, read page 2.", "positives": ["Read page 2."], "negatives": ["Idiot, page 2!"]}"#,
    "\n",
);

pub fn request(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/x-ndjson")
        .body(body.into())
        .unwrap()
}

async fn upload(app: &App, body: impl Into<Body>) -> Answer {
    app.send(request("/datasets", body)).await
}

/// Files that the application keeps, the database aside.
fn files(folder: &std::path::Path) -> usize {
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path)
        } else {
            usize::from(!path.to_string_lossy().contains("detoxd.db"))
        }
    };
    std::fs::read_dir(folder).unwrap().map(count).sum()
}

#[tokio::test]
async fn an_upload_is_kept_shown_listed_and_deleted() {
    let app = App::new().await;
    let answer = app.send(request("/datasets?name=pairs", LINES)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let dataset = answer.json();
    let location = format!("/datasets/{}", dataset["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(&*location));
    insta::assert_json_snapshot!(dataset, { ".id" => "[id]", ".created_at" => "[time]" });
    let time = dataset["created_at"].as_str().unwrap();
    assert!(time.ends_with('Z') && time.len() == 24, "{time}");

    let again = app.send(request("/datasets?name=other", LINES)).await;
    assert_eq!(again.ok(), dataset, "the same bytes are the same dataset");
    assert_eq!(app.get(&location).await.ok(), dataset);
    let all = app.get("/datasets").await.ok();
    assert_eq!(all, json!({ "datasets": [dataset], "next": null }));

    let gone = app.send(Request::delete(&location).body(Body::empty()).unwrap()).await;
    assert_eq!((gone.status.as_u16(), &*gone.body), (204, ""));
    app.get(&location).await.problem(404);
    app.send(Request::delete(&location).body(Body::empty()).unwrap())
        .await
        .problem(404);
    assert_eq!(files(app.folder()), 0);
    let audit = app.get("/audit").await.ok();
    let acts: Vec<_> = audit["acts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| &act["action"])
        .collect();
    assert_eq!(acts, ["dataset.delete", "dataset.upload"]);
}

#[tokio::test]
async fn bad_lines_are_named_and_nothing_is_kept() {
    let app = App::new().await;
    let body = format!("{LINES}\n{{\"toxic\": 3}}\n{LINES}not json\n{{\"anchor\": \"a\", \"positives\": [\"  \"]}}");
    let problem = upload(&app, body).await.problem(422);
    insta::assert_json_snapshot!(problem);

    let problem = upload(&app, b"\xef\xbb\xbf{}\n\"ab\xff\"".to_vec()).await.problem(422);
    assert_eq!(
        problem["errors"][1],
        json!({ "field": "line 2", "detail": "not UTF-8: byte 4 is wrong" })
    );
    let problem = upload(&app, "{}\n".repeat(1000)).await.problem(422);
    assert_eq!(problem["errors"].as_array().unwrap().len(), 20);
    for empty in ["", "\n\n  \r\n"] {
        let problem = upload(&app, empty).await.problem(422);
        assert_eq!(problem["errors"][0]["field"], "line 1");
    }
    // What is wrong is said without a word of the text.
    let problem = upload(&app, r#"{"toxic": "secret", "neutral": "words"}"#)
        .await
        .problem(422)
        .to_string();
    assert!(!problem.contains("secret") && !problem.contains("words"), "{problem}");
    assert_eq!(app.get("/datasets").await.ok()["datasets"], json!([]));
    assert_eq!(files(app.folder()), 0);
}

/// A body that goes on until nobody reads it any more.
struct Endless {
    sent: Arc<AtomicU64>,
    chunk: Bytes,
    chunks: u64,
}

impl Stream for Endless {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.chunks == 0 {
            return Poll::Ready(None);
        }
        self.chunks -= 1;
        self.sent.fetch_add(self.chunk.len() as u64, Ordering::SeqCst);
        Poll::Ready(Some(Ok(self.chunk.clone())))
    }
}

#[tokio::test]
async fn a_dataset_that_is_too_large_is_refused_with_both_figures() {
    const LIMIT: u64 = 100_000;
    let app = App::build(Limits::default(), |backend| backend.max_dataset_bytes = LIMIT).await;
    let sent = Arc::new(AtomicU64::new(0));
    let endless = |chunks| {
        Body::from_stream(Endless {
            sent: Arc::clone(&sent),
            chunk: LINES.repeat(50).into(),
            chunks,
        })
    };
    // Declared: not a byte is read before the answer.
    let declared = Request::post("/datasets")
        .header("content-type", "application/x-ndjson")
        .header("content-length", "10737418240")
        .body(endless(1_000_000))
        .unwrap();
    let problem = app.send(declared).await.problem(413);
    assert_eq!(
        problem["detail"],
        "the dataset has 10737418240 bytes, at most 100000 bytes are accepted"
    );
    // Not declared: counted.
    let problem = upload(&app, endless(1_000_000)).await.problem(413);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.ends_with("at most 100000 bytes are accepted"), "{detail}");
    assert_eq!(files(app.folder()), 0);
    let fits = (LIMIT as usize) / (LINES.len() * 50);
    let kept = upload(&app, endless(fits as u64)).await;
    assert_eq!(kept.json()["rows"], 100 * fits);
}

#[tokio::test]
async fn a_body_that_stops_is_408_and_one_of_another_type_415() {
    let limits = Limits {
        timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let app = App::with(limits).await;
    struct Silent;
    impl Stream for Silent {
        type Item = Result<Bytes, std::io::Error>;
        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Pending
        }
    }
    upload(&app, Body::from_stream(Silent)).await.problem(408);
    for (kind, encoding, status) in [
        ("application/json", "identity", 415),
        ("text/plain", "identity", 415),
        ("application/x-ndjson", "gzip", 415),
        ("application/jsonl; charset=utf-8", "identity", 201),
    ] {
        let request = Request::post("/datasets")
            .header("content-type", kind)
            .header("content-encoding", encoding)
            .body(Body::from(LINES))
            .unwrap();
        assert_eq!(app.send(request).await.status, status, "{kind} {encoding}");
    }
    let failing = Body::from_stream(Broken);
    struct Broken;
    impl Stream for Broken {
        type Item = Result<Bytes, std::io::Error>;
        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Ready(Some(Err(std::io::Error::other("reset"))))
        }
    }
    upload(&app, failing).await.problem(400);
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let app = App::new().await;
    let mut ids: Vec<Value> = Vec::new();
    for number in 0..5 {
        let line = format!(r#"{{"toxic": "You idiot, {number}.", "neutral": ["Please, {number}."]}}"#);
        let answer = upload(&app, line).await;
        ids.insert(0, answer.json()["id"].clone());
    }
    let mut seen = Vec::new();
    let mut query = "limit=2".to_owned();
    let mut pages = 0;
    loop {
        let page = app.get(&format!("/datasets?{query}")).await.ok();
        seen.extend(
            page["datasets"]
                .as_array()
                .unwrap()
                .iter()
                .map(|dataset| dataset["id"].clone()),
        );
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        query = format!("limit=2&before={next}");
    }
    assert_eq!((seen, pages), (ids, 3));
    let problem = app.get("/datasets?limit=0&before=x&page=2").await.problem(422);
    let fields: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| &error["field"])
        .collect();
    assert_eq!(fields, ["before", "limit", "page"]);
    app.get("/datasets?limit=2&limit=3").await.problem(422);
    app.send(request("/datasets?name=", LINES)).await.problem(422);
    app.send(request("/datasets?nmae=a", LINES)).await.problem(422);
    app.get("/datasets/%ff").await.problem(400);
}

#[tokio::test]
async fn without_the_database_nothing_is_kept_and_the_answer_says_when_to_come_back() {
    let app = App::new().await;
    app.state.backend.datasets.database().pool().close().await;
    let answer = upload(&app, LINES).await;
    assert_eq!(answer.problem(503)["type"], "urn:detoxd:problem:storage-unavailable");
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert_eq!(files(app.folder()), 0);
}
