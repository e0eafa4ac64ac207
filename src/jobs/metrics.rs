//! What `/metrics` shows of training jobs.
//!
//! What the database knows of all jobs ([`JobMetrics::observe`]) is the same on every replica; what a worker counts is its
//! own, so that sums over processes are right.

use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::job::{Job, JobState};
use super::queue::QueueCounts;

/// How an attempt at a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With a new version.
    Succeeded,
    /// For good: another attempt can't help, or there is none left.
    Failed,
    /// It will be tried again.
    Retried,
    /// Somebody asked for it.
    Cancelled,
    /// Handed back because the worker shuts down; it does not count as an attempt.
    Released,
    /// Another worker has claimed it.
    Lost,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Succeeded,
        Self::Failed,
        Self::Retried,
        Self::Cancelled,
        Self::Released,
        Self::Lost,
    ];

    /// Its word in the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Retried => "retried",
            Self::Cancelled => "cancelled",
            Self::Released => "released",
            Self::Lost => "lost",
        }
    }
}

/// The metrics of jobs. Clones are the same metrics.
#[derive(Clone)]
pub struct JobMetrics {
    database: IntGauge,
    jobs: IntGaugeVec,
    oldest_queued: Gauge,
    heartbeat_age: Gauge,
    step: IntGaugeVec,
    steps: IntGaugeVec,
    loss: GaugeVec,
    attempts: IntCounterVec,
    lease_lost: IntCounter,
    rescued: IntCounter,
    train_tokens: IntCounter,
    resume_steps_lost: IntCounter,
}

impl JobMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When a name is used twice.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            database: IntGauge::new(
                "detoxd_database_up",
                "Whether the last look at the database succeeded; what it says of jobs is as of the last that did.",
            )?,
            jobs: IntGaugeVec::new(Opts::new("detoxd_jobs", "Jobs, by state; of all replicas."), &["state"])?,
            oldest_queued: Gauge::new(
                "detoxd_jobs_oldest_queued_seconds",
                "How long the oldest queued job has waited; 0 when none waits.",
            )?,
            heartbeat_age: Gauge::new(
                "detoxd_job_heartbeat_age_seconds",
                "How long ago the most silent worker of a running job was heard of; 0 when none runs.",
            )?,
            step: IntGaugeVec::new(
                Opts::new(
                    "detoxd_job_step",
                    "Optimizer steps made by the running job that trains this adapter.",
                ),
                &["name"],
            )?,
            steps: IntGaugeVec::new(
                Opts::new("detoxd_job_steps", "Optimizer steps that it will make."),
                &["name"],
            )?,
            loss: GaugeVec::new(
                Opts::new("detoxd_job_loss", "The objective's value at its last step."),
                &["name"],
            )?,
            attempts: IntCounterVec::new(
                Opts::new(
                    "detoxd_job_attempts_total",
                    "Attempts at jobs by this process, by how they ended.",
                ),
                &["outcome"],
            )?,
            lease_lost: IntCounter::new(
                "detoxd_job_lease_lost_total",
                "Times this process found that a job it ran had been given to another.",
            )?,
            rescued: IntCounter::new(
                "detoxd_job_rescued_total",
                "Jobs this process took back from workers that were not heard of.",
            )?,
            train_tokens: IntCounter::new(
                "detoxd_train_tokens_total",
                "Tokens trained on by jobs of this process.",
            )?,
            resume_steps_lost: IntCounter::new(
                "detoxd_job_resume_steps_lost_total",
                "Steps to make again because they came after the checkpoint that a job was resumed from.",
            )?,
        };
        let all: [Box<dyn Collector>; 12] = [
            Box::new(metrics.database.clone()),
            Box::new(metrics.jobs.clone()),
            Box::new(metrics.oldest_queued.clone()),
            Box::new(metrics.heartbeat_age.clone()),
            Box::new(metrics.step.clone()),
            Box::new(metrics.steps.clone()),
            Box::new(metrics.loss.clone()),
            Box::new(metrics.attempts.clone()),
            Box::new(metrics.lease_lost.clone()),
            Box::new(metrics.rescued.clone()),
            Box::new(metrics.train_tokens.clone()),
            Box::new(metrics.resume_steps_lost.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))?;
        // A rate over a counter that appears with its first event misses that event.
        for outcome in Outcome::ALL {
            metrics.attempts.with_label_values(&[outcome.as_str()]).inc_by(0);
        }
        Ok(metrics)
    }

    /// Shows what the database says at the time `now`, in milliseconds since 1970: how many jobs there are, and those that run.
    pub fn observe(&self, counts: &QueueCounts, running: &[Job], now: i64) {
        self.database.set(1);
        for state in JobState::ALL {
            let jobs = i64::try_from(counts.of(state)).unwrap_or(i64::MAX);
            self.jobs.with_label_values(&[state.as_str()]).set(jobs);
        }
        self.oldest_queued.set(seconds_since(counts.oldest_queued_at, now));
        let most_silent = running.iter().filter_map(|job| job.heartbeat_at).min();
        self.heartbeat_age.set(seconds_since(most_silent, now));
        self.step.reset();
        self.steps.reset();
        self.loss.reset();
        // Of two that train the same adapter the newer one shows: it comes first.
        for job in running.iter().rev() {
            if let Some(progress) = job.progress {
                let name = [job.request.name.as_str()];
                let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
                self.step.with_label_values(&name).set(count(progress.step));
                self.steps.with_label_values(&name).set(count(progress.steps));
                self.loss.with_label_values(&name).set(progress.loss);
            }
        }
    }

    /// The database could not be asked: what is shown of it is old.
    pub fn database_is_away(&self) {
        self.database.set(0);
    }

    /// An attempt of this process ended.
    pub fn attempt_ended(&self, outcome: Outcome) {
        self.attempts.with_label_values(&[outcome.as_str()]).inc();
    }

    /// This process learned that a job it ran is another's by now.
    pub fn lease_lost(&self) {
        self.lease_lost.inc();
    }

    /// Jobs were taken back from workers that were not heard of.
    pub fn rescued(&self, jobs: u64) {
        self.rescued.inc_by(jobs);
    }

    /// Tokens trained on since the last call.
    pub fn trained(&self, tokens: u64) {
        self.train_tokens.inc_by(tokens);
    }

    /// A job was resumed, and so many steps after its checkpoint are made again.
    pub fn resumed(&self, steps_lost: u64) {
        self.resume_steps_lost.inc_by(steps_lost);
    }
}

fn seconds_since(then: Option<i64>, now: i64) -> f64 {
    // Clocks of two machines may differ a little.
    then.map_or(0.0, |then| now.saturating_sub(then).max(0) as f64 / 1000.0)
}
