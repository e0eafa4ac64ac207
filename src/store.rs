//! Files that outlive a process and are shared by replicas: datasets, checkpoints, adapters. A folder, or a bucket of an S3-compatible
//! service.
//!
//! An object is there as a whole or not at all: it is written under another name, flushed, and renamed, or uploaded in parts
//! that become an object at the end.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::io::AsyncWriteExt;

/// How long a request to a service that fails is tried again: about as long as the service restarts, and less than a worker's
/// patience with its lease.
const PATIENCE: Duration = Duration::from_secs(10);

/// A handle on the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    address: String,
}

/// Why an object can't be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store can't be opened.
    #[error("cannot open the store {url}: {reason}")]
    Open {
        /// As it was given.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no such object.
    #[error("the store has no object {key}")]
    Missing {
        /// Its key.
        key: String,
    },
    /// The disk of the store is used up.
    #[error("the store has no room for {key}")]
    Full {
        /// What was to be kept.
        key: String,
    },
    /// The store failed.
    #[error("the store failed on {key}: {reason}")]
    Failed {
        /// What was asked for.
        key: String,
        /// Why.
        reason: String,
    },
}

impl StoreError {
    fn of(key: &str) -> impl Fn(object_store::Error) -> Self {
        move |error| match error {
            object_store::Error::NotFound { .. } => Self::Missing { key: key.to_owned() },
            error => Self::failed(key, &error),
        }
    }

    fn failed(key: &str, reason: &(dyn Error + 'static)) -> Self {
        let key = key.to_owned();
        if is_full(reason) {
            return Self::Full { key };
        }
        let reason = if any_cause(reason, &is_denial) {
            // What the service says of it quotes the key's id.
            "access denied; see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy".to_owned()
        } else {
            reason.to_string()
        };
        Self::Failed { key, reason }
    }
}

/// Whether an error comes from a disk, or a quota on it, that is used up.
pub fn is_full(error: &(dyn Error + 'static)) -> bool {
    any_cause(error, &|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|io| matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}

fn is_denial(error: &(dyn Error + 'static)) -> bool {
    matches!(
        error.downcast_ref(),
        Some(object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. })
    )
}

fn any_cause(error: &(dyn Error + 'static), test: &dyn Fn(&(dyn Error + 'static)) -> bool) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if test(error) {
            return true;
        }
        // What an I/O error wraps is not its source: that is the wrapped one's.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if wrapped.is_some_and(|wrapped| any_cause(wrapped, test)) {
            return true;
        }
        next = error.source();
    }
    false
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.address).finish()
    }
}

impl Store {
    /// Opens `s3://bucket/prefix`, with the usual `AWS_…` variables, or `file:///folder`, or the folder `store` in the data folder.
    ///
    /// # Errors
    /// When the address is not understood or the folder can't be made. Whether a bucket is there shows with the first object.
    pub fn open(url: Option<&str>, data_dir: &Path) -> Result<Self, StoreError> {
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::open_with(url, data_dir, variables)
    }

    /// The same, with these `AWS_…` variables.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        url: Option<&str>,
        data_dir: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StoreError> {
        match url {
            None => Self::folder(&data_dir.join("store")),
            Some(url) if url.starts_with("s3://") => Self::bucket(url, variables),
            Some(url) => match url.strip_prefix("file://") {
                Some(folder) => Self::folder(Path::new(folder)),
                None => Err(StoreError::Open {
                    url: url.to_owned(),
                    reason: "expected s3://bucket/prefix or file:///folder".to_owned(),
                }),
            },
        }
    }

