//! The products of [`PackedBf16`] with `vdpbf16ps`.

use std::arch::x86_64::*;
use std::mem::transmute;

use rayon::prelude::*;

use super::super::memory::{Line, Out};
use super::{MR, NR, PackedBf16, ROW_LINES, SCRATCH, TASK_PANELS, TASK_ROWS};

/// One task: rows and weight panels of the result, both half-open.
struct Tile {
    rows: [usize; 2],
    panels: [usize; 2],
}

/// The fast path of [`PackedBf16::matmul`]; the caller has checked lengths, emptiness and CPU support.
pub(super) fn matmul(weight: &PackedBf16, x: &[f32], m: usize, out: &mut [f32], accumulate: bool) {
    // Taken rather than borrowed: while it waits, this thread may run another product for rayon.
    let mut scratch = SCRATCH.take();
    let blocks = weight.block_count();
    let rows = m.next_multiple_of(MR);
    let lines = blocks * rows * ROW_LINES;
    if scratch.len() < lines {
        scratch.clear();
        scratch.resize(lines, Line::ZERO);
    }
    let packed = &mut scratch[..lines];
    // Layout: groups of MR rows; in a group, blocks; in a block, MR rows of ROW_LINES lines.
    packed
        .par_chunks_mut(blocks * MR * ROW_LINES)
        .enumerate()
        .with_min_len((1 << 16) / (blocks * MR * ROW_LINES * 32) + 1)
        .for_each(|(group, packed)| {
            // SAFETY: the caller has checked that the CPU has these features.
            unsafe { pack_group(weight, x, m, group * MR, packed) }
        });

    let packed = &scratch[..lines];
    let columns = weight.panel_count();
    let row_tasks = m.div_ceil(TASK_ROWS);
    let wanted = 6 * rayon::current_num_threads();
    let column_tasks = wanted
        .div_ceil(row_tasks)
        .max(columns.div_ceil(TASK_PANELS))
        .min(columns);
    let groups = m.div_ceil(MR);
    let shared = Out {
        start: out.as_mut_ptr(),
        width: weight.n,
    };
    (0..row_tasks * column_tasks)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (row, column) = (task / column_tasks, task % column_tasks);
            let cut = |part: usize, parts: usize, whole: usize| part * whole / parts;
            let tile = Tile {
                rows: [row, row + 1].map(|part| (cut(part, row_tasks, groups) * MR).min(m)),
                panels: [column, column + 1].map(|part| cut(part, column_tasks, columns)),
            };
            // SAFETY: the caller has checked the CPU; tiles are disjoint, lie in `out`, and start at multiples of MR rows.
            unsafe { multiply_tile(weight, packed, &tile, shared, accumulate) }
        });
    SCRATCH.set(scratch);
}

/// Rounds rows `first..first + MR` of `x [m, k]` into the blocks of one group; rows past `m` become zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_group(weight: &PackedBf16, x: &[f32], m: usize, first: usize, packed: &mut [Line]) {
    for (block, packed) in packed.chunks_exact_mut(MR * ROW_LINES).enumerate() {
        let from = block * weight.block;
        let to = (from + weight.block).min(weight.k);
        for (row, packed) in packed.chunks_exact_mut(ROW_LINES).enumerate() {
            if first + row >= m {
                packed.fill(Line::ZERO);
                continue;
            }
            let x = &x[(first + row) * weight.k..][from..to];
            for (x, line) in x.chunks(32).zip(packed) {
                let mask = u32::MAX >> (32 - x.len());
                let (low, high) = (mask as u16, (mask >> 16) as u16);
                // SAFETY: the masks select exactly the values of `x`, and `line` is 64 bytes, aligned to 64.
                unsafe {
                    let low = _mm512_maskz_loadu_ps(low, x.as_ptr());
                    let high = _mm512_maskz_loadu_ps(high, x.as_ptr().wrapping_add(16));
                    let pairs = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_store_si512(line.0.as_mut_ptr().cast(), pairs);
                }
            }
        }
    }
}

