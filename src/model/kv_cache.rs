//! What serving remembers of a sequence: rotated keys and values of every layer.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::DecoderConfig;
use super::ops::{AttentionShape, RotaryTable, attend_row, beyond_window, rotate, with_values};

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

/// Attention of new tokens to their cached past and to each other, by sequence; appends their keys and values to layer
/// `layer` of the caches. `qkv [Σ len, row]`, not yet rotated, to `[Σ len, num_heads * head_dim]`.
pub(crate) fn attend(
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
        let (mut qkv, mut rest) = (qkv, out.as_mut_slice());
        let mut work = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter_mut() {
            let (rows, other_rows) = qkv.split_at(sequence.len * row);
            let (out, other_out) = rest.split_at_mut(sequence.len * width);
            work.push((sequence, rows, out));
            (qkv, rest) = (other_rows, other_out);
        }
        let one = |(sequence, rows, out): (&mut CachedSequence<'_>, &[f32], &mut [f32])| {
            let first = sequence.cache.positions();
            let KvCache { layers, prefix, .. } = &mut *sequence.cache;
            let prefix = prefix.as_ref().map(|prefix| &prefix.layers[layer]);
            attend_sequence(out, rows, &mut layers[layer], prefix, first, shape, rotary);
        };
        if tokens < 8 {
            work.into_iter().for_each(one);
        } else {
            work.into_par_iter().for_each(one);
        }
        Ok(())
    })?;
    Tensor::from_vec(out, (tokens, width), qkv.device())
}

/// Marks the new tokens as held; called once all layers have appended theirs.
pub(crate) fn advance(sequences: &mut [CachedSequence<'_>]) {
    for sequence in sequences {
        sequence.cache.len += sequence.len;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn attend_sequence(
    out: &mut [f32],
    qkv: &[f32],
    cache: &mut LayerCache,
    prefix: Option<&LayerCache>,
    first_position: usize,
    shape: AttentionShape,
    rotary: &RotaryTable,
) {
    let (row, width, dim) = (shape.row(), shape.out(), shape.head_dim);
    let stride = shape.num_kv_heads * dim;
    let queries = shape.num_heads * dim;
    let mut qk = vec![0f32; queries + stride];
    let mut scores = Vec::new();
    let empty = LayerCache::default();
    let prefix = prefix.unwrap_or(&empty);
    let prefix_len = prefix.keys.len() / stride;
    for (index, (qkv, out)) in qkv.chunks_exact(row).zip(out.chunks_exact_mut(width)).enumerate() {
        qk.copy_from_slice(&qkv[..queries + stride]);
        let (cos, sin) = rotary.at(first_position + index);
        for head in qk.chunks_exact_mut(dim) {
            rotate(head, cos, sin);
        }
        cache.keys.extend_from_slice(&qk[queries..]);
        cache.values.extend_from_slice(&qkv[queries + stride..]);
        let own_len = cache.keys.len() / stride;
        let (of_prefix, of_own) = beyond_window(prefix_len, own_len, shape.window);
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let offset = head * shape.num_kv_heads / shape.num_heads * dim;
            let from = |values: &'_ [f32], skipped: usize| values.len().min(offset + skipped * stride);
            let runs = [
                (
                    &prefix.keys[from(&prefix.keys, of_prefix)..],
                    &prefix.values[from(&prefix.values, of_prefix)..],
                    prefix_len - of_prefix,
                ),
                (
                    &cache.keys[from(&cache.keys, of_own)..],
                    &cache.values[from(&cache.values, of_own)..],
                    own_len - of_own,
                ),
            ];
            attend_row(out, &qk[head * dim..][..dim], runs, stride, &mut scores);
        }
    }
}
