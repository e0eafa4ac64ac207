//! Products with block-quantised weights, for serving.
//!
//! Weights come as GGUF blocks of 32 and are repacked at load into tiles of 16 rows: a cache line holds four columns of
//! each row, so that one register yields sixteen results and the row of activations is broadcast. Activations are
//! quantised to int8 by groups of 32 once a call; dot products are exact integers, and all paths compute the same ones.

use std::cell::RefCell;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::memory::{Line, Out};
use activations::Group;

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

/// Weights in a block, and activations in a group.
const GROUP: usize = 32;
/// Rows of a tile.
const TILE: usize = 16;
/// Tiles and rows of activations that are multiplied in one go; see [`QuantizedMatrix::multiply`].
const RUN_TILES: usize = 8;
const RUN_ROWS: usize = 8;
/// Least work of a part, in units of [`QuantizedMatrix::work`]: below that, waking another thread costs what it brings.
const PART_WORK: usize = 8_000;

thread_local! {
    /// Quantised activations of the last call on this thread, kept to spare the allocation.
    static SCRATCH: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) };
}

/// How the 32 weights of a block are stored in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum BlockFormat {
    /// f16 `d`, f16 `m`, 16 bytes of nibbles (low nibbles are weights 0..16): weight `d * q + m`.
    Q4_1,
    /// f16 `d`, 32 signed bytes: weight `d * q`.
    Q8_0,
}

impl BlockFormat {
    /// Bytes of a block in GGUF.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_1 => 4 + GROUP / 2,
            Self::Q8_0 => 2 + GROUP,
        }
    }

    /// Bytes before the weights of a block.
    fn header_bytes(self) -> usize {
        self.block_bytes() - self.tile_lines() * 4
    }

    /// Cache lines of a group of a tile; each takes four bytes of every row's block.
    fn tile_lines(self) -> usize {
        match self {
            Self::Q4_1 => 4,
            Self::Q8_0 => 8,
        }
    }
}

/// Why block-quantised weights were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuantizedError {
    /// The inner size does not divide into blocks.
    #[error("inner size {0} is not a multiple of 32")]
    UnevenWidth(usize),
    /// The values given are not as many as the shape asks for.
    #[error("weights of shape [{n}, {k}] are not {got} values")]
    WrongCount {
        /// Stated rows.
        n: usize,
        /// Stated inner size.
        k: usize,
        /// Values given.
        got: usize,
    },
    /// The bytes do not fit the shape.
    #[error("{format:?} weights of shape [{n}, {k}] take {wanted} bytes, not {got}")]
    WrongLength {
        /// Stated format.
        format: BlockFormat,
        /// Stated rows.
        n: usize,
        /// Stated inner size.
        k: usize,
        /// Bytes that these take.
        wanted: usize,
        /// Bytes given.
        got: usize,
    },
}

/// The instruction sets that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// AVX-512 VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON with dot products.
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    /// NEON as every core has it.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain Rust.
    Portable,
}

impl Path {
    /// Paths that this CPU can take, the fastest first.
    pub fn supported() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let vnni = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            [vnni.then_some(Self::Vnni), avx2.then_some(Self::Avx2)]
        };
        #[cfg(target_arch = "aarch64")]
        let fast = {
            let dotprod = std::arch::is_aarch64_feature_detected!("dotprod");
            [dotprod.then_some(Self::Dotprod), Some(Self::Neon)]
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let fast: [Option<Self>; 0] = [];
        fast.into_iter().flatten().chain([Self::Portable])
    }
}

/// A block-quantised weight `W [n, k]`, repacked for this CPU, for `y [m, n] = x [m, k] · Wᵀ`.
#[derive(Debug)]
pub struct QuantizedMatrix {
    format: BlockFormat,
    n: usize,
    k: usize,
    path: Path,
    /// Tiles; in a tile, groups; in a group, lines of four columns of 16 rows. Signed bytes are stored plus 128.
    quants: Vec<Line>,
    /// Tiles; in a tile, groups; of each, `d` of 16 rows. Rows past `n` have zero.
    scales: Vec<[f16; TILE]>,
    /// As `scales`, with `m`; empty unless the format has it.
    minima: Vec<[f16; TILE]>,
}

