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

    /// The source of a prompt that [`RewritePrompt::tokens`] made.
    pub fn source<'a>(&self, prompt: &'a [u32]) -> &'a [u32] {
        prompt.get(1..prompt.len().saturating_sub(1)).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_prompts_source_is_what_it_was_made_of() {
        let file = "tests/fixtures/llama-tiny/tied/tokenizer.json";
        let tokenizer = TextTokenizer::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let prompt = RewritePrompt::new(&tokenizer).unwrap();
        for source in [&[7, 8, 9][..], &[]] {
            assert_eq!(prompt.source(&prompt.tokens(source)), source);
        }
        assert!(prompt.source(&[]).is_empty());
    }
}
