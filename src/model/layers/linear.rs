//! Projections, with or without low-rank adapters.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::super::lora::LoraModel;
use super::super::ops;
use super::Weight;

/// The projections of a block that an adapter can update. Projections of the same input are fused into one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Queries, keys and values.
    Qkv,
    /// The output of attention.
    Output,
    /// Gate and up of the feed-forward part.
    GateUp,
    /// Down of the feed-forward part.
    Down,
}

impl Projection {
    /// All of them, in the order a block uses them.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];
}

/// Which adapters a batch runs under.
#[derive(Debug, Clone, Copy)]
pub enum Adaptation<'a> {
    /// The base model.
    Base,
    /// One adapter for every row, differentiable.
    Lora(&'a LoraModel),
    /// Adapters by spans of rows; rows outside every span run on the base.
    Mixed(&'a [LoraSpan]),
}

/// Rows of a batch that share an adapter and its strength.
#[derive(Debug, Clone)]
pub struct LoraSpan {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: Arc<LoraModel>,
    /// Factor on the adapter's own scale; 1 is the adapter as trained.
    pub strength: f32,
}

/// One projection of one block.
#[derive(Debug)]
pub struct Linear {
    weight: Arc<Weight>,
    layer: usize,
    projection: Projection,
}

impl Linear {
    /// The projection of `layer` that multiplies with `weight [out, in]`.
    pub fn new(weight: Weight, layer: usize, projection: Projection) -> Self {
        Self {
            weight: Arc::new(weight),
            layer,
            projection,
        }
    }

    /// Its matrix.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Which projection of a block it is.
    pub fn projection(&self) -> Projection {
        self.projection
    }

    /// `x [tokens, in]` to `[tokens, out]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, adaptation: Adaptation<'_>) -> Result<Tensor> {
        match adaptation {
            Adaptation::Base => ops::linear(x, &self.weight),
            Adaptation::Lora(adapter) => match adapter.group(self.layer, self.projection) {
                None => ops::linear(x, &self.weight),
                Some(group) => ops::lora_linear(x, &self.weight, &group.a, &group.b, &group.parts, adapter.scale()),
            },
            Adaptation::Mixed(spans) => {
                let updates: Vec<ops::LowRankUpdate<'_>> = spans
                    .iter()
                    .filter_map(|span| {
                        let group = span.adapter.group(self.layer, self.projection)?;
                        let scale = span.adapter.scale() * span.strength;
                        Some(ops::LowRankUpdate {
                            rows: span.rows.clone(),
                            a: &group.a,
                            b: &group.b,
                            parts: &group.parts,
                            scale,
                        })
                    })
                    .collect();
                ops::mixed_linear(x, &self.weight, &updates)
            }
        }
    }
}
