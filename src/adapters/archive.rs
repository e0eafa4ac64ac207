//! Adapters as `tar.gz`: read with a limit on everything, and written.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::rc::Rc;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tar::{Archive, EntryType, Header};

use super::files::{AdapterFiles, CONFIG, WEIGHTS};
use super::incoming::{ABOUT, About, ImportError, ImportLimits, Incoming, MAX_JSON};

/// Entries of an archive: two files, a card, a licence, a folder or two.
const MAX_ENTRIES: usize = 64;
/// Weights hardly shrink; a whole file of zeros does, a thousandfold, and is no adapter.
const MAX_RATIO: u64 = 100;
/// Up to so many bytes the ratio says nothing.
const MIN_FOR_RATIO: u64 = 1 << 20;

impl Incoming {
    /// From a gzipped tar archive with the two files of PEFT's layout, at its top or within one folder. Other files are passed over.
    ///
    /// # Errors
    /// When it is no such archive, or more than it may be: nothing is read beyond the limit that it exceeds.
    pub fn from_archive(archive: impl Read, limits: &ImportLimits) -> Result<Self, ImportError> {
        let compressed = Rc::new(Cell::new(0));
        let counted = Counted {
            inner: archive,
            bytes: Rc::clone(&compressed),
        };
        let expanded = Guarded {
            inner: GzDecoder::new(counted),
            compressed,
            bytes: 0,
            // The weights, the small files, and as much again as blocks and ignored files may take.
            limit: limits.max_bytes.saturating_add(16 * MAX_JSON),
        };
        let mut archive = Archive::new(expanded);
        let mut found: [Option<Vec<u8>>; 3] = Default::default();
        let mut home: Option<Vec<u8>> = None;
        for (count, entry) in archive.entries().map_err(malformed)?.enumerate() {
            if count >= MAX_ENTRIES {
                return Err(ImportError::Archive(format!("has more than {MAX_ENTRIES} entries")));
            }
            let mut entry = entry.map_err(malformed)?;
            let kind = entry.header().entry_type();
            if matches!(kind, EntryType::Directory | EntryType::XGlobalHeader) {
                continue;
            }
            let path = entry.path().map_err(malformed)?.into_owned();
            if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
                return Err(ImportError::Archive(format!(
                    "has an entry that is neither a file nor a folder: {}",
                    path.display()
                )));
            }
            let Some((folder, name)) = place(&path) else {
                return Err(ImportError::Archive(format!(
                    "has a file outside of its one folder: {}",
                    path.display()
                )));
            };
            let Some(at) = [CONFIG, WEIGHTS, ABOUT].iter().position(|wanted| *wanted == name) else {
                continue;
            };
            if found[at].is_some() || home.as_ref().is_some_and(|home| *home != folder) {
                return Err(ImportError::Archive(format!(
                    "has {name} more than once, or apart from the others"
                )));
            }
            home = Some(folder);
            let limit = if name == WEIGHTS { limits.max_bytes } else { MAX_JSON };
            let too_large = || ImportError::TooLarge {
                file: name.clone(),
                limit,
            };
            // What it claims, before anything of it is read.
            if entry.size() > limit {
                return Err(too_large());
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(malformed)?;
            found[at] = Some(bytes);
        }
        let [config, weights, about] = found;
        Self::new(
            config.ok_or(ImportError::Missing(CONFIG))?,
            weights.ok_or(ImportError::Missing(WEIGHTS))?,
            about,
        )
    }
}

/// The folder that a file is in, and its name. None for a path that is absolute, climbs, or goes deeper than one folder.
fn place(path: &Path) -> Option<(Vec<u8>, String)> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => return None,
        }
    }
    match parts[..] {
        [name] => Some((Vec::new(), name.to_owned())),
        [folder, name] => Some((folder.as_bytes().to_vec(), name.to_owned())),
        _ => None,
    }
}

fn malformed(error: io::Error) -> ImportError {
    ImportError::Archive(format!("can't be read: {error}"))
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

/// Ends the reading of an archive that expands to too much.
struct Guarded<R> {
    inner: R,
    compressed: Rc<Cell<u64>>,
    bytes: u64,
    limit: u64,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        if self.bytes > self.limit {
            return Err(io::Error::other(format!(
                "it expands to more than {} bytes",
                self.limit
            )));
        }
        if self.bytes > MIN_FOR_RATIO && self.bytes / MAX_RATIO > self.compressed.get() {
            return Err(io::Error::other(format!("it expands more than {MAX_RATIO} times")));
        }
        Ok(read)
    }
}

