//! The decoder: embedding, blocks, final norm and head, in two ways of running.
//!
//! [`Decoder::forward_packed`] is differentiable and sees whole sequences; [`Decoder::forward_cached`] continues cached
//! ones. Both run the same blocks and differ only in what a block attends to; a test holds them equal.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::config::DecoderConfig;
use super::kv_cache::{self, CachedSequence};
use super::layers::{Adaptation, Embedding, Linear, Norm, activate};
use super::ops::{self, AttentionShape, RotaryTable, Target};
use super::packing::Packing;

/// A decoder-only language model.
#[derive(Debug)]
pub struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) device: Device,
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    pub(super) head: Linear,
    pub(super) rotary: Arc<RotaryTable>,
    /// Whether training keeps a block's input only and computes the block again in the backward pass.
    pub(super) recomputes: bool,
}

/// One pre-norm block.
#[derive(Debug)]
pub(super) struct Block {
    pub attention_norm: Norm,
    /// Where the feed-forward part has a norm of its own.
    pub mlp_norm: Option<Norm>,
    /// Whether attention and feed-forward part read the same input, one beside the other.
    pub is_parallel: bool,
    pub qkv: Linear,
    pub output: Linear,
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
        self.run(tokens, adaptation, |layer, qkv| {
            ops::attention(qkv, self.attention_shape(layer), packing, &self.rotary)
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
        let hidden = self.run(tokens, adaptation, |layer, qkv| {
            kv_cache::attend(qkv, layer, sequences, self.attention_shape(layer), &self.rotary)
        })?;
        kv_cache::advance(sequences);
        Ok(hidden)
    }

    /// Logits `[rows, vocabulary]` of final hidden states `[rows, hidden]`. Spans of `adaptation` count these rows.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn logits(&self, hidden: &Tensor, adaptation: Adaptation<'_>) -> Result<Tensor> {
        self.head.forward(hidden, adaptation)
    }

    /// Negative log-likelihoods in nats `[targets]` from final hidden states, under the adapters that made them; differentiable
    /// but for spans.
    ///
    /// # Errors
    /// When a target lies outside the batch or the vocabulary.
    pub fn cross_entropy(&self, hidden: &Tensor, targets: &[Target], adaptation: Adaptation<'_>) -> Result<Tensor> {
        self.head.cross_entropy(hidden, targets, adaptation)
    }

    pub(super) fn attention_shape(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            num_heads: self.config.num_heads,
            num_kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
            window: self.config.window(layer),
        }
    }

    fn run(
        &self,
        tokens: &[u32],
        adaptation: Adaptation<'_>,
        mut attend: impl FnMut(usize, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x = self.embedding.forward(tokens, &self.device)?;
        for layer in 0..self.blocks.len() {
            x = self.block(layer, &x, adaptation, |qkv| attend(layer, qkv))?;
        }
        self.norm.forward(&x, self.config.norm_eps)
    }

    /// One block, from `[tokens, hidden]` to `[tokens, hidden]`.
    pub(super) fn block(
        &self,
        layer: usize,
        x: &Tensor,
        adaptation: Adaptation<'_>,
        attend: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (block, eps) = (&self.blocks[layer], self.config.norm_eps);
        let normed = block.attention_norm.forward(x, eps)?;
        let attended = attend(&block.qkv.forward(&normed, adaptation)?)?;
        let after = ops::add(x, &block.output.forward(&attended, adaptation)?)?;
        let read = if block.is_parallel { x } else { &after };
        let normed = match &block.mlp_norm {
            Some(norm) => norm.forward(read, eps)?,
            None => normed,
        };
        let inner = activate(self.config.activation, &block.gate_up.forward(&normed, adaptation)?)?;
        ops::add(&after, &block.down.forward(&inner, adaptation)?)
    }
}
