//! Our model code against outputs recorded from reference libraries, and its ways of computing the same thing against
//! each other. The `record_*.py` beside the recordings are the programs that wrote them.
//!
//! - `tokenizer`: ids; `logits`, `train_step`, `objectives`: recorded by transformers, PEFT and PyTorch on `llama-tiny`;
//! - `chat`: chat templates rendered and tokenised by transformers;
//! - `cached`, `packed`: caches and shared prompts against whole sequences; `gradients`: against finite differences;
//! - `policy`: runs that compare with their beginning, or learn from their own texts;
//! - `adapters`: PEFT's files, good and bad; `merged`: one put into its base; `resume`: an interrupted run against an unbroken one;
//! - `families`: each family on a small model of it; `four_bit`: 4-bit weights against bitsandbytes and against dense ones;
//! - `engine`: what the scheduler gives against a plain loop; `drafts`: that drafts change nothing.
//!
//! What needs the weights of SmolLM2 runs only where `DETOXD_TEST_BASE` names the GGUF file; what needs sentences as well, where
//! `DETOXD_TEST_SENTENCES` names a file of them.

mod adapters;
mod cached;
mod chat;
mod drafts;
mod engine;
mod families;
mod four_bit;
mod gradients;
mod judges;
mod logits;
mod merged;
mod objectives;
mod packed;
mod policy;
mod resume;
mod tiny;
mod tokenizer;
mod train_step;

use std::path::PathBuf;

/// The GGUF file of SmolLM2-135M-Instruct, or `None` with a word about why the test does nothing.
fn base_model() -> Option<PathBuf> {
    let path = std::env::var_os("DETOXD_TEST_BASE").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: DETOXD_TEST_BASE names no GGUF file of SmolLM2-135M-Instruct");
    }
    path
}
