//! From named tensors to a decoder: which tensors there are, of what shape, and which of them are fused.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::ModelError;
use super::config::DecoderConfig;
use super::decoder::{Block, Decoder};
use super::layers::{Embedding, Linear, Projection, Weight};
use super::lora::{in_size, projection_parts};
use super::ops::RotaryTable;

/// Name of the token embedding.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output head, where it is not the embedding.
pub(super) const HEAD: &str = "lm_head.weight";
/// Name of the last norm.
pub(super) const NORM: &str = "model.norm.weight";
/// Name within a block of the norm before attention.
pub(super) const ATTENTION_NORM: &str = "input_layernorm";
/// Name within a block of the norm before the feed-forward part.
pub(super) const MLP_NORM: &str = "post_attention_layernorm";

/// Name of a module's weight within a block.
pub(super) fn block_tensor(layer: usize, module: &str) -> String {
    format!("model.layers.{layer}.{module}.weight")
}

/// Where a decoder's tensors come from, under the names that Hugging Face gives them.
pub(super) trait TensorSource {
    /// One matrix, stacked from the named ones `(name, rows)` of `columns` values each.
    fn weight(&mut self, names: &[(&str, usize)], columns: usize) -> Result<Weight, ModelError>;

    /// The token embedding of a model whose output head is another matrix.
    fn embedding(&mut self, name: &str, shape: (usize, usize)) -> Result<Tensor, ModelError>;

    /// The weight of a norm.
    fn norm(&mut self, name: &str, len: usize) -> Result<Tensor, ModelError>;
}

/// Builds the decoder that `config` describes.
///
/// # Errors
/// As the source says.
pub(super) fn build(
    config: DecoderConfig,
    device: &Device,
    source: &mut impl TensorSource,
) -> Result<Decoder, ModelError> {
    let head_name = if config.tie_word_embeddings { EMBEDDING } else { HEAD };
    let head = Arc::new(source.weight(&[(head_name, config.vocab_size)], config.hidden_size)?);
    let embedding = match &*head {
        Weight::Quantized(_) if config.tie_word_embeddings => Embedding::Tied(head.clone()),
        Weight::Dense(table) if config.tie_word_embeddings => Embedding::Dense(table.clone()),
        _ => Embedding::Dense(source.embedding(EMBEDDING, (config.vocab_size, config.hidden_size))?),
    };
    let blocks = (0..config.num_layers)
        .map(|layer| block(layer, &config, source))
        .collect::<Result<_, _>>()?;
    let norm = source.norm(NORM, config.hidden_size)?;
    let rotary = RotaryTable::new(config.max_positions, config.head_dim, config.rope_theta);
    Ok(Decoder {
        device: device.clone(),
        embedding,
        blocks,
        norm,
        head,
        rotary: Arc::new(rotary),
        config,
    })
}

fn block(layer: usize, config: &DecoderConfig, source: &mut impl TensorSource) -> Result<Block, ModelError> {
    let mut linear = |projection: Projection| -> Result<Linear, ModelError> {
        let parts = projection_parts(projection, config);
        let names: Vec<String> = parts.iter().map(|part| block_tensor(layer, part.module)).collect();
        let stacked: Vec<(&str, usize)> = names
            .iter()
            .zip(&parts)
            .map(|(name, part)| (name.as_str(), part.rows.len()))
            .collect();
        let weight = source.weight(&stacked, in_size(projection, config))?;
        Ok(Linear::new(weight, layer, projection))
    };
    let (qkv, output) = (linear(Projection::Qkv)?, linear(Projection::Output)?);
    let (gate_up, down) = (linear(Projection::GateUp)?, linear(Projection::Down)?);
    let mut norm = |name: &str| source.norm(&block_tensor(layer, name), config.hidden_size);
    Ok(Block {
        attention_norm: norm(ATTENTION_NORM)?,
        qkv,
        output,
        mlp_norm: norm(MLP_NORM)?,
        gate_up,
        down,
    })
}

/// Whether the named matrix's products are added to the residual stream.
pub(super) fn writes_to_residual(name: &str) -> bool {
    ["o_proj.weight", "down_proj.weight"]
        .iter()
        .any(|module| name.ends_with(module))
}
