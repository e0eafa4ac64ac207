//! What a service keeps and who runs its jobs, from the settings.

use anyhow::Context;

use crate::access;
use crate::config::Config;
use crate::db::Database;
use crate::http::Backend;
use crate::jobs::{JobMetrics, Worker};
use crate::store::Store;

/// Opens database and store.
///
/// # Errors
/// When one can't be opened, or when keys are needed and there is none to make others with.
pub async fn open(config: &Config) -> anyhow::Result<Backend> {
    let storage = &config.storage;
    let db = Database::open(storage.database_url.as_deref(), &storage.data_dir).await?;
    let store = Store::open(storage.store.as_deref(), &storage.data_dir)?;
    let mut backend = Backend::new(db, store, super::model_name(&config.model.model));
    backend.key_needed = access::key_needed(config.auth, config.server.listen, &backend.keys).await?;
    backend.datasets = backend.datasets.with_folder(storage.data_dir.join("uploads"));
    backend.max_dataset_bytes = storage.max_dataset_bytes;
    backend.max_attempts = config.jobs.max_attempts;
    backend.max_adapter_rank = u32::try_from(config.adapters.max_rank).unwrap_or(u32::MAX);
    backend.imports = config.adapters.imports();
    Ok(backend)
}

/// The worker within a service; none when its jobs are left to others.
///
/// # Errors
/// When the system does not say where this program is.
pub fn worker(config: &Config, backend: &Backend, metrics: JobMetrics) -> anyhow::Result<Option<Worker>> {
    if !config.jobs.run {
        return Ok(None);
    }
    let worker = super::worker::build(
        (backend.jobs.clone(), backend.datasets.clone(), backend.registry.clone()),
        config.jobs.clone(),
        config.storage.data_dir.clone(),
        config.model.clone(),
        config.judges.clone(),
        config.log.clone(),
    )
    .context("jobs can't be run here; leave them to `detoxd worker` with --run-jobs false")?;
    Ok(Some(worker.with_metrics(metrics)))
}
