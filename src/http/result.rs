//! What was done to a text, as other programs see it; also a line of `detoxd rewrite --json`.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::pipeline::{self, Detoxified};

/// What was done to a text. Offsets are Unicode code points of the input.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetoxifyResult {
    /// Identifies this result (UUID version 7).
    #[schema(example = "019ab0e5-8b5e-7c3f-9d0e-2f1a4c6b8d01")]
    pub id: String,
    /// The milder text. Whatever was not toxic is the input's byte for byte.
    pub text: String,
    /// Whether `text` differs from the input.
    pub changed: bool,
    /// The highest toxicity of any sentence.
    pub toxicity: Toxicity,
    /// Similarity in meaning of input and output, 0 to 1, by the built-in scorer or the service's `similarity_model`.
    pub similarity: f32,
    /// The sentences, in order; together they are the whole input.
    pub segments: Vec<Segment>,
    /// The changes, in order.
    pub edits: Vec<Edit>,
    /// The adapter that was used, `name@version`; `none@0` is the bare base model.
    #[schema(example = "default@1")]
    pub adapter: String,
    /// The base model that was used.
    #[schema(example = "smollm2-135m")]
    pub model: String,
    /// Tokens the model worked on; none for a text without toxic sentences.
    pub usage: Usage,
    /// Where the time went.
    pub timing_ms: Timing,
}

/// Toxicity before and after: probability, 0 to 1.
#[derive(Debug, Serialize, ToSchema)]
pub struct Toxicity {
    /// Of the input.
    #[schema(minimum = 0, maximum = 1)]
    pub input: f32,
    /// Of the output.
    #[schema(minimum = 0, maximum = 1)]
    pub output: f32,
}

/// A sentence of the input and what was done to it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Segment {
    /// First code point.
    pub start: usize,
    /// One past the last code point.
    pub end: usize,
    /// What was done.
    pub action: SegmentAction,
    /// Toxicity of this sentence.
    pub toxicity: Toxicity,
    /// Why the model was not asked for a rewrite of a toxic sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Unfit>,
    /// The rewrites that passed verification, best first; only where the request has `explain`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
}

/// A rewrite that could have been taken, and what it is ranked by.
#[derive(Debug, Serialize, ToSchema)]
pub struct Candidate {
    /// In place of the sentence, without what surrounds it.
    pub text: String,
    /// Toxicity of the sentence with it.
    #[schema(minimum = 0, maximum = 1)]
    pub toxicity: f32,
    /// Similarity in meaning to the sentence, 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    pub similarity: f32,
    /// Negative log-likelihood a token under the adapter, in nats; not there where it can't be told.
    pub mean_nll: Option<f32>,
    /// The same of the rewrite by itself under the bare base model: how fluent it is; only where there was a choice.
    pub base_nll: Option<f32>,
    /// The higher, the better.
    pub score: f32,
}

/// Why a sentence can't be rewritten.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unfit {
    /// It is not English.
    Language,
    /// Without its toxic words nothing would be said.
    NothingNeutral,
}

/// What was done to a sentence.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SegmentAction {
    /// Not toxic: byte for byte as it was.
    Kept,
    /// Rewritten, and the rewrite verified.
    Rewritten,
    /// Toxic words masked, as no rewrite was good enough.
    Masked,
    /// Withheld.
    Blocked,
    /// Toxic, reported and left as it was.
    Annotated,
}

/// A change.
#[derive(Debug, Serialize, ToSchema)]
pub struct Edit {
    /// First code point of `from` in the input.
    pub start: usize,
    /// One past its last code point.
    pub end: usize,
    /// What stood in the input.
    pub from: String,
    /// What stands in the output.
    pub to: String,
}

/// Tokens the model worked on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens written, over all candidates.
    pub completion_tokens: usize,
}

/// Milliseconds.
#[derive(Debug, Serialize, ToSchema)]
pub struct Timing {
    /// Waiting for the model.
    pub queue: f64,
    /// The model working.
    pub inference: f64,
    /// From the request's arrival to this result.
    pub total: f64,
}

impl DetoxifyResult {
    /// The result of a text for which `total` has passed.
    pub fn new(done: Detoxified, total: Duration) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            text: done.text,
            changed: done.changed,
            toxicity: (&done.toxicity).into(),
            similarity: done.similarity,
            segments: done.segments.iter().map(Into::into).collect(),
            edits: done
                .edits
                .into_iter()
                .map(|edit| Edit {
                    start: edit.start,
                    end: edit.end,
                    from: edit.from,
                    to: edit.to,
                })
                .collect(),
            adapter: done.adapter,
            model: done.model,
            usage: Usage {
                prompt_tokens: done.usage.prompt_tokens,
                completion_tokens: done.usage.completion_tokens,
            },
            timing_ms: Timing {
                queue: milliseconds(done.queue),
                inference: milliseconds(done.inference),
                total: milliseconds(total),
            },
        }
    }
}

/// To the microsecond, so that no JSON has noise for digits.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

impl From<&pipeline::ToxicityChange> for Toxicity {
    fn from(toxicity: &pipeline::ToxicityChange) -> Self {
        Self {
            input: toxicity.input,
            output: toxicity.output,
        }
    }
}

impl From<&pipeline::Segment> for Segment {
    fn from(segment: &pipeline::Segment) -> Self {
        Self {
            start: segment.start,
            end: segment.end,
            action: segment.action.into(),
            toxicity: (&segment.toxicity).into(),
            reason: segment.reason.map(Unfit::from),
            candidates: segment.candidates.iter().map(Into::into).collect(),
        }
    }
}

impl From<&pipeline::verify::Accepted> for Candidate {
    fn from(candidate: &pipeline::verify::Accepted) -> Self {
        Self {
            text: candidate.text.clone(),
            toxicity: candidate.toxicity,
            similarity: candidate.similarity,
            mean_nll: Some(candidate.mean_nll).filter(|nll| nll.is_finite()),
            base_nll: candidate.base_nll.filter(|nll| nll.is_finite()),
            score: candidate.score,
        }
    }
}

impl From<pipeline::Unfit> for Unfit {
    fn from(unfit: pipeline::Unfit) -> Self {
        match unfit {
            pipeline::Unfit::Language => Self::Language,
            pipeline::Unfit::NothingNeutral => Self::NothingNeutral,
        }
    }
}

impl From<pipeline::SegmentAction> for SegmentAction {
    fn from(action: pipeline::SegmentAction) -> Self {
        match action {
            pipeline::SegmentAction::Kept => Self::Kept,
            pipeline::SegmentAction::Rewritten => Self::Rewritten,
            pipeline::SegmentAction::Masked => Self::Masked,
            pipeline::SegmentAction::Blocked => Self::Blocked,
            pipeline::SegmentAction::Annotated => Self::Annotated,
        }
    }
}
