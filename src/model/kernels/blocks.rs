//! Products with frozen weights that stay in blocks: a tile of rows is decoded, multiplied in single precision, and forgotten.
//!
//! For training adapters over 4-bit weights: both directions work on what is stored, and no dense matrix is ever held.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, GgmlType,
};
use half::{bf16, f16};
use rayon::prelude::*;

use super::gemm::{MatrixView, gemm};
use super::nf4::Nf4;

/// Values of a tile, 4 MB in single precision: small beside the weights, and enough to feed a product.
const TILE_VALUES: usize = 1 << 20;

/// A matrix `[n, k]` in blocks, stacked from parts.
#[derive(Debug)]
pub struct BlockMatrix {
    n: usize,
    k: usize,
    parts: Vec<(usize, Blocks)>,
}

/// Rows of a matrix in one encoding.
#[derive(Debug)]
pub enum Blocks {
    /// NF4 with double quantisation.
    Nf4(Nf4),
    /// A type of GGUF, Q4_K among them; also plain f16 and bf16.
    Ggml(GgmlBlocks),
}

/// Rows in a type of GGUF.
#[derive(Debug)]
pub struct GgmlBlocks {
    dtype: GgmlDType,
    /// As words, because blocks must be aligned.
    words: Vec<u64>,
    bytes: usize,
}

/// Why blocks were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlocksError {
    /// There is no decoder.
    #[error("{0:?}")]
    Type(GgmlDType),
    /// Rows would begin within a block.
    #[error("{dtype:?} needs rows of a multiple of {block} values, not {k}; nf4 takes any even number")]
    Width {
        /// The type.
        dtype: GgmlDType,
        /// Values in its blocks.
        block: usize,
        /// Values in a row.
        k: usize,
    },
}

/// Calls a generic function for the block type of a GGUF type.
macro_rules! with_block_type {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            GgmlDType::BF16 => $function::<bf16>($($argument),*),
            GgmlDType::F16 => $function::<f16>($($argument),*),
            GgmlDType::F32 => $function::<f32>($($argument),*),
            GgmlDType::Q2K => $function::<BlockQ2K>($($argument),*),
            GgmlDType::Q3K => $function::<BlockQ3K>($($argument),*),
            GgmlDType::Q4_0 => $function::<BlockQ4_0>($($argument),*),
            GgmlDType::Q4_1 => $function::<BlockQ4_1>($($argument),*),
            GgmlDType::Q4K => $function::<BlockQ4K>($($argument),*),
            GgmlDType::Q5_0 => $function::<BlockQ5_0>($($argument),*),
            GgmlDType::Q5_1 => $function::<BlockQ5_1>($($argument),*),
            GgmlDType::Q5K => $function::<BlockQ5K>($($argument),*),
            GgmlDType::Q6K => $function::<BlockQ6K>($($argument),*),
            GgmlDType::Q8_0 => $function::<BlockQ8_0>($($argument),*),
            GgmlDType::Q8_1 | GgmlDType::Q8K => {}
        }
    };
}

impl GgmlBlocks {
    /// Room for `rows` of `k` values.
    ///
    /// # Errors
    /// When rows do not divide into blocks, or the type cannot be decoded.
    pub fn new(dtype: GgmlDType, rows: usize, k: usize) -> Result<Self, BlocksError> {
        if matches!(dtype, GgmlDType::Q8_1 | GgmlDType::Q8K) {
            return Err(BlocksError::Type(dtype));
        }
        let block = dtype.block_size();
        if !k.is_multiple_of(block) {
            return Err(BlocksError::Width { dtype, block, k });
        }
        let bytes = rows * k / block * dtype.type_size();
        Ok(Self {
            dtype,
            words: vec![0; bytes.div_ceil(8)],
            bytes,
        })
    }

    /// The encoded rows, to be filled with what a file holds.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.bytes;
        // SAFETY: the words hold at least so many bytes, any of which may have any value.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>(), bytes) }
    }

    /// Encodes whole rows, of which the first value is number `first`.
    pub fn encode(&mut self, first: usize, values: &[f32]) {
        with_block_type!(self.dtype, encode(self, first, values));
    }

    fn decode(&self, first: usize, out: &mut [f32]) {
        with_block_type!(self.dtype, decode(self, first, out));
    }
}

fn blocks_of<T: GgmlType>(blocks: &GgmlBlocks) -> &[T] {
    // SAFETY: `T` is a plain block of numbers (or one number) of at most 8 bytes' alignment, for which any bits are valid, and the
    // words hold as many of them.
    unsafe { std::slice::from_raw_parts(blocks.words.as_ptr().cast::<T>(), blocks.bytes / size_of::<T>()) }
}

fn decode<T: GgmlType>(blocks: &GgmlBlocks, first: usize, out: &mut [f32]) {
    T::to_float(
        &blocks_of::<T>(blocks)[first / T::BLCK_SIZE..][..out.len() / T::BLCK_SIZE],
        out,
    );
}

