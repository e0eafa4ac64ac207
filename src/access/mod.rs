//! Who may do what, and who did: keys with scopes, and the audit.

mod audit;
mod keys;
mod start;

pub use audit::{Act, Audit, record};
pub use keys::{KeyError, KeyRecord, Keys, Secret};
pub use start::{StartError, key_needed};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a key is good for. Each holds those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Have texts rewritten and scored.
    Use,
    /// Upload datasets, run jobs, look at adapters.
    Train,
    /// Change what is served; make and revoke keys; read the audit.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Use, Self::Train, Self::Admin];

    /// Its word in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Use => "use",
            Self::Train => "train",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No scope's word.
#[derive(Debug, thiserror::Error)]
#[error("expected use, train or admin")]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(UnknownScope)
    }
}

/// Who acts, as the audit has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Id of a key; or `anonymous`, `worker`, `cli`, `start`.
    pub id: String,
    /// What it may do.
    pub scope: Scope,
}

impl Actor {
    /// Somebody without a key, where none is needed.
    pub fn anonymous() -> Self {
        Self {
            id: "anonymous".to_owned(),
            scope: Scope::Admin,
        }
    }

    /// The program itself, by the name of its part.
    pub fn part(name: &str) -> Self {
        Self {
            id: name.to_owned(),
            scope: Scope::Admin,
        }
    }
}
