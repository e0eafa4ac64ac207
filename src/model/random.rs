//! A decoder of random weights, to measure shapes whose weights are not at hand.

use candle_core::Tensor;

use super::build::{TensorSource, build};
use super::layers::{Embedding, Projection, Weight};
use super::{Decoder, DecoderConfig, ModelError, Placement};

/// Standard deviation of the weights.
const DEVIATION: f32 = 0.02;

impl Decoder {
    /// A decoder of this shape with normally distributed weights, made where they will be.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn random(config: DecoderConfig, placement: Placement) -> Result<Self, ModelError> {
        let mut source = RandomTensors(placement.clone());
        build(config, placement, &mut source)
    }
}

struct RandomTensors(Placement);

impl RandomTensors {
    fn matrix(&self, rows: usize, columns: usize) -> Result<Tensor, ModelError> {
        Ok(Tensor::randn(0f32, DEVIATION, (rows, columns), &self.0.device)?.to_dtype(self.0.dtype)?)
    }
}

impl TensorSource for RandomTensors {
    fn weight(&mut self, _: Projection, names: &[(String, usize)], columns: usize) -> Result<Weight, ModelError> {
        let rows = names.iter().map(|(_, rows)| rows).sum();
        Ok(Weight::Dense(self.matrix(rows, columns)?))
    }

    fn embedding(&mut self, _: &str, (rows, columns): (usize, usize)) -> Result<Embedding, ModelError> {
        Ok(Embedding::Dense(self.matrix(rows, columns)?))
    }

    fn norm(&mut self, _: &str, len: usize) -> Result<Tensor, ModelError> {
        Ok(Tensor::ones(len, self.0.dtype, &self.0.device)?)
    }

    fn bias(&mut self, names: &[(String, usize)]) -> Result<Tensor, ModelError> {
        let len: usize = names.iter().map(|(_, rows)| rows).sum();
        Ok(Tensor::zeros(len, self.0.dtype, &self.0.device)?)
    }
}
