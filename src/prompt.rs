//! The prompt a rewriter is trained and served with.
//!
//! Which one depends on what the model's vocabulary has, so that training and serving cannot disagree:
//!
//! - with `<|im_start|>` and `<|im_end|>` (SmolLM2, Qwen2): `<|im_start|>{source}<|im_end|>`, then the rewrite and `<|im_end|>`;
//! - without them (Llama, Mistral, Falcon): what the tokenizer itself puts before a text (`<s>`, `<|begin_of_text|>`, nothing), then
//!   `Text:`, the source and `Rewrite:`, each on a line of its own; the rewrite ends with the model's end token.

use crate::model::tokenizer::TextTokenizer;

/// What stands before and after a source, and what ends a rewrite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewritePrompt {
    before: Vec<u32>,
    after: Vec<u32>,
    end: u32,
}

/// Tokens that end a text, by family: Llama-3, Llama-2 and Mistral, Falcon and others.
const END_OF_TEXT: [&str; 5] = ["<|end_of_text|>", "<|eot_id|>", "</s>", "<|endoftext|>", "<|im_end|>"];

impl RewritePrompt {
    /// The prompt in the tokens of a model.
    ///
    /// # Errors
    /// When the vocabulary has no token that could end a rewrite.
    pub fn new(tokenizer: &TextTokenizer) -> Result<Self, MissingMarker> {
        let id = |name: &str| tokenizer.token_id(name);
        if let (Some(start), Some(end)) = (id("<|im_start|>"), id("<|im_end|>")) {
            return Ok(Self {
                before: vec![start],
                after: vec![end],
                end,
            });
        }
        let end = END_OF_TEXT.into_iter().find_map(id).ok_or(MissingMarker)?;
        let encode = |text: &str| tokenizer.encode(text).map_err(|_| MissingMarker);
        Ok(Self {
            before: [tokenizer.leading_tokens(), &encode("Text:\n")?].concat(),
            after: encode("\nRewrite:\n")?,
            end,
        })
    }

    /// The prompt for a source.
    pub fn tokens(&self, source: &[u32]) -> Vec<u32> {
        [&self.before, source, &self.after].concat()
    }

    /// The token that ends a rewrite.
    pub fn end(&self) -> u32 {
        self.end
    }
}

/// A vocabulary that no prompt can be made of.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model's vocabulary has none of the tokens that could end a rewrite (<|im_end|>, <|end_of_text|>, <|eot_id|>, </s>, <|endoftext|>)"
)]
pub struct MissingMarker;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer(file: &str) -> TextTokenizer {
        TextTokenizer::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file)).unwrap()
    }

    #[test]
    fn markers_are_used_where_the_vocabulary_has_them() {
        let prompt = RewritePrompt::new(&tokenizer("llama-tiny/tied/tokenizer.json")).unwrap();
        assert_eq!(prompt.tokens(&[7, 8]), [1, 7, 8, 2]);
        assert_eq!(prompt.end(), 2);
    }

    #[test]
    fn other_models_get_plain_words_and_end_with_their_own_token() {
        for (name, begin, end) in [
            ("llama2", Some("<s>"), "</s>"),
            ("llama3", Some("<|begin_of_text|>"), "<|end_of_text|>"),
            ("falcon", None, "<|endoftext|>"),
        ] {
            let tokenizer = tokenizer(&format!("families/tokenizers/{name}.json"));
            let prompt = RewritePrompt::new(&tokenizer).unwrap();
            let tokens = prompt.tokens(&tokenizer.encode("an idea").unwrap());
            assert_eq!(
                begin.is_some(),
                Some(tokens[0]) == begin.and_then(|name| tokenizer.token_id(name)),
                "{name}"
            );
            let text = tokenizer.decode(&tokens).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(words, ["Text:", "an", "idea", "Rewrite:"], "{name}");
            assert_eq!(Some(prompt.end()), tokenizer.token_id(end), "{name}");
        }
    }
}
