//! The decoder: embedding, blocks, final norm and head, in two ways of running.
//!
//! [`Decoder::forward_packed`] is differentiable and sees whole sequences; [`Decoder::forward_cached`] continues cached
//! ones. Both run the same blocks and differ only in what a block attends to; a test holds them equal. A decoder that was loaded to serve on
//! a device runs them by candle's fused operations ([`Backend`]), and has the second way only.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::config::DecoderConfig;
use super::kv_cache::{self, CacheSpace, CachedSequence};
use super::layers::{Adaptation, ByRow, Embedding, Linear, Norm};
use super::ops::{self, AttentionShape, Backend, RotaryTable, Target};
use super::packing::Packing;

/// A decoder-only language model.
#[derive(Debug)]
pub struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) placement: Placement,
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    pub(super) head: Linear,
    pub(super) rotary: Arc<RotaryTable>,
    /// Whether training keeps a block's input only and computes the block again in the backward pass.
    pub(super) recomputes: bool,
}

/// Where a decoder computes, in which numbers, and by whose operations.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// The number format of activations and of weights that are not quantised.
    pub dtype: DType,
    /// The operations.
    pub backend: Backend,
}

impl Placement {
    /// Single precision and our own operations.
    pub fn own(device: Device) -> Self {
        Self {
            device,
            dtype: DType::F32,
            backend: Backend::Own,
        }
    }
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
        &self.placement.device
    }

    /// Where it runs, and how: what an adapter for it must suit.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// A place for the caches of its sequences: on the device for `tokens` tokens, on the host for any number.
    pub fn cache_space(&self, tokens: usize) -> CacheSpace {
        match self.placement.backend {
            Backend::Own => CacheSpace::on_host(&self.config),
            Backend::Candle => CacheSpace::on_device(self, tokens),
        }
    }

    /// Final hidden states `[tokens, hidden]` of a ragged batch; differentiable.
    ///
    /// # Errors
    /// When the batch and its packing disagree, or a sequence is too long.
    pub fn forward_packed(&self, tokens: &[u32], packing: &Arc<Packing>, adaptation: Adaptation<'_>) -> Result<Tensor> {
        if self.placement.backend == Backend::Candle {
            bail!("a decoder that only serves sees no packed sequences")
        }
        self.run(tokens, adaptation, |layer, qkv| {
            ops::attention(qkv, self.attention_shape(layer), packing, &self.rotary)
        })
    }

    /// Final hidden states `[tokens, hidden]` of new tokens of cached sequences, laid end to end; the caches advance.
    ///
    /// # Errors
    /// When a sequence is too long, or a space on the device has no room. The caches must then be discarded.
    pub fn forward_cached(
        &self,
        tokens: &[u32],
        sequences: &mut [CachedSequence<'_>],
        adaptation: Adaptation<'_>,
    ) -> Result<Tensor> {
        if self.placement.backend == Backend::Candle {
            let step = kv_cache::Step::new(self, tokens.len(), sequences)?;
            return self.adapted(adaptation, tokens.len(), |adaptation| {
                self.run(tokens, adaptation, |layer, qkv| {
                    step.attend(qkv, layer, self.config.window(layer))
                })
            });
        }
        let hidden = self.run(tokens, adaptation, |layer, qkv| {
            kv_cache::attend(qkv, layer, sequences, self.attention_shape(layer), &self.rotary)
        })?;
        kv_cache::advance(sequences)?;
        Ok(hidden)
    }

    /// Logits `[rows, vocabulary]` of final hidden states `[rows, hidden]`, in single precision. Spans of `adaptation` count these rows.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn logits(&self, hidden: &Tensor, adaptation: Adaptation<'_>) -> Result<Tensor> {
        match self.placement.backend {
            Backend::Own => self.head.forward(hidden, adaptation),
            Backend::Candle => self
                .adapted(adaptation, hidden.dims()[0], |adaptation| {
                    self.head.forward(hidden, adaptation)
                })?
                .to_dtype(DType::F32),
        }
    }

    /// Negative log-likelihoods in nats `[targets]` from final hidden states, under the adapters that made them; differentiable
    /// but for spans.
    ///
    /// # Errors
    /// When a target lies outside the batch or the vocabulary.
    pub fn cross_entropy(&self, hidden: &Tensor, targets: &[Target], adaptation: Adaptation<'_>) -> Result<Tensor> {
        match self.placement.backend {
            Backend::Own => self.head.cross_entropy(hidden, targets, adaptation),
            Backend::Candle => self.adapted(adaptation, hidden.dims()[0], |adaptation| {
                self.head.cross_entropy(hidden, targets, adaptation)
            }),
        }
    }

    /// Calls `run` with the adapters of `rows` rows as candle's operations take them.
    fn adapted(
        &self,
        adaptation: Adaptation<'_>,
        rows: usize,
        run: impl FnOnce(Adaptation<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Placement { device, dtype, .. } = &self.placement;
        run(Adaptation::ByRow(&ByRow::of(adaptation, rows, device, *dtype)?))
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
        let mut x = self.embedding.forward(tokens, self.device())?;
        for layer in 0..self.blocks.len() {
            x = self.block(layer, &x, adaptation, |qkv| attend(layer, qkv))?;
        }
        self.norm.forward(&x, self.config.norm_eps, self.placement.backend)
    }

    /// One block, from `[tokens, hidden]` to `[tokens, hidden]`.
    pub(super) fn block(
        &self,
        layer: usize,
        x: &Tensor,
        adaptation: Adaptation<'_>,
        attend: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (block, eps, backend) = (&self.blocks[layer], self.config.norm_eps, self.placement.backend);
        let normed = block.attention_norm.forward(x, eps, backend)?;
        let attended = attend(&block.qkv.forward(&normed, adaptation)?)?;
        let after = backend.add(x, &block.output.forward(&attended, adaptation)?)?;
        let read = if block.is_parallel { x } else { &after };
        let normed = match &block.mlp_norm {
            Some(norm) => norm.forward(read, eps, backend)?,
            None => normed,
        };
        let inner = backend.activate(self.config.activation, &block.gate_up.forward(&normed, adaptation)?)?;
        backend.add(&after, &block.down.forward(&inner, adaptation)?)
    }
}
