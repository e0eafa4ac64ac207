//! Training sets from models.
//!
//! - Of toxic texts: `sets` samples a rewriter, `sort` says which sample is a positive, which a negative, and makes negatives by undoing an edit.
//! - Of harmless texts, as in the paper: `paraphrases` asks an LLM for paraphrases and for toxic ones. `prompts`: what is asked; `llm`: who
//!   answers, the local model or (`openai`) a server; `sentences`: of what; `answers`: the texts in an answer; `rouge`: how close a text is to its source.
//! - `output`: the file that both append to, and go on with.
//!
//! What does not live here: decoding (`engine`), chat templates (`model`) and the two judgements (`scoring`).

mod answers;
mod llm;
mod openai;
mod output;
mod paraphrases;
mod prompts;
mod rouge;
mod sentences;
mod sets;
mod sort;

pub use llm::{Answer, Asking, Llm, LlmError, LocalLlm, Question};
pub use openai::{OpenAi, OpenAiSettings};
pub use output::Anchor;
pub use paraphrases::{ParaphraseGenerator, SideCounts, Summary};
pub use prompts::{DEFAULT as DEFAULT_PROMPTS, Prompts, PromptsError, Side};
pub use rouge::rouge_l;
pub use sentences::{SentencesError, read as read_sentences};
pub use sets::{GenerateError, RewriteSummary, SetGenerator};
pub use sort::{Criteria, RewriteSet, sort};
