//! Examples as packed token sets, in a reproducible order.

use std::ops::Range;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::TrainError;
use super::dataset::Example;
use crate::model::ops::Target;
use crate::model::packing::Packing;
use crate::model::tokenizer::TextTokenizer;
use crate::prompt::RewritePrompt;

/// An example in tokens: the prompt that conditions every candidate, and the candidates.
#[derive(Debug, Clone)]
pub struct TokenSet {
    /// The rewrite prompt of the anchor.
    pub prompt: Vec<u32>,
    /// Positives, each with its end token.
    pub positives: Vec<Vec<u32>>,
    /// Negatives, each with its end token.
    pub negatives: Vec<Vec<u32>>,
}

impl TokenSet {
    /// Tokens of the set when packed.
    pub fn tokens(&self) -> usize {
        self.prompt.len()
            + self
                .positives
                .iter()
                .chain(&self.negatives)
                .map(Vec::len)
                .sum::<usize>()
    }
}

/// Which candidates of an example a set takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetSize {
    /// At most so many positives.
    pub positives: usize,
    /// At most so many negatives.
    pub negatives: usize,
}

/// Tokenises examples; those whose prompt and longest candidate exceed `max_tokens` are left out.
///
/// # Errors
/// When none is left.
pub fn tokenise(
    examples: &[Example],
    tokenizer: &TextTokenizer,
    prompt: &RewritePrompt,
    max_tokens: usize,
) -> Result<Vec<TokenSet>, TrainError> {
    let encode = |text: &str| {
        let mut tokens = tokenizer
            .encode(text.trim())
            .map_err(|error| TrainError::Setting(error.to_string()))?;
        tokens.push(prompt.end());
        Ok::<_, TrainError>(tokens)
    };
    let mut sets = Vec::with_capacity(examples.len());
    for example in examples {
        let source = tokenizer
            .encode(example.anchor.trim())
            .map_err(|error| TrainError::Setting(error.to_string()))?;
        let set = TokenSet {
            prompt: prompt.tokens(&source),
            positives: example
                .positives
                .iter()
                .map(|text| encode(text))
                .collect::<Result<_, _>>()?,
            negatives: example
                .negatives
                .iter()
                .map(|text| encode(text))
                .collect::<Result<_, _>>()?,
        };
        let longest = set
            .positives
            .iter()
            .chain(&set.negatives)
            .map(Vec::len)
            .max()
            .unwrap_or(0);
        if set.prompt.len() + longest <= max_tokens {
            sets.push(set);
        }
    }
    if sets.is_empty() {
        return Err(TrainError::Empty(format!(
            "every one of {} is longer than {max_tokens} tokens",
            examples.len()
        )));
    }
    Ok(sets)
}

/// A batch ready for the model: packed rows, what they must predict, and which predictions belong to which candidate.
#[derive(Debug, Clone)]
pub struct Batch {
    /// All tokens, end to end.
    pub tokens: Vec<u32>,
    /// Which rows attend to which.
    pub packing: Arc<Packing>,
    /// Every token of every candidate.
    pub targets: Vec<Target>,
    /// By anchor.
    pub sets: Vec<CandidateSet>,
    /// Decides what an adapter's dropout leaves out.
    pub dropout_seed: u64,
}

/// The candidates of one anchor, as ranges of the batch's targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateSet {
    /// Positives.
    pub positives: Vec<Range<usize>>,
    /// Negatives.
    pub negatives: Vec<Range<usize>>,
}

impl Batch {
    /// Packs sets so that each prompt is computed once and shared by its candidates.
    pub fn pack(sets: &[TokenSet]) -> Self {
        let mut tokens = Vec::new();
        let mut packing = Packing::new();
        let mut targets = Vec::new();
        let mut ranges = Vec::with_capacity(sets.len());
        for set in sets {
            let candidates: Vec<&Vec<u32>> = set.positives.iter().chain(&set.negatives).collect();
            // A candidate's last token is predicted but predicts nothing.
            let lengths: Vec<usize> = candidates.iter().map(|candidate| candidate.len() - 1).collect();
            let starts = packing.push_shared(set.prompt.len(), &lengths);
            tokens.extend(&set.prompt);
            let last_of_prompt = starts[0] + set.prompt.len() - 1;
            let mut spans = Vec::with_capacity(candidates.len());
            for (candidate, start) in candidates.iter().zip(&starts[1..]) {
                tokens.extend(&candidate[..candidate.len() - 1]);
                let first = targets.len();
                targets.extend(candidate.iter().enumerate().map(|(index, &token)| {
                    let row = if index == 0 { last_of_prompt } else { start + index - 1 };
                    Target { row: row as u32, token }
                }));
                spans.push(first..targets.len());
            }
            let negatives = spans.split_off(set.positives.len());
            ranges.push(CandidateSet {
                positives: spans,
                negatives,
            });
        }
        Self {
            tokens,
            packing: Arc::new(packing),
            targets,
            sets: ranges,
            dropout_seed: 0,
        }
    }
}