/// An adapter as `tar.gz`, for [`Incoming::from_archive`] and for whoever reads PEFT's layout.
///
/// # Errors
/// When it can't be written.
pub fn write_archive(folder: &str, files: &AdapterFiles, about: &About) -> io::Result<Vec<u8>> {
    let about = serde_json::to_vec_pretty(about)?;
    // Weights hardly shrink, however long one tries.
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in [
        (CONFIG, &files.config[..]),
        (WEIGHTS, &files.weights[..]),
        (ABOUT, &about[..]),
    ] {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("{folder}/{name}"), bytes)?;
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micro() -> Incoming {
        Incoming::from_folder(Path::new("tests/fixtures/micro/adapter"), 1 << 30).unwrap()
    }

    fn about(files: &AdapterFiles) -> About {
        About {
            adapter: "a@3".to_owned(),
            sha256: files.sha256(),
            base: "micro".to_owned(),
            base_fingerprint: "f".to_owned(),
        }
    }

    type Entry<'a> = (EntryType, &'a str, &'a [u8]);

    fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
        for (kind, name, bytes) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            // Past what the builder allows in a name.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            if *kind == EntryType::Symlink {
                header.set_link_name("/etc/hostname").unwrap();
            }
            header.set_cksum();
            archive.append(&header, *bytes).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap()
    }

    fn read(archive: &[u8]) -> Result<Incoming, ImportError> {
        Incoming::from_archive(archive, &ImportLimits::default())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let Incoming { files, .. } = micro();
        let about = about(&files);
        let written = write_archive("a-3", &files, &about).unwrap();
        let incoming = read(&written).unwrap();
        assert_eq!((incoming.files, incoming.about), (files, Some(about)));
        // Cut off anywhere, it is refused.
        for length in [0, 10, written.len() / 2, written.len() - 600] {
            assert!(read(&written[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn files_that_are_not_those_it_speaks_of_are_refused() {
        let Incoming { mut files, .. } = micro();
        let about = about(&files);
        files.weights[5000] ^= 1;
        let error = read(&write_archive("a", &files, &about).unwrap()).unwrap_err();
        assert!(matches!(error, ImportError::Changed { .. }), "{error}");
    }

    #[test]
    fn only_the_known_files_at_one_place_are_taken() {
        let file = EntryType::Regular;
        let good: &[Entry<'_>] = &[
            (EntryType::Directory, "x/", b""),
            (file, "./x/README.md", b"words"),
            (file, "./x/adapter_config.json", b"{}"),
            (file, "x/adapter_model.safetensors", b"w"),
        ];
        assert_eq!(read(&archive(good)).unwrap().files.weights, b"w");
        for (more, word) in [
            ((EntryType::Symlink, "x/link", &b""[..]), "neither a file nor a folder"),
            ((EntryType::Link, "x/link", b""), "neither a file nor a folder"),
            ((file, "../x", b""), "outside"),
            ((file, "/x", b""), "outside"),
            ((file, "x/y/z", b""), "outside"),
            ((file, "x/adapter_config.json", b"{}"), "more than once"),
            ((file, "detoxd.json", b"{}"), "apart from"),
        ] {
            let mut entries = good.to_vec();
            entries.push(more);
            let error = read(&archive(&entries)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = read(&archive(&good[..3])).unwrap_err();
        assert!(matches!(error, ImportError::Missing(WEIGHTS)), "{error}");
        let many: Vec<Entry<'_>> = (0..65).map(|_| (file, "README.md", &b""[..])).collect();
        assert!(read(&archive(&many)).unwrap_err().to_string().contains("64 entries"));
    }

    #[test]
    fn a_bomb_is_refused_early() {
        let zeros = vec![0; 32 << 20];
        for name in ["README.md", WEIGHTS] {
            let bomb = archive(&[(EntryType::Regular, name, &zeros)]);
            assert!(bomb.len() < 40_000);
            let error = read(&bomb).unwrap_err().to_string();
            assert!(error.contains("expands more than 100 times"), "{error}");
        }
        let limits = ImportLimits {
            max_bytes: 1000,
            ..ImportLimits::default()
        };
        // By what it claims, whatever follows.
        let mut claims = archive(&[(EntryType::Regular, WEIGHTS, &zeros[..2000])]);
        claims.truncate(60);
        let error = Incoming::from_archive(&claims[..], &limits).unwrap_err();
        assert!(
            matches!(error, ImportError::TooLarge { .. } | ImportError::Archive(_)),
            "{error}"
        );
        let noise: Vec<u8> = (0..20u32 << 20)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let large = archive(&[(EntryType::Regular, "README.md", &noise)]);
        let error = Incoming::from_archive(&large[..], &limits).unwrap_err().to_string();
        assert!(error.contains("expands to more than"), "{error}");
    }
}
