//! The product with AVX2: eight rows of weights in a register, half a tile at a time.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{BlockFormat, Group, Out, QuantizedMatrix, TILE};

/// Rows of weights in a register.
const HALF: usize = TILE / 2;

/// Computes the columns of `tiles` of a few rows: `x` has `m`, `out` is `[m, n]`.
///
/// # Safety
/// As [`QuantizedMatrix::multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(weight: &QuantizedMatrix, x: &[Group], m: usize, tiles: Range<usize>, out: Out) {
    // SAFETY: the caller's contract, passed on.
    unsafe {
        match weight.format {
            BlockFormat::Q4_1 => multiply_format::<true>(weight, x, m, tiles, out),
            BlockFormat::Q8_0 => multiply_format::<false>(weight, x, m, tiles, out),
        }
    }
}

/// As [`multiply`], for Q4_1 if `NIBBLES` and for Q8_0 otherwise.
///
/// # Safety
/// As [`QuantizedMatrix::multiply`]; the format must be as stated.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_format<const NIBBLES: bool>(
    weight: &QuantizedMatrix,
    x: &[Group],
    m: usize,
    tiles: Range<usize>,
    out: Out,
) {
    let groups = weight.groups();
    for tile in tiles {
        for half in 0..2 {
            let column = tile * TILE + half * HALF;
            if column >= weight.n {
                continue;
            }
            let mut row = 0;
            while row < m {
                let x = &x[row * groups..];
                let step = if m - row >= 4 { 4 } else { 1 };
                let mut sums = [[0.0; HALF]; 4];
                // SAFETY: `x` has at least `step` rows left; the format is the caller's to vouch for.
                unsafe {
                    if step == 4 {
                        rows::<4, NIBBLES>(weight, x, tile, half, &mut sums);
                    } else {
                        rows::<1, NIBBLES>(weight, x, tile, half, &mut sums);
                    }
                }
                let width = HALF.min(weight.n - column);
                for (i, sums) in sums[..step].iter().enumerate() {
                    // SAFETY: row `row + i` and columns `column..column + width` exist, and are this call's alone.
                    unsafe {
                        let out = out.start.add((row + i) * out.width + column);
                        out.copy_from_nonoverlapping(sums.as_ptr(), width);
                    }
                }
                row += step;
            }
        }
    }
}

/// Computes `R` rows of the result in the columns of half a tile.
///
/// # Safety
/// `x` must hold `R` rows of groups (`R` at most 4), the tile must exist, and the format must be as stated.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<const R: usize, const NIBBLES: bool>(
    weight: &QuantizedMatrix,
    x: &[Group],
    tile: usize,
    half: usize,
    out: &mut [[f32; HALF]; 4],
) {
    let groups = weight.groups();
    debug_assert!(x.len() >= R * groups && R <= out.len());
    let (nibble, sign) = (_mm256_set1_epi8(15), _mm256_set1_epi8(-128));
    let ones = _mm256_set1_epi16(1);
    let lines = if NIBBLES { 4 } else { 8 };
    let mut sums = [_mm256_setzero_ps(); R];
    for group in 0..groups {
        let at = tile * groups + group;
        // SAFETY: the tile exists, so `at` is a group of the weight; `x` holds R rows of `groups` groups.
        unsafe {
            let x = |row: usize| x.get_unchecked(row * groups + group);
            let word = |row: usize, index: usize| {
                _mm256_set1_epi32(x(row).quants.as_ptr().cast::<i32>().add(index).read_unaligned())
            };
            let halves = |of: &[[half::f16; TILE]]| {
                _mm256_cvtph_ps(_mm_loadu_si128(of.get_unchecked(at).as_ptr().add(half * HALF).cast()))
            };
            let quants: *const __m256i = weight.quants.as_ptr().add(at * lines).cast();
            let mut dots = [_mm256_setzero_si256(); R];
            for index in 0..lines {
                let bytes = _mm256_load_si256(quants.add(index * 2 + half));
                if NIBBLES {
                    // Eight sums of two products of at most 15 * 127 fit i16: they are widened only at the end.
                    let low = _mm256_and_si256(bytes, nibble);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
                    for (row, dot) in dots.iter_mut().enumerate() {
                        let low = _mm256_maddubs_epi16(low, word(row, index));
                        let high = _mm256_maddubs_epi16(high, word(row, 4 + index));
                        *dot = _mm256_add_epi16(*dot, _mm256_add_epi16(low, high));
                    }
                } else {
                    // The instruction wants one unsigned operand: the weight gives its sign to the activation. Two
                    // products of at most 128 * 127 still fit i16.
                    let signed = _mm256_xor_si256(bytes, sign);
                    let magnitude = _mm256_abs_epi8(signed);
                    for (row, dot) in dots.iter_mut().enumerate() {
                        let products = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(word(row, index), signed));
                        *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(products, ones));
                    }
                }
            }
            let scale = halves(&weight.scales);
            for (row, (sum, &dot)) in sums.iter_mut().zip(&dots).enumerate() {
                let dot = if NIBBLES { _mm256_madd_epi16(dot, ones) } else { dot };
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x(row).scale));
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, *sum);
            }
            if NIBBLES {
                let minimum = halves(&weight.minima);
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(minimum, _mm256_set1_ps(x(row).scaled_sum), *sum);
                }
            }
        }
    }
    for (out, &sum) in out.iter_mut().zip(&sums) {
        // SAFETY: `out` holds eight values.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
}
