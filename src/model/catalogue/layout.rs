//! Which files of a repository make a model.

/// What a repository is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesOf {
    /// A language model: weights as safetensors, and a `tokenizer.json`.
    Decoder,
    /// A classifier or a sentence-embedding model, also in the layouts of older times: pickled weights, a bare vocabulary.
    Encoder,
}

/// Weights as PyTorch pickles them.
pub(super) const PICKLED: &str = "pytorch_model.bin";

/// The forms that a tokenizer comes in; the first is the one to name where there is none.
const TOKENIZERS: [&[&str]; 3] = [&["tokenizer.json"], &["vocab.txt"], &["vocab.json", "merges.txt"]];

impl FilesOf {
    /// Files that must be there besides the weights, of those that `has` knows.
    pub(super) fn required(self, has: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let forms = match self {
            Self::Decoder => &TOKENIZERS[..1],
            Self::Encoder => &TOKENIZERS[..],
        };
        let form = forms.iter().find(|form| form.iter().all(|name| has(name)));
        let mut names = vec!["config.json"];
        names.extend_from_slice(form.unwrap_or(&TOKENIZERS[0]));
        names
    }

    /// Files that are taken where they are.
    pub(super) fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Decoder => &[
                "tokenizer_config.json",
                "generation_config.json",
                "special_tokens_map.json",
                "chat_template.jinja",
            ],
            Self::Encoder => &[
                "tokenizer_config.json",
                "modules.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
                "1_Pooling/config.json",
            ],
        }
    }

    /// Whether pickled weights are read.
    pub(super) fn may_be_pickled(self) -> bool {
        self == Self::Encoder
    }
}
