//! The real router around the fake rewriter.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use detoxd::{
    adapters::Residents,
    cli::compose,
    config::{Limits, Policy},
    db::Database,
    http::{self, AppState, Backend, Service},
    metrics::Metrics,
    pipeline::Judges,
    store::Store,
};
use serde_json::Value;
use tower::ServiceExt;

use super::fake::{self, FakeRewriter};

/// An application of its own for a test.
pub struct App {
    /// The router.
    pub router: Router,
    /// What the handlers share.
    pub state: Arc<AppState>,
    /// The rewriter in it.
    pub rewriter: Arc<FakeRewriter>,
    /// Database and store; gone with the application.
    pub folder: Arc<tempfile::TempDir>,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl App {
    /// With the default limits.
    pub async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    /// With limits of its own.
    pub async fn with(limits: Limits) -> Self {
        let app = Self::loading(limits).await;
        app.state.loaded(service(&app.rewriter));
        app
    }

    /// Before the model is loaded.
    pub async fn loading(limits: Limits) -> Self {
        Self::build(limits, |_| ()).await
    }

    /// Before the model is loaded, with another backend than the default one.
    pub async fn build(limits: Limits, change: impl FnOnce(&mut Backend)) -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), limits, change).await
    }

    /// Before the model is loaded, on the database and the store in a folder: another process of the same service.
    pub async fn at(folder: Arc<tempfile::TempDir>, limits: Limits, change: impl FnOnce(&mut Backend)) -> Self {
        let db = Database::open(None, folder.path()).await.unwrap();
        let store = Store::open(None, folder.path()).unwrap();
        let mut backend = Backend::new(db, store, "fake");
        backend.datasets = backend.datasets.with_folder(folder.path().join("uploads"));
        change(&mut backend);
        let metrics = Metrics::new(limits.max_concurrent_requests).unwrap();
        let state = AppState::new(limits, Policy::default(), Arc::new(metrics), backend);
        let router = http::router(Arc::clone(&state));
        Self {
            router,
            state,
            rewriter: fake::parts().0,
            folder,
        }
    }

    /// Where database and store are.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Sends a request.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Answer {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// Gets a path.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Posts a body as JSON.
    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(json(path, body)).await
    }

    /// Posts to `/detoxify`.
    pub async fn detoxify(&self, body: Value) -> Answer {
        self.post("/detoxify", body.to_string()).await
    }

    /// Waits until the rewriter works on this many slow sentences.
    pub async fn slow_started(&self, count: usize) {
        let started = async {
            while self.rewriter.started.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), started)
            .await
            .expect("not started");
    }
}

/// A service around the rewriter.
pub fn service(rewriter: &Arc<FakeRewriter>) -> Service {
    service_with(rewriter, Residents::new(detoxd::adapters::AdapterLease::none()))
}

/// A service around the rewriter, with these adapters.
pub fn service_with(rewriter: &Arc<FakeRewriter>, residents: Residents) -> Service {
    let judges = Judges::built_in().unwrap();
    compose::assemble(rewriter.clone(), Arc::new(residents), fake::parts().1, judges)
}

/// A POST of JSON.
pub fn json(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as a problem document with this status.
    #[track_caller]
    pub fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "no {member}: {problem}");
        }
        problem
    }

    /// The body as what is asked for.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.json()
    }
}
