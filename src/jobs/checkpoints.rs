//! Checkpoints between a run's folder and the store: one tar object each.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::claims::{Claim, ClaimError};
use super::queue::Queue;
use crate::store::{Store, StoreError};

/// The files of a checkpoint of an adapter. Nothing else goes into an archive or comes out of one.
const FILES: [&str; 4] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "progress.json",
];

/// Where a run keeps its checkpoints.
fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Name of the folder of a step's checkpoint.
fn name(step: i64) -> String {
    format!("step-{step:08}")
}

/// The step of a checkpoint's folder.
fn step(name: &str) -> Option<i64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// The step of the newest checkpoint in a run's folder.
pub fn newest(run: &Path) -> Option<i64> {
    let entries = fs::read_dir(folder(run)).ok()?;
    entries
        .flatten()
        .filter_map(|entry| step(entry.file_name().to_str()?))
        .max()
}

/// Puts a checkpoint's files into an archive.
///
/// # Errors
/// When a file is missing or can't be read, or the archive can't be written.
pub fn pack(checkpoint: &Path, archive: &Path) -> io::Result<()> {
    // All open before the first is read: a checkpoint that is replaced by a newer one in the meantime is read to its end.
    let mut files = Vec::new();
    for name in FILES {
        files.push((name, File::open(checkpoint.join(name))?));
    }
    let mut tar = tar::Builder::new(File::create(archive)?);
    for (name, mut file) in files {
        tar.append_file(name, &mut file)?;
    }
    tar.into_inner()?.sync_all()
}

/// Makes a step's checkpoint in a run's folder out of an archive: as a whole or not at all.
///
/// # Errors
/// When the archive holds anything but a checkpoint's files, or can't be read or written out.
pub fn unpack(archive: &Path, run: &Path, step: i64) -> io::Result<()> {
    let parent = folder(run);
    fs::create_dir_all(&parent)?;
    let unfinished = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(&parent)?;
    let mut tar = tar::Archive::new(File::open(archive)?);
    let mut found = 0;
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = FILES.into_iter().find(|name| path == Path::new(name));
        let (Some(name), true) = (name, entry.header().entry_type().is_file()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the archive is no checkpoint",
            ));
        };
        io::copy(&mut entry, &mut File::create_new(unfinished.path().join(name))?)?;
        found += 1;
    }
    if found != FILES.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the archive lacks files"));
    }
    let finished = parent.join(name(step));
    if finished.exists() {
        fs::remove_dir_all(&finished)?;
    }
    fs::rename(unfinished.keep(), finished)
}

/// Brings the last checkpoint in the store into a run's folder, unless the one there is as new. One that is gone or damaged is
/// said and passed over: the run then goes on from what is there.
///
/// # Errors
/// When the store fails or the disk is full.
pub async fn fetch(store: &Store, claim: &Claim, run: &Path) -> Result<(), StoreError> {
    let Some((key, step)) = claim.job.checkpoint.clone() else {
        return Ok(());
    };
    if newest(run).is_some_and(|newest| newest >= step) {
        return Ok(());
    }
    let archive = run.join("checkpoint.tar");
    match store.get_file(&key, &archive).await {
        Err(StoreError::Missing { .. }) => {
            tracing::warn!(job = claim.job.id, key, "the last checkpoint is gone from the store");
            return Ok(());
        }
        got => got?,
    }
    let (from, to) = (archive.clone(), run.to_owned());
    let unpacked = blocking(move || unpack(&from, &to, step)).await;
    // It has served; what is left of it goes with the run's folder.
    let _ = tokio::fs::remove_file(&archive).await;
    match unpacked {
        Ok(()) => tracing::info!(job = claim.job.id, step, "going on from a checkpoint"),
        Err(error) => tracing::warn!(job = claim.job.id, %error, "the last checkpoint in the store can't be used"),
    }
    Ok(())
}

