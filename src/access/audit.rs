//! Who did what to which, and when: in the database, and in the log.

use sqlx::{Any, Transaction};

use super::Actor;
use crate::db::{Database, DbError, new_id, now};

/// The audit. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    db: Database,
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
