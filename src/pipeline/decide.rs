//! What becomes of a toxic sentence, once the rewriter has answered.

use std::ops::Range;
use std::sync::Arc;

use super::assemble::Verdict;
use super::judges::Judges;
use super::mask::mask;
use super::options::{Fallback, Options, Threshold};
use super::outcome::SegmentAction;
use super::protect::{self, Span};
use super::rejection::Rejection;
use super::rewriter::Rewrites;
use super::scorers::{OfProse, toxicity_of};
use super::segment::Sentence;
use super::style::Style;
use super::verify::{Source, Verifier, Weights};

/// A distinct toxic sentence on its way through the rewriter. Owns what it needs, so that it can be judged on another thread.
pub(super) struct Task {
    /// Which sentence it is.
    pub at: usize,
    pub body: Arc<str>,
    /// The part that is rewritten, relative to the body.
    pub core: Range<usize>,
    /// Relative to the body.
    spans: Vec<Span>,
    /// How the rewrite is spelt.
    pub style: Style,
    toxicity: f32,
}

/// By what is decided.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    threshold: Threshold,
    fallback: Fallback,
    verify: bool,
    explain: bool,
    weights: Weights,
}

impl Rule {
    pub fn new(options: &Options, weights: Weights) -> Self {
        Self {
            threshold: options.threshold,
            fallback: options.fallback,
            verify: options.verify,
            explain: options.explain,
            weights,
        }
    }
}

impl Task {
    pub fn new(text: &str, at: usize, sentence: &Sentence, spans: &[Span], style: Style, toxicity: f32) -> Self {
        let start = sentence.body.start;
        Self {
            at,
            body: text[sentence.body.clone()].into(),
            core: sentence.core.start - start..sentence.core.end - start,
            spans: protect::within(spans, &sentence.body),
            style,
            toxicity,
        }
    }

    /// What the rewriter gets.
    pub fn core(&self) -> &str {
        &self.body[self.core.clone()]
    }

    /// The best candidate, or what is done when none is good enough; and what was wrong with the others.
    pub fn decide(&self, rewrites: &Rewrites, rule: &Rule, judges: &Judges) -> (Verdict, Vec<Rejection>) {
        let prose = OfProse::new(judges.toxicity.as_ref(), &self.body, &self.spans);
        let (before, after) = (&self.body[..self.core.start], &self.body[self.core.end..]);
        let rewritten = |core: &str, toxicity: Option<f32>| {
            let body = [before, core, after].concat();
            Verdict {
                action: SegmentAction::Rewritten,
                toxicity: toxicity.unwrap_or_else(|| toxicity_of(&prose, &body)),
                body,
                candidates: Vec::new(),
            }
        };
        let core_spans = protect::within(&self.spans, &self.core);
        let source = Source {
            before,
            core: self.core(),
            after,
            spans: &core_spans,
            style: self.style,
        };
        if !rule.verify {
            let verdict = match rewrites.candidates.first() {
                Some(first) => rewritten(&source.tidied(&first.text), None),
                None => self.fall_back(rule, &prose),
            };
            return (verdict, Vec::new());
        }
        let verifier = Verifier {
            toxicity: &prose,
            similarity: judges.similarity.as_ref(),
            threshold: rule.threshold,
            weights: &rule.weights,
        };
        let ranking = verifier.rank(&source, &rewrites.candidates);
        let mut verdict = match ranking.accepted.first() {
            Some(best) => rewritten(&best.text, Some(best.toxicity)),
            None => self.fall_back(rule, &prose),
        };
        if rule.explain {
            verdict.candidates = ranking.accepted;
        }
        (verdict, ranking.rejected)
    }

    fn fall_back(&self, rule: &Rule, prose: &OfProse<'_>) -> Verdict {
        match rule.fallback {
            Fallback::Annotate => annotated(self.body.to_string(), self.toxicity),
            Fallback::Block => blocked(),
            Fallback::Mask => {
                mask(&self.body, &self.spans, prose, rule.threshold).map_or_else(blocked, |masked| Verdict {
                    action: SegmentAction::Masked,
                    body: masked.text,
                    toxicity: masked.toxicity,
                    candidates: Vec::new(),
                })
            }
        }
    }
}

/// A sentence that is left as it is, though it is over the threshold.
pub(super) fn annotated(body: String, toxicity: f32) -> Verdict {
    Verdict {
        action: SegmentAction::Annotated,
        body,
        toxicity,
        candidates: Vec::new(),
    }
}

/// A sentence that is withheld.
pub(super) fn blocked() -> Verdict {
    Verdict {
        action: SegmentAction::Blocked,
        body: String::new(),
        toxicity: 0.0,
        candidates: Vec::new(),
    }
}
