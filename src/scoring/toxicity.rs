//! The built-in toxicity scorer: a linear model on hashed n-grams, embedded in the binary.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::calibration::Calibration;
use super::explicit;
use super::features::{BUCKET_BITS, Extractor, visit};
use super::groups;
use super::logistic::sigmoid;
use super::normalize::{View, views};
use super::stance::unmeant;

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

/// The log odds up to which a text is harmless, whatever its words are there for: a probability of about 0.2.
const WORTH_A_SECOND_LOOK: f32 = -1.4;

/// The log odds from which on a text says bad things of a group, and the group's name counts: a probability of about 0.75.
const SAYS_BAD_THINGS: f32 = 1.1;

/// The log odds of a text with an insult that has no other use, at least: a probability of 0.6.
const OUTRIGHT: f32 = 0.405;

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

    /// Calibrated P(toxic), 0..=1: that of the worst reading of the text, and at least 0.6 where it has an insult that can be nothing else.
    pub fn score(&self, text: &str) -> f32 {
        let worst = views(text)
            .iter()
            .map(|view| self.read(text, view).logit())
            .reduce(f32::max);
        worst.map_or(0.0, sigmoid)
    }

    /// What each word adds to the log odds, as byte ranges of `text` in order.
    ///
    /// The weights of the features that touch a word, shared evenly among the words of a feature, in the worst
    /// reading of the text. URLs and @names have no entry. The sum and the bias make up the text's log odds.
    pub fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
        let views = views(text);
        let readings = views.iter().map(|view| self.read(text, view));
        let Some(reading) = readings.max_by(|a, b| a.logit().total_cmp(&b.logit())) else {
            return Vec::new();
        };
        let view = reading.view.as_ref();
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
        for &at in &reading.insults {
            words[at].1 += reading.lift() / reading.insults.len() as f32;
        }
        words
    }

    /// What a view says once what is not meant by it is left out.
    fn read<'v>(&self, text: &str, view: &'v View) -> Reading<'v> {
        let (view, margin) = self.meant(text, view);
        Reading {
            insults: explicit::insults(&view).collect(),
            of_words: self.metadata.calibration.logit(margin),
            view,
        }
    }

    /// A view without what is not meant by it, and its margin. A text that is harmless as it stands is not
    /// looked at any further.
    fn meant<'v>(&self, text: &str, view: &'v View) -> (Cow<'v, View>, f32) {
        let logit = |margin: f32| self.metadata.calibration.logit(margin);
        let (mut reading, mut margin) = (Cow::Borrowed(view), self.margin(view));
        if logit(margin) > WORTH_A_SECOND_LOOK {
            (reading, margin) = self.less(reading, margin, &unmeant(text, view));
        }
        if logit(margin) > WORTH_A_SECOND_LOOK && logit(margin) < SAYS_BAD_THINGS {
            let names = groups::mentions(&reading);
            (reading, margin) = self.less(reading, margin, &names);
        }
        (reading, margin)
    }

    /// The reading without some of its tokens, where that is less toxic.
    fn less<'v>(&self, reading: Cow<'v, View>, margin: f32, tokens: &[Range<usize>]) -> (Cow<'v, View>, f32) {
        if tokens.is_empty() {
            return (reading, margin);
        }
        let rest = reading.without(tokens);
        let of_rest = self.margin(&rest);
        if of_rest < margin {
            (Cow::Owned(rest), of_rest)
        } else {
            (reading, margin)
        }
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

/// What a text says in one of its views.
struct Reading<'v> {
    view: Cow<'v, View>,
    /// Log odds by the weights of the n-grams.
    of_words: f32,
    /// Which tokens are insults that have no other use.
    insults: Vec<usize>,
}

