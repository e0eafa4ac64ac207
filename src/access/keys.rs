//! Keys: made, looked up, revoked.
//!
//! A key is 190 random bits, so a plain SHA-256 of it can be kept and looked up: there is nothing to guess that a slow hash would
//! have to protect. The database is asked about a key about once a second, not once a request.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Actor, Scope, record};
use crate::db::{Database, DbError, LAST_ID, new_id, now};
use crate::model::catalogue::Checksum;

const PREFIX: &str = "dtx_";
const RANDOM_CHARACTERS: usize = 32;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// How long an answer of the database holds: a key that is revoked elsewhere works no longer than this and the next look.
const FRESH: Duration = Duration::from_secs(1);

/// How long a key that was seen goes on working while the database is away.
const STALE: Duration = Duration::from_secs(60);

/// How long a request waits for the database when there is an older answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// The keys of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys {
    db: Database,
    seen: Arc<Mutex<HashMap<[u8; 32], Seen>>>,
}

/// A key that the database knew.
#[derive(Debug, Clone)]
struct Seen {
    actor: Actor,
    /// When the database was asked.
    at: Instant,
    /// When it is to be asked again. Whoever asks puts it off, so that the others go on meanwhile.
    next: Instant,
}

/// A key as it is kept; the key itself is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// A UUID; sorts by time. What the audit calls whoever uses the key.
    pub id: String,
    /// What it is for, in the words of whoever made it.
    pub name: String,
    /// What it is good for.
    pub scope: Scope,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Who made it.
    pub created_by: String,
    /// When it stopped to be good for anything.
    pub revoked_at: Option<i64>,
}

