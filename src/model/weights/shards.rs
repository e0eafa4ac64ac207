//! The tensors of a folder's `.safetensors` files, mapped into memory and read row by row.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::model::ModelError;

/// All shards of a model.
pub(super) struct Shards {
    maps: Vec<Mmap>,
    tensors: HashMap<String, Entry>,
}

/// A tensor in a shard.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    shard: usize,
    /// First byte in the shard.
    start: usize,
    len: usize,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Shards {
    /// Maps every `.safetensors` file of the folder; `consolidated*`, the same weights in another layout, only where there is no other.
    ///
    /// # Errors
    /// When there is none, or one is malformed.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(ModelError::io(folder))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        paths.sort();
        let is_copy = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with("consolidated")
        };
        if !paths.iter().all(is_copy) {
            paths.retain(|path| !is_copy(path));
        }
        let malformed = |path: &Path, what, reason: String| ModelError::Format {
            path: path.display().to_string(),
            what,
            reason,
        };
        if paths.is_empty() {
            let reason = "it holds no .safetensors file".to_owned();
            return Err(malformed(folder, "model folder", reason));
        }
        let (mut maps, mut tensors) = (Vec::new(), HashMap::new());
        for (shard, path) in paths.iter().enumerate() {
            let file = File::open(path).map_err(ModelError::io(path))?;
            // SAFETY: the file is read only; a model file changed under a running process is outside the contract.
            let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
            let content = SafeTensors::deserialize(&map)
                .map_err(|error| malformed(path, "safetensors file", error.to_string()))?;
            for (name, view) in content.tensors() {
                let entry = Entry {
                    shard,
                    start: view.data().as_ptr() as usize - map.as_ptr() as usize,
                    len: view.data().len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                };
                tensors.insert(name, entry);
            }
            maps.push(map);
        }
        Ok(Self { maps, tensors })
    }

    /// Finds a tensor.
    ///
    /// # Errors
    /// When there is none of this name, or it does not hold floating-point numbers.
    pub fn find(&self, name: &str) -> Result<&Entry, ModelError> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| ModelError::MissingTensor(name.to_owned()))?;
        match entry.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(entry),
            other => Err(ModelError::DType {
                name: name.to_owned(),
                dtype: format!("{other:?}"),
            }),
        }
    }

    /// Writes the values from number `first` on.
    pub fn read(&self, entry: &Entry, first: usize, out: &mut [f32]) {
        let data = &self.maps[entry.shard][entry.start..entry.start + entry.len];
        match entry.dtype {
            Dtype::F32 => convert(data, first, out, f32::from_le_bytes),
            Dtype::F16 => convert(data, first, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            _ => convert(data, first, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }

    /// Lets go of a tensor's pages, which count as this process's memory while they are mapped.
    pub fn release(&self, entry: &Entry) {
        release(&self.maps[entry.shard], entry.start, entry.len);
    }
}

/// Lets go of a stretch of a mapped file.
pub(super) fn release(map: &Mmap, start: usize, len: usize) {
    #[cfg(unix)]
    {
        // SAFETY: the mapping is of a file, shared and never written: a page that is let go is read from the file again.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
    }
    #[cfg(not(unix))]
    let _ = (map, start, len);
}

fn convert<const N: usize>(data: &[u8], first: usize, out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = data.as_chunks::<N>();
    for (out, bytes) in out.iter_mut().zip(&numbers[first..]) {
        *out = number(*bytes);
    }
}
