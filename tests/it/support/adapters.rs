//! Services with a registry of adapters: around the fake rewriter, where it is about what is served, and on the micro model, where it is
//! about what is computed.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::Request;
use candle_core::Device;
use detoxd::adapters::{AdapterFiles, Base, Budget, CONFIG, Canary, CanaryError, Incoming, Loader, Residents, WEIGHTS};
use detoxd::cli::compose;
use detoxd::config::{AdapterSource, Dtype, JudgesConfig, Limits, ModelConfig, Quantize};
use detoxd::model::fingerprint::fingerprint;
use detoxd::model::lora::LoraModel;
use detoxd::model::{DecoderConfig, Placement};
use detoxd::tasks::follow::Follower;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::app::{Answer, App, service_with};

/// The model of the fixtures.
pub fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/micro")
}

/// The adapter of the fixtures.
pub fn files() -> AdapterFiles {
    Incoming::from_folder(&model().join("adapter"), u64::MAX).unwrap().files
}

/// Another adapter: the same weights with another scale, 8 being the fixture's. None at 0.
pub fn scaled(alpha: f64) -> AdapterFiles {
    changed("\"lora_alpha\": 8.0", &format!("\"lora_alpha\": {alpha:?}"))
}

/// The adapter with something else in its settings.
pub fn changed(from: &str, to: &str) -> AdapterFiles {
    let AdapterFiles { config, weights } = files();
    let config = String::from_utf8(config).unwrap();
    assert!(config.contains(from));
    AdapterFiles {
        config: config.replace(from, to).into_bytes(),
        weights,
    }
}

/// Does not try anything; waits, or refuses, when told to.
pub struct FakeCanary {
    /// Permits to pass; without end at first.
    pub gate: Semaphore,
    pub refuses: AtomicBool,
    pub runs: AtomicUsize,
}

impl Default for FakeCanary {
    fn default() -> Self {
        Self {
            gate: Semaphore::new(1000),
            refuses: AtomicBool::new(false),
            runs: AtomicUsize::new(0),
        }
    }
}

impl FakeCanary {
    /// From now on canaries wait.
    pub fn close(&self) {
        self.gate.forget_permits(1000);
    }

    /// From now on they do not.
    pub fn open(&self) {
        self.gate.add_permits(1000);
    }
}

impl Canary for FakeCanary {
    fn run<'a>(&'a self, _: &'a Arc<LoraModel>) -> Pin<Box<dyn Future<Output = Result<(), CanaryError>> + Send + 'a>> {
        Box::pin(async {
            self.runs.fetch_add(1, Ordering::SeqCst);
            drop(self.gate.acquire().await.unwrap());
            match self.refuses.load(Ordering::SeqCst) {
                true => Err(CanaryError::LikeBase),
                false => Ok(()),
            }
        })
    }
}

/// A process with a registry, and what follows changes in it.
pub struct Serving {
    pub app: App,
    pub canary: Arc<FakeCanary>,
    pub follower: Follower,
}

impl std::ops::Deref for Serving {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl Serving {
    /// Around the fake rewriter.
    pub async fn fake() -> Self {
        Self::fake_at(Arc::new(tempfile::tempdir().unwrap()), Budget::default()).await
    }

    /// Around the fake rewriter, on a folder that others may share, within a budget.
    pub async fn fake_at(folder: Arc<tempfile::TempDir>, budget: Budget) -> Self {
        let app = loading(folder).await;
        let canary = Arc::new(FakeCanary::default());
        let config = std::fs::read_to_string(model().join("config.json")).unwrap();
        let base = Base {
            name: "micro".to_owned(),
            fingerprint: fingerprint(&model()).unwrap(),
            decoder: DecoderConfig::from_hugging_face(&config).unwrap(),
            placement: Placement::own(Device::Cpu),
            canary: canary.clone(),
        };
        let registry = app.state.backend.registry.clone();
        let loader = Loader::new(registry, base, budget, app.state.metrics.adapters.clone());
        let service = service_with(&app.rewriter, Residents::serving(loader));
        Self::of(app, service, canary)
    }

