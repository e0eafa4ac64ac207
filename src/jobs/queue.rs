//! The queue: one statement a function.

use crate::db::Database;

/// The queue of jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queue {
    db: Database,
}

impl Queue {
    /// The queue in a database.
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    /// Where it is kept.
    pub fn database(&self) -> &Database {
        &self.db
    }
}
