//! What `/metrics` shows. Prometheus conventions: base units, `_total`, no rates, no percentiles,
//! no text of a request in a label.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector,
};

use crate::{
    adapters::AdapterMetrics,
    pipeline::{Detoxified, RememberingMetrics, ShadowMetrics},
};

/// Bounds for times of a request, in seconds: a neutral text takes well under a millisecond, a
/// rewrite tens to hundreds, a long text seconds, and 30 s is the default timeout.
pub(crate) const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0,
    60.0,
];

/// Bounds for probabilities; the default threshold, 0.5, is one of them.
pub(crate) const PROBABILITY: &[f64] = &[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0];

/// The metrics of a process, in a registry of its own.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    queue: Histogram,
    inference: Histogram,
    /// Requests admitted and not yet answered.
    pub running: IntGauge,
    rejected: IntCounterVec,
    sentences: IntCounterVec,
    toxicity: HistogramVec,
    candidates_rejected: IntCounterVec,
    tokens: IntCounterVec,
    /// Those of the adapters in memory.
    pub adapters: Arc<AdapterMetrics>,
    /// Those of remembered rewrites.
    pub remembering: RememberingMetrics,
    /// Those of the shadow.
    pub shadow: Arc<ShadowMetrics>,
}

impl Metrics {
    /// Registers all of them. `capacity` is how many requests are admitted at once.
    ///
    /// # Errors
    /// When a name is used twice: a mistake in this file.
    pub fn new(capacity: usize) -> Result<Self, prometheus::Error> {
        let registry = of_process()?;
        register(
            &registry,
            IntGauge::new(
                "detoxd_requests_capacity",
                "Requests that are admitted at once, waiting or running.",
            )?,
        )?
        .set(i64::try_from(capacity).unwrap_or(i64::MAX));
        Ok(Self {
            requests: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "detoxd_requests_total",
                        "Requests answered; status 499 is a client that left before the answer.",
                    ),
                    &["route", "status"],
                )?,
            )?,
            duration: register(
                &registry,
                HistogramVec::new(
                    seconds(
                        "detoxd_request_duration_seconds",
                        "From the request's head to the answer's head.",
                    ),
                    &["route"],
                )?,
            )?,
            queue: register(
                &registry,
                Histogram::with_opts(seconds(
                    "detoxd_request_queue_seconds",
                    "Time the sentences of a text waited for the model, for texts that needed it.",
                ))?,
            )?,
            inference: register(
                &registry,
                Histogram::with_opts(seconds(
                    "detoxd_request_inference_seconds",
                    "Time the model worked on a text, for texts that needed it.",
                ))?,
            )?,
            running: register(
                &registry,
                IntGauge::new("detoxd_requests_running", "Requests admitted and not yet answered.")?,
            )?,
            rejected: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("detoxd_requests_rejected_total", "Requests refused or failed."),
                    &["reason"],
                )?,
            )?,
            sentences: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("detoxd_sentences_total", "Sentences by what was done to them."),
                    &["action"],
                )?,
            )?,
            toxicity: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new("detoxd_sentence_toxicity", "Toxicity of sentences before and after.")
                        .buckets(PROBABILITY.to_vec()),
                    &["stage"],
                )?,
            )?,
            candidates_rejected: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "detoxd_candidates_rejected_total",
                        "Rewrites of the model that were turned down, by what was wrong first.",
                    ),
                    &["reason"],
                )?,
            )?,
            tokens: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("detoxd_tokens_total", "Tokens the model read and wrote."),
                    &["kind"],
                )?,
            )?,
            adapters: Arc::new(AdapterMetrics::new(&registry)?),
            remembering: RememberingMetrics::new(&registry)?,
            shadow: Arc::new(ShadowMetrics::new(&registry)?),
            registry,
        })
    }

    /// Where other parts of the program register theirs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts an answer.
    pub fn answered(&self, route: &str, status: u16, elapsed: Duration) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        self.duration.with_label_values(&[route]).observe(elapsed.as_secs_f64());
    }

    /// Counts a refusal or failure by the kind of its problem.
    pub fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }

    /// Counts what was done to a text.
    pub fn detoxified(&self, result: &Detoxified) {
        for segment in &result.segments {
            self.sentences.with_label_values(&[segment.action.name()]).inc();
            let toxicity = &segment.toxicity;
            self.toxicity
                .with_label_values(&["before"])
                .observe(toxicity.input.into());
            self.toxicity
                .with_label_values(&["after"])
                .observe(toxicity.output.into());
        }
        for reason in &result.rejections {
            self.candidates_rejected.with_label_values(&[reason.name()]).inc();
        }
        if result.usage.prompt_tokens > 0 {
            self.queue.observe(result.queue.as_secs_f64());
            self.inference.observe(result.inference.as_secs_f64());
        }
        let usage = &result.usage;
        self.tokens
            .with_label_values(&["prompt"])
            .inc_by(usage.prompt_tokens as u64);
        self.tokens
            .with_label_values(&["completion"])
            .inc_by(usage.completion_tokens as u64);
    }

    /// All metrics as Prometheus' text format.
    ///
    /// # Errors
    /// When a metric can't be written.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        render(&self.registry)
    }
}

/// A registry with what every process of this program shows: its version, memory, processor time, files.
///
/// # Errors
/// When a name is used twice: a mistake in this file.
pub fn of_process() -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    let build = register(
        &registry,
        IntGaugeVec::new(Opts::new("detoxd_build_info", "Version of this program."), &["version"])?,
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    #[cfg(target_os = "linux")]
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    Ok(registry)
}

/// All metrics of a registry as Prometheus' text format.
///
/// # Errors
/// When a metric can't be written.
pub fn render(registry: &Registry) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&registry.gather())
}

fn seconds(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(SECONDS.to_vec())
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