impl Reading<'_> {
    /// What the insults add to the log odds.
    fn lift(&self) -> f32 {
        if self.insults.is_empty() {
            0.0
        } else {
            (OUTRIGHT - self.of_words).max(0.0)
        }
    }

    fn logit(&self) -> f32 {
        self.of_words + self.lift()
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn scorer() -> &'static ToxicityScorer {
        static SCORER: std::sync::OnceLock<ToxicityScorer> = std::sync::OnceLock::new();
        SCORER.get_or_init(|| ToxicityScorer::embedded().expect("the embedded scorer loads"))
    }

    #[test]
    fn insults_score_high_and_plain_talk_low() {
        for text in [
            "You are an idiot.",
            "what a stupid, worthless moron",
            "This is crap and so are you",
        ] {
            assert!(scorer().score(text) > 0.5, "{text}: {}", scorer().score(text));
        }
        for text in [
            "Thanks, see you at 10am.",
            "I disagree with your opinion.",
            "The price is $15.",
            "kill the process",
            "I hate Mondays",
        ] {
            assert!(scorer().score(text) < 0.5, "{text}: {}", scorer().score(text));
        }
    }

    #[test]
    fn the_name_of_a_group_is_no_insult_and_saves_none() {
        for text in [
            "Jews, Christians and Muslims live in this street.",
            "Black women deserve equal pay.",
            "A Muslim woman was elected mayor.",
        ] {
            assert!(scorer().score(text) < 0.5, "{text}: {}", scorer().score(text));
        }
        for text in [
            "Muslims are disgusting animals.",
            "Women are stupid.",
            "I hate gay people.",
        ] {
            assert!(scorer().score(text) > 0.5, "{text}: {}", scorer().score(text));
        }
    }

    #[test]
    fn a_disguised_word_scores_as_the_plain_one() {
        let plain = scorer().score("you are an idiot");
        for text in [
            "you are an 1d10t",
            "you are an i.d.i.o.t",
            "you are an i d i o t",
            "you are an id\u{200b}iot",
            "you are an \u{456}d\u{456}\u{43e}t",
        ] {
            assert!(
                (scorer().score(text) - plain).abs() < 1e-3,
                "{text}: {} against {plain}",
                scorer().score(text)
            );
        }
        assert!(scorer().score("you are an id*ot") > 0.5);
    }

    #[test]
    fn mentions_of_groups_are_left_alone() {
        let alarms: Vec<&str> = groups::HELD_OUT
            .into_iter()
            .filter(|text| scorer().score(text) > 0.5)
            .collect();
        assert!(alarms.len() <= 1, "{alarms:?}");
    }

    #[test]
    fn calibration_is_monotone_and_says_its_prior() {
        let metadata = scorer().metadata();
        assert!(metadata.calibration.slope > 0.0 && (0.0..=1.0).contains(&metadata.prior));
        let half = -metadata.calibration.intercept / metadata.calibration.slope;
        assert!((metadata.calibration.probability(half) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn attributions_and_bias_make_up_the_score() {
        let text = "you are an idiot, i d i o t";
        let words = scorer().attributions(text);
        let metadata = scorer().metadata();
        let sum: f32 = words.iter().map(|word| word.1).sum::<f32>() + metadata.calibration.logit(metadata.bias);
        let score = scorer().score(text);
        assert!(
            (sum - (score / (1.0 - score)).ln()).abs() < 0.05,
            "{sum} against {score}"
        );
        let most = words
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(range, _)| &text[range.clone()]);
        assert!(matches!(most, Some("idiot" | "i d i o t")), "{most:?}");
    }

    #[test]
    fn text_without_letters_scores_nothing() {
        assert_eq!(scorer().score(""), 0.0);
        assert_eq!(scorer().score("1,000 \u{1f621}!!!"), 0.0);
        assert!(scorer().attributions("...").is_empty());
    }

    #[test]
    fn a_megabyte_takes_linear_time() {
        for piece in [
            "a",
            "a ",
            "i.",
            "1a",
            "\u{301}",
            "\u{456}d*",
            "word and word. ",
            "@",
            "!a",
            "$$a",
            "&#;",
        ] {
            let text = piece.repeat(1_000_000 / piece.len());
            let begun = Instant::now();
            assert!((0.0..=1.0).contains(&scorer().score(&text)));
            scorer().attributions(&text);
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{piece:?} took {:?}",
                begun.elapsed()
            );
        }
    }

    #[test]
    fn a_table_of_another_size_is_refused() {
        let metadata = scorer().metadata().clone();
        assert!(matches!(
            ToxicityScorer::new(vec![0; 16].into(), metadata),
            Err(ScorerError::Mismatch { .. })
        ));
    }

    #[test]
    fn bytes_keep_weights_to_two_percent_of_the_scale() {
        for weight in [-3.0f32, -0.7, -0.01, 0.0, 0.003, 0.5, 3.0] {
            assert!((decode(encode(weight, 3.0), 3.0) - weight).abs() < 0.06, "{weight}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_score_and_attributions_on_boundaries(text in "\\PC{0,60}|[a-z1!@$*. \u{200b}\u{301}\u{456}]{0,60}|(?s:.{0,40})") {
            prop_assert!((0.0..=1.0).contains(&scorer().score(&text)));
            let mut last = 0;
            for (range, logit) in scorer().attributions(&text) {
                prop_assert!(text.get(range.clone()).is_some() && range.start >= last && logit.is_finite());
                last = range.start;
            }
        }
    }
}
