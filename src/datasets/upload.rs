//! A dataset on its way in: checked line by line while it arrives, and kept as a whole or not at all.

use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};
use tokio::sync::OwnedSemaphorePermit;

use super::{Dataset, DatasetError, Datasets, key};
use crate::access::{Actor, record};
use crate::db::{DbError, new_id, now};
use crate::model::catalogue::Checksum;
use crate::store::is_full;
use crate::train::dataset::Example;

/// Bad lines after which an upload ends: enough to see what is wrong.
const MAX_BAD_LINES: usize = 20;

/// Longest line: what is held in memory of an upload.
const MAX_LINE_BYTES: usize = 1 << 20;

/// A line that is no example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Counted from 1.
    pub number: u64,
    /// What is wrong, without its text.
    pub reason: String,
}

/// What became of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uploaded {
    /// A dataset that was not there.
    New(Dataset),
    /// The same bytes were there already, under this id and name.
    Same(Dataset),
}

impl Uploaded {
    /// The dataset that has the bytes.
    pub fn dataset(&self) -> &Dataset {
        match self {
            Self::New(dataset) | Self::Same(dataset) => dataset,
        }
    }
}

/// A dataset on its way in. Nothing of it stays if it is dropped, or the process ends: its file has no name.
#[derive(Debug)]
pub struct Upload {
    datasets: Datasets,
    name: Option<String>,
    limit: u64,
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
    lines: Lines,
    _place: OwnedSemaphorePermit,
}

impl Datasets {
    /// Begins an upload of at most `limit` bytes; `declared` is the size it says it has.
    ///
    /// # Errors
    /// When it says that it is too large, too many others are on their way, or there is nowhere to put it.
    pub async fn begin(&self, name: Option<String>, declared: Option<u64>, limit: u64) -> Result<Upload, DatasetError> {
        if let Some(size) = declared
            && size > limit
        {
            return Err(DatasetError::TooLarge {
                size: format!("{size} bytes"),
                limit,
            });
        }
        let place = self
            .places
            .clone()
            .try_acquire_owned()
            .map_err(|_| DatasetError::Busy)?;
        tokio::fs::create_dir_all(&self.folder).await.map_err(file_error)?;
        let file = tempfile::tempfile_in(&self.folder).map_err(file_error)?;
        Ok(Upload {
            datasets: self.clone(),
            name,
            limit,
            file: BufWriter::with_capacity(1 << 18, File::from_std(file)),
            hash: Sha256::new(),
            bytes: 0,
            lines: Lines::default(),
            _place: place,
        })
    }
}

impl Upload {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they are too many, a good deal of the lines is bad, or they can't be written down. Nothing more is to be sent then.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), DatasetError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.limit {
            return Err(DatasetError::TooLarge {
                size: format!("at least {} bytes", self.bytes),
                limit: self.limit,
            });
        }
        self.lines.read(bytes);
        if self.lines.bad.len() >= MAX_BAD_LINES {
            return Err(self.bad_lines());
        }
        self.hash.update(bytes);
        self.file.write_all(bytes).await.map_err(file_error)
    }

    /// Keeps what was sent.
    ///
    /// # Errors
    /// When a line is bad or there is none, or database, store or disk fail. Then nothing is kept.
    pub async fn finish(mut self, actor: &Actor) -> Result<Uploaded, DatasetError> {
        self.lines.end();
        if !self.lines.bad.is_empty() {
            return Err(self.bad_lines());
        }
        if self.lines.examples == 0 {
            return Err(DatasetError::Empty);
        }
        self.file.flush().await.map_err(file_error)?;
        let mut file = self.file.into_inner();
        file.rewind().await.map_err(file_error)?;

        let digest: [u8; 32] = self.hash.finalize().into();
        let dataset = Dataset {
            id: new_id(),
            name: self.name,
            sha256: Checksum::from(digest).to_string(),
            examples: self.lines.examples,
            bytes: self.bytes,
            created_at: now(),
            created_by: actor.id.clone(),
        };
        let datasets = &self.datasets;
        if let Some(same) = datasets.with_sha256(&dataset.sha256).await? {
            return Ok(Uploaded::Same(same));
        }
        let key = key(&dataset.id);
        datasets.store.put_open_file(&key, file).await?;
        let kept = datasets.insert(dataset, actor).await;
        // Without a row, nobody will ever ask for the object. A commit whose answer is lost may have made one.
        if !matches!(kept, Ok(Uploaded::New(_)) | Err(Inserting::Committing(_)))
            && let Err(error) = datasets.store.delete(&key).await
        {
            tracing::warn!(%error, "an object that no dataset refers to is still in the store");
        }
        match kept {
            Ok(uploaded) => Ok(uploaded),
            Err(Inserting::Before(error) | Inserting::Committing(error)) => Err(error.into()),
        }
    }

    fn bad_lines(&mut self) -> DatasetError {
        self.lines.bad.truncate(MAX_BAD_LINES);
        DatasetError::BadLines {
            lines: std::mem::take(&mut self.lines.bad),
        }
    }
}

/// Where an insertion failed.
enum Inserting {
    /// There is no row.
    Before(DbError),
    /// There may be one.
    Committing(DbError),
}

impl Datasets {
    async fn with_sha256(&self, sha256: &str) -> Result<Option<Dataset>, DbError> {
        let id: Option<(String,)> = sqlx::query_as("SELECT id FROM datasets WHERE sha256 = $1")
            .bind(sha256)
            .fetch_optional(self.db.pool())
            .await?;
        match id {
            Some((id,)) => self.get(&id).await,
            None => Ok(None),
        }
    }

