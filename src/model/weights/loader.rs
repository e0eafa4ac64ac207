//! From tensors as they are stored to what a decoder computes with.

use std::io::Cursor;

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{Device, Tensor, Var};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;

use super::shards::{Entry, Shards, release};
use super::{FourBit, ModelFiles, Purpose, Source};
use crate::model::ModelError;
use crate::model::build::TensorSource;
use crate::model::config::{DecoderConfig, Naming};
use crate::model::kernels::blocks::{BlockMatrix, Blocks, GgmlBlocks};
use crate::model::kernels::nf4::Nf4Builder;
use crate::model::kernels::quantized::{BlockFormat, QuantizedMatrix};
use crate::model::layers::{Embedding, Projection, Weight};

/// Rows that are read at once where a matrix is encoded: whole blocks, whatever a block's length and the rows' may be.
const ROWS: usize = 256;

/// Reads the tensors of one model for one purpose.
pub(super) struct Loader<'a> {
    files: &'a ModelFiles,
    purpose: Purpose,
    device: &'a Device,
}

/// Rows of one tensor, in the order in which the decoder computes with them.
struct Rows<'a> {
    values: Values<'a>,
    count: usize,
    columns: usize,
    /// Which row of the file comes next, where they stand in another order there.
    order: Option<Vec<usize>>,
}

enum Values<'a> {
    Folder(&'a Shards, Entry),
    /// Dequantised as a whole.
    Read(Vec<f32>, GgmlDType),
}

impl<'a> Rows<'a> {
    fn read(&self, first: usize, out: &mut [f32]) {
        for (index, out) in out.chunks_mut(self.columns).enumerate() {
            let row = first + index;
            let at = self.order.as_ref().map_or(row, |order| order[row]) * self.columns;
            match &self.values {
                Values::Folder(shards, entry) => shards.read(entry, at, out),
                Values::Read(values, _) => out.copy_from_slice(&values[at..at + self.columns]),
            }
        }
    }

    /// Calls `visit(first row, values)` with portions of [`ROWS`] rows, then lets go of the file's pages.
    fn in_portions(self, mut visit: impl FnMut(usize, &[f32])) {
        let mut portion = vec![0f32; ROWS.min(self.count) * self.columns];
        for first in (0..self.count).step_by(ROWS) {
            let portion = &mut portion[..ROWS.min(self.count - first) * self.columns];
            self.read(first, portion);
            visit(first, portion);
        }
        self.release();
    }

    fn is_f16(&self) -> bool {
        match &self.values {
            Values::Folder(_, entry) => entry.dtype == Dtype::F16,
            Values::Read(_, dtype) => *dtype == GgmlDType::F16,
        }
    }

    fn release(&self) {
        if let Values::Folder(shards, entry) = &self.values {
            shards.release(entry);
        }
    }
}

