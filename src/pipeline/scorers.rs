//! Scores as the pipeline takes them: without what is no prose, and with the worst assumed where there is none.

use std::borrow::Cow;
use std::ops::Range;

use super::protect::Span;
use crate::scoring::{Similarity, Toxicity};

/// Toxicities that can be compared: a score that is not a number counts as toxic.
pub(super) fn toxicities_of(scorer: &dyn Toxicity, texts: &[&str]) -> Vec<f32> {
    let comparable = |score: f32| if score.is_nan() { 1.0 } else { score.clamp(0.0, 1.0) };
    scorer.scores(texts).into_iter().map(comparable).collect()
}

/// That of one text.
pub(super) fn toxicity_of(scorer: &dyn Toxicity, text: &str) -> f32 {
    toxicities_of(scorer, &[text]).first().copied().unwrap_or(1.0)
}

/// Similarities that can be compared: a score that is not a number counts as none.
pub(super) fn similarities_of(scorer: &dyn Similarity, source: &str, rewrites: &[&str]) -> Vec<f32> {
    let comparable = |score: f32| if score.is_nan() { 0.0 } else { score.clamp(0.0, 1.0) };
    scorer.scores(source, rewrites).into_iter().map(comparable).collect()
}

/// What a judge of toxicity does not see of a sentence and its rewrites: code, addresses and markup. An odd word in one of them must not
/// make a sentence toxic that no rewrite could then save.
pub(super) struct Unseen<'a>(Vec<&'a str>);

impl<'a> Unseen<'a> {
    /// Of `sentence` with its protected `spans`.
    pub fn of(sentence: &'a str, spans: &[Span]) -> Self {
        let unseen = spans
            .iter()
            .filter(|span| !span.kind.is_language())
            .filter_map(|span| sentence.get(span.range.clone()));
        Self(unseen.collect())
    }

    /// What is seen of a text; none where no word is left, which is not toxic.
    pub fn seen<'t>(&self, text: &'t str) -> Option<Cow<'t, str>> {
        if self.0.is_empty() {
            return Some(Cow::Borrowed(text));
        }
        let mut seen = text.to_owned();
        for unseen in &self.0 {
            seen = seen.replace(unseen, "");
        }
        seen.chars().any(char::is_alphanumeric).then_some(Cow::Owned(seen))
    }
}

/// A judge that sees the prose of a sentence and its rewrites alone.
pub(super) struct OfProse<'a> {
    inner: &'a dyn Toxicity,
    unseen: Unseen<'a>,
}

impl<'a> OfProse<'a> {
    /// For `sentence` with its protected `spans`, and for rewrites of it.
    pub fn new(inner: &'a dyn Toxicity, sentence: &'a str, spans: &[Span]) -> Self {
        let unseen = Unseen::of(sentence, spans);
        Self { inner, unseen }
    }
}

impl Toxicity for OfProse<'_> {
    fn score(&self, text: &str) -> f32 {
        self.unseen.seen(text).map_or(0.0, |seen| self.inner.score(&seen))
    }

    fn scores(&self, texts: &[&str]) -> Vec<f32> {
        let seen: Vec<Option<Cow<'_, str>>> = texts.iter().map(|text| self.unseen.seen(text)).collect();
        let judged: Vec<&str> = seen.iter().flatten().map(AsRef::as_ref).collect();
        let mut scores = self.inner.scores(&judged).into_iter();
        let score = |seen: &Option<Cow<'_, str>>| match seen {
            Some(_) => scores.next().unwrap_or(f32::NAN),
            None => 0.0,
        };
        seen.iter().map(score).collect()
    }

    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
        self.inner.attributions(text)
    }

    fn is_slow(&self) -> bool {
        self.inner.is_slow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::options::Format;
    use crate::pipeline::protect::find;
    use crate::pipeline::testing::WordToxicity;

    #[test]
    fn prose_is_all_that_counts() {
        let sentence = "run `stupid x` at www.idiot.org now @idiot";
        let spans = find(sentence, Format::Markdown);
        let prose = OfProse::new(&WordToxicity, sentence, &spans);
        assert!((prose.score(sentence) - 0.9).abs() < 1e-6);
        let texts = [sentence, "run `stupid x` now", "`stupid x`", "an idiot"];
        let scores = prose.scores(&texts);
        assert_eq!(scores, texts.map(|text| prose.score(text)));
        assert_eq!(scores[1..3], [0.0, 0.0]);
    }
}
