//! The built-in toxicity scorer: a linear model on hashed n-grams, embedded in the binary.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::calibration::Calibration;
use super::features::{BUCKET_BITS, Extractor, visit};
use super::normalize::{View, views};

/// File of the weight table inside the scorer's folder.
pub const WEIGHTS_FILE: &str = "weights.bin";
/// File of the metadata inside the scorer's folder.
pub const METADATA_FILE: &str = "scorer.json";

static EMBEDDED_WEIGHTS: &[u8] = include_bytes!("../../assets/toxicity-scorer/weights.bin");
static EMBEDDED_METADATA: &str = include_str!("../../assets/toxicity-scorer/scorer.json");

/// Why a scorer can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ScorerError {
    /// The metadata is not what this version writes.
    #[error("the scorer's metadata can't be read: {0}")]
    Metadata(#[from] serde_json::Error),
    /// Weights and metadata are not of one scorer, or of another version of the features.
    #[error("the scorer needs {expected} (found {found}); train it again with this version")]
    Mismatch {
        /// What this version reads.
        expected: String,
        /// What the folder holds.
        found: String,
    },
    /// A file is missing or unreadable.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why it can't be read.
        source: std::io::Error,
    },
}

/// What `scorer.json` holds beside the weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Metadata {
    /// Version of features and file layout; a scorer of another version is refused.
    pub format: u32,
    /// log2 of the number of weights.
    pub bucket_bits: u32,
    /// The largest absolute weight, which the byte ±127 stands for.
    pub scale: f32,
    /// Added to every margin.
    pub bias: f32,
    /// From margin to probability.
    pub calibration: Calibration,
    /// The share of toxic texts for which a score of 0.5 means one half.
    pub prior: f32,
}

/// Version of features and file layout.
pub const FORMAT: u32 = 1;

/// Says how likely a text is toxic.
///
/// English only: text in other scripts scores near the prior. Text without letters scores 0.
pub struct ToxicityScorer {
    weights: Cow<'static, [u8]>,
    decoded: [f32; 256],
    metadata: Metadata,
}

impl ToxicityScorer {
    /// The scorer inside the binary.
    pub fn embedded() -> Result<Self, ScorerError> {
        Self::new(
            Cow::Borrowed(EMBEDDED_WEIGHTS),
            serde_json::from_str(EMBEDDED_METADATA)?,
        )
    }

    /// A scorer that `detoxd scorer train` wrote.
    pub fn from_folder(folder: &Path) -> Result<Self, ScorerError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| ScorerError::Io {
                path: path.display().to_string(),
                source,
            })
        };
        Self::new(
            Cow::Owned(read(WEIGHTS_FILE)?),
            serde_json::from_slice(&read(METADATA_FILE)?)?,
        )
    }

    fn new(weights: Cow<'static, [u8]>, metadata: Metadata) -> Result<Self, ScorerError> {
        let expected = (FORMAT, BUCKET_BITS, 1usize << BUCKET_BITS);
        let found = (metadata.format, metadata.bucket_bits, weights.len());
        if expected != found {
            let say =
                |(format, bits, bytes): (u32, u32, usize)| format!("format {format}, {bits} bits, {bytes} weights");
            return Err(ScorerError::Mismatch {
                expected: say(expected),
                found: say(found),
            });
        }
        let decoded = std::array::from_fn(|byte| decode(byte as u8, metadata.scale));
        Ok(ToxicityScorer {
            weights,
            decoded,
            metadata,
        })
    }

    /// Prior, calibration and layout.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Calibrated P(toxic), 0..=1: that of the worst reading of the text.
    pub fn score(&self, text: &str) -> f32 {
        let worst = views(text).iter().map(|view| self.margin(view)).reduce(f32::max);
        worst.map_or(0.0, |margin| self.metadata.calibration.probability(margin))
    }

    /// What each word adds to the log odds, as byte ranges of `text` in order.
    ///
    /// The weights of the features that touch a word, shared evenly among the words of a feature, in the worst
    /// reading of the text. URLs and @names have no entry. The sum and the bias make up the text's log odds.
    pub fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
        let views = views(text);
        let Some(view) = views.iter().max_by(|a, b| self.margin(a).total_cmp(&self.margin(b))) else {
            return Vec::new();
        };
        // One feature counted twice adds (1 + ln 2) times its weight: each occurrence gets half of that.
        let mut shares: HashMap<u32, f32> = HashMap::new();
        let mut extractor = Extractor::default();
        extractor.extract(view, |bucket, value, count| {
            *shares.entry(bucket).or_default() += value / count as f32;
        });
        let mut words: Vec<(Range<usize>, f32)> =
            view.tokens().iter().map(|token| (token.source.clone(), 0.0)).collect();
        visit(view, |_, first, last, bucket| {
            let logit =
                self.metadata.calibration.slope * self.weight(bucket) * shares.get(&bucket).copied().unwrap_or(0.0);
            if first == last {
                words[first].1 += logit;
            } else {
                words[first].1 += logit / 2.0;
                words[last].1 += logit / 2.0;
            }
        });
        words
    }

    fn weight(&self, bucket: u32) -> f32 {
        self.decoded[usize::from(self.weights[bucket as usize])]
    }

    fn margin(&self, view: &View) -> f32 {
        thread_local!(static EXTRACTOR: RefCell<Extractor> = RefCell::default());
        EXTRACTOR.with_borrow_mut(|extractor| {
            let mut margin = self.metadata.bias;
            extractor.extract(view, |bucket, value, _| margin += self.weight(bucket) * value);
            margin
        })
    }
}

/// A weight as a byte: its square root in 127 steps, so that small weights keep their precision.
pub fn encode(weight: f32, scale: f32) -> u8 {
    let level = ((weight.abs() / scale).sqrt() * 127.0).round().min(127.0) as i8;
    (if weight < 0.0 { -level } else { level }) as u8
}

fn decode(byte: u8, scale: f32) -> f32 {
    let level = f32::from(byte as i8) / 127.0;
    level * level.abs() * scale
}
