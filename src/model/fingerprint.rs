//! What tells one base model from another: an adapter fits the model it was trained on and no other.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ModelError;

/// What is read at either end of a file. Headers, and with them names, shapes and settings, are at the beginning.
const END: u64 = 1 << 20;

/// Fingerprint of a model: SHA-256, in hexadecimal, over name, length, first and last MiB of `config.json`, `tokenizer.json` and every
/// `*.safetensors` of a folder, in the order of their names. A GGUF file is the same model under any name, so its name does not count.
///
/// Not the whole files: a model of gigabytes would take its reading time again at every start. Two models that differ in the midst of a
/// file only would pass as one; weights of another training differ everywhere.
///
/// # Errors
/// When a file can't be read, or a folder holds none of them.
pub fn fingerprint(path: &Path) -> Result<String, ModelError> {
    let mut digest = Sha256::new();
    if path.is_dir() {
        let files = files_of(path)?;
        if files.is_empty() {
            return Err(ModelError::Format {
                path: path.display().to_string(),
                what: "model folder",
                reason: "it holds neither a configuration nor weights".to_owned(),
            });
        }
        for (name, file) in files {
            add(&mut digest, &name, &file)?;
        }
    } else {
        add(&mut digest, "", path)?;
    }
    Ok(hex(&digest.finalize()))
}

fn files_of(folder: &Path) -> Result<Vec<(String, PathBuf)>, ModelError> {
    let mut files: Vec<(String, PathBuf)> = std::fs::read_dir(folder)
        .map_err(ModelError::io(folder))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.to_owned();
            let counts = matches!(name.as_str(), "config.json" | "tokenizer.json") || name.ends_with(".safetensors");
            counts.then_some((name, path))
        })
        .collect();
    files.sort();
    Ok(files)
}

fn add(digest: &mut Sha256, name: &str, path: &Path) -> Result<(), ModelError> {
    let read = || -> std::io::Result<(u64, Vec<u8>)> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut ends = Vec::new();
        if length <= 2 * END {
            file.read_to_end(&mut ends)?;
        } else {
            (&mut file).take(END).read_to_end(&mut ends)?;
            file.seek(SeekFrom::End(-(END as i64)))?;
            file.read_to_end(&mut ends)?;
        }
        Ok((length, ends))
    };
    let (length, ends) = read().map_err(ModelError::io(path))?;
    // Lengths first, so that no two lists of files have the same bytes.
    digest.update((name.len() as u64).to_le_bytes());
    digest.update(name);
    digest.update(length.to_le_bytes());
    digest.update(ends);
    Ok(())
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_have_the_same_one_and_a_changed_byte_another() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        assert!(fingerprint(&model).is_err());
        let mut weights = vec![1; 3 << 20];
        std::fs::write(model.join("config.json"), "{}").unwrap();
        std::fs::write(model.join("model.safetensors"), &weights).unwrap();
        let first = fingerprint(&model).unwrap();
        assert_eq!(first.len(), 64);
        std::fs::write(model.join("README.md"), "words").unwrap();
        assert_eq!(fingerprint(&model).unwrap(), first);
        for at in [0, weights.len() - 1] {
            weights[at] = 2;
            std::fs::write(model.join("model.safetensors"), &weights).unwrap();
            assert_ne!(fingerprint(&model).unwrap(), first);
            weights[at] = 1;
        }
        std::fs::write(model.join("model.safetensors"), &weights).unwrap();
        std::fs::write(model.join("config.json"), "{ }").unwrap();
        assert_ne!(fingerprint(&model).unwrap(), first);
    }

    #[test]
    fn the_name_of_a_single_file_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.gguf", "b.gguf"].map(|name| folder.path().join(name));
        for file in [&a, &b] {
            std::fs::write(file, "weights").unwrap();
        }
        assert_eq!(fingerprint(&a).unwrap(), fingerprint(&b).unwrap());
        assert!(fingerprint(&folder.path().join("c.gguf")).is_err());
    }
}
