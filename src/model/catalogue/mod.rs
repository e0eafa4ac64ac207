//! Which models can be had by name, where from, and where they are kept.
//!
//! The catalogue is `assets/catalogue.toml`, built into the binary. [`pull()`] fetches a model into the cache folder,
//! [`cached`] finds it there, [`import`] puts a file there that came by another way. Models of a hub that the catalogue does not name are
//! had by their id ([`HubId`], [`fetch_from_hub`]), from the cache that the hub's own tools use.
//!
//! Everything here blocks (HTTP, pip, hashing); an async caller uses a blocking thread. Nothing here reads a model:
//! a file is bytes with a checksum.

mod cache;
mod checksum;
mod embedded;
mod entry;
mod hub;
mod hub_id;
mod layout;
mod pip;
mod progress;
mod pull;
mod repository;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use cache::{CacheError, cache_dir, import, location, verify};
pub use checksum::Checksum;
pub use entry::{Catalogue, CatalogueError, Entry, ModelFile, Source};
pub use hub::{HubFailure, read_from_hub};
pub use hub_id::{HubId, NotAHubId};
pub use layout::FilesOf;
pub use progress::Progress;
pub use pull::{Attempt, Exhausted, Network, PullError};
pub use repository::{RepositoryError, fetch as fetch_from_hub};

/// The path of a model in the default cache folder, if it is there and was found to be the right one.
///
/// The path is the model's file, or its folder when it has several files.
pub fn cached(entry: &Entry) -> Option<PathBuf> {
    cached_in(entry, &cache_dir().ok()?)
}

/// As [`cached`], in a cache folder of the caller's choice.
pub fn cached_in(entry: &Entry, cache: &Path) -> Option<PathBuf> {
    cache::find(entry, cache)
}

/// Fetches a model into `cache` unless it is there, and returns its path.
///
/// Safe to call from several processes at once: one fetches, the others wait for it and use what it fetched.
/// Where to fetch from and how is taken from the environment, see [`Network::from_env`].
///
/// # Errors
/// When no source has the model ([`PullError::Exhausted`], whose text says what to do next), or the cache folder can't be
/// written.
pub fn pull(entry: &Entry, cache: &Path, progress: Progress) -> Result<PathBuf, PullError> {
    pull_through(entry, cache, progress, &Network::from_env())
}

/// As [`pull()`], with the network settings of the caller's choice.
///
/// # Errors
/// As [`pull()`].
pub fn pull_through(entry: &Entry, cache: &Path, progress: Progress, network: &Network) -> Result<PathBuf, PullError> {
    pull::pull(entry, cache, progress, network)
}
