//! Models of a hub by their id, kept where the hub's own tools keep theirs: `models--OWNER--NAME/{blobs,snapshots,refs}`.
//!
//! So what Python has fetched is found here, and the other way round. One request lists a revision's files, with sizes and, of large
//! ones, SHA-256; then each file that is not there is fetched at the commit that the revision stood for, under a temporary name that
//! only a whole and right file loses. What broke off is gone on with.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::cache::{CacheError, Lock};
use super::hub::{Hub, HubError};
use super::hub_id::{HubId, is_word};
use super::layout::{FilesOf, PICKLED};
use super::progress::Meter;
use super::pull::Network;
use super::{Checksum, Progress};

/// Most bytes of a listing: a repository of ten thousand files stays below.
const MAX_LISTING: u64 = 16 << 20;
/// How often a file that broke off is gone on with.
const ATTEMPTS: usize = 5;
const INDEX: &str = "model.safetensors.index.json";
/// How errors call it.
const LISTING: &str = "the list of its files";

/// Why a model of a hub could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The network may not be used and the cache has not all of it.
    #[error(
        "{id}: {missing} is not in {} and HF_HUB_OFFLINE is set; fetch the model once without it, or copy that folder from a machine that \
         has the model (HF_HUB_CACHE says where it is)",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        id: HubId,
        /// The first file that is missing.
        missing: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// No such repository or revision.
    #[error("{id}: {endpoint} has no such model or no such revision of it")]
    NotFound {
        /// What was asked for.
        id: HubId,
        /// The hub.
        endpoint: String,
    },
    /// The repository is private, gated or absent: a hub does not tell which.
    #[error("{id}: the hub gives no access to {what} (it answered {status}); {hint}")]
    Denied {
        /// What was asked for.
        id: HubId,
        /// A file, or the list of files.
        what: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// The repository lacks a file.
    #[error("{id}: there is no {file} in it{hint}")]
    NoFile {
        /// What was asked for.
        id: HubId,
        /// The file.
        file: String,
        /// What to do.
        hint: String,
    },
    /// The hub can't be reached or broke off.
    #[error("{id}: {what} can't be fetched: {reason}")]
    Hub {
        /// What was asked for.
        id: HubId,
        /// A file, or the list of files.
        what: String,
        /// Why.
        reason: String,
    },
    /// What came is not what the hub says the file is.
    #[error("{id}: {file} arrived with another SHA-256 than the hub names; it was thrown away, try again")]
    Damaged {
        /// What was asked for.
        id: HubId,
        /// The file.
        file: String,
    },
    /// The cache can't be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What the hub says of a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    sha256: String,
}

/// The folder of a model of a hub, or its GGUF file: fetched, or from the cache when it is there for the commit that the revision stands for
/// now, when the hub can't be reached, or when `HF_HUB_OFFLINE` is set.
///
/// # Errors
/// Name the model and the file, and say what to do.
pub fn fetch(id: &HubId, files: FilesOf, network: &Network, progress: Progress) -> Result<PathBuf, RepositoryError> {
    let folder = network
        .hub_cache()?
        .join(format!("models--{}", id.repository.replace('/', "--")));
    let repository = Repository {
        id,
        files,
        hub: &network.hub,
        folder,
        progress,
    };
    let cached = repository.cached();
    if network.hub.offline {
        return cached.map_err(|missing| RepositoryError::Offline {
            id: id.clone(),
            missing,
            cache: repository.folder.clone(),
        });
    }
    // A commit stands for the same files for ever.
    if let (Ok(path), true) = (&cached, is_commit(&id.revision)) {
        return Ok(path.clone());
    }
    match (repository.list(), cached) {
        (Ok(listing), _) => repository.fetch(&listing),
        (Err(error), Ok(path)) if error.is_away() => {
            tracing::warn!(model = %id, %error, "the hub can't be asked, what was fetched before is used");
            Ok(path)
        }
        (Err(error), _) => Err(repository.refused("the list of its files", error)),
    }
}

/// A model of the hub and where it is kept.
struct Repository<'a> {
    id: &'a HubId,
    files: FilesOf,
    hub: &'a Hub,
    folder: PathBuf,
    progress: Progress,
}

