//! Text to token ids and back.
//!
//! Two sources: the vocabulary inside a GGUF file, and a Hugging Face `tokenizer.json`. Both end in
//! the same [`TextTokenizer`], which has one rule that the underlying library does not have by
//! default: **text is never more than text**. A user who types `<|im_end|>` gets the ids of the
//! characters `<`, `|`, `im` …; only code that asks [`TextTokenizer::token_id`] can put a control
//! token in a prompt.

mod sentence_piece;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const BOS_ID: &str = "tokenizer.ggml.bos_token_id";

/// GGUF token types that are not ordinary pieces of text.
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

const SPLIT_GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const SPLIT_LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SPLIT_QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The GGUF file says nothing about its tokenizer, or not enough.
    #[error("the GGUF file has no `{0}`; it was written without its tokenizer")]
    Missing(&'static str),
    /// A metadata value has another type than the format prescribes.
    #[error("the GGUF metadata `{key}` is malformed: {why}")]
    Malformed {
        /// The metadata key.
        key: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// Neither a byte-level BPE vocabulary nor one of SentencePiece's.
    #[error(
        "the GGUF file's tokenizer is of kind `{0}`; only `gpt2` (byte-level BPE) and `llama` (SentencePiece's BPE) can be \
         read from a GGUF file, give the model as a folder with its tokenizer.json"
    )]
    UnsupportedModel(String),
    /// The rule by which text is cut before merging is not one of those known here. Guessing would
    /// give ids that the model has never seen together.
    #[error(
        "the GGUF file's pre-tokenizer `{0}` is unknown (known: {KNOWN_PRE}); give the model's \
         tokenizer.json beside it"
    )]
    UnknownPreTokenizer(String),
    /// The file is absent, unreadable or not a tokenizer.
    #[error("cannot read or write the tokenizer {}", path.display())]
    File {
        /// The file that was asked for.
        path: PathBuf,
        /// What the library says.
        source: tokenizers::Error,
    },
    /// The vocabulary and the merges do not fit together.
    #[error("cannot build the tokenizer")]
    Build(#[source] tokenizers::Error),
    /// The library failed on a text.
    #[error("cannot encode the text")]
    Encode(#[source] tokenizers::Error),
    /// The library failed on a list of ids.
    #[error("cannot decode the tokens")]
    Decode(#[source] tokenizers::Error),
    /// An id beyond the vocabulary.
    #[error("token {0} is not in the vocabulary")]
    UnknownToken(u32),
}

const KNOWN_PRE: &str = "smollm, gpt-2, default, llama-bpe, qwen2, falcon";

/// Turns text into token ids and back. Cheap to share behind an `Arc`.
pub struct TextTokenizer {
    inner: Tokenizer,
    leading: Vec<u32>,
    /// Obeys the names of control tokens; made when it is first asked for.
    obeying: OnceLock<Tokenizer>,
}

impl TextTokenizer {
    /// Builds the tokenizer that a GGUF file describes in its metadata.
    pub fn from_gguf(content: &Content) -> Result<Self, TokenizerError> {
        let kind = string(content, MODEL)?.ok_or(TokenizerError::Missing(MODEL))?;
        let (mut inner, adds_bos) = match kind {
            "gpt2" => {
                let rule = Rule::named(string(content, PRE)?)?;
                (byte_level(content, rule)?, rule.adds_bos())
            }
            "llama" => (sentence_piece::build(content)?, true),
            other => return Err(TokenizerError::UnsupportedModel(other.to_owned())),
        };
        let tokens = strings(content, TOKENS)?;
        let (control, user_defined) = added_tokens(content, &tokens)?;
        inner.add_tokens(user_defined).map_err(TokenizerError::Build)?;
        inner.add_special_tokens(control).map_err(TokenizerError::Build)?;

        let leading = match flag(content, ADD_BOS)?.unwrap_or(adds_bos) {
            true => vec![begin_of_text(content, tokens.len())?],
            false => Vec::new(),
        };
        Ok(Self::new(inner, leading))
    }

    /// Reads a Hugging Face `tokenizer.json`.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let mut inner = Tokenizer::from_file(path).map_err(|source| TokenizerError::File {
            path: path.to_owned(),
            source,
        })?;
        // Some published files carry the truncation or padding of the run that wrote them.
        inner
            .with_truncation(None)
            .map_err(TokenizerError::Build)?
            .with_padding(None);
        let bare = inner.encode_fast("a", false).map_err(TokenizerError::Encode)?;
        let full = inner.encode_fast("a", true).map_err(TokenizerError::Encode)?;
        let leading = full
            .get_ids()
            .windows(bare.len().max(1))
            .position(|window| window == bare.get_ids())
            .map_or_else(Vec::new, |at| full.get_ids()[..at].to_vec());
        Ok(Self::new(inner, leading))
    }

    /// Writes a Hugging Face `tokenizer.json`.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        self.inner.save(path, true).map_err(|source| TokenizerError::File {
            path: path.to_owned(),
            source,
        })
    }

    fn new(mut inner: Tokenizer, leading: Vec<u32>) -> Self {
        inner.set_encode_special_tokens(true);
        Self {
            inner,
            leading,
            obeying: OnceLock::new(),
        }
    }

    /// The ids of `text` as plain text: nothing is put before or after it, and the name of a
    /// control token in it is spelt out, never obeyed.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a prompt in which the names of control tokens stand for these tokens. For what code wrote, never for what a user did.
    pub fn encode_with_control(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let obeying = self.obeying.get_or_init(|| {
            let mut obeying = self.inner.clone();
            obeying.set_encode_special_tokens(false);
            obeying
        });
        let encoding = obeying.encode_fast(prompt, false).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Names and ids of the control tokens.
    pub fn control_tokens(&self) -> Vec<(String, u32)> {
        let mut tokens: Vec<(String, u32)> = self
            .inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect();
        tokens.sort_by_key(|(_, id)| *id);
        tokens
    }

    /// The text of `ids`; control tokens give nothing, bytes that are no UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        if let Some(unknown) = ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            return Err(TokenizerError::UnknownToken(*unknown));
        }
        self.inner.decode(ids, true).map_err(TokenizerError::Decode)
    }

    /// The id of a token by its exact name, control tokens such as `<|im_start|>` included.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// What this tokenizer itself puts before any text (a begin-of-text token, or nothing), for
    /// those who must score a text as its model expects it.
    pub fn leading_tokens(&self) -> &[u32] {
        &self.leading
    }

    /// How many tokens there are, control tokens included.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("vocabulary_size", &self.vocabulary_size())
            .finish_non_exhaustive()
    }
}

