//! Where a model's tensors come from: a GGUF file, or a folder in Hugging Face layout.
//!
//! `shards`: a folder's files; `loader`: from tensors as they are stored to what a decoder computes with.

mod loader;
mod shards;

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device};
use memmap2::Mmap;

use super::ModelError;
use super::build::build;
use super::chat::ChatTemplate;
use super::config::DecoderConfig;
use super::decoder::{Decoder, Placement};
use super::ops::Backend;
use super::tokenizer::TextTokenizer;
use loader::Loader;
use shards::Shards;

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Serving with 4- or 8-bit weights (CPU only): blocks of a GGUF file as they are, anything else as Q8_0.
    ServeQuantized,
    /// Serving with the weights dequantised to single precision.
    ServeDense,
    /// Serving by candle's fused operations: every weight dense and in one number format, on any device.
    ServeOnDevice {
        /// `F32`, `BF16` or `F16`: of weights, activations and caches.
        dtype: DType,
    },
    /// Training adapters; products in bf16 where asked for and the processor has them.
    Train {
        /// `F32`, or `BF16` for bf16 products with f32 sums.
        dtype: DType,
    },
    /// Training adapters over weights that stay in 4-bit blocks (CPU only). The output head and the embedding are kept in bf16; of a GGUF
    /// file, whatever is quantised stays as it is.
    TrainFourBit(FourBit),
    /// Training every weight: all of them are variables, in single precision.
    TrainWhole,
}

/// How a matrix is held in 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FourBit {
    /// NF4 with double quantisation, 4.127 bits a weight.
    Nf4,
    /// GGUF's Q4_K, 4.5 bits a weight; rows must be multiples of 256.
    Q4K,
}

/// The files of a model, opened and not yet turned into a decoder.
pub struct ModelFiles {
    path: PathBuf,
    config: DecoderConfig,
    source: Source,
}

enum Source {
    Gguf { content: gguf_file::Content, bytes: Mmap },
    Folder { shards: Shards, folder: PathBuf },
}

impl ModelFiles {
    /// Opens a `.gguf` file, or a folder with `config.json`, `tokenizer.json` and `*.safetensors`.
    ///
    /// # Errors
    /// When a file is missing, malformed or of an unsupported kind; the message names it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            Self::open_folder(path)
        } else {
            Self::open_gguf(path)
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The tokenizer that comes with the model.
    ///
    /// # Errors
    /// When it is missing or of an unsupported kind.
    pub fn tokenizer(&self) -> Result<TextTokenizer, ModelError> {
        match &self.source {
            Source::Gguf { content, .. } => TextTokenizer::from_gguf(content),
            Source::Folder { folder, .. } => TextTokenizer::from_file(folder.join("tokenizer.json")),
        }
        .map_err(|error| ModelError::Format {
            path: self.path.display().to_string(),
            what: "tokenizer",
            reason: error.to_string(),
        })
    }

    /// The chat template that comes with the model, if one does.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        match &self.source {
            Source::Gguf { content, .. } => ChatTemplate::from_gguf(content, &self.path),
            Source::Folder { folder, .. } => ChatTemplate::from_folder(folder),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        // SAFETY: the file is read only; a model file changed under a running process is outside the contract.
        let bytes = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
        let content = gguf_file::Content::read(&mut Cursor::new(&bytes[..])).map_err(|error| ModelError::Format {
            path: path.display().to_string(),
            what: "GGUF file",
            reason: error.to_string(),
        })?;
        let config = DecoderConfig::from_gguf(&content)?;
        Ok(Self {
            path: path.to_owned(),
            config,
            source: Source::Gguf { content, bytes },
        })
    }

    fn open_folder(folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join("config.json");
        let json = std::fs::read_to_string(&config_path).map_err(ModelError::io(&config_path))?;
        let config = DecoderConfig::from_hugging_face(&json)?;
        let source = Source::Folder {
            shards: Shards::open(folder)?,
            folder: folder.to_owned(),
        };
        Ok(Self {
            path: folder.to_owned(),
            config,
            source,
        })
    }

    /// Builds the decoder.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than the configuration says, or an unsupported type.
    pub fn load(&self, purpose: Purpose, device: &Device) -> Result<Decoder, ModelError> {
        if matches!(purpose, Purpose::TrainFourBit(_)) && !device.is_cpu() {
            return Err(ModelError::Config(
                "4-bit training on another device than the CPU".to_owned(),
            ));
        }
        let mut placement = Placement::own(device.clone());
        if let Purpose::ServeOnDevice { dtype } = purpose {
            (placement.dtype, placement.backend) = (dtype, Backend::Candle);
        }
        build(self.config.clone(), placement, &mut Loader::new(self, purpose, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let error = ModelFiles::open(Path::new("no-such.gguf")).err().unwrap();
        assert!(error.to_string().contains("no-such.gguf"), "{error}");
    }
}
