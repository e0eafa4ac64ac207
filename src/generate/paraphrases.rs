//! The paper's white-box data: paraphrases of a harmless sentence as positives, toxic ones as hard negatives.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::answers::{Parsed, parse};
use super::llm::{Answer, Llm, LlmError, Question};
use super::output::{Anchor, Output};
use super::prompts::{Prompts, Side};
use super::rouge::{rouge_l, words};
use super::sets::GenerateError;
use super::sort::RewriteSet;
use crate::scoring::{Similarity, Toxicity};

/// Makes a set of each sentence.
pub struct ParaphraseGenerator {
    /// Who answers.
    pub llm: Arc<dyn Llm>,
    /// What is asked for and kept.
    pub prompts: Prompts,
    /// Sentences at once.
    pub in_flight: usize,
    /// Of the answers; none leaves it to the server.
    pub seed: Option<u64>,
    /// Judge of toxicity.
    pub toxicity: Arc<dyn Toxicity>,
    /// Judge of meaning.
    pub similarity: Arc<dyn Similarity>,
}

/// What became of the answers for one side of the sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SideCounts {
    /// Answers asked for.
    pub asked: usize,
    /// Answers that say no.
    pub refused: usize,
    /// Prompts longer than the model takes, an answer each.
    pub too_long: usize,
    /// Answers cut off at the limit of tokens; their whole lines count as texts.
    pub cut_off: usize,
    /// Texts found in the answers.
    pub texts: usize,
    /// Texts with the words of the sentence itself.
    pub copies: usize,
    /// Texts with the words of another.
    pub duplicates: usize,
    /// Texts that are too toxic, or not toxic enough.
    pub toxicity: usize,
    /// Texts that mean something else.
    pub meaning: usize,
    /// Texts beyond those kept, further from the sentence by ROUGE-L.
    pub surplus: usize,
    /// Texts kept.
    pub kept: usize,
}

/// What became of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Sentences.
    pub anchors: usize,
    /// Sentences that an earlier run had done.
    pub resumed: usize,
    /// Sets written.
    pub written: usize,
    /// Sentences that are toxic themselves.
    pub toxic_anchors: usize,
    /// Sentences of which no positive was left.
    pub without_positives: usize,
    /// Sentences with positives and no negative.
    pub without_negatives: usize,
    /// Of the positives.
    pub positives: SideCounts,
    /// Of the negatives.
    pub negatives: SideCounts,
}

