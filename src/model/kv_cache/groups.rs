//! What of a pass is computed together: sequences are cut into pieces, pieces of much the same size padded to one.

use std::ops::Range;

use super::slots::PADDING;
use super::{CachedSequence, Upload};
use crate::model::DecoderConfig;

/// New tokens of a sequence that are attended to in one go; more are cut into pieces.
const QUERIES: usize = 128;
/// Values that a group may gather, and scores that it may have, but for a single piece: temporaries of some 512 and 256 MiB.
const GATHERED: usize = 1 << 28;
const SCORES: usize = 1 << 26;
/// Scores of a head that are computed in vain rather than begin another group.
const SPARED: usize = 2048;

/// Consecutive new tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub sequence: usize,
    /// First row of the batch.
    pub row: usize,
    pub queries: usize,
    /// Position of the first.
    pub position: usize,
}

impl Piece {
    /// Positions that its tokens see through a window.
    fn seen(&self, window: usize) -> Range<usize> {
        (self.position + 1).saturating_sub(window)..self.position + self.queries
    }

    fn keys(&self) -> usize {
        self.position + self.queries
    }
}

/// Pieces that are computed together.
#[derive(Debug)]
pub(super) struct Group {
    pub pieces: Vec<Piece>,
    /// Queries of each, padded.
    pub queries: usize,
}

/// What the pieces of a group see through a window.
pub(super) struct Seen {
    /// Section of the slots, `[batch * keys]`.
    pub slots: Range<usize>,
    /// Section of what is added to the scores, `[batch, queries, keys]`; `None` where all see all.
    pub mask: Option<Range<usize>>,
    /// Of each piece, padded.
    pub keys: usize,
}

/// The new tokens, a sequence's in pieces; the caches count them already.
pub(super) fn pieces(sequences: &[CachedSequence<'_>]) -> Vec<Piece> {
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
pub(super) fn grouped(mut pieces: Vec<Piece>, config: &DecoderConfig) -> Vec<Group> {
    let per_key = 2 * config.num_kv_heads * config.head_dim;
    pieces.sort_by_key(|piece| (piece.queries, piece.keys()));
    let mut groups: Vec<Group> = Vec::new();
    let (mut needed, mut longest) = (0, 0);
    for piece in pieces {
        let own = piece.queries * piece.keys();
        if let Some(group) = groups.last_mut() {
            let longest_with = longest.max(piece.keys());
            let keys = (group.pieces.len() + 1) * longest_with;
            // Sorted: this one has the most queries.
            let scores = keys * piece.queries;
            if scores <= 2 * (needed + own) + SPARED
                && scores * config.num_heads <= SCORES
                && keys * per_key <= GATHERED
            {
                group.queries = piece.queries;
                group.pieces.push(piece);
                (needed, longest) = (needed + own, longest_with);
                continue;
            }
        }
        (needed, longest) = (own, piece.keys());
        groups.push(Group {
            queries: piece.queries,
            pieces: vec![piece],
        });
    }
    groups
}

impl Group {
    /// What it sees through a window, of sequences in these slots.
    pub(super) fn seen(
        &self,
        window: usize,
        slots: &[&[u32]],
        indices: &mut Upload<u32>,
        masks: &mut Upload<f32>,
    ) -> Seen {
        let seen: Vec<Range<usize>> = self.pieces.iter().map(|piece| piece.seen(window)).collect();
        let keys = seen.iter().map(Range::len).max().unwrap_or(0);
        let own = self.pieces.iter().zip(&seen);
        let slots = indices.section(own.flat_map(|(piece, seen)| {
            let own = slots[piece.sequence][seen.clone()].iter().copied();
            own.chain(std::iter::repeat_n(PADDING, keys - seen.len()))
        }));
        let mut sees_all = true;
        let is_seen = self.pieces.iter().zip(&seen).flat_map(|(piece, seen)| {
            let (last, first_key) = (piece.queries - 1, seen.start);
            (0..self.queries).flat_map(move |query| {
                // A query that is padding sees what the last one sees: its result is not used, but it must be a number.
                let position = piece.position + query.min(last);
                let first = (position + 1).saturating_sub(window);
                (first_key..first_key + keys).map(move |key| (first..=position).contains(&key))
            })
        });
        let mask = masks.section(is_seen.map(|is_seen| {
            sees_all &= is_seen;
            if is_seen { 0.0 } else { f32::NEG_INFINITY }
        }));
        if sees_all {
            masks.values.truncate(mask.start);
        }
        Seen {
            slots,
            mask: (!sees_all).then_some(mask),
            keys,
        }
    }
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

    fn config(heads: usize, kv_heads: usize, dim: usize) -> DecoderConfig {
        let hidden = heads * dim;
        let json = format!(
            r#"{{"model_type":"llama","hidden_size":{hidden},"num_hidden_layers":2,"num_attention_heads":{heads},
                "num_key_value_heads":{kv_heads},"intermediate_size":96,"vocab_size":300,"rms_norm_eps":1e-5}}"#
        );
        DecoderConfig::from_hugging_face(&json).unwrap()
    }

    #[test]
    fn groups_hold_everything_and_little_padding() {
        let pieces: Vec<Piece> = (0..300)
            .map(|n| piece([1, 1, 1, 5, 17, 128][n % 6], n * 31 % 700))
            .collect();
        let groups = grouped(pieces.clone(), &config(32, 32, 128));
        assert_eq!(
            groups.iter().map(|group| group.pieces.len()).sum::<usize>(),
            pieces.len()
        );
        assert!(groups.len() < 40, "{} groups", groups.len());
        for Group { pieces, queries } in &groups {
            let needed: usize = pieces.iter().map(|piece| piece.queries * piece.keys()).sum();
            let computed = pieces.len() * queries * pieces.iter().map(Piece::keys).max().unwrap();
            assert!(computed <= 2 * needed + SPARED, "{computed} for {needed}");
            assert!(pieces.iter().all(|piece| piece.queries <= *queries));
        }
        let alike = vec![piece(1, 511); 256];
        assert_eq!(
            grouped(alike.clone(), &config(9, 3, 64)).len(),
            1,
            "a small model's in one"
        );
        assert_eq!(grouped(alike, &config(32, 32, 128)).len(), 4, "a large one's by memory");
    }

    #[test]
    fn a_mask_hides_what_comes_later_what_the_window_leaves_out_and_padding() {
        let group = Group {
            pieces: vec![piece(2, 3), piece(1, 1)],
            queries: 2,
        };
        let slots = [&[10, 11, 12, 13, 14][..]];
        let (mut indices, mut masks) = (Upload::default(), Upload::default());
        let seen = group.seen(3, &slots, &mut indices, &mut masks);
        // The first sees 1 to 4, the second 0 and 1.
        assert_eq!(
            (seen.keys, &indices.values[seen.slots]),
            (4, &[11, 12, 13, 14, 10, 11, 0, 0][..])
        );
        let shown: Vec<u8> = masks.values[seen.mask.unwrap()]
            .iter()
            .map(|value| u8::from(*value == 0.0))
            .collect();
        assert_eq!(shown, [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0]);
        let one = Group {
            pieces: vec![piece(1, 4)],
            queries: 1,
        };
        assert!(one.seen(usize::MAX, &slots, &mut indices, &mut masks).mask.is_none());
        assert_eq!(masks.values.len(), 16);
    }
}
