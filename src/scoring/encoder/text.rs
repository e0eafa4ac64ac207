//! Texts as token ids, each with what its model puts before and behind it, cut to what the model takes.
//!
//! As everywhere here, text is never more than text: a `[SEP]` that somebody writes is spelt out, or passed over where the vocabulary has it as a piece of
//! text (SentencePiece's).

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, Encoding, Tokenizer, TruncationParams};

use super::EncoderError;
use super::config::{EncoderConfig, Family};

/// What stands for a piece of text that is in no vocabulary.
const UNKNOWN: [&str; 2] = ["<unk>", "[UNK]"];

/// Turns texts into ids.
pub(super) struct Tokeniser {
    inner: Tokenizer,
    /// Tokens that no text may name.
    control: HashSet<u32>,
    padding: u32,
    lowercase: bool,
}

/// `tokenizer_config.json`, as far as it is needed.
#[derive(Deserialize, Default)]
struct TokenizerConfig {
    /// A number beyond all numbers where there is no limit.
    model_max_length: Option<f64>,
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    add_prefix_space: Option<bool>,
}

/// `sentence_bert_config.json`, which only sentence-embedding models have.
#[derive(Deserialize, Default)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

impl Tokeniser {
    /// Reads `tokenizer.json`, else the vocabulary files of a time before it.
    pub fn open(folder: &Path, config: &EncoderConfig) -> Result<Self, EncoderError> {
        let own: TokenizerConfig = json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let sentence: SentenceConfig = json(&folder.join("sentence_bert_config.json"))?.unwrap_or_default();
        let malformed = |error: tokenizers::Error| EncoderError::file(folder, format!("its tokenizer: {error}"));
        let path = folder.join("tokenizer.json");
        let mut inner = if path.is_file() {
            Tokenizer::from_file(&path).map_err(|error| EncoderError::file(&path, error))?
        } else {
            from_vocabulary(folder, config.family, &own)?
        };
        let limits = [
            own.model_max_length.map(|limit| limit as usize),
            sentence.max_seq_length,
        ];
        let longest = limits.into_iter().flatten().fold(config.positions(), usize::min);
        let truncation = TruncationParams {
            max_length: longest,
            ..TruncationParams::default()
        };
        inner
            .with_truncation(Some(truncation))
            .map_err(malformed)?
            .with_padding(None);
        inner.set_encode_special_tokens(true);
        let size = inner.get_vocab_size(true);
        if size > config.vocab_size {
            let reason = format!("its tokenizer has {size} tokens, config.json {}", config.vocab_size);
            return Err(EncoderError::file(folder, reason));
        }
        let added = inner.get_added_tokens_decoder();
        let is_control = |token: &AddedToken| token.special && !UNKNOWN.contains(&token.content.as_str());
        let control = added
            .iter()
            .filter(|(_, token)| is_control(token))
            .map(|(&id, _)| id)
            .collect();
        Ok(Self {
            inner,
            control,
            padding: config.padding,
            lowercase: sentence.do_lower_case,
        })
    }

    /// The ids of each text.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, EncoderError> {
        let texts: Vec<String> = texts
            .iter()
            .map(|text| {
                if self.lowercase {
                    text.to_lowercase()
                } else {
                    (*text).to_owned()
                }
            })
            .collect();
        let failed = |error: tokenizers::Error| candle_core::Error::Msg(format!("encoding a text: {error}"));
        let encodings = self.inner.encode_batch_fast(texts, true).map_err(failed)?;
        Ok(encodings.iter().map(|encoding| self.ids(encoding)).collect())
    }

    /// Without control tokens, but for those that are put around a text.
    fn ids(&self, encoding: &Encoding) -> Vec<u32> {
        let tokens = encoding.get_ids().iter().zip(encoding.get_special_tokens_mask());
        tokens
            .filter(|&(id, &is_around)| is_around == 1 || !self.control.contains(id))
            .map(|(&id, _)| id)
            .collect()
    }

    /// The id that fills up shorter texts.
    pub fn padding(&self) -> u32 {
        self.padding
    }
}

/// `vocab.txt` of the BERTs, `vocab.json` and `merges.txt` of RoBERTa.
fn from_vocabulary(folder: &Path, family: Family, own: &TokenizerConfig) -> Result<Tokenizer, EncoderError> {
    let word_piece = folder.join("vocab.txt");
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let name = |path: &Path| path.to_string_lossy().into_owned();
    match family {
        Family::Bert | Family::DistilBert if word_piece.is_file() => {
            let malformed = |error| EncoderError::file(&word_piece, error);
            let model = WordPiece::from_file(&name(&word_piece)).build().map_err(malformed)?;
            let mut tokenizer = Tokenizer::new(model);
            let normalizer = BertNormalizer::new(
                true,
                own.tokenize_chinese_chars.unwrap_or(true),
                own.strip_accents,
                own.do_lower_case.unwrap_or(true),
            );
            let [first, last] = ends(&tokenizer, ["[CLS]", "[SEP]"], &word_piece)?;
            tokenizer.with_normalizer(Some(normalizer)).map_err(malformed)?;
            tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
            tokenizer.with_post_processor(Some(BertProcessing::new(last, first)));
            Ok(tokenizer)
        }
        Family::Roberta if vocabulary.is_file() && merges.is_file() => {
            let malformed = |error| EncoderError::file(&vocabulary, error);
            let model = BPE::from_file(&name(&vocabulary), &name(&merges))
                .build()
                .map_err(malformed)?;
            let mut tokenizer = Tokenizer::new(model);
            let [first, last] = ends(&tokenizer, ["<s>", "</s>"], &vocabulary)?;
            let prefix_space = own.add_prefix_space.unwrap_or(false);
            tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix_space, true, true)));
            tokenizer.with_post_processor(Some(RobertaProcessing::new(last, first)));
            Ok(tokenizer)
        }
        _ => Err(EncoderError::file(
            &folder.join("tokenizer.json"),
            "there is no such file, nor a vocab.txt (BERT) or a vocab.json with merges.txt (RoBERTa) in its place; `AutoTokenizer` \
             of Python's transformers writes one",
        )),
    }
}

/// The tokens around a text, with their ids.
fn ends(tokenizer: &Tokenizer, names: [&str; 2], path: &Path) -> Result<[(String, u32); 2], EncoderError> {
    let id = |name: &str| -> Result<(String, u32), EncoderError> {
        let id = tokenizer.token_to_id(name);
        let id = id.ok_or_else(|| EncoderError::file(path, format!("it has no token {name}")))?;
        Ok((name.to_owned(), id))
    };
    Ok([id(names[0])?, id(names[1])?])
}

/// A file as JSON, if there is one.
pub(super) fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, EncoderError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| EncoderError::file(path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EncoderError::file(path, error)),
    }
}