/// The key itself. Shown once, to whoever had it made; never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The key, to be shown.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Made of the system's random numbers.
    fn generate() -> Result<Self, KeyError> {
        let mut text = PREFIX.to_owned();
        while text.len() < PREFIX.len() + RANDOM_CHARACTERS {
            let mut bytes = [0; RANDOM_CHARACTERS];
            SysRng
                .try_fill_bytes(&mut bytes)
                .map_err(|error| KeyError::Generator(error.to_string()))?;
            // Bytes beyond a multiple of the alphabet would make its first characters likelier.
            let fair = bytes
                .iter()
                .map(|byte| usize::from(*byte))
                .filter(|byte| *byte < 4 * ALPHABET.len());
            let missing = PREFIX.len() + RANDOM_CHARACTERS - text.len();
            text.extend(
                fair.take(missing)
                    .map(|byte| char::from(ALPHABET[byte % ALPHABET.len()])),
            );
        }
        Ok(Self(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a key can't be made, shown or revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// There is no such key.
    #[error("there is no key {id}")]
    NotFound {
        /// What was asked for.
        id: String,
    },
    /// The system has no random numbers.
    #[error("the system has no random numbers: {0}")]
    Generator(String),
}

type Row = (String, String, String, i64, String, Option<i64>);

impl Keys {
    /// The keys in a database.
    pub fn new(db: Database) -> Self {
        Self {
            db,
            seen: Arc::default(),
        }
    }

    /// Where they are kept.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Makes a key. Nobody can be shown it later.
    ///
    /// # Errors
    /// When the system has no random numbers or the database fails.
    pub async fn create(&self, name: &str, scope: Scope, actor: &Actor) -> Result<(KeyRecord, Secret), KeyError> {
        let secret = Secret::generate()?;
        let key = KeyRecord {
            id: new_id(),
            name: name.to_owned(),
            scope,
            created_at: now(),
            created_by: actor.id.clone(),
            revoked_at: None,
        };
        let mut transaction = self.db.begin().await?;
        sqlx::query(
            "INSERT INTO api_keys (id, name, sha256, scope, created_at, created_by) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&key.id)
        .bind(&key.name)
        .bind(Checksum::from(digest(secret.expose())).to_string())
        .bind(scope.as_str())
        .bind(key.created_at)
        .bind(&key.created_by)
        .execute(&mut *transaction)
        .await
        .map_err(DbError::from)?;
        // The name is somebody's own words; the scope says what was allowed.
        record(&mut transaction, actor, "key.create", &key.id, Some(scope.as_str())).await?;
        transaction.commit().await.map_err(DbError::from)?;
        Ok((key, secret))
    }

    /// Keys, newest first, revoked ones among them; `before` is the id of the last one that was seen.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, before: Option<&str>, limit: u32) -> Result<Vec<KeyRecord>, DbError> {
        let rows: Vec<Row> = sqlx::query_as(concat!(
            "SELECT id, name, scope, created_at, created_by, revoked_at FROM api_keys",
            " WHERE id < $1 ORDER BY id DESC LIMIT $2"
        ))
        .bind(before.unwrap_or(LAST_ID))
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        Ok(rows.into_iter().map(KeyRecord::from).collect())
    }

    /// Makes a key good for nothing, here at once and in other processes within two seconds. That it is so already is fine.
    ///
    /// # Errors
    /// When there is none of this id, or the database fails.
    pub async fn revoke(&self, id: &str, actor: &Actor) -> Result<KeyRecord, KeyError> {
        let mut transaction = self.db.begin().await?;
        let revoked = sqlx::query("UPDATE api_keys SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL")
            .bind(now())
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(DbError::from)?;
        let row: Option<Row> =
            sqlx::query_as("SELECT id, name, scope, created_at, created_by, revoked_at FROM api_keys WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(DbError::from)?;
        let key = KeyRecord::from(row.ok_or_else(|| KeyError::NotFound { id: id.to_owned() })?);
        if revoked.rows_affected() > 0 {
            record(&mut transaction, actor, "key.revoke", id, None).await?;
        }
        transaction.commit().await.map_err(DbError::from)?;
        self.lock().retain(|_, seen| seen.actor.id != id);
        Ok(key)
    }

    /// Whether there is a key of a scope that works.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn any(&self, scope: Scope) -> Result<bool, DbError> {
        let found: Option<(String,)> =
            sqlx::query_as("SELECT id FROM api_keys WHERE scope = $1 AND revoked_at IS NULL LIMIT 1")
                .bind(scope.as_str())
                .fetch_optional(self.db.pool())
                .await?;
        Ok(found.is_some())
    }

    /// Who presents a key; nobody, when there is no such key or it was revoked. A key that was seen in the last minute is believed
    /// while the database is away.
    ///
    /// # Errors
    /// When the database is away and the key was not seen lately.
    pub async fn holder(&self, presented: &str) -> Result<Option<Actor>, DbError> {
        if !is_well_formed(presented) {
            return Ok(None);
        }
        let digest = digest(presented);
        let Some(older) = self.seen(&digest) else {
            return self.look_up(&digest).await;
        };
        if !older.due {
            return Ok(Some(older.actor));
        }
        match tokio::time::timeout(PATIENCE, self.look_up(&digest)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) if !error.is_unreachable() => Err(error),
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("the database is away; a key seen lately is believed");
                Ok(Some(older.actor))
            }
        }
    }

    /// What is remembered of a key, and whether it is for the caller to ask the database again.
    fn seen(&self, digest: &[u8; 32]) -> Option<Older> {
        let mut seen = self.lock();
        let found = seen.get_mut(digest)?;
        let now = Instant::now();
        if now.duration_since(found.at) > STALE {
            seen.remove(digest);
            return None;
        }
        let due = now >= found.next;
        if due {
            found.next = now + FRESH;
        }
        Some(Older {
            actor: found.actor.clone(),
            due,
        })
    }

    async fn look_up(&self, digest: &[u8; 32]) -> Result<Option<Actor>, DbError> {
        let at = Instant::now();
        let wanted = Checksum::from(*digest).to_string();
        let row: Option<(String, String, String)> =
            sqlx::query_as("SELECT id, scope, sha256 FROM api_keys WHERE sha256 = $1 AND revoked_at IS NULL")
                .bind(&wanted)
                .fetch_optional(self.db.pool())
                .await?;
        let actor = row.and_then(|(id, scope, sha256)| {
            let same: bool = sha256.as_bytes().ct_eq(wanted.as_bytes()).into();
            let scope = scope.parse().ok()?;
            same.then_some(Actor { id, scope })
        });
        let mut seen = self.lock();
        match &actor {
            Some(actor) => {
                // Those that nobody presents any more.
                seen.retain(|_, seen| seen.at.elapsed() < STALE);
                let next = at + FRESH;
                let actor = actor.clone();
                seen.insert(*digest, Seen { actor, at, next });
            }
            None => {
                seen.remove(digest);
            }
        }
        Ok(actor)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Older {
    actor: Actor,
    due: bool,
}

/// What can't be a key is never looked up.
fn is_well_formed(presented: &str) -> bool {
    presented
        .strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == RANDOM_CHARACTERS && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

impl From<Row> for KeyRecord {
    fn from((id, name, scope, created_at, created_by, revoked_at): Row) -> Self {
        Self {
            id,
            name,
            // A scope of a newer program is good for as little as can be.
            scope: scope.parse().unwrap_or(Scope::Use),
            created_at,
            created_by,
            revoked_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn keys() -> (Keys, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(None, folder.path()).await.unwrap();
        (Keys::new(db), folder)
    }

    #[test]
    fn keys_are_random_and_look_like_keys() {
        let made: Vec<Secret> = (0..200).map(|_| Secret::generate().unwrap()).collect();
        let mut counts = HashMap::new();
        for (index, secret) in made.iter().enumerate() {
            assert!(is_well_formed(secret.expose()), "{}", secret.expose());
            assert!(!made[..index].contains(secret));
            for character in secret.expose()[PREFIX.len()..].chars() {
                *counts.entry(character).or_insert(0) += 1;
            }
        }
        // 6400 characters: each of the 62 about 103 times, with a deviation of 10.
        assert_eq!(counts.len(), 62);
        assert!(counts.values().all(|count| (50..160).contains(count)), "{counts:?}");
        assert!(
            !format!("{made:?}").contains(PREFIX),
            "a key must not be written by accident"
        );
    }

    #[tokio::test]
    async fn a_key_is_its_holder_until_it_is_revoked() {
        let (keys, folder) = keys().await;
        let cli = Actor::part("cli");
        assert!(!keys.any(Scope::Admin).await.unwrap());
        let (record, secret) = keys.create("ops", Scope::Admin, &cli).await.unwrap();
        assert!(keys.any(Scope::Admin).await.unwrap());
        let holder = keys.holder(secret.expose()).await.unwrap().unwrap();
        assert_eq!((&holder.id, holder.scope), (&record.id, Scope::Admin));
        for other in [
            "",
            "dtx_",
            "nonsense",
            &secret.expose()[..35],
            &format!("dtx_{}", "0".repeat(32)),
        ] {
            assert_eq!(keys.holder(other).await.unwrap(), None, "{other}");
        }
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let file = std::fs::read(entry.unwrap().path()).unwrap();
            let key = secret.expose().as_bytes();
            assert!(
                !file.windows(key.len()).any(|part| part == key),
                "the key itself is kept"
            );
        }

        // Another process: it finds out by itself.
        let elsewhere = Keys::new(keys.database().clone());
        assert!(elsewhere.holder(secret.expose()).await.unwrap().is_some());
        let revoked = keys.revoke(&record.id, &cli).await.unwrap();
        assert!(revoked.revoked_at.is_some());
        assert_eq!(keys.revoke(&record.id, &cli).await.unwrap(), revoked);
        assert_eq!(keys.holder(secret.expose()).await.unwrap(), None);
        let since = Instant::now();
        while elsewhere.holder(secret.expose()).await.unwrap().is_some() {
            assert!(since.elapsed() < Duration::from_secs(2));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!keys.any(Scope::Admin).await.unwrap());
        let (acts,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM audit")
            .fetch_one(keys.db.pool())
            .await
            .unwrap();
        assert_eq!(acts, 2, "made once, revoked once");
        assert!(matches!(keys.revoke("x", &cli).await, Err(KeyError::NotFound { .. })));
    }

    #[tokio::test]
    async fn while_the_database_is_away_a_key_that_was_seen_works_for_a_minute() {
        let (keys, _folder) = keys().await;
        let cli = Actor::part("cli");
        let (_, known) = keys.create("known", Scope::Use, &cli).await.unwrap();
        let (_, unseen) = keys.create("unseen", Scope::Use, &cli).await.unwrap();
        assert!(keys.holder(known.expose()).await.unwrap().is_some());
        keys.database().pool().close().await;
        assert!(
            keys.holder(known.expose()).await.unwrap().is_some(),
            "not asked again yet"
        );
        assert!(keys.holder(unseen.expose()).await.is_err());
        for passed in [FRESH, STALE - 2 * FRESH] {
            for seen in keys.lock().values_mut() {
                seen.at -= passed;
                seen.next -= passed;
            }
            assert!(keys.holder(known.expose()).await.unwrap().is_some(), "{passed:?}");
        }
        for seen in keys.lock().values_mut() {
            seen.at -= 2 * FRESH;
        }
        assert!(keys.holder(known.expose()).await.is_err());
    }
}
