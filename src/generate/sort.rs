//! From rewrites of a source to a set for contrastive training.

use serde::{Deserialize, Serialize};
use similar::{Algorithm, DiffTag, capture_diff_slices};
use unicode_segmentation::UnicodeSegmentation;

use crate::scoring::{Similarity, Toxicity};

/// An anchor with its positives and negatives, one line of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewriteSet {
    /// The toxic source.
    pub anchor: String,
    /// Rewrites that are clean and mean the same.
    pub positives: Vec<String>,
    /// Rewrites that are toxic, or mean something else; the source itself among them.
    pub negatives: Vec<String>,
}

/// What makes a rewrite a positive or a negative; what lies between is left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Criteria {
    /// Most toxicity of a positive.
    pub clean: f32,
    /// Least similarity of a sampled positive.
    pub close: f32,
    /// Least similarity of a human positive: people rewrite more freely, and mean it.
    pub close_human: f32,
    /// Least toxicity of a toxic negative.
    pub toxic: f32,
    /// Most similarity of a negative that lost the meaning.
    pub lost: f32,
    /// Most sampled positives a set.
    pub max_sampled_positives: usize,
    /// Most negatives a set, the source included.
    pub max_negatives: usize,
}

impl Default for Criteria {
    fn default() -> Self {
        Self {
            clean: 0.25,
            close: 0.8,
            close_human: 0.5,
            toxic: 0.5,
            lost: 0.6,
            max_sampled_positives: 3,
            max_negatives: 7,
        }
    }
}

/// Sorts human rewrites and samples of a source. `None` when no positive is left.
pub fn sort(
    source: &str,
    human: &[String],
    samples: &[String],
    criteria: &Criteria,
    toxicity: &dyn Toxicity,
    similarity: &dyn Similarity,
) -> Option<RewriteSet> {
    let judge = |text: &str| (toxicity.score(text), similarity.score(source, text));
    let mut positives: Vec<String> = Vec::new();
    for text in human {
        let (toxic, close) = judge(text);
        if toxic <= criteria.clean && close >= criteria.close_human && !positives.contains(text) {
            positives.push(text.clone());
        }
    }
    let mut sampled: Vec<(f32, &String)> = Vec::new();
    let mut toxic_negatives: Vec<String> = Vec::new();
    let mut lost_negatives: Vec<(f32, &String)> = Vec::new();
    for text in samples
        .iter()
        .filter(|text| !text.trim().is_empty() && text.as_str() != source)
    {
        let (toxic, close) = judge(text);
        if toxic >= criteria.toxic {
            toxic_negatives.push(text.clone());
        } else if close <= criteria.lost {
            lost_negatives.push((close, text));
        } else if toxic <= criteria.clean && close >= criteria.close && !positives.contains(text) {
            sampled.push(((1.0 - toxic) * close, text));
        }
    }
    sampled.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    positives.extend(
        sampled
            .iter()
            .take(criteria.max_sampled_positives)
            .map(|(_, text)| (*text).clone()),
    );
    if positives.is_empty() {
        return None;
    }
    for text in &positives {
        if let Some(undone) = put_insult_back(source, text, toxicity)
            && toxicity.score(&undone) >= criteria.toxic
        {
            toxic_negatives.push(undone);
        }
    }
    let mut negatives = vec![source.to_owned()];
    // Half of the room for each kind, so that neither toxicity nor meaning is all that the model learns to avoid.
    lost_negatives.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let room = criteria.max_negatives.saturating_sub(1);
    let lost_room = room.saturating_sub(toxic_negatives.len()).max(room / 2);
    let lost = lost_negatives.into_iter().take(lost_room).map(|(_, text)| text.clone());
    let lost: Vec<String> = lost.collect();
    let toxic_room = room - lost.len().min(room);
    for text in toxic_negatives.into_iter().take(toxic_room).chain(lost) {
        if !negatives.contains(&text) && !positives.contains(&text) {
            negatives.push(text);
        }
    }
    Some(RewriteSet {
        anchor: source.to_owned(),
        positives,
        negatives,
    })
}

/// The rewrite with its most toxic removal undone: an insult put back into clean words.
fn put_insult_back(source: &str, rewrite: &str, toxicity: &dyn Toxicity) -> Option<String> {
    let old: Vec<&str> = source.split_word_bounds().collect();
    let new: Vec<&str> = rewrite.split_word_bounds().collect();
    let operations = capture_diff_slices(Algorithm::Myers, &old, &new);
    let changes = operations
        .iter()
        .filter(|operation| operation.tag() != DiffTag::Equal)
        .count();
    if changes < 2 {
        // With one edit, undoing it gives the source.
        return None;
    }
    let undone = |index: usize| -> String {
        let piece = |(number, operation): (usize, &similar::DiffOp)| {
            if number == index {
                old[operation.old_range()].concat()
            } else {
                new[operation.new_range()].concat()
            }
        };
        operations.iter().enumerate().map(piece).collect()
    };
    (0..operations.len())
        .filter(|&index| operations[index].tag() != DiffTag::Equal)
        .map(undone)
        .map(|text| (toxicity.score(&text), text))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    struct Words;

    impl Toxicity for Words {
        fn score(&self, text: &str) -> f32 {
            if text.contains("idiot") { 0.9 } else { 0.1 }
        }

        fn attributions(&self, _: &str) -> Vec<(Range<usize>, f32)> {
            Vec::new()
        }
    }

    impl Similarity for Words {
        fn score(&self, source: &str, rewrite: &str) -> f32 {
            let words: Vec<&str> = source.split(' ').collect();
            let kept = rewrite.split(' ').filter(|word| words.contains(word)).count();
            kept as f32 / words.len() as f32
        }
    }

    #[test]
    fn clean_and_close_samples_are_positives_and_the_others_negatives() {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let source = "you idiot , the bus leaves at ten today";
        let human = owned(&["hey , the bus leaves at ten today"]);
        let samples = owned(&[
            "the bus leaves at ten today",
            "you idiot , the bus leaves at ten",
            "the bus",
            "",
        ]);
        let criteria = Criteria {
            close: 0.6,
            ..Criteria::default()
        };
        let set = sort(source, &human, &samples, &criteria, &Words, &Words).unwrap();
        assert_eq!(
            set.positives,
            owned(&["hey , the bus leaves at ten today", "the bus leaves at ten today"])
        );
        assert_eq!(set.negatives[0], source);
        assert!(set.negatives.contains(&samples[1]), "a toxic sample");
        assert!(set.negatives.contains(&samples[2]), "a sample that lost the meaning");
        assert!(!set.negatives.iter().any(|text| set.positives.contains(text)));
    }

    #[test]
    fn without_a_positive_there_is_no_set() {
        let samples = vec!["idiot".to_owned()];
        assert_eq!(
            sort("you idiot", &[], &samples, &Criteria::default(), &Words, &Words),
            None
        );
    }

    #[test]
    fn the_insult_is_what_is_put_back() {
        let undone = put_insult_back("the idiot is late again", "the man is late", &Words);
        assert_eq!(undone.as_deref(), Some("the idiot is late"));
    }
}
