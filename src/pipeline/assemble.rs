//! Puts the sentences of a text together again, and tells what became of each.

use super::edits::{Edit, EditsBuilder};
use super::outcome::{Segment, SegmentAction, ToxicityChange};
use super::segment::Sentence;

/// What became of a toxic sentence.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    /// What was done.
    pub action: SegmentAction,
    /// The new body.
    pub body: String,
    /// Its toxicity.
    pub toxicity: f32,
}

/// A text put together.
#[derive(Debug)]
pub(super) struct Assembled {
    pub text: String,
    pub segments: Vec<Segment>,
    pub edits: Vec<Edit>,
}

impl Assembled {
    /// From a verdict, or none, a sentence; those without one are kept byte for byte.
    pub fn new(
        text: &str,
        sentences: &[Sentence],
        scores: &[f32],
        verdicts: Vec<Option<Verdict>>,
    ) -> Self {
        let mut output = String::with_capacity(text.len());
        let mut edits = EditsBuilder::default();
        let mut segments = Vec::with_capacity(sentences.len());
        let mut end = 0;
        for ((sentence, &input), verdict) in sentences.iter().zip(scores).zip(verdicts) {
            let source = &text[sentence.range.clone()];
            let start = end;
            end += source.chars().count();
            let (action, replaced, toxicity) = match verdict {
                None => (SegmentAction::Kept, source.to_owned(), input),
                Some(verdict) => {
                    let lead = &text[sentence.range.start..sentence.body.start];
                    let trail = &text[sentence.body.end..sentence.range.end];
                    let replaced = [lead, &verdict.body, trail].concat();
                    (verdict.action, replaced, verdict.toxicity)
                }
            };
            edits.piece(source, &replaced);
            output.push_str(&replaced);
            segments.push(Segment {
                start,
                end,
                action,
                toxicity: ToxicityChange {
                    input,
                    output: toxicity,
                },
                text: replaced,
            });
        }
        Self {
            text: output,
            segments,
            edits: edits.finish(),
        }
    }

    /// Nothing goes out: every segment counts as blocked, also those that were fine.
    pub fn withheld(text: &str, sentences: &[Sentence], scores: &[f32]) -> Self {
        let mut edits = EditsBuilder::default();
        edits.piece(text, "");
        let mut end = 0;
        let segments = sentences
            .iter()
            .zip(scores)
            .map(|(sentence, &input)| {
                let start = end;
                end += text[sentence.range.clone()].chars().count();
                Segment {
                    start,
                    end,
                    action: SegmentAction::Blocked,
                    toxicity: ToxicityChange { input, output: 0.0 },
                    text: String::new(),
                }
            })
            .collect();
        Self {
            text: String::new(),
            segments,
            edits: edits.finish(),
        }
    }

    /// The highest toxicity of any segment, before and after.
    pub fn toxicity(&self) -> ToxicityChange {
        let mut most = ToxicityChange::default();
        for segment in &self.segments {
            most.input = most.input.max(segment.toxicity.input);
            most.output = most.output.max(segment.toxicity.output);
        }
        most
    }
}
