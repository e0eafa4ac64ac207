//! Datasets that were uploaded: a row in the database, the lines in the store.
//!
//! - `upload`: bytes as they arrive, checked line by line, kept as a whole or not at all.
//!
//! What does not live here: what a line means (`train::dataset`), and bodies of requests (`http`).
//!
//! **Invariant:** a row's object is in the store, whole, with the row's SHA-256: the object is written first and removed last.
//! **Invariant:** a dataset never changes, and the same bytes are kept once.

mod upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::{Any, Transaction};
use tokio::sync::Semaphore;

pub use self::upload::{BadLine, Upload, Uploaded};
use crate::access::{Actor, record};
use crate::db::{Database, DbError, LAST_ID};
use crate::jobs::JobState;
use crate::model::catalogue::Checksum;
use crate::store::{Store, StoreError};

/// Uploads at once: each may fill the disk up to the limit for one.
const MAX_UPLOADS: usize = 4;

/// The datasets of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Datasets {
    db: Database,
    store: Store,
    /// For uploads on their way.
    folder: PathBuf,
    places: Arc<Semaphore>,
}

/// A dataset as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// A UUID; sorts by time.
    pub id: String,
    /// What it was called.
    pub name: Option<String>,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
    /// Lines that are not blank.
    pub examples: u64,
    /// Its size.
    pub bytes: u64,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Who uploaded it.
    pub created_by: String,
}

/// Why a dataset can't be kept, had or removed.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such dataset.
    #[error("there is no dataset {id}")]
    NotFound {
        /// What was asked for.
        id: String,
    },
    /// A job that is not finished needs it.
    #[error("dataset {id} is needed by {job}, which is {state}")]
    InUse {
        /// The dataset.
        id: String,
        /// One such job, in words.
        job: String,
        /// Where that one stands.
        state: JobState,
    },
    /// The store has other bytes than were uploaded.
    #[error("dataset {id} is damaged: the store has {found}, expected SHA-256 {expected}")]
    Damaged {
        /// The dataset.
        id: String,
        /// As uploaded.
        expected: String,
        /// As found.
        found: String,
    },
    /// More bytes than are accepted.
    #[error("the dataset has {size}, at most {limit} bytes are accepted")]
    TooLarge {
        /// What is known of its size, with the unit.
        size: String,
        /// Bytes accepted.
        limit: u64,
    },
    /// Lines that are no examples; the first of them, and whether there are more.
    #[error("{} of the dataset's lines can't be used", lines.len())]
    BadLines {
        /// In the order of the file.
        lines: Vec<BadLine>,
    },
    /// Not one example.
    #[error("the dataset has no examples")]
    Empty,
    /// Other uploads are on their way.
    #[error("{MAX_UPLOADS} datasets are being uploaded already")]
    Busy,
    /// The disk, or the quota on it, is used up.
    #[error("the disk for uploads is full")]
    DiskFull,
    /// A file on its way can't be written or read.
    #[error("a file on its way from or to the store failed: {0}")]
    File(std::io::Error),
}

impl Datasets {
    /// The datasets in a database and a store. What is being uploaded is kept in the system's folder for temporary files.
    pub fn new(db: Database, store: Store) -> Self {
        Self {
            db,
            store,
            folder: std::env::temp_dir(),
            places: Arc::new(Semaphore::new(MAX_UPLOADS)),
        }
    }

    /// The same datasets, with another folder for what is being uploaded; it is made when it is needed.
    #[must_use]
    pub fn with_folder(self, folder: PathBuf) -> Self {
        Self { folder, ..self }
    }

