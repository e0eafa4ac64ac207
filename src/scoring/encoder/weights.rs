//! The tensors of an encoder's folder, by name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, VarBuilder};

use super::EncoderError;

/// Weights as PyTorch pickles them. candle reads the tensors and runs nothing of it.
const PICKLED: &str = "pytorch_model.bin";

/// All tensors of a checkpoint.
pub(super) struct Weights(HashMap<String, Tensor>);

impl Weights {
    /// Reads every `.safetensors` file of the folder; where there is none, `pytorch_model.bin`.
    pub fn open(folder: &Path) -> Result<Self, EncoderError> {
        let entries = std::fs::read_dir(folder).map_err(|error| EncoderError::file(folder, error))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        files.sort();
        let mut tensors = HashMap::new();
        for path in &files {
            let read = candle_core::safetensors::load(path, &Device::Cpu);
            tensors.extend(read.map_err(|error| EncoderError::file(path, error))?);
        }
        if files.is_empty() {
            let path = folder.join(PICKLED);
            if !path.is_file() {
                let reason = format!("it holds neither a .safetensors file nor {PICKLED}");
                return Err(EncoderError::file(folder, reason));
            }
            let read = candle_core::pickle::read_all(&path);
            tensors.extend(read.map_err(|error| EncoderError::file(&path, error))?);
        }
        Ok(Self(tensors))
    }

    /// The prefix of an encoder within a larger model, `bert.` for one; empty where the encoder is the whole.
    pub fn prefix(&self, name: &str) -> String {
        let prefix = format!("{name}.");
        if self.0.keys().any(|tensor| tensor.starts_with(&prefix)) {
            prefix
        } else {
            String::new()
        }
    }

    /// For candle's models, in single precision. `rename` turns the name that they ask for into the file's.
    pub fn builder(&self, rename: impl Fn(&str) -> String + Send + Sync + 'static) -> VarBuilder<'static> {
        VarBuilder::from_tensors(self.0.clone(), DType::F32, &Device::Cpu).rename_f(rename)
    }

    /// The same with zeros under a name that the file does not have.
    pub fn with_zeros(&self, name: String, shape: (usize, usize)) -> Result<Self, EncoderError> {
        let mut tensors = self.0.clone();
        tensors.insert(name, Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
        Ok(Self(tensors))
    }

    /// A layer with a bias, by its name in the file.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear, EncoderError> {
        candle_nn::linear(inputs, outputs, self.builder(str::to_owned).pp(name)).map_err(misfit)
    }
}

/// An error of loading, which names the tensor.
pub(super) fn misfit(error: candle_core::Error) -> EncoderError {
    // Only what is wrong, not from where it was asked for.
    let mut reason = error.to_string();
    reason.truncate(reason.find('\n').unwrap_or(reason.len()));
    EncoderError::Weights(reason)
}
