//! The decoder: embedding, blocks, final norm and head, in two ways of running.
//!
//! [`Decoder::forward_packed`] is differentiable and sees whole sequences; [`Decoder::forward_cached`] continues cached
//! ones. Both run the same blocks and differ only in what a block attends to; a test holds them equal.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::config::DecoderConfig;
use super::kv_cache::{self, CachedSequence};
use super::layers::{Adaptation, Embedding, Linear, Weight};
use super::ops::{self, AttentionShape, RotaryTable, Target};
use super::packing::Packing;

/// A decoder-only language model.
#[derive(Debug)]
pub struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) device: Device,
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Tensor,
    pub(super) head: Arc<Weight>,
    pub(super) rotary: Arc<RotaryTable>,
}

/// One pre-norm block.
#[derive(Debug)]
pub(super) struct Block {
    pub attention_norm: Tensor,
    pub qkv: Linear,
    pub output: Linear,
    pub mlp_norm: Tensor,
    pub gate_up: Linear,
    pub down: Linear,
}

impl Decoder {
    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Final hidden states `[tokens, hidden]` of a ragged batch; differentiable.
    ///
    /// # Errors
    /// When the batch and its packing disagree, or a sequence is too long.
    pub fn forward_packed(&self, tokens: &[u32], packing: &Arc<Packing>, adaptation: Adaptation<'_>) -> Result<Tensor> {
        let shape = self.attention_shape();
        self.run(tokens, adaptation, |_, qkv| {
            ops::attention(qkv, shape, packing, &self.rotary)
        })
    }

    /// Final hidden states `[tokens, hidden]` of new tokens of cached sequences, laid end to end; the caches advance.
    ///
    /// # Errors
    /// When a sequence is too long. The caches must then be discarded.
    pub fn forward_cached(
        &self,
        tokens: &[u32],
        sequences: &mut [CachedSequence<'_>],
        adaptation: Adaptation<'_>,
    ) -> Result<Tensor> {
        let shape = self.attention_shape();
        let hidden = self.run(tokens, adaptation, |layer, qkv| {
            kv_cache::attend(qkv, layer, sequences, shape, &self.rotary)
        })?;
        kv_cache::advance(sequences);
        Ok(hidden)
    }

    /// Logits `[rows, vocabulary]` of final hidden states `[rows, hidden]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        ops::linear(hidden, &self.head)
    }

    /// Negative log-likelihoods in nats `[targets]` from final hidden states; differentiable.
    ///
    /// # Errors
    /// When a target lies outside the batch or the vocabulary.
    pub fn cross_entropy(&self, hidden: &Tensor, targets: &[Target]) -> Result<Tensor> {
        ops::cross_entropy(hidden, &self.head, targets)
    }

    fn attention_shape(&self) -> AttentionShape {
        AttentionShape {
            num_heads: self.config.num_heads,
            num_kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
        }
    }

    fn run(
        &self,
        tokens: &[u32],
        adaptation: Adaptation<'_>,
        mut attend: impl FnMut(usize, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let eps = self.config.rms_norm_eps;
        let mut x = self.embedding.forward(tokens, &self.device)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let normed = ops::rms_norm(&x, &block.attention_norm, eps)?;
            let attended = attend(layer, &block.qkv.forward(&normed, adaptation)?)?;
            x = ops::add(&x, &block.output.forward(&attended, adaptation)?)?;
            let normed = ops::rms_norm(&x, &block.mlp_norm, eps)?;
            let gated = ops::swiglu(&block.gate_up.forward(&normed, adaptation)?)?;
            x = ops::add(&x, &block.down.forward(&gated, adaptation)?)?;
        }
        ops::rms_norm(&x, &self.norm, eps)
    }
}
