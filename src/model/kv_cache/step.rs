//! A forward pass over sequences whose keys and values lie in a pool on the device.
//!
//! Everything that all layers need is made once, on the host, and goes to the device in one piece: where each row of a head goes, by which
//! position it is turned, where keys and values are written and from where they are read. A layer is then a handful of candle's operations:
//! rows are put in order and turned, keys and values scattered into the pool; of each group of sequences, padded to the longest, keys and
//! values are gathered, and two batched products with a softmax between them are the attention. Queries that share a key-value head are rows
//! of one product, so that keys are never repeated.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::groups::{Group, Seen, grouped, pieces};
use super::slots::{STRIPES, SlotPool};
use super::{CachedSequence, Kind, Upload, check};
use crate::model::ops::{masked_softmax, turn};
use crate::model::{Decoder, DecoderConfig};

/// Fewer new tokens than this are written one after the other.
const FEW: usize = 4;

/// What a pass brings to its layers.
pub(crate) struct Step {
    pool: Arc<SlotPool>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    /// Which row of a head comes next: queries of all groups, then keys and values as they are written. `None` if they are in order.
    order: Option<Tensor>,
    /// Of each of these rows, `[rows, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// Where those go that are no queries: `[2 * num_kv_heads, depth, stripes * head_dim]`.
    write: Tensor,
    stripes: usize,
    /// What each group of queries sees, by window.
    views: Vec<(usize, Vec<View>)>,
    /// Which row of the groups' results comes next; `None` if they are in order.
    out: Option<Tensor>,
}

/// A group of queries, and the keys that it sees through a window.
struct View {
    batch: usize,
    /// Of each piece, padded.
    queries: usize,
    keys: usize,
    /// `[batch * keys]`
    slots: Tensor,
    /// `[num_kv_heads * batch, heads of a key * queries, keys]`; `None` where all see all.
    mask: Option<Tensor>,
}

