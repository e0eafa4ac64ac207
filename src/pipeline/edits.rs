//! The way from the input to the output, word by word.

use serde::Serialize;
use similar::{Algorithm, DiffTag, capture_diff_slices};
use unicode_segmentation::UnicodeSegmentation;

/// Pieces with more words than this are replaced as a whole: comparing them takes quadratic time.
const MAX_WORDS: usize = 2_000;

/// `from`, at `start..end` of the input, became `to`.
///
/// Edits are in order and never touch each other, so that there is one way to apply them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edit {
    /// Where it starts in the input, in code points.
    pub start: usize,
    /// Where it ends in the input, in code points; equal to `start` for an insertion.
    pub end: usize,
    /// What stood there.
    pub from: String,
    /// What stands there now.
    pub to: String,
}

/// Collects the edits of a text, piece by piece in the order of the text.
#[derive(Debug, Default)]
pub struct EditsBuilder {
    edits: Vec<Edit>,
    at: usize,
}

impl EditsBuilder {
    /// The next piece of the input, and what became of it.
    pub fn piece(&mut self, from: &str, to: &str) {
        if from == to {
            self.at += from.chars().count();
            return;
        }
        let old: Vec<&str> = from.split_word_bounds().collect();
        let new: Vec<&str> = to.split_word_bounds().collect();
        if old.len().max(new.len()) > MAX_WORDS {
            self.replace(from, to);
            return;
        }
        for operation in capture_diff_slices(Algorithm::Myers, &old, &new) {
            let before = old[operation.old_range()].concat();
            if operation.tag() == DiffTag::Equal {
                self.at += before.chars().count();
            } else {
                self.replace(&before, &new[operation.new_range()].concat());
            }
        }
    }

    /// All edits.
    pub fn finish(self) -> Vec<Edit> {
        self.edits
    }

    fn replace(&mut self, from: &str, to: &str) {
        let start = self.at;
        self.at += from.chars().count();
        match self.edits.last_mut() {
            Some(last) if last.end == start => {
                last.end = self.at;
                last.from.push_str(from);
                last.to.push_str(to);
            }
            _ => self.edits.push(Edit {
                start,
                end: self.at,
                from: from.to_owned(),
                to: to.to_owned(),
            }),
        }
    }
}

/// Applies `edits` to the input they were made for; `None` if they do not fit it.
pub fn apply(input: &str, edits: &[Edit]) -> Option<String> {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    let mut at = 0;
    for edit in edits {
        let skipped = edit.start.checked_sub(at)?;
        let split = byte_of(rest, skipped)?;
        output.push_str(&rest[..split]);
        rest = rest[split..].strip_prefix(edit.from.as_str())?;
        output.push_str(&edit.to);
        at = edit.end;
    }
    output.push_str(rest);
    Some(output)
}

fn byte_of(text: &str, chars: usize) -> Option<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(chars)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edits(pieces: &[(&str, &str)]) -> Vec<Edit> {
        let mut builder = EditsBuilder::default();
        for (from, to) in pieces {
            builder.piece(from, to);
        }
        builder.finish()
    }

    #[test]
    fn words_in_code_points() {
        assert_eq!(
            edits(&[("Ünïcode 😀. ", "Ünïcode 😀. "), ("You fool, go.", "You, go.")]),
            vec![Edit {
                start: 14,
                end: 19,
                from: " fool".into(),
                to: String::new()
            }]
        );
    }

    #[test]
    fn touching_edits_become_one() {
        assert_eq!(edits(&[("a", "b"), ("c", "d")]).len(), 1);
        assert_eq!(edits(&[("same", "same")]), vec![]);
    }

    proptest! {
        #[test]
        fn applied_to_the_input_they_give_the_output(
            pieces in prop::collection::vec(("[ab c.é😀\n]{0,12}", "[ab c.é😀\n]{0,12}"), 0..5),
            wild in any::<(String, String)>(),
        ) {
            let mut pieces = pieces;
            pieces.push(wild);
            let input: String = pieces.iter().map(|(from, _)| from.as_str()).collect();
            let output: String = pieces.iter().map(|(_, to)| to.as_str()).collect();
            let borrowed: Vec<_> = pieces.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
            let edits = edits(&borrowed);
            prop_assert_eq!(apply(&input, &edits), Some(output));
            for pair in edits.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
        }
    }
}
