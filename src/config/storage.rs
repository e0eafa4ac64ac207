//! What is kept, and where.

use std::path::PathBuf;

use super::{ConfigError, StorageSettings};

/// What is kept, and where.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// Folder for what the service keeps.
    pub data_dir: PathBuf,
    /// Address of the database; `None` is a file in the data folder.
    pub database_url: Option<String>,
    /// Address of the store; `None` is a folder in the data folder.
    pub store: Option<String>,
    /// Largest dataset, in bytes.
    pub max_dataset_bytes: u64,
}

impl TryFrom<StorageSettings> for StorageConfig {
    type Error = ConfigError;

    fn try_from(raw: StorageSettings) -> Result<Self, ConfigError> {
        if raw.max_dataset_bytes == 0 {
            return Err(ConfigError::invalid("max_dataset_bytes", 0, "must be at least 1"));
        }
        Ok(Self {
            data_dir: raw.data_dir,
            database_url: raw.database_url.filter(|url| !url.is_empty()),
            store: raw.store.filter(|url| !url.is_empty()),
            max_dataset_bytes: raw.max_dataset_bytes,
        })
    }
}
