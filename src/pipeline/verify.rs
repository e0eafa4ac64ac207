//! Which of a model's candidates is the best, and what is wrong with the others.

use serde::Serialize;

use super::checks::{
    Wording, changes_person, changes_script, invents_number, is_cut_short, leaks, loops, loses_negation,
};
use super::options::Threshold;
use super::protect::{Span, numbers};
use super::rejection::Rejection;
use super::restore::{adds_none, keeps_all, restore};
use super::rewriter::Candidate;
use super::scorers::{similarities_of, toxicities_of};
use super::style::Style;
use super::tidy::tidy;
use crate::scoring::{Similarity, Toxicity};

/// How candidates are judged. The score of one that passes is
/// `(1 - toxicity)^toxicity_power * similarity^similarity_power * exp(-nll_weight * mean_nll - fluency_weight * base_nll - excess_weight * excess)`,
/// `excess` being the words it has more than its source as a share of the source's, times the penalty of each fault it has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Weight of being clean.
    pub toxicity_power: f32,
    /// Weight of keeping the meaning.
    pub similarity_power: f32,
    /// Weight of being likely under the adapter, a nat a token.
    pub nll_weight: f32,
    /// Weight of fluency: of being likely under the base model without the source.
    pub fluency_weight: f32,
    /// Weight of being no longer than the source, for as many words again.
    pub excess_weight: f32,
    /// Factor for one that only leaves words out: people prefer others in their place.
    pub deletion_penalty: f32,
    /// Factor for one that speaks of a person (I, you) the source does not speak of.
    pub person_penalty: f32,
    /// Factor for one that ends in the middle.
    pub cut_short_penalty: f32,
    /// Similarity below which the meaning is lost.
    pub min_similarity: f32,
    /// Shortest candidate, in characters of the source.
    pub min_length_ratio: f32,
    /// Longest candidate, in characters of the source.
    pub max_length_ratio: f32,
    /// Characters that a candidate may be over the longest or under the shortest: ratios say
    /// little about short sentences.
    pub length_slack: usize,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            toxicity_power: 8.0,
            similarity_power: 3.0,
            nll_weight: 0.2,
            fluency_weight: 0.3,
            excess_weight: 2.0,
            deletion_penalty: 0.5,
            person_penalty: 0.7,
            cut_short_penalty: 0.6,
            min_similarity: 0.3,
            min_length_ratio: 0.3,
            max_length_ratio: 1.6,
            length_slack: 10,
        }
    }
}

/// The sentence that candidates are measured against.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// What stands before the part that is rewritten.
    pub before: &'a str,
    /// The part that is rewritten.
    pub core: &'a str,
    /// What stands after it.
    pub after: &'a str,
    /// Protected stretches of the core, in bytes of it.
    pub spans: &'a [Span],
    /// How its rewrite is spelt.
    pub style: Style,
}

impl Source<'_> {
    /// What a model wrote, without its own style.
    pub fn tidied(&self, candidate: &str) -> String {
        tidy(self.core, candidate, self.style, self.after.is_empty())
    }
}

/// A candidate that passed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accepted {
    /// The new core, tidied and with protected words put back.
    pub text: String,
    /// Toxicity of the whole sentence with it.
    pub toxicity: f32,
    /// Its similarity to the source's core.
    pub similarity: f32,
    /// Negative log-likelihood a token under the adapter, in nats.
    pub mean_nll: f32,
    /// The same by itself under the bare base model.
    pub base_nll: Option<f32>,
    /// What it is ranked by; higher is better.
    pub score: f32,
}

/// What became of all candidates.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ranking {
    /// Those that passed, best first; of equals, the earlier one first.
    pub accepted: Vec<Accepted>,
    /// Why the others did not, in the order of the candidates.
    pub rejected: Vec<Rejection>,
}

/// Judges candidates.
#[derive(Clone, Copy)]
pub struct Verifier<'a> {
    /// Judge of toxicity.
    pub toxicity: &'a dyn Toxicity,
    /// Judge of meaning.
    pub similarity: &'a dyn Similarity,
    /// What a candidate must not exceed.
    pub threshold: Threshold,
    /// How it is scored.
    pub weights: &'a Weights,
}