    /// On the micro model.
    pub async fn micro(adapter: AdapterSource) -> Self {
        Self::micro_at(Arc::new(tempfile::tempdir().unwrap()), adapter)
            .await
            .unwrap()
    }

    /// The same; it remembers rewrites.
    pub async fn micro_remembering(adapter: AdapterSource) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::start(folder, adapter, 1 << 20).await.unwrap()
    }

    /// On the micro model and a folder that others may share.
    pub async fn micro_at(
        folder: Arc<tempfile::TempDir>,
        adapter: AdapterSource,
    ) -> Result<Self, compose::ComposeError> {
        Self::start(folder, adapter, 0).await
    }

    async fn start(
        folder: Arc<tempfile::TempDir>,
        adapter: AdapterSource,
        rewrite_cache_bytes: u64,
    ) -> Result<Self, compose::ComposeError> {
        let app = loading(folder).await;
        let config = ModelConfig {
            cache_dir: None,
            model: model().to_str().unwrap().to_owned(),
            adapter,
            device: detoxd::config::Device::Cpu,
            dtype: Dtype::Auto,
            quantize: Quantize::Auto,
            threads: Some(1),
            draft_tokens: detoxd::config::DRAFT_TOKENS,
            kv_cache_tokens: detoxd::config::KV_CACHE_TOKENS,
        };
        let registry = app.state.backend.registry.clone();
        let metrics = app.state.metrics.clone();
        let service = compose::serve(
            config,
            JudgesConfig::default(),
            registry,
            Budget::default(),
            rewrite_cache_bytes,
            metrics,
        )
        .await?;
        Ok(Self::of(app, service, Arc::default()))
    }

    fn of(app: App, service: detoxd::http::Service, canary: Arc<FakeCanary>) -> Self {
        let interval = std::time::Duration::from_millis(1);
        let follower = Follower::new(service.residents.clone(), interval).unwrap();
        app.state.loaded(service);
        Self { app, canary, follower }
    }

    /// Writes files into a folder below the import folder.
    pub fn put(&self, folder: &str, files: &AdapterFiles) {
        let folder = self.folder.path().join("import").join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(CONFIG), &files.config).unwrap();
        std::fs::write(folder.join(WEIGHTS), &files.weights).unwrap();
    }

    /// Imports files by way of a folder.
    pub async fn import(&self, name: &str, files: &AdapterFiles) -> Answer {
        self.put("next", files);
        let body = json!({ "name": name, "path": "next" });
        self.post("/adapters", body.to_string()).await
    }

    /// Imports scaled adapters under the name `a`: `a@1`, `a@2`, …
    pub async fn import_scaled(&self, alphas: &[f64]) {
        for alpha in alphas {
            let answer = self.import("a", &scaled(*alpha)).await;
            assert_eq!(answer.status, 201, "{}", answer.body);
        }
    }

    pub async fn activate(&self, number: u32) -> Answer {
        let path = format!("/adapters/a/{number}/activate");
        self.send(Request::post(path).body(Body::empty()).unwrap()).await
    }

    pub async fn activate_if(&self, number: u32, expected: &str) -> Answer {
        let body = json!({ "expected": expected }).to_string();
        self.post(&format!("/adapters/a/{number}/activate"), body).await
    }

    pub async fn put_json(&self, path: &str, body: Value) -> Answer {
        let mut request = super::app::json(path, body.to_string());
        *request.method_mut() = axum::http::Method::PUT;
        self.send(request).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    /// The adapter of an answer to a text that needs no rewriting.
    pub async fn adapter_of(&self, wanted: Option<&str>) -> String {
        let mut body = json!({ "text": "Good morning." });
        if let Some(wanted) = wanted {
            body["adapter"] = wanted.into();
        }
        self.detoxify(body).await.ok()["adapter"].as_str().unwrap().to_owned()
    }

    /// What a version is in memory for.
    pub async fn state_of(&self, path: &str) -> Value {
        self.get(path).await.ok()["state"].clone()
    }
}

async fn loading(folder: Arc<tempfile::TempDir>) -> App {
    let import = folder.path().join("import");
    App::at(folder, Limits::default(), |backend| {
        backend.imports.import_dir = Some(import)
    })
    .await
}
