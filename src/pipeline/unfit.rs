//! Toxic sentences that no rewrite can save: in another language, or with nothing in them but the insult. The model would write something else
//! in their place, so they go by policy.

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use super::judges::Judges;
use super::language::is_foreign;
use super::options::OtherLanguages;
use super::rewriter::RewriteError;
use super::segment::Sentence;
use crate::scoring::Toxicity;

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
///
/// # Errors
/// When the process is shutting down.
pub(super) async fn sort_out(
    text: &str,
    sentences: &mut [Sentence],
    toxic: &mut Vec<usize>,
    policy: OtherLanguages,
    judges: &Judges,
) -> Result<(), RewriteError> {
    let body = |sentence: &Sentence| &text[sentence.body.clone()];
    if policy == OtherLanguages::Block {
        let foreign = |sentence: &Sentence| sentence.protected.is_none() && is_foreign(body(sentence));
        *toxic = (0..sentences.len())
            .filter(|at| toxic.binary_search(at).is_ok() || foreign(&sentences[*at]))
            .collect();
    }
    let mut short = Vec::new();
    for &at in toxic.iter() {
        if is_foreign(body(&sentences[at])) {
            sentences[at].mark(Unfit::Language);
        } else if telling_words(body(&sentences[at])).len() <= MAX_WORDS {
            short.push((at, body(&sentences[at]).to_owned()));
        }
    }
    let judged = judges.judge(move |judges| {
        short.retain(|(_, body)| says_nothing(body, judges.toxicity.as_ref()));
        short
    });
    for (at, _) in judged.await? {
        sentences[at].mark(Unfit::NothingNeutral);
    }
    if policy == OtherLanguages::Keep {
        toxic.retain(|&at| sentences[at].unfit != Some(Unfit::Language));
    }
    Ok(())
}

/// The words that are no fillers, and where they begin.
fn telling_words(body: &str) -> Vec<(usize, &str)> {
    body.unicode_word_indices()
        .filter(|(_, word)| !FILLERS.contains(&word.to_lowercase().as_str()))
        .take(MAX_WORDS + 1)
        .collect()
}

/// Whether each word is toxic or a filler.
fn says_nothing(body: &str, scorer: &dyn Toxicity) -> bool {
    let blamed: Vec<_> = scorer
        .attributions(body)
        .into_iter()
        .filter(|(_, logit)| *logit > BLAMED)
        .collect();
    telling_words(body).iter().all(|&(at, word)| {
        blamed
            .iter()
            .any(|(range, _)| range.start < at + word.len() && at < range.end)
    })
}
