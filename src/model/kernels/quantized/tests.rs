use super::*;

fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Blocks with every byte value, and scales that are small and finite.
fn blocks(format: BlockFormat, n: usize, k: usize) -> Vec<u8> {
    let bytes = values(n * k, 9);
    let mut bytes = bytes.iter().map(|v| (v.to_bits() >> 3) as u8);
    let scales = values(n * k / GROUP * 2, 10);
    let mut scales = scales.iter().map(|v| f16::from_f32(v * 0.01));
    let mut out = Vec::new();
    for _ in 0..n * k / GROUP {
        let header = format.header_bytes();
        out.extend(scales.by_ref().take(header / 2).flat_map(f16::to_le_bytes));
        out.extend(bytes.by_ref().take(format.block_bytes() - header));
    }
    out
}

/// The weight as the formats define it, straight from the blocks.
fn weights(format: BlockFormat, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    let block = |b: &[u8]| -> Vec<f32> {
        match format {
            BlockFormat::Q4_1 => {
                let value = |q: u8| f32::from(q) * half(b, 0) + half(b, 2);
                let low = b[4..].iter().map(|q| value(q & 15));
                low.chain(b[4..].iter().map(|q| value(q >> 4))).collect()
            }
            BlockFormat::Q8_0 => b[2..].iter().map(|&q| f32::from(q as i8) * half(b, 0)).collect(),
        }
    };
    bytes.chunks(format.block_bytes()).flat_map(block).collect()
}

/// Activations as the kernels see them.
fn rounded(x: &[f32]) -> Vec<f32> {
    let mut groups = Vec::new();
    activations::quantize(Path::Portable, x, &mut groups);
    let value = |g: &Group| g.quants.map(|q| f32::from(q) * g.scale);
    groups.iter().flat_map(value).collect()
}

fn product(x: &[f32], w: &[f32], m: usize, n: usize, k: usize) -> Vec<f64> {
    let dot = |i: usize, j: usize| (0..k).map(|d| f64::from(x[i * k + d]) * f64::from(w[j * k + d])).sum();
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

fn error(got: &[f32], wanted: &[f64]) -> f64 {
    let square = |v: f64| v * v;
    let difference: f64 = got.iter().zip(wanted).map(|(&g, &w)| square(f64::from(g) - w)).sum();
    (difference / wanted.iter().map(|&w| square(w)).sum::<f64>()).sqrt()
}

const FORMATS: [BlockFormat; 2] = [BlockFormat::Q4_1, BlockFormat::Q8_0];
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 32),
    (1, 16, 64),
    (2, 33, 96),
    (3, 24, 576),
    (7, 9, 1536),
    (8, 50, 160),
    (15, 40, 576),
    (64, 1000, 96),
];

#[test]
fn rows_are_those_of_the_format() {
    for format in FORMATS {
        let (n, k) = (35, 96);
        let bytes = blocks(format, n, k);
        let Ok(matrix) = QuantizedMatrix::from_blocks(format, &bytes, n, k) else {
            panic!("refused")
        };
        let mut got = vec![0.0; n * k];
        for (row, out) in got.chunks_mut(k).enumerate() {
            matrix.dequantize_row(row, out);
        }
        assert_eq!(got, weights(format, &bytes));
        assert_eq!(matrix.shape(), (n, k));
    }
}

#[test]
fn all_paths_agree_with_the_exact_product() {
    for format in FORMATS {
        for &(m, n, k) in SHAPES {
            let bytes = blocks(format, n, k);
            let matrix = QuantizedMatrix::from_blocks(format, &bytes, n, k).unwrap();
            let (x, w) = (values(m * k, 1), weights(format, &bytes));
            let (exact, full) = (product(&rounded(&x), &w, m, n, k), product(&x, &w, m, n, k));
            for path in Path::supported() {
                let mut out = vec![f32::NAN; m * n];
                matrix.matmul_with(path, &x, m, &mut out);
                let close = error(&out, &exact);
                assert!(close < 1e-5, "{path:?} {format:?} {m} {n} {k}: {close}");
                // The groups of a single dot product may cancel; elsewhere int8 costs under a hundredth.
                let near = error(&out, &full);
                assert!(
                    near < if n * m > 4 { 1.5e-2 } else { 0.1 },
                    "{path:?} {format:?} {m} {n} {k}: {near}"
                );
            }
        }
    }
}

