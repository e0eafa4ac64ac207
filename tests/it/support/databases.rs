//! Databases of their own for a test: SQLite always, and Postgres when `DETOXD_TEST_POSTGRES` is the address of a server on which
//! databases may be made.

use detoxd::db::{Database, new_id};

/// A database that is gone with this.
pub struct TestDatabase {
    /// The database.
    pub db: Database,
    /// Its address.
    pub url: String,
    kind: Kind,
}

enum Kind {
    Sqlite { _folder: tempfile::TempDir },
    Postgres { server: String, name: String },
}

/// One of each kind that there is.
pub async fn each() -> Vec<TestDatabase> {
    let mut all = vec![TestDatabase::sqlite().await];
    if let Ok(server) = std::env::var("DETOXD_TEST_POSTGRES") {
        all.push(TestDatabase::postgres(&server).await);
    }
    all
}

impl TestDatabase {
    /// In a file of a temporary folder.
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("detoxd.db").display());
        Self {
            db: Database::open(Some(&url), folder.path()).await.unwrap(),
            url,
            kind: Kind::Sqlite { _folder: folder },
        }
    }

    /// On a server.
    pub async fn postgres(server: &str) -> Self {
        let name = format!("detoxd_test_{}", new_id().replace('-', ""));
        execute(server, format!("CREATE DATABASE {name}")).await;
        let (address, _) = server.rsplit_once('/').unwrap();
        let url = format!("{address}/{name}");
        Self {
            db: Database::open(Some(&url), std::path::Path::new(".")).await.unwrap(),
            url,
            kind: Kind::Postgres {
                server: server.to_owned(),
                name,
            },
        }
    }

    /// Removes it.
    pub async fn drop(self) {
        self.db.pool().close().await;
        if let Kind::Postgres { server, name } = self.kind {
            execute(&server, format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
    }
}

async fn execute(server: &str, statement: String) {
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(server).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
}