impl Repository<'_> {
    /// Where it is in the cache, or the first file that is missing.
    fn cached(&self) -> Result<PathBuf, String> {
        let revision = &self.id.revision;
        let commit = if is_commit(revision) {
            revision.clone()
        } else {
            let named = fs::read_to_string(self.folder.join("refs").join(revision));
            let commit = named.map(|text| text.trim().to_owned()).unwrap_or_default();
            if !is_commit(&commit) {
                return Err("it".to_owned());
            }
            commit
        };
        let snapshot = self.folder.join("snapshots").join(commit);
        let has = |name: &str| {
            let found = snapshot.join(name).is_file();
            if found { Ok(()) } else { Err(name.to_owned()) }
        };
        if let Some(file) = &self.id.file {
            has(file)?;
            return Ok(snapshot.join(file));
        }
        for name in self.files.required(|name| has(name).is_ok()) {
            has(name)?;
        }
        match fs::read(snapshot.join(INDEX)) {
            Ok(index) => {
                for shard in shards(&index).map_err(|_| INDEX.to_owned())? {
                    has(&shard)?;
                }
            }
            Err(_) => has("model.safetensors").or_else(|missing| {
                if self.files.may_be_pickled() && has(PICKLED).is_ok() {
                    return Ok(());
                }
                let any = fs::read_dir(&snapshot).is_ok_and(|mut items| {
                    items
                        .any(|item| item.is_ok_and(|item| item.file_name().to_string_lossy().ends_with(".safetensors")))
                });
                if any { Ok(()) } else { Err(missing) }
            })?,
        }
        Ok(snapshot)
    }

    fn list(&self) -> Result<Listing, HubError> {
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.hub.endpoint,
            self.id.repository,
            self.id.revision.replace('/', "%2F")
        );
        let listing = self.hub.read(&url, MAX_LISTING)?;
        let parsed: Option<Listing> = serde_json::from_slice(&listing).ok();
        parsed
            .filter(|listing| is_commit(&listing.sha))
            .ok_or(HubError::NoListing { url })
    }

    /// Fetches what is missing of the files that make the model.
    fn fetch(&self, listing: &Listing) -> Result<PathBuf, RepositoryError> {
        let snapshot = self.folder.join("snapshots").join(&listing.sha);
        let path = if let Some(file) = &self.id.file {
            self.file(listing, file, &snapshot)?;
            snapshot.join(file)
        } else {
            let has = |name: &str| listing.siblings.iter().any(|sibling| sibling.rfilename == name);
            let optional = self.files.optional().iter().copied().filter(|name| has(name));
            for name in self.files.required(has).into_iter().chain(optional) {
                self.file(listing, name, &snapshot)?;
            }
            for name in self.weights(listing, &snapshot)? {
                self.file(listing, &name, &snapshot)?;
            }
            snapshot
        };
        // Last: a name that stands for a commit says that its files are there.
        if self.id.revision != listing.sha {
            let name = self.folder.join("refs").join(&self.id.revision);
            write(&name, listing.sha.as_bytes())?;
        }
        Ok(path)
    }

    /// Names of the files that hold the weights.
    fn weights(&self, listing: &Listing, snapshot: &Path) -> Result<Vec<String>, RepositoryError> {
        let names = || listing.siblings.iter().map(|sibling| sibling.rfilename.as_str());
        if names().any(|name| name == INDEX) {
            self.file(listing, INDEX, snapshot)?;
            let path = snapshot.join(INDEX);
            let index = fs::read(&path).map_err(CacheError::io("reading", &path))?;
            return shards(&index).map_err(|reason| RepositoryError::Hub {
                id: self.id.clone(),
                what: INDEX.to_owned(),
                reason,
            });
        }
        if names().any(|name| name == "model.safetensors") {
            return Ok(vec!["model.safetensors".to_owned()]);
        }
        let others: Vec<String> = names()
            .filter(|name| name.ends_with(".safetensors") && is_word(name) && !name.starts_with("consolidated"))
            .map(str::to_owned)
            .collect();
        if !others.is_empty() {
            return Ok(others);
        }
        if self.files.may_be_pickled() && names().any(|name| name == PICKLED) {
            return Ok(vec![PICKLED.to_owned()]);
        }
        let gguf: Vec<&str> = names().filter(|name| name.ends_with(".gguf")).collect();
        let hint = match gguf.first() {
            Some(first) => format!(
                "; it has GGUF files ({}): name one, as in {}:{first}",
                gguf.join(", "),
                self.id
            ),
            None => "; only safetensors and GGUF files are read".to_owned(),
        };
        Err(self.no_file("model.safetensors", hint))
    }

    /// Puts one file into the snapshot, unless it is there.
    fn file(&self, listing: &Listing, name: &str, snapshot: &Path) -> Result<(), RepositoryError> {
        let Some(sibling) = listing.siblings.iter().find(|sibling| sibling.rfilename == name) else {
            return Err(self.no_file(name, String::new()));
        };
        let target = snapshot.join(name);
        if target.is_file() {
            return Ok(());
        }
        let sha256 = sibling.lfs.as_ref().map(|large| large.sha256.as_str());
        let blob = sha256.or(sibling.blob_id.as_deref()).filter(|blob| is_hex(blob));
        let (Some(blob), Some(size)) = (blob, sibling.size) else {
            return Err(RepositoryError::Hub {
                id: self.id.clone(),
                what: name.to_owned(),
                reason: "the hub names neither its size nor its checksum".to_owned(),
            });
        };
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(CacheError::io("creating", &blobs))?;
        let _lock = Lock::at(&self.lock(blob))?;
        let path = blobs.join(blob);
        if !path.is_file() {
            self.download(&listing.sha, name, size, sha256, &path)?;
        }
        link(&path, &target, blob, name)?;
        Ok(())
    }

    /// Where the hub's own tools lock a file.
    fn lock(&self, blob: &str) -> PathBuf {
        let (root, name) = (self.folder.parent(), self.folder.file_name());
        let root = root.unwrap_or(&self.folder).join(".locks");
        root.join(name.unwrap_or_default()).join(format!("{blob}.lock"))
    }

    fn download(
        &self,
        commit: &str,
        name: &str,
        size: u64,
        sha256: Option<&str>,
        path: &Path,
    ) -> Result<(), RepositoryError> {
        let partial = path.with_extension("detoxd-incomplete");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&partial)
            .map_err(CacheError::io("writing", &partial))?;
        let url = self.hub.address(&self.id.repository, commit, name);
        let there = |file: &File| -> Result<u64, RepositoryError> {
            let metadata = file.metadata().map_err(CacheError::io("reading", &partial))?;
            Ok(metadata.len())
        };
        if there(&file)? > size {
            file.set_len(0).map_err(CacheError::io("writing", &partial))?;
        }
        tracing::info!(model = %self.id, file = name, bytes = size, "fetching");
        let mut meter = Meter::start(self.progress, name, size);
        for attempt in 1.. {
            let start = there(&file)?;
            if start == size {
                break;
            }
            match self.hub.fetch_rest(&url, start, size, &mut file, &mut meter) {
                Ok(()) => break,
                Err(error) if attempt < ATTEMPTS && matches!(error, HubError::BrokeOff { .. }) => {
                    tracing::warn!(model = %self.id, file = name, %error, "going on where it broke off");
                }
                Err(error) => return Err(self.refused(name, error)),
            }
        }
        file.sync_all().map_err(CacheError::io("writing", &partial))?;
        if let Some(sha256) = sha256 {
            let mut file = File::open(&partial).map_err(CacheError::io("reading", &partial))?;
            let (found, _) = Checksum::of(&mut file).map_err(CacheError::io("reading", &partial))?;
            if found.to_string() != sha256 {
                fs::remove_file(&partial).map_err(CacheError::io("removing", &partial))?;
                return Err(RepositoryError::Damaged {
                    id: self.id.clone(),
                    file: name.to_owned(),
                });
            }
        }
        fs::rename(&partial, path).map_err(CacheError::io("renaming to", path))?;
        Ok(())
    }

    fn no_file(&self, file: &str, hint: String) -> RepositoryError {
        RepositoryError::NoFile {
            id: self.id.clone(),
            file: file.to_owned(),
            hint,
        }
    }

    /// What the hub's refusal means to the one who asked.
    fn refused(&self, what: &str, error: HubError) -> RepositoryError {
        let id = self.id.clone();
        match error {
            HubError::Status { status: 404, .. } if what == LISTING => RepositoryError::NotFound {
                id,
                endpoint: self.hub.endpoint.clone(),
            },
            HubError::Status { status, .. } if matches!(status, 401 | 403) => RepositoryError::Denied {
                hint: match self.hub.token {
                    Some(_) => format!(
                        "the token has no right to it: ask for access at {}/{}",
                        self.hub.endpoint, id.repository
                    ),
                    None => {
                        "it does not exist, or is private or gated: set HF_TOKEN to a token that may read it".to_owned()
                    }
                },
                id,
                what: what.to_owned(),
                status,
            },
            error => RepositoryError::Hub {
                id,
                what: what.to_owned(),
                reason: error.to_string(),
            },
        }
    }
}

