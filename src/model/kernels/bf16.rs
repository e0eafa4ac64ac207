//! Products with frozen weights held as bf16, accumulated in f32 (`vdpbf16ps`).
//!
//! The weight is packed once into panels of 32 columns, cut along `k` into blocks whose panel stays in the
//! first-level cache. The activations are rounded to bf16 once a call, row by row, into the same `k` blocks: a row of
//! a block has a fixed stride, so that the micro-kernel reaches all its rows from one pointer.

use std::cell::RefCell;

use half::bf16;
use rayon::prelude::*;

use super::memory::Line;

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

/// Columns of a weight panel: two 512-bit accumulators.
const NR: usize = 32;
/// Rows of the micro-kernel: 12 x 2 accumulators, two weight registers and one broadcast fit the 32 registers.
const MR: usize = 12;
/// Most values of `k` in a block: a weight panel is then 24 KiB, half of a 48 KiB first-level cache.
const KC: usize = 384;
/// Lines from one row of packed activations to the next: a block and one line more, so that rows do not share cache sets.
const ROW_LINES: usize = KC / 32 + 1;
/// Most rows of a task: its activations (one `k` block) stay in the second-level cache.
const TASK_ROWS: usize = 24 * MR;
/// Most panels of a task: its part of the result stays in the second-level cache between `k` blocks.
const TASK_PANELS: usize = 8;

thread_local! {
    /// Packed activations of the last call on this thread, kept because faulting fresh pages in costs as much as packing.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A weight `W [n, k]` packed as bf16 for `y [m, n] = x [m, k] · Wᵀ` with f32 accumulation.
///
/// Build one with [`PackedBf16::pack`] for the forward product and one with [`PackedBf16::pack_transposed`] for the
/// gradient with respect to the input. Both operands are rounded to nearest even; subnormal values count as zero.
#[derive(Debug)]
pub struct PackedBf16 {
    /// Width of the result.
    n: usize,
    /// Width of the input.
    k: usize,
    /// `k` values of every block but the last, a multiple of 32.
    block: usize,
    /// Blocks of `block / 2` pairs of bf16, the even `k` in the low half; in a block, panels; in a panel, for each pair of `k`, two lines of 16 columns.
    panels: Vec<Line>,
}

impl PackedBf16 {
    /// Whether this CPU has the instructions of the fast path; elsewhere [`PackedBf16::matmul`] is correct but slow.
    pub fn is_supported() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bf16")
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// Packs row-major `weight [n, k]`: the product takes `x [m, k]` to `x · Wᵀ [m, n]`.
    ///
    /// # Panics
    /// If `weight` does not hold `n * k` values.
    pub fn pack(weight: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weight.len(), n * k, "weight is not [{n}, {k}]");
        Self::pack_with(n, k, |column, depth| weight[column * k + depth])
    }

    /// Packs the transpose of row-major `weight [n, k]`: the product takes `dy [m, n]` to `dy · W [m, k]`.
    ///
    /// # Panics
    /// If `weight` does not hold `n * k` values.
    pub fn pack_transposed(weight: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weight.len(), n * k, "weight is not [{n}, {k}]");
        Self::pack_with(k, n, |column, depth| weight[depth * k + column])
    }

    fn pack_with(n: usize, k: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let block = k.div_ceil(k.div_ceil(KC).max(1)).next_multiple_of(32);
        let mut packed = Self {
            n,
            k,
            block,
            panels: Vec::new(),
        };
        let columns = packed.panel_count();
        if columns == 0 || k == 0 {
            return packed;
        }
        let mut panels = vec![Line::ZERO; packed.block_count() * columns * block];
        panels.par_chunks_mut(block).enumerate().for_each(|(index, panel)| {
            let (from, first) = (index / columns * block, index % columns * NR);
            for (line, Line(pairs)) in panel.iter_mut().enumerate() {
                let depth = from + line / 2 * 2;
                let value = |column: usize, depth: usize| {
                    if column < n && depth < k {
                        u32::from(bf16::from_f32(at(column, depth)).to_bits())
                    } else {
                        0
                    }
                };
                for (lane, pair) in pairs.iter_mut().enumerate() {
                    let column = first + line % 2 * 16 + lane;
                    *pair = value(column, depth) | value(column, depth + 1) << 16;
                }
            }
        });
        packed.panels = panels;
        packed
    }

    /// Width of the rows that [`PackedBf16::matmul`] writes.
    pub fn out_width(&self) -> usize {
        self.n
    }

    /// Width of the rows that [`PackedBf16::matmul`] reads.
    pub fn in_width(&self) -> usize {
        self.k
    }

    /// Bytes of the packed weight.
    pub fn bytes(&self) -> usize {
        size_of_val(self.panels.as_slice())
    }

    fn panel_count(&self) -> usize {
        self.n.div_ceil(NR)
    }

    fn block_count(&self) -> usize {
        self.k.div_ceil(self.block.max(1))
    }

    /// Bf16 pairs of `k` in block `index`.
    fn block_pairs(&self, index: usize) -> usize {
        self.block.min(self.k - index * self.block).div_ceil(2)
    }

    fn panel(&self, block: usize, panel: usize) -> &[Line] {
        let from = (block * self.panel_count() + panel) * self.block;
        &self.panels[from..from + self.block]
    }

    /// Multiplies row-major `x [m, in_width]` into row-major `out [m, out_width]`, adding to `out` if `accumulate`.
    ///
    /// Runs on the current rayon pool.
    ///
    /// # Panics
    /// If `x` or `out` has another length than its shape.
    pub fn matmul(&self, x: &[f32], m: usize, out: &mut [f32], accumulate: bool) {
        assert_eq!(x.len(), m * self.k, "x is not [{m}, {}]", self.k);
        assert_eq!(out.len(), m * self.n, "out is not [{m}, {}]", self.n);
        if self.k == 0 && !accumulate {
            out.fill(0.0);
        }
        if m == 0 || self.n == 0 || self.k == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if Self::is_supported() {
            return avx512::matmul(self, x, m, out, accumulate);
        }
        self.matmul_portable(x, out, accumulate);
    }

    /// The same product in plain Rust, for CPUs without bf16 instructions.
    fn matmul_portable(&self, x: &[f32], out: &mut [f32], accumulate: bool) {
        out.par_chunks_mut(self.n)
            .zip(x.par_chunks(self.k))
            .for_each(|(out, x)| {
                for (column, out) in out.iter_mut().enumerate() {
                    let mut sum = if accumulate { *out } else { 0.0 };
                    for (block, x) in x.chunks(self.block).enumerate() {
                        let panel = self.panel(block, column / NR);
                        for (pair, x) in x.chunks(2).enumerate() {
                            let bits = panel[pair * 2 + column % NR / 16].0[column % 16];
                            for (half, &x) in x.iter().enumerate() {
                                let weight = f32::from_bits((bits >> (16 * half)) << 16);
                                sum += weight * bf16::from_f32(x).to_f32();
                            }
                        }
                    }
                    *out = sum;
                }
            });
    }
}
