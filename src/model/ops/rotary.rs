//! Rotary position embedding (Su et al. 2021), in the half-split layout of Hugging Face's Llama.

use candle_core::{Device, Result, Tensor};

/// Cosines and sines of every position: the pair of dimensions `(i, i + head_dim / 2)` turns by
/// `position * frequencies[i]`, where a plain model has frequencies of `theta^(-2 i / head_dim)`.
#[derive(Debug)]
pub struct RotaryTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotaryTable {
    /// A table for positions `0..positions`; one frequency for each pair of a head's dimensions.
    pub fn new(positions: usize, frequencies: &[f32]) -> Self {
        let half = frequencies.len();
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for angle in angles {
            let (s, c) = angle.sin_cos();
            cos.push(c);
            sin.push(s);
        }
        Self { half, cos, sin }
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Cosines and sines of one position, `head_dim / 2` values each.
    #[inline(always)]
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Cosines and sines of every position, times each of `factors`, one table below the other: `[factors * positions, head_dim / 2]`.
    pub(crate) fn tables(&self, factors: &[f32], device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (factors.len() * self.positions(), self.half);
        let table = |values: &[f32]| {
            let scaled = factors
                .iter()
                .flat_map(|factor| values.iter().map(move |value| value * factor));
            Tensor::from_vec(scaled.collect(), shape, device)
        };
        Ok((table(&self.cos)?, table(&self.sin)?))
    }

    /// Cosines and sines of the given positions as tensors `[positions.len(), head_dim / 2]`.
    pub(crate) fn gather(&self, positions: &[usize], device: &Device) -> Result<(Tensor, Tensor)> {
        let rows = |table: &dyn Fn(usize) -> Vec<f32>| -> Result<Tensor> {
            let values: Vec<f32> = positions.iter().flat_map(|&p| table(p)).collect();
            Tensor::from_vec(values, (positions.len(), self.half), device)
        };
        Ok((rows(&|p| self.at(p).0.to_vec())?, rows(&|p| self.at(p).1.to_vec())?))
    }
}

/// Turns one head in place.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for index in 0..cos.len() {
        let (a, b) = (low[index], high[index]);
        low[index] = a * cos[index] - b * sin[index];
        high[index] = b * cos[index] + a * sin[index];
    }
}

/// Undoes [`rotate`]: the transpose of the rotation, and so its backward pass.
#[inline(always)]
pub(crate) fn rotate_back(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for index in 0..cos.len() {
        let (a, b) = (low[index], high[index]);
        low[index] = a * cos[index] + b * sin[index];
        high[index] = b * cos[index] - a * sin[index];
    }
}