impl Step {
    /// Takes slots for the new tokens of a pass and makes its indices. The caches count the new tokens from now on.
    ///
    /// # Errors
    /// When the caches are not in one pool, it has no room, or a sequence is too long. The caches must then be discarded.
    pub(crate) fn new(decoder: &Decoder, rows: usize, sequences: &mut [CachedSequence<'_>]) -> Result<Self> {
        check(rows, sequences, decoder.rotary.positions())?;
        let pool = appended(rows, sequences)?;
        let (config, device, tensors) = (decoder.config(), decoder.device(), pool.tensors()?);
        let mut slots = Vec::with_capacity(sequences.len());
        let mut new = Vec::with_capacity(rows);
        for sequence in sequences.iter() {
            let own = sequence.cache.slots()?.slots();
            let first = own.len() - sequence.len;
            new.extend(own[first..].iter().copied().zip(first..));
            slots.push(own);
        }
        let groups = grouped(pieces(sequences), config);
        let stripes = if rows <= FEW { 1 } else { STRIPES };
        let written = striped(&new, stripes);
        let (order, out) = Order::of(&groups, &new, &written, config, decoder.rotary.positions());

        let (mut indices, mut masks) = (Upload::default(), Upload::default());
        let order_section = (!is_in_order(&order.rows)).then(|| indices.section(order.rows));
        let out = (!is_in_order(&out)).then(|| indices.section(out));
        let angles = indices.section(order.angles);
        // Nothing is written where the index is the largest there is.
        let place = |token: &Option<usize>| token.map_or(u32::MAX, |token| new[token].0 / stripes as u32);
        let write = indices.section(written.iter().map(place));
        let mut windows: Vec<usize> = (0..config.num_layers).map(|layer| config.window(layer)).collect();
        windows.sort_unstable();
        windows.dedup();
        let seen: Vec<(usize, Vec<Seen>)> = windows
            .into_iter()
            .map(|window| {
                let through = |group: &Group| group.seen(window, &slots, &mut indices, &mut masks);
                (window, groups.iter().map(through).collect())
            })
            .collect();

        let (indices, masks) = (indices.send(device)?, masks.send(device)?);
        let part = |of: &Option<Tensor>, section: Range<usize>| match of {
            Some(all) => all.narrow(0, section.start, section.len()),
            None => bail!("nothing was sent"),
        };
        let (kv_heads, head_dim) = (config.num_kv_heads, config.head_dim);
        let view = |(group, seen): (&Group, Seen)| -> Result<View> {
            let (batch, queries, keys) = (group.pieces.len(), group.queries, seen.keys);
            let per_key = config.num_heads / kv_heads;
            let mask = |section| -> Result<Tensor> {
                part(&masks, section)?
                    .reshape((1, batch, 1, queries, keys))?
                    .broadcast_as((kv_heads, batch, per_key, queries, keys))?
                    .contiguous()?
                    .reshape((kv_heads * batch, per_key * queries, keys))
            };
            Ok(View {
                batch,
                queries,
                keys,
                slots: part(&indices, seen.slots)?,
                mask: seen.mask.map(mask).transpose()?,
            })
        };
        let views = |(window, seen): (usize, Vec<Seen>)| -> Result<_> {
            let views = groups.iter().zip(seen).map(&view).collect::<Result<_>>()?;
            Ok((window, views))
        };
        let depth = written.len() / stripes;
        let write = part(&indices, write)?
            .reshape((1, depth, stripes, 1))?
            .broadcast_as((2 * kv_heads, depth, stripes, head_dim))?
            .contiguous()?
            .reshape((2 * kv_heads, depth, stripes * head_dim))?;
        let angles = part(&indices, angles)?;
        Ok(Self {
            heads: config.num_heads,
            kv_heads,
            head_dim,
            tokens: rows,
            order: order_section.map(|order| part(&indices, order)).transpose()?,
            cos: tensors.cos.index_select(&angles, 0)?,
            sin: tensors.sin.index_select(&angles, 0)?,
            write,
            stripes,
            views: seen.into_iter().map(views).collect::<Result<_>>()?,
            out: out.map(|out| part(&indices, out)).transpose()?,
            pool,
        })
    }

    /// Attention of the new tokens to their past and to each other through a window; writes their keys and values into the pool.
    /// `qkv [tokens, (num_heads + 2 num_kv_heads) * head_dim]`, not yet rotated, to `[tokens, num_heads * head_dim]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub(crate) fn attend(&self, qkv: &Tensor, layer: usize, window: usize) -> Result<Tensor> {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let rows = qkv.reshape((self.tokens * (heads + 2 * kv_heads), dim))?;
        let rows = match &self.order {
            Some(order) => rows.index_select(order, 0)?,
            None => rows,
        };
        let rows = turn(&rows, &self.cos, &self.sin)?;

        let pool = &self.pool.tensors()?.layers[layer];
        let (_, slots, _) = pool.dims3()?;
        let striped = pool.reshape((2 * kv_heads, slots / self.stripes, self.stripes * dim))?;
        let count = self.write.elem_count() / dim;
        let new = rows.narrow(0, rows.dims()[0] - count, count)?;
        striped.scatter_set(&self.write, &new.reshape(self.write.shape())?, 1)?;

        let Some((_, views)) = self.views.iter().find(|(of, _)| *of == window) else {
            bail!("no layer sees {window} tokens")
        };
        let mut first = 0;
        let mut results = Vec::with_capacity(views.len());
        for view in views {
            let count = heads * view.batch * view.queries;
            let query = rows.narrow(0, first, count)?;
            first += count;
            let batch = kv_heads * view.batch;
            let query = query.reshape((batch, count / batch, dim))?;
            let seen = pool.index_select(&view.slots, 1)?;
            let half = |first: usize| seen.narrow(0, first, kv_heads)?.reshape((batch, view.keys, dim));
            let scores = query.matmul(&half(0)?.t()?)?;
            let weights = masked_softmax(&scores, view.mask.as_ref())?;
            results.push(weights.matmul(&half(kv_heads)?)?.reshape((count, dim))?);
        }
        let result = match &results[..] {
            [one] => one.clone(),
            more => Tensor::cat(more, 0)?,
        };
        let result = match &self.out {
            Some(out) => result.index_select(out, 0)?,
            None => result,
        };
        result.reshape((self.tokens, heads * dim))
    }
}