fn encode<T: GgmlType>(blocks: &mut GgmlBlocks, first: usize, values: &[f32]) {
    let count = blocks.bytes / size_of::<T>();
    // SAFETY: as in `blocks_of`; the words are borrowed mutably.
    let all = unsafe { std::slice::from_raw_parts_mut(blocks.words.as_mut_ptr().cast::<T>(), count) };
    T::from_float(values, &mut all[first / T::BLCK_SIZE..][..values.len() / T::BLCK_SIZE]);
}

impl Blocks {
    fn decode(&self, first: usize, out: &mut [f32]) {
        match self {
            Self::Nf4(blocks) => blocks.decode(first, out),
            Self::Ggml(blocks) => blocks.decode(first, out),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Nf4(blocks) => blocks.bytes(),
            Self::Ggml(blocks) => blocks.bytes,
        }
    }
}

impl BlockMatrix {
    /// Stacks parts `(rows, blocks)` of `k` columns.
    pub fn stack(parts: Vec<(usize, Blocks)>, k: usize) -> Self {
        let n = parts.iter().map(|(rows, _)| rows).sum();
        Self { n, k, parts }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, blocks)| blocks.bytes()).sum()
    }

    /// Writes row `row` into `out [k]`.
    ///
    /// # Panics
    /// If there is no such row or `out` does not hold `k` values.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "row {row} of {}", self.n);
        assert_eq!(out.len(), self.k, "out is not [{}]", self.k);
        let mut first = 0;
        for (rows, blocks) in &self.parts {
            if row < first + rows {
                blocks.decode((row - first) * self.k, out);
                return;
            }
            first += rows;
        }
    }

    /// Calls `visit(first row, rows)` with every tile `[rows, k]` decoded.
    fn for_each_tile(&self, mut visit: impl FnMut(usize, &[f32])) {
        let most = (TILE_VALUES / self.k.max(1)).max(1);
        let longest = self.parts.iter().map(|(rows, _)| *rows).max().unwrap_or(0);
        let mut tile = vec![0f32; most.min(longest) * self.k];
        let mut first = 0;
        for (rows, blocks) in &self.parts {
            for start in (0..*rows).step_by(most) {
                let tile = &mut tile[..most.min(rows - start) * self.k];
                tile.par_chunks_mut(self.k)
                    .with_min_len(8)
                    .enumerate()
                    .for_each(|(row, out)| blocks.decode((start + row) * self.k, out));
                visit(first + start, tile);
            }
            first += rows;
        }
    }

    /// `out[m, n] = x[m, k] · Wᵀ`.
    pub(crate) fn project(&self, x: &[f32], m: usize, out: &mut [f32]) {
        let (n, k) = self.shape();
        self.for_each_tile(|first, tile| {
            let tile = MatrixView::new(tile, tile.len() / k, k);
            gemm(&mut out[first..], n, false, 1.0, MatrixView::new(x, m, k), tile.t());
        });
    }

    /// `dx[m, k] = dy[m, n] · W`.
    pub(crate) fn project_back(&self, dy: &[f32], m: usize, dx: &mut [f32]) {
        let (n, k) = self.shape();
        self.for_each_tile(|first, tile| {
            let rows = tile.len() / k;
            let dy = MatrixView::strided(&dy[first..], m, rows, n);
            gemm(dx, k, first > 0, 1.0, dy, MatrixView::new(tile, rows, k));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::nf4::Nf4Builder;
    use super::*;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn products_are_those_of_the_decoded_matrix() {
        let k = 256;
        let mut q4k = GgmlBlocks::new(GgmlDType::Q4K, 5, k).unwrap();
        q4k.encode(0, &noise(5 * k, 1));
        let mut nf4 = Nf4Builder::default();
        nf4.push(&noise(7 * k, 2));
        let matrix = BlockMatrix::stack(vec![(5, Blocks::Ggml(q4k)), (7, Blocks::Nf4(nf4.finish()))], k);
        let mut dense = vec![0f32; 12 * k];
        for (row, out) in dense.chunks_mut(k).enumerate() {
            matrix.decode_row(row, out);
        }
        let (x, dy) = (noise(3 * k, 3), noise(3 * 12, 4));
        let (mut y, mut dx) = (vec![0f32; 3 * 12], vec![0f32; 3 * k]);
        matrix.project(&x, 3, &mut y);
        matrix.project_back(&dy, 3, &mut dx);
        for m in 0..3 {
            for n in 0..12 {
                let want: f32 = (0..k).map(|i| x[m * k + i] * dense[n * k + i]).sum();
                assert!((y[m * 12 + n] - want).abs() < 1e-4);
            }
            for i in 0..k {
                let want: f32 = (0..12).map(|n| dy[m * 12 + n] * dense[n * k + i]).sum();
                assert!((dx[m * k + i] - want).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn rows_that_cut_a_block_are_refused() {
        let error = GgmlBlocks::new(GgmlDType::Q4K, 5, 96).unwrap_err();
        assert!(error.to_string().contains("256"), "{error}");
    }
}
