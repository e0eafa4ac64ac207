//! Keys: made, looked up, revoked.

use crate::db::Database;

/// The keys of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys {
    db: Database,
}

impl Keys {
    /// The keys in a database.
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    /// Where they are kept.
    pub fn database(&self) -> &Database {
        &self.db
    }
}
