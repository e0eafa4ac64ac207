//! Where jobs meet the registry of adapters: versions to start from and to compare with, and the one transaction that ends a job.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checkpoints;
use super::claims::{ClaimError, Healing, hold, succeed};
use super::job::JobState;
use super::prepare::{Prepared, blocking, invalid};
use super::request::ActivationPolicy;
use super::run::{Attempt, Interrupted};
use crate::access::{self, Actor};
use crate::adapters::{
    Action, AdapterFiles, AdapterRef, AdapterVersion, CONFIG, Change, NewVersion, Registry, RegistryError, Source,
    WEIGHTS, insert_deployment, insert_version,
};
use crate::db::DbError;
use crate::evaluate::{Comparison, Decision, decide};

/// Pause before the last transaction is tried again, while the database is away or somebody else changes what is served.
const PAUSE: Duration = Duration::from_millis(500);

/// What a result is compared with.
pub(super) struct Baseline {
    /// What is to be served as the comparison begins; none before the first start of a service.
    active: Option<AdapterVersion>,
    /// The folder of its files; none for the bare base model, and when what is active is of another base.
    pub folder: Option<PathBuf>,
}

/// A comparison, and with what.
pub(super) struct Evaluated {
    comparison: Comparison,
    active: Option<AdapterVersion>,
}

impl Baseline {
    /// With the names that the registry has, instead of the folders'.
    pub fn evaluated(self, mut comparison: Comparison, name: &str) -> Evaluated {
        comparison.candidate.adapter = name.to_owned();
        if let (Some(active), Some(_)) = (&self.active, &self.folder)
            && !comparison.baseline.is_bare_base()
        {
            comparison.baseline.adapter = active.to_string();
        }
        Evaluated {
            comparison,
            active: self.active,
        }
    }
}

/// The folder of the version that training starts from.
pub(super) async fn initial(attempt: &Attempt<'_>, wanted: &str, fingerprint: &str) -> Result<PathBuf, Interrupted> {
    let registry = &attempt.worker.registry;
    let wanted: AdapterRef = wanted.parse().map_err(invalid)?;
    let unknown = || invalid(RegistryError::Unknown(wanted.clone()));
    let version = registry.resolve(&wanted).await.map_err(failed)?.ok_or_else(unknown)?;
    let record = registry.get(&version).await.map_err(failed)?.ok_or_else(unknown)?;
    if record.base_fingerprint != fingerprint {
        return Err(invalid(format!(
            "{version} was trained on another base model, {}: training can't start from it",
            record.base
        )));
    }
    let folder = attempt.folder.join("initial");
    write(registry, &version, &folder).await?;
    Ok(folder)
}

/// What the result is compared with: the active version, or the bare base model.
pub(super) async fn baseline(attempt: &Attempt<'_>, prepared: &Prepared) -> Result<Baseline, Interrupted> {
    let registry = &attempt.worker.registry;
    let active = registry.deployment().await.map_err(failed)?.map(|last| last.active);
    let mut folder = None;
    if let Some(version) = &active
        && is_of(registry, version, &prepared.fingerprint).await.map_err(failed)?
    {
        let to = attempt.folder.join("baseline");
        write(registry, version, &to).await?;
        folder = Some(to);
    }
    Ok(Baseline { active, folder })
}

/// Whether a version is there and was trained on the base with this fingerprint.
async fn is_of(registry: &Registry, version: &AdapterVersion, fingerprint: &str) -> Result<bool, DbError> {
    let record = registry.get(version).await?;
    Ok(record.is_some_and(|record| record.base_fingerprint == fingerprint))
}

async fn write(registry: &Registry, version: &AdapterVersion, folder: &Path) -> Result<(), Interrupted> {
    let files = registry.files(version).await.map_err(|error| match error {
        RegistryError::Unknown(_) => invalid(error),
        error => failed(error),
    })?;
    let folder = folder.to_owned();
    blocking(move || {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(CONFIG), files.config)?;
        std::fs::write(folder.join(WEIGHTS), files.weights)
    })
    .await?
    .map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Interrupted {
    Interrupted::failed("failed", error, Healing::Possible)
}

fn unregistered(error: impl std::fmt::Display) -> Interrupted {
    Interrupted::failed("registration", error, Healing::Possible)
}

/// Registers what was trained, activates it if the policy says so, and ends the job: all of it or nothing.
pub(super) async fn finish(
    attempt: &Attempt<'_>,
    prepared: &Prepared,
    evaluated: Option<Evaluated>,
) -> Result<(), Interrupted> {
    let (registry, job) = (&attempt.worker.registry, &attempt.claim.job);
    let trained = attempt.folder.clone();
    let (files, hyperparameters) = blocking(move || read(&trained)).await?.map_err(unregistered)?;
    let rank = files.claim().map_err(unregistered)?.rank;
    let comparison = evaluated.as_ref().map(|evaluated| &evaluated.comparison);
    let mut ending = Ending {
        new: NewVersion {
            name: job.request.name.clone(),
            sha256: registry.keep_files(&files).await.map_err(unregistered)?,
            bytes: files.bytes(),
            rank,
            base: job.request.base.clone(),
            base_fingerprint: prepared.fingerprint.clone(),
            source: Source::Job,
            job: Some(job.id.clone()),
            dataset: Some(job.request.dataset.clone()),
            dataset_sha256: Some(prepared.dataset_sha256.clone()),
            hyperparameters: Some(hyperparameters),
            metrics: comparison.and_then(|comparison| serde_json::to_value(&comparison.candidate).ok()),
        },
        decision: decide(job.request.activate, comparison),
        expected: evaluated
            .as_ref()
            .filter(|_| job.request.activate == ActivationPolicy::IfBetter)
            .map(|evaluated| evaluated.active.clone().unwrap_or_else(AdapterVersion::none)),
        comparison,
    };
    ending.stay_with_base(registry).await?;
    let (version, checkpoint) = commit(attempt, &mut ending).await?;
    tracing::info!(job = job.id, %version, activated = ending.decision.activate, reason = ending.decision.reason, "registered");
    // Another version with the same files may have been deleted, and they with it, between their keeping and this version.
    registry
        .keep_files(&files)
        .await
        .map_err(|error| tracing::error!(%version, %error, "its files may be gone"))
        .ok();
    if let Some(checkpoint) = checkpoint {
        checkpoints::discard(registry.store(), &checkpoint).await;
    }
    Ok(())
}

