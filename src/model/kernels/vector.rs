//! Small loops over `f32` slices, written so that the compiler turns them into vector code.
//!
//! Each is `#[inline(always)]`: the functions that call them are compiled once for each level of vector instructions
//! (`multiversion`) and pick their version at run time.

const LANES: usize = 16;

/// Inner product of two slices of the same length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = x[lane].mul_add(y[lane], lanes[lane]);
        }
    }
    let mut sum = sum_lanes(lanes);
    for (x, y) in a_rest.iter().zip(b_rest) {
        sum = x.mul_add(*y, sum);
    }
    sum
}

/// `y += scale * x`.
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = scale.mul_add(*x, *y);
    }
}

/// Sum of a slice.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    sum_lanes(lanes) + rest.iter().sum::<f32>()
}

/// Sum of the squared distances of a slice's values from `centre`.
#[inline(always)]
pub(crate) fn squares_about(values: &[f32], centre: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let distance = chunk[lane] - centre;
            lanes[lane] = distance.mul_add(distance, lanes[lane]);
        }
    }
    sum_lanes(lanes)
        + rest
            .iter()
            .map(|value| (value - centre) * (value - centre))
            .sum::<f32>()
}

/// Largest value of a slice; negative infinity when it is empty.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] {
                chunk[lane]
            } else {
                lanes[lane]
            };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |largest, value| largest.max(*value))
}

/// Replaces scores by `exp(score - max)`; returns the maximum and the sum of the new values.
#[inline(always)]
pub(crate) fn exp_shifted(values: &mut [f32]) -> (f32, f32) {
    let largest = max(values);
    for value in values.iter_mut() {
        *value = exp(*value - largest);
    }
    (largest, sum(values))
}

/// Replaces scores by their softmax.
#[inline(always)]
pub(crate) fn softmax(values: &mut [f32]) {
    let (_, total) = exp_shifted(values);
    let inverse = total.recip();
    for value in values.iter_mut() {
        *value *= inverse;
    }
}

/// The exponential, to about two units in the last place, without a branch; saturates outside -87..88.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer in registers.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // Taylor coefficients 1/7! … 1/0!; |r| is at most ln(2) / 2.
    let mut p = 1.984_127e-4f32;
    p = p.mul_add(r, 1.388_888_9e-3);
    p = p.mul_add(r, 8.333_334e-3);
    p = p.mul_add(r, 4.166_666_6e-2);
    p = p.mul_add(r, 1.666_666_7e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let exponent = rounded.to_bits().wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut half = [0f32; LANES / 2];
    for (index, value) in half.iter_mut().enumerate() {
        *value = lanes[index] + lanes[index + LANES / 2];
    }
    half.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        let mut x = -86.9f32;
        while x < 87.9 {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 5e-7, "exp({x}) = {got}, expected {want}");
            x += 0.013;
        }
    }

    #[test]
    fn reductions_cover_the_remainder() {
        let values: Vec<f32> = (0..37).map(|i| i as f32 - 20.0).collect();
        assert_eq!(sum(&values), values.iter().sum::<f32>());
        assert_eq!(max(&values), 16.0);
        let want: f32 = values.iter().map(|v| v * v).sum();
        assert!((dot(&values, &values) - want).abs() < 1e-3);
        let mut scores = values.clone();
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
