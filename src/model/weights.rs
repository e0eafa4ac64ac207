//! Where a model's tensors come from: a GGUF file, or a folder in Hugging Face layout.

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor, Var};
use memmap2::Mmap;

use super::ModelError;
use super::build::{TensorSource, build};
use super::config::DecoderConfig;
use super::decoder::Decoder;
use super::kernels::quantized::{BlockFormat, QuantizedMatrix};
use super::layers::Weight;
use super::tokenizer::TextTokenizer;

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Serving with 4- or 8-bit weights (CPU only): blocks of a GGUF file as they are, anything else as Q8_0.
    ServeQuantized,
    /// Serving with the weights dequantised to single precision.
    ServeDense,
    /// Training adapters; products in bf16 where asked for and the processor has them.
    Train {
        /// `F32`, or `BF16` for bf16 products with f32 sums.
        dtype: DType,
    },
    /// Training every weight: all of them are variables, in single precision.
    TrainWhole,
}

/// The files of a model, opened and not yet turned into a decoder.
pub struct ModelFiles {
    path: PathBuf,
    config: DecoderConfig,
    source: Source,
}

enum Source {
    Gguf {
        content: gguf_file::Content,
        bytes: Mmap,
    },
    SafeTensors {
        tensors: MmapedSafetensors,
        folder: PathBuf,
    },
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
            Source::SafeTensors { folder, .. } => TextTokenizer::from_file(folder.join("tokenizer.json")),
        }
        .map_err(|error| ModelError::Format {
            path: self.path.display().to_string(),
            what: "tokenizer",
            reason: error.to_string(),
        })
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
        let mut shards: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(ModelError::io(folder))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        shards.sort();
        if shards.is_empty() {
            return Err(ModelError::Format {
                path: folder.display().to_string(),
                what: "model folder",
                reason: "it holds no .safetensors file".to_owned(),
            });
        }
        // SAFETY: as for the GGUF file above.
        let tensors = unsafe { MmapedSafetensors::multi(&shards) }?;
        let source = Source::SafeTensors {
            tensors,
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
        let mut loader = Loader {
            files: self,
            purpose,
            device,
        };
        build(self.config.clone(), device, &mut loader)
    }
}

struct Loader<'a> {
    files: &'a ModelFiles,
    purpose: Purpose,
    device: &'a Device,
}

impl TensorSource for Loader<'_> {
    fn weight(&mut self, names: &[(&str, usize)], columns: usize) -> Result<Weight, ModelError> {
        let rows: usize = names.iter().map(|(_, rows)| rows).sum();
        if self.purpose == Purpose::ServeQuantized {
            if let Some((format, bytes)) = self.blocks(names, columns)? {
                let matrix =
                    QuantizedMatrix::from_blocks(format, &bytes, rows, columns).map_err(|error| ModelError::DType {
                        name: names[0].0.to_owned(),
                        dtype: error.to_string(),
                    })?;
                return Ok(Weight::Quantized(matrix));
            }
            if columns.is_multiple_of(32) {
                let dense = self.stacked(names, columns)?.flatten_all()?.to_vec1::<f32>()?;
                let matrix =
                    QuantizedMatrix::quantize_q8_0(&dense, rows, columns).map_err(|error| ModelError::DType {
                        name: names[0].0.to_owned(),
                        dtype: error.to_string(),
                    })?;
                return Ok(Weight::Quantized(matrix));
            }
        }
        let dense = self.stacked(names, columns)?;
        match self.purpose {
            Purpose::Train { dtype } => Ok(Weight::for_training(dense, dtype)?),
            Purpose::TrainWhole | Purpose::ServeQuantized | Purpose::ServeDense => {
                Ok(Weight::Dense(self.as_purposed(dense)?))
            }
        }
    }

    fn embedding(&mut self, name: &str, shape: (usize, usize)) -> Result<Tensor, ModelError> {
        self.as_purposed(self.dense(name, shape)?)
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<Tensor, ModelError> {
        self.as_purposed(self.dense(name, (1, len))?.flatten_all()?)
    }
}

