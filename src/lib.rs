//! `detoxd` rewrites toxic text into text with the same meaning and none of the toxicity.
pub mod model {
    pub mod tokenizer;
}
