//! The product in plain Rust: the definition that the fast paths are tested against.

use std::ops::Range;

use super::{BlockFormat, Group, Out, QuantizedMatrix, TILE};

/// Computes the columns of `tiles` of a few rows: `x` has `m`, `out` is `[m, n]`.
///
/// # Safety
/// As [`QuantizedMatrix::multiply`].
pub(super) unsafe fn multiply(weight: &QuantizedMatrix, x: &[Group], m: usize, tiles: Range<usize>, out: Out) {
    let groups = weight.groups();
    for tile in tiles {
        for row in 0..m {
            let x = &x[row * groups..][..groups];
            let sums = match weight.format {
                BlockFormat::Q4_1 => tile_q4_1(weight, x, tile * groups),
                BlockFormat::Q8_0 => tile_q8_0(weight, x, tile * groups),
            };
            let column = tile * TILE;
            for (lane, sum) in sums.into_iter().enumerate().take(weight.n - column) {
                // SAFETY: `row < m` and `column + lane < n`; the caller vouches for the matrix and these columns.
                unsafe { out.start.add(row * out.width + column + lane).write(sum) };
            }
        }
    }
}

fn tile_q4_1(weight: &QuantizedMatrix, x: &[Group], first: usize) -> [f32; TILE] {
    let mut sums = [0.0; TILE];
    for (at, x) in (first..).zip(x) {
        let mut dots = [0; TILE];
        for (index, line) in weight.quants[at * 4..][..4].iter().enumerate() {
            for (dot, word) in dots.iter_mut().zip(line.0) {
                for (i, byte) in word.to_le_bytes().into_iter().enumerate() {
                    *dot += i32::from(byte & 15) * i32::from(x.quants[index * 4 + i])
                        + i32::from(byte >> 4) * i32::from(x.quants[16 + index * 4 + i]);
                }
            }
        }
        for (lane, sum) in sums.iter_mut().enumerate() {
            let (scale, minimum) = (weight.scales[at][lane].to_f32(), weight.minima[at][lane].to_f32());
            *sum += dots[lane] as f32 * (scale * x.scale) + minimum * x.scaled_sum;
        }
    }
    sums
}

fn tile_q8_0(weight: &QuantizedMatrix, x: &[Group], first: usize) -> [f32; TILE] {
    let mut sums = [0.0; TILE];
    for (at, x) in (first..).zip(x) {
        let mut dots = [x.offset; TILE];
        for (line, x) in weight.quants[at * 8..][..8].iter().zip(x.quants.as_chunks::<4>().0) {
            for (dot, word) in dots.iter_mut().zip(line.0) {
                for (byte, &x) in word.to_le_bytes().into_iter().zip(x) {
                    *dot += i32::from(byte) * i32::from(x);
                }
            }
        }
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += dots[lane] as f32 * (weight.scales[at][lane].to_f32() * x.scale);
        }
    }
    sums
}
