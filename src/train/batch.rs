//! Examples as packed token sets, in a reproducible order.

use std::ops::Range;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::model::ops::Target;
use crate::model::packing::Packing;

/// An example in tokens: the prompt that conditions every candidate, and the candidates.
#[derive(Debug, Clone, Default)]
pub struct TokenSet {
    /// The rewrite prompt of the anchor; empty when nothing conditions the candidates.
    pub prompt: Vec<u32>,
    /// Positives.
    pub positives: Vec<Vec<u32>>,
    /// Hard negatives.
    pub negatives: Vec<Vec<u32>>,
    /// Candidates of other anchors.
    pub random: Vec<Vec<u32>>,
}

impl TokenSet {
    /// All candidates, positives first.
    pub fn candidates(&self) -> impl Iterator<Item = &Vec<u32>> {
        self.positives.iter().chain(&self.negatives).chain(&self.random)
    }

    /// Tokens of the set when packed.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.candidates().map(Vec::len).sum::<usize>()
    }
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CandidateSet {
    /// Positives.
    pub positives: Vec<Range<usize>>,
    /// Hard negatives.
    pub negatives: Vec<Range<usize>>,
    /// Random negatives.
    pub random: Vec<Range<usize>>,
}

impl CandidateSet {
    /// All negatives.
    pub fn hard_and_random(&self) -> impl Iterator<Item = &Range<usize>> + Clone {
        self.negatives.iter().chain(&self.random)
    }
}

impl Batch {
    /// Packs sets so that each prompt is computed once and shared by its candidates.
    pub fn pack(sets: &[TokenSet]) -> Self {
        let mut batch = Self {
            tokens: Vec::new(),
            packing: Arc::default(),
            targets: Vec::new(),
            sets: Vec::with_capacity(sets.len()),
            dropout_seed: 0,
        };
        let mut packing = Packing::new();
        for set in sets {
            let mut spans = if set.prompt.is_empty() {
                batch.place_alone(set, &mut packing)
            } else {
                batch.place_after_prompt(set, &mut packing)
            };
            let random = spans.split_off(set.positives.len() + set.negatives.len());
            let negatives = spans.split_off(set.positives.len());
            batch.sets.push(CandidateSet {
                positives: spans,
                negatives,
                random,
            });
        }
        batch.packing = Arc::new(packing);
        batch
    }

    fn place_after_prompt(&mut self, set: &TokenSet, packing: &mut Packing) -> Vec<Range<usize>> {
        // A candidate's last token is predicted but predicts nothing.
        let lengths: Vec<usize> = set.candidates().map(|candidate| candidate.len() - 1).collect();
        let starts = packing.push_shared(set.prompt.len(), &lengths);
        self.tokens.extend(&set.prompt);
        let last_of_prompt = starts[0] + set.prompt.len() - 1;
        let mut spans = Vec::with_capacity(lengths.len());
        for (candidate, start) in set.candidates().zip(&starts[1..]) {
            self.tokens.extend(&candidate[..candidate.len() - 1]);
            let first = self.targets.len();
            self.targets.extend(candidate.iter().enumerate().map(|(index, &token)| {
                let row = if index == 0 { last_of_prompt } else { start + index - 1 };
                Target { row: row as u32, token }
            }));
            spans.push(first..self.targets.len());
        }
        spans
    }

    /// Each candidate as a sequence of its own, whose first token is not predicted.
    fn place_alone(&mut self, set: &TokenSet, packing: &mut Packing) -> Vec<Range<usize>> {
        let mut spans = Vec::new();
        for candidate in set.candidates() {
            let start = packing.push_sequence(candidate.len() - 1);
            self.tokens.extend(&candidate[..candidate.len() - 1]);
            let first = self.targets.len();
            self.targets
                .extend(candidate[1..].iter().enumerate().map(|(index, &token)| Target {
                    row: (start + index) as u32,
                    token,
                }));
            spans.push(first..self.targets.len());
        }
        spans
    }
}

/// What a batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portions {
    /// At most so many positives of an example.
    pub positives: usize,
    /// At most so many negatives of an example.
    pub negatives: usize,
    /// So many candidates of other examples beside them.
    pub random_negatives: usize,
    /// At most so many tokens, or one set.
    pub max_tokens: usize,
    /// At most so many sets.
    pub max_sets: usize,
}

