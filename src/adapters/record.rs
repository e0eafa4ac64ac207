//! Rows of the registry as types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::version::{AdapterRef, AdapterVersion};
use crate::db::DbError;
use crate::store::StoreError;

/// Where a version comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The program came with it.
    Shipped,
    /// Somebody brought it.
    Import,
    /// A training job made it.
    Job,
}

/// Why a deployment was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The service was started with this adapter.
    Start,
    /// Somebody activated it.
    Activate,
    /// Somebody went back to it.
    Rollback,
    /// Somebody changed weights or shadow.
    Traffic,
    /// A training job's activation policy.
    Policy,
}

macro_rules! words {
    ($type:ty, $($variant:ident => $word:literal),+) => {
        impl $type {
            /// Its word in the database and in answers.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord),
                }
            }
        }
    };
}

words!(Source, Shipped => "shipped", Import => "import", Job => "job");
words!(Action, Start => "start", Activate => "activate", Rollback => "rollback", Traffic => "traffic", Policy => "policy");

/// A word in the database that this program does not know.
#[derive(Debug, thiserror::Error)]
#[error("a word that this version of the program does not know; it may be older than the database")]
pub struct UnknownWord;

/// A version that is to be registered. Its files are in the store already, see [`super::Registry::keep_files`].
#[derive(Debug, Clone, PartialEq)]
pub struct NewVersion {
    /// The adapter's name; the number is the next one of that name.
    pub name: String,
    /// Of its files.
    pub sha256: String,
    /// Size of its files.
    pub bytes: u64,
    /// Its rank.
    pub rank: usize,
    /// The base model, as answers call it.
    pub base: String,
    /// See [`crate::model::fingerprint`].
    pub base_fingerprint: String,
    /// Where it comes from.
    pub source: Source,
    /// The job that made it.
    pub job: Option<String>,
    /// The dataset it was trained on.
    pub dataset: Option<String>,
    /// Of the dataset's lines.
    pub dataset_sha256: Option<String>,
    /// How it was trained.
    pub hyperparameters: Option<serde_json::Value>,
    /// How it was measured.
    pub metrics: Option<serde_json::Value>,
}

/// A version that is registered.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionRecord {
    /// What it is called.
    pub version: AdapterVersion,
    /// Of its files.
    pub sha256: String,
    /// Size of its files.
    pub bytes: u64,
    /// Its rank.
    pub rank: usize,
    /// The base model, as answers call it.
    pub base: String,
    /// See [`crate::model::fingerprint`].
    pub base_fingerprint: String,
    /// Where it comes from.
    pub source: Source,
    /// The job that made it.
    pub job: Option<String>,
    /// The dataset it was trained on.
    pub dataset: Option<String>,
    /// Of the dataset's lines.
    pub dataset_sha256: Option<String>,
    /// How it was trained.
    pub hyperparameters: Option<serde_json::Value>,
    /// How it was measured.
    pub metrics: Option<serde_json::Value>,
    /// Whether it is kept from being deleted.
    pub pinned: bool,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Who registered it.
    pub created_by: String,
}

/// A part of the traffic that goes to another version than the active one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The version.
    pub adapter: AdapterVersion,
    /// Its part of the requests that name no adapter, 0 to 1.
    pub weight: f64,
}

/// What is to be served from one change to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// Counts the changes.
    pub revision: i64,
    /// The version that requests get which name none, but for the shares of `traffic`.
    pub active: AdapterVersion,
    /// Versions that get a part of them.
    pub traffic: Vec<Share>,
    /// A version that gets copies of requests, whose answers nobody sees.
    pub shadow: Option<AdapterVersion>,
    /// Why the change was made.
    pub action: Action,
    /// Why, in words.
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub at: i64,
    /// Who made it.
    pub actor: String,
}

impl Deployment {
    /// Every version that it needs in memory, the active one first.
    pub fn versions(&self) -> Vec<&AdapterVersion> {
        let shares = self.traffic.iter().map(|share| &share.adapter);
        let mut versions: Vec<&AdapterVersion> = Vec::new();
        for version in std::iter::once(&self.active).chain(shares).chain(&self.shadow) {
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        versions
    }
}

/// A change of what is to be served.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// All requests go to this version; shares and shadow end.
    Activate(AdapterVersion),
    /// All requests go to the version that was active before the last change of it; shares and shadow end.
    Rollback,
    /// The active version stays.
    Traffic {
        /// Versions that get a part of the requests; the rest goes to the active one.
        weights: Vec<Share>,
        /// The version that gets copies.
        shadow: Option<AdapterVersion>,
    },
}

/// Why the registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such version, or it was deleted.
    #[error("there is no adapter `{0}`")]
    Unknown(AdapterRef),
    /// Another version is active than the caller thought.
    #[error("expected {expected} to be active, but it is {found}")]
    Conflict {
        /// What the caller expected.
        expected: AdapterVersion,
        /// What is active.
        found: AdapterVersion,
    },
    /// Somebody else made a change at the same moment.
    #[error("another change was made at the same moment; look at what is active now and try again")]
    Raced,
    /// It can't be deleted.
    #[error("{version} is {why}")]
    InUse {
        /// The version.
        version: AdapterVersion,
        /// What keeps it.
        why: &'static str,
    },
    /// There is no version to go back to.
    #[error("no other version was active before that could be gone back to")]
    NothingBefore,
    /// The shares are not what shares can be.
    #[error("{0}")]
    Shares(String),
    /// What the store holds is not what was put there.
    #[error(
        "the files of {version} in the store are not those that were registered (SHA-256 {found}, expected {expected})"
    )]
    Damaged {
        /// The version.
        version: AdapterVersion,
        /// Of the files.
        found: String,
        /// Of those that were registered.
        expected: String,
    },
}

impl From<sqlx::Error> for RegistryError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl RegistryError {
    /// There is no such version.
    pub fn unknown(version: &AdapterVersion) -> Self {
        Self::Unknown(version.into())
    }
}