/// The batches of one epoch: sets of a chosen size in a random order, grouped so that a batch holds at most
/// `max_tokens` tokens (or one set). Depends on nothing but its arguments.
pub fn epoch(sets: &[TokenSet], size: SetSize, max_tokens: usize, seed: u64, epoch: usize) -> Vec<Vec<TokenSet>> {
    let mut rng = StdRng::seed_from_u64(seed ^ (epoch as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.shuffle(&mut rng);
    let mut batches = Vec::new();
    let mut batch: Vec<TokenSet> = Vec::new();
    let mut used = 0;
    for index in order {
        let set = sample(&sets[index], size, &mut rng);
        if used + set.tokens() > max_tokens && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            used = 0;
        }
        used += set.tokens();
        batch.push(set);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn sample(set: &TokenSet, size: SetSize, rng: &mut StdRng) -> TokenSet {
    let mut choose = |candidates: &[Vec<u32>], count: usize| {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if count < order.len() {
            order.shuffle(rng);
            order.truncate(count);
            order.sort_unstable();
        }
        order.into_iter().map(|index| candidates[index].clone()).collect()
    };
    TokenSet {
        prompt: set.prompt.clone(),
        positives: choose(&set.positives, size.positives),
        negatives: choose(&set.negatives, size.negatives),
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "a candidate is a range of tokens; one candidate is one range"
    )]

    use super::*;

    fn set(prompt: usize, positives: &[usize], negatives: &[usize]) -> TokenSet {
        let candidates = |lengths: &[usize]| lengths.iter().map(|&n| vec![7; n]).collect();
        TokenSet {
            prompt: vec![1; prompt],
            positives: candidates(positives),
            negatives: candidates(negatives),
        }
    }

    #[test]
    fn the_first_token_of_every_candidate_is_predicted_by_the_end_of_the_prompt() {
        let batch = Batch::pack(&[set(3, &[2], &[]), set(4, &[3, 1], &[2])]);
        assert_eq!(batch.tokens.len(), 3 + 1 + 4 + 2 + 1);
        assert_eq!(batch.packing.tokens(), batch.tokens.len());
        let rows: Vec<u32> = batch.targets.iter().map(|target| target.row).collect();
        assert_eq!(rows, [2, 3, 7, 8, 9, 7, 7, 10]);
        assert_eq!(
            batch.sets[1],
            CandidateSet {
                positives: vec![2..5, 5..6],
                negatives: vec![6..8]
            }
        );
    }

    #[test]
    fn an_epoch_is_reproducible_and_holds_every_set_once() {
        let sets: Vec<TokenSet> = (1..40).map(|n| set(n, &[2, 2, 2], &[3, 3])).collect();
        let size = SetSize {
            positives: 2,
            negatives: 1,
        };
        let batches = epoch(&sets, size, 60, 7, 0);
        let lengths =
            |batches: &[Vec<TokenSet>]| batches.iter().flatten().map(|set| set.prompt.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&batches), lengths(&epoch(&sets, size, 60, 7, 0)));
        assert_ne!(lengths(&batches), lengths(&epoch(&sets, size, 60, 7, 1)));
        let mut all = lengths(&batches);
        all.sort_unstable();
        assert_eq!(all, (1..40).collect::<Vec<_>>());
        assert!(
            batches
                .iter()
                .all(|batch| batch.len() == 1 || batch.iter().map(TokenSet::tokens).sum::<usize>() <= 60)
        );
        assert!(
            batches
                .iter()
                .flatten()
                .all(|set| set.positives.len() == 2 && set.negatives.len() == 1)
        );
    }
}
