//! What serving remembers of a sequence: rotated keys and values of every layer.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::DecoderConfig;
use super::kernels::vector::{softmax, sum};
use super::ops::{AttentionShape, RotaryTable, beyond_window, rotate, with_values};

/// Values in a register.
const LANES: usize = 16;

/// Keys and values of one sequence, possibly the continuation of a shared one.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// `[layers]`, each `[len, num_kv_heads * head_dim]`.
    layers: Vec<LayerCache>,
    len: usize,
    prefix: Option<Arc<KvCache>>,
}

#[derive(Debug, Clone, Default)]
struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens.
    pub fn new(config: &DecoderConfig, capacity: usize) -> Self {
        let values = capacity * config.num_kv_heads * config.head_dim;
        let layer = || LayerCache {
            keys: Vec::with_capacity(values),
            values: Vec::with_capacity(values),
        };
        Self {
            layers: (0..config.num_layers).map(|_| layer()).collect(),
            len: 0,
            prefix: None,
        }
    }

    /// An empty cache that continues `prefix`, which itself continues nothing.
    pub fn continuing(prefix: Arc<Self>, config: &DecoderConfig, capacity: usize) -> Self {
        Self {
            prefix: Some(prefix),
            ..Self::new(config, capacity)
        }
    }

    /// Tokens held, the prefix included; the position of the next token.
    pub fn positions(&self) -> usize {
        self.len + self.prefix_len()
    }

    /// Forgets all but the first `positions` tokens; the prefix is never shortened.
    pub fn truncate(&mut self, positions: usize) {
        let keep = positions.saturating_sub(self.prefix_len());
        if keep < self.len {
            for layer in &mut self.layers {
                let row = layer.keys.len() / self.len;
                layer.keys.truncate(keep * row);
                layer.values.truncate(keep * row);
            }
            self.len = keep;
        }
    }

    /// Appends what `other` holds of these positions, so that they need not be computed again; its prefix is not looked into.
    ///
    /// # Errors
    /// When they do not follow this cache's last position, or `other` does not hold them itself: keys are rotated by their position.
    pub fn extend_from(&mut self, other: &Self, positions: Range<usize>) -> Result<()> {
        let first = other.prefix_len();
        if positions.start != self.positions() || positions.start < first || positions.end > other.positions() {
            bail!(
                "positions {positions:?} of a cache of {first}..{} do not continue one of {}",
                other.positions(),
                self.positions()
            )
        }
        if !positions.is_empty() {
            for (layer, from) in self.layers.iter_mut().zip(&other.layers) {
                let row = from.keys.len() / other.len;
                let values = (positions.start - first) * row..(positions.end - first) * row;
                layer.keys.extend_from_slice(&from.keys[values.clone()]);
                layer.values.extend_from_slice(&from.values[values]);
            }
            self.len += positions.len();
        }
        Ok(())
    }

    /// Another continuation of the same prefix, as far as `positions`, with room for `capacity` tokens of its own.
    ///
    /// # Errors
    /// When it holds fewer.
    pub fn fork(&self, positions: usize, config: &DecoderConfig, capacity: usize) -> Result<Self> {
        let mut fork = Self {
            prefix: self.prefix.clone(),
            ..Self::new(config, capacity)
        };
        fork.extend_from(self, fork.positions()..positions)?;
        Ok(fork)
    }

    /// Bytes that a token takes.
    pub fn bytes_per_token(config: &DecoderConfig) -> usize {
        2 * config.num_layers * config.num_kv_heads * config.head_dim * size_of::<f32>()
    }

    fn prefix_len(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.len)
    }

    /// Bytes held, the prefix not included.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|layer| (layer.keys.capacity() + layer.values.capacity()) * size_of::<f32>())
            .sum()
    }
}

/// A sequence within a serving batch: its cache and how many of the batch's next rows are its new tokens.
#[derive(Debug)]
pub struct CachedSequence<'a> {
    /// What came before; the new tokens are appended.
    pub cache: &'a mut KvCache,
    /// Number of new tokens.
    pub len: usize,
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
    if tokens != sequences.iter().map(|sequence| sequence.len).sum::<usize>() || row != shape.row() {
        bail!("the rows of the batch are not those of its sequences")
    }
    if let Some(longest) = sequences.iter().map(|s| s.cache.positions() + s.len).max()
        && longest > rotary.positions()
    {
        bail!(
            "a sequence of {longest} tokens exceeds the model's {}",
            rotary.positions()
        )
    }
    let width = shape.out();
    let mut out = vec![0f32; tokens * width];
    with_values(&qkv.to_device(&candle_core::Device::Cpu)?, |qkv| {
        let mut queries = vec![0f32; tokens * width];
        let mut next = 0;
        for sequence in sequences.iter_mut() {
            let rows = next..next + sequence.len;
            let first = sequence.cache.positions();
            append(
                &qkv[rows.start * row..rows.end * row],
                &mut queries[rows.start * width..rows.end * width],
                &mut sequence.cache.layers[layer],
                (first, shape, rotary),
            );
            next = rows.end;
        }
        // By rows rather than by sequences: a long draft, or a prompt, is work for all threads.
        let sequences = &*sequences;
        let owners = sequences.iter().flat_map(|sequence| {
            let cache = &*sequence.cache;
            (0..sequence.len).map(move |index| (cache, cache.len + index + 1))
        });
        let one = |(row, (cache, len)): (QueryAndOut<'_>, (&KvCache, usize))| {
            let (query, out) = row;
            let prefix = cache.prefix.as_ref().map(|prefix| &prefix.layers[layer]);
            attend_token(out, query, &cache.layers[layer], len, prefix, shape);
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
pub fn advance(sequences: &mut [CachedSequence<'_>]) {
    for sequence in sequences {
        sequence.cache.len += sequence.len;
    }
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