/// Ends its task when it is dropped.
struct Task(JoinHandle<Result<Outcome, LlmError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Outcome {
    set: Option<RewriteSet>,
    toxic_anchor: bool,
    positives: (Vec<String>, SideCounts),
    negatives: (Vec<String>, SideCounts),
}

impl ParaphraseGenerator {
    /// Appends a set for each anchor to `out`, in order; with `resume`, anchors up to the last one that has a set there are not asked for again.
    /// `report` is told how many anchors are done.
    ///
    /// # Errors
    /// When the output can't be written or no answers come; what was written stays.
    pub async fn run(
        self: Arc<Self>,
        anchors: &[Anchor],
        out: &Path,
        resume: bool,
        mut report: impl FnMut(usize),
    ) -> Result<Summary, GenerateError> {
        let (mut output, last) = Output::open(out, anchors, resume)?;
        let first = anchors.partition_point(|anchor| anchor.number <= last);
        let mut summary = Summary {
            anchors: anchors.len(),
            resumed: first,
            ..Summary::default()
        };
        report(first);
        let mut waiting = anchors[first..].iter();
        let mut running: VecDeque<(&Anchor, Task)> = VecDeque::new();
        loop {
            while running.len() < self.in_flight.max(1)
                && let Some(anchor) = waiting.next()
            {
                let (this, anchor_of_task) = (self.clone(), anchor.clone());
                let task = tokio::spawn(async move { this.set(&anchor_of_task).await });
                running.push_back((anchor, Task(task)));
            }
            let Some((anchor, mut task)) = running.pop_front() else {
                break;
            };
            let outcome = (&mut task.0).await.map_err(|_| GenerateError::Broken)??;
            if let Some(set) = &outcome.set {
                output.write(anchor.number, set)?;
            }
            summary.add(&outcome);
            report(anchors.len() - waiting.len() - running.len());
        }
        Ok(summary)
    }

    async fn set(&self, anchor: &Anchor) -> Result<Outcome, LlmError> {
        if !(..=self.prompts.anchors.max_toxicity).contains(&self.toxicity.score(&anchor.text)) {
            return Ok(Outcome {
                toxic_anchor: true,
                ..Outcome::default()
            });
        }
        let Prompts {
            positives, negatives, ..
        } = &self.prompts;
        let (positives, negatives) =
            tokio::try_join!(self.side(anchor, positives, 0), self.side(anchor, negatives, 1))?;
        let complete = !positives.0.is_empty() && (!negatives.0.is_empty() || self.prompts.negatives.answers == 0);
        let set = complete.then(|| RewriteSet {
            anchor: anchor.text.clone(),
            positives: positives.0.clone(),
            negatives: negatives.0.clone(),
        });
        Ok(Outcome {
            set,
            toxic_anchor: false,
            positives,
            negatives,
        })
    }

    async fn side(&self, anchor: &Anchor, side: &Side, number: u64) -> Result<(Vec<String>, SideCounts), LlmError> {
        if side.answers == 0 {
            return Ok(Default::default());
        }
        let sampling = self.prompts.sampling;
        let question = Question {
            system: self.prompts.system.clone(),
            prompt: side.prompt(&anchor.text),
            answers: side.answers,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            max_tokens: sampling.max_tokens,
            seed: self
                .seed
                .map(|seed| seed.wrapping_add((anchor.number as u64 * 2 + number) << 10)),
        };
        let answers = self.llm.ask(&question).await?;
        Ok(choose(&anchor.text, &answers, side, &*self.toxicity, &*self.similarity))
    }
}

/// The texts of a side that are kept, closest to the anchor by ROUGE-L first, and what became of the others.
fn choose(
    anchor: &str,
    answers: &[Answer],
    side: &Side,
    toxicity: &dyn Toxicity,
    similarity: &dyn Similarity,
) -> (Vec<String>, SideCounts) {
    let mut counts = SideCounts {
        asked: answers.len(),
        ..SideCounts::default()
    };
    // Letters of any script, so that texts without ASCII letters are told apart as well.
    let key = |text: &str| {
        let letters = text.to_lowercase();
        letters.chars().filter(|c| c.is_alphanumeric()).collect::<String>()
    };
    let copy = key(anchor);
    let mut seen = HashSet::new();
    let mut kept: Vec<(f64, String)> = Vec::new();
    for answer in answers {
        let parsed = match answer {
            Answer::Whole(text) => parse(text, true),
            Answer::CutOff(text) => {
                counts.cut_off += 1;
                parse(text, false)
            }
            Answer::Refused => Parsed::Refused,
            Answer::TooLong => {
                counts.too_long += 1;
                continue;
            }
        };
        let Parsed::Texts(texts) = parsed else {
            counts.refused += 1;
            continue;
        };
        for text in texts {
            counts.texts += 1;
            let key = key(&text);
            if key == copy {
                counts.copies += 1;
            } else if !seen.insert(key) {
                counts.duplicates += 1;
            } else if !(side.min_toxicity..=side.max_toxicity).contains(&toxicity.score(&text)) {
                counts.toxicity += 1;
            } else if !(side.min_similarity..).contains(&similarity.score(anchor, &text)) {
                counts.meaning += 1;
            } else {
                kept.push((rouge_l(anchor, &text), text));
            }
        }
    }
    // Equally close: the shorter, then by letters, so that the order of arrival decides nothing.
    kept.sort_by(|(a, x), (b, y)| {
        let lengths = words(x).len().cmp(&words(y).len());
        b.total_cmp(a).then(lengths).then_with(|| x.cmp(y))
    });
    counts.surplus = kept.len().saturating_sub(side.keep);
    kept.truncate(side.keep);
    counts.kept = kept.len();
    (kept.into_iter().map(|(_, text)| text).collect(), counts)
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.written += usize::from(outcome.set.is_some());
        self.toxic_anchors += usize::from(outcome.toxic_anchor);
        if outcome.set.is_none() && !outcome.toxic_anchor {
            match outcome.positives.0.is_empty() {
                true => self.without_positives += 1,
                false => self.without_negatives += 1,
            }
        }
        self.positives.add(&outcome.positives.1);
        self.negatives.add(&outcome.negatives.1);
    }
}

impl SideCounts {
    fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.refused += other.refused;
        self.too_long += other.too_long;
        self.cut_off += other.cut_off;
        self.texts += other.texts;
        self.copies += other.copies;
        self.duplicates += other.duplicates;
        self.toxicity += other.toxicity;
        self.meaning += other.meaning;
        self.surplus += other.surplus;
        self.kept += other.kept;
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    struct Words;

    impl Toxicity for Words {
        fn score(&self, text: &str) -> f32 {
            if text.contains("idiot") { 0.9 } else { 0.1 }
        }

        fn attributions(&self, _: &str) -> Vec<(Range<usize>, f32)> {
            Vec::new()
        }
    }

    impl Similarity for Words {
        fn score(&self, source: &str, rewrite: &str) -> f32 {
            rouge_l(source, rewrite) as f32
        }
    }

    #[test]
    fn the_closest_texts_that_pass_are_kept_and_the_others_counted() {
        let side = Side {
            keep: 2,
            max_toxicity: 0.3,
            ..Prompts::embedded().unwrap().positives
        };
        let answers = [
            Answer::Whole("The bus leaves at ten today.".to_owned()),
            Answer::Whole(
                "1. The bus goes at ten today.\n2. the bus goes at ten today\n3. Today the bus leaves at ten."
                    .to_owned(),
            ),
            Answer::Whole("At ten, the bus leaves, idiot.".to_owned()),
            Answer::Whole("Buy a ticket.".to_owned()),
            Answer::Whole("I can't help with that.".to_owned()),
            Answer::Refused,
            Answer::TooLong,
            Answer::CutOff("The bus leaves today at ten.\nThe bus lea".to_owned()),
            Answer::Whole(String::new()),
        ];
        let (kept, counts) = choose("The bus leaves at ten today!", &answers, &side, &Words, &Words);
        assert_eq!(kept, ["The bus goes at ten today.", "The bus leaves today at ten."]);
        let expected = SideCounts {
            asked: 9,
            refused: 2,
            too_long: 1,
            cut_off: 1,
            texts: 7,
            copies: 1,
            duplicates: 1,
            toxicity: 1,
            meaning: 1,
            surplus: 1,
            kept: 2,
        };
        assert_eq!(counts, expected);
    }
}
