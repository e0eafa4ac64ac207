//! The database, on SQLite and, where there is a server, on Postgres.

use std::path::Path;
use std::time::{Duration, Instant};

use detoxd::db::{Database, new_id, now};

use crate::support::{databases, proxy::Proxy};

async fn insert(db: &Database, commit: bool) {
    let mut transaction = db.begin().await.unwrap();
    sqlx::query("INSERT INTO audit (id, at, actor, action, subject) VALUES ($1, $2, 'test', 'test', 'nothing')")
        .bind(new_id())
        .bind(now())
        .execute(&mut *transaction)
        .await
        .unwrap();
    if commit {
        transaction.commit().await.unwrap();
    }
}

async fn count(db: &Database) -> Result<i64, detoxd::db::DbError> {
    let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM audit")
        .fetch_one(db.pool())
        .await?;
    Ok(count)
}

#[tokio::test]
async fn tables_are_made_once_and_hold_what_was_committed() {
    for database in databases::each().await {
        insert(&database.db, true).await;
        insert(&database.db, false).await;
        assert_eq!(count(&database.db).await.unwrap(), 1);
        // As the next start does, and the other replicas at the same time.
        let again = || Database::open(Some(&database.url), Path::new("."));
        let (first, second) = tokio::join!(again(), again());
        for opened in [first.unwrap(), second.unwrap()] {
            assert_eq!(count(&opened).await.unwrap(), 1);
            opened.pool().close().await;
        }
        database.drop().await;
    }
}

/// As `serve` and `worker` do on a machine where there was nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_that_start_at_once_find_the_same_tables() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let starting: Vec<_> = (0..6)
            .map(|_| {
                let folder = folder.path().to_owned();
                tokio::spawn(async move { Database::open(None, &folder).await })
            })
            .collect();
        for started in starting {
            let db = started.await.unwrap().unwrap();
            assert_eq!(count(&db).await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn tables_of_a_newer_program_are_refused() {
    for database in databases::each().await {
        sqlx::query("UPDATE _sqlx_migrations SET version = 9999")
            .execute(database.db.pool())
            .await
            .unwrap();
        let error = Database::open(Some(&database.url), Path::new(".")).await.unwrap_err();
        assert!(error.to_string().contains("9999"), "{error}");
        database.drop().await;
    }
}

#[tokio::test]
async fn a_conflict_is_told_from_an_absence() {
    for database in databases::each().await {
        let twice = "INSERT INTO adapter_names (name, next_number) VALUES ('mine', 1)";
        sqlx::query(twice).execute(database.db.pool()).await.unwrap();
        let error = sqlx::query(twice).execute(database.db.pool()).await.unwrap_err();
        let error = detoxd::db::DbError::from(error);
        assert!(error.is_conflict() && !error.is_unreachable(), "{error}");
        database.drop().await;
    }
}

#[tokio::test]
async fn a_server_that_goes_away_is_said_so_and_used_again_once_it_is_back() {
    let Ok(server) = std::env::var("DETOXD_TEST_POSTGRES") else {
        eprintln!("SKIPPED: DETOXD_TEST_POSTGRES is not set");
        return;
    };
    let database = databases::TestDatabase::postgres(&server).await;
    let (credentials, rest) = database.url.rsplit_once('@').unwrap();
    let (host, name) = rest.split_once('/').unwrap();
    let mut proxy = Proxy::to(host).await;
    let url = format!("{credentials}@{}/{name}", proxy.address);
    let db = Database::open(Some(&url), Path::new(".")).await.unwrap();
    insert(&db, true).await;

    proxy.cut();
    let started = Instant::now();
    let error = count(&db).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(!error.to_string().contains("secret"), "{error}");

    proxy.mend().await;
    assert_eq!(count(&db).await.unwrap(), 1);
    db.pool().close().await;
    database.drop().await;
}

#[tokio::test]
async fn connections_that_the_server_ends_are_replaced() {
    let Ok(server) = std::env::var("DETOXD_TEST_POSTGRES") else {
        eprintln!("SKIPPED: DETOXD_TEST_POSTGRES is not set");
        return;
    };
    let database = databases::TestDatabase::postgres(&server).await;
    insert(&database.db, true).await;
    let other = sqlx::AnyPool::connect(&server).await.unwrap();
    let name = database.url.rsplit_once('/').unwrap().1;
    // What a restart of the server does to each client.
    sqlx::query("SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1")
        .bind(name)
        .execute(&other)
        .await
        .unwrap();
    assert_eq!(count(&database.db).await.unwrap(), 1);
    insert(&database.db, true).await;
    assert_eq!(count(&database.db).await.unwrap(), 2);
    other.close().await;
    database.drop().await;
}
