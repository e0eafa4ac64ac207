//! The versions there are: rows in the database, files in the store.
//!
//! Files are kept under the checksum of their content, and before their row is: a crash between the two leaves files that
//! nobody names, never a version without files.

use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::deployments::{HeldBy, held_by};
use super::files::{AdapterFiles, CONFIG, WEIGHTS};
use super::record::{NewVersion, RegistryError, VersionRecord};
use super::version::{AdapterRef, AdapterVersion};
use crate::access::{Actor, record};
use crate::db::{Database, DbError, now};
use crate::store::Store;

/// The registry of adapters: rows in the database, files in the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    pub(super) db: Database,
    store: Store,
}

/// What became of an import.
#[derive(Debug, Clone, PartialEq)]
pub enum Imported {
    /// A new version.
    New(AdapterVersion),
    /// The name has a version with the same files.
    Same(AdapterVersion),
}

impl Imported {
    /// The version, new or not.
    pub fn version(&self) -> &AdapterVersion {
        match self {
            Self::New(version) | Self::Same(version) => version,
        }
    }
}

macro_rules! columns {
    () => {
        "name, number, sha256, bytes, lora_rank, base, base_fingerprint, source, job, dataset, dataset_sha256, \
         hyperparameters, metrics, pinned, created_at, created_by"
    };
}

impl Registry {
    /// The registry in a database and a store.
    pub fn new(db: Database, store: Store) -> Self {
        Self { db, store }
    }

