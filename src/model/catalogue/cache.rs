//! The folder of fetched models: `CACHE/models/NAME/FILE`, beside each file a marker that says what was verified.
//!
//! Hashing 100 MB takes a few tenths of a second, too much for each start. So a file is trusted when its size is right and
//! its marker names the wanted checksum and the file's own modification time; otherwise it is hashed, once.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use tempfile::{Builder, NamedTempFile};

use super::{Checksum, Entry, ModelFile, checksum::HashingWriter};

/// The cache folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// There is no home folder to put it in.
    #[error("no cache folder: there is no home folder; set DETOXD_CACHE_DIR to a folder that can be written")]
    NoHome,
    /// A file system operation failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file to import is not the model's.
    #[error(
        "{} is not {}: it has {bytes} bytes and SHA-256 {checksum}, expected {} bytes and {}",
        path.display(), wanted.name, wanted.bytes, wanted.sha256
    )]
    WrongFile {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Its checksum.
        checksum: Checksum,
        /// The file it should be.
        wanted: Box<ModelFile>,
    },
    /// A model of several files is imported from a folder.
    #[error("this model has several files: import a folder that holds them")]
    NotAFolder,
}

impl CacheError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The cache folder: `DETOXD_CACHE_DIR`, else `$XDG_CACHE_HOME/detoxd`, else `~/.cache/detoxd`.
///
/// # Errors
/// [`CacheError::NoHome`].
pub fn cache_dir() -> Result<PathBuf, CacheError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set("DETOXD_CACHE_DIR") {
        return Ok(folder.into());
    }
    // The XDG specification: a relative path is to be ignored.
    let xdg = set("XDG_CACHE_HOME").map(PathBuf::from);
    if let Some(folder) = xdg.filter(|folder| folder.is_absolute()) {
        return Ok(folder.join("detoxd"));
    }
    std::env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .map(|home| home.join(".cache/detoxd"))
        .ok_or(CacheError::NoHome)
}

/// The folder of a model in the cache.
pub(super) fn folder(entry: &Entry, cache: &Path) -> PathBuf {
    cache.join("models").join(&entry.name)
}

/// Where a model is once it is cached: its file, or its folder when it has several.
pub fn location(entry: &Entry, cache: &Path) -> PathBuf {
    let folder = folder(entry, cache);
    match entry.files.as_slice() {
        [file] => folder.join(&file.name),
        _ => folder,
    }
}

/// The location of a model, if all its files are there and verified.
pub(super) fn find(entry: &Entry, cache: &Path) -> Option<PathBuf> {
    let folder = folder(entry, cache);
    entry
        .files
        .iter()
        .all(|file| has(file, &folder))
        .then(|| location(entry, cache))
}

/// Whether the folder holds the verified file.
pub(super) fn has(file: &ModelFile, folder: &Path) -> bool {
    let path = folder.join(&file.name);
    let Ok(marker) = marker(file, &path) else {
        return false;
    };
    if fs::read_to_string(marker_path(&path)).is_ok_and(|found| found == marker) {
        return true;
    }
    // Put there by hand, or touched since: look once, remember if the folder can be written.
    match hash(&path) {
        Ok((checksum, _)) if checksum == file.sha256 => {
            if let Err(error) = fs::write(marker_path(&path), marker) {
                tracing::debug!(path = %path.display(), %error, "no marker written, the file is hashed again at the next start");
            }
            true
        }
        Ok((checksum, _)) => {
            tracing::warn!(path = %path.display(), %checksum, expected = %file.sha256, "the cached file is not the model's, it is left out");
            false
        }
        Err(_) => false,
    }
}

/// Hashes the cached files again, whatever their markers say. A damaged file loses its marker, so that nobody trusts it and
/// the next pull fetches it anew.
pub fn verify(entry: &Entry, cache: &Path) -> bool {
    let folder = folder(entry, cache);
    let mut intact = true;
    for file in &entry.files {
        let path = folder.join(&file.name);
        if !hash(&path).is_ok_and(|found| found == (file.sha256, file.bytes)) {
            intact = false;
            if let Err(error) = fs::remove_file(marker_path(&path)) {
                tracing::debug!(path = %path.display(), %error, "no marker removed");
            }
        }
    }
    intact
}

