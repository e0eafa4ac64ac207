//! What the handlers share.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use super::{
    limits::Admission,
    problem::{Problem, Reason},
};
use crate::{
    adapters::Residents,
    config::{Limits, Policy},
    metrics::Metrics,
    pipeline::{Detoxifier, PerplexityScorer},
    scoring::ToxicityScorer,
};

/// The loaded parts that do the work. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    /// Text in, milder text out.
    pub detoxifier: Arc<Detoxifier>,
    /// The adapters in memory, to lease.
    pub residents: Arc<Residents>,
    /// Scores toxicity.
    pub toxicity: Arc<ToxicityScorer>,
    /// Scores perplexity.
    pub perplexity: Arc<dyn PerplexityScorer>,
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
}

impl AppState {
    /// Not loaded yet.
    pub fn new(limits: Limits, policy: Policy, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            service: OnceLock::new(),
            draining: AtomicBool::new(false),
            admission: Admission::new(limits.max_concurrent_requests, metrics.running.clone()),
            limits,
            policy,
            metrics,
        })
    }

    /// From now on requests are served. The first call counts.
    pub fn loaded(&self, service: Service) {
        if self.service.set(service).is_err() {
            tracing::warn!("loaded a second time; the first service stays");
        }
    }

    /// From now on `/health/ready` says no; requests that still arrive are served.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
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
        if self.draining.load(Ordering::Relaxed) {
            return Err(Problem::new(Reason::Draining, "running requests are being finished"));
        }
        self.service()
    }
}