/// The largest magnitudes, where 16-bit sums would overflow if they could; every dot is an exact integer here.
#[test]
fn extremes_are_exact() {
    for format in FORMATS {
        let (n, k) = (16, 64);
        for (byte, sign) in [(0xffu8, 1.0), (0x80, 1.0), (0x80, -1.0), (0x7f, -1.0), (0x7f, 1.0)] {
            let mut bytes = Vec::new();
            for _ in 0..n * k / GROUP {
                let header = format.header_bytes();
                bytes.extend([f16::ONE, f16::ZERO].iter().flat_map(|v| v.to_le_bytes()).take(header));
                bytes.extend(std::iter::repeat_n(byte, format.block_bytes() - header));
            }
            let matrix = QuantizedMatrix::from_blocks(format, &bytes, n, k).unwrap();
            let x = vec![127.0 * sign; 5 * k];
            let wanted: f32 = weights(format, &bytes)[..k].iter().map(|w| w * 127.0 * sign).sum();
            for path in Path::supported() {
                let mut out = vec![0.0; 5 * n];
                matrix.matmul_with(path, &x, 5, &mut out);
                assert!(
                    out.iter().all(|&v| v == wanted),
                    "{path:?} {format:?} {byte} {sign}: {out:?}, not {wanted}"
                );
            }
        }
    }
}

/// Where scales, minima and activations are integers, so are the results, and nothing is rounded.
#[test]
fn integers_are_exact_for_any_number_of_rows() {
    for format in FORMATS {
        for m in 1..=40 {
            let (n, k) = (m * 7 % 50 + 1, GROUP * (m % 5 + 1));
            let mut bytes = blocks(format, n, k);
            for block in bytes.chunks_mut(format.block_bytes()) {
                let header = [f16::ONE, f16::from_f32(-8.0)].map(f16::to_le_bytes);
                block[..format.header_bytes()].copy_from_slice(&header.as_flattened()[..format.header_bytes()]);
            }
            let mut x: Vec<f32> = values(m * k, 3).iter().map(|v| (v * 127.0).round()).collect();
            x.iter_mut().step_by(GROUP).for_each(|v| *v = 127.0);
            let matrix = QuantizedMatrix::from_blocks(format, &bytes, n, k).unwrap();
            let wanted = product(&x, &weights(format, &bytes), m, n, k);
            for path in Path::supported() {
                let mut out = vec![f32::NAN; m * n];
                matrix.matmul_with(path, &x, m, &mut out);
                assert!(
                    out.iter().zip(&wanted).all(|(&got, &wanted)| f64::from(got) == wanted),
                    "{path:?} {format:?} {m} {n} {k}"
                );
            }
        }
    }
}

#[test]
fn activations_are_quantised_alike() {
    let mut x = values(64 * GROUP, 5);
    x[..GROUP].fill(0.0);
    x[GROUP..2 * GROUP].fill(1e-40);
    x[3 * GROUP] = -1e30;
    let mut wanted = Vec::new();
    activations::quantize(Path::Portable, &x, &mut wanted);
    for path in Path::supported() {
        let mut got = Vec::new();
        activations::quantize(path, &x, &mut got);
        for (got, wanted) in got.iter().zip(&wanted) {
            assert_eq!(got.quants, wanted.quants);
            assert_eq!(
                (got.scale, got.scaled_sum, got.offset),
                (wanted.scale, wanted.scaled_sum, wanted.offset)
            );
            assert!(got.quants.iter().all(|&q| q > -128));
        }
    }
}

#[test]
fn quantises_f32_weights() {
    let (n, k) = (20, 128);
    let mut w = values(n * k, 7);
    w[..GROUP].fill(0.0);
    let matrix = QuantizedMatrix::quantize_q8_0(&w, n, k).unwrap();
    let mut row = vec![0.0; k];
    for (index, wanted) in w.chunks(k).enumerate() {
        matrix.dequantize_row(index, &mut row);
        assert!(row.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.005));
    }
    // 34 bytes a block, in two tiles of which the second has rows to spare.
    assert_eq!(matrix.bytes(), 32 * k / GROUP * 34);
}

#[test]
fn refuses_what_does_not_fit() {
    let uneven = QuantizedMatrix::from_blocks(BlockFormat::Q4_1, &[], 1, 33);
    assert_eq!(uneven.err(), Some(QuantizedError::UnevenWidth(33)));
    let short = QuantizedMatrix::from_blocks(BlockFormat::Q8_0, &[0; 33], 1, 32);
    assert!(matches!(
        short.err(),
        Some(QuantizedError::WrongLength {
            wanted: 34,
            got: 33,
            ..
        })
    ));
    let few = QuantizedMatrix::quantize_q8_0(&[0.0; 31], 1, 32);
    assert_eq!(few.err(), Some(QuantizedError::WrongCount { n: 1, k: 32, got: 31 }));
}

#[test]
fn empty_sizes() {
    let none = QuantizedMatrix::from_blocks(BlockFormat::Q4_1, &[], 0, 64).unwrap();
    none.matmul(&[0.0; 128], 2, &mut []);
    let matrix = QuantizedMatrix::quantize_q8_0(&[1.0; 64], 2, 32).unwrap();
    matrix.matmul(&[], 0, &mut []);
    let mut out = [3.0; 2];
    QuantizedMatrix::from_blocks(BlockFormat::Q4_1, &[], 1, 0)
        .unwrap()
        .matmul(&[], 2, &mut out);
    assert_eq!(out, [0.0; 2]);
}
