//! When no rewrite is good enough: hide the worst words, no more of them than needed.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use super::options::Threshold;
use super::protect::Span;
use super::scorers::{Toxicity, toxicity_of};

/// What a masked word becomes, whatever its length.
pub const MASK: &str = "***";

/// A sentence with words masked.
#[derive(Debug, Clone, PartialEq)]
pub struct Masked {
    /// The sentence.
    pub text: String,
    /// Its toxicity, at or under the threshold.
    pub toxicity: f32,
}

/// Masks the words of `sentence` that add most to its toxicity, one after another, until it is at
/// or under the threshold. `None` if it is not, even with every word masked outside of `spans`.
pub fn mask(sentence: &str, spans: &[Span], scorer: &dyn Toxicity, threshold: Threshold) -> Option<Masked> {
    let mut hidden: Vec<Range<usize>> = Vec::new();
    for word in worst_first(sentence, spans, scorer) {
        // A scorer's words may be coarser or finer than ours: never mask a stretch twice.
        if hidden.iter().any(|other| overlap(other, &word)) {
            continue;
        }
        let at = hidden.partition_point(|other| other.start < word.start);
        hidden.insert(at, word);
        let text = hide(sentence, &hidden);
        let toxicity = toxicity_of(scorer, &text);
        if !threshold.is_exceeded_by(toxicity) {
            return Some(Masked { text, toxicity });
        }
    }
    None
}

/// The words that may be masked: those the scorer blames, worst first, then the others in order.
fn worst_first(sentence: &str, spans: &[Span], scorer: &dyn Toxicity) -> Vec<Range<usize>> {
    let mut blamed: Vec<(Range<usize>, f32)> = scorer
        .attributions(sentence)
        .into_iter()
        .filter(|(word, logits)| *logits > 0.0 && sentence.get(word.clone()).is_some())
        .collect();
    blamed.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let others = sentence.unicode_word_indices().map(|(at, word)| at..at + word.len());
    blamed
        .into_iter()
        .map(|(word, _)| word)
        .chain(others)
        .filter(|word| !word.is_empty() && !spans.iter().any(|span| overlap(&span.range, word)))
        .collect()
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn hide(sentence: &str, hidden: &[Range<usize>]) -> String {
    let mut text = String::with_capacity(sentence.len());
    let mut at = 0;
    for word in hidden {
        text.push_str(&sentence[at..word.start]);
        text.push_str(MASK);
        at = word.end;
    }
    text.push_str(&sentence[at..]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::options::Format;
    use crate::pipeline::protect;
    use crate::pipeline::testing::WordToxicity;

    fn masked(sentence: &str, threshold: f32) -> Option<String> {
        let spans = protect::find(sentence, Format::Plain);
        let threshold = Threshold::new(threshold).unwrap();
        mask(sentence, &spans, &WordToxicity, threshold).map(|masked| masked.text)
    }

    #[test]
    fn only_as_many_words_as_needed() {
        let sentence = "You stupid idiot, stop it.";
        assert_eq!(masked(sentence, 0.5).unwrap(), "You *** ***, stop it.");
        assert_eq!(masked(sentence, 0.95).unwrap(), "You stupid ***, stop it.");
    }

    #[test]
    fn protected_words_are_never_masked() {
        assert_eq!(masked("@idiot you idiot", 0.95).unwrap(), "@idiot you ***");
        assert_eq!(masked("@idiot you idiot", 0.1), None);
    }

    #[test]
    fn wrong_attributions_do_no_harm() {
        struct Wrong;
        impl Toxicity for Wrong {
            fn score(&self, text: &str) -> f32 {
                if text.contains("***") { f32::NAN } else { 1.0 }
            }
            fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
                vec![(1..2, 1.0), (0..text.len() + 9, 2.0), (0..3, f32::NAN), (2..2, 3.0)]
            }
        }
        let threshold = Threshold::default();
        assert_eq!(mask("éé é", &[], &Wrong, threshold), None);
    }
}
