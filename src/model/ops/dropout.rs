//! Dropout (Srivastava et al. 2014) of what goes into a low-rank update.

use candle_core::{Device, Result, Tensor};
use multiversion::multiversion;

/// Which inputs are left out. The same values always give the same mask, on any number of threads, so that the backward pass makes it
/// again instead of keeping it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of inputs that are left out; the others grow by 1 / (1 - probability).
    pub probability: f32,
    /// Decides which.
    pub seed: u64,
}

impl Dropout {
    /// The same for another use of the same seed.
    pub fn for_use(self, number: u64) -> Self {
        Self {
            seed: mix(self.seed ^ mix(number.wrapping_add(1))),
            ..self
        }
    }

    /// Applies the mask to consecutive values, of which the first is number `first`.
    pub(crate) fn apply(self, values: &mut [f32], first: usize) {
        let threshold = (f64::from(self.probability) * f64::from(u32::MAX)) as u32;
        let keep = (1.0 - self.probability).recip();
        mask(
            values,
            first as u32,
            self.seed as u32,
            (self.seed >> 32) as u32,
            threshold,
            keep,
        );
    }

    /// The mask as a tensor `[rows, columns]`.
    pub(crate) fn mask(self, rows: usize, columns: usize, device: &Device) -> Result<Tensor> {
        let mut values = vec![1f32; rows * columns];
        self.apply(&mut values, 0);
        Tensor::from_vec(values, (rows, columns), device)
    }
}

/// The finaliser of SplitMix64 (Steele et al. 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Two rounds of a 32-bit integer hash of the value's number, which vectorises.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2"))]
fn mask(values: &mut [f32], first: u32, low: u32, high: u32, threshold: u32, keep: f32) {
    for (index, value) in values.iter_mut().enumerate() {
        let mut x = first.wrapping_add(index as u32) ^ low;
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B) ^ high;
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        x ^= x >> 15;
        *value *= if x < threshold { 0.0 } else { keep };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_share_is_left_out_and_the_mean_stays() {
        let dropout = Dropout {
            probability: 0.2,
            seed: 7,
        };
        let mut values = vec![1f32; 100_000];
        dropout.apply(&mut values, 0);
        let zeros = values.iter().filter(|value| **value == 0.0).count();
        assert!((19_500..20_500).contains(&zeros), "{zeros}");
        assert!((values.iter().sum::<f32>() / 100_000.0 - 1.0).abs() < 0.01);
        let mut tail = vec![1f32; 60_000];
        dropout.apply(&mut tail, 40_000);
        assert_eq!(tail, values[40_000..]);
        let mut other = vec![1f32; 100_000];
        dropout.for_use(1).apply(&mut other, 0);
        let both = values
            .iter()
            .zip(&other)
            .filter(|(a, b)| **a == 0.0 && **b == 0.0)
            .count();
        assert!(
            (3_600..4_400).contains(&both),
            "masks of different uses are independent: {both}"
        );
    }
}
