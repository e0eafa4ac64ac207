//! What is to be served: a list of changes that only grows; the last one holds.

use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::record::{Action, Change, Deployment, RegistryError, Share, UnknownWord};
use super::registry::Registry;
use super::version::{AdapterVersion, ParseAdapterVersionError};
use crate::access::{Actor, record};
use crate::db::{DbError, now};

macro_rules! columns {
    () => {
        "revision, active_name, active_number, traffic, shadow, action, reason, at, actor"
    };
}

/// What keeps a version in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeldBy {
    Active,
    Traffic,
    Shadow,
}

impl Registry {
    /// What is to be served now. None before the first start of a service.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deployment(&self) -> Result<Option<Deployment>, DbError> {
        Ok(self.deployments(None, 1).await?.into_iter().next())
    }

    /// The last `limit` changes below the revision `before`, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deployments(&self, before: Option<i64>, limit: u32) -> Result<Vec<Deployment>, DbError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM deployments WHERE revision < $1 ORDER BY revision DESC LIMIT $2"
        ))
        .bind(before.unwrap_or(i64::MAX))
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        Ok(rows.iter().map(from_row).collect::<Result<_, _>>()?)
    }

    /// The version that a rollback would activate.
    ///
    /// # Errors
    /// When nothing was active before that is still there, or the database fails.
    pub async fn before(&self) -> Result<AdapterVersion, RegistryError> {
        let mut transaction = self.db.pool().begin().await?;
        before(&mut transaction).await
    }
}

/// Makes a change of what is to be served, if `expected` is what is active; without an expectation, whatever is active. The row's
/// number is the last one's plus one: of two changes at the same moment one fails, and with it its transaction.
///
/// # Errors
/// When another version is active than expected, a version of the change is not there, or the shares are not what shares can be.
pub async fn insert_deployment(
    transaction: &mut Transaction<'_, Any>,
    change: Change,
    expected: Option<&AdapterVersion>,
    action: Action,
    reason: Option<&str>,
    actor: &Actor,
) -> Result<Deployment, RegistryError> {
    let last = last(transaction).await?;
    let none = AdapterVersion::none();
    let found = last.as_ref().map_or(&none, |last| &last.active);
    if let Some(expected) = expected
        && expected != found
    {
        return Err(RegistryError::Conflict {
            expected: expected.clone(),
            found: found.clone(),
        });
    }
    let (active, traffic, shadow) = match change {
        Change::Activate(version) => (version, Vec::new(), None),
        Change::Rollback => (before(transaction).await?, Vec::new(), None),
        Change::Traffic { weights, shadow } => {
            check_shares(&weights, found)?;
            (found.clone(), weights, shadow)
        }
    };
    let deployment = Deployment {
        revision: last.as_ref().map_or(0, |last| last.revision) + 1,
        active,
        traffic,
        shadow,
        action,
        reason: reason.map(str::to_owned),
        at: now(),
        actor: actor.id.clone(),
    };
    for version in deployment.versions() {
        hold(transaction, version).await?;
    }
    insert(transaction, &deployment).await?;
    let act = match action {
        Action::Start | Action::Activate | Action::Policy => "adapter.activate",
        Action::Rollback => "adapter.rollback",
        Action::Traffic => "adapter.traffic",
    };
    let detail = detail(&deployment, found);
    record(transaction, actor, act, &deployment.active.to_string(), Some(&detail)).await?;
    Ok(deployment)
}

/// What a person wants to know of a change afterwards.
fn detail(deployment: &Deployment, found: &AdapterVersion) -> String {
    let mut detail = format!("revision {}, {}", deployment.revision, deployment.action);
    if deployment.active != *found {
        detail += &format!(", before {found}");
    }
    for Share { adapter, weight } in &deployment.traffic {
        detail += &format!(", {adapter} gets {weight}");
    }
    if let Some(shadow) = &deployment.shadow {
        detail += &format!(", shadow {shadow}");
    }
    detail
}

async fn insert(transaction: &mut Transaction<'_, Any>, deployment: &Deployment) -> Result<(), RegistryError> {
    let traffic =
        serde_json::to_string(&deployment.traffic).map_err(|error| RegistryError::Shares(error.to_string()))?;
    sqlx::query(concat!(
        "INSERT INTO deployments (",
        columns!(),
        ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    ))
    .bind(deployment.revision)
    .bind(deployment.active.name())
    .bind(i64::from(deployment.active.number()))
    .bind(traffic)
    .bind(deployment.shadow.as_ref().map(AdapterVersion::to_string))
    .bind(deployment.action.as_str())
    .bind(&deployment.reason)
    .bind(deployment.at)
    .bind(&deployment.actor)
    .execute(&mut **transaction)
    .await
    .map_err(|error| match DbError::from(error) {
        error if error.is_conflict() => RegistryError::Raced,
        error => error.into(),
    })?;
    Ok(())
}

