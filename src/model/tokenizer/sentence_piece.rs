//! The vocabulary of a GGUF file whose model was made by SentencePiece's BPE: Llama-2, Mistral.
//!
//! Such a file has scores instead of merges. Of all neighbours that together are a token, those with the highest score are joined first,
//! so that every way to cut a token in two is a merge, ordered by the token's score; Hugging Face's converter does the same.

use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};

use super::{TYPE_CONTROL, TYPE_UNKNOWN, TokenizerError, flag, malformed, strings, token_types};

const SCORES: &str = "tokenizer.ggml.scores";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// What stands for a space.
const SPACE: &str = "▁";

/// Builds the tokenizer, its control tokens not yet added.
pub(super) fn build(content: &Content) -> Result<Tokenizer, TokenizerError> {
    let tokens = strings(content, super::TOKENS)?;
    let types = token_types(content, tokens.len())?;
    let scores = scores(content, tokens.len())?;
    let vocabulary: Vocab = (0u32..)
        .zip(&tokens)
        .map(|(id, token)| ((*token).to_owned(), id))
        .collect();
    let mut merges = Vec::new();
    for ((token, score), kind) in tokens.iter().zip(scores).zip(&types) {
        if matches!(*kind, TYPE_CONTROL | TYPE_UNKNOWN) {
            continue;
        }
        let mut ways: Vec<(u32, u32, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*vocabulary.get(left)?, *vocabulary.get(right)?, left, right))
            })
            .collect();
        ways.sort_unstable();
        merges.extend(ways.into_iter().map(|(_, _, left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let by_length = (length(b.1), length(b.2)).cmp(&(length(a.1), length(a.2)));
        b.0.total_cmp(&a.0).then(by_length)
    });
    let merges = merges
        .into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()))
        .collect();
    let mut model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = types.iter().position(|kind| *kind == TYPE_UNKNOWN) {
        model = model.unk_token(tokens[unknown].to_owned());
    }
    let mut inner = Tokenizer::new(model.build().map_err(TokenizerError::Build)?);
    let spaces = Replace::new(" ", SPACE).map_err(TokenizerError::Build)?;
    let back = Replace::new(SPACE, " ").map_err(TokenizerError::Build)?;
    let mut normalizers: Vec<NormalizerWrapper> = vec![spaces.into()];
    let mut decoders: Vec<DecoderWrapper> = vec![back.into(), ByteFallback::new().into(), Fuse::new().into()];
    if flag(content, ADD_SPACE_PREFIX)?.unwrap_or(true) {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(TokenizerError::Build)?;
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok(inner)
}

fn scores(content: &Content, count: usize) -> Result<Vec<f32>, TokenizerError> {
    let value = content.metadata.get(SCORES).ok_or(TokenizerError::Missing(SCORES))?;
    let scores: Vec<f32> = value
        .to_vec()
        .and_then(|list| list.iter().map(Value::to_f32).collect())
        .map_err(|error| malformed(SCORES, error))?;
    if scores.len() != count {
        return Err(malformed(SCORES, format!("{} scores for {count} tokens", scores.len())));
    }
    Ok(scores)
}
