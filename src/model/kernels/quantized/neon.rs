//! The product with NEON: four rows of weights in a register, by dot-product instructions where the core has them.

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;
use std::ops::Range;

use super::{BlockFormat, GROUP, Group, Line, Out, QuantizedMatrix, TILE};

/// Rows of weights in a register.
const QUARTER: usize = 4;
/// Most rows of activations that are multiplied at once.
const ROWS: usize = 4;

/// Computes the columns of `tiles` of a few rows: `x` has `m`, `out` is `[m, n]`. For cores with FEAT_DotProd.
///
/// # Safety
/// As [`QuantizedMatrix::multiply`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn multiply_dotprod(weight: &QuantizedMatrix, x: &[Group], m: usize, tiles: Range<usize>, out: Out) {
    // SAFETY: the caller's contract, passed on.
    unsafe { multiply::<DotProduct>(weight, x, m, tiles, out) }
}

/// The same for any core.
///
/// # Safety
/// As [`QuantizedMatrix::multiply`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply_neon(weight: &QuantizedMatrix, x: &[Group], m: usize, tiles: Range<usize>, out: Out) {
    // SAFETY: the caller's contract, passed on.
    unsafe { multiply::<Widening>(weight, x, m, tiles, out) }
}

/// Dot products of four rows of weights with a row of activations.
trait Dots: Copy {
    const ZERO: Self;

    /// Adds the products of eight columns of a group: four of its first half and four of its second. Their activations are
    /// word `WORD` of the two halves `x`.
    ///
    /// # Safety
    /// The core must have the instructions that this is made of.
    unsafe fn add<const WORD: i32>(&mut self, weights: [int8x16_t; 2], x: [int8x16_t; 2]);

    /// The dot product of each row.
    ///
    /// # Safety
    /// As [`Dots::add`].
    unsafe fn total(self) -> int32x4_t;
}

/// By `sdot`: four products of each of four rows.
#[derive(Clone, Copy)]
struct DotProduct(int32x4_t);

/// By products of twice the width: two sums of each row, of two rows in each register.
#[derive(Clone, Copy)]
struct Widening([int32x4_t; 2]);

impl Dots for DotProduct {
    const ZERO: Self = Self(ZERO);

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn add<const WORD: i32>(&mut self, weights: [int8x16_t; 2], x: [int8x16_t; 2]) {
        self.0 = sdot::<WORD>(self.0, weights[0], x[0]);
        self.0 = sdot::<WORD>(self.0, weights[1], x[1]);
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn total(self) -> int32x4_t {
        self.0
    }
}

impl Dots for Widening {
    const ZERO: Self = Self([ZERO; 2]);

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add<const WORD: i32>(&mut self, weights: [int8x16_t; 2], x: [int8x16_t; 2]) {
        let [a, b] = [word::<WORD>(x[0]), word::<WORD>(x[1])];
        // Two products of at most 128 * 127 fit i16.
        let rows = vmull_s8(vget_low_s8(weights[0]), vget_low_s8(a));
        let rows = vmlal_s8(rows, vget_low_s8(weights[1]), vget_low_s8(b));
        self.0[0] = vpadalq_s16(self.0[0], rows);
        let rows = vmlal_high_s8(vmull_high_s8(weights[0], a), weights[1], b);
        self.0[1] = vpadalq_s16(self.0[1], rows);
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn total(self) -> int32x4_t {
        vpaddq_s32(self.0[0], self.0[1])
    }
}

// SAFETY: any bits are such a vector.
const ZERO: int32x4_t = unsafe { std::mem::transmute([0i32; 4]) };

/// Adds to each sum four products: of its four weights and of the four activations in word `WORD`. The intrinsic of this
/// instruction is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const WORD: i32>(mut sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the core has the instruction, which knows nothing but these three registers.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {x:v}.4b[{word}]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            x = in(vreg) x,
            word = const WORD,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Word `WORD` in every place.
#[inline]
#[target_feature(enable = "neon")]
fn word<const WORD: i32>(x: int8x16_t) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_laneq_s32::<WORD>(vreinterpretq_s32_s8(x)))
}

// What follows is compiled into both functions above, with the instructions of each.

/// # Safety
/// As [`QuantizedMatrix::multiply`]; the core must have the instructions of `D`.
#[inline(always)]
unsafe fn multiply<D: Dots>(weight: &QuantizedMatrix, x: &[Group], m: usize, tiles: Range<usize>, out: Out) {
    // SAFETY: the caller's contract, passed on with the weight's format.
    unsafe {
        match weight.format {
            BlockFormat::Q4_1 => multiply_format::<D, true>(weight, x, m, tiles, out),
            BlockFormat::Q8_0 => multiply_format::<D, false>(weight, x, m, tiles, out),
        }
    }
}

