//! Copies of requests for an adapter that is being considered. Nobody sees its answers: they are scored beside the ones that were
//! given, and counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::detoxify::Detoxifier;
use super::options::Options;
use super::outcome::Detoxified;
use crate::adapters::{AdapterLease, AdapterVersion};
use crate::metrics::{PROBABILITY, SECONDS};

/// Texts that are worked on for the shadow at once, those among them whose own answer is still awaited. A text beyond is not copied.
const PLACES: usize = 2;
/// Answers whose merits are so close are equally good.
const SAME: f32 = 0.01;

/// Copies texts, a bounded number at once.
pub struct Shadow {
    places: Arc<Semaphore>,
    stopped: CancellationToken,
    metrics: Arc<ShadowMetrics>,
    statistics: Mutex<HashMap<Pair, ShadowStatistics>>,
}

/// The version that answered and the one that was considered.
type Pair = (AdapterVersion, AdapterVersion);

/// What the comparison of two versions has come to.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct ShadowStatistics {
    /// Texts compared: those that needed the model.
    pub texts: u64,
    /// Texts for which the candidate gave no answer in time.
    pub failed: u64,
    /// Texts for which the candidate's answer had more merit: similarity in meaning times what is left of toxicity to one.
    pub candidate_better: u64,
    /// Texts for which the answer that was given had more.
    pub served_better: u64,
    /// Sums over the texts of the answers that were given.
    pub served: Sums,
    /// Sums over the texts of the candidate's.
    pub candidate: Sums,
    /// Sum of the toxicity of what came in.
    pub toxicity_before: f64,
}

/// Sums over texts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Sums {
    /// Toxicity of the answer.
    pub toxicity: f64,
    /// Similarity in meaning to the input.
    pub similarity: f64,
    /// Time the model took, in seconds.
    pub seconds: f64,
}

impl Sums {
    fn add(&mut self, answer: &Answer) {
        self.toxicity += f64::from(answer.toxicity);
        self.similarity += f64::from(answer.similarity);
        self.seconds += answer.inference.as_secs_f64();
    }
}

/// What counts of an answer.
#[derive(Debug, Clone, Copy)]
struct Answer {
    toxicity: f32,
    similarity: f32,
    inference: Duration,
}

impl Answer {
    fn of(done: &Detoxified) -> Self {
        Self {
            toxicity: done.toxicity.output,
            similarity: done.similarity,
            inference: done.inference,
        }
    }

    fn merit(&self) -> f32 {
        self.similarity * (1.0 - self.toxicity)
    }
}

/// A text that is going to be worked on for the shadow, once its own answer is there.
pub struct ShadowCopy {
    text: String,
    options: Options,
    served: AdapterVersion,
    shadow: Arc<Shadow>,
    place: OwnedSemaphorePermit,
}

impl Shadow {
    /// Counts in these metrics.
    pub fn new(metrics: Arc<ShadowMetrics>) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(PLACES)),
            stopped: CancellationToken::new(),
            metrics,
            statistics: Mutex::default(),
        })
    }

    /// A copy of a text for `candidate`, if there is a place for it.
    pub fn copy(self: &Arc<Self>, text: &str, options: &Options, candidate: &AdapterLease) -> Option<ShadowCopy> {
        if self.stopped.is_cancelled() {
            return None;
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.copies.with_label_values(&["dropped"]).inc();
            return None;
        };
        Some(ShadowCopy {
            text: text.to_owned(),
            options: Options {
                adapter: candidate.clone(),
                ..options.clone()
            },
            served: options.adapter.version().clone(),
            shadow: Arc::clone(self),
            place,
        })
    }

    /// From now on nothing is copied, and what is being worked on is dropped: the process is to end.
    pub fn stop(&self) {
        self.stopped.cancel();
    }

    /// What the comparisons of a version as candidate have come to in this process, by the version that answered.
    pub fn statistics(&self, candidate: &AdapterVersion) -> Vec<(AdapterVersion, ShadowStatistics)> {
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = statistics
            .iter()
            .filter(|((_, version), _)| version == candidate)
            .map(|((served, _), statistics)| (served.clone(), *statistics))
            .collect();
        found.sort_by_key(|(served, _)| served.to_string());
        found
    }

    fn count(&self, pair: Pair, count: impl FnOnce(&mut ShadowStatistics)) {
        let mut statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        count(statistics.entry(pair).or_default());
    }

    fn compared(&self, pair: Pair, before: f32, served: &Answer, candidate: &Answer) {
        let metrics = &self.metrics;
        metrics.copies.with_label_values(&["compared"]).inc();
        for (which, answer) in [("served", served), ("candidate", candidate)] {
            let label = [which];
            metrics
                .toxicity
                .with_label_values(&label)
                .observe(answer.toxicity.into());
            metrics
                .similarity
                .with_label_values(&label)
                .observe(answer.similarity.into());
            metrics
                .inference
                .with_label_values(&label)
                .observe(answer.inference.as_secs_f64());
        }
        let gain = candidate.merit() - served.merit();
        let better = match gain {
            gain if gain > SAME => "candidate",
            gain if gain < -SAME => "served",
            _ => "same",
        };
        metrics.better.with_label_values(&[better]).inc();
        self.count(pair, |statistics| {
            statistics.texts += 1;
            statistics.candidate_better += u64::from(better == "candidate");
            statistics.served_better += u64::from(better == "served");
            statistics.toxicity_before += f64::from(before);
            statistics.served.add(served);
            statistics.candidate.add(candidate);
        });
    }
}

