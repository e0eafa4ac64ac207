//! Projections, with or without low-rank adapters.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::super::lora::{LoraGroup, LoraModel};
use super::super::ops;
use super::{ByRow, Weight};

/// The projections of a block that an adapter can update. Projections of the same input are fused into one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Queries, keys and values.
    Qkv,
    /// The output of attention.
    Output,
    /// Gate and up of the feed-forward part; up alone where there is no gate.
    GateUp,
    /// Down of the feed-forward part.
    Down,
    /// The output head, which is in no block.
    Head,
}

impl Projection {
    /// Those of a block, in the order it uses them.
    pub const IN_BLOCK: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];
}

/// Which adapters a batch runs under.
#[derive(Debug, Clone, Copy)]
pub enum Adaptation<'a> {
    /// The base model.
    Base,
    /// One adapter for every row, differentiable.
    Lora(&'a LoraModel),
    /// The same with the adapter's dropout, which the seed decides.
    Training(&'a LoraModel, u64),
    /// Adapters by spans of rows; rows outside every span run on the base.
    Mixed(&'a [LoraSpan]),
    /// The same as a decoder computes it that serves on a device.
    ByRow(&'a [ByRow<'a>]),
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

impl<'a> Adaptation<'a> {
    /// What the one adapter for every row does to a projection, if there is one: its scale, its update, its dropout.
    pub(crate) fn one(
        self,
        layer: usize,
        projection: Projection,
    ) -> Option<(f32, &'a LoraGroup, Option<ops::Dropout>)> {
        let (adapter, seed) = match self {
            Self::Lora(adapter) => (adapter, None),
            Self::Training(adapter, seed) => (adapter, Some(seed)),
            Self::Base | Self::Mixed(_) | Self::ByRow(_) => return None,
        };
        let probability = adapter.config().lora_dropout as f32;
        let place = (layer * 8 + projection as usize) as u64;
        let dropout = seed
            .filter(|_| probability > 0.0)
            .map(|seed| ops::Dropout { probability, seed }.for_use(place));
        Some((adapter.scale(), adapter.group(layer, projection)?, dropout))
    }

    /// The updates of a projection by spans of rows, where there are such.
    pub(crate) fn updates(self, layer: usize, projection: Projection) -> Vec<ops::LowRankUpdate<'a>> {
        let Self::Mixed(spans) = self else {
            return Vec::new();
        };
        spans
            .iter()
            .filter_map(|span| {
                let group = span.adapter.group(layer, projection)?;
                Some(ops::LowRankUpdate {
                    rows: span.rows.clone(),
                    a: &group.a,
                    b: &group.b,
                    packed: group.packed(),
                    parts: &group.parts,
                    scale: span.adapter.scale() * span.strength,
                })
            })
            .collect()
    }
}

/// One projection of one block, or the output head.
#[derive(Debug)]
pub struct Linear {
    weight: Arc<Weight>,
    bias: Option<Tensor>,
    layer: usize,
    projection: Projection,
}

impl Linear {
    /// The projection of `layer` that multiplies with `weight [out, in]` and adds `bias [out]`.
    pub fn new(weight: Arc<Weight>, bias: Option<Tensor>, layer: usize, projection: Projection) -> Self {
        Self {
            weight,
            bias,
            layer,
            projection,
        }
    }

    /// Its matrix.
    pub fn weight(&self) -> &Arc<Weight> {
        &self.weight
    }

    /// Its bias.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
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
        let (layer, projection) = (self.layer, self.projection);
        let y = match adaptation {
            Adaptation::ByRow(adapters) => return self.on_device(x, adapters),
            Adaptation::Mixed(_) => ops::mixed_linear(x, &self.weight, &adaptation.updates(layer, projection))?,
            _ => match adaptation.one(layer, projection) {
                Some((scale, group, dropout)) => {
                    ops::lora_linear(x, &self.weight, &group.a, &group.b, &group.parts, scale, dropout)?
                }
                None => ops::linear(x, &self.weight)?,
            },
        };
        match &self.bias {
            Some(bias) => ops::add_bias(&y, bias),
            None => Ok(y),
        }
    }

    /// The same by candle.
    fn on_device(&self, x: &Tensor, adapters: &[ByRow<'_>]) -> Result<Tensor> {
        let mut y = x.matmul(&self.weight.dense()?.t()?)?;
        for adapter in adapters {
            y = adapter.add_to(y, x, self.layer, self.projection)?;
        }
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Negative log-likelihoods in nats `[targets]` when this is an output head; differentiable but for spans.
    ///
    /// # Errors
    /// When a target lies outside the batch or the vocabulary.
    pub fn cross_entropy(&self, x: &Tensor, targets: &[ops::Target], adaptation: Adaptation<'_>) -> Result<Tensor> {
        let (layer, projection) = (self.layer, self.projection);
        if let Adaptation::ByRow(_) = adaptation {
            return ops::cross_entropy_of(&self.forward(x, adaptation)?, targets);
        }
        let updates = adaptation.updates(layer, projection);
        if !updates.is_empty() {
            return ops::mixed_cross_entropy(x, &self.weight, targets, &updates);
        }
        match adaptation.one(layer, projection) {
            Some((scale, group, dropout)) => {
                ops::adapted_cross_entropy(x, &self.weight, targets, &group.a, &group.b, scale, dropout)
            }
            None => ops::cross_entropy(x, &self.weight, targets),
        }
    }
}