/// Takes a slot for every new token; returns the one pool of all sequences.
fn appended(rows: usize, sequences: &mut [CachedSequence<'_>]) -> Result<Arc<SlotPool>> {
    let Some(first) = sequences.first() else {
        bail!("a pass over no sequence")
    };
    let pool = first.cache.slots()?.pool().clone();
    for sequence in sequences.iter() {
        if !Arc::ptr_eq(sequence.cache.slots()?.pool(), &pool) {
            bail!("caches of different spaces in one pass")
        }
    }
    let taken = pool.take(rows)?;
    let mut taken = taken.as_slice();
    for sequence in sequences {
        if let Kind::Slots(cache) = &mut sequence.cache.0 {
            let (own, rest) = taken.split_at(sequence.len);
            cache.append(own);
            taken = rest;
        }
    }
    Ok(pool)
}

/// Which token is written where, by stripes: of each line one token for each class of slots, if there is one.
fn striped(new: &[(u32, usize)], stripes: usize) -> Vec<Option<usize>> {
    let mut classes = vec![Vec::new(); stripes];
    for (token, (slot, _)) in new.iter().enumerate() {
        classes[*slot as usize % stripes].push(token);
    }
    let depth = classes.iter().map(Vec::len).max().unwrap_or(0);
    (0..depth)
        .flat_map(|line| classes.iter().map(move |tokens| tokens.get(line).copied()))
        .collect()
}

/// Rows of heads as the layers take them: queries by group, key-value head, piece, head; then keys, then values, as they are written.
struct Order {
    /// Token `t` has its head `h` in row `t * (num_heads + 2 * num_kv_heads) + h`.
    rows: Vec<u32>,
    /// Rows of the rotary table: positions, and behind all of them positions with the scale of attention.
    angles: Vec<u32>,
}

impl Order {
    /// The order, and its inverse for queries: where head `h` of token `t` comes, at `t * num_heads + h`.
    fn of(
        groups: &[Group],
        new: &[(u32, usize)],
        written: &[Option<usize>],
        config: &DecoderConfig,
        positions: usize,
    ) -> (Self, Vec<u32>) {
        let (heads, kv_heads) = (config.num_heads, config.num_kv_heads);
        let (per_key, per_row) = (heads / kv_heads, heads + 2 * kv_heads);
        let (mut rows, mut angles) = (Vec::new(), Vec::new());
        let mut inverse = vec![0; new.len() * heads];
        for group in groups {
            let (pieces, queries) = (&group.pieces, group.queries);
            for (key, piece) in (0..kv_heads).flat_map(|key| pieces.iter().map(move |piece| (key, piece))) {
                for (head, query) in (0..per_key).flat_map(|head| (0..queries).map(move |query| (head, query))) {
                    // What is padding repeats the last one.
                    let own = query.min(piece.queries - 1);
                    let (token, head) = (piece.row + own, key * per_key + head);
                    if query == own {
                        inverse[token * heads + head] = rows.len() as u32;
                    }
                    rows.push((token * per_row + head) as u32);
                    angles.push((positions + piece.position + own) as u32);
                }
            }
        }
        for head in 0..2 * kv_heads {
            for token in written {
                let token = token.unwrap_or(0);
                rows.push((token * per_row + heads + head) as u32);
                // Values are turned by nothing.
                angles.push(if head < kv_heads { new[token].1 as u32 } else { 0 });
            }
        }
        (Self { rows, angles }, inverse)
    }
}

fn is_in_order(indices: &[u32]) -> bool {
    indices.iter().zip(0..).all(|(index, place)| *index == place)
}