impl ShadowCopy {
    /// Works on the copy beside everything else, for as long as `patience`, and compares. A text that did not need the model would come
    /// out the same: it is let go.
    pub fn compare(self, served: &Detoxified, detoxifier: Arc<Detoxifier>, patience: Duration) {
        if served.usage.prompt_tokens == 0 {
            return;
        }
        let (before, answer) = (served.toxicity.input, Answer::of(served));
        let Self {
            text,
            mut options,
            served,
            shadow,
            place,
        } = self;
        let deadline = Instant::now() + patience;
        options.deadline = Some(deadline);
        let pair = (served, options.adapter.version().clone());
        tokio::spawn(async move {
            let work = tokio::time::timeout_at(deadline.into(), detoxifier.detoxify(&text, &options));
            tokio::select! {
                done = work => match done {
                    Ok(Ok(done)) => shadow.compared(pair, before, &answer, &Answer::of(&done)),
                    Ok(Err(_)) | Err(_) => {
                        shadow.metrics.copies.with_label_values(&["failed"]).inc();
                        shadow.count(pair, |statistics| statistics.failed += 1);
                    }
                },
                () = shadow.stopped.cancelled() => {}
            }
            drop(place);
        });
    }
}

/// What `/metrics` shows of the shadow.
pub struct ShadowMetrics {
    copies: IntCounterVec,
    better: IntCounterVec,
    toxicity: HistogramVec,
    similarity: HistogramVec,
    inference: HistogramVec,
}

impl ShadowMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When a name is used twice: a mistake in this file.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, bounds: &[f64]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), &["which"])
        };
        let metrics = Self {
            copies: IntCounterVec::new(
                Opts::new(
                    "detoxd_shadow_copies_total",
                    "Texts copied for the shadow: compared, failed, or dropped because others were being worked on.",
                ),
                &["result"],
            )?,
            better: IntCounterVec::new(
                Opts::new(
                    "detoxd_shadow_better_total",
                    "Whose answer had more merit: served, candidate, or same.",
                ),
                &["which"],
            )?,
            toxicity: histogram(
                "detoxd_shadow_toxicity",
                "Toxicity of both answers to a copied text.",
                PROBABILITY,
            )?,
            similarity: histogram(
                "detoxd_shadow_similarity",
                "Similarity in meaning of both answers to a copied text.",
                PROBABILITY,
            )?,
            inference: histogram(
                "detoxd_shadow_inference_seconds",
                "Time the model took for both answers to a copied text.",
                SECONDS,
            )?,
        };
        registry.register(Box::new(metrics.copies.clone()))?;
        registry.register(Box::new(metrics.better.clone()))?;
        registry.register(Box::new(metrics.toxicity.clone()))?;
        registry.register(Box::new(metrics.similarity.clone()))?;
        registry.register(Box::new(metrics.inference.clone()))?;
        Ok(metrics)
    }
}