/// A byte-level vocabulary, its control tokens not yet added.
fn byte_level(content: &Content, rule: Rule) -> Result<Tokenizer, TokenizerError> {
    let vocabulary: Vocab = (0u32..)
        .zip(strings(content, TOKENS)?)
        .map(|(id, token)| (token.to_owned(), id))
        .collect();
    // No unknown token on purpose: the vocabulary of SmolLM2 lacks 21 bytes (control characters
    // and bytes that UTF-8 hardly or never uses). They are dropped, as the published tokenizer
    // does; with an unknown token each would become `<|endoftext|>` in the middle of a prompt.
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges(content)?)
        .ignore_merges(rule.whole_words_first())
        .build()
        .map_err(TokenizerError::Build)?;
    let mut inner = Tokenizer::new(model);
    if let Rule::Qwen2 = rule {
        inner.with_normalizer(Some(NFC)).map_err(TokenizerError::Build)?;
    }
    inner.with_pre_tokenizer(Some(rule.pre_tokenizer()?));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    Ok(inner)
}

/// How text is cut into words before bytes are merged, under the names that GGUF files use.
#[derive(Clone, Copy)]
enum Rule {
    /// Every digit (any Unicode number) by itself, then as GPT-2.
    DigitsThenGpt2,
    Gpt2,
    /// What llama.cpp does for a file that names no rule.
    Default,
    Llama3,
    Qwen2,
    /// Punctuation apart, then as GPT-2, then digits apart, in threes.
    Falcon,
}

