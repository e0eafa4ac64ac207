//! Training sets from a model: samples of a rewriter over toxic sources, sorted into positives and negatives.
//!
//! `sort`: which sample is a positive, which a negative, and negatives made by undoing an edit; `sets`: the sampling itself.
//!
//! What does not live here: decoding (`engine`) and the two judgements (`scoring`).

mod sets;
mod sort;

pub use sets::{GenerateError, SetGenerator};
pub use sort::{Criteria, RewriteSet, sort};
