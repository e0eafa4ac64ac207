//! The prompt a rewriter is trained and served with.

use crate::model::tokenizer::TextTokenizer;

/// `<|im_start|>{source}<|im_end|>`, after which the model writes the rewrite and `<|im_end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RewritePrompt {
    start: u32,
    end: u32,
}

impl RewritePrompt {
    /// The prompt in the tokens of a model.
    ///
    /// # Errors
    /// Names the marker that the vocabulary lacks.
    pub fn new(tokenizer: &TextTokenizer) -> Result<Self, MissingMarker> {
        let id = |name: &'static str| tokenizer.token_id(name).ok_or(MissingMarker(name));
        Ok(Self {
            start: id("<|im_start|>")?,
            end: id("<|im_end|>")?,
        })
    }

    /// The prompt for a source.
    pub fn tokens(&self, source: &[u32]) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(source.len() + 2);
        tokens.push(self.start);
        tokens.extend_from_slice(source);
        tokens.push(self.end);
        tokens
    }

    /// The token that ends a rewrite.
    pub fn end(&self) -> u32 {
        self.end
    }
}

/// A vocabulary without one of the prompt's markers.
#[derive(Debug, thiserror::Error)]
#[error("the model's vocabulary has no {0}, which the rewrite prompt needs")]
pub struct MissingMarker(&'static str);
