//! What an attempt needs before a child can run: data, the base model, adapters to start from and to compare with, the last
//! checkpoint; and the children's arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::checkpoints;
use super::claims::Healing;
use super::finish::{self, Baseline};
use super::run::{Attempt, Interrupted};
use super::split::split;
use super::worker::BaseError;
use crate::datasets::DatasetError;
use crate::model::ModelError;
use crate::model::fingerprint::fingerprint;
use crate::train::TrainError;

/// What the children of an attempt work on.
pub(super) struct Prepared {
    /// File or folder of the base model.
    pub base: PathBuf,
    /// Examples to train on.
    train: PathBuf,
    /// Examples held back.
    held_back: PathBuf,
    /// Their number.
    pub held: u64,
    /// Of the base model.
    pub fingerprint: String,
    /// Of the dataset.
    pub dataset_sha256: String,
    /// Folder of the adapter to start from.
    init: Option<PathBuf>,
}

impl Prepared {
    /// Folder of what was trained.
    pub fn adapter(run: &Path) -> PathBuf {
        run.join("adapter")
    }
}

/// Brings all that is needed into the run's folder.
pub(super) async fn prepare(attempt: &Attempt<'_>) -> Result<Prepared, Interrupted> {
    let (worker, request, folder) = (attempt.worker, &attempt.claim.job.request, &attempt.folder);
    tokio::fs::create_dir_all(folder).await.map_err(|error| {
        Interrupted::failed(
            "failed",
            format!("the run's folder can't be made: {error}"),
            Healing::Possible,
        )
    })?;
    let [data, train, held_back] = ["data.jsonl", "train.jsonl", "held.jsonl"].map(|name| folder.join(name));
    let unusable = |error| match error {
        DatasetError::NotFound { .. } | DatasetError::Damaged { .. } => invalid(error),
        error => Interrupted::failed("failed", error, Healing::Possible),
    };
    worker.datasets.fetch(&request.dataset, &data).await.map_err(unusable)?;
    let dataset = worker.datasets.get(&request.dataset).await;
    let missing = || DatasetError::NotFound {
        id: request.dataset.clone(),
    };
    let dataset = dataset
        .map_err(|error| unusable(error.into()))?
        .ok_or_else(|| unusable(missing()))?;
    let held = {
        let (train, held_back, evaluation) = (train.clone(), held_back.clone(), request.evaluate);
        blocking(move || split(&data, &train, &held_back, &evaluation))
            .await?
            .map_err(|error| match error {
                TrainError::Io { .. } => Interrupted::failed("failed", error, Healing::Possible),
                error => invalid(error),
            })?
    };
    let (bases, name) = (worker.bases.clone(), request.base.clone());
    let base = blocking(move || bases(&name)).await?.map_err(|error| match error {
        BaseError::Unknown(_) => invalid(error),
        BaseError::Unavailable(_) => Interrupted::failed("failed", error, Healing::Possible),
    })?;
    let path = base.clone();
    let fingerprint = blocking(move || fingerprint(&path))
        .await?
        .map_err(|error| match error {
            ModelError::Io { .. } => Interrupted::failed("failed", error, Healing::Possible),
            error => invalid(error),
        })?;
    let init = match &request.hyperparameters.init_adapter {
        Some(wanted) => Some(finish::initial(attempt, wanted, &fingerprint).await?),
        None => None,
    };
    checkpoints::fetch(worker.registry.store(), &attempt.claim, folder)
        .await
        .map_err(|error| Interrupted::failed("failed", error, Healing::Possible))?;
    Ok(Prepared {
        base,
        train,
        held_back,
        held,
        fingerprint,
        dataset_sha256: dataset.sha256,
        init,
    })
}

/// Arguments of the training process.
pub(super) fn training(attempt: &Attempt<'_>, prepared: &Prepared) -> Vec<OsString> {
    let request = &attempt.claim.job.request;
    let minutes = attempt.worker.config.checkpoint_interval.as_secs_f64() / 60.0;
    let mut arguments: Vec<OsString> = vec!["train".into(), "--resume".into(), "--report".into(), "json".into()];
    let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
    add("--model", prepared.base.clone().into());
    add("--base-name", request.base.clone().into());
    add("--data", prepared.train.clone().into());
    add("--out", attempt.folder.clone().into());
    add("--checkpoint-minutes", minutes.to_string().into());
    add("--objective", request.objective.as_str().into());
    if let Some(init) = &prepared.init {
        add("--init-adapter", init.clone().into());
    }
    arguments.extend(request.hyperparameters.arguments().into_iter().map(OsString::from));
    arguments
}

/// Arguments of the evaluation process.
pub(super) fn evaluation(attempt: &Attempt<'_>, prepared: &Prepared, baseline: &Baseline) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["evaluate".into(), "--report".into(), "json".into()];
    let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
    add("--model", prepared.base.clone().into());
    // The first is what the second is compared with.
    let folder = baseline.folder.clone();
    add("--adapter", folder.map_or_else(|| "none".into(), OsString::from));
    add("--adapter", Prepared::adapter(&attempt.folder).into());
    add("--samples", "0".into());
    add("--data", prepared.held_back.clone().into());
    arguments
}

pub(super) fn invalid(error: impl std::fmt::Display) -> Interrupted {
    Interrupted::failed("invalid", error, Healing::Impossible)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Interrupted> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Interrupted::failed("failed", error, Healing::Possible))
}