    /// Where its rows are kept.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Where its files are kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Keeps files in the store and returns their checksum. Until a version names it they count for nothing.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn keep_files(&self, files: &AdapterFiles) -> Result<String, RegistryError> {
        let sha256 = files.sha256();
        self.store.put(&key(&sha256, CONFIG), files.config.clone()).await?;
        self.store.put(&key(&sha256, WEIGHTS), files.weights.clone()).await?;
        Ok(sha256)
    }

    /// The files of a version, found to be those that were registered.
    ///
    /// # Errors
    /// When there is no such version, the store fails, or holds other files.
    pub async fn files(&self, version: &AdapterVersion) -> Result<AdapterFiles, RegistryError> {
        let record = self
            .get(version)
            .await?
            .ok_or_else(|| RegistryError::unknown(version))?;
        let files = AdapterFiles {
            config: self.store.get(&key(&record.sha256, CONFIG)).await?,
            weights: self.store.get(&key(&record.sha256, WEIGHTS)).await?,
        };
        // Hashing some megabytes is work for milliseconds, some hundred of them for a good part of a second.
        let (files, found) = tokio::task::spawn_blocking(move || {
            let found = files.sha256();
            (files, found)
        })
        .await
        .map_err(|error| DbError::Statement(sqlx::Error::Io(std::io::Error::other(error))))?;
        if found != record.sha256 {
            return Err(RegistryError::Damaged {
                version: version.clone(),
                found,
                expected: record.sha256,
            });
        }
        Ok(files)
    }

    /// A version that was not deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn get(&self, version: &AdapterVersion) -> Result<Option<VersionRecord>, DbError> {
        let row = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM adapter_versions WHERE name = $1 AND number = $2 AND deleted_at IS NULL"
        ))
        .bind(version.name())
        .bind(i64::from(version.number()))
        .fetch_optional(self.db.pool())
        .await?;
        Ok(row.as_ref().map(from_row).transpose()?)
    }

    /// All versions that were not deleted, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self) -> Result<Vec<VersionRecord>, DbError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM adapter_versions WHERE deleted_at IS NULL ORDER BY created_at DESC, name, number DESC"
        ))
        .fetch_all(self.db.pool())
        .await?;
        Ok(rows.iter().map(from_row).collect::<Result<_, _>>()?)
    }

    /// The version that `wanted` means: the one it names; for a name alone the active version if it has that name, else the newest one.
    /// `none` is the bare base model. None when there is no such version.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn resolve(&self, wanted: &AdapterRef) -> Result<Option<AdapterVersion>, DbError> {
        let none = AdapterVersion::none();
        if none.answers_to(wanted) {
            return Ok(Some(none));
        }
        if let Some(version) = wanted.version() {
            return Ok(self.get(&version).await?.map(|record| record.version));
        }
        if let Some(deployment) = self.deployment().await?
            && deployment.active.answers_to(wanted)
        {
            return Ok(Some(deployment.active));
        }
        let newest: Option<(i64,)> = sqlx::query_as(
            "SELECT number FROM adapter_versions WHERE name = $1 AND deleted_at IS NULL ORDER BY number DESC LIMIT 1",
        )
        .bind(wanted.name())
        .fetch_optional(self.db.pool())
        .await?;
        Ok(newest.map(|(number,)| AdapterVersion::new(wanted.name(), number as u32)))
    }

    /// Registers files under a name, unless the name has a version with the same ones.
    ///
    /// # Errors
    /// When the database or the store fails.
    pub async fn import(
        &self,
        files: &AdapterFiles,
        new: &NewVersion,
        actor: &Actor,
    ) -> Result<Imported, RegistryError> {
        self.keep_files(files).await?;
        let mut transaction = self.db.begin().await?;
        // Takes the name, so that the same files at the same moment become one version.
        sqlx::query(
            "INSERT INTO adapter_names (name, next_number) VALUES ($1, 1) \
             ON CONFLICT (name) DO UPDATE SET next_number = adapter_names.next_number",
        )
        .bind(&new.name)
        .execute(&mut *transaction)
        .await?;
        let same: Option<(i64,)> = sqlx::query_as(
            "SELECT number FROM adapter_versions WHERE name = $1 AND sha256 = $2 AND deleted_at IS NULL \
             ORDER BY number DESC LIMIT 1",
        )
        .bind(&new.name)
        .bind(&new.sha256)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some((number,)) = same {
            return Ok(Imported::Same(AdapterVersion::new(&new.name, number as u32)));
        }
        let version = insert_version(&mut transaction, new, actor).await?;
        transaction.commit().await?;
        // The last other version with these files may have been deleted since they were kept.
        if !self.store.contains(&key(&new.sha256, WEIGHTS)).await?
            || !self.store.contains(&key(&new.sha256, CONFIG)).await?
        {
            self.keep_files(files).await?;
        }
        Ok(Imported::New(version))
    }

    /// Keeps a version from being deleted, or no longer.
    ///
    /// # Errors
    /// When there is no such version, or the database fails.
    pub async fn pin(&self, version: &AdapterVersion, pinned: bool, actor: &Actor) -> Result<(), RegistryError> {
        let mut transaction = self.db.begin().await?;
        let changed = sqlx::query(
            "UPDATE adapter_versions SET pinned = $3 WHERE name = $1 AND number = $2 AND deleted_at IS NULL",
        )
        .bind(version.name())
        .bind(i64::from(version.number()))
        .bind(i64::from(pinned))
        .execute(&mut *transaction)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(RegistryError::unknown(version));
        }
        let action = if pinned { "adapter.pin" } else { "adapter.unpin" };
        record(&mut transaction, actor, action, &version.to_string(), None).await?;
        Ok(transaction.commit().await?)
    }

    /// Deletes a version, and its files unless another version has the same. Its number is not given again.
    ///
    /// # Errors
    /// When there is no such version; when it is deployed or pinned; when the database fails.
    pub async fn delete(&self, version: &AdapterVersion, actor: &Actor) -> Result<(), RegistryError> {
        if version.is_none() {
            return Err(RegistryError::InUse {
                version: version.clone(),
                why: "the bare base model, which can't be deleted",
            });
        }
        let mut transaction = self.db.begin().await?;
        // First of all, so that a deployment of it that is being made comes either before the look at the deployments, or finds it gone.
        let row: Option<(String, i64)> = sqlx::query_as(
            "UPDATE adapter_versions SET deleted_at = $3 WHERE name = $1 AND number = $2 AND deleted_at IS NULL \
             RETURNING sha256, pinned",
        )
        .bind(version.name())
        .bind(i64::from(version.number()))
        .bind(now())
        .fetch_optional(&mut *transaction)
        .await?;
        let (sha256, pinned) = row.ok_or_else(|| RegistryError::unknown(version))?;
        let in_use = |why| RegistryError::InUse {
            version: version.clone(),
            why,
        };
        if pinned != 0 {
            return Err(in_use("pinned; unpin it first"));
        }
        match held_by(&mut transaction, version).await? {
            Some(HeldBy::Active) => return Err(in_use("active; activate another one first")),
            Some(HeldBy::Traffic) => return Err(in_use("given a part of the traffic; take it away first")),
            Some(HeldBy::Shadow) => return Err(in_use("the shadow; end that first")),
            None => {}
        }
        let (others,): (i64,) =
            sqlx::query_as("SELECT COUNT(*) FROM adapter_versions WHERE sha256 = $1 AND deleted_at IS NULL")
                .bind(&sha256)
                .fetch_one(&mut *transaction)
                .await?;
        record(&mut transaction, actor, "adapter.delete", &version.to_string(), None).await?;
        transaction.commit().await?;
        if others == 0 {
            for name in [CONFIG, WEIGHTS] {
                if let Err(error) = self.store.delete(&key(&sha256, name)).await {
                    // The version is gone all the same; what is left are files that nobody names.
                    tracing::warn!(%version, %error, "a file of a deleted adapter could not be removed");
                }
            }
        }
        Ok(())
    }
}

