//! From named tensors to a decoder: which tensors there are, of what shape, and which of them are fused.

use std::sync::Arc;

use candle_core::Tensor;

use super::ModelError;
use super::config::{BlockKind, DecoderConfig, NormKind};
use super::decoder::{Block, Decoder, Placement};
use super::layers::{Embedding, Linear, Norm, Projection, Weight};
use super::layout::HEAD;
use super::ops::RotaryTable;

/// Where a decoder's tensors come from, under the names that Hugging Face gives them.
pub(super) trait TensorSource {
    /// One matrix, stacked from the named ones `(name, rows)` of `columns` values each.
    fn weight(
        &mut self,
        projection: Projection,
        names: &[(String, usize)],
        columns: usize,
    ) -> Result<Weight, ModelError>;

    /// The token embedding of a model whose output head is another matrix.
    fn embedding(&mut self, name: &str, shape: (usize, usize)) -> Result<Embedding, ModelError>;

    /// The weight of a norm.
    fn norm(&mut self, name: &str, len: usize) -> Result<Tensor, ModelError>;

    /// One bias, of a norm or stacked from those of projections.
    fn bias(&mut self, names: &[(String, usize)]) -> Result<Tensor, ModelError>;

    /// What rotary frequencies are divided by beyond what the configuration says.
    fn rotary_divisors(&mut self, _len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        Ok(None)
    }
}

/// Builds the decoder that `config` describes.
///
/// # Errors
/// As the source says.
pub(super) fn build(
    config: DecoderConfig,
    placement: Placement,
    source: &mut impl TensorSource,
) -> Result<Decoder, ModelError> {
    let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
    let embedding_name = format!("{}.weight", config.naming.embedding());
    let head_name = if config.tie_word_embeddings {
        embedding_name.clone()
    } else {
        format!("{HEAD}.weight")
    };
    let head = Arc::new(source.weight(Projection::Head, &[(head_name, vocabulary)], hidden)?);
    let embedding = match &*head {
        Weight::Quantized(_) | Weight::Blocks(_) if config.tie_word_embeddings => Embedding::Blocks(head.clone()),
        Weight::Dense(table) if config.tie_word_embeddings => Embedding::Dense(table.clone()),
        _ => source.embedding(&embedding_name, (vocabulary, hidden))?,
    };
    let blocks = (0..config.num_layers)
        .map(|layer| block(layer, &config, source))
        .collect::<Result<_, _>>()?;
    let norm = norm(config.naming.last_norm(), &config, source)?;
    let mut frequencies = config.rope_scaling.frequencies(config.rope_theta, config.head_dim);
    if let Some(divisors) = source.rotary_divisors(frequencies.len())? {
        frequencies
            .iter_mut()
            .zip(divisors)
            .for_each(|(frequency, divisor)| *frequency /= divisor);
    }
    let rotary = RotaryTable::new(config.max_positions, &frequencies);
    Ok(Decoder {
        placement,
        embedding,
        blocks,
        norm,
        head: Linear::new(head, None, config.num_layers, Projection::Head),
        rotary: Arc::new(rotary),
        recomputes: false,
        config,
    })
}

fn block(layer: usize, config: &DecoderConfig, source: &mut impl TensorSource) -> Result<Block, ModelError> {
    let (attention_norm, mlp_norm) = config.norm_names();
    let named = |name: &str| config.naming.in_block(layer, name);
    Ok(Block {
        attention_norm: norm(&named(attention_norm), config, source)?,
        mlp_norm: mlp_norm.map(|name| norm(&named(name), config, source)).transpose()?,
        is_parallel: config.blocks != BlockKind::Sequential,
        qkv: linear(layer, Projection::Qkv, config, source)?,
        output: linear(layer, Projection::Output, config, source)?,
        gate_up: linear(layer, Projection::GateUp, config, source)?,
        down: linear(layer, Projection::Down, config, source)?,
    })
}

fn linear(
    layer: usize,
    projection: Projection,
    config: &DecoderConfig,
    source: &mut impl TensorSource,
) -> Result<Linear, ModelError> {
    let parts = config.parts(projection);
    let named = |tensor: &str| -> Vec<(String, usize)> {
        let name = |module| format!("{}.{tensor}", config.module_name(layer, projection, module));
        parts.iter().map(|part| (name(part.module), part.rows.len())).collect()
    };
    let weight = source.weight(projection, &named("weight"), config.in_size(projection))?;
    let bias = match config.has_bias(projection) {
        true => Some(source.bias(&named("bias"))?),
        false => None,
    };
    Ok(Linear::new(weight.into(), bias, layer, projection))
}

fn norm(name: &str, config: &DecoderConfig, source: &mut impl TensorSource) -> Result<Norm, ModelError> {
    let weight = source.norm(&format!("{name}.weight"), config.hidden_size)?;
    Ok(match config.norm {
        NormKind::Rms => Norm::Rms { weight },
        NormKind::Layer => Norm::Layer {
            weight,
            bias: source.bias(&[(format!("{name}.bias"), config.hidden_size)])?,
        },
    })
}
