//! Where jobs meet the registry of adapters: versions to start from and to compare with, and the one transaction that ends a job.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use sqlx::Row;

use super::checkpoints;
use super::claims::{ClaimError, Healing, hold, succeed};
use super::prepare::{Prepared, invalid};
use super::run::{Attempt, Interrupted};
use crate::access::{self, Actor};
use crate::adapters::{AdapterRef, AdapterVersion};
use crate::db::{DbError, now};
use crate::evaluate::{Comparison, decide};

/// The folder of the version that training starts from.
pub(super) async fn initial(attempt: &Attempt<'_>, wanted: &str) -> Result<PathBuf, Interrupted> {
    let _: AdapterRef = wanted.parse().map_err(invalid)?;
    let _ = attempt;
    Err(invalid(format!("there is no adapter {wanted}")))
}

/// The folder of the active version; `None` is the bare base model.
pub(super) async fn baseline(_attempt: &Attempt<'_>) -> Result<Option<PathBuf>, Interrupted> {
    Ok(None)
}

/// Registers what was trained and ends the job.
pub(super) async fn finish(
    attempt: &Attempt<'_>,
    _prepared: &Prepared,
    comparison: Option<Comparison>,
) -> Result<(), Interrupted> {
    let folder = Prepared::adapter(&attempt.folder);
    let read = |name: &str| {
        std::fs::read(folder.join(name)).map_err(|error| Interrupted::failed("registration", error, Healing::Possible))
    };
    let (config, weights) = (read("adapter_config.json")?, read("adapter_model.safetensors")?);
    let sha256: String = Sha256::digest([Sha256::digest(&config), Sha256::digest(&weights)].concat())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let store = attempt.worker.registry.store();
    let failed = |error: &dyn std::fmt::Display| Interrupted::failed("registration", error, Healing::Possible);
    let bytes = config.len() + weights.len();
    for (name, content) in [("adapter_config.json", config), ("adapter_model.safetensors", weights)] {
        store
            .put(&format!("adapters/{sha256}/{name}"), content)
            .await
            .map_err(|error| failed(&error))?;
    }
    let decision = decide(attempt.claim.job.request.activate, comparison.as_ref());
    let metrics = serde_json::json!({ "candidate": comparison.as_ref().map(|c| &c.candidate), "baseline": comparison.as_ref().map(|c| &c.baseline), "decision": decision });
    let request = &attempt.claim.job.request;
    let committed = async {
        let mut transaction = attempt.worker.queue.database().begin().await?;
        hold(&mut transaction, &attempt.claim).await?;
        let number: i64 = sqlx::query(
            "INSERT INTO adapter_names (name, next_number) VALUES ($1, 2) \
             ON CONFLICT (name) DO UPDATE SET next_number = adapter_names.next_number + 1 RETURNING next_number - 1 AS number",
        )
        .bind(&request.name)
        .fetch_one(&mut *transaction)
        .await?
        .try_get("number")?;
        sqlx::query(
            "INSERT INTO adapter_versions (name, number, sha256, bytes, lora_rank, base, base_fingerprint, source, job, dataset, \
             created_at, created_by) VALUES ($1, $2, $3, $4, 0, $5, '', 'job', $6, $7, $8, 'worker')",
        )
        .bind(&request.name)
        .bind(number)
        .bind(&sha256)
        .bind(bytes as i64)
        .bind(&request.base)
        .bind(&attempt.claim.job.id)
        .bind(&request.dataset)
        .bind(now())
        .execute(&mut *transaction)
        .await?;
        let version = AdapterVersion::new(&request.name, u32::try_from(number).unwrap_or(u32::MAX));
        let checkpoint = succeed(&mut transaction, &attempt.claim, &version, Some(&metrics)).await?;
        access::record(
            &mut transaction,
            &Actor::part("worker"),
            "job.succeed",
            &attempt.claim.job.id,
            None,
        )
        .await?;
        transaction.commit().await.map_err(DbError::from)?;
        Ok::<_, ClaimError>(checkpoint)
    };
    if let Some(checkpoint) = committed.await? {
        checkpoints::discard(store, &checkpoint).await;
    }
    Ok(())
}