/// Makes sure that a version is there, and stays until the transaction ends: whoever deletes it waits for the row, and then finds it
/// deployed.
async fn hold(transaction: &mut Transaction<'_, Any>, version: &AdapterVersion) -> Result<(), RegistryError> {
    if version.is_none() {
        return Ok(());
    }
    let held = sqlx::query(
        "UPDATE adapter_versions SET pinned = pinned WHERE name = $1 AND number = $2 AND deleted_at IS NULL",
    )
    .bind(version.name())
    .bind(i64::from(version.number()))
    .execute(&mut **transaction)
    .await?;
    match held.rows_affected() {
        0 => Err(RegistryError::unknown(version)),
        _ => Ok(()),
    }
}

fn check_shares(shares: &[Share], active: &AdapterVersion) -> Result<(), RegistryError> {
    let wrong = |reason: String| Err(RegistryError::Shares(reason));
    for (at, Share { adapter, weight }) in shares.iter().enumerate() {
        if !(*weight > 0.0 && *weight <= 1.0) {
            return wrong(format!("the weight of {adapter} must be above 0 and at most 1"));
        }
        if adapter == active {
            return wrong(format!("{adapter} is active: it gets what the others leave"));
        }
        if shares[..at].iter().any(|other| other.adapter == *adapter) {
            return wrong(format!("{adapter} is named twice"));
        }
    }
    let total: f64 = shares.iter().map(|share| share.weight).sum();
    // Tenths do not add up to one in binary.
    if total > 1.0 + 1e-9 {
        return wrong(format!("the weights add up to {total}, at most 1 is there to give"));
    }
    Ok(())
}

async fn last(transaction: &mut Transaction<'_, Any>) -> Result<Option<Deployment>, RegistryError> {
    let row = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM deployments ORDER BY revision DESC LIMIT 1"
    ))
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(row.as_ref().map(from_row).transpose()?)
}

/// The version that was active before the last change of it. Deleted ones are passed over.
async fn before(transaction: &mut Transaction<'_, Any>) -> Result<AdapterVersion, RegistryError> {
    let row: Option<(String, i64)> = sqlx::query_as(
        "SELECT active_name, active_number FROM deployments AS earlier \
         WHERE NOT EXISTS (SELECT 1 FROM deployments AS last \
             WHERE last.revision = (SELECT MAX(revision) FROM deployments) \
             AND last.active_name = earlier.active_name AND last.active_number = earlier.active_number) \
         AND (active_number = 0 OR EXISTS (SELECT 1 FROM adapter_versions AS version \
             WHERE version.name = earlier.active_name AND version.number = earlier.active_number \
             AND version.deleted_at IS NULL)) \
         ORDER BY revision DESC LIMIT 1",
    )
    .fetch_optional(&mut **transaction)
    .await?;
    row.map(|(name, number)| AdapterVersion::new(name, number as u32))
        .ok_or(RegistryError::NothingBefore)
}

/// What keeps a version in use, if anything does.
pub(super) async fn held_by(
    transaction: &mut Transaction<'_, Any>,
    version: &AdapterVersion,
) -> Result<Option<HeldBy>, RegistryError> {
    let Some(last) = last(transaction).await? else {
        return Ok(None);
    };
    Ok(if last.active == *version {
        Some(HeldBy::Active)
    } else if last.traffic.iter().any(|share| share.adapter == *version) {
        Some(HeldBy::Traffic)
    } else if last.shadow.as_ref() == Some(version) {
        Some(HeldBy::Shadow)
    } else {
        None
    })
}

fn from_row(row: &AnyRow) -> Result<Deployment, sqlx::Error> {
    let name: String = row.try_get("active_name")?;
    let (traffic, action): (String, String) = (row.try_get("traffic")?, row.try_get("action")?);
    let shadow: Option<String> = row.try_get("shadow")?;
    Ok(Deployment {
        revision: row.try_get("revision")?,
        active: AdapterVersion::new(name, row.try_get::<i64, _>("active_number")? as u32),
        traffic: serde_json::from_str(&traffic).map_err(|error| sqlx::Error::Decode(error.into()))?,
        shadow: shadow
            .map(|shadow| shadow.parse())
            .transpose()
            .map_err(|error: ParseAdapterVersionError| sqlx::Error::Decode(error.into()))?,
        action: action
            .parse()
            .map_err(|error: UnknownWord| sqlx::Error::Decode(error.into()))?,
        reason: row.try_get("reason")?,
        at: row.try_get("at")?,
        actor: row.try_get("actor")?,
    })
}
