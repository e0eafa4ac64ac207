//! NF4 with double quantisation (Dettmers et al. 2023, QLoRA), bit for bit as bitsandbytes stores it: 4.127 bits a weight.
//!
//! Each 64 consecutive weights are divided by the largest of their absolute values and become the nearest of 16 levels, quantiles of the
//! normal distribution. Of the divisors the mean is taken off; each 256 of what remains are divided by their largest absolute value and
//! become the nearest of 256 levels, whose steps shrink by decades towards zero.

use std::sync::LazyLock;

/// Weights that share a divisor.
pub const BLOCK: usize = 64;
/// Divisors that share a divisor.
const NESTED: usize = 256;

/// The sixteen levels.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Both levels of a byte; the first weight lies in its high half.
static PAIRS: LazyLock<[[f32; 2]; 256]> =
    LazyLock::new(|| std::array::from_fn(|byte| [LEVELS[byte >> 4], LEVELS[byte & 15]]));

/// The 256 levels of the divisors, ascending: in each of seven decades below 1 twice as many as in the one before.
static NESTED_LEVELS: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut levels = vec![0.0, 1.0];
    for decade in 0..7u32 {
        let count = 1usize << decade;
        let scale = 10f64.powi(decade as i32 - 6);
        let edge = |index: usize| 0.1 + 0.9 * index as f64 / count as f64;
        for index in 0..count {
            let middle = (scale * f64::midpoint(edge(index), edge(index + 1))) as f32;
            levels.extend([middle, -middle]);
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
});

/// Quantised weights, in their order.
#[derive(Debug)]
pub struct Nf4 {
    /// Two weights a byte.
    codes: Vec<u8>,
    /// By block, numbers of levels.
    divisors: Vec<u8>,
    /// By 256 blocks.
    nested: Vec<f32>,
    /// Mean of the divisors.
    mean: f32,
}

/// Takes weights in portions, so that they need not be held all at once.
#[derive(Debug, Default)]
pub struct Nf4Builder {
    codes: Vec<u8>,
    divisors: Vec<f32>,
}

impl Nf4Builder {
    /// Quantises the next weights. Every portion but the last holds whole blocks.
    pub fn push(&mut self, weights: &[f32]) {
        for block in weights.chunks(BLOCK) {
            let largest = block.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
            let inverse = if largest > 0.0 { largest.recip() } else { 0.0 };
            self.divisors.push(largest);
            self.codes.extend(block.chunks(2).map(|pair| {
                let code = |weight: Option<&f32>| weight.map_or(7, |weight| nearest(&LEVELS, weight * inverse));
                (code(pair.first()) << 4) | code(pair.get(1))
            }));
        }
    }

    /// Quantises the divisors.
    pub fn finish(self) -> Nf4 {
        let sum: f64 = self.divisors.iter().map(|&divisor| f64::from(divisor)).sum();
        let mean = (sum / self.divisors.len().max(1) as f64) as f32;
        let (mut divisors, mut nested) = (Vec::with_capacity(self.divisors.len()), Vec::new());
        for block in self.divisors.chunks(NESTED) {
            let largest = block
                .iter()
                .fold(0f32, |largest, divisor| largest.max((divisor - mean).abs()));
            let inverse = if largest > 0.0 { largest.recip() } else { 0.0 };
            nested.push(largest);
            divisors.extend(
                block
                    .iter()
                    .map(|divisor| nearest(&NESTED_LEVELS, (divisor - mean) * inverse)),
            );
        }
        let mut codes = self.codes;
        codes.shrink_to_fit();
        Nf4 {
            codes,
            divisors,
            nested,
            mean,
        }
    }
}

impl Nf4 {
    /// Writes the weights from number `first` on, which is even.
    pub fn decode(&self, first: usize, out: &mut [f32]) {
        let mut at = first;
        let mut rest = out;
        while !rest.is_empty() {
            let block = at / BLOCK;
            let (part, after) = rest.split_at_mut(rest.len().min((block + 1) * BLOCK - at));
            let divisor = NESTED_LEVELS[usize::from(self.divisors[block])] * self.nested[block / NESTED] + self.mean;
            let codes = &self.codes[at / 2..(at + part.len()).div_ceil(2)];
            at += part.len();
            for (pair, code) in part.chunks_mut(2).zip(codes) {
                for (out, level) in pair.iter_mut().zip(PAIRS[usize::from(*code)]) {
                    *out = level * divisor;
                }
            }
            rest = after;
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.divisors.len() + size_of_val(self.nested.as_slice())
    }
}

/// The number of the level nearest to `value`; levels ascend.
fn nearest(levels: &[f32], value: f32) -> u8 {
    let after = levels.partition_point(|level| *level < value).min(levels.len() - 1);
    let before = after.saturating_sub(1);
    let index = if value - levels[before] < levels[after] - value {
        before
    } else {
        after
    };
    index as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_come_back_within_half_a_step() {
        let weights: Vec<f32> = (0..70 * 96)
            .map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0)
            .collect();
        let mut builder = Nf4Builder::default();
        weights.chunks(64 * 30).for_each(|portion| builder.push(portion));
        let quantised = builder.finish();
        let mut whole = vec![0f32; weights.len()];
        quantised.decode(0, &mut whole);
        // The widest step is that between the two lowest levels, 0.304.
        let worst = weights
            .iter()
            .zip(&whole)
            .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 0.155, "{worst}");
        let mut part = vec![0f32; 130];
        quantised.decode(94, &mut part);
        assert_eq!(part, whole[94..224]);
    }

    #[test]
    fn there_are_256_nested_levels() {
        assert_eq!(NESTED_LEVELS.len(), 256);
        assert_eq!(
            (NESTED_LEVELS[0], NESTED_LEVELS[127], NESTED_LEVELS[255]),
            (-0.992_968_74, 0.0, 1.0)
        );
    }
}
