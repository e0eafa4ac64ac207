//! Settings of the HTTP service, checked.

use std::{net::SocketAddr, time::Duration};

use super::{ConfigError, ServerSettings, duration};

/// Where the service listens, what it admits, and how it ends.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// What is admitted.
    pub limits: Limits,
    /// Memory for rewrites that are remembered, in bytes; 0 for none.
    pub rewrite_cache_bytes: u64,
    /// Time that running requests get to finish once told to stop.
    pub shutdown_timeout: Duration,
}

/// What is admitted. Everything beyond is refused before any work is done for it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest text, in code points.
    pub max_text_chars: usize,
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// Requests waiting and running.
    pub max_concurrent_requests: usize,
    /// Time that a request may have to wait for the model.
    pub max_queue_wait: Duration,
    /// Time a request may take.
    pub timeout: Duration,
    /// Time the model may have work and make no step before `/health/live` says no.
    pub max_stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_text_chars: 100_000,
            max_body_bytes: 2 * 1024 * 1024,
            max_concurrent_requests: 64,
            max_queue_wait: Duration::from_millis(1500),
            timeout: Duration::from_secs(30),
            max_stall: Duration::from_secs(60),
        }
    }
}

impl TryFrom<ServerSettings> for ServerConfig {
    type Error = ConfigError;

    fn try_from(raw: ServerSettings) -> Result<Self, ConfigError> {
        let limits = Limits {
            max_text_chars: at_least_one("max_text_chars", raw.max_text_chars)?,
            max_body_bytes: at_least_one("max_body_bytes", raw.max_body_bytes)?,
            max_concurrent_requests: at_least_one("max_concurrent_requests", raw.max_concurrent_requests)?
                .min(tokio::sync::Semaphore::MAX_PERMITS),
            max_queue_wait: time("max_queue_wait", &raw.max_queue_wait)?,
            timeout: time("timeout", &raw.timeout)?,
            max_stall: time("max_stall", &raw.max_stall)?,
        };
        Ok(Self {
            listen: raw.listen,
            limits,
            rewrite_cache_bytes: raw.rewrite_cache_bytes,
            shutdown_timeout: time("shutdown_timeout", &raw.shutdown_timeout)?,
        })
    }
}

pub(super) fn at_least_one(setting: &'static str, value: usize) -> Result<usize, ConfigError> {
    if value == 0 {
        return Err(ConfigError::invalid(setting, value, "must be at least 1"));
    }
    Ok(value)
}

pub(super) fn time(setting: &'static str, text: &str) -> Result<Duration, ConfigError> {
    duration::parse(text).map_err(|reason| ConfigError::invalid(setting, text, reason))
}
