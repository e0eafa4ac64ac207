//! What the handlers share.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use super::{
    limits::Admission,
    problem::{Problem, Reason},
};
use crate::{
    access::{Audit, Keys},
    adapters::{ImportLimits, Registry, Residents},
    config::{Limits, Policy},
    datasets::Datasets,
    db::Database,
    jobs::Queue,
    metrics::Metrics,
    pipeline::{Detoxifier, PerplexityScorer, Shadow},
    store::Store,
};

/// The loaded parts that do the work. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    /// Text in, milder text out.
    pub detoxifier: Arc<Detoxifier>,
    /// The adapters in memory, to lease.
    pub residents: Arc<Residents>,
    /// Scores perplexity.
    pub perplexity: Arc<dyn PerplexityScorer>,
}

/// What is kept: there from the start, whether or not the model is loaded.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Training data.
    pub datasets: Datasets,
    /// Training jobs.
    pub jobs: Queue,
    /// Adapter versions.
    pub registry: Registry,
    /// Who may do what.
    pub keys: Keys,
    /// Who did what.
    pub audit: Audit,
    /// Whether a request needs a key.
    pub key_needed: bool,
    /// Largest dataset, in bytes.
    pub max_dataset_bytes: u64,
    /// Times a job is tried.
    pub max_attempts: u32,
    /// Largest rank of an adapter.
    pub max_adapter_rank: u32,
    /// The base model, as answers call it: what jobs are for unless they name another.
    pub base: String,
    /// What of adapters is imported, and from where.
    pub imports: ImportLimits,
}

impl Backend {
    /// On a database and a store; no key needed, the default limits.
    pub fn new(db: Database, store: Store, base: impl Into<String>) -> Self {
        Self {
            datasets: Datasets::new(db.clone(), store.clone()),
            jobs: Queue::new(db.clone()),
            registry: Registry::new(db.clone(), store),
            keys: Keys::new(db.clone()),
            audit: Audit::new(db),
            key_needed: false,
            max_dataset_bytes: 256 * 1024 * 1024,
            max_attempts: 3,
            max_adapter_rank: 256,
            base: base.into(),
            imports: ImportLimits::default(),
        }
    }
}

/// What the handlers share. The service listens before the model is loaded, so that probes get an
/// answer during a first start that fetches it: until `loaded`, requests get 503.
pub struct AppState {
    service: OnceLock<Service>,
    draining: AtomicBool,
    /// What is admitted.
    pub limits: Limits,
    /// How texts are treated by default.
    pub policy: Policy,
    /// Who is in.
    pub admission: Admission,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Has another adapter answer as well, unseen.
    pub shadow: Arc<Shadow>,
    /// What is kept.
    pub backend: Backend,
    /// Held while an adapter is imported.
    pub importing: Arc<tokio::sync::Mutex<()>>,
    /// Woken when this process has changed what is to be served.
    pub changed: Arc<Notify>,
}

impl AppState {
    /// Not loaded yet.
    pub fn new(limits: Limits, policy: Policy, metrics: Arc<Metrics>, backend: Backend) -> Arc<Self> {
        Arc::new(Self {
            service: OnceLock::new(),
            draining: AtomicBool::new(false),
            admission: Admission::new(limits.max_concurrent_requests, metrics.running.clone()),
            shadow: Shadow::new(Arc::clone(&metrics.shadow)),
            limits,
            policy,
            metrics,
            backend,
            importing: Arc::default(),
            changed: Arc::default(),
        })
    }

    /// From now on requests are served. The first call counts.
    pub fn loaded(&self, service: Service) {
        if self.service.set(service).is_err() {
            tracing::warn!("loaded a second time; the first service stays");
            return;
        }
        let engine = self.service.get().and_then(|service| service.detoxifier.activity());
        if let Some(Err(error)) = engine.map(|engine| engine.register(self.metrics.registry())) {
            tracing::error!(%error, "the engine's metrics are not shown");
        }
    }

    /// From now on `/health/ready` says no; requests that still arrive are served, without a shadow.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.shadow.stop();
    }

    /// Whether it was told to stop: what could go on for ever ends then.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The loaded parts.
    ///
    /// # Errors
    /// 503 until they are loaded.
    pub fn service(&self) -> Result<&Service, Problem> {
        self.service
            .get()
            .ok_or_else(|| Problem::new(Reason::Starting, "the model is not loaded yet"))
    }

    /// Whether a balancer should send requests here.
    ///
    /// # Errors
    /// 503 while loading and while draining.
    pub fn ready(&self) -> Result<&Service, Problem> {
        if self.is_draining() {
            return Err(Problem::new(Reason::Draining, "running requests are being finished"));
        }
        self.service()
    }
}