    fn folder(folder: &Path) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Open {
            url: folder.display().to_string(),
            reason,
        };
        std::fs::create_dir_all(folder)
            .map_err(|error| failed(format!("{error}; choose another folder with --data-dir or --store")))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| failed(error.to_string()))?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        Ok(Self {
            inner: Arc::new(store),
            address: folder.display().to_string(),
        })
    }

    fn bucket(url: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, StoreError> {
        // The library behind it asks for a provider by name; the first call counts and there is but one in the program.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let failed = |error: object_store::Error| StoreError::Open {
            url: url.to_owned(),
            reason: format!(
                "{error}; see AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ALLOW_HTTP"
            ),
        };
        let mut builder = AmazonS3Builder::new().with_retry(RetryConfig {
            max_retries: 5,
            retry_timeout: PATIENCE,
            ..RetryConfig::default()
        });
        for (name, value) in variables {
            // Others of that prefix are other programs'.
            if let Some(key) = name
                .starts_with("AWS_")
                .then(|| name.to_ascii_lowercase().parse().ok())
                .flatten()
            {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder.with_url(url).build().map_err(failed)?;
        let prefix = url
            .trim_start_matches("s3://")
            .split_once('/')
            .map_or("", |(_, prefix)| prefix.trim_matches('/'));
        let inner: Arc<dyn ObjectStore> = match prefix {
            "" => Arc::new(store),
            prefix => Arc::new(PrefixStore::new(store, prefix)),
        };
        Ok(Self {
            inner,
            address: url.to_owned(),
        })
    }

    /// Keeps bytes under a key, in place of what was there.
    ///
    /// # Errors
    /// When the store fails; then what was there before still is.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let result = self.inner.put(&Key::from(key), bytes.into()).await;
        result.map(drop).map_err(StoreError::of(key))
    }

    /// Keeps a file under a key, in place of what was there. It is never in memory as a whole.
    ///
    /// # Errors
    /// When the file can't be read or the store fails; then what was there before still is.
    pub async fn put_file(&self, key: &str, file: &Path) -> Result<(), StoreError> {
        let source = tokio::fs::File::open(file)
            .await
            .map_err(|error| StoreError::failed(key, &error))?;
        self.put_open_file(key, source).await
    }

    /// As [`Self::put_file`], from where an open file stands to its end.
    ///
    /// # Errors
    /// As there.
    pub async fn put_open_file(&self, key: &str, mut source: tokio::fs::File) -> Result<(), StoreError> {
        let mut writer = BufWriter::new(self.inner.clone(), Key::from(key));
        let failed = |error: io::Error| StoreError::failed(key, &error);
        if let Err(error) = tokio::io::copy(&mut source, &mut writer).await {
            // What was uploaded in part must not be paid for.
            let _ = writer.abort().await;
            return Err(failed(error));
        }
        // A writer whose shutdown failed must not be aborted: that panics. The service removes what is left of it by its own rules.
        writer.shutdown().await.map_err(failed)
    }

    /// The bytes under a key.
    ///
    /// # Errors
    /// When there are none, or the store fails.
    pub async fn get(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let found = self.inner.get(&Key::from(key)).await.map_err(StoreError::of(key))?;
        Ok(found.bytes().await.map_err(StoreError::of(key))?.into())
    }

    /// Writes what is under a key to a file, which is there as a whole or not at all. It is never in memory as a whole.
    ///
    /// # Errors
    /// When there is nothing, the store fails, or the file can't be written.
    pub async fn get_file(&self, key: &str, file: &Path) -> Result<(), StoreError> {
        let failed = |error: std::io::Error| StoreError::failed(key, &error);
        let found = self.inner.get(&Key::from(key)).await.map_err(StoreError::of(key))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        tokio::fs::create_dir_all(folder).await.map_err(failed)?;
        let temporary = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let mut sink = tokio::fs::File::from_std(temporary.reopen().map_err(failed)?);
        let mut source = tokio_util::io::StreamReader::new(found.into_stream());
        tokio::io::copy(&mut source, &mut sink).await.map_err(failed)?;
        sink.sync_all().await.map_err(failed)?;
        temporary.persist(file).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Whether there is an object under a key.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn contains(&self, key: &str) -> Result<bool, StoreError> {
        match self.inner.head(&Key::from(key)).await.map_err(StoreError::of(key)) {
            Ok(_) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an object; that there is none is fine.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.inner.delete(&Key::from(key)).await.map_err(StoreError::of(key)) {
            Err(StoreError::Missing { .. }) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_is_kept_found_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(None, folder.path()).unwrap();
        assert!(matches!(store.get("a/b").await, Err(StoreError::Missing { .. })));
        store.put("a/b", b"first".to_vec()).await.unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, vec![7; 11 << 20]).unwrap();
        store.put_file("a/b", &file).await.unwrap();
        assert!(store.contains("a/b").await.unwrap());
        let copy = folder.path().join("new/copy");
        store.get_file("a/b", &copy).await.unwrap();
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&file).unwrap());
        store.delete("a/b").await.unwrap();
        store.delete("a/b").await.unwrap();
        assert!(!store.contains("a/b").await.unwrap());
        assert!(store.get_file("a/b", &copy).await.is_err());
    }

    #[test]
    fn an_address_that_is_not_understood_is_named() {
        let error = Store::open(Some("ftp://x"), Path::new(".")).unwrap_err().to_string();
        assert!(
            error.contains("ftp://x") && error.contains("s3://bucket/prefix"),
            "{error}"
        );
    }
}
