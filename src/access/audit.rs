//! Who did what to which, and when: in the database, and in the log.

use sqlx::{Any, Transaction};

use super::Actor;
use crate::db::{Database, DbError, LAST_ID, new_id, now};

/// The audit. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    db: Database,
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// A UUID; sorts by time.
    pub id: String,
    /// Milliseconds since 1970.
    pub at: i64,
    /// Id of a key, or `anonymous`, `worker`, `cli`, `start`.
    pub actor: String,
    /// A verb with its object's kind.
    pub action: String,
    /// An id or `name@number`.
    pub subject: String,
    /// What else there is to say.
    pub detail: Option<String>,
}

impl Audit {
    /// The audit in a database.
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    /// Records an act by itself: for acts that change nothing else in the database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record(
        &self,
        actor: &Actor,
        action: &str,
        subject: &str,
        detail: Option<&str>,
    ) -> Result<(), DbError> {
        let mut transaction = self.db.begin().await?;
        record(&mut transaction, actor, action, subject, detail).await?;
        Ok(transaction.commit().await?)
    }

    /// Acts, newest first; `before` is the id of the last one that was seen.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, before: Option<&str>, limit: u32) -> Result<Vec<Act>, DbError> {
        let rows: Vec<(String, i64, String, String, String, Option<String>)> = sqlx::query_as(
            "SELECT id, at, actor, action, subject, detail FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(before.unwrap_or(LAST_ID))
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        let acts = rows.into_iter().map(|(id, at, actor, action, subject, detail)| Act {
            id,
            at,
            actor,
            action,
            subject,
            detail,
        });
        Ok(acts.collect())
    }
}

/// Records an act in the transaction that does it: the one is there if and only if the other is. `action` is a verb with its
/// object's kind (`adapter.activate`), `subject` an id or `name@number`; neither ever holds a text of a user.
///
/// # Errors
/// When the database fails.
pub async fn record(
    transaction: &mut Transaction<'_, Any>,
    actor: &Actor,
    action: &str,
    subject: &str,
    detail: Option<&str>,
) -> Result<(), DbError> {
    sqlx::query("INSERT INTO audit (id, at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(new_id())
        .bind(now())
        .bind(&actor.id)
        .bind(action)
        .bind(subject)
        .bind(detail)
        .execute(&mut **transaction)
        .await?;
    tracing::info!(target: "detoxd::audit", actor = actor.id, action, subject, detail, "done");
    Ok(())
}