/// The result's files, and all settings that it was trained with.
fn read(run: &Path) -> std::io::Result<(AdapterFiles, serde_json::Value)> {
    let folder = Prepared::adapter(run);
    let files = AdapterFiles {
        config: std::fs::read(folder.join(CONFIG))?,
        weights: std::fs::read(folder.join(WEIGHTS))?,
    };
    Ok((files, serde_json::from_slice(&std::fs::read(run.join("config.json"))?)?))
}

/// What the last transaction writes.
struct Ending<'a> {
    new: NewVersion,
    decision: Decision,
    /// What is active if the decision is still to hold; none when it does not depend on that.
    expected: Option<AdapterVersion>,
    comparison: Option<&'a Comparison>,
}

#[derive(Debug, thiserror::Error)]
enum EndingError {
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<DbError> for EndingError {
    fn from(error: DbError) -> Self {
        Self::Claim(error.into())
    }
}

impl EndingError {
    /// Whether the database itself is not there.
    fn is_passing(&self) -> bool {
        match self {
            Self::Claim(ClaimError::Db(error)) | Self::Registry(RegistryError::Db(error)) => error.is_unreachable(),
            Self::Registry(RegistryError::Raced) => true,
            _ => false,
        }
    }
}

impl Ending<'_> {
    /// What is served is of one base model; a version of another would be activated for nobody.
    async fn stay_with_base(&mut self, registry: &Registry) -> Result<(), Interrupted> {
        let last = registry.deployment().await.map_err(unregistered)?;
        if let Some(active) = last.map(|last| last.active)
            && !active.is_none()
            && self.decision.activate
            && !is_of(registry, &active, &self.new.base_fingerprint)
                .await
                .map_err(unregistered)?
        {
            let reason = &self.decision.reason;
            self.decision = Decision {
                activate: false,
                reason: format!("not activated: {active}, which is active, is of another base model ({reason})"),
            };
        }
        Ok(())
    }

    /// What the job shows.
    fn metrics(&self, version: &AdapterVersion) -> serde_json::Value {
        let mut metrics = serde_json::json!({});
        if let Some(comparison) = self.comparison {
            metrics = serde_json::json!(comparison);
            metrics["candidate"]["adapter"] = version.to_string().into();
        }
        metrics["decision"] = serde_json::json!(self.decision);
        metrics
    }

    async fn write(&self, attempt: &Attempt<'_>) -> Result<(AdapterVersion, Option<String>), EndingError> {
        let (claim, actor) = (&attempt.claim, Actor::part("worker"));
        let mut transaction = attempt.worker.queue.database().begin().await?;
        hold(&mut transaction, claim).await?;
        let version = insert_version(&mut transaction, &self.new, &actor).await?;
        if self.decision.activate {
            let change = Change::Activate(version.clone());
            let (expected, reason) = (self.expected.as_ref(), Some(self.decision.reason.as_str()));
            insert_deployment(&mut transaction, change, expected, Action::Policy, reason, &actor).await?;
        }
        let checkpoint = succeed(&mut transaction, claim, &version, Some(&self.metrics(&version))).await?;
        let detail = version.to_string();
        access::record(&mut transaction, &actor, "job.succeed", &claim.job.id, Some(&detail)).await?;
        transaction.commit().await.map_err(DbError::from)?;
        Ok((version, checkpoint))
    }
}

/// Writes the ending, for as long as it takes until the database is there; whoever waits for this gives up when the claim is lost.
async fn commit(
    attempt: &Attempt<'_>,
    ending: &mut Ending<'_>,
) -> Result<(AdapterVersion, Option<String>), Interrupted> {
    let mut is_known = true;
    loop {
        match ending.write(attempt).await {
            Ok(done) => return Ok(done),
            Err(EndingError::Claim(ClaimError::Lost)) if !is_known => return outcome(attempt).await,
            Err(EndingError::Claim(ClaimError::Lost)) => return Err(Interrupted::Lost),
            Err(EndingError::Registry(RegistryError::Conflict { expected, found })) => {
                ending.decision = Decision {
                    activate: false,
                    reason: format!(
                        "not activated: {found} became active while this was compared with {expected} ({})",
                        ending.decision.reason
                    ),
                };
            }
            Err(error) if error.is_passing() => {
                tracing::warn!(job = attempt.claim.job.id, %error, "the result was not registered; trying again");
                is_known = false;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(unregistered(error)),
        }
    }
}

/// The connection may have broken between the commit and the news of it.
async fn outcome(attempt: &Attempt<'_>) -> Result<(AdapterVersion, Option<String>), Interrupted> {
    let job = attempt
        .worker
        .queue
        .get(&attempt.claim.job.id)
        .await
        .map_err(unregistered)?;
    let job = job.filter(|job| job.epoch == attempt.claim.epoch && job.state == JobState::Succeeded);
    match job.and_then(|job| job.adapter) {
        Some(version) => Ok((version, None)),
        None => Err(Interrupted::Lost),
    }
}
