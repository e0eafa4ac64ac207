//! Caches in this process's memory, and attention over them by the loops of the CPU.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{CachedSequence, KvCache, check};
use crate::model::kernels::vector::{softmax, sum};
use crate::model::ops::{AttentionShape, RotaryTable, beyond_window, rotate, with_values};

/// Values in a register.
const LANES: usize = 16;

/// Keys and values of one sequence, possibly the continuation of a shared one.
#[derive(Debug)]
pub(super) struct HostCache {
    /// `[layers]`, each `[len, row]`.
    layers: Vec<LayerCache>,
    /// Keys of a token and layer, and as many values.
    row: usize,
    len: usize,
    /// On the host as well.
    prefix: Option<Arc<KvCache>>,
}

#[derive(Debug, Default)]
struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl HostCache {
    pub(super) fn new(layers: usize, row: usize, capacity: usize) -> Self {
        let layer = || LayerCache {
            keys: Vec::with_capacity(capacity * row),
            values: Vec::with_capacity(capacity * row),
        };
        Self {
            layers: (0..layers).map(|_| layer()).collect(),
            row,
            len: 0,
            prefix: None,
        }
    }

    /// Of the same layers.
    fn like(&self, capacity: usize) -> Self {
        Self::new(self.layers.len(), self.row, capacity)
    }

    /// A continuation of this cache, which is the one in `shared`.
    pub(super) fn continued(&self, shared: Arc<KvCache>, capacity: usize) -> Self {
        Self {
            prefix: Some(shared),
            ..self.like(capacity)
        }
    }

    pub(super) fn positions(&self) -> usize {
        self.len + self.prefix_len()
    }

    pub(super) fn truncate(&mut self, positions: usize) {
        let keep = positions.saturating_sub(self.prefix_len());
        if keep < self.len {
            for layer in &mut self.layers {
                layer.keys.truncate(keep * self.row);
                layer.values.truncate(keep * self.row);
            }
            self.len = keep;
        }
    }

    pub(super) fn extend_from(&mut self, other: &Self, positions: Range<usize>) -> Result<()> {
        let first = other.prefix_len();
        if positions.start != self.positions() || positions.start < first || positions.end > other.positions() {
            bail!(
                "positions {positions:?} of a cache of {first}..{} do not continue one of {}",
                other.positions(),
                self.positions()
            )
        }
        let values = (positions.start - first) * self.row..(positions.end - first) * self.row;
        for (layer, from) in self.layers.iter_mut().zip(&other.layers) {
            layer.keys.extend_from_slice(&from.keys[values.clone()]);
            layer.values.extend_from_slice(&from.values[values.clone()]);
        }
        self.len += positions.len();
        Ok(())
    }

    pub(super) fn fork(&self, positions: usize, capacity: usize) -> Result<Self> {
        let mut fork = Self {
            prefix: self.prefix.clone(),
            ..self.like(capacity)
        };
        fork.extend_from(self, fork.positions()..positions)?;
        Ok(fork)
    }

    fn prefix_len(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.positions())
    }

    fn prefix_layer(&self, layer: usize) -> Option<&LayerCache> {
        let prefix = self.prefix.as_ref()?.host().ok()?;
        Some(&prefix.layers[layer])
    }
}

/// A row of queries and the row of the result.
type QueryAndOut<'a> = (&'a [f32], &'a mut [f32]);

