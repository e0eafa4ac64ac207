//! Settings: what a person wrote (`RawConfig`: flags, environment, `detoxd.toml`) and what the
//! rest of the program gets (`Config`: checked, one small type for each consumer).
//!
//! Precedence: flag, then `DETOXD_…`, then the file, then the default. clap does all of it: the
//! values of the file are handed to it as defaults, so that `--help` shows what is in force.
//! Nothing here opens a model or a socket.

mod access;
mod adapters;
mod duration;
pub mod file;
mod jobs;
mod judges;
mod log;
mod model;
mod policy;
mod raw;
mod server;
mod storage;

use std::path::PathBuf;

pub use self::{
    access::AuthMode,
    adapters::AdaptersConfig,
    jobs::JobsConfig,
    judges::JudgesConfig,
    log::{LogConfig, LogFormat},
    model::{AdapterSource, Device, Dtype, ModelConfig, Quantize},
    policy::Policy,
    raw::{
        AccessSettings, AdapterSettings, BUILT_IN, DRAFT_TOKENS, JobSettings, JudgeSettings, KV_CACHE_TOKENS,
        LogSettings, ModelSettings, PolicySettings, RawConfig, ServerSettings, StorageSettings,
    },
    server::{Limits, ServerConfig},
    storage::StorageConfig,
};

/// Why the settings can't be used. Every message names the setting.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file can't be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file is not TOML.
    #[error("{path} is not valid TOML: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A key of the file is no setting.
    #[error("unknown key `{key}` in {path}; `detoxd --help` lists the settings")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A key of the file has a value of a kind that no setting has.
    #[error("the value of `{key}` in {path} must be a string, a number or a boolean")]
    NotScalar {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A value is out of range or not understood.
    #[error("invalid value `{value}` for `{setting}`: {reason}")]
    Invalid {
        /// The setting, as its key in the file.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    fn invalid(setting: &'static str, value: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::Invalid {
            setting,
            value: value.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// The checked settings of a process.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the service listens and what it admits.
    pub server: ServerConfig,
    /// Which model, on what, with which adapter.
    pub model: ModelConfig,
    /// Who judges texts.
    pub judges: JudgesConfig,
    /// How texts are treated when a request says nothing else.
    pub policy: Policy,
    /// What is kept, and where.
    pub storage: StorageConfig,
    /// Adapters in memory and from where they may be imported.
    pub adapters: AdaptersConfig,
    /// The jobs that this process runs.
    pub jobs: JobsConfig,
    /// Whether requests need a key.
    pub auth: AuthMode,
    /// What is logged, and how.
    pub log: LogConfig,
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            server: raw.server.try_into()?,
            model: raw.model.try_into()?,
            judges: raw.judges.try_into()?,
            policy: raw.policy.try_into()?,
            adapters: AdaptersConfig::new(raw.adapters, &raw.storage.data_dir)?,
            storage: raw.storage.try_into()?,
            jobs: raw.jobs.try_into()?,
            auth: raw.access.into(),
            log: raw.log.try_into()?,
        })
    }
}