/// Where a file is kept.
fn key(sha256: &str, name: &str) -> String {
    format!("adapters/{sha256}/{name}")
}

/// Registers a version under the next number of its name. Its files must be in the store.
///
/// # Errors
/// When the database fails; when the version's job has registered one already.
pub async fn insert_version(
    transaction: &mut Transaction<'_, Any>,
    new: &NewVersion,
    actor: &Actor,
) -> Result<AdapterVersion, RegistryError> {
    let (number,): (i64,) = sqlx::query_as(
        "INSERT INTO adapter_names (name, next_number) VALUES ($1, 2) \
         ON CONFLICT (name) DO UPDATE SET next_number = adapter_names.next_number + 1 RETURNING next_number - 1",
    )
    .bind(&new.name)
    .fetch_one(&mut **transaction)
    .await?;
    let version = AdapterVersion::new(&new.name, number as u32);
    let json = |value: &Option<serde_json::Value>| value.as_ref().map(serde_json::Value::to_string);
    sqlx::query(concat!(
        "INSERT INTO adapter_versions (",
        columns!(),
        ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 0, $14, $15)"
    ))
    .bind(&new.name)
    .bind(number)
    .bind(&new.sha256)
    .bind(new.bytes as i64)
    .bind(new.rank as i64)
    .bind(&new.base)
    .bind(&new.base_fingerprint)
    .bind(new.source.as_str())
    .bind(&new.job)
    .bind(&new.dataset)
    .bind(&new.dataset_sha256)
    .bind(json(&new.hyperparameters))
    .bind(json(&new.metrics))
    .bind(now())
    .bind(&actor.id)
    .execute(&mut **transaction)
    .await?;
    let detail = format!("{} {}", new.source, new.sha256);
    record(
        transaction,
        actor,
        "adapter.register",
        &version.to_string(),
        Some(&detail),
    )
    .await?;
    Ok(version)
}

fn from_row(row: &AnyRow) -> Result<VersionRecord, sqlx::Error> {
    let json = |column: &str| -> Result<Option<serde_json::Value>, sqlx::Error> {
        let text: Option<String> = row.try_get(column)?;
        text.map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| sqlx::Error::Decode(error.into()))
    };
    let name: String = row.try_get("name")?;
    let source: String = row.try_get("source")?;
    Ok(VersionRecord {
        version: AdapterVersion::new(name, row.try_get::<i64, _>("number")? as u32),
        sha256: row.try_get("sha256")?,
        bytes: row.try_get::<i64, _>("bytes")? as u64,
        rank: row.try_get::<i64, _>("lora_rank")? as usize,
        base: row.try_get("base")?,
        base_fingerprint: row.try_get("base_fingerprint")?,
        source: source
            .parse()
            .map_err(|error: super::record::UnknownWord| sqlx::Error::Decode(error.into()))?,
        job: row.try_get("job")?,
        dataset: row.try_get("dataset")?,
        dataset_sha256: row.try_get("dataset_sha256")?,
        hyperparameters: json("hyperparameters")?,
        metrics: json("metrics")?,
        pinned: row.try_get::<i64, _>("pinned")? != 0,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
    })
}