impl Rule {
    fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        match name {
            Some("smollm") => Ok(Self::DigitsThenGpt2),
            Some("gpt-2") => Ok(Self::Gpt2),
            Some("default") | None => Ok(Self::Default),
            Some("llama-bpe") => Ok(Self::Llama3),
            Some("qwen2") => Ok(Self::Qwen2),
            Some("falcon") => Ok(Self::Falcon),
            Some(other) => Err(TokenizerError::UnknownPreTokenizer(other.to_owned())),
        }
    }

    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let mut steps: Vec<PreTokenizerWrapper> = match self {
            Self::DigitsThenGpt2 => vec![Digits::new(true).into(), split(SPLIT_GPT2)?],
            Self::Gpt2 => vec![split(SPLIT_GPT2)?],
            Self::Default => vec![
                split(r"[\p{P}\$\+<=>\^~\|]+")?,
                split(SPLIT_GPT2)?,
                split(r"\p{N}+")?,
                split("[0-9][0-9][0-9]")?,
            ],
            Self::Llama3 => vec![split(SPLIT_LLAMA3)?],
            Self::Qwen2 => vec![split(SPLIT_QWEN2)?],
            Self::Falcon => vec![
                split(r"[\p{P}\$\+<=>\^~\|`]+")?,
                split(SPLIT_GPT2)?,
                Digits::new(false).into(),
                split("[0-9][0-9][0-9]")?,
            ],
        };
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }

    /// Llama-3 takes a word that is a token as a whole, though its merges do not lead there.
    fn whole_words_first(self) -> bool {
        matches!(self, Self::Llama3)
    }

    /// What to assume where the file does not say.
    fn adds_bos(self) -> bool {
        matches!(self, Self::Llama3)
    }
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    Split::new(
        SplitPattern::Regex(pattern.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map(Into::into)
    .map_err(TokenizerError::Build)
}

/// The control tokens and the user-defined ones, in this order.
fn added_tokens(content: &Content, tokens: &[&str]) -> Result<(Vec<AddedToken>, Vec<AddedToken>), TokenizerError> {
    let (mut control, mut user_defined) = (Vec::new(), Vec::new());
    for (token, kind) in tokens.iter().zip(token_types(content, tokens.len())?) {
        match kind {
            TYPE_CONTROL | TYPE_UNKNOWN => control.push(AddedToken::from(*token, true)),
            TYPE_USER_DEFINED => user_defined.push(AddedToken::from(*token, false)),
            _ => {}
        }
    }
    Ok((control, user_defined))
}

/// The type of each of `count` tokens.
fn token_types(content: &Content, count: usize) -> Result<Vec<i64>, TokenizerError> {
    let value = content
        .metadata
        .get(TOKEN_TYPE)
        .ok_or(TokenizerError::Missing(TOKEN_TYPE))?;
    let types: Vec<i64> = value
        .to_vec()
        .map_err(|error| malformed(TOKEN_TYPE, error))?
        .iter()
        .map(|kind| integer(kind).ok_or_else(|| malformed(TOKEN_TYPE, "not a list of integers")))
        .collect::<Result<_, _>>()?;
    if types.len() != count {
        return Err(malformed(
            TOKEN_TYPE,
            format!("{} types for {count} tokens", types.len()),
        ));
    }
    Ok(types)
}

fn begin_of_text(content: &Content, vocabulary_size: usize) -> Result<u32, TokenizerError> {
    let value = content.metadata.get(BOS_ID).ok_or(TokenizerError::Missing(BOS_ID))?;
    integer(value)
        .and_then(|id| u32::try_from(id).ok())
        .filter(|id| (*id as usize) < vocabulary_size)
        .ok_or_else(|| malformed(BOS_ID, "not the id of a token"))
}

fn merges(content: &Content) -> Result<Vec<(String, String)>, TokenizerError> {
    strings(content, MERGES)?
        .into_iter()
        .map(|merge| {
            merge
                .split_once(' ')
                .map(|(left, right)| (left.to_owned(), right.to_owned()))
                .ok_or_else(|| malformed(MERGES, format!("`{merge}` is not a pair")))
        })
        .collect()
}

fn strings<'a>(content: &'a Content, key: &'static str) -> Result<Vec<&'a str>, TokenizerError> {
    let value = content.metadata.get(key).ok_or(TokenizerError::Missing(key))?;
    value
        .to_vec()
        .and_then(|list| list.iter().map(|v| Ok(v.to_string()?.as_str())).collect())
        .map_err(|e| malformed(key, e))
}

fn string<'a>(content: &'a Content, key: &'static str) -> Result<Option<&'a str>, TokenizerError> {
    let value = content.metadata.get(key).map(Value::to_string).transpose();
    value
        .map(|text| text.map(String::as_str))
        .map_err(|e| malformed(key, e))
}

fn flag(content: &Content, key: &'static str) -> Result<Option<bool>, TokenizerError> {
    let value = content.metadata.get(key).map(Value::to_bool).transpose();
    value.map_err(|e| malformed(key, e))
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::U8(v) => Some((*v).into()),
        Value::I8(v) => Some((*v).into()),
        Value::U16(v) => Some((*v).into()),
        Value::I16(v) => Some((*v).into()),
        Value::U32(v) => Some((*v).into()),
        Value::I32(v) => Some((*v).into()),
        Value::U64(v) => i64::try_from(*v).ok(),
        Value::I64(v) => Some(*v),
        _ => None,
    }
}

fn malformed(key: &'static str, why: impl ToString) -> TokenizerError {
    let why = why.to_string();
    TokenizerError::Malformed { key, why }
}
