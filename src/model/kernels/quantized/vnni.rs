//! The product with AVX-512 VNNI: sixteen rows of weights in a register.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{BlockFormat, Group, Line, Out, QuantizedMatrix, TILE};

/// Computes the columns of `tiles` of a few rows: `x` has `m`, `out` is `[m, n]`.
///
/// # Safety
/// As [`QuantizedMatrix::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply_format<const NIBBLES: bool>(
    weight: &QuantizedMatrix,
    x: &[Group],
    m: usize,
    tiles: Range<usize>,
    out: Out,
) {
    let groups = weight.groups();
    for tile in tiles {
        let width = TILE.min(weight.n - tile * TILE);
        let tile = Tile::new(weight, tile, u16::MAX >> (TILE - width));
        let mut row = 0;
        while row < m {
            let x = &x[row * groups..];
            // SAFETY: a kernel of `R` rows is called with at least `R` rows left, in `x` and in `out`.
            unsafe {
                let out = Out {
                    start: out.start.add(row * out.width + tile.column),
                    width: out.width,
                };
                row += match m - row {
                    8.. => rows::<8, NIBBLES>(&tile, x, out),
                    4.. => rows::<4, NIBBLES>(&tile, x, out),
                    2.. => rows::<2, NIBBLES>(&tile, x, out),
                    _ => rows::<1, NIBBLES>(&tile, x, out),
                };
            }
        }
    }
}

/// The weights of sixteen rows.
struct Tile<'a> {
    column: usize,
    /// Columns of the result that exist.
    mask: u16,
    quants: &'a [Line],
    scales: &'a [[half::f16; TILE]],
    minima: &'a [[half::f16; TILE]],
}

impl<'a> Tile<'a> {
    fn new(weight: &'a QuantizedMatrix, tile: usize, mask: u16) -> Self {
        let groups = weight.groups();
        let lines = groups * weight.format.tile_lines();
        Self {
            column: tile * TILE,
            mask,
            quants: &weight.quants[tile * lines..][..lines],
            scales: &weight.scales[tile * groups..][..groups],
            minima: match weight.format {
                BlockFormat::Q4_1 => &weight.minima[tile * groups..][..groups],
                BlockFormat::Q8_0 => &[],
            },
        }
    }
}

/// Computes `R` rows of the result in the columns of a tile; returns `R`.
///
/// # Safety
/// `x` must hold `R` rows of groups; `out.start` must be the tile's place in a row with `R - 1` rows after it, and those
/// columns of `tile.mask` must have no other access during the call.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn rows<const R: usize, const NIBBLES: bool>(tile: &Tile, x: &[Group], out: Out) -> usize {
    let groups = tile.scales.len();
    debug_assert!(x.len() >= R * groups);
    let nibble = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); R];
    for at in 0..groups {
        // SAFETY: `at < groups`, the tile holds that many groups of 4 or 8 lines, of scales and, for nibbles, of minima;
        // `x` holds R rows of that many groups.
        unsafe {
            let group = |row: usize| x.get_unchecked(row * groups + at);
            let word = |row: usize, index: usize| {
                _mm512_set1_epi32(group(row).quants.as_ptr().cast::<i32>().add(index).read_unaligned())
            };
            let halves =
                |of: &[[half::f16; TILE]]| _mm512_cvtph_ps(_mm256_loadu_si256(of.get_unchecked(at).as_ptr().cast()));
            let lines = if NIBBLES { 4 } else { 8 };
            let quants: *const __m512i = tile.quants.as_ptr().add(at * lines).cast();
            // The next tile, in time: it comes from memory, unless the whole weight fits the second-level cache.
            for index in 0..lines {
                _mm_prefetch::<_MM_HINT_T0>(quants.wrapping_add(groups * lines + index).cast());
            }
            let mut dots = [_mm512_setzero_si512(); R];
            if NIBBLES {
                for index in 0..4 {
                    let both = _mm512_load_si512(quants.add(index));
                    let low = _mm512_and_si512(both, nibble);
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
                    for (row, dot) in dots.iter_mut().enumerate() {
                        *dot = _mm512_dpbusd_epi32(*dot, low, word(row, index));
                        *dot = _mm512_dpbusd_epi32(*dot, high, word(row, 4 + index));
                    }
                }
            } else {
                for (row, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm512_set1_epi32(group(row).offset);
                }
                for index in 0..8 {
                    let bytes = _mm512_load_si512(quants.add(index));
                    for (row, dot) in dots.iter_mut().enumerate() {
                        *dot = _mm512_dpbusd_epi32(*dot, bytes, word(row, index));
                    }
                }
            }
            let scale = halves(tile.scales);
            for (row, (sum, &dot)) in sums.iter_mut().zip(&dots).enumerate() {
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(group(row).scale));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *sum);
            }
            if NIBBLES {
                let minimum = halves(tile.minima);
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(group(row).scaled_sum), *sum);
                }
            }
        }
    }
    for (row, &sum) in sums.iter().enumerate() {
        // SAFETY: the caller vouches for these columns of R rows.
        unsafe { _mm512_mask_storeu_ps(out.start.add(row * out.width), tile.mask, sum) };
    }
    R
}
