//! What the engine is doing, for `/metrics` and for the question whether it makes progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// Bounds for the time of a step, in seconds: some milliseconds for one token, seconds for long prompts on few processors.
const STEP_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Bounds for the sequences of a step; the default batch, 64, is one of them.
const SEQUENCES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 128.0];

/// Counters of the engine. Clones are the same counters.
#[derive(Clone)]
pub struct Activity {
    steps: IntCounter,
    step_seconds: Histogram,
    last_step: Gauge,
    sequences: Histogram,
    cache_usage: Gauge,
    waiting: IntGauge,
    running: IntGauge,
    clock: Arc<Clock>,
}

/// When the engine last got on with its work.
struct Clock {
    origin: Instant,
    /// Milliseconds since the origin.
    progress: AtomicU64,
}

impl Clock {
    fn elapsed(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn touch(&self) {
        self.progress.store(self.elapsed(), Ordering::Relaxed);
    }
}

impl Activity {
    /// All at zero.
    ///
    /// # Errors
    /// When a name is not allowed: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            steps: IntCounter::new(
                "detoxd_engine_steps_total",
                "Forward passes of the model while serving.",
            )?,
            step_seconds: Histogram::with_opts(
                HistogramOpts::new("detoxd_engine_step_seconds", "Time of a forward pass and its sampling.")
                    .buckets(STEP_SECONDS.to_vec()),
            )?,
            last_step: Gauge::new(
                "detoxd_engine_last_step_timestamp_seconds",
                "When the last forward pass ended, in seconds since 1970; 0 before the first.",
            )?,
            sequences: Histogram::with_opts(
                HistogramOpts::new("detoxd_batch_sequences", "Sequences that shared a forward pass.")
                    .buckets(SEQUENCES.to_vec()),
            )?,
            cache_usage: Gauge::new(
                "detoxd_kv_cache_usage_ratio",
                "Tokens reserved in the cache of keys and values, of those there may be; above 1 for a single text that is longer.",
            )?,
            waiting: IntGauge::new("detoxd_engine_waiting", "Sentences that wait for a place in the batch.")?,
            running: IntGauge::new("detoxd_engine_running", "Sentences in the batch.")?,
            clock: Arc::new(Clock {
                origin: Instant::now(),
                progress: AtomicU64::new(0),
            }),
        })
    }

    /// Makes them show in a registry.
    ///
    /// # Errors
    /// When one of that name is there already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let all: [Box<dyn Collector>; 7] = [
            Box::new(self.steps.clone()),
            Box::new(self.step_seconds.clone()),
            Box::new(self.last_step.clone()),
            Box::new(self.sequences.clone()),
            Box::new(self.cache_usage.clone()),
            Box::new(self.waiting.clone()),
            Box::new(self.running.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))
    }

    /// Steps made so far.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// For how long there has been work and no progress; `None` when there is no work. A request whose client has left counts until
    /// the engine has let go of it.
    pub fn stalled_for(&self) -> Option<Duration> {
        let has_work = self.waiting.get() > 0 || self.running.get() > 0;
        let last = self.clock.progress.load(Ordering::Relaxed);
        has_work.then(|| Duration::from_millis(self.clock.elapsed().saturating_sub(last)))
    }

    /// Work comes in.
    pub fn submitted(&self) {
        if self.waiting.get() <= 0 && self.running.get() == 0 {
            // The time without work is no stall.
            self.clock.touch();
        }
        self.waiting.inc();
    }

    /// Work is taken up, or was refused.
    pub(super) fn received(&self) {
        self.waiting.dec();
    }

    /// What is in the batch, and the share of the cache it may need.
    pub(super) fn batch(&self, groups: usize, cached_tokens: usize, most: usize) {
        self.running.set(i64::try_from(groups).unwrap_or(i64::MAX));
        self.cache_usage.set(cached_tokens as f64 / most.max(1) as f64);
    }

    /// A step ended.
    pub(super) fn stepped(&self, sequences: usize, took: Duration) {
        self.steps.inc();
        self.step_seconds.observe(took.as_secs_f64());
        self.sequences.observe(sequences as f64);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.last_step.set(now.map_or(0.0, |now| now.as_secs_f64()));
        self.clock.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_without_progress_is_a_stall() {
        let activity = Activity::new().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(activity.stalled_for(), None);
        activity.submitted();
        assert!(
            activity.stalled_for().unwrap() < Duration::from_millis(25),
            "idle time is no stall"
        );
        activity.received();
        activity.batch(1, 10, 100);
        std::thread::sleep(Duration::from_millis(30));
        assert!(activity.stalled_for().unwrap() >= Duration::from_millis(30));
        activity.submitted();
        assert!(
            activity.stalled_for().unwrap() >= Duration::from_millis(30),
            "more work is no progress"
        );
        activity.stepped(3, Duration::from_millis(30));
        assert!(activity.stalled_for().unwrap() < Duration::from_millis(25));
        activity.received();
        activity.batch(0, 0, 100);
        assert_eq!(activity.stalled_for(), None);
        assert_eq!(activity.steps(), 1);
    }
}
