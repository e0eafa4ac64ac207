//! Adapters from outside: a folder on this machine, an archive that was uploaded, a repository of a model hub.
//!
//! Files are opened once and read within limits: what was read is what is checked, hashed and kept, whatever becomes of the source
//! meanwhile. Everything here blocks; an async caller uses a blocking thread.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{AdapterFiles, CONFIG, WEIGHTS};
use crate::model::catalogue::{HubFailure, HubId, Network, read_from_hub};

/// Name of the file beside PEFT's two that says where an exported adapter comes from.
pub const ABOUT: &str = "detoxd.json";

/// Most bytes of the settings and of [`ABOUT`]: both are a page of JSON.
pub(super) const MAX_JSON: u64 = 1 << 20;

/// What may be imported.
#[derive(Debug, Clone)]
pub struct ImportLimits {
    /// Folder below which folders may be imported by path; none, if none may be.
    pub import_dir: Option<PathBuf>,
    /// Most bytes of the weights' file.
    pub max_bytes: u64,
}

impl Default for ImportLimits {
    fn default() -> Self {
        Self {
            import_dir: None,
            max_bytes: 2 << 30,
        }
    }
}

/// Where an exported adapter comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it was called, `name@version`.
    pub adapter: String,
    /// Of its files.
    pub sha256: String,
    /// The base model, as answers call it.
    pub base: String,
    /// See [`crate::model::fingerprint`].
    pub base_fingerprint: String,
}

/// An adapter that was read and not yet checked against the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Its files.
    pub files: AdapterFiles,
    /// Where it comes from, if it says so.
    pub about: Option<About>,
}

/// Why an adapter could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The folder is not one from which adapters are imported.
    #[error("{0}")]
    Outside(String),
    /// A file can't be read.
    #[error("{file}: {source}")]
    Unreadable {
        /// Its name.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not there.
    #[error("there is no {0} in it")]
    Missing(&'static str),
    /// A file is larger than it may be.
    #[error("{file} has more than {limit} bytes")]
    TooLarge {
        /// Its name.
        file: String,
        /// What is allowed.
        limit: u64,
    },
    /// The archive is not what an archive of an adapter is.
    #[error("the archive {0}")]
    Archive(String),
    /// What it says about itself is not true.
    #[error(
        "{ABOUT} says that its files have SHA-256 {said}, and they have {found}: it was damaged or changed on its way"
    )]
    Changed {
        /// What it says.
        said: String,
        /// What they have.
        found: String,
    },
    /// What it says about itself can't be read.
    #[error("{ABOUT} can't be read: {0}")]
    About(serde_json::Error),
    /// The identifier is none of a hub.
    #[error("a repository of a hub is written `owner/name` or `owner/name@revision`")]
    NoRepository,
    /// The hub did not give it.
    #[error(transparent)]
    Hub(#[from] HubFailure),
}

impl Incoming {
    /// From the files of a source, with what it says about itself, if it does.
    pub(super) fn new(config: Vec<u8>, weights: Vec<u8>, about: Option<Vec<u8>>) -> Result<Self, ImportError> {
        let files = AdapterFiles { config, weights };
        let about: Option<About> = about
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(ImportError::About)?;
        if let Some(about) = &about {
            let found = files.sha256();
            if about.sha256 != found {
                return Err(ImportError::Changed {
                    said: about.sha256.clone(),
                    found,
                });
            }
        }
        Ok(Self { files, about })
    }

    /// From a folder in PEFT's layout that somebody on this machine named.
    ///
    /// # Errors
    /// When a file is missing, can't be read, or is too large.
    pub fn from_folder(folder: &Path, max_bytes: u64) -> Result<Self, ImportError> {
        read_folder(folder, max_bytes, None)
    }

    /// From a folder in PEFT's layout below the import folder; `path` is absolute or relative to it. Links that lead out of it are not
    /// followed.
    ///
    /// # Errors
    /// When it is not below the import folder, else as [`Incoming::from_folder`].
    pub fn from_import_dir(path: &Path, limits: &ImportLimits) -> Result<Self, ImportError> {
        let outside = || {
            ImportError::Outside(
                "is not a folder below the folder from which adapters are imported (`import_dir`)".to_owned(),
            )
        };
        let root = limits.import_dir.as_ref().ok_or_else(outside)?;
        // The same answer whether it is not there or not below: what else is on this machine is nobody's business.
        let root = root.canonicalize().map_err(|_| outside())?;
        let folder = root.join(path).canonicalize().map_err(|_| outside())?;
        if !folder.starts_with(&root) || !folder.is_dir() {
            return Err(outside());
        }
        read_folder(&folder, limits.max_bytes, Some(&root))
    }