    /// Where their rows are kept.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Where their lines are kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The dataset of this id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn get(&self, id: &str) -> Result<Option<Dataset>, DbError> {
        let row: Option<Row> = sqlx::query_as(concat!(
            "SELECT id, name, sha256, examples, bytes, created_at, created_by FROM datasets",
            " WHERE id = $1"
        ))
        .bind(id)
        .fetch_optional(self.db.pool())
        .await?;
        Ok(row.map(Dataset::from))
    }

    /// Datasets, newest first; `before` is the id of the last one that was seen.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, before: Option<&str>, limit: u32) -> Result<Vec<Dataset>, DbError> {
        let rows: Vec<Row> = sqlx::query_as(concat!(
            "SELECT id, name, sha256, examples, bytes, created_at, created_by FROM datasets",
            " WHERE id < $1 ORDER BY id DESC LIMIT $2"
        ))
        .bind(before.unwrap_or(LAST_ID))
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        Ok(rows.into_iter().map(Dataset::from).collect())
    }

    /// Writes a dataset's lines to a file, which is there as a whole or not at all.
    ///
    /// # Errors
    /// When there is no such dataset, its bytes are not those that were uploaded, or database, store or file fail.
    pub async fn fetch(&self, id: &str, to: &Path) -> Result<(), DatasetError> {
        let dataset = self.get(id).await?.ok_or_else(|| not_found(id))?;
        self.store.get_file(&key(id), to).await?;
        let found = sha256_of(to).await.map_err(DatasetError::File)?;
        if found != dataset.sha256 {
            tokio::fs::remove_file(to).await.map_err(DatasetError::File)?;
            return Err(DatasetError::Damaged {
                id: id.to_owned(),
                expected: dataset.sha256,
                found,
            });
        }
        Ok(())
    }

    /// Removes a dataset. Finished jobs keep its id in what was asked for.
    ///
    /// # Errors
    /// When there is none, a job that is not finished needs it, or the database fails.
    pub async fn delete(&self, id: &str, actor: &Actor) -> Result<(), DatasetError> {
        let mut transaction = self.db.begin().await?;
        if let Some((job, state)) = needed_by(&mut transaction, id).await? {
            return Err(DatasetError::InUse {
                id: id.to_owned(),
                job: format!("job {job}"),
                state,
            });
        }
        sqlx::query("UPDATE jobs SET dataset = NULL WHERE dataset = $1 AND state NOT IN ('queued', 'running')")
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(DbError::from)?;
        let gone = sqlx::query("DELETE FROM datasets WHERE id = $1")
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(DbError::from);
        let gone = match gone {
            // A job was submitted at this very moment.
            Err(error) if error.is_reference() => {
                return Err(DatasetError::InUse {
                    id: id.to_owned(),
                    job: "a new job".to_owned(),
                    state: JobState::Queued,
                });
            }
            gone => gone?,
        };
        if gone.rows_affected() == 0 {
            return Err(not_found(id));
        }
        record(&mut transaction, actor, "dataset.delete", id, None).await?;
        transaction.commit().await.map_err(DbError::from)?;
        if let Err(error) = self.store.delete(&key(id)).await {
            // The dataset is gone for everybody; what stays behind only takes room.
            tracing::warn!(%error, dataset = id, "the object of a deleted dataset is still in the store");
        }
        Ok(())
    }
}

/// A job that is not finished and needs a dataset.
async fn needed_by(transaction: &mut Transaction<'_, Any>, id: &str) -> Result<Option<(String, JobState)>, DbError> {
    let found: Option<(String, String)> = sqlx::query_as(
        "SELECT id, state FROM jobs WHERE dataset = $1 AND state IN ('queued', 'running') ORDER BY id LIMIT 1",
    )
    .bind(id)
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(found.map(|(job, state)| (job, state.parse().unwrap_or(JobState::Queued))))
}

type Row = (String, Option<String>, String, i64, i64, i64, String);

impl From<Row> for Dataset {
    fn from((id, name, sha256, examples, bytes, created_at, created_by): Row) -> Self {
        Self {
            id,
            name,
            sha256,
            examples: examples.unsigned_abs(),
            bytes: bytes.unsigned_abs(),
            created_at,
            created_by,
        }
    }
}

fn not_found(id: &str) -> DatasetError {
    DatasetError::NotFound { id: id.to_owned() }
}

fn key(id: &str) -> String {
    format!("datasets/{id}.jsonl")
}

async fn sha256_of(file: &Path) -> std::io::Result<String> {
    let mut file = tokio::fs::File::open(file).await?.into_std().await;
    let hashing = tokio::task::spawn_blocking(move || Checksum::of(&mut file));
    let (checksum, _) = hashing.await??;
    Ok(checksum.to_string())
}

#[cfg(test)]
mod tests;
