//! A training step's way through the decoder and back, with activations kept or computed again.
//!
//! A graph keeps what every operation of every block read: `10 hidden + 3 intermediate` numbers a token and block of a Llama. Where only
//! the blocks' inputs are kept (Chen et al. 2016), the backward pass goes block by block from the last, computes the block again with a
//! graph of its own, and hands the gradient of its input on. Dropout is a matter of the seed, so that the second time is as the first.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};

use super::Decoder;
use super::layers::{Adaptation, Projection};
use super::lora::LoraModel;
use super::ops;
use super::packing::Packing;

/// Final hidden states, and the way back from them.
pub struct TrainingPass<'a> {
    hidden: Tensor,
    recomputed: Option<Recomputed<'a>>,
}

/// What is kept where activations are computed again.
struct Recomputed<'a> {
    decoder: &'a Decoder,
    adaptation: Adaptation<'a>,
    adapter: &'a LoraModel,
    packing: Arc<Packing>,
    /// Input of every block.
    inputs: Vec<Tensor>,
    /// Output of the last one.
    last: Var,
}

impl Decoder {
    /// The same decoder, which computes activations again in training rather than keep them.
    #[must_use]
    pub fn recomputing(self, recomputes: bool) -> Self {
        Self { recomputes, ..self }
    }

    /// A ragged batch through the blocks, to be followed by [`TrainingPass::backward`].
    ///
    /// # Errors
    /// When the batch and its packing disagree, or a sequence is too long.
    pub fn training_pass<'a>(
        &'a self,
        tokens: &[u32],
        packing: &Arc<Packing>,
        adaptation: Adaptation<'a>,
    ) -> Result<TrainingPass<'a>> {
        let adapter = match adaptation {
            Adaptation::Lora(adapter) | Adaptation::Training(adapter, _) if self.recomputes => adapter,
            _ => {
                return Ok(TrainingPass {
                    hidden: self.forward_packed(tokens, packing, adaptation)?,
                    recomputed: None,
                });
            }
        };
        let mut x = self.embedding.forward(tokens, self.device())?;
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for layer in 0..self.blocks.len() {
            let next = self.packed_block(layer, &x, packing, adaptation)?.detach();
            inputs.push(std::mem::replace(&mut x, next));
        }
        let last = Var::from_tensor(&x)?;
        Ok(TrainingPass {
            hidden: self.norm.forward(&last, self.config.norm_eps, self.placement.backend)?,
            recomputed: Some(Recomputed {
                decoder: self,
                adaptation,
                adapter,
                packing: packing.clone(),
                inputs,
                last,
            }),
        })
    }

    fn packed_block(
        &self,
        layer: usize,
        x: &Tensor,
        packing: &Arc<Packing>,
        adaptation: Adaptation<'_>,
    ) -> Result<Tensor> {
        self.block(layer, x, adaptation, |qkv| {
            ops::attention(qkv, self.attention_shape(layer), packing, &self.rotary)
        })
    }
}

impl TrainingPass<'_> {
    /// Final hidden states `[tokens, hidden]`; differentiable.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Gradients of a scalar that was computed from the hidden states, for everything that is trained.
    ///
    /// # Errors
    /// When an operation has no backward pass.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        let mut store = loss.backward()?;
        let Some(kept) = self.recomputed else {
            return Ok(store);
        };
        drop(self.hidden);
        let Some(mut gradient) = store.remove(&kept.last) else {
            bail!("the loss does not depend on the hidden states")
        };
        for (layer, input) in kept.inputs.into_iter().enumerate().rev() {
            let input = Var::from_tensor(&input)?;
            let output = kept
                .decoder
                .packed_block(layer, &input, &kept.packing, kept.adaptation)?;
            let mut own = (output * gradient)?.sum_all()?.backward()?;
            for group in Projection::IN_BLOCK
                .into_iter()
                .filter_map(|projection| kept.adapter.group(layer, projection))
            {
                for tensor in [&group.a, &group.b] {
                    if let Some(gradient) = own.remove(tensor) {
                        store.insert(tensor, gradient);
                    }
                }
            }
            gradient = match own.remove(&input) {
                Some(gradient) => gradient,
                None => bail!("no gradient reaches block {layer}"),
            };
        }
        Ok(store)
    }
}