/// Copies a model from elsewhere into the cache after checking it, and returns its location.
///
/// `from` is the model's file, or the folder that holds its files.
///
/// # Errors
/// When a file is not the model's or can't be read, or the cache can't be written.
pub fn import(entry: &Entry, from: &Path, cache: &Path) -> Result<PathBuf, CacheError> {
    let folder = folder(entry, cache);
    if entry.files.len() > 1 && !from.is_dir() {
        return Err(CacheError::NotAFolder);
    }
    let _lock = Lock::acquire(&folder)?;
    for file in &entry.files {
        let path = if from.is_dir() {
            from.join(&file.name)
        } else {
            from.to_owned()
        };
        let mut reader = File::open(&path).map_err(CacheError::io("opening", &path))?;
        let mut incoming = Incoming::new(file, &folder)?;
        io::copy(&mut reader, &mut incoming).map_err(CacheError::io("copying", &path))?;
        if let Err(Mismatch { checksum, bytes }) = incoming.keep()? {
            return Err(CacheError::WrongFile {
                path,
                bytes,
                checksum,
                wanted: Box::new(file.clone()),
            });
        }
    }
    Ok(location(entry, cache))
}

/// A file on its way into the cache: under a temporary name until it is whole and verified.
pub(super) struct Incoming<'a> {
    file: &'a ModelFile,
    folder: &'a Path,
    writer: HashingWriter<NamedTempFile>,
}

/// What came is not what was wanted.
pub(super) struct Mismatch {
    pub checksum: Checksum,
    pub bytes: u64,
}

impl<'a> Incoming<'a> {
    pub fn new(file: &'a ModelFile, folder: &'a Path) -> Result<Self, CacheError> {
        let mut builder = Builder::new();
        builder.prefix(TEMPORARY_PREFIX);
        // Readable as any file that the user makes: the default is for secrets.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let temporary = builder
            .tempfile_in(folder)
            .map_err(CacheError::io("creating a file in", folder))?;
        Ok(Self {
            file,
            folder,
            writer: HashingWriter::new(temporary),
        })
    }

    /// Verifies, flushes to disk, renames to the final name, marks.
    pub fn keep(self) -> Result<Result<(), Mismatch>, CacheError> {
        let (temporary, checksum, bytes) = self.writer.finish();
        if (checksum, bytes) != (self.file.sha256, self.file.bytes) {
            return Ok(Err(Mismatch { checksum, bytes }));
        }
        let path = self.folder.join(&self.file.name);
        let io = |action| CacheError::io(action, &path);
        temporary.as_file().sync_all().map_err(io("writing"))?;
        temporary
            .persist(&path)
            .map_err(|error| io("renaming to")(error.error))?;
        // The marker after the file: a crash between the two costs one hashing, never a wrong trust.
        let marker = marker(self.file, &path).map_err(io("reading"))?;
        fs::write(marker_path(&path), marker).map_err(io("marking"))?;
        #[cfg(unix)]
        File::open(self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(CacheError::io("writing", self.folder))?;
        Ok(Ok(()))
    }
}

impl Write for Incoming<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Files and folders under this prefix are of a pull in progress, or left by one that was killed.
pub(super) const TEMPORARY_PREFIX: &str = ".incoming-";

/// Whoever holds it is the only one to write to a model's folder. The system frees it when the process ends, however it ends.
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] File);

impl Lock {
    /// Makes the folder if need be, and waits for another holder.
    pub fn acquire(folder: &Path) -> Result<Self, CacheError> {
        Self::at(&folder.join(".lock"))
    }

    /// By a file of its own, whose folder is made if need be.
    pub fn at(path: &Path) -> Result<Self, CacheError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(CacheError::io("creating", folder))?;
        }
        let file = File::create(path).map_err(CacheError::io("creating", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!(lock = %path.display(), "another process is fetching this model, waiting for it");
                file.lock().map_err(CacheError::io("locking", path))?;
            }
            Err(TryLockError::Error(error)) => return Err(CacheError::io("locking", path)(error)),
        }
        Ok(Self(file))
    }
}

/// Removes what killed pulls left. Only for the holder of the lock: nobody else is writing then.
pub(super) fn sweep(folder: &Path, _held: &Lock) {
    let Ok(found) = fs::read_dir(folder) else {
        return;
    };
    for item in found.flatten() {
        if item.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            let path = item.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            tracing::debug!(path = %path.display(), ok = removed.is_ok(), "removed what an earlier pull left");
        }
    }
}

fn hash(path: &Path) -> io::Result<(Checksum, u64)> {
    Checksum::of(&mut File::open(path)?)
}

fn marker_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".verified");
    name.into()
}

/// What the marker of a verified file at `path` says. Fails when there is no file of the right size.
fn marker(file: &ModelFile, path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if metadata.len() != file.bytes {
        return Err(io::Error::other("the file is of another size"));
    }
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!(
        "sha256 {}\nmodified {}.{:09}\n",
        file.sha256,
        modified.as_secs(),
        modified.subsec_nanos()
    ))
}
