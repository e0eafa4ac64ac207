//! The norms of a decoder.

use candle_core::{Result, Tensor};

use super::super::ops::Backend;

/// A norm over the last axis.
#[derive(Debug)]
pub enum Norm {
    /// By the root mean square.
    Rms {
        /// `[hidden]`.
        weight: Tensor,
    },
    /// By mean and deviation.
    Layer {
        /// `[hidden]`.
        weight: Tensor,
        /// `[hidden]`.
        bias: Tensor,
    },
}

impl Norm {
    /// `x [tokens, hidden]`, normalised.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, eps: f64, backend: Backend) -> Result<Tensor> {
        match self {
            Self::Rms { weight } => backend.rms_norm(x, weight, eps),
            Self::Layer { weight, bias } => backend.layer_norm(x, weight, bias, eps),
        }
    }

    /// Its tensors, with the last component of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let (weight, bias) = match self {
            Self::Rms { weight } => (weight, None),
            Self::Layer { weight, bias } => (weight, Some(bias)),
        };
        [("weight", weight)].into_iter().chain(bias.map(|bias| ("bias", bias)))
    }
}