/// Computes one tile of the result over all of `k`.
///
/// # Safety
/// `out` must be `[m, n]` with no other access to the tile's rectangle during the call, `packed` must hold the
/// groups of all `m` rows, and the tile must start at a multiple of MR rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn multiply_tile(weight: &PackedBf16, packed: &[Line], tile: &Tile, out: Out, accumulate: bool) {
    let blocks = weight.block_count();
    let groups = (tile.rows[1] - tile.rows[0]).div_ceil(MR);
    for block in 0..blocks {
        let pairs = weight.block_pairs(block);
        let add = accumulate || block > 0;
        for panel in tile.panels[0]..tile.panels[1] {
            let column = panel * NR;
            let width = NR.min(weight.n - column);
            let mask = u32::MAX >> (NR - width);
            let b = weight.panel(block, panel);
            // The next panel comes from memory: ask for a share of it before each kernel.
            let next = match () {
                () if panel + 1 < tile.panels[1] => weight.panel(block, panel + 1),
                () if block + 1 < blocks => weight.panel(block + 1, tile.panels[0]),
                () => &[],
            };
            let mut next = next.chunks(next.len().div_ceil(groups).max(1));
            for row in (tile.rows[0]..tile.rows[1]).step_by(MR) {
                let rows = MR.min(tile.rows[1] - row);
                let a = &packed[(row / MR * blocks + block) * MR * ROW_LINES..][..MR * ROW_LINES];
                for line in next.next().unwrap_or_default() {
                    _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(line).cast());
                }
                // SAFETY: `row < m` and `column < n`, so the pointer stays in `out`; a kernel touches only `rows`
                // rows and the columns in `mask`; `pairs` is at most half a block, which `a` and `b` hold.
                unsafe {
                    let c = out.start.add(row * out.width + column);
                    let (a, b) = (a.as_ptr().cast(), b.as_ptr().cast());
                    match (rows, width > 16) {
                        (9.., true) => kernel::<12, 2>(a, b, pairs, c, out.width, rows, mask, add),
                        (5.., true) => kernel::<8, 2>(a, b, pairs, c, out.width, rows, mask, add),
                        (_, true) => kernel::<4, 2>(a, b, pairs, c, out.width, rows, mask, add),
                        (9.., false) => kernel::<12, 1>(a, b, pairs, c, out.width, rows, mask, add),
                        (5.., false) => kernel::<8, 1>(a, b, pairs, c, out.width, rows, mask, add),
                        (_, false) => kernel::<4, 1>(a, b, pairs, c, out.width, rows, mask, add),
                    }
                }
            }
        }
    }
}

/// `R` rows by `C` registers of 16 columns, over one block of `k`.
///
/// # Safety
/// `a` must hold `R` rows of ROW_LINES lines and `b` `pairs` pairs of lines; `c` must be writable at the first
/// `rows` rows (at most `R`), `width` values apart, in the columns of `mask`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(clippy::too_many_arguments)]
unsafe fn kernel<const R: usize, const C: usize>(
    a: *const i32,
    b: *const i32,
    pairs: usize,
    c: *mut f32,
    width: usize,
    rows: usize,
    mask: u32,
    add: bool,
) {
    for row in 0..rows {
        for i in 0..C {
            _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(row * width + i * 16).cast());
        }
    }
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    for pair in 0..pairs {
        // SAFETY: `pair < pairs`, and the caller vouches for the panels; lines are aligned to 64 bytes.
        unsafe {
            let b: [__m512bh; C] = std::array::from_fn(|i| {
                transmute::<__m512i, __m512bh>(_mm512_load_si512(b.add(pair * NR + i * 16).cast()))
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a.add(row * ROW_LINES * 16 + pair)));
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = _mm512_dpbf16_ps(*sum, x, b);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        if row >= rows {
            break;
        }
        for (i, &sum) in sums.iter().enumerate() {
            let mask = (mask >> (16 * i)) as u16;
            // SAFETY: the row is below `rows`, and the mask keeps to the columns that the caller vouches for.
            unsafe {
                let c = c.add(row * width).wrapping_add(i * 16);
                let old = if add {
                    _mm512_maskz_loadu_ps(mask, c)
                } else {
                    _mm512_setzero_ps()
                };
                _mm512_mask_storeu_ps(c, mask, _mm512_add_ps(old, sum));
            }
        }
    }
}
