//! Adapters in memory, and from where they may be imported.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{AdapterSettings, ConfigError, server::time};
use crate::adapters::{Budget, ImportLimits};

/// Adapters in memory, and from where they may be imported.
#[derive(Debug, Clone)]
pub struct AdaptersConfig {
    /// Versions in memory at once, retired and incoming ones among them.
    pub max_resident: usize,
    /// Memory they may take, in bytes.
    pub max_bytes: u64,
    /// Largest rank.
    pub max_rank: usize,
    /// Folder below which adapters may be imported by path.
    pub import_dir: PathBuf,
    /// Time between two looks at what is to be served.
    pub follow_interval: Duration,
}

impl AdaptersConfig {
    /// Checks the settings; `data_dir` holds what has no folder of its own.
    pub fn new(raw: AdapterSettings, data_dir: &Path) -> Result<Self, ConfigError> {
        if raw.max_adapters < 2 {
            return Err(ConfigError::invalid(
                "max_adapters",
                raw.max_adapters,
                "must be at least 2: the active one and the one that replaces it",
            ));
        }
        if raw.max_adapter_rank == 0 {
            return Err(ConfigError::invalid("max_adapter_rank", 0, "must be at least 1"));
        }
        Ok(Self {
            max_resident: raw.max_adapters,
            max_bytes: raw.max_adapter_bytes,
            max_rank: raw.max_adapter_rank,
            import_dir: raw.import_dir.unwrap_or_else(|| data_dir.join("import")),
            follow_interval: time("follow_interval", &raw.follow_interval)?,
        })
    }

    /// What adapters in memory may take.
    pub fn budget(&self) -> Budget {
        Budget {
            max_resident: self.max_resident,
            max_bytes: self.max_bytes,
            max_rank: self.max_rank,
        }
    }

    /// What may be imported.
    pub fn imports(&self) -> ImportLimits {
        ImportLimits {
            import_dir: Some(self.import_dir.clone()),
            max_bytes: self.max_bytes,
        }
    }
}
