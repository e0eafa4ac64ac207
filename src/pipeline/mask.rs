//! When no rewrite is good enough: hide the words that are toxic by themselves, no more of them than needed.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::options::Threshold;
use super::protect::Span;
use super::scorers::toxicities_of;
use crate::scoring::{Toxicity, groups};

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

/// Numbers of masked words that are tried at once.
const TRIED_AT_ONCE: usize = 8;

/// Toxicity over which a word is toxic by itself, if the threshold is not lower.
const BY_ITSELF: f32 = 0.5;

/// Most different words that are judged by themselves: a judge that is a model takes milliseconds for each.
const MOST_WORDS: usize = 256;

/// Masks the words of `sentence` that add most to its toxicity, worst first, until it is at or under the threshold: no more of them than
/// needed, but for an eighth where it takes many. `None` if it is not, even with every word outside of `spans` masked that is toxic by itself: what
/// such a sentence says is toxic, and without a harmless word of it nobody could tell what that was.
pub fn mask(sentence: &str, spans: &[Span], scorer: &dyn Toxicity, threshold: Threshold) -> Option<Masked> {
    let words = worst_first(sentence, spans, scorer, threshold);
    for counts in counts(words.len()).chunks(TRIED_AT_ONCE) {
        let tried: Vec<String> = counts.iter().map(|&count| hide(sentence, &words[..count])).collect();
        let texts: Vec<&str> = tried.iter().map(String::as_str).collect();
        let toxicities = toxicities_of(scorer, &texts);
        let found = tried
            .into_iter()
            .zip(toxicities)
            .find(|(_, toxicity)| !threshold.is_exceeded_by(*toxicity));
        if let Some((text, toxicity)) = found {
            return Some(Masked { text, toxicity });
        }
    }
    None
}

/// The numbers of masked words that are tried: each up to 15, then in steps of an eighth. Sentences of thousands of words are tried in dozens of
/// ways, not in thousands.
fn counts(words: usize) -> Vec<usize> {
    let steps = std::iter::successors(Some(1), |count| Some(count + (count / 8).max(1)));
    let mut counts: Vec<usize> = steps.take_while(|count| *count < words).collect();
    counts.extend((words > 0).then_some(words));
    counts
}

/// The words that may be masked, those the scorer blames most first: each toxic by itself, and no name of a group.
fn worst_first(sentence: &str, spans: &[Span], scorer: &dyn Toxicity, threshold: Threshold) -> Vec<Range<usize>> {
    let mut blamed: Vec<(Range<usize>, f32)> = scorer
        .attributions(sentence)
        .into_iter()
        .filter(|(word, logits)| *logits > 0.0 && sentence.get(word.clone()).is_some_and(|word| !word.is_empty()))
        .filter(|(word, _)| !spans.iter().any(|span| overlap(&span.range, word)))
        .filter(|(word, _)| !groups::is_name(&sentence[word.clone()]))
        .collect();
    blamed.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let toxic = toxic_by_themselves(
        blamed.iter().map(|(word, _)| &sentence[word.clone()]),
        scorer,
        threshold,
    );
    let words = blamed.iter().map(|(word, _)| word.clone());
    let toxic = words.filter(|word| toxic.contains(&sentence[word.clone()]));
    // A scorer's words may be coarser or finer than ours: never mask a stretch twice. The chosen ones, by where they begin.
    let mut chosen: BTreeMap<usize, usize> = BTreeMap::new();
    toxic
        .filter(|word| {
            let is_free = chosen
                .range(..word.end)
                .next_back()
                .is_none_or(|(_, &end)| end <= word.start);
            if is_free {
                chosen.insert(word.start, word.end);
            }
            is_free
        })
        .collect()
}

/// Those of the first [`MOST_WORDS`] different words that are toxic without the others.
fn toxic_by_themselves<'s>(
    words: impl Iterator<Item = &'s str>,
    scorer: &dyn Toxicity,
    threshold: Threshold,
) -> HashSet<&'s str> {
    let mut seen = HashSet::new();
    let words: Vec<&str> = words.filter(|word| seen.insert(*word)).take(MOST_WORDS).collect();
    let toxicities = toxicities_of(scorer, &words);
    let highest = threshold.get().min(BY_ITSELF);
    let judged = words.into_iter().zip(toxicities);
    judged
        .filter(|(_, toxicity)| *toxicity > highest)
        .map(|(word, _)| word)
        .collect()
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn hide(sentence: &str, words: &[Range<usize>]) -> String {
    let mut hidden: Vec<&Range<usize>> = words.iter().collect();
    hidden.sort_by_key(|word| word.start);
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
    use unicode_segmentation::UnicodeSegmentation;

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
    fn words_that_are_harmless_by_themselves_are_never_masked() {
        struct Claims;
        impl Toxicity for Claims {
            fn score(&self, text: &str) -> f32 {
                let claims = text.contains("should") && text.contains("Muslims");
                if claims || text.contains("idiot") || text == "Muslims" {
                    0.9
                } else {
                    0.1
                }
            }
            fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
                text.unicode_word_indices()
                    .map(|(at, word)| (at..at + word.len(), 1.0))
                    .collect()
            }
        }
        let masked = |text| mask(text, &[], &Claims, Threshold::default()).map(|masked| masked.text);
        assert_eq!(masked("Muslims and idiots").unwrap(), "Muslims and ***");
        assert_eq!(masked("Muslims should go, idiot"), None);
    }

    #[test]
    fn a_word_is_judged_once_and_few_are() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        #[derive(Default)]
        struct Counting(AtomicUsize);
        impl Toxicity for Counting {
            fn score(&self, text: &str) -> f32 {
                self.0.fetch_add(1, Ordering::Relaxed);
                WordToxicity.score(text)
            }
            fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
                let words = text.unicode_word_indices();
                words.map(|(at, word)| (at..at + word.len(), 1.0)).collect()
            }
        }
        let asked = |sentence: &str| {
            let scorer = Counting::default();
            let masked = mask(sentence, &[], &scorer, Threshold::default());
            (masked.is_some(), scorer.0.into_inner())
        };
        // One word, and the numbers of masks that are tried.
        let (masked, times) = asked(&"idiot ".repeat(5000));
        assert!(masked && times < 100, "{times}");
        let different: String = (0..5000).map(|number| format!("word{number} ")).collect();
        let (masked, times) = asked(&(different + "idiot"));
        assert!(!masked && times == MOST_WORDS, "{times}");
    }

    #[test]
    fn protected_words_are_never_masked() {
        assert_eq!(masked("@idiot you idiot", 0.95).unwrap(), "@idiot you ***");
        assert_eq!(masked("@idiot you idiot", 0.1), None);
    }

    #[test]
    fn many_words_are_tried_in_few_ways() {
        assert_eq!(counts(0), [] as [usize; 0]);
        assert_eq!(counts(3), [1, 2, 3]);
        let counts = counts(20_000);
        assert!(
            counts.len() < 90 && counts[..16] == (1..=16).collect::<Vec<_>>()[..],
            "{counts:?}"
        );
        assert!(counts.windows(2).all(|pair| (pair[1] - pair[0]) * 8 <= pair[0].max(8)));
        for idiots in [1, 15, 21, 38] {
            let sentence = "idiot ".repeat(idiots) + &"fine ".repeat(40);
            let masked = masked(&sentence, 0.5).unwrap();
            assert_eq!(masked.matches("idiot").count(), 0, "{masked}");
            assert!(masked.matches(MASK).count() - idiots <= idiots / 8, "{masked}");
        }
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
