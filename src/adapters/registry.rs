//! The versions there are, and which of them is to be served.

use crate::db::Database;
use crate::store::Store;

/// The registry of adapters: rows in the database, files in the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    db: Database,
    store: Store,
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
}
