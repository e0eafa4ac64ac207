//! What the engine is doing, for `/metrics` and for the question whether it makes progress.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

use super::load::Load;
use super::step::Stepped;

/// Bounds for the time of a step, in seconds: some milliseconds for one token, seconds for long prompts on few processors.
const STEP_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Bounds for the sequences of a step; the default batch, 64, is one of them.
const SEQUENCES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 128.0];
/// Bounds for the tokens of a step.
const TOKENS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Counters of the engine. Clones are the same counters.
#[derive(Clone)]
pub struct Activity {
    steps: IntCounter,
    step_seconds: Histogram,
    last_step: Gauge,
    sequences: Histogram,
    tokens: Histogram,
    written: Histogram,
    prefilled: IntCounter,
    reused: IntCounter,
    reuses: IntCounter,
    proposed: IntCounter,
    accepted: IntCounter,
    cache_usage: Gauge,
    cached: IntGauge,
    waiting: IntGauge,
    running: IntGauge,
    clock: Arc<Clock>,
    load: Arc<Mutex<Load>>,
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
            tokens: Histogram::with_opts(
                HistogramOpts::new(
                    "detoxd_batch_tokens",
                    "Tokens computed in a forward pass: of prompts, last ones and drafts.",
                )
                .buckets(TOKENS.to_vec()),
            )?,
            written: Histogram::with_opts(
                HistogramOpts::new(
                    "detoxd_step_written_tokens",
                    "Tokens that a forward pass added to texts, over all candidates.",
                )
                .buckets(TOKENS.to_vec()),
            )?,
            prefilled: IntCounter::new("detoxd_prefill_tokens_total", "Tokens of prompts that were computed.")?,
            reused: IntCounter::new(
                "detoxd_prefix_tokens_reused_total",
                "Tokens of prompts whose keys and values were known from an earlier prompt.",
            )?,
            reuses: IntCounter::new(
                "detoxd_prefix_hits_total",
                "Prompts whose beginning was known from an earlier prompt.",
            )?,
            proposed: IntCounter::new(
                "detoxd_draft_tokens_proposed_total",
                "Tokens that were guessed from the source and put to the test.",
            )?,
            accepted: IntCounter::new(
                "detoxd_draft_tokens_accepted_total",
                "Guessed tokens that the model chose itself.",
            )?,
            cached: IntGauge::new(
                "detoxd_kv_cache_tokens",
                "Tokens reserved in the cache of keys and values, and those of prompts kept for reuse.",
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
            load: Arc::default(),
        })
    }

    /// Makes them show in a registry.
    ///
    /// # Errors
    /// When one of that name is there already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let all: [Box<dyn Collector>; 15] = [
            Box::new(self.steps.clone()),
            Box::new(self.step_seconds.clone()),
            Box::new(self.last_step.clone()),
            Box::new(self.sequences.clone()),
            Box::new(self.tokens.clone()),
            Box::new(self.written.clone()),
            Box::new(self.prefilled.clone()),
            Box::new(self.reused.clone()),
            Box::new(self.reuses.clone()),
            Box::new(self.proposed.clone()),
            Box::new(self.accepted.clone()),
            Box::new(self.cached.clone()),
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

    /// Draft tokens put to the test so far, and how many of them were right.
    pub fn drafts(&self) -> (u64, u64) {
        (self.proposed.get(), self.accepted.get())
    }

    /// Tokens computed in all steps.
    pub fn computed_tokens(&self) -> f64 {
        self.tokens.get_sample_sum()
    }

    /// Prompt tokens computed so far, and those that were known from earlier prompts.
    pub fn prompt_tokens(&self) -> (u64, u64) {
        (self.prefilled.get(), self.reused.get())
    }

    /// How long one who comes now would wait for a place in the batch, at the speed of late; a second while there is nothing to judge by.
    pub fn expected_wait(&self) -> Duration {
        self.load().wait()
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work comes in, whatever the number of those that wait.
    pub fn submitted(&self) {
        self.submit(0, 0, usize::MAX);
    }

    /// Work for `key` comes in. `false`, and nothing is counted, when more than `most` would wait.
    pub(super) fn submit(&self, key: u64, cost: usize, most: usize) -> bool {
        let is_idle = self.waiting.get() <= 0 && self.running.get() == 0;
        self.waiting.inc();
        if usize::try_from(self.waiting.get()).unwrap_or(0) > most {
            self.waiting.dec();
            return false;
        }
        if is_idle {
            // The time without work is no stall.
            self.clock.touch();
        }
        self.load().come(key, cost);
        true
    }

    /// Work is taken up, or was refused.
    pub(super) fn received(&self, key: u64, cost: usize) {
        self.waiting.dec();
        self.load().go(key, cost);
    }

    /// What is in the batch, the tokens it may need in the cache, with those of kept prompts, and how many there may be.
    pub(super) fn batch(&self, running: usize, reserved: usize, cached: usize, most: usize) {
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.cached.set(i64::try_from(cached).unwrap_or(i64::MAX));
        self.cache_usage.set(reserved as f64 / most.max(1) as f64);
        // What a request may need is also what it costs.
        self.load().run(reserved);
    }

    /// The beginning of a prompt was known.
    pub(super) fn reused(&self, tokens: usize) {
        self.reuses.inc();
        self.reused.inc_by(tokens as u64);
    }

    /// A step ended.
    pub(super) fn stepped(&self, step: &Stepped, took: Duration) {
        self.written.observe(step.written as f64);
        self.prefilled.inc_by(step.prefilled as u64);
        self.proposed.inc_by(step.drafted as u64);
        self.accepted.inc_by(step.accepted as u64);
        self.passed(step.sequences, step.rows, took);
    }

    /// A piece of a text was scored.
    pub(super) fn scored(&self, tokens: usize, took: Duration) {
        self.passed(1, tokens, took);
    }

    fn passed(&self, sequences: usize, tokens: usize, took: Duration) {
        self.steps.inc();
        self.step_seconds.observe(took.as_secs_f64());
        self.sequences.observe(sequences as f64);
        self.tokens.observe(tokens as f64);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.last_step.set(now.map_or(0.0, |now| now.as_secs_f64()));
        self.clock.touch();
    }

    /// Work of this cost was finished in the last step, which took so long.
    pub(super) fn worked(&self, cost: usize, took: Duration) {
        self.load().worked(cost, took);
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
        activity.received(0, 0);
        activity.batch(1, 10, 10, 100);
        std::thread::sleep(Duration::from_millis(30));
        assert!(activity.stalled_for().unwrap() >= Duration::from_millis(30));
        activity.submitted();
        assert!(
            activity.stalled_for().unwrap() >= Duration::from_millis(30),
            "more work is no progress"
        );
        activity.scored(3, Duration::from_millis(30));
        assert!(activity.stalled_for().unwrap() < Duration::from_millis(25));
        activity.received(0, 0);
        activity.batch(0, 0, 0, 100);
        assert_eq!(activity.stalled_for(), None);
        assert_eq!(activity.steps(), 1);
    }

    #[test]
    fn no_more_wait_than_may() {
        let activity = Activity::new().unwrap();
        assert!(activity.submit(1, 200, 2) && activity.submit(1, 300, 2));
        assert!(!activity.submit(2, 400, 2), "two wait already");
        activity.received(1, 200);
        assert!(activity.submit(2, 400, 2));
    }
}