impl TensorSource for Loader<'_> {
    fn weight(
        &mut self,
        projection: Projection,
        names: &[(String, usize)],
        columns: usize,
    ) -> Result<Weight, ModelError> {
        let rows: usize = names.iter().map(|(_, rows)| rows).sum();
        let unusable = |error: &dyn std::fmt::Display| ModelError::DType {
            name: names[0].0.clone(),
            dtype: error.to_string(),
        };
        match self.purpose {
            Purpose::ServeQuantized => {
                if let Some((format, bytes)) = self.serving_blocks(names, columns)? {
                    let matrix = QuantizedMatrix::from_blocks(format, &bytes, rows, columns);
                    return Ok(Weight::Quantized(matrix.map_err(|error| unusable(&error))?));
                }
                if !columns.is_multiple_of(32) {
                    return Ok(Weight::Dense(self.stacked(names, columns)?));
                }
                let dense = self.values(names, columns)?;
                let matrix = QuantizedMatrix::quantize_q8_0(&dense, rows, columns);
                Ok(Weight::Quantized(matrix.map_err(|error| unusable(&error))?))
            }
            Purpose::TrainFourBit(format) => {
                // The head's rounding would show in every loss; QLoRA leaves it alone as well.
                let format = (projection != Projection::Head).then_some(format);
                self.block_matrix(names, columns, format).map(Weight::Blocks)
            }
            Purpose::Train { dtype } => Ok(Weight::for_training(self.stacked(names, columns)?, dtype)?),
            Purpose::TrainWhole | Purpose::ServeDense | Purpose::ServeOnDevice { .. } => {
                Ok(Weight::Dense(self.as_purposed(self.stacked(names, columns)?)?))
            }
        }
    }

    fn embedding(&mut self, name: &str, (rows, columns): (usize, usize)) -> Result<Embedding, ModelError> {
        let names = [(name.to_owned(), rows)];
        Ok(match self.purpose {
            Purpose::TrainFourBit(_) => {
                Embedding::Blocks(Weight::Blocks(self.block_matrix(&names, columns, None)?).into())
            }
            _ => Embedding::Dense(self.as_purposed(self.stacked(&names, columns)?)?),
        })
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<Tensor, ModelError> {
        self.vector(&[(name.to_owned(), len)])
    }

    fn bias(&mut self, names: &[(String, usize)]) -> Result<Tensor, ModelError> {
        self.vector(names)
    }

    fn rotary_divisors(&mut self, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        match &self.files.source {
            Source::Gguf { content, .. } if content.tensor_infos.contains_key("rope_freqs.weight") => {
                self.values(&[("rope_freqs.weight".to_owned(), len)], 1).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl<'a> Loader<'a> {
    pub fn new(files: &'a ModelFiles, purpose: Purpose, device: &'a Device) -> Self {
        Self { files, purpose, device }
    }

    fn as_purposed(&self, tensor: Tensor) -> Result<Tensor, ModelError> {
        match self.purpose {
            Purpose::TrainWhole => Ok(Var::from_tensor(&tensor)?.into_inner()),
            Purpose::ServeOnDevice { dtype } => Ok(tensor.to_dtype(dtype)?),
            _ => Ok(tensor),
        }
    }

    fn vector(&self, names: &[(String, usize)]) -> Result<Tensor, ModelError> {
        let values = self.values(names, 1)?;
        let len = values.len();
        self.as_purposed(Tensor::from_vec(values, len, self.device)?)
    }

    /// The named matrices one below the other, in single precision on the device.
    fn stacked(&self, names: &[(String, usize)], columns: usize) -> Result<Tensor, ModelError> {
        let values = self.values(names, columns)?;
        let rows = values.len() / columns;
        Ok(Tensor::from_vec(values, (rows, columns), self.device)?)
    }

    fn values(&self, names: &[(String, usize)], columns: usize) -> Result<Vec<f32>, ModelError> {
        let rows: usize = names.iter().map(|(_, rows)| rows).sum();
        let mut values = vec![0f32; rows * columns];
        let mut rest = values.as_mut_slice();
        for (name, rows) in names {
            let (own, after) = rest.split_at_mut(rows * columns);
            let tensor = self.rows(name, *rows, columns)?;
            own.par_chunks_mut(ROWS * columns)
                .enumerate()
                .for_each(|(portion, own)| tensor.read(portion * ROWS, own));
            tensor.release();
            rest = after;
        }
        Ok(values)
    }

    /// The named matrices in blocks: as a GGUF file holds them, else in `format`, else in two bytes a weight.
    fn block_matrix(
        &self,
        names: &[(String, usize)],
        columns: usize,
        format: Option<FourBit>,
    ) -> Result<BlockMatrix, ModelError> {
        let part = |(name, rows): &(String, usize)| -> Result<(usize, Blocks), ModelError> {
            let unusable = |error: &dyn std::fmt::Display| ModelError::DType {
                name: name.clone(),
                dtype: error.to_string(),
            };
            if let Some(tensor) = self.gguf_tensor(name, *rows, columns)?
                && !matches!(tensor.dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
            {
                let mut blocks = GgmlBlocks::new(tensor.dtype, *rows, columns).map_err(|error| unusable(&error))?;
                self.copy_rows(&tensor, name, blocks.bytes_mut());
                release(tensor.map, tensor.start, tensor.data.len());
                return Ok((*rows, Blocks::Ggml(blocks)));
            }
            let tensor = self.rows(name, *rows, columns)?;
            if format == Some(FourBit::Nf4) {
                if !columns.is_multiple_of(2) {
                    return Err(unusable(&"of an odd number of columns"));
                }
                let mut builder = Nf4Builder::default();
                tensor.in_portions(|_, values| builder.push(values));
                return Ok((*rows, Blocks::Nf4(builder.finish())));
            }
            let plain = if tensor.is_f16() {
                GgmlDType::F16
            } else {
                GgmlDType::BF16
            };
            let dtype = format.map_or(plain, |_| GgmlDType::Q4K);
            let mut blocks = GgmlBlocks::new(dtype, *rows, columns).map_err(|error| unusable(&error))?;
            tensor.in_portions(|first, values| blocks.encode(first * columns, values));
            Ok((*rows, Blocks::Ggml(blocks)))
        };
        let parts = names.iter().map(part).collect::<Result<_, _>>()?;
        Ok(BlockMatrix::stack(parts, columns))
    }

    /// A tensor's rows; a vector is one of rows of one value.
    fn rows(&self, name: &str, rows: usize, columns: usize) -> Result<Rows<'a>, ModelError> {
        let values = match &self.files.source {
            Source::Folder { shards, .. } => {
                let entry = shards.find(name)?.clone();
                check_shape(name, &entry.shape, (rows, columns))?;
                Values::Folder(shards, entry)
            }
            Source::Gguf { content, bytes } => {
                let gguf = gguf_name(name);
                let info = gguf_info(content, &gguf)?;
                check_shape(name, info.shape.dims(), (rows, columns))?;
                let tensor = content
                    .tensor(&mut Cursor::new(&bytes[..]), &gguf, &Device::Cpu)?
                    .dequantize(&Device::Cpu)?;
                Values::Read(tensor.flatten_all()?.to_vec1()?, info.ggml_dtype)
            }
        };
        Ok(Rows {
            values,
            count: rows,
            columns,
            order: self.row_order(name),
        })
    }

    /// The blocks of GGUF matrices stacked row by row, when all have one format that serving computes with.
    fn serving_blocks(
        &self,
        names: &[(String, usize)],
        columns: usize,
    ) -> Result<Option<(BlockFormat, Vec<u8>)>, ModelError> {
        let mut stacked = Vec::new();
        let mut format = None;
        for (name, rows) in names {
            let Some(tensor) = self.gguf_tensor(name, *rows, columns)? else {
                return Ok(None);
            };
            let this = match tensor.dtype {
                GgmlDType::Q4_1 => BlockFormat::Q4_1,
                GgmlDType::Q8_0 => BlockFormat::Q8_0,
                _ => return Ok(None),
            };
            if *format.get_or_insert(this) != this {
                return Ok(None);
            }
            let start = stacked.len();
            stacked.resize(start + tensor.data.len(), 0);
            self.copy_rows(&tensor, name, &mut stacked[start..]);
        }
        Ok(format.map(|format| (format, stacked)))
    }

    /// A matrix as a GGUF file holds it; `None` where the model is no such file.
    fn gguf_tensor(&self, name: &str, rows: usize, columns: usize) -> Result<Option<GgufTensor<'a>>, ModelError> {
        let Source::Gguf { content, bytes } = &self.files.source else {
            return Ok(None);
        };
        let gguf = gguf_name(name);
        let info = gguf_info(content, &gguf)?;
        check_shape(name, info.shape.dims(), (rows, columns))?;
        let dtype = info.ggml_dtype;
        let row_bytes = columns / dtype.block_size() * dtype.type_size();
        let start = (content.tensor_data_offset + info.offset) as usize;
        let data = bytes
            .get(start..start + rows * row_bytes)
            .ok_or_else(|| ModelError::Format {
                path: self.files.path.display().to_string(),
                what: "GGUF file",
                reason: format!("it ends within the tensor {gguf}"),
            })?;
        Ok(Some(GgufTensor {
            map: bytes,
            start,
            dtype,
            data,
            row_bytes,
        }))
    }

    fn copy_rows(&self, tensor: &GgufTensor<'_>, name: &str, out: &mut [u8]) {
        let GgufTensor { data, row_bytes, .. } = *tensor;
        match self.row_order(name) {
            None => out.copy_from_slice(data),
            Some(order) => {
                for (out, row) in out.chunks_exact_mut(row_bytes).zip(order) {
                    out.copy_from_slice(&data[row * row_bytes..(row + 1) * row_bytes]);
                }
            }
        }
    }

    /// Which row of the file comes next, where the file has them in another order than the decoder.
    fn row_order(&self, name: &str) -> Option<Vec<usize>> {
        let config = &self.files.config;
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        match &self.files.source {
            Source::Folder { .. } => config.grouped_rows(module),
            // llama.cpp interleaves the two halves of each head, but only in its `llama` architecture; it cuts fused matrices itself.
            Source::Gguf { content, .. } if config.naming == Naming::Llama && is_llama(content) => {
                interleaved_rows(config, module)
            }
            Source::Gguf { .. } => None,
        }
    }
}

/// A matrix within a GGUF file.
struct GgufTensor<'a> {
    map: &'a Mmap,
    start: usize,
    dtype: GgmlDType,
    data: &'a [u8],
    row_bytes: usize,
}

fn is_llama(content: &gguf_file::Content) -> bool {
    let architecture = content.metadata.get("general.architecture");
    architecture
        .and_then(|value| value.to_string().ok())
        .is_some_and(|name| name == "llama")
}

/// For queries and keys: which interleaved row comes next in the half-split rotary layout.
fn interleaved_rows(config: &DecoderConfig, module: &str) -> Option<Vec<usize>> {
    let heads = if module.ends_with("q_proj") {
        config.num_heads
    } else if module.ends_with("k_proj") {
        config.num_kv_heads
    } else {
        return None;
    };
    let (dim, half) = (config.head_dim, config.head_dim / 2);
    let row = |row: usize| row / dim * dim + row % dim % half * 2 + row % dim / half;
    Some((0..heads * dim).map(row).collect())
}

fn gguf_info<'a>(content: &'a gguf_file::Content, gguf: &str) -> Result<&'a gguf_file::TensorInfo, ModelError> {
    content
        .tensor_infos
        .get(gguf)
        .ok_or_else(|| ModelError::MissingTensor(gguf.to_owned()))
}

