//! Low-rank updates while serving, and products with dense weights: a row's result is the same to the bit whatever rows are computed
//! with it.
//!
//! That is what makes drafts lossless: a general matrix product picks its kernel, and with it the order of its sums, by the
//! number of rows, and two orders of summation can disagree about which token is the likeliest. Here every value is summed in one
//! order, however the work is cut into blocks.

use multiversion::multiversion;
use rayon::prelude::*;

/// Rows of activations in a block. Its sums are kept in registers: ARM has as many as AVX-512, of a quarter of the size.
const ROWS: usize = if cfg!(target_arch = "aarch64") { 2 } else { 4 };
/// Rows of the matrix in a block.
const COLUMNS: usize = 4;
/// Most rows that are gathered at once, for the same reason.
const GATHERED: usize = if cfg!(target_arch = "aarch64") { 2 } else { 8 };
/// Values in a register of AVX-512; others take several for as many.
pub const LANES: usize = 16;
/// Columns of an update in a block: four registers of results.
const WIDTH: usize = 64;
/// Multiplications that are worth another thread.
const PART: usize = 200_000;

/// `out[m, n] = x[m, k] · Wᵀ` for a row-major `w [n, k]`. Each value is the sum of sixteen partial sums over every sixteenth product.
///
/// # Panics
/// If a slice has another length than its shape.
pub fn project(x: &[f32], w: &[f32], m: usize, n: usize, k: usize, out: &mut [f32]) {
    assert_eq!((x.len(), w.len(), out.len()), (m * k, n * k, m * n), "shapes differ");
    if m == 0 || n == 0 {
        return;
    }
    if m * n * k < 2 * PART || rayon::current_num_threads() < 2 {
        return project_rows(x, w, n, k, out);
    }
    if m >= 4 * ROWS {
        out.par_chunks_mut(ROWS * n)
            .zip(x.par_chunks(ROWS * k))
            .for_each(|(out, x)| project_rows(x, w, n, k, out));
        return;
    }
    // Few rows of a large matrix: every thread takes a part of the columns.
    let columns = n.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(COLUMNS);
    let parts: Vec<Vec<f32>> = w
        .par_chunks(columns * k)
        .map(|w| {
            let mut part = vec![0f32; m * (w.len() / k)];
            project_rows(x, w, w.len() / k, k, &mut part);
            part
        })
        .collect();
    for (index, part) in parts.iter().enumerate() {
        let width = part.len() / m;
        for (out, part) in out.chunks_exact_mut(n).zip(part.chunks_exact(width)) {
            out[index * columns..][..width].copy_from_slice(part);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn project_rows(x: &[f32], w: &[f32], n: usize, k: usize, out: &mut [f32]) {
    let m = out.len() / n;
    let mut column = 0;
    while column < n {
        let columns = COLUMNS.min(n - column);
        let mut row = 0;
        while row < m {
            let rows = ROWS.min(m - row);
            let (x, w) = (&x[row * k..], &w[column * k..]);
            let out = &mut out[row * n + column..];
            // The full block with constant bounds, so that its sums stay in registers.
            match (rows, columns) {
                (ROWS, COLUMNS) => block::<ROWS, COLUMNS>(x, w, n, k, out),
                (2.., COLUMNS) => {
                    block::<2, COLUMNS>(x, w, n, k, out);
                    row += 2;
                    continue;
                }
                (_, COLUMNS) => {
                    block::<1, COLUMNS>(x, w, n, k, out);
                    row += 1;
                    continue;
                }
                _ => {
                    for i in 0..rows {
                        for j in 0..columns {
                            block::<1, 1>(&x[i * k..], &w[j * k..], n, k, &mut out[i * n + j..]);
                        }
                    }
                }
            }
            row += rows;
        }
        column += columns;
    }
}

/// `R` rows by `C` columns of the product.
#[inline(always)]
fn block<const R: usize, const C: usize>(x: &[f32], w: &[f32], n: usize, k: usize, out: &mut [f32]) {
    let chunks = k / LANES;
    // Slices of one known length: nothing in the loop can fail, so that the sums stay in registers.
    let rows: [&[[f32; LANES]]; R] = std::array::from_fn(|i| &x[i * k..][..k].as_chunks().0[..chunks]);
    let columns: [&[[f32; LANES]]; C] = std::array::from_fn(|j| &w[j * k..][..k].as_chunks().0[..chunks]);
    let mut sums = [[[0f32; LANES]; C]; R];
    for at in 0..chunks {
        for i in 0..R {
            for j in 0..C {
                multiply_add(&mut sums[i][j], &rows[i][at], &columns[j][at]);
            }
        }
    }
    let whole = chunks * LANES;
    for i in 0..R {
        for j in 0..C {
            let mut half = [0f32; LANES / 2];
            for lane in 0..LANES / 2 {
                half[lane] = sums[i][j][lane] + sums[i][j][lane + LANES / 2];
            }
            let mut sum = 0f32;
            for lane in half {
                sum += lane;
            }
            for rest in whole..k {
                sum = x[i * k + rest].mul_add(w[j * k + rest], sum);
            }
            out[i * n + j] = sum;
        }
    }
}

#[inline(always)]
fn multiply_add(sums: &mut [f32; LANES], x: &[f32; LANES], w: &[f32; LANES]) {
    let mut new = *sums;
    for lane in 0..LANES {
        new[lane] = x[lane].mul_add(w[lane], new[lane]);
    }
    *sums = new;
}

/// A row-major `a [ranks, k]` as panels of 16 ranks: of each panel one column after the other; zeros where ranks end.
pub fn pack_a(a: &[f32], ranks: usize, out: &mut Vec<[f32; LANES]>) {
    let k = a.len() / ranks.max(1);
    for first in (0..ranks).step_by(LANES) {
        for column in 0..k {
            out.push(std::array::from_fn(|lane| {
                let rank = first + lane;
                if rank < ranks { a[rank * k + column] } else { 0.0 }
            }));
        }
    }
}

/// `hidden[m, ranks] = x[m, k] · Aᵀ`, for `a` by [`pack_a`]. Each value is the sum over the even columns and that over the odd ones.
///
/// # Panics
/// If `x` or `a` has another length than its shape.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
pub fn gather(x: &[f32], a: &[[f32; LANES]], k: usize, ranks: usize, hidden: &mut [f32]) {
    let m = hidden.len() / ranks.max(1);
    assert_eq!((x.len(), a.len()), (m * k, ranks.div_ceil(LANES) * k), "shapes differ");
    let mut row = 0;
    while row < m {
        let (x, hidden) = (&x[row * k..], &mut hidden[row * ranks..]);
        row += match GATHERED.min(m - row) {
            8.. => gather_rows::<8>(x, a, k, ranks, hidden),
            4.. => gather_rows::<4>(x, a, k, ranks, hidden),
            2.. => gather_rows::<2>(x, a, k, ranks, hidden),
            _ => gather_rows::<1>(x, a, k, ranks, hidden),
        };
    }
}

/// The first `R` rows; returns `R`.
#[inline(always)]
fn gather_rows<const R: usize>(x: &[f32], a: &[[f32; LANES]], k: usize, ranks: usize, hidden: &mut [f32]) -> usize {
    assert!(x.len() >= R * k);
    let mut first = 0;
    while first < ranks {
        let panel = &a[first / LANES * k..][..k];
        let (mut even, mut odd) = ([[0f32; LANES]; R], [[0f32; LANES]; R]);
        let (pairs, last) = panel.as_chunks::<2>();
        for (pair, columns) in pairs.iter().enumerate() {
            for i in 0..R {
                // SAFETY: there are k / 2 pairs, and `x` holds R rows of k values.
                let (x0, x1) = unsafe {
                    let x = x.get_unchecked(i * k + 2 * pair..i * k + 2 * pair + 2);
                    (*x.get_unchecked(0), *x.get_unchecked(1))
                };
                for lane in 0..LANES {
                    even[i][lane] = x0.mul_add(columns[0][lane], even[i][lane]);
                }
                for lane in 0..LANES {
                    odd[i][lane] = x1.mul_add(columns[1][lane], odd[i][lane]);
                }
            }
        }
        for i in 0..R {
            for column in last {
                for lane in 0..LANES {
                    even[i][lane] = x[i * k + k - 1].mul_add(column[lane], even[i][lane]);
                }
            }
            for lane in 0..LANES.min(ranks - first) {
                hidden[i * ranks + first + lane] = even[i][lane] + odd[i][lane];
            }
        }
        first += LANES;
    }
    R
}

/// A row-major `b [rows, rank]` as panels of 64 rows: of each panel one rank after the other.
pub fn pack_b(b: &[f32], rank: usize, out: &mut Vec<f32>) {
    for panel in b.chunks(WIDTH * rank.max(1)) {
        for place in 0..rank {
            out.extend(panel.iter().skip(place).step_by(rank));
        }
    }
}

/// Some columns of every row get `scale * hidden · Bᵀ`, for `hidden [m, ranks]` of which `rank` are this update's, from `first` on, and
/// `b` by [`pack_b`]. Each value adds the products in the order of the ranks.
pub struct Spread<'a> {
    /// What [`gather`] made, of as many rows as there are results.
    pub hidden: &'a [f32],
    /// Width of its rows.
    pub ranks: usize,
    /// First of this update's ranks.
    pub first: usize,
    /// The packed matrix.
    pub b: &'a [f32],
    /// This update's ranks.
    pub rank: usize,
    /// Factor on the update.
    pub scale: f32,
}

impl Spread<'_> {
    /// Adds it to `out [m, out_width]`, from column `column` on.
    ///
    /// # Panics
    /// If `hidden` has fewer rows than `out`, or `out` too few columns.
    pub fn add_to(&self, out: &mut [f32], out_width: usize, column: usize) {
        let m = out.len() / out_width;
        if m * self.b.len() < 2 * PART || rayon::current_num_threads() < 2 {
            return self.add_rows(out, out_width, column, 0);
        }
        let rows = m.div_ceil(2 * rayon::current_num_threads());
        out.par_chunks_mut(rows * out_width)
            .enumerate()
            .for_each(|(index, out)| self.add_rows(out, out_width, column, index * rows));
    }

    fn add_rows(&self, out: &mut [f32], out_width: usize, column: usize, first_row: usize) {
        let hidden = &self.hidden[first_row * self.ranks..];
        let width = self.b.len() / self.rank.max(1);
        spread(
            out, out_width, column, width, hidden, self.ranks, self.first, self.b, self.rank, self.scale,
        );
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
#[expect(clippy::too_many_arguments, reason = "multiversion takes no methods")]
fn spread(
    out: &mut [f32],
    out_width: usize,
    column: usize,
    width: usize,
    hidden: &[f32],
    ranks: usize,
    first: usize,
    b: &[f32],
    rank: usize,
    scale: f32,
) {
    let m = out.len() / out_width;
    let mut at = 0;
    while at < width {
        let size = WIDTH.min(width - at);
        let panel = &b[at * rank..][..size * rank];
        for row in 0..m {
            let hidden = &hidden[row * ranks + first..][..rank];
            let out = &mut out[row * out_width + column + at..][..size];
            match out.as_chunks_mut::<WIDTH>() {
                ([out], []) => {
                    let mut sums = *out;
                    for (factor, b) in hidden.iter().zip(panel.as_chunks::<WIDTH>().0) {
                        let factor = factor * scale;
                        for lane in 0..WIDTH {
                            sums[lane] = factor.mul_add(b[lane], sums[lane]);
                        }
                    }
                    *out = sums;
                }
                (_, out) => {
                    for (factor, b) in hidden.iter().zip(panel.chunks_exact(size)) {
                        let factor = factor * scale;
                        for lane in 0..size {
                            out[lane] = factor.mul_add(b[lane], out[lane]);
                        }
                    }
                }
            }
        }
        at += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn random(count: usize, rng: &mut StdRng) -> Vec<f32> {
        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn close(got: &[f32], want: impl Fn(usize) -> f64) {
        for (index, got) in got.iter().enumerate() {
            let want = want(index);
            assert!((f64::from(*got) - want).abs() < 1e-4, "{index}: {got}, expected {want}");
        }
    }

    #[test]
    fn products_are_right_and_do_not_depend_on_the_other_rows() {
        let mut rng = StdRng::seed_from_u64(1);
        for (n, k) in [(1, 1), (7, 33), (64, 96), (37, 576), (1030, 576)] {
            let (x, w) = (random(40 * k, &mut rng), random(n * k, &mut rng));
            let mut all = vec![0f32; 40 * n];
            project(&x, &w, 40, n, k, &mut all);
            close(&all, |at| {
                (0..k)
                    .map(|i| f64::from(x[at / n * k + i]) * f64::from(w[at % n * k + i]))
                    .sum()
            });
            for (first, m) in [(0, 1), (3, 1), (5, 2), (11, 3), (2, 7), (0, 39)] {
                let mut some = vec![0f32; m * n];
                project(&x[first * k..][..m * k], &w, m, n, k, &mut some);
                assert_eq!(some, all[first * n..][..m * n], "{m} rows of [{n}, {k}]");
            }
        }
    }

    #[test]
    fn gathering_is_right_and_does_not_depend_on_the_other_rows() {
        let mut rng = StdRng::seed_from_u64(3);
        for (ranks, k) in [(1, 1), (4, 33), (16, 576), (48, 96), (37, 64)] {
            let (x, a) = (random(40 * k, &mut rng), random(ranks * k, &mut rng));
            let mut packed = Vec::new();
            pack_a(&a, ranks, &mut packed);
            let mut all = vec![0f32; 40 * ranks];
            gather(&x, &packed, k, ranks, &mut all);
            close(&all, |at| {
                let (row, rank) = (at / ranks, at % ranks);
                (0..k)
                    .map(|i| f64::from(x[row * k + i]) * f64::from(a[rank * k + i]))
                    .sum()
            });
            for (first, m) in [(0, 1), (3, 1), (5, 2), (11, 3), (2, 7), (1, 8), (0, 39)] {
                let mut some = vec![0f32; m * ranks];
                gather(&x[first * k..][..m * k], &packed, k, ranks, &mut some);
                assert_eq!(some, all[first * ranks..][..m * ranks], "{m} rows of [{ranks}, {k}]");
            }
        }
    }

    #[test]
    fn updates_are_right_and_do_not_depend_on_the_other_rows() {
        let mut rng = StdRng::seed_from_u64(2);
        for (columns, rank) in [(1, 1), (63, 4), (64, 16), (1000, 8), (3072, 16)] {
            let (ranks, out_width) = (rank + 3, columns + 5);
            let (hidden, b) = (random(40 * ranks, &mut rng), random(columns * rank, &mut rng));
            let start = random(40 * out_width, &mut rng);
            let mut packed = Vec::new();
            pack_b(&b, rank, &mut packed);
            let add = |hidden: &[f32], out: &mut [f32]| {
                let spread = Spread {
                    hidden,
                    ranks,
                    first: 2,
                    b: &packed,
                    rank,
                    scale: 0.5,
                };
                spread.add_to(out, out_width, 3);
            };
            let mut all = start.clone();
            add(&hidden, &mut all);
            close(&all, |at| {
                let (row, column) = (at / out_width, at % out_width);
                let update: f64 = match column.checked_sub(3).filter(|column| *column < columns) {
                    Some(column) => (0..rank)
                        .map(|i| f64::from(hidden[row * ranks + 2 + i]) * f64::from(b[column * rank + i]))
                        .sum(),
                    None => 0.0,
                };
                f64::from(start[at]) + 0.5 * update
            });
            for (first, m) in [(0, 1), (3, 2), (1, 7), (0, 39)] {
                let mut some = start[first * out_width..][..m * out_width].to_vec();
                add(&hidden[first * ranks..][..m * ranks], &mut some);
                assert_eq!(some, all[first * out_width..][..m * out_width]);
            }
        }
    }
}
