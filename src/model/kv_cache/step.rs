//! A forward pass over sequences whose keys and values lie in a pool on the device.
//!
//! Everything that all layers need is made once, on the host, and goes to the device in one piece: where each row of a head goes, by which
//! position it is turned, where keys and values are written and from where they are read. A layer is then a handful of candle's operations:
//! rows are put in order and turned, keys and values scattered into the pool; of each group of sequences, padded to the longest, keys and
//! values are gathered, and two batched products with a softmax between them are the attention. Queries that share a key-value head are rows
//! of one product, so that keys are never repeated.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use super::slots::{PADDING, STRIPES, SlotPool};
use super::{CachedSequence, Kind, check};
use crate::model::Decoder;
use crate::model::ops::{masked_softmax, turn};

/// New tokens of a sequence that are attended to in one go; more are cut into pieces.
const QUERIES: usize = 128;
/// Values that a group may gather, and scores that it may have, but for a single piece: temporaries of some 512 and 256 MiB.
const GATHERED: usize = 1 << 28;
const SCORES: usize = 1 << 26;
/// Scores of a head that are computed in vain rather than begin another group.
const SPARED: usize = 2048;
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
    /// How many of them are queries.
    queries: usize,
    /// Where the others go: `[2 * num_kv_heads, depth, stripes * head_dim]`.
    write: Tensor,
    stripes: usize,
    groups: Vec<Group>,
    /// What the groups see, by window.
    views: Vec<(usize, Vec<View>)>,
    /// Which row of the groups' results comes next; `None` if they are in order.
    out: Option<Tensor>,
}

/// Pieces that are computed together.
struct Group {
    batch: usize,
    /// Queries of each, padded.
    queries: usize,
}

/// The keys that a group sees through a window.
struct View {
    /// `[batch * keys]`
    slots: Tensor,
    /// `[num_kv_heads * batch, heads of queries * queries, keys]`; `None` where all see all.
    mask: Option<Tensor>,
    /// Of each, padded.
    keys: usize,
}

/// Consecutive new tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    sequence: usize,
    /// First row of the batch.
    row: usize,
    queries: usize,
    /// Position of the first.
    position: usize,
}

impl Piece {
    /// Positions that its tokens see through a window.
    fn seen(&self, window: usize) -> Range<usize> {
        (self.position + 1).saturating_sub(window)..self.position + self.queries
    }
}

/// Values that go to the device together.
struct Upload<T> {
    values: Vec<T>,
}

impl<T: candle_core::WithDType> Upload<T> {
    fn section(&mut self, values: impl IntoIterator<Item = T>) -> Range<usize> {
        let start = self.values.len();
        self.values.extend(values);
        start..self.values.len()
    }

    fn send(self, device: &Device) -> Result<Tensor> {
        let len = self.values.len();
        Tensor::from_vec(self.values, len, device)
    }
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
        let (heads, kv_heads, head_dim) = (config.num_heads, config.num_kv_heads, config.head_dim);
        let (per_key, per_row) = (heads / kv_heads, heads + 2 * kv_heads);

        let pieces = pieces(sequences);
        let groups = grouped(pieces, heads, 2 * kv_heads * head_dim);
        // Where each row of the batch is, and of which slot.
        let mut places = Vec::with_capacity(rows);
        let mut slots: Vec<&[u32]> = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter() {
            let own = sequence.cache.slots()?.slots();
            let first = own.len() - sequence.len;
            places.extend(own[first..].iter().zip(first..));
            slots.push(own);
        }

        // Rows of heads: token `t` has its head `h` in row `t * per_row + h`. Rotary rows: position, or with the scale behind all of them.
        let (mut order, mut angles) = (Vec::new(), Vec::new());
        let mut out = vec![0u32; rows * heads];
        let scaled = decoder.rotary.positions();
        for group in &groups {
            let queries = widest(group);
            for head in 0..kv_heads {
                for piece in group {
                    for of_key in 0..per_key {
                        for query in 0..queries {
                            let own = query.min(piece.queries - 1);
                            let (token, head) = (piece.row + own, head * per_key + of_key);
                            if query == own {
                                out[token * heads + head] = order.len() as u32;
                            }
                            order.push((token * per_row + head) as u32);
                            angles.push((scaled + piece.position + own) as u32);
                        }
                    }
                }
            }
        }
        let queries = order.len();
        let stripes = if rows <= FEW { 1 } else { STRIPES };
        let mut lines = vec![Vec::new(); stripes];
        for (token, &(&slot, _)) in places.iter().enumerate() {
            lines[slot as usize % stripes].push(token);
        }
        let depth = lines.iter().map(Vec::len).max().unwrap_or(0);
        let written: Vec<Option<usize>> = (0..depth)
            .flat_map(|line| lines.iter().map(move |tokens| tokens.get(line).copied()))
            .collect();
        for head in 0..2 * kv_heads {
            for token in &written {
                let token = token.unwrap_or(0);
                order.push((token * per_row + heads + head) as u32);
                // Values are turned by nothing.
                angles.push(if head < kv_heads { places[token].1 as u32 } else { 0 });
            }
        }