impl Verifier<'_> {
    /// Ranks `candidates`, each text judged once. The judges are asked for all at once, and only of texts that pass what can be told without
    /// them.
    pub fn rank(&self, source: &Source<'_>, candidates: &[Candidate]) -> Ranking {
        let distinct: Vec<&Candidate> = candidates
            .iter()
            .enumerate()
            .filter(|(index, candidate)| !candidates[..*index].iter().any(|other| other.text == candidate.text))
            .map(|(_, candidate)| candidate)
            .collect();
        let mut fates: Vec<Result<String, Rejection>> = distinct
            .iter()
            .map(|candidate| self.check(source, &candidate.text))
            .collect();
        let toxicities = judged(&fates, |texts| {
            let sentences: Vec<String> = texts
                .iter()
                .map(|text| [source.before, text, source.after].concat())
                .collect();
            let sentences: Vec<&str> = sentences.iter().map(String::as_str).collect();
            toxicities_of(self.toxicity, &sentences)
        });
        reject(&mut fates, &toxicities, Rejection::Toxic, |toxicity| {
            self.threshold.is_exceeded_by(toxicity)
        });
        let similarities = judged(&fates, |texts| similarities_of(self.similarity, source.core, texts));
        reject(&mut fates, &similarities, Rejection::Meaning, |similarity| {
            similarity < self.weights.min_similarity
        });
        let mut ranking = Ranking::default();
        for (place, (fate, candidate)) in fates.into_iter().zip(distinct).enumerate() {
            match fate {
                Ok(text) => {
                    let (toxicity, similarity) = (toxicities[place], similarities[place]);
                    ranking.accepted.push(Accepted {
                        score: self.score(source, &text, toxicity, similarity, candidate),
                        text,
                        toxicity,
                        similarity,
                        mean_nll: candidate.mean_nll,
                        base_nll: candidate.base_nll,
                    });
                }
                Err(reason) => ranking.rejected.push(reason),
            }
        }
        ranking.accepted.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranking
    }

    /// What can be told without a judge, the cheap first, so that nothing expensive sees a text of any length. The text as it would be used.
    fn check(&self, source: &Source<'_>, text: &str) -> Result<String, Rejection> {
        check_words(source, text)?;
        self.check_length(source, text)?;
        let text = restore(source.core, source.spans, &source.tidied(text));
        check_text(source, &text)?;
        Ok(text)
    }

    fn check_length(&self, source: &Source<'_>, text: &str) -> Result<(), Rejection> {
        let weights = self.weights;
        let length = source.core.chars().count() as f32;
        let slack = weights.length_slack as f32;
        let own = text.trim().chars().count() as f32;
        let fits = own >= length * weights.min_length_ratio - slack && own <= length * weights.max_length_ratio + slack;
        if fits { Ok(()) } else { Err(Rejection::Length) }
    }

    fn score(&self, source: &Source<'_>, text: &str, toxicity: f32, similarity: f32, candidate: &Candidate) -> f32 {
        let weights = self.weights;
        // A likelihood that is not a number is the worst there is.
        let comparable = |nll: f32| if nll.is_nan() { f32::INFINITY } else { nll.max(0.0) };
        let likelihood = weights.nll_weight * comparable(candidate.mean_nll);
        let fluency = candidate
            .base_nll
            .map_or(0.0, |nll| weights.fluency_weight * comparable(nll));
        let wording = Wording::of(source.core, text);
        let mut score = (1.0 - toxicity).powf(weights.toxicity_power)
            * similarity.powf(weights.similarity_power)
            * (-likelihood - fluency - weights.excess_weight * wording.excess).exp();
        for (is_faulty, penalty) in [
            (wording.only_leaves_out, weights.deletion_penalty),
            (changes_person(source.core, text), weights.person_penalty),
            (is_cut_short(source.core, text), weights.cut_short_penalty),
        ] {
            if is_faulty {
                score *= penalty;
            }
        }
        score
    }
}

/// What `judge` says of the texts that have passed so far, at their places; of the others nothing.
fn judged(fates: &[Result<String, Rejection>], judge: impl FnOnce(&[&str]) -> Vec<f32>) -> Vec<f32> {
    let passed: Vec<&str> = fates.iter().flatten().map(String::as_str).collect();
    let mut scores = judge(&passed).into_iter();
    fates
        .iter()
        .map(|fate| fate.as_ref().ok().and_then(|_| scores.next()).unwrap_or(f32::NAN))
        .collect()
}

/// Those that have passed so far and whose score is bad pass no longer.
fn reject(fates: &mut [Result<String, Rejection>], scores: &[f32], reason: Rejection, is_bad: impl Fn(f32) -> bool) {
    for (fate, score) in fates.iter_mut().zip(scores) {
        if fate.is_ok() && is_bad(*score) {
            *fate = Err(reason);
        }
    }
}

fn check_words(source: &Source<'_>, text: &str) -> Result<(), Rejection> {
    let has_words = |text: &str| text.chars().any(char::is_alphanumeric);
    let is_empty = text.trim().is_empty() || (has_words(source.core) && !has_words(text));
    if is_empty { Err(Rejection::Empty) } else { Ok(()) }
}