impl QuantizedMatrix {
    /// Repacks row-major GGUF blocks of a weight `[n, k]`.
    ///
    /// # Errors
    /// If `k` is not a multiple of 32 or `bytes` is not as long as the shape asks for.
    pub fn from_blocks(format: BlockFormat, bytes: &[u8], n: usize, k: usize) -> Result<Self, QuantizedError> {
        if !k.is_multiple_of(GROUP) {
            return Err(QuantizedError::UnevenWidth(k));
        }
        let groups = k / GROUP;
        let wanted = n.saturating_mul(groups).saturating_mul(format.block_bytes());
        if bytes.len() != wanted {
            return Err(QuantizedError::WrongLength {
                format,
                n,
                k,
                wanted,
                got: bytes.len(),
            });
        }
        let (lines, header) = (format.tile_lines(), format.header_bytes());
        // Signed bytes move up by 128, because the dot-product instructions take one unsigned operand.
        let shift = if format == BlockFormat::Q8_0 { 0x8080_8080 } else { 0 };
        let count = n.div_ceil(TILE) * groups;
        let minima = if format == BlockFormat::Q4_1 { count } else { 0 };
        let mut matrix = Self {
            format,
            n,
            k,
            path: Path::supported().next().unwrap_or(Path::Portable),
            quants: vec![Line::ZERO; count * lines],
            scales: vec![[f16::ZERO; TILE]; count],
            minima: vec![[f16::ZERO; TILE]; minima],
        };
        for (index, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
            let (row, group) = (index / groups, index % groups);
            let (at, lane) = (row / TILE * groups + group, row % TILE);
            matrix.scales[at][lane] = f16::from_le_bytes([block[0], block[1]]);
            if format == BlockFormat::Q4_1 {
                matrix.minima[at][lane] = f16::from_le_bytes([block[2], block[3]]);
            }
            let words = block[header..].as_chunks::<4>().0;
            for (line, &word) in matrix.quants[at * lines..][..lines].iter_mut().zip(words) {
                line.0[lane] = u32::from_le_bytes(word) ^ shift;
            }
        }
        Ok(matrix)
    }

    /// Quantises row-major `weight [n, k]` to Q8_0, for models that come in f32.
    ///
    /// # Errors
    /// If `k` is not a multiple of 32 or `weight` does not hold `n * k` values.
    pub fn quantize_q8_0(weight: &[f32], n: usize, k: usize) -> Result<Self, QuantizedError> {
        let format = BlockFormat::Q8_0;
        if n.checked_mul(k) != Some(weight.len()) {
            return Err(QuantizedError::WrongCount {
                n,
                k,
                got: weight.len(),
            });
        }
        let mut bytes = Vec::with_capacity(weight.len() / GROUP * format.block_bytes());
        for group in weight.as_chunks::<GROUP>().0 {
            let largest = group.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
            bytes.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
            bytes.extend(group.iter().map(|v| (v * inverse).round() as i8 as u8));
        }
        Self::from_blocks(format, &bytes, n, k)
    }

    /// Rows and inner size.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// How the weight is stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Bytes of the repacked weight.
    pub fn bytes(&self) -> usize {
        size_of_val(self.quants.as_slice()) + size_of_val(self.scales.as_slice()) + size_of_val(self.minima.as_slice())
    }

    fn groups(&self) -> usize {
        self.k / GROUP
    }

    fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    /// Writes row `row` into `out [k]`, with the arithmetic of the format's definition (one product, one sum, in f32).
    ///
    /// # Panics
    /// If there is no such row or `out` does not hold `k` values.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "row {row} of {}", self.n);
        assert_eq!(out.len(), self.k, "out is not [{}]", self.k);
        let lane = row % TILE;
        let first = row / TILE * self.groups();
        let lines = self.format.tile_lines();
        for (group, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let at = first + group;
            let scale = self.scales[at][lane].to_f32();
            let words = self.quants[at * lines..][..lines]
                .iter()
                .map(|line| line.0[lane].to_le_bytes());
            match self.format {
                BlockFormat::Q4_1 => {
                    let minimum = self.minima[at][lane].to_f32();
                    let (low, high) = out.split_at_mut(GROUP / 2);
                    for ((low, high), byte) in low.iter_mut().zip(high).zip(words.flatten()) {
                        *low = f32::from(byte & 15) * scale + minimum;
                        *high = f32::from(byte >> 4) * scale + minimum;
                    }
                }
                BlockFormat::Q8_0 => {
                    for (out, byte) in out.iter_mut().zip(words.flatten()) {
                        *out = f32::from((byte ^ 0x80) as i8) * scale;
                    }
                }
            }
        }
    }

    /// The same weight, to be multiplied by `path`; `None` if this CPU can't take it. For comparisons: a new matrix has the fastest.
    pub fn with_path(self, path: Path) -> Option<Self> {
        Path::supported()
            .any(|supported| supported == path)
            .then_some(Self { path, ..self })
    }

    /// Multiplies row-major `x [m, k]` into row-major `out [m, n]`.
    ///
    /// Runs on the current rayon pool when there is enough to do, else on this thread alone.
    ///
    /// # Panics
    /// If `x` or `out` has another length than its shape.
    pub fn matmul(&self, x: &[f32], m: usize, out: &mut [f32]) {
        self.matmul_with(self.path, x, m, out);
    }

    /// Rough cost of a product, half a nanosecond each on one fast core: a tile's group is read once and used `m` times.
    fn work(&self, m: usize) -> usize {
        self.scales.len() * (self.format.tile_lines() + 2 * m)
    }

    fn matmul_with(&self, path: Path, x: &[f32], m: usize, out: &mut [f32]) {
        assert_eq!(x.len(), m * self.k, "x is not [{m}, {}]", self.k);
        assert_eq!(out.len(), m * self.n, "out is not [{m}, {}]", self.n);
        // Taken rather than borrowed: while it waits, this thread may run another product for rayon.
        let mut scratch = SCRATCH.take();
        activations::quantize(path, x, &mut scratch);
        let out = Out {
            start: out.as_mut_ptr(),
            width: self.n,
        };
        let tiles = self.tiles();
        let parts = (self.work(m) / PART_WORK).min(tiles);
        // SAFETY: `path` is supported, since it comes from `Path::supported`; `out` is [m, n], and every call has its
        // own tiles, hence its own columns; `scratch` holds the `m` rows of activations.
        let run = |tiles: Range<usize>| unsafe { self.multiply(path, &scratch, m, tiles, out) };
        if parts < 2 || rayon::current_num_threads() < 2 {
            run(0..tiles);
        } else {
            // More parts than threads, for the case that another process holds one of the cores.
            let parts = parts.min(4 * rayon::current_num_threads());
            (0..parts)
                .into_par_iter()
                .with_max_len(1)
                .for_each(|part| run(part * tiles / parts..(part + 1) * tiles / parts));
        }
        SCRATCH.set(scratch);
    }

    /// Computes the columns of `tiles` for all rows of `x`.
    ///
    /// # Safety
    /// The CPU must support `path`, `x` must hold `m` rows of groups, and `out` must be `[m, n]` with no other access to
    /// the columns of these tiles during the call.
    unsafe fn multiply(&self, path: Path, x: &[Group], m: usize, tiles: Range<usize>, out: Out) {
        // A few rows at a time over a few tiles: the tiles stay in the second-level cache, and results are written in
        // long runs of few rows, which matters where a row of them is a multiple of the cache's period.
        for first in tiles.clone().step_by(RUN_TILES) {
            let tiles = first..tiles.end.min(first + RUN_TILES);
            for row in (0..m).step_by(RUN_ROWS) {
                let rows = RUN_ROWS.min(m - row);
                let x = &x[row * self.groups()..][..rows * self.groups()];
                let tiles = tiles.clone();
                // SAFETY: `row < m`, so the moved start is in `out`, with `rows` rows from there on; the rest is this
                // function's contract.
                unsafe {
                    let out = Out {
                        start: out.start.add(row * out.width),
                        width: out.width,
                    };
                    match path {
                        #[cfg(target_arch = "x86_64")]
                        Path::Vnni => vnni::multiply(self, x, rows, tiles, out),
                        #[cfg(target_arch = "x86_64")]
                        Path::Avx2 => avx2::multiply(self, x, rows, tiles, out),
                        #[cfg(target_arch = "aarch64")]
                        Path::Dotprod => neon::multiply_dotprod(self, x, rows, tiles, out),
                        #[cfg(target_arch = "aarch64")]
                        Path::Neon => neon::multiply_neon(self, x, rows, tiles, out),
                        Path::Portable => portable::multiply(self, x, rows, tiles, out),
                    }
                }
            }
        }
    }
}
