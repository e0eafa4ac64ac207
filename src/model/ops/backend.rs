//! Whose operations a decoder is made of: this room's, or candle's fused ones.
//!
//! candle's cut the gradient without an error; they are named here and nowhere else.
#![expect(
    clippy::disallowed_methods,
    reason = "fused kernels without a backward pass, for a decoder that only serves"
)]

use candle_core::{D, DType, Result, Tensor};

use super::super::config::ActivationKind;

/// Whose operations a decoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// This room's: single precision, differentiable, on the CPU fused loops of our own.
    Own,
    /// candle's fused kernels: any device and number format, forward only.
    Candle,
}

impl Backend {
    /// See [`super::rms_norm`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn rms_norm(self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        match self {
            Self::Own => super::rms_norm(x, weight, eps),
            Self::Candle => candle_nn::ops::rms_norm(x, weight, eps as f32),
        }
    }

    /// See [`super::layer_norm`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn layer_norm(self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        match self {
            Self::Own => super::layer_norm(x, weight, bias, eps),
            Self::Candle => candle_nn::ops::layer_norm(x, weight, bias, eps as f32),
        }
    }

    /// See [`super::swiglu`] and [`super::gelu`].
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn activate(self, kind: ActivationKind, x: &Tensor) -> Result<Tensor> {
        match (self, kind) {
            (Self::Own, ActivationKind::SwiGlu) => super::swiglu(x),
            (Self::Own, ActivationKind::Gelu) => super::gelu(x),
            (Self::Candle, ActivationKind::SwiGlu) => {
                let halves = x.chunk(2, D::Minus1)?;
                halves[0].silu()? * &halves[1]
            }
            (Self::Candle, ActivationKind::Gelu) => x.gelu_erf(),
        }
    }

    /// See [`super::add`].
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn add(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own => super::add(a, b),
            Self::Candle => a + b,
        }
    }
}

/// Turns each row of `x [rows, head_dim]` by its own row of `cos` and `sin [rows, head_dim / 2]`; by candle.
pub(crate) fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (rows, dim) = x.dims2()?;
    candle_nn::rotary_emb::rope(&x.reshape((1, 1, rows, dim))?, cos, sin)?.reshape((rows, dim))
}

/// The softmax of `scores + mask` over the last axis, in single precision and back; by candle.
pub(crate) fn masked_softmax(scores: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let precise = scores.to_dtype(DType::F32)?;
    let precise = match mask {
        Some(mask) => (precise + mask)?,
        None => precise,
    };
    candle_nn::ops::softmax_last_dim(&precise)?.to_dtype(scores.dtype())
}