/// The batches of one epoch: sets of candidates drawn at random, in a random order. Depends on nothing but its arguments.
///
/// Batches are ragged, so lengths need no sorting: no token is padding.
pub fn epoch(sets: &[TokenSet], portions: Portions, seed: u64, epoch: usize) -> Vec<Vec<TokenSet>> {
    let mut rng = StdRng::seed_from_u64(seed ^ (epoch as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.shuffle(&mut rng);
    let mut batches = Vec::new();
    let mut batch: Vec<TokenSet> = Vec::new();
    let mut used = 0;
    for index in order {
        let set = sample(sets, index, portions, &mut rng);
        if !batch.is_empty() && (used + set.tokens() > portions.max_tokens || batch.len() >= portions.max_sets) {
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

fn sample(sets: &[TokenSet], index: usize, portions: Portions, rng: &mut StdRng) -> TokenSet {
    let set = &sets[index];
    let mut choose = |candidates: &[Vec<u32>], count: usize| {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if count < order.len() {
            order.shuffle(rng);
            order.truncate(count);
            order.sort_unstable();
        }
        order.into_iter().map(|index| candidates[index].clone()).collect()
    };
    let (positives, negatives) = (
        choose(&set.positives, portions.positives),
        choose(&set.negatives, portions.negatives),
    );
    let wanted = if sets.len() > 1 { portions.random_negatives } else { 0 };
    let random = (0..wanted)
        .filter_map(|_| {
            // Any example but this one.
            let other = rng.random_range(0..sets.len() - 1);
            let other = &sets[if other < index { other } else { other + 1 }];
            let count = other.candidates().count();
            other.candidates().nth(rng.random_range(0..count.max(1))).cloned()
        })
        .collect();
    TokenSet {
        prompt: set.prompt.clone(),
        positives,
        negatives,
        random,
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
            random: Vec::new(),
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
                negatives: vec![6..8],
                random: vec![],
            }
        );
    }

    #[test]
    fn without_a_prompt_a_candidates_first_token_is_not_predicted() {
        let batch = Batch::pack(&[set(0, &[3], &[2])]);
        assert_eq!((batch.tokens.len(), batch.packing.groups().len()), (3, 2));
        let rows: Vec<u32> = batch.targets.iter().map(|target| target.row).collect();
        assert_eq!(rows, [0, 1, 2]);
        assert_eq!(
            (&batch.sets[0].positives[0], &batch.sets[0].negatives[0]),
            (&(0..2), &(2..3))
        );
    }

    const PORTIONS: Portions = Portions {
        positives: 2,
        negatives: 1,
        random_negatives: 0,
        max_tokens: 60,
        max_sets: usize::MAX,
    };

    fn lengths(batches: &[Vec<TokenSet>]) -> Vec<usize> {
        batches.iter().flatten().map(|set| set.prompt.len()).collect()
    }

    #[test]
    fn an_epoch_is_reproducible_and_holds_every_set_once() {
        let sets: Vec<TokenSet> = (1..40).map(|n| set(n, &[2, 2, 2], &[3, 3])).collect();
        let batches = epoch(&sets, PORTIONS, 7, 0);
        assert_eq!(lengths(&batches), lengths(&epoch(&sets, PORTIONS, 7, 0)));
        assert_ne!(lengths(&batches), lengths(&epoch(&sets, PORTIONS, 7, 1)));
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

    #[test]
    fn a_batch_holds_no_more_sets_than_asked_for() {
        let sets: Vec<TokenSet> = (1..40).map(|n| set(n, &[2], &[3])).collect();
        let portions = Portions {
            max_sets: 3,
            max_tokens: 10_000,
            ..PORTIONS
        };
        let batches = epoch(&sets, portions, 7, 0);
        assert_eq!(batches.len(), 13);
        assert!(batches.iter().all(|batch| batch.len() == 3));
    }

    #[test]
    fn random_negatives_are_candidates_of_other_sets() {
        // A candidate's only token says whose it is.
        let own = |n: u32| TokenSet {
            prompt: vec![n; 2],
            positives: vec![vec![n]],
            negatives: vec![vec![n]],
            random: Vec::new(),
        };
        let sets: Vec<TokenSet> = (0..10).map(own).collect();
        let portions = Portions {
            random_negatives: 4,
            ..PORTIONS
        };
        let drawn: Vec<TokenSet> = epoch(&sets, portions, 7, 0).concat();
        for set in &drawn {
            assert_eq!(set.random.len(), 4);
            assert!(set.random.iter().all(|tokens| tokens[0] != set.prompt[0]));
        }
        let mut all: Vec<u32> = drawn
            .iter()
            .flat_map(|set| &set.random)
            .map(|tokens| tokens[0])
            .collect();
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 6, "{all:?}");
        let batch = Batch::pack(&drawn[..1]);
        assert_eq!(batch.sets[0].random.len(), 4);
        assert!(epoch(&sets[..1], portions, 7, 0)[0][0].random.is_empty());
    }
}
