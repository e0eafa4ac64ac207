//! What each serving process has in use, as it says itself.

use super::registry::Registry;
use super::version::AdapterVersion;
use crate::db::{DbError, now};

/// A serving process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// New at each start.
    pub id: String,
    /// The model it runs.
    pub base: String,
    /// The change up to which it has followed.
    pub revision: i64,
    /// The version that new requests get there.
    pub active: AdapterVersion,
    /// Why it can't follow further.
    pub error: Option<String>,
    /// When it was heard of, in milliseconds since 1970.
    pub seen_at: i64,
}

impl Registry {
    /// Notes what a process has in use; its `seen_at` becomes now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn report(&self, replica: &Replica) -> Result<(), DbError> {
        let mut transaction = self.db.begin().await?;
        sqlx::query(
            "INSERT INTO replicas (id, base, revision, active, error, seen_at) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, active = excluded.active, \
             error = excluded.error, seen_at = excluded.seen_at",
        )
        .bind(&replica.id)
        .bind(&replica.base)
        .bind(replica.revision)
        .bind(replica.active.to_string())
        .bind(&replica.error)
        .bind(now())
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Forgets processes that were not heard of since then, and the one with this id: it ends.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_replicas(&self, not_since: i64, ends: Option<&str>) -> Result<(), DbError> {
        let mut transaction = self.db.begin().await?;
        sqlx::query("DELETE FROM replicas WHERE seen_at < $1 OR id = $2")
            .bind(not_since)
            .bind(ends.unwrap_or_default())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// The processes that were heard of of late, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn replicas(&self) -> Result<Vec<Replica>, DbError> {
        let rows: Vec<(String, String, i64, String, Option<String>, i64)> =
            sqlx::query_as("SELECT id, base, revision, active, error, seen_at FROM replicas ORDER BY id")
                .fetch_all(self.db.pool())
                .await?;
        rows.into_iter()
            .map(|(id, base, revision, active, error, seen_at)| {
                Ok(Replica {
                    id,
                    base,
                    revision,
                    active: active
                        .parse()
                        .map_err(|error: super::ParseAdapterVersionError| sqlx::Error::Decode(error.into()))?,
                    error,
                    seen_at,
                })
            })
            .collect()
    }
}