/// What can be told from the text alone.
fn check_text(source: &Source<'_>, text: &str) -> Result<(), Rejection> {
    check_words(source, text)?;
    if leaks(source.core, text) {
        return Err(Rejection::Leakage);
    }
    if loops(source.core, text) {
        return Err(Rejection::Repetition);
    }
    if changes_script(source.core, text) {
        return Err(Rejection::Script);
    }
    if !keeps_all(source.core, source.spans, text) || !adds_none(source.core, text) {
        return Err(Rejection::Protected);
    }
    if numbers(source.core) != numbers(text) || invents_number(source.core, text) {
        return Err(Rejection::Number);
    }
    if asks(source) && !text.contains('?') {
        return Err(Rejection::Question);
    }
    if loses_negation(source.core, text) {
        return Err(Rejection::Negation);
    }
    Ok(())
}

/// Whether the source has a question mark outside of its protected stretches.
fn asks(source: &Source<'_>) -> bool {
    let is_free = |at: usize| !source.spans.iter().any(|span| span.range.contains(&at));
    source.core.match_indices('?').any(|(at, _)| is_free(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::options::Format;
    use crate::pipeline::protect;
    use crate::pipeline::testing::{WordSimilarity, WordToxicity};

    fn rank(core: &str, candidates: &[(&str, f32)]) -> Ranking {
        let spans = protect::find(core, Format::Plain);
        let weights = Weights::default();
        let verifier = Verifier {
            toxicity: &WordToxicity,
            similarity: &WordSimilarity,
            threshold: Threshold::default(),
            weights: &weights,
        };
        let source = Source {
            before: "",
            core,
            after: "",
            spans: &spans,
            style: Style::Source,
        };
        let candidates: Vec<Candidate> = candidates
            .iter()
            .map(|&(text, mean_nll)| Candidate {
                text: text.to_owned(),
                mean_nll,
                base_nll: None,
            })
            .collect();
        verifier.rank(&source, &candidates)
    }

    fn reason(core: &str, candidate: &str) -> &'static str {
        rank(core, &[(candidate, 1.0)])
            .rejected
            .first()
            .map_or("accepted", |reason| reason.name())
    }

    #[test]
    fn every_reason() {
        let source = "You stupid idiot, that is 5 km away, right?";
        for (candidate, expected) in [
            ("You know that is 5 km away, right?", "accepted"),
            (" \n ", "empty"),
            ("?!", "empty"),
            ("5?", "length"),
            (&"that is 5 km away, right? ".repeat(9), "length"),
            ("You, that is 5 km away, right?<|im_end|>", "leakage"),
            ("You that is is is 5 km away, right?", "repetition"),
            ("Ты знаешь, это 5 km, да?", "script"),
            ("You know that is 6 km away, right?", "number"),
            ("You know that is far away, right?", "number"),
            ("You two know that is 5 km away, right?", "number"),
            ("Well, you know that it is 5 km away! yes!", "question"),
            ("You idiot, that is 5 km away, right?", "toxic"),
            ("There are 5 km of nice roads here?", "meaning"),
        ] {
            assert_eq!(reason(source, candidate), expected, "{candidate}");
        }
        assert_eq!(reason("ask @Bob you idiot now", "ask him now"), "protected");
        assert_eq!(reason("ask @Bob you idiot now", "ask @Bob now #5"), "protected");
        assert_eq!(reason("I don't like this stupid idea", "I like this idea"), "negation");
    }

    #[test]
    fn the_best_comes_first() {
        let ranking = rank(
            "I don't like this stupid idea",
            &[
                ("I don't like this idea", 1.5),
                ("You don't like this idea", 1.0),
                ("I don't like this idea", 1.5),
                ("I don't like this", 1.5),
                ("I don't like this odd idea", f32::NAN),
            ],
        );
        let texts: Vec<&str> = ranking.accepted.iter().map(|a| a.text.as_str()).collect();
        assert_eq!(texts[0], "I don't like this idea");
        assert_eq!(texts.len(), 4);
        assert_eq!(*texts.last().unwrap(), "I don't like this odd idea");
    }

    #[test]
    fn what_surrounds_the_core_counts() {
        let weights = Weights::default();
        let verifier = Verifier {
            toxicity: &WordToxicity,
            similarity: &WordSimilarity,
            threshold: Threshold::default(),
            weights: &weights,
        };
        let source = Source {
            before: "idiot ",
            core: "you fool",
            after: "",
            spans: &[],
            style: Style::Source,
        };
        let candidate = Candidate {
            text: "you".into(),
            mean_nll: 0.0,
            base_nll: None,
        };
        assert_eq!(verifier.rank(&source, &[candidate]).rejected, [Rejection::Toxic]);
    }
}
