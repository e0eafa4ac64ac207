//! Ragged batches: many sequences laid end to end in one `[tokens]` axis, without padding.

/// One sequence of a packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedSequence {
    /// First row of the sequence.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
    /// A sequence earlier in the same group whose tokens this one continues: it attends to all of them, and its
    /// positions go on after them.
    pub prefix: Option<PackedPrefix>,
}

/// The rows of a shared prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedPrefix {
    /// First row of the prefix.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// How a ragged batch is divided into groups of sequences. A group is a run of rows that attends to nothing outside
/// itself: one plain sequence, or one prompt followed by all its continuations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packing {
    groups: Vec<PackedGroup>,
    tokens: usize,
}

/// Consecutive rows that attend only to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedGroup {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
    /// The sequences, in row order.
    pub sequences: Vec<PackedSequence>,
}

impl Packing {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a plain sequence of `len` tokens; returns its first row.
    pub fn push_sequence(&mut self, len: usize) -> usize {
        self.push_shared(len, &[])[0]
    }

    /// Appends a prompt of `prompt_len` tokens and one continuation for each of `continuations`; returns the first
    /// row of the prompt, then of each continuation.
    pub fn push_shared(&mut self, prompt_len: usize, continuations: &[usize]) -> Vec<usize> {
        let start = self.tokens;
        let prefix = PackedPrefix { start, len: prompt_len };
        let mut sequences = vec![PackedSequence {
            start,
            len: prompt_len,
            prefix: None,
        }];
        let mut next = start + prompt_len;
        for &len in continuations {
            sequences.push(PackedSequence {
                start: next,
                len,
                prefix: Some(prefix),
            });
            next += len;
        }
        let starts = sequences.iter().map(|sequence| sequence.start).collect();
        self.groups.push(PackedGroup {
            start,
            len: next - start,
            sequences,
        });
        self.tokens = next;
        starts
    }

    /// The groups, in row order.
    pub fn groups(&self) -> &[PackedGroup] {
        &self.groups
    }

    /// Rows of the whole batch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The longest span of positions of any sequence, its prefix included.
    pub fn max_positions(&self) -> usize {
        let span = |s: &PackedSequence| s.len + s.prefix.map_or(0, |prefix| prefix.len);
        self.groups
            .iter()
            .flat_map(|group| &group.sequences)
            .map(span)
            .max()
            .unwrap_or(0)
    }
}

impl PackedSequence {
    /// Position of the sequence's first token.
    pub fn first_position(&self) -> usize {
        self.prefix.map_or(0, |prefix| prefix.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_share_their_prompt_and_restart_after_it() {
        let mut packing = Packing::new();
        assert_eq!(packing.push_sequence(3), 0);
        assert_eq!(packing.push_shared(4, &[2, 5]), vec![3, 7, 9]);
        assert_eq!(
            (packing.tokens(), packing.max_positions(), packing.groups().len()),
            (14, 9, 2)
        );
        let sequences = &packing.groups()[1].sequences;
        assert_eq!(sequences[2].first_position(), 4);
        assert_eq!(sequences[2].prefix, Some(PackedPrefix { start: 3, len: 4 }));
    }
}