    async fn insert(&self, dataset: Dataset, actor: &Actor) -> Result<Uploaded, Inserting> {
        let before = |error: sqlx::Error| Inserting::Before(error.into());
        let mut transaction = self.db.begin().await.map_err(Inserting::Before)?;
        let inserted = sqlx::query(concat!(
            "INSERT INTO datasets (id, name, sha256, examples, bytes, created_at, created_by)",
            " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (sha256) DO NOTHING"
        ))
        .bind(&dataset.id)
        .bind(&dataset.name)
        .bind(&dataset.sha256)
        .bind(dataset.examples.cast_signed())
        .bind(dataset.bytes.cast_signed())
        .bind(dataset.created_at)
        .bind(&dataset.created_by)
        .execute(&mut *transaction)
        .await
        .map_err(before)?;
        if inserted.rows_affected() == 0 {
            // The same bytes came by another way at the same time.
            drop(transaction);
            let same = self.with_sha256(&dataset.sha256).await.map_err(Inserting::Before)?;
            return same.map(Uploaded::Same).ok_or_else(|| before(sqlx::Error::RowNotFound));
        }
        let detail = format!("{} examples, sha256 {}", dataset.examples, dataset.sha256);
        record(&mut transaction, actor, "dataset.upload", &dataset.id, Some(&detail))
            .await
            .map_err(Inserting::Before)?;
        let committed = transaction.commit().await;
        committed.map_err(|error| Inserting::Committing(error.into()))?;
        Ok(Uploaded::New(dataset))
    }
}

fn file_error(error: std::io::Error) -> DatasetError {
    if is_full(&error) {
        DatasetError::DiskFull
    } else {
        DatasetError::File(error)
    }
}

/// Lines that are read as they come, cut anywhere.
#[derive(Debug, Default)]
struct Lines {
    /// Lines that are complete.
    number: u64,
    /// The beginning of the next one.
    rest: Vec<u8>,
    /// Whether the next one is too long already: the rest of it is passed over.
    too_long: bool,
    examples: u64,
    bad: Vec<BadLine>,
}

impl Lines {
    fn read(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.rest.is_empty() && !self.too_long && end <= MAX_LINE_BYTES {
                self.line(&bytes[..end]);
            } else {
                self.keep(&bytes[..end]);
                self.complete();
            }
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    /// The last line may have no end.
    fn end(&mut self) {
        if !self.rest.is_empty() || self.too_long {
            self.complete();
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.too_long |= self.rest.len() + bytes.len() > MAX_LINE_BYTES;
        if self.too_long {
            self.rest = Vec::new();
        } else {
            self.rest.extend_from_slice(bytes);
        }
    }

    fn complete(&mut self) {
        let line = std::mem::take(&mut self.rest);
        if std::mem::take(&mut self.too_long) {
            self.number += 1;
            self.refuse(format!("longer than {MAX_LINE_BYTES} bytes"));
        } else {
            self.line(&line);
        }
    }

    fn line(&mut self, bytes: &[u8]) {
        self.number += 1;
        match std::str::from_utf8(bytes) {
            // As the trainer does.
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => match Example::parse(line) {
                Ok(_) => self.examples += 1,
                // The line within the line is always the first.
                Err(reason) => self.refuse(reason.replace(" at line 1 column ", " at column ")),
            },
            Err(error) => self.refuse(format!("not UTF-8: byte {} is wrong", error.valid_up_to() + 1)),
        }
    }

    fn refuse(&mut self, reason: String) {
        if self.bad.len() < MAX_BAD_LINES {
            self.bad.push(BadLine {
                number: self.number,
                reason,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"toxic": "You idiot, read this.", "neutral": ["Please read this."]}"#;

    #[test]
    fn lines_are_found_wherever_they_are_cut() {
        let text = format!("{GOOD}\r\n\n{{\"toxic\": 1}}\n{GOOD}\nnothing\n  \n{GOOD}");
        for size in [1, 2, 7, 64, text.len()] {
            let mut lines = Lines::default();
            text.as_bytes().chunks(size).for_each(|chunk| lines.read(chunk));
            lines.end();
            assert_eq!(lines.examples, 3, "{size}");
            assert_eq!(lines.number, 7, "{size}");
            let numbers: Vec<u64> = lines.bad.iter().map(|bad| bad.number).collect();
            assert_eq!(numbers, [3, 5], "{size}");
            assert!(lines.bad[0].reason.contains("anchor"), "{:?}", lines.bad);
            assert!(lines.bad[1].reason.ends_with("at column 2"), "{:?}", lines.bad);
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..40 {
            lines.read(&vec![b'a'; MAX_LINE_BYTES / 10]);
            assert!(lines.rest.capacity() <= 2 * MAX_LINE_BYTES);
        }
        lines.read(format!("\n{GOOD}").as_bytes());
        lines.end();
        assert_eq!((lines.examples, lines.number), (1, 2));
        assert_eq!(lines.bad[0].number, 1);
        assert!(lines.bad[0].reason.contains("longer"), "{:?}", lines.bad);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named_with_their_line() {
        let mut lines = Lines::default();
        lines.read(GOOD.as_bytes());
        lines.read(b"\n\"ab\xff\"\n");
        assert_eq!(lines.bad[0].number, 2);
        assert_eq!(lines.bad[0].reason, "not UTF-8: byte 4 is wrong");
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = std::io::Error::from_raw_os_error(28);
        assert!(matches!(file_error(full), DatasetError::DiskFull));
        let wrapped = std::io::Error::other(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(matches!(file_error(wrapped), DatasetError::DiskFull));
        let other = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(matches!(file_error(other), DatasetError::File(_)));
    }
}
