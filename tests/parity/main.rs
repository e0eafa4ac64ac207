//! Our model code against outputs recorded from reference libraries. The `record_*.py` beside the
//! recordings are the programs that wrote them.
//!
//! What needs the weights of SmolLM2 runs only where `DETOXD_TEST_BASE` names the GGUF file.

mod model;
mod support;
mod tokenizer;
mod training;

use std::path::PathBuf;

/// The GGUF file of SmolLM2-135M-Instruct, or `None` with a word about why the test does nothing.
fn base_model() -> Option<PathBuf> {
    let path = std::env::var_os("DETOXD_TEST_BASE").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: DETOXD_TEST_BASE names no GGUF file of SmolLM2-135M-Instruct");
    }
    path
}