    /// From a repository of a model hub, `owner/name` or `owner/name@revision`.
    ///
    /// # Errors
    /// When it is not written so, or the hub does not give the two files.
    pub fn from_hub(repository: &str, network: &Network, limits: &ImportLimits) -> Result<Self, ImportError> {
        let id: HubId = repository.parse().map_err(|_| ImportError::NoRepository)?;
        if id.file.is_some() {
            return Err(ImportError::NoRepository);
        }
        let (name, revision) = (&id.repository, &id.revision);
        let config = read_from_hub(network, name, revision, CONFIG, MAX_JSON)?;
        let weights = read_from_hub(network, name, revision, WEIGHTS, limits.max_bytes)?;
        Self::new(config, weights, None)
    }
}

fn read_folder(folder: &Path, max_bytes: u64, root: Option<&Path>) -> Result<Incoming, ImportError> {
    let required =
        |name: &'static str, limit| read_file(&folder.join(name), limit, root)?.ok_or(ImportError::Missing(name));
    let config = required(CONFIG, MAX_JSON)?;
    let weights = required(WEIGHTS, max_bytes)?;
    Incoming::new(config, weights, read_file(&folder.join(ABOUT), MAX_JSON, root)?)
}

/// A regular file as a whole; none if there is none. With a root, what is opened must be below it.
fn read_file(path: &Path, limit: u64, root: Option<&Path>) -> Result<Option<Vec<u8>>, ImportError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unreadable = |source: std::io::Error| ImportError::Unreadable {
        file: name.clone(),
        source,
    };
    // Before it is opened: opening a pipe waits for its writer.
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(unreadable(std::io::Error::other("it is not a regular file"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    }
    let file = File::open(path).map_err(unreadable)?;
    if let Some(root) = root {
        let real = real_path(&file, path).map_err(unreadable)?;
        if !real.starts_with(root) {
            return Err(ImportError::Outside(format!(
                "has a link {name} that leads out of the folder from which adapters are imported"
            )));
        }
    }
    let too_large = || ImportError::TooLarge {
        file: name.clone(),
        limit,
    };
    if file.metadata().map_err(unreadable)?.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

/// Where an opened file really is. Linux knows of the opened file itself, so that exchanging a folder for a link in between is of no use.
fn real_path(file: &File, path: &Path) -> std::io::Result<PathBuf> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let _ = path;
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        path.canonicalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: &str = "tests/fixtures/micro/adapter";

    fn import_dir() -> (tempfile::TempDir, ImportLimits) {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("import/a");
        std::fs::create_dir_all(&inside).unwrap();
        for name in [CONFIG, WEIGHTS] {
            std::fs::copy(Path::new(MICRO).join(name), inside.join(name)).unwrap();
        }
        let limits = ImportLimits {
            import_dir: Some(folder.path().join("import")),
            ..ImportLimits::default()
        };
        (folder, limits)
    }

    #[test]
    fn a_folder_below_the_import_folder_is_read_by_either_path() {
        let (folder, limits) = import_dir();
        let relative = Incoming::from_import_dir(Path::new("a"), &limits).unwrap();
        let absolute = Incoming::from_import_dir(&folder.path().join("import/a"), &limits).unwrap();
        assert_eq!(relative, absolute);
        assert_eq!(
            relative,
            Incoming::from_folder(Path::new(MICRO), limits.max_bytes).unwrap()
        );
        let small = ImportLimits {
            max_bytes: 1000,
            ..limits
        };
        let error = Incoming::from_import_dir(Path::new("a"), &small).unwrap_err();
        assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn nothing_outside_of_the_import_folder_is_read() {
        use std::os::unix::fs::symlink;
        let (folder, limits) = import_dir();
        let import = folder.path().join("import");
        let micro = std::fs::canonicalize(MICRO).unwrap();
        symlink(&micro, import.join("link")).unwrap();
        std::fs::create_dir(import.join("files")).unwrap();
        for name in [CONFIG, WEIGHTS] {
            symlink(micro.join(name), import.join("files").join(name)).unwrap();
        }
        for path in ["link", "files", "../import/../..", "a/../..", "no-such", "/etc", ""] {
            let error = Incoming::from_import_dir(Path::new(path), &limits).unwrap_err();
            assert!(
                matches!(error, ImportError::Outside(_))
                    || (path.is_empty() && matches!(error, ImportError::Missing(_))),
                "{path}: {error}"
            );
        }
        // A link that stays inside is fine.
        symlink(import.join("a"), import.join("same")).unwrap();
        Incoming::from_import_dir(Path::new("same"), &limits).unwrap();
        let none = ImportLimits::default();
        assert!(Incoming::from_import_dir(&micro, &none).is_err());
    }

    #[test]
    fn a_repository_that_is_none_is_refused_before_anything_is_asked() {
        for repository in ["a", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "http://a/b", "a/b?c"] {
            let error = Incoming::from_hub(repository, &Network::from_env(), &ImportLimits::default()).unwrap_err();
            assert!(matches!(error, ImportError::NoRepository), "{repository}: {error}");
        }
    }
}