/// Attention of new tokens to their cached past and to each other, by sequence; appends their keys and values to layer
/// `layer` of the caches. `qkv [Σ len, row]`, not yet rotated, to `[Σ len, num_heads * head_dim]`.
///
/// # Errors
/// When the shapes do not fit, or a sequence is longer than the rotary table.
///
/// # Panics
/// If the caches have no such layer.
pub fn attend(
    qkv: &Tensor,
    layer: usize,
    sequences: &mut [CachedSequence<'_>],
    shape: AttentionShape,
    rotary: &RotaryTable,
) -> Result<Tensor> {
    let (tokens, row) = qkv.dims2()?;
    check(tokens, sequences, rotary.positions())?;
    if row != shape.row() {
        bail!("rows of {row} values for attention over {}", shape.row())
    }
    let width = shape.out();
    let mut out = vec![0f32; tokens * width];
    with_values(&qkv.to_device(&candle_core::Device::Cpu)?, |qkv| {
        let mut queries = vec![0f32; tokens * width];
        let mut next = 0;
        for sequence in sequences.iter_mut() {
            let rows = next..next + sequence.len;
            let cache = sequence.cache.host_mut()?;
            let first = cache.positions();
            append(
                &qkv[rows.start * row..rows.end * row],
                &mut queries[rows.start * width..rows.end * width],
                &mut cache.layers[layer],
                (first, shape, rotary),
            );
            next = rows.end;
        }
        // By rows rather than by sequences: a long draft, or a prompt, is work for all threads.
        let sequences = &*sequences;
        let caches = sequences.iter().filter_map(|s| Some((s.cache.host().ok()?, s.len)));
        let owners = caches.flat_map(|(cache, len)| (0..len).map(move |index| (cache, cache.len + index + 1)));
        let one = |(row, (cache, len)): (QueryAndOut<'_>, (&HostCache, usize))| {
            let (query, out) = row;
            attend_token(out, query, &cache.layers[layer], len, cache.prefix_layer(layer), shape);
        };
        if tokens < 4 {
            let rows = queries.chunks_exact(width).zip(out.chunks_exact_mut(width));
            rows.zip(owners).for_each(one);
        } else {
            let owners: Vec<_> = owners.collect();
            let rows = queries.par_chunks_exact(width).zip(out.par_chunks_exact_mut(width));
            rows.zip(owners).with_min_len(2).for_each(one);
        }
        Ok(())
    })?;
    Tensor::from_vec(out, (tokens, width), qkv.device())
}

/// Marks the new tokens as held; called once all layers have appended theirs.
///
/// # Errors
/// When a cache is not on the host.
pub fn advance(sequences: &mut [CachedSequence<'_>]) -> Result<()> {
    for sequence in sequences {
        sequence.cache.host_mut()?.len += sequence.len;
    }
    Ok(())
}

/// Rotates queries and keys, and appends keys and values to the cache.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn append(
    qkv: &[f32],
    queries: &mut [f32],
    cache: &mut LayerCache,
    (first_position, shape, rotary): (usize, AttentionShape, &RotaryTable),
) {
    let (row, width, dim) = (shape.row(), shape.out(), shape.head_dim);
    let stride = shape.num_kv_heads * dim;
    let rows = qkv.chunks_exact(row).zip(queries.chunks_exact_mut(width));
    for (index, (qkv, queries)) in rows.enumerate() {
        let (cos, sin) = rotary.at(first_position + index);
        queries.copy_from_slice(&qkv[..width]);
        for head in queries.chunks_exact_mut(dim) {
            rotate(head, cos, sin);
        }
        let start = cache.keys.len();
        cache.keys.extend_from_slice(&qkv[width..width + stride]);
        for head in cache.keys[start..].chunks_exact_mut(dim) {
            rotate(head, cos, sin);
        }
        cache.values.extend_from_slice(&qkv[width + stride..]);
    }
}

/// Attention of one token, already in the cache as the last of `own_len`, to the prefix and to what comes before it.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn attend_token(
    out: &mut [f32],
    queries: &[f32],
    cache: &LayerCache,
    own_len: usize,
    prefix: Option<&LayerCache>,
    shape: AttentionShape,
) {
    let dim = shape.head_dim;
    let stride = shape.num_kv_heads * dim;
    let empty = LayerCache::default();
    let prefix = prefix.unwrap_or(&empty);
    let prefix_len = prefix.keys.len() / stride;
    let (of_prefix, of_own) = beyond_window(prefix_len, own_len, shape.window);
    let keys = [
        &prefix.keys[of_prefix * stride..prefix_len * stride],
        &cache.keys[of_own * stride..own_len * stride],
    ];
    let values = [
        &prefix.values[of_prefix * stride..prefix_len * stride],
        &cache.values[of_own * stride..own_len * stride],
    ];
    let scale = (dim as f32).sqrt().recip();
    let seen = prefix_len - of_prefix + own_len - of_own;
    let mut lanes = Vec::with_capacity(seen);
    let mut scores = vec![0f32; seen];
    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
        let offset = head * shape.num_kv_heads / shape.num_heads * dim;
        let (query, query_rest) = queries[head * dim..][..dim].as_chunks::<LANES>();
        lanes.clear();
        for keys in keys {
            for key in keys.chunks_exact(stride) {
                let (key, key_rest) = key[offset..][..dim].as_chunks::<LANES>();
                let mut sums = [0f32; LANES];
                for (query, key) in query.iter().zip(key) {
                    for lane in 0..LANES {
                        sums[lane] = query[lane].mul_add(key[lane], sums[lane]);
                    }
                }
                for lane in 0..query_rest.len() {
                    sums[lane] = query_rest[lane].mul_add(key_rest[lane], sums[lane]);
                }
                lanes.push(sums);
            }
        }
        // A loop of its own: in the one above the compiler would give up its wide registers for these sums.
        for (score, lanes) in scores.iter_mut().zip(&lanes) {
            *score = sum(lanes) * scale;
        }
        softmax(&mut scores);
        let mut at = 0;
        while at < dim {
            at += match dim - at {
                64.. => mix::<64>(&mut out[at..], &scores, values, stride, offset + at),
                16.. => mix::<16>(&mut out[at..], &scores, values, stride, offset + at),
                _ => mix::<1>(&mut out[at..], &scores, values, stride, offset + at),
            };
        }
    }
}

/// `W` values of the sum of all `values`, which lie `stride` apart, by their scores; returns `W`.
#[inline(always)]
fn mix<const W: usize>(out: &mut [f32], scores: &[f32], values: [&[f32]; 2], stride: usize, offset: usize) -> usize {
    let mut sums = [0f32; W];
    let mut scores = scores.iter();
    for values in values {
        for (value, score) in values.chunks_exact(stride).zip(&mut scores) {
            if let Some(value) = value[offset..].first_chunk::<W>() {
                for lane in 0..W {
                    sums[lane] = score.mul_add(value[lane], sums[lane]);
                }
            }
        }
    }
    if let Some(out) = out.first_chunk_mut::<W>() {
        *out = sums;
    }
    W
}