/// As [`multiply`], for Q4_1 if `NIBBLES` and for Q8_0 otherwise.
///
/// # Safety
/// As [`multiply`]; the format must be as stated.
#[inline(always)]
unsafe fn multiply_format<D: Dots, const NIBBLES: bool>(
    weight: &QuantizedMatrix,
    x: &[Group],
    m: usize,
    tiles: Range<usize>,
    out: Out,
) {
    let groups = weight.groups();
    for tile in tiles {
        let column = tile * TILE;
        let width = TILE.min(weight.n - column);
        let mut row = 0;
        while row < m {
            let x = &x[row * groups..];
            let mut sums = [[0.0; TILE]; ROWS];
            // SAFETY: `x` has at least as many rows left; the tile is one of the weight's, of the stated format.
            let rows = unsafe {
                match m - row {
                    // Half a tile, so that the sums stay in registers.
                    4.. => {
                        rows::<D, 4, 2, NIBBLES>(weight, x, tile, 0, &mut sums);
                        rows::<D, 4, 2, NIBBLES>(weight, x, tile, 2, &mut sums)
                    }
                    2.. => rows::<D, 2, 4, NIBBLES>(weight, x, tile, 0, &mut sums),
                    _ => rows::<D, 1, 4, NIBBLES>(weight, x, tile, 0, &mut sums),
                }
            };
            for (i, sums) in sums[..rows].iter().enumerate() {
                // SAFETY: row `row + i` and columns `column..column + width` exist, and are this call's alone.
                unsafe {
                    let out = out.start.add((row + i) * out.width + column);
                    out.copy_from_nonoverlapping(sums.as_ptr(), width);
                }
            }
            row += rows;
        }
    }
}

/// Computes `R` rows of the result in the columns of `Q` quarters of a tile, from quarter `first` on; returns `R`.
///
/// # Safety
/// `x` must hold `R` rows of groups, the tile must exist and have these quarters, the format must be as stated, and the core
/// must have the instructions of `D`.
#[inline(always)]
unsafe fn rows<D: Dots, const R: usize, const Q: usize, const NIBBLES: bool>(
    weight: &QuantizedMatrix,
    x: &[Group],
    tile: usize,
    first: usize,
    out: &mut [[f32; TILE]; ROWS],
) -> usize {
    let groups = weight.groups();
    debug_assert!(x.len() >= R * groups && R <= ROWS && (first + Q) * QUARTER <= TILE);
    let lines = if NIBBLES { 4 } else { 8 };
    // SAFETY: the tile exists, so `at` is a group of the weight, with so many lines, scales and, for nibbles, minima of 16
    // rows, of which the quarters are a part; `x` holds R rows of `groups` groups, and `out` as many of 16 values.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); Q]; R];
        for group in 0..groups {
            let at = tile * groups + group;
            let x: [&Group; R] = from_fn(|row| x.get_unchecked(row * groups + group));
            let halves = x.map(|x| [0, GROUP / 2].map(|half| vld1q_s8(x.quants.as_ptr().add(half))));
            let quants = weight.quants.as_ptr().add(at * lines);
            let mut dots = [[D::ZERO; Q]; R];
            add_columns::<D, R, Q, NIBBLES, 0>(&mut dots, quants, first, halves);
            add_columns::<D, R, Q, NIBBLES, 1>(&mut dots, quants, first, halves);
            add_columns::<D, R, Q, NIBBLES, 2>(&mut dots, quants, first, halves);
            add_columns::<D, R, Q, NIBBLES, 3>(&mut dots, quants, first, halves);
            for quarter in 0..Q {
                let lane = (first + quarter) * QUARTER;
                let scale = widen(weight.scales.get_unchecked(at).as_ptr().add(lane));
                for row in 0..R {
                    let dot = vcvtq_f32_s32(dots[row][quarter].total());
                    sums[row][quarter] = vfmaq_f32(sums[row][quarter], dot, vmulq_n_f32(scale, x[row].scale));
                }
                if NIBBLES {
                    let minimum = widen(weight.minima.get_unchecked(at).as_ptr().add(lane));
                    for row in 0..R {
                        sums[row][quarter] = vfmaq_n_f32(sums[row][quarter], minimum, x[row].scaled_sum);
                    }
                }
            }
        }
        for row in 0..R {
            for quarter in 0..Q {
                vst1q_f32(
                    out[row].as_mut_ptr().add((first + quarter) * QUARTER),
                    sums[row][quarter],
                );
            }
        }
    }
    R
}

/// Adds the products of word `WORD` of both halves of a group, whose weights begin at `quants`.
///
/// # Safety
/// As [`rows`]; `quants` must point to a group of the stated format.
#[inline(always)]
unsafe fn add_columns<D: Dots, const R: usize, const Q: usize, const NIBBLES: bool, const WORD: i32>(
    dots: &mut [[D; Q]; R],
    quants: *const Line,
    first: usize,
    x: [[int8x16_t; 2]; R],
) {
    // SAFETY: a group has four lines of nibbles or eight of bytes, each of four quarters; the rest is this function's contract.
    unsafe {
        for quarter in 0..Q {
            let load = |line: i32| vld1q_u8(quants.add(line as usize).cast::<u8>().add((first + quarter) * 16));
            let weights = if NIBBLES {
                let both = load(WORD);
                [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)]
            } else {
                // Signed again: 128 had been added.
                [load(WORD), load(4 + WORD)].map(|bytes| veorq_u8(bytes, vdupq_n_u8(0x80)))
            };
            let weights = weights.map(|weights| vreinterpretq_s8_u8(weights));
            for row in 0..R {
                dots[row][quarter].add::<WORD>(weights, x[row]);
            }
        }
    }
}

/// Four f16 as f32.
///
/// # Safety
/// There must be four.
#[inline(always)]
unsafe fn widen(halves: *const half::f16) -> float32x4_t {
    // SAFETY: the caller's contract.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves.cast()))) }
}
