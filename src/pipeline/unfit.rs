//! Toxic sentences that no rewrite can save: in another language, or with nothing in them but the insult. The model would write something else
//! in their place, so they go by policy.

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use super::language::is_foreign;
use super::options::OtherLanguages;
use super::scorers::Toxicity;
use super::segment::Sentence;

/// Why a sentence is not given to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfit {
    /// It is not English.
    Language,
    /// Without its toxic words nothing would be said.
    NothingNeutral,
}

/// Words of which nothing is said.
const FILLERS: &[&str] = &[
    "a", "ah", "all", "an", "and", "bunch", "damn", "every", "fuck", "fucking", "go", "haha", "hell", "hey", "her",
    "him", "i", "it", "lol", "man", "my", "of", "off", "oh", "one", "piece", "shit", "so", "such", "that", "the",
    "them", "this", "to", "total", "u", "ur", "us", "utter", "very", "wtf", "what", "y'all", "ya", "yo", "you", "your",
    "yourself",
];
/// More words than this say something.
const MAX_WORDS: usize = 8;
/// Log odds from which on a word is blamed.
const BLAMED: f32 = 0.7;

/// Marks the sentences that the model must not get, and adds to `toxic`, or takes from it, what the policy for other languages says.
pub(super) fn sort_out(
    text: &str,
    sentences: &mut [Sentence],
    toxic: &mut Vec<usize>,
    policy: OtherLanguages,
    scorer: &dyn Toxicity,
) {
    if policy == OtherLanguages::Block {
        let foreign = |sentence: &Sentence| sentence.protected.is_none() && is_foreign(&text[sentence.body.clone()]);
        *toxic = (0..sentences.len())
            .filter(|at| toxic.binary_search(at).is_ok() || foreign(&sentences[*at]))
            .collect();
    }
    for &at in toxic.iter() {
        let sentence = &mut sentences[at];
        let body = &text[sentence.body.clone()];
        sentence.unfit = if is_foreign(body) {
            Some(Unfit::Language)
        } else if says_nothing(body, scorer) {
            Some(Unfit::NothingNeutral)
        } else {
            None
        };
        if sentence.unfit.is_some() {
            sentence.core = sentence.body.start..sentence.body.start;
        }
    }
    if policy == OtherLanguages::Keep {
        toxic.retain(|&at| sentences[at].unfit != Some(Unfit::Language));
    }
}

/// Whether each word is toxic or a filler.
fn says_nothing(body: &str, scorer: &dyn Toxicity) -> bool {
    let told: Vec<(usize, &str)> = body
        .unicode_word_indices()
        .filter(|(_, word)| !FILLERS.contains(&word.to_lowercase().as_str()))
        .take(MAX_WORDS + 1)
        .collect();
    if told.len() > MAX_WORDS {
        return false;
    }
    let blamed: Vec<_> = scorer
        .attributions(body)
        .into_iter()
        .filter(|(_, logit)| *logit > BLAMED)
        .collect();
    told.iter().all(|&(at, word)| {
        blamed
            .iter()
            .any(|(range, _)| range.start < at + word.len() && at < range.end)
    })
}
