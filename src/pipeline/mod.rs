//! One text, from the moment it is admitted until its answer stands.
//!
//! 1. [`protect`] finds what is never touched: code, quotes, HTML, link targets, addresses,
//!    `@names`, `#tags`, numbers with their units.
//! 2. [`segment`] splits the rest into sentences that tile the text. White space, list markers,
//!    and addresses and emoji at either end of a sentence are outside of what a model sees.
//! 3. [`detoxify`] scores each sentence. At or under the threshold it is kept, byte for byte; a
//!    text without a toxic sentence never reaches the model.
//!    Of the others `unfit` finds those that no model can save: in another language, or nothing but an insult.
//! 4. The others go to the [`rewriter`], side by side, equal ones once, if the request's [`turn`] comes soon enough.
//! 5. `decide` takes the answer. [`verify`] ranks the candidates: [`tidy`] undoes the model's style, [`restore`] puts lost
//!    names and addresses back, [`checks`] finds faults; the best that passes is taken.
//! 6. If none passes, the caller's fallback: [`mask`] the worst words, withhold the sentence, or
//!    leave it and say so.
//! 7. The pieces are put together, with the [`edits`] from the input to the output.
//!
//! [`canary`] tries an adapter on the model before it is used; [`shadow`] has another one answer beside it, unseen.
//!
//! Any error fails the whole text: there is no half-rewritten one.
//!
//! What deliberately does not live here: HTTP and its limits (the longest text, the timeout),
//! token ids, batching and what is held of sequences (the engine's), and any judgement of toxicity or meaning
//! (`scoring`'s, behind its traits; [`judges`] asks them where nobody has to wait for it).
//!
//! Not handled: a text whose sentences are all fine and which is toxic as a whole; a sentence
//! wrapped over several lines, which is judged line by line; toxic code, names, tags or quotes.
//! A quote is scored and reported, so a caller can see it, and never acted upon; code, images and
//! addresses are not scored at all, since nothing could be done about them.

mod assemble;
pub mod canary;
pub mod checks;
mod clause;
mod code;
mod decide;
pub mod detoxify;
pub mod edits;
mod join;
pub mod judges;
mod language;
mod legible;
pub mod mask;
pub mod options;
pub mod outcome;
pub mod perplexity;
pub mod protect;
pub mod rejection;
pub mod remembering;
pub mod restore;
pub mod rewriter;
pub mod rewriter_lm;
mod scorers;
pub mod segment;
pub mod shadow;
mod split;
mod style;
#[cfg(test)]
mod testing;
pub mod tidy;
mod trim;
pub mod turn;
mod unfit;
pub mod verify;

#[cfg(test)]
mod tests;

pub use assemble::SegmentObserver;
pub use canary::EngineCanary;
pub use detoxify::Detoxifier;
pub use edits::Edit;
pub use judges::Judges;
pub use options::{
    Action, Fallback, Format, Guidance, MAX_CANDIDATES, Options, OtherLanguages, OutOfRange, Strength, Threshold,
};
pub use outcome::{Detoxified, DetoxifyError, Segment, SegmentAction, ToxicityChange, Usage};
pub use perplexity::{Likelihood, ModelPerplexity, Perplexity, PerplexityScorer};
pub use rejection::Rejection;
pub use remembering::{RememberingMetrics, RememberingRewriter};
pub use rewriter::{BoxFuture, Candidate, RewriteError, RewriteRequest, Rewriter, Rewrites};
pub use rewriter_lm::LanguageModelRewriter;
pub use shadow::{Shadow, ShadowCopy, ShadowMetrics, ShadowStatistics, Sums};
pub use style::Style;
pub use turn::Turn;
pub use unfit::Unfit;
pub use verify::Weights;