/// The files that an index names.
fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let index: Value = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let map = index["weight_map"].as_object().ok_or("it has no weight_map")?;
    let mut names: Vec<String> = map.values().filter_map(Value::as_str).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| !is_word(name)) {
        Some(name) => Err(format!("it names a file `{name}`")),
        None => Ok(names),
    }
}

fn is_hex(text: &str) -> bool {
    text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// As the hub's own tools do: a link, relative so that the cache may be moved.
fn link(blob: &Path, target: &Path, name: &str, inside: &str) -> Result<(), CacheError> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(CacheError::io("creating", folder))?;
    }
    // A link that leads nowhere is of a cache that was cleaned by hand.
    if target.is_symlink() {
        fs::remove_file(target).map_err(CacheError::io("removing", target))?;
    }
    #[cfg(unix)]
    {
        let _ = blob;
        let up = "../".repeat(2 + inside.matches('/').count());
        std::os::unix::fs::symlink(format!("{up}blobs/{name}"), target).map_err(CacheError::io("linking", target))
    }
    #[cfg(not(unix))]
    {
        let _ = (name, inside);
        fs::rename(blob, target).map_err(CacheError::io("renaming to", target))
    }
}

/// A whole file or none.
fn write(path: &Path, content: &[u8]) -> Result<(), CacheError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(CacheError::io("creating", folder))?;
    let temporary = path.with_extension("detoxd-incomplete");
    fs::write(&temporary, content).map_err(CacheError::io("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(CacheError::io("renaming to", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_plain_files_only() {
        let index = br#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        assert_eq!(shards(index).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        assert!(shards(br#"{"weight_map": {"a": "../x.safetensors"}}"#).is_err());
        assert!(shards(b"{}").is_err());
    }
}
