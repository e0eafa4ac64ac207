//! What users write is in no log line, whatever happens to it.
//!
//! A binary of its own: only a subscriber of the whole process sees every line, and a scoped one can be shut out by a test
//! beside it that meets a log statement first (tracing then asks that test's thread whether anybody listens, and remembers).

#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with tests/it")]
mod support;

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{
    app::App,
    fake::{FAIL, PANIC, TOXIC},
};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn no_text_is_logged() {
    let captured = Captured::default();
    tracing_subscriber::fmt()
        .with_writer(captured.clone())
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .init();

    let app = App::new().await;
    app.detoxify(json!({ "text": TOXIC })).await.ok();
    app.detoxify(json!({ "texts": [TOXIC, "Nothing to report here."] }))
        .await
        .ok();
    app.detoxify(json!({ "text": FAIL })).await.problem(500);
    app.detoxify(json!({ "text": PANIC })).await.problem(500);
    app.detoxify(json!({ "text": TOXIC, "action": "report" }))
        .await
        .problem(422);
    app.post("/detoxify", format!("{{\"text\": \"{TOXIC}"))
        .await
        .problem(400);
    app.post("/score", json!({ "text": TOXIC }).to_string()).await.ok();
    app.get("/report?text=report").await.problem(404);

    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("answered").count(), 8, "{log}");
    assert!(
        log.contains("no more memory"),
        "the reason of a failure is logged: {log}"
    );
    assert!(!log.contains("report") && !log.contains("idiot"), "{log}");
}