impl Loader<'_> {
    fn as_purposed(&self, tensor: Tensor) -> Result<Tensor, ModelError> {
        match self.purpose {
            Purpose::TrainWhole => Ok(Var::from_tensor(&tensor)?.into_inner()),
            _ => Ok(tensor),
        }
    }

    fn stacked(&self, names: &[(&str, usize)], columns: usize) -> Result<Tensor, ModelError> {
        let parts = names
            .iter()
            .map(|(name, rows)| self.dense(name, (*rows, columns)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(if parts.len() == 1 {
            parts[0].clone()
        } else {
            Tensor::cat(&parts, 0)?
        })
    }

    /// A tensor in single precision on the device; `(1, n)` also stands for a vector of `n`.
    fn dense(&self, name: &str, shape: (usize, usize)) -> Result<Tensor, ModelError> {
        let tensor = match &self.files.source {
            Source::SafeTensors { tensors, .. } => tensors
                .load(name, &Device::Cpu)
                .map_err(|_| ModelError::MissingTensor(name.to_owned()))?,
            Source::Gguf { content, bytes } => {
                let gguf = gguf_name(name);
                if !content.tensor_infos.contains_key(&gguf) {
                    return Err(ModelError::MissingTensor(gguf));
                }
                content
                    .tensor(&mut Cursor::new(&bytes[..]), &gguf, &Device::Cpu)?
                    .dequantize(&Device::Cpu)?
            }
        };
        check_shape(name, tensor.dims(), shape)?;
        let tensor = tensor.to_dtype(DType::F32)?.to_device(self.device)?;
        match self.rotary_rows(name) {
            None => Ok(tensor),
            Some(order) => {
                let order: Vec<u32> = order.into_iter().map(|row| row as u32).collect();
                let order = Tensor::from_slice(&order, order.len(), self.device)?;
                Ok(tensor.index_select(&order, 0)?)
            }
        }
    }

    /// The blocks of GGUF matrices stacked row by row, when all have one format that serving computes with.
    fn blocks(&self, names: &[(&str, usize)], columns: usize) -> Result<Option<(BlockFormat, Vec<u8>)>, ModelError> {
        let Source::Gguf { content, bytes } = &self.files.source else {
            return Ok(None);
        };
        let mut stacked = Vec::new();
        let mut format = None;
        for (name, rows) in names {
            let gguf = gguf_name(name);
            let info = content
                .tensor_infos
                .get(&gguf)
                .ok_or_else(|| ModelError::MissingTensor(gguf.clone()))?;
            check_shape(name, info.shape.dims(), (*rows, columns))?;
            let this = match info.ggml_dtype {
                GgmlDType::Q4_1 => BlockFormat::Q4_1,
                GgmlDType::Q8_0 => BlockFormat::Q8_0,
                _ => return Ok(None),
            };
            if *format.get_or_insert(this) != this {
                return Ok(None);
            }
            let row_bytes = columns / info.ggml_dtype.block_size() * info.ggml_dtype.type_size();
            let start = (content.tensor_data_offset + info.offset) as usize;
            let data = bytes
                .get(start..start + rows * row_bytes)
                .ok_or_else(|| ModelError::Format {
                    path: self.files.path.display().to_string(),
                    what: "GGUF file",
                    reason: format!("it ends within the tensor {gguf}"),
                })?;
            match self.rotary_rows(name) {
                None => stacked.extend_from_slice(data),
                Some(order) => {
                    order
                        .iter()
                        .for_each(|row| stacked.extend_from_slice(&data[row * row_bytes..(row + 1) * row_bytes]));
                }
            }
        }
        Ok(format.map(|format| (format, stacked)))
    }

    /// For queries and keys of a GGUF file: which of its rows comes next in the half-split rotary layout. llama.cpp
    /// interleaves the two halves of each head.
    fn rotary_rows(&self, name: &str) -> Option<Vec<usize>> {
        let config = &self.files.config;
        let heads = match &self.files.source {
            Source::SafeTensors { .. } => return None,
            Source::Gguf { .. } if name.ends_with("q_proj.weight") => config.num_heads,
            Source::Gguf { .. } if name.ends_with("k_proj.weight") => config.num_kv_heads,
            Source::Gguf { .. } => return None,
        };
        let (dim, half) = (config.head_dim, config.head_dim / 2);
        Some(
            (0..heads * dim)
                .map(|row| row / dim * dim + row % dim % half * 2 + row % dim / half)
                .collect(),
        )
    }
}

fn check_shape(name: &str, found: &[usize], (rows, columns): (usize, usize)) -> Result<(), ModelError> {
    if found == [rows, columns] || (rows == 1 && found == [columns]) {
        return Ok(());
    }
    Err(ModelError::Shape {
        name: name.to_owned(),
        found: found.to_vec(),
        expected: vec![rows, columns],
    })
}

/// The name llama.cpp gives a tensor that Hugging Face calls `name`.
fn gguf_name(name: &str) -> String {
    const NAMES: [(&str, &str); 13] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    NAMES
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugging_face_names_map_to_those_of_llama_cpp() {
        assert_eq!(
            gguf_name("model.layers.7.mlp.down_proj.weight"),
            "blk.7.ffn_down.weight"
        );
        assert_eq!(
            gguf_name("model.layers.0.post_attention_layernorm.weight"),
            "blk.0.ffn_norm.weight"
        );
        assert_eq!(gguf_name("model.norm.weight"), "output_norm.weight");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = ModelFiles::open(Path::new("no-such.gguf")).err().unwrap();
        assert!(error.to_string().contains("no-such.gguf"), "{error}");
    }
}
