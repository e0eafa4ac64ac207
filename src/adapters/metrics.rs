//! What `/metrics` shows of adapters.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::residents::Residents;

/// Bounds for the time of a load, in seconds: a few milliseconds for a small adapter on the disk, seconds from a bucket.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The metrics of adapters. Counters move by themselves, gauges by [`AdapterMetrics::observe`].
pub struct AdapterMetrics {
    info: IntGaugeVec,
    running: IntGaugeVec,
    resident_bytes: IntGauge,
    retired: IntGauge,
    loads: IntCounterVec,
    load_seconds: Histogram,
    activations: IntCounterVec,
    lag: Gauge,
}

impl AdapterMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When a name is used twice: a mistake in this file.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self::unregistered()?;
        let all: [Box<dyn Collector>; 8] = [
            Box::new(metrics.info.clone()),
            Box::new(metrics.running.clone()),
            Box::new(metrics.resident_bytes.clone()),
            Box::new(metrics.retired.clone()),
            Box::new(metrics.loads.clone()),
            Box::new(metrics.load_seconds.clone()),
            Box::new(metrics.activations.clone()),
            Box::new(metrics.lag.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))?;
        Ok(metrics)
    }

    fn unregistered() -> Result<Self, prometheus::Error> {
        Ok(Self {
            info: IntGaugeVec::new(
                Opts::new(
                    "detoxd_adapter_info",
                    "Adapters in memory, by what they are there for: active, traffic, shadow, loaded, retired.",
                ),
                &["name", "version", "state"],
            )?,
            running: IntGaugeVec::new(
                Opts::new("detoxd_adapter_requests_running", "Requests that hold an adapter."),
                &["name", "version"],
            )?,
            resident_bytes: IntGauge::new(
                "detoxd_adapter_resident_bytes",
                "Memory of adapters, those that are being loaded among them.",
            )?,
            retired: IntGauge::new(
                "detoxd_adapter_retired_versions",
                "Adapters in memory only because running requests hold them.",
            )?,
            loads: IntCounterVec::new(
                Opts::new(
                    "detoxd_adapter_loads_total",
                    "Adapters loaded, or not: ok, refused, failed.",
                ),
                &["result"],
            )?,
            load_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "detoxd_adapter_load_seconds",
                    "Time to fetch, check, load and try an adapter.",
                )
                .buckets(SECONDS.to_vec()),
            )?,
            activations: IntCounterVec::new(
                Opts::new(
                    "detoxd_adapter_activations_total",
                    "Changes of what is served here: switched, or failed to.",
                ),
                &["result"],
            )?,
            lag: Gauge::new(
                "detoxd_adapter_desired_lag_seconds",
                "For how long this process has known of a change of what is to be served and not made it; 0 when it has.",
            )?,
        })
    }

    pub(super) fn loaded(&self, result: &str, elapsed: Duration) {
        self.loads.with_label_values(&[result]).inc();
        self.load_seconds.observe(elapsed.as_secs_f64());
    }

    /// Counts a change of what is served here: `ok`, or `failed` to be made.
    pub fn activated(&self, result: &str) {
        self.activations.with_label_values(&[result]).inc();
    }

    /// Sets the gauges to what is in memory now.
    pub fn observe(&self, residents: &Residents) {
        self.info.reset();
        self.running.reset();
        let mut retired = 0;
        for resident in residents.list() {
            let (name, number) = (resident.version.name(), resident.version.number().to_string());
            self.info
                .with_label_values(&[name, &number, resident.state.as_str()])
                .set(1);
            self.running
                .with_label_values(&[name, &number])
                .set(i64::try_from(resident.leases).unwrap_or(i64::MAX));
            retired += i64::from(resident.state.is_retired());
        }
        self.retired.set(retired);
        let bytes = residents.usage().bytes;
        self.resident_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.lag.set(residents.lag().as_secs_f64());
    }
}
