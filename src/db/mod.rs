//! The database: a connection, the migrations, and what statements share.
//!
//! SQLite in the data folder by default, Postgres by URL. Both understand the same statements with `$1` placeholders,
//! and rows hold nothing but integers, floats and text, so one text serves both (`sqlx::Any`); the few words that
//! differ come from [`Dialect`]. Statements themselves live in the room that they are about: `jobs`, `adapters`, `access`.
//!
//! **Invariant:** no transaction is open while anything else than the database is waited for.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Any, AnyPool, Executor, Transaction};

static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// How long a statement waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pool: AnyPool,
    dialect: Dialect,
}

/// What the database is, for the few words that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// In a file, for one machine.
    Sqlite,
    /// A server, for several replicas.
    Postgres,
}

impl Dialect {
    /// Ends a subquery that picks a row to take: rows that another transaction has in its hands are passed over. SQLite has one
    /// writer at a time and needs none of it.
    pub fn skip_locked(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    fn pool(self) -> AnyPoolOptions {
        AnyPoolOptions::new()
            .acquire_timeout(PATIENCE)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if self == Self::Sqlite {
                        // Readers beside a writer; what is committed is on the disk; a writer waits for its turn.
                        connection
                            .execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON")
                            .await?;
                    }
                    Ok(())
                })
            })
    }

    fn begin(self) -> &'static str {
        match self {
            // A transaction that first reads and then writes could not become a writer beside another one.
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }
}

/// Why the database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// It can't be opened.
    #[error("cannot open the database {url}: {reason}")]
    Open {
        /// Without its password.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A statement failed.
    #[error("the database failed: {0}")]
    Statement(#[from] sqlx::Error),
}

impl DbError {
    /// Whether the database itself is not there, so that the same may work later.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Open { .. } => true,
            Self::Statement(error) => {
                matches!(
                    error,
                    sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_)
                ) || is_shutdown(error)
            }
        }
    }

    /// Whether the row is there already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Statement(sqlx::Error::Database(error)) if error.is_unique_violation())
    }

    /// Whether a row would refer to one that is not there.
    pub fn is_reference(&self) -> bool {
        matches!(self, Self::Statement(sqlx::Error::Database(error)) if error.is_foreign_key_violation())
    }

    /// Whether its disk is full: SQLite's code, or a server's.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Statement(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| code == "13" || code == "53100"))
    }
}

/// A server that is shutting down or starting says so in a code of class 57.
fn is_shutdown(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| code.starts_with("57P") || code == "5"))
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

impl Database {
    /// Opens `url` (`postgres://…` or `sqlite:…`), or `detoxd.db` in the data folder, and brings its tables up to date.
    ///
    /// # Errors
    /// When it can't be reached or its tables are of a newer program.
    pub async fn open(url: Option<&str>, data_dir: &Path) -> Result<Self, DbError> {
        let url = match url {
            Some(url) => url.to_owned(),
            None => {
                std::fs::create_dir_all(data_dir).map_err(|error| DbError::Open {
                    url: data_dir.display().to_string(),
                    reason: format!("the data folder can't be made ({error}); choose another with --data-dir"),
                })?;
                format!("sqlite://{}?mode=rwc", data_dir.join("detoxd.db").display())
            }
        };
        let failed = |reason: String| DbError::Open {
            url: without_password(&url),
            reason,
        };
        let dialect = match url.split(':').next() {
            Some("postgres" | "postgresql") => Dialect::Postgres,
            Some("sqlite") => Dialect::Sqlite,
            _ => return Err(failed("expected postgres://… or sqlite:…".to_owned())),
        };
        sqlx::any::install_default_drivers();
        let pool = dialect
            .pool()
            .max_connections(match dialect {
                Dialect::Sqlite => 4,
                Dialect::Postgres => 8,
            })
            .connect(&url)
            .await
            .map_err(|error| failed(error.to_string()))?;
        migrate(&pool, dialect)
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { pool, dialect })
    }

    /// The same database by a connection of its own, opened with the first statement: for a thread that must not wait for others,
    /// and to be called within that thread's own runtime.
    #[must_use]
    pub fn apart(&self) -> Self {
        let options = self.pool.connect_options().as_ref().clone();
        Self {
            pool: self.dialect.pool().max_connections(1).connect_lazy_with(options),
            dialect: self.dialect,
        }
    }

    /// What to execute single statements on.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Its kind.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// A transaction that may write. It is rolled back unless committed.
    ///
    /// # Errors
    /// When the database is not there or stays busy.
    pub async fn begin(&self) -> Result<Transaction<'static, Any>, DbError> {
        Ok(self.pool.begin_with(self.dialect.begin()).await?)
    }
}

/// Now, in milliseconds since 1970 in UTC: as every time in the database.
pub fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// Not before any identifier, in whatever order a server's language has them.
pub const LAST_ID: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";

/// A new identifier: a UUID of version 7, which sorts by time.
pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Brings the tables up to date. On Postgres under a lock. SQLite has none for it: of processes that start at once, such as `serve` and
/// `worker`, one makes a table and the others find it there; the next time they look they see that the migration was done.
async fn migrate(pool: &AnyPool, dialect: Dialect) -> Result<(), MigrateError> {
    let migrator = match dialect {
        Dialect::Sqlite => &SQLITE,
        Dialect::Postgres => &POSTGRES,
    };
    let mut tries_left = match dialect {
        Dialect::Sqlite => 10,
        Dialect::Postgres => 0,
    };
    loop {
        match migrator.run(pool).await {
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)) if tries_left > 0 => {
                tries_left -= 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ended => return ended,
        }
    }
}

fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_made_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        for round in 0..2 {
            let db = Database::open(None, &data).await.unwrap();
            let mut transaction = db.begin().await.unwrap();
            sqlx::query("INSERT INTO audit (id, at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5, $6)")
                .bind(new_id())
                .bind(now())
                .bind("cli")
                .bind("test")
                .bind("nothing")
                .bind(Option::<String>::None)
                .execute(&mut *transaction)
                .await
                .unwrap();
            transaction.commit().await.unwrap();
            let (count, detail): (i64, Option<String>) = sqlx::query_as("SELECT COUNT(*), MAX(detail) FROM audit")
                .fetch_one(db.pool())
                .await
                .unwrap();
            assert_eq!((count, detail), (round + 1, None));
        }
    }

    #[tokio::test]
    async fn what_can_not_be_opened_is_named_without_its_password() {
        let folder = tempfile::tempdir().unwrap();
        for url in ["mysql://a:secret@b/c", "postgres://a:secret@127.0.0.1:1/c"] {
            let error = Database::open(Some(url), folder.path()).await.unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("://…@"), "{error}");
        }
    }
}
