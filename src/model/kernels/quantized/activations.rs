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

/// The one body of all versions, in a form that compilers turn into vector code; results are the same in all.
#[inline(always)]
fn quantize_here(x: &[f32], groups: &mut [Group]) {
    /// 1.5 * 2^23: added to a small number, it leaves the nearest integer (ties to even) in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    for (x, group) in x.as_chunks::<GROUP>().0.iter().zip(groups) {
        // Bit patterns of magnitudes are ordered as the magnitudes are.
        let largest = x.iter().fold(0, |largest, v| (v.to_bits() & 0x7fff_ffff).max(largest));
        let largest = f32::from_bits(largest);
        let scale = largest / 127.0;
        // A scale too small to invert means that all values are zero or nearly so.
        let inverse = if scale > 1e-37 { 127.0 / largest } else { 0.0 };
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
