//! `detoxd worker`: runs training jobs from the queue in a process of its own. `serve` runs the same worker inside its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::adapters::Registry;
use crate::config::{
    JobSettings, JobsConfig, JudgeSettings, JudgesConfig, LogConfig, LogSettings, ModelConfig, ModelSettings,
    StorageConfig, StorageSettings,
};
use crate::datasets::Datasets;
use crate::db::Database;
use crate::http::operations;
use crate::jobs::child::Program;
use crate::jobs::worker::{BaseError, Bases};
use crate::jobs::{JobMetrics, Queue, TickOutcome, Worker};
use crate::metrics;
use crate::model::catalogue::Catalogue;
use crate::store::Store;
use crate::tasks::observe;

/// Runs training jobs from the queue, one at a time. On SIGTERM or ctrl-c the job it is at is handed back to the queue from where it
/// stands.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Runs the next job and ends; without one that is due it ends at once. The exit code says nothing about the job.
    #[arg(long)]
    once: bool,
    /// Address on which `/metrics` and `/health/live` answer; none without it.
    #[arg(long, env = "DETOXD_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// Where jobs, data and adapters are kept.
    #[command(flatten)]
    storage: StorageSettings,
    /// The model that jobs may name beside those of the catalogue.
    #[command(flatten)]
    model: ModelSettings,
    /// Who judges what training came to.
    #[command(flatten)]
    judges: JudgeSettings,
    /// How jobs are run.
    #[command(flatten)]
    jobs: JobSettings,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Runs the command.
///
/// # Errors
/// When the settings are wrong, or database or store can't be opened.
pub async fn run(args: WorkerArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let storage = StorageConfig::try_from(args.storage)?;
    let db = Database::open(storage.database_url.as_deref(), &storage.data_dir).await?;
    let store = Store::open(storage.store.as_deref(), &storage.data_dir)?;
    let queue = Queue::new(db.clone());
    let worker = build(
        (
            queue.clone(),
            Datasets::new(db.clone(), store.clone()),
            Registry::new(db, store),
        ),
        JobsConfig::try_from(args.jobs)?,
        storage.data_dir,
        ModelConfig::try_from(args.model)?,
        JudgesConfig::try_from(args.judges)?,
        LogConfig::try_from(args.log)?,
    )?;
    let registry = metrics::of_process()?;
    let job_metrics = JobMetrics::new(&registry)?;
    let worker = worker.with_metrics(job_metrics.clone());
    if let Some(address) = args.metrics_listen {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; choose another with --metrics-listen"))?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        tokio::spawn(operations::serve(listener, registry, stop.clone()));
        tokio::spawn(observe::run(queue, job_metrics, stop.clone()));
    }
    if !args.once {
        tracing::info!("waiting for jobs");
        worker.run(stop).await;
        return Ok(());
    }
    match worker.tick(&stop).await? {
        TickOutcome::Idle => tracing::info!("no job is due"),
        TickOutcome::DeviceInUse => tracing::info!("another process trains on this machine"),
        TickOutcome::Ran(_) => {}
    }
    Ok(())
}

/// A worker of this program.
///
/// # Errors
/// When the system does not say where the program is.
pub fn build(
    backend: (Queue, Datasets, Registry),
    config: JobsConfig,
    data_dir: PathBuf,
    model: ModelConfig,
    judges: JudgesConfig,
    log: LogConfig,
) -> anyhow::Result<Worker> {
    let program = Program {
        path: std::env::current_exe().context("where this program is, to start it for training")?,
        niceness: config.niceness,
        threads: config.threads,
        judges,
        log,
    };
    Ok(Worker::new(backend, config, data_dir, program, bases(model)))
}

/// A job's base is this process's own model, by the name that answers give it, or one of the catalogue. It is never taken for a path.
fn bases(own: ModelConfig) -> Bases {
    Arc::new(move |name| {
        let in_catalogue = |name: &str| Catalogue::embedded().is_ok_and(|catalogue| catalogue.entry(name).is_some());
        let is_own = name == own.model || (!in_catalogue(&own.model) && super::model_name(&own.model) == name);
        let wanted = if is_own {
            &own.model
        } else if in_catalogue(name) {
            name
        } else {
            return Err(BaseError::Unknown(name.to_owned()));
        };
        super::model_path(wanted, own.cache_dir.as_deref())
            .map_err(|error| BaseError::Unavailable(format!("{error:#}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_the_own_model_or_one_of_the_catalogue_and_never_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine");
        std::fs::create_dir(&path).unwrap();
        let model = path.to_str().unwrap().to_owned();
        let bases = bases(ModelConfig {
            cache_dir: None,
            model: model.clone(),
            adapter: crate::config::AdapterSource::Auto,
            device: crate::config::Device::Cpu,
            dtype: crate::config::Dtype::Auto,
            quantize: crate::config::Quantize::Auto,
            threads: None,
            draft_tokens: crate::config::DRAFT_TOKENS,
            kv_cache_tokens: crate::config::KV_CACHE_TOKENS,
        });
        assert_eq!(bases("mine").unwrap(), path);
        assert_eq!(bases(&model).unwrap(), path);
        for unknown in ["other", "", folder.path().to_str().unwrap()] {
            assert!(matches!(bases(unknown), Err(BaseError::Unknown(_))), "{unknown}");
        }
        std::fs::remove_dir(&path).unwrap();
        assert!(matches!(bases("mine"), Err(BaseError::Unavailable(_))));
    }
}
