//! Guesses of what comes next, from a text that the continuation mostly copies.
//!
//! Input-guided aggressive decoding (Sun et al. 2021): a pointer into the source says which of its tokens is expected next. The tokens
//! from there on are fed along with the last one written, and count as far as they are what the model itself chooses.
//! Where the model writes something else, the pointer looks for that token nearby: most edits leave words out.

use std::sync::Arc;

/// How far ahead, and how far back, a token is looked for that was not the expected one.
const AHEAD: usize = 12;
const BACK: usize = 4;

/// How sure the pointer is of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing is written yet.
    Begun,
    /// The last token was the expected one.
    Following,
    /// The last token was found elsewhere.
    Realigned,
    /// The last token is nowhere near.
    Lost,
}

impl Trust {
    /// How many there are.
    pub(super) const COUNT: usize = 4;
}

/// A place in a source.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// The source's tokens; empty when there is no source. The token that ends a continuation need not be guessed: nothing comes after it.
    source: Arc<[u32]>,
    /// Place of the token that is expected next.
    at: usize,
    trust: Trust,
}

impl Draft {
    /// The beginning of a source.
    pub(super) fn new(source: &[u32]) -> Self {
        Self {
            source: source.into(),
            at: 0,
            trust: Trust::Begun,
        }
    }

    /// What is expected next.
    pub(super) fn expected(&self) -> &[u32] {
        self.source.get(self.at..).unwrap_or_default()
    }

    /// How sure that is.
    pub(super) fn trust(&self) -> Trust {
        self.trust
    }

    /// Moves on behind a token that was written.
    pub(super) fn advance(&mut self, token: u32) {
        if self.source.get(self.at) == Some(&token) {
            self.at += 1;
            self.trust = Trust::Following;
            return;
        }
        let ahead = self.at..self.source.len().min(self.at + AHEAD);
        let back = self.at.saturating_sub(BACK)..self.at.min(self.source.len());
        match ahead.chain(back.rev()).find(|&place| self.source[place] == token) {
            Some(place) => {
                self.at = place + 1;
                self.trust = Trust::Realigned;
            }
            // One word in another's place; further words of an insertion leave the pointer where it is.
            None if self.trust != Trust::Lost => {
                self.at += 1;
                self.trust = Trust::Lost;
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(source: &[u32], written: &[u32]) -> (Vec<u32>, Trust) {
        let mut draft = Draft::new(source);
        for token in written {
            draft.advance(*token);
        }
        (draft.expected().to_vec(), draft.trust())
    }

    #[test]
    fn a_copy_is_expected_to_its_end() {
        assert_eq!(after(&[1, 2], &[]), (vec![1, 2], Trust::Begun));
        assert_eq!(after(&[1, 2], &[1]), (vec![2], Trust::Following));
        assert_eq!(after(&[1, 2], &[1, 2]), (vec![], Trust::Following));
        assert_eq!(after(&[1, 2], &[1, 2, 3, 4, 5]).0, Vec::<u32>::new());
    }

    #[test]
    fn edits_move_the_pointer() {
        let source = [1, 2, 3, 4, 5, 6];
        assert_eq!(after(&source, &[1, 4]), (vec![5, 6], Trust::Realigned), "left out");
        assert_eq!(after(&source, &[1, 70]), (vec![3, 4, 5, 6], Trust::Lost), "replaced");
        assert_eq!(
            after(&source, &[1, 70, 3]),
            (vec![4, 5, 6], Trust::Following),
            "replaced"
        );
        assert_eq!(
            after(&source, &[1, 70, 71, 2]),
            (vec![3, 4, 5, 6], Trust::Realigned),
            "put in"
        );
        assert_eq!(
            after(&source, &[1, 2, 3, 2]),
            (vec![3, 4, 5, 6], Trust::Realigned),
            "said twice"
        );
    }

    #[test]
    fn without_a_source_nothing_is_expected() {
        let mut draft = Draft::new(&[]);
        draft.advance(5);
        assert!(draft.expected().is_empty());
    }
}