fn check_shape(name: &str, found: &[usize], (rows, columns): (usize, usize)) -> Result<(), ModelError> {
    if found == [rows, columns] || (columns == 1 && found == [rows]) {
        return Ok(());
    }
    Err(ModelError::Shape {
        name: name.to_owned(),
        found: found.to_vec(),
        expected: if columns == 1 { vec![rows] } else { vec![rows, columns] },
    })
}

/// The name llama.cpp gives a tensor that Hugging Face calls `name`.
fn gguf_name(name: &str) -> String {
    const NAMES: [(&str, &str); 22] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("transformer.word_embeddings", "token_embd"),
        ("transformer.ln_f", "output_norm"),
        ("transformer.h", "blk"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attention.query_key_value", "attn_qkv"),
        ("self_attention.dense", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.dense_h_to_4h", "ffn_up"),
        ("mlp.dense_4h_to_h", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("ln_attn", "attn_norm_2"),
        ("ln_mlp", "attn_norm"),
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
        for (name, gguf) in [
            ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight"),
            (
                "model.layers.0.post_attention_layernorm.weight",
                "blk.0.ffn_norm.weight",
            ),
            ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            (
                "transformer.h.3.self_attention.dense.weight",
                "blk.3.attn_output.weight",
            ),
            ("transformer.h.3.ln_attn.bias", "blk.3.attn_norm_2.bias"),
            ("transformer.h.3.input_layernorm.bias", "blk.3.attn_norm.bias"),
        ] {
            assert_eq!(gguf_name(name), gguf);
        }
    }
}
