//! Puts the sentences of a text together again, and tells what became of each.

use super::edits::{Edit, EditsBuilder};
use super::outcome::{Segment, SegmentAction, ToxicityChange};
use super::segment::Sentence;
use super::verify::Accepted;

/// What became of a toxic sentence.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    /// What was done.
    pub action: SegmentAction,
    /// The new body.
    pub body: String,
    /// Its toxicity.
    pub toxicity: f32,
    /// What there was to choose from, best first, if that is to be told.
    pub candidates: Vec<Accepted>,
}

/// Told of each segment, in order, as soon as it and those before it are settled.
pub type SegmentObserver<'a> = &'a (dyn Fn(&Segment) + Send + Sync);

/// A text put together.
#[derive(Debug)]
pub(super) struct Assembled {
    pub text: String,
    pub segments: Vec<Segment>,
    pub edits: Vec<Edit>,
}

/// What is known of a sentence.
enum Fate {
    Open,
    Kept,
    Settled(Verdict),
}

/// Puts a text together from its front, while verdicts come in any order.
pub(super) struct Assembler<'t> {
    text: &'t str,
    sentences: &'t [Sentence],
    scores: &'t [f32],
    observer: SegmentObserver<'t>,
    fates: Vec<Fate>,
    /// Code points put together so far.
    end: usize,
    output: String,
    edits: EditsBuilder,
    segments: Vec<Segment>,
}

impl<'t> Assembler<'t> {
    /// Sentences that are not in `open` are kept byte for byte; `observer` hears at once of those
    /// before the first open one.
    pub fn new(
        text: &'t str,
        sentences: &'t [Sentence],
        scores: &'t [f32],
        open: &[usize],
        observer: SegmentObserver<'t>,
    ) -> Self {
        let mut fates: Vec<Fate> = sentences.iter().map(|_| Fate::Kept).collect();
        for &at in open {
            fates[at] = Fate::Open;
        }
        let mut assembler = Self {
            text,
            sentences,
            scores,
            observer,
            fates,
            end: 0,
            output: String::with_capacity(text.len()),
            edits: EditsBuilder::default(),
            segments: Vec::with_capacity(sentences.len()),
        };
        assembler.advance();
        assembler
    }

    /// Takes the verdict on a sentence.
    pub fn settle(&mut self, at: usize, verdict: Verdict) {
        self.fates[at] = Fate::Settled(verdict);
        self.advance();
    }

    /// The text. Sentences that are still open are kept.
    pub fn finish(mut self) -> Assembled {
        for fate in &mut self.fates {
            if matches!(fate, Fate::Open) {
                *fate = Fate::Kept;
            }
        }
        self.advance();
        Assembled {
            text: self.output,
            segments: self.segments,
            edits: self.edits.finish(),
        }
    }

    fn advance(&mut self) {
        while let Some(fate) = self.fates.get(self.segments.len()) {
            let at = self.segments.len();
            let (sentence, input) = (&self.sentences[at], self.scores[at]);
            let source = &self.text[sentence.range.clone()];
            let (action, replaced, output, candidates) = match fate {
                Fate::Open => return,
                Fate::Kept => (SegmentAction::Kept, source.to_owned(), input, Vec::new()),
                Fate::Settled(verdict) => {
                    let lead = &self.text[sentence.range.start..sentence.body.start];
                    let trail = &self.text[sentence.body.end..sentence.range.end];
                    let replaced = [lead, &verdict.body, trail].concat();
                    (verdict.action, replaced, verdict.toxicity, verdict.candidates.clone())
                }
            };
            let start = self.end;
            self.end += source.chars().count();
            self.edits.piece(source, &replaced);
            self.output.push_str(&replaced);
            let segment = Segment {
                start,
                end: self.end,
                action,
                toxicity: ToxicityChange { input, output },
                reason: sentence.unfit,
                candidates,
                text: replaced,
            };
            (self.observer)(&segment);
            self.segments.push(segment);
        }
    }
}

impl Assembled {
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
                    reason: sentence.unfit,
                    candidates: Vec::new(),
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