/// Uploads checkpoints one after the other; of those that come while it is at one, the newest.
#[derive(Debug)]
pub struct Uploader {
    newest: watch::Sender<Option<String>>,
    task: JoinHandle<()>,
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Uploader {
    /// For the checkpoints of a claim's run.
    pub fn start(queue: Queue, store: Store, claim: Claim, run: PathBuf) -> Self {
        let (newest, mut offered) = watch::channel::<Option<String>>(None);
        let task = tokio::spawn(async move {
            while offered.changed().await.is_ok() {
                let name = offered.borrow_and_update().clone();
                let Some(name) = name else { continue };
                match upload(&queue, &store, &claim, &run, &name).await {
                    Ok(()) => tracing::debug!(job = claim.job.id, name, "checkpoint kept"),
                    Err(UploadError::Claim(ClaimError::Lost)) => return,
                    Err(error) => tracing::warn!(job = claim.job.id, %error, "a checkpoint was not kept"),
                }
            }
        });
        Self { newest, task }
    }

    /// A checkpoint is complete.
    pub fn offer(&self, name: String) {
        self.newest.send_replace(Some(name));
    }

    /// Returns when the newest checkpoint is in the store and recorded, or can't be.
    pub async fn finish(mut self) {
        // Without its sender the task ends after the last one.
        drop(std::mem::replace(&mut self.newest, watch::channel(None).0));
        if let Err(error) = (&mut self.task).await {
            tracing::warn!(%error, "the upload of checkpoints ended early");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    File(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// The object first, then the row that names it, then the object before it goes: whatever dies in between, the row names an object
/// that is there.
async fn upload(queue: &Queue, store: &Store, claim: &Claim, run: &Path, name: &str) -> Result<(), UploadError> {
    let Some(step) = step(name) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a checkpoint without a step").into());
    };
    let (checkpoint, archive) = (folder(run).join(name), run.join("upload.tar"));
    let to = archive.clone();
    blocking(move || pack(&checkpoint, &to)).await?;
    let key = format!("jobs/{}/checkpoint-{}-{step}.tar", claim.job.id, claim.epoch);
    store.put_file(&key, &archive).await?;
    match queue.checkpoint(claim, &key, step.unsigned_abs()).await {
        Ok(Some(former)) => discard(store, &former).await,
        Ok(None) => {}
        Err(error) => {
            // With the claim lost nobody will ever name it. When the database failed it may be recorded all the same.
            if matches!(error, ClaimError::Lost) {
                discard(store, &key).await;
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// Deletes an object that nothing names any more.
pub async fn discard(store: &Store, key: &str) {
    if let Err(error) = store.delete(key).await {
        tracing::warn!(%error, key, "a checkpoint that nobody needs stays in the store");
    }
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for name in FILES {
            fs::write(folder.join(name), format!("content of {name}")).unwrap();
        }
    }

    #[test]
    fn a_checkpoint_comes_out_as_it_went_in() {
        let folder = tempfile::tempdir().unwrap();
        let (run, archive) = (folder.path().join("run"), folder.path().join("a.tar"));
        checkpoint(&folder.path().join("from"));
        pack(&folder.path().join("from"), &archive).unwrap();
        assert_eq!(newest(&run), None);
        for _ in 0..2 {
            unpack(&archive, &run, 7).unwrap();
        }
        unpack(&archive, &run, 120).unwrap();
        assert_eq!(newest(&run), Some(120));
        for name in FILES {
            let text = fs::read_to_string(run.join("checkpoints/step-00000007").join(name)).unwrap();
            assert_eq!(text, format!("content of {name}"));
        }
        fs::remove_file(folder.path().join("from/progress.json")).unwrap();
        assert!(pack(&folder.path().join("from"), &archive).is_err());
    }

    #[test]
    fn what_is_no_checkpoint_is_not_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let (run, archive) = (folder.path().join("run"), folder.path().join("a.tar"));
        let entry = |name: &str, kind: tar::EntryType| {
            let mut header = tar::Header::new_gnu();
            let bytes = &mut header.as_old_mut().name;
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_cksum();
            header
        };
        for (name, kind) in [
            ("../escape", tar::EntryType::Regular),
            ("other.json", tar::EntryType::Regular),
            ("progress.json", tar::EntryType::Symlink),
            ("progress.json", tar::EntryType::Directory),
            // Whole, but not all.
            ("progress.json", tar::EntryType::Regular),
        ] {
            let mut tar = tar::Builder::new(File::create(&archive).unwrap());
            tar.append(&entry(name, kind), io::empty()).unwrap();
            tar.finish().unwrap();
            assert!(unpack(&archive, &run, 1).is_err(), "{name} {kind:?}");
            assert_eq!(newest(&run), None);
        }
        fs::write(&archive, "no archive at all").unwrap();
        assert!(unpack(&archive, &run, 1).is_err());
    }
}
