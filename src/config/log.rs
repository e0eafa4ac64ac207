//! What is logged, and how.

use super::{ConfigError, LogSettings};

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Directives as `tracing_subscriber::EnvFilter` reads them; checked.
    pub filter: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl TryFrom<LogSettings> for LogConfig {
    type Error = ConfigError;

    fn try_from(raw: LogSettings) -> Result<Self, ConfigError> {
        tracing_subscriber::EnvFilter::try_new(&raw.log)
            .map_err(|reason| ConfigError::invalid("log", &raw.log, reason))?;
        let format = if raw.log_format == "json" {
            LogFormat::Json
        } else {
            LogFormat::Text
        };
        Ok(Self {
            filter: raw.log,
            format,
        })
    }
}

impl Default for LogConfig {
    /// `info`, for people.
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}
