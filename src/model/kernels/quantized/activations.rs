//! Quantising activations to int8, by groups of 32.

use super::{GROUP, Path};

/// A group of activations: `value = scale * quants`.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Group {
    /// Between -127 and 127.
    pub(super) quants: [i8; GROUP],
    pub(super) scale: f32,
    /// `scale` times the sum of `quants`: what a weight's minimum is multiplied by.
    pub(super) scaled_sum: f32,
    /// -128 times the sum of `quants`: what takes back the 128 added to signed weights.
    pub(super) offset: i32,
}

impl Group {
    const ZERO: Self = Self {
        quants: [0; GROUP],
        scale: 0.0,
        scaled_sum: 0.0,
        offset: 0,
    };
}

/// Replaces `groups` with the quantised `x`; `path` must be supported.
pub(super) fn quantize(path: Path, x: &[f32], groups: &mut Vec<Group>) {
    let count = x.len() / GROUP;
    if groups.len() < count {
        groups.resize(count, Group::ZERO);
    }
    groups.truncate(count);
    match path {
        // SAFETY: the caller vouches for `path`.
        #[cfg(target_arch = "x86_64")]
        Path::Vnni => unsafe { quantize_avx512(x, groups) },
        // SAFETY: the caller vouches for `path`.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { quantize_avx2(x, groups) },
        // SAFETY: the caller vouches for `path`.
        #[cfg(target_arch = "aarch64")]
        Path::Dotprod | Path::Neon => unsafe { quantize_neon(x, groups) },
        Path::Portable => quantize_here(x, groups),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn quantize_avx512(x: &[f32], groups: &mut [Group]) {
    quantize_here(x, groups);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn quantize_avx2(x: &[f32], groups: &mut [Group]) {
    quantize_here(x, groups);
}

/// By hand: of the body below compilers make NEON code but for the sums, which they take value by value.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn quantize_neon(x: &[f32], groups: &mut [Group]) {
    use std::arch::aarch64::*;
    for (x, group) in x.as_chunks::<GROUP>().0.iter().zip(groups) {
        // SAFETY: a group has eight times four values.
        let x: [float32x4_t; 8] = std::array::from_fn(|i| unsafe { vld1q_f32(x.as_ptr().add(4 * i)) });
        let mut largest = vabsq_f32(x[0]);
        for x in &x[1..] {
            largest = vmaxq_f32(largest, vabsq_f32(*x));
        }
        let (scale, inverse) = scales(vmaxvq_f32(largest));
        let words = x.map(|x| vcvtnq_s32_f32(vmulq_n_f32(x, inverse)));
        let halves = |i: usize| vcombine_s16(vmovn_s32(words[i]), vmovn_s32(words[i + 1]));
        let quants = [0, 4].map(|i| vcombine_s8(vmovn_s16(halves(i)), vmovn_s16(halves(i + 2))));
        let sum = i32::from(vaddlvq_s8(quants[0])) + i32::from(vaddlvq_s8(quants[1]));
        for (quants, place) in quants.into_iter().zip(group.quants.as_chunks_mut::<16>().0) {
            // SAFETY: there are sixteen.
            unsafe { vst1q_s8(place.as_mut_ptr(), quants) };
        }
        group.scale = scale;
        group.scaled_sum = scale * sum as f32;
        group.offset = -128 * sum;
    }
}

/// The scale of a group by its largest magnitude, and what values are multiplied by.
#[inline(always)]
fn scales(largest: f32) -> (f32, f32) {
    let scale = largest / 127.0;
    // A scale too small to invert means that all values are zero or nearly so.
    (scale, if scale > 1e-37 { 127.0 / largest } else { 0.0 })
}

/// The one body of the other versions, in a form that compilers turn into vector code; results are the same in all.
#[inline(always)]
fn quantize_here(x: &[f32], groups: &mut [Group]) {
    /// 1.5 * 2^23: added to a small number, it leaves the nearest integer (ties to even) in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    for (x, group) in x.as_chunks::<GROUP>().0.iter().zip(groups) {
        // Bit patterns of magnitudes are ordered as the magnitudes are.
        let largest = x.iter().fold(0, |largest, v| (v.to_bits() & 0x7fff_ffff).max(largest));
        let (scale, inverse) = scales(f32::from_bits(largest));
        let mut sum = 0;
        for (v, quant) in x.iter().zip(&mut group.quants) {
            *quant = (v * inverse + ROUND).to_bits() as i8;
            sum += i32::from(*quant);
        }
        group.scale = scale;
        group.scaled_sum = scale * sum as f32;
        group.offset = -128 * sum;
    }
}
