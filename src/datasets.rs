//! Datasets that were uploaded: a row in the database, the lines in the store.

use crate::db::Database;
use crate::store::Store;

/// The datasets of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Datasets {
    db: Database,
    store: Store,
}

impl Datasets {
    /// The datasets in a database and a store.
    pub fn new(db: Database, store: Store) -> Self {
        Self { db, store }
    }

    /// Where their rows are kept.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Where their lines are kept.
    pub fn store(&self) -> &Store {
        &self.store
    }
}