        let mut indices = Upload { values: Vec::new() };
        let mut masks = Upload { values: Vec::new() };
        let is_in_order = |indices: &[u32]| indices.iter().zip(0..).all(|(index, place)| *index == place);
        let order = (!is_in_order(&order)).then(|| indices.section(order));
        let out = (!is_in_order(&out)).then(|| indices.section(out));
        let angles = indices.section(angles);
        // Nothing is written where the index is the largest there is.
        let write = written
            .iter()
            .map(|token| token.map_or(u32::MAX, |token| places[token].0 / stripes as u32));
        let write = indices.section(write);
        let mut windows: Vec<usize> = (0..config.num_layers).map(|layer| config.window(layer)).collect();
        windows.sort_unstable();
        windows.dedup();
        let mut sections = Vec::new();
        for &window in &windows {
            for group in &groups {
                sections.push(section(group, window, &slots, &mut indices, &mut masks));
            }
        }

        let indices = indices.send(device)?;
        let masks = match masks.values.is_empty() {
            false => Some(masks.send(device)?),
            true => None,
        };
        let part = |section: Range<usize>| indices.narrow(0, section.start, section.len());
        let angles = part(angles)?;
        let mut sections = sections.into_iter();
        let mut views = Vec::new();
        for window in windows {
            let mut by_group = Vec::new();
            for (group, (slots, mask, keys)) in groups.iter().zip(sections.by_ref()) {
                let (batch, queries) = (group.len(), widest(group));
                let mask = match (mask, &masks) {
                    (Some(mask), Some(masks)) => {
                        let mask = masks.narrow(0, mask.start, mask.len())?;
                        let mask = mask.reshape((1, batch, 1, queries, keys))?;
                        let mask = mask.broadcast_as((kv_heads, batch, per_key, queries, keys))?;
                        Some(
                            mask.contiguous()?
                                .reshape((kv_heads * batch, per_key * queries, keys))?,
                        )
                    }
                    _ => None,
                };
                by_group.push(View {
                    slots: part(slots)?,
                    mask,
                    keys,
                });
            }
            views.push((window, by_group));
        }
        let write = part(write)?
            .reshape((1, depth, stripes, 1))?
            .broadcast_as((2 * kv_heads, depth, stripes, head_dim))?
            .contiguous()?
            .reshape((2 * kv_heads, depth, stripes * head_dim))?;
        Ok(Self {
            heads,
            kv_heads,
            head_dim,
            tokens: rows,
            order: order.map(part).transpose()?,
            cos: tensors.cos.index_select(&angles, 0)?,
            sin: tensors.sin.index_select(&angles, 0)?,
            queries,
            write,
            stripes,
            groups: groups
                .iter()
                .map(|group| Group {
                    batch: group.len(),
                    queries: widest(group),
                })
                .collect(),
            views,
            out: out.map(part).transpose()?,
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
        let new = rows.narrow(0, self.queries, rows.dims()[0] - self.queries)?;
        striped.scatter_set(&self.write, &new.reshape(self.write.shape())?, 1)?;

        let Some((_, views)) = self.views.iter().find(|(of, _)| *of == window) else {
            bail!("no layer sees {window} tokens")
        };
        let mut first = 0;
        let mut results = Vec::with_capacity(views.len());
        for (group, view) in self.groups.iter().zip(views) {
            let count = heads * group.batch * group.queries;
            let query = rows.narrow(0, first, count)?;
            first += count;
            let batch = kv_heads * group.batch;
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

/// The new tokens, a sequence's in pieces; the caches count them already.
fn pieces(sequences: &[CachedSequence<'_>]) -> Vec<Piece> {
    let (mut pieces, mut row) = (Vec::new(), 0);
    for (sequence, CachedSequence { cache, len }) in sequences.iter().enumerate() {
        let first = cache.positions() - len;
        for done in (0..*len).step_by(QUERIES) {
            pieces.push(Piece {
                sequence,
                row: row + done,
                queries: QUERIES.min(len - done),
                position: first + done,
            });
        }
        row += len;
    }
    pieces
}

/// Pieces of much the same size together: in a group at most half is padding, but for what another group would not be worth.
fn grouped(mut pieces: Vec<Piece>, heads: usize, key_values: usize) -> Vec<Vec<Piece>> {
    let keys = |piece: &Piece| piece.position + piece.queries;
    pieces.sort_by_key(|piece| (piece.queries, keys(piece)));
    let mut groups: Vec<Vec<Piece>> = Vec::new();
    let (mut needed, mut longest) = (0, 0);
    for piece in pieces {
        let own = piece.queries * keys(&piece);
        if let Some(group) = groups.last_mut() {
            let longest_with = longest.max(keys(&piece));
            let gathered = (group.len() + 1) * longest_with;
            let scores = gathered * piece.queries;
            if scores <= 2 * (needed + own) + SPARED && scores * heads <= SCORES && gathered * key_values <= GATHERED {
                group.push(piece);
                (needed, longest) = (needed + own, longest_with);
                continue;
            }
        }
        groups.push(vec![piece]);
        (needed, longest) = (own, keys(&piece));
    }
    groups
}

fn widest(group: &[Piece]) -> usize {
    group.iter().map(|piece| piece.queries).max().unwrap_or(0)
}

/// What a group sees through a window: sections of the slots and of the mask, if it needs one, and the keys of each piece, padded.
fn section(
    group: &[Piece],
    window: usize,
    slots: &[&[u32]],
    indices: &mut Upload<u32>,
    masks: &mut Upload<f32>,
) -> (Range<usize>, Option<Range<usize>>, usize) {
    let (queries, keys) = (
        widest(group),
        group.iter().map(|piece| piece.seen(window).len()).max().unwrap_or(0),
    );
    let padded = |piece: &Piece| {
        let seen = piece.seen(window);
        let own = slots[piece.sequence][seen.clone()].iter().copied();
        own.chain(std::iter::repeat_n(PADDING, keys - seen.len()))
    };
    let of_slots = indices.section(group.iter().flat_map(padded));
    let visible = |piece: &Piece, query: usize, key: usize| {
        // A query that is padding sees what the last one sees: its result is not used, but it must be a number.
        let position = piece.position + query.min(piece.queries - 1);
        let key = piece.seen(window).start + key;
        key <= position && position - key < window
    };
    let mut is_needed = false;
    let start = masks.values.len();
    for piece in group {
        for query in 0..queries {
            for key in 0..keys {
                let is_visible = visible(piece, query, key);
                is_needed |= !is_visible;
                masks.values.push(if is_visible { 0.0 } else { f32::NEG_INFINITY });
            }
        }
    }
    if !is_needed {
        masks.values.truncate(start);
    }
    (of_slots, is_needed.then_some(start..masks.values.len()), keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(queries: usize, position: usize) -> Piece {
        Piece {
            sequence: 0,
            row: 0,
            queries,
            position,
        }
    }

    #[test]
    fn groups_hold_everything_and_little_padding() {
        let pieces: Vec<Piece> = (0..300)
            .map(|n| piece([1, 1, 1, 5, 17, 128][n % 6], n * 31 % 700))
            .collect();
        let groups = grouped(pieces.clone(), 32, 8192);
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), pieces.len());
        assert!(groups.len() < 40, "{} groups", groups.len());
        for group in &groups {
            let keys = |piece: &Piece| piece.position + piece.queries;
            let needed: usize = group.iter().map(|piece| piece.queries * keys(piece)).sum();
            let computed = group.len() * widest(group) * group.iter().map(keys).max().unwrap();
            assert!(computed <= 2 * needed + SPARED, "{computed} for {needed}");
        }
        let alike = vec![piece(1, 511); 256];
        assert_eq!(grouped(alike.clone(), 9, 2 * 3 * 64).len(), 1, "a small model's in one");
        assert_eq!(grouped(alike, 32, 2 * 32 * 128).len(), 4, "a large one's by memory");
    }

    #[test]
    fn a_window_leaves_the_first_keys_out() {
        assert_eq!(piece(3, 10).seen(usize::MAX), 0..13);
        assert_eq!(piece(3, 10).seen(4), 7..13);
        assert_eq!(piece(1, 0).seen(4), 0..1);
    }
}
