//! What comes back for a text, as the service's contract has it.

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::edits::Edit;
use super::rejection::Rejection;
use super::rewriter::RewriteError;
use super::unfit::Unfit;
use super::verify::Accepted;

/// Toxicity before and after, 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct ToxicityChange {
    /// Of what came in.
    pub input: f32,
    /// Of what goes out.
    pub output: f32,
}

/// What became of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentAction {
    /// Nothing: it is there byte for byte.
    Kept,
    /// The model rewrote it.
    Rewritten,
    /// Words of it were replaced by `***`.
    Masked,
    /// It was withheld.
    Blocked,
    /// It is over the threshold and was left as it is, as asked.
    Annotated,
}

impl SegmentAction {
    /// A stable name, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Rewritten => "rewritten",
            Self::Masked => "masked",
            Self::Blocked => "blocked",
            Self::Annotated => "annotated",
        }
    }
}

/// A sentence, or a stretch that is not touched, such as a code block. Segments tile the input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Segment {
    /// Where it starts in the input, in code points.
    pub start: usize,
    /// Where it ends in the input, in code points.
    pub end: usize,
    /// What became of it.
    pub action: SegmentAction,
    /// Its toxicity.
    pub toxicity: ToxicityChange,
    /// Why it was not given to the model, though it is toxic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Unfit>,
    /// The rewrites there were to choose from, best first, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Accepted>,
    /// What stands in its place in the output; all of them together are the output.
    #[serde(skip)]
    pub text: String,
}

/// Tokens spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Tokens of the sentences sent to the model.
    pub prompt_tokens: usize,
    /// Tokens of all candidates.
    pub completion_tokens: usize,
}

/// A text after its way through the pipeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detoxified {
    /// What goes out.
    pub text: String,
    /// Whether it differs from what came in.
    pub changed: bool,
    /// The highest toxicity of any segment, before and after.
    pub toxicity: ToxicityChange,
    /// Similarity in meaning of the whole text before and after; 1 if unchanged, 0 if withheld.
    pub similarity: f32,
    /// What became of each segment.
    pub segments: Vec<Segment>,
    /// The way from the input to the output.
    pub edits: Vec<Edit>,
    /// The adapter version, `name@version`.
    pub adapter: String,
    /// The model's name.
    pub model: String,
    /// Tokens spent.
    pub usage: Usage,
    /// The longest that a sentence waited for the model.
    #[serde(skip)]
    pub queue: Duration,
    /// The longest that the model took for a sentence; they run side by side.
    #[serde(skip)]
    pub inference: Duration,
    /// Why candidates were turned down, one entry a candidate, for metrics.
    #[serde(skip)]
    pub rejections: Vec<Rejection>,
}

/// Why there is no answer. There is nothing between an answer and this.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DetoxifyError {
    /// The model gave none.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
}
