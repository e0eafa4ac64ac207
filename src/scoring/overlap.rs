//! Features of a pair of texts: what they share, in words, in characters and in form.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use super::features::word_hash;
use super::normalize::views;
use super::similarity::Rarity;

/// Number of features.
pub const FEATURES: usize = 16;

/// Words beyond this take no part in alignment, which costs the product of the lengths.
const ALIGNED_WORDS: usize = 160;

/// One word of a side.
struct Word {
    hash: u64,
    rarity: f32,
    /// Rarity, less for words that add to toxicity.
    weight: f32,
    /// Sorted hashes of the character trigrams, edges included.
    trigrams: Vec<u32>,
}

/// One of the two texts, taken apart.
pub struct Side {
    words: Vec<Word>,
    /// Counts of character 1-6-grams, spaces left out, as in chrF.
    grams: [HashMap<u64, u32>; 6],
    negations: usize,
    question: bool,
    numbers: Vec<u64>,
    persons: [bool; 2],
}

impl Side {
    /// Takes `text` apart; `toxicity` are the attributions of its words.
    pub fn new(text: &str, rarity: &Rarity, toxicity: &[(Range<usize>, f32)]) -> Self {
        let mut side = Side {
            words: Vec::new(),
            grams: Default::default(),
            negations: 0,
            question: text.contains('?'),
            numbers: Vec::new(),
            persons: [false; 2],
        };
        let mut toxicity = toxicity.iter().peekable();
        if let Some(view) = views(text).first() {
            let mut letters: Vec<char> = Vec::new();
            for token in view.tokens() {
                let word = view.word(token);
                while toxicity.next_if(|(range, _)| range.end <= token.source.start).is_some() {}
                let logit = toxicity
                    .peek()
                    .filter(|(range, _)| range.start <= token.source.start)
                    .map_or(0.0, |t| t.1);
                side.push(word, rarity, logit);
                letters.extend(word.chars());
            }
            for (order, grams) in side.grams.iter_mut().enumerate() {
                for gram in letters.windows(order + 1) {
                    let hash = gram.iter().fold(17u64, |h, c| {
                        (h ^ u64::from(*c)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
                    });
                    *grams.entry(hash).or_default() += 1;
                }
            }
        }
        side.numbers.sort_unstable();
        side
    }

    fn push(&mut self, word: &str, rarity: &Rarity, logit: f32) {
        let hash = word_hash(word);
        let negation = matches!(
            word,
            "not"
                | "no"
                | "never"
                | "nothing"
                | "nobody"
                | "none"
                | "cannot"
                | "cant"
                | "dont"
                | "isnt"
                | "wont"
                | "without"
        ) || word.ends_with("n't");
        self.negations += usize::from(negation);
        self.persons[0] |= matches!(
            word,
            "i" | "me" | "my" | "mine" | "i'm" | "im" | "we" | "us" | "our" | "i've" | "i'll"
        );
        self.persons[1] |= matches!(
            word,
            "you" | "your" | "yours" | "u" | "ur" | "you're" | "youre" | "you've" | "yourself"
        );
        if word.bytes().any(|b| b.is_ascii_digit()) {
            self.numbers.push(hash);
        }
        let rarity = rarity.of(hash);
        // From the whole weight for a neutral word down to about a sixth for an insult.
        let weight = rarity / (1.0 + (logit - 1.0).max(0.0));
        let padded: Vec<char> = std::iter::once(' ')
            .chain(word.chars().take(24))
            .chain(std::iter::once(' '))
            .collect();
        let mut trigrams: Vec<u32> = padded
            .windows(3)
            .map(|w| {
                w.iter().fold(7u32, |h, c| {
                    (h ^ u32::from(*c)).wrapping_mul(0x0100_0193).rotate_left(11)
                })
            })
            .collect();
        trigrams.sort_unstable();
        self.words.push(Word {
            hash,
            rarity,
            weight,
            trigrams,
        });
    }

    /// Whether there is no word.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether both have the same words in the same order.
    pub fn same_words(&self, other: &Side) -> bool {
        self.words.iter().map(|w| w.hash).eq(other.words.iter().map(|w| w.hash))
    }

    fn aligned(&self) -> &[Word] {
        &self.words[..self.words.len().min(ALIGNED_WORDS)]
    }
}

/// What two texts share; the same in both directions, all between 0 and 1.
pub fn features(a: &Side, b: &Side) -> [f32; FEATURES] {
    let (of_a, lost_a) = covered(a, b);
    let (of_b, lost_b) = covered(b, a);
    let total = |side: &Side, weigh: fn(&Word) -> f32| side.aligned().iter().map(weigh).sum::<f32>().max(1e-3);
    let (weight_a, weight_b) = (total(a, |w| w.weight), total(b, |w| w.weight));
    let (recall, precision) = (of_a[0] / weight_a, of_b[0] / weight_b);
    let (rarity_a, rarity_b) = (total(a, |w| w.rarity), total(b, |w| w.rarity));
    let (lengths, longest) = ((a.words.len(), b.words.len()), a.words.len().max(b.words.len()).max(1));
    let persons = (0..2).filter(|&at| a.persons[at] == b.persons[at]).count() as f32 / 2.0;
    [
        2.0 * cosine(a, b, |w| w.weight) - cosine(a, b, |w| w.weight).powi(2),
        (of_a[0] + of_b[0]) / (weight_a + weight_b),
        recall.min(precision),
        recall.max(precision),
        (of_a[1] + of_b[1]) / (rarity_a + rarity_b),
        cosine(a, b, |w| w.rarity),
        character_f(a, b, 0..3),
        character_f(a, b, 3..6),
        2.0 * common_subsequence(a.aligned(), b.aligned()) as f32
            / (a.aligned().len() + b.aligned().len()).max(1) as f32,
        lengths.0.min(lengths.1) as f32 / longest as f32,
        f32::from(u8::from((a.negations > 0) != (b.negations > 0))),
        f32::from(u8::from(a.question != b.question)),
        shared(&a.numbers, &b.numbers),
        persons,
        (lengths.0.min(lengths.1) as f32 / 20.0).min(1.0),
        lost_a.max(lost_b),
    ]
}

/// F1 of the character 1- to 6-grams, mean over the orders, as in chrF; the same in both directions, 0..=1.
pub fn character_overlap(a: &Side, b: &Side) -> f32 {
    character_f(a, b, 0..6)
}

/// How much of `side` finds a counterpart in `other`, by weight and by rarity, and the rarest word without one.
fn covered(side: &Side, other: &Side) -> ([f32; 2], f32) {
    let mut sums = [0f32; 2];
    let mut lost = 0f32;
    for word in side.aligned() {
        let best = other
            .aligned()
            .iter()
            .map(|candidate| likeness(word, candidate))
            .fold(0f32, f32::max);
        sums[0] += word.weight * best;
        sums[1] += word.rarity * best;
        lost = lost.max(word.weight * (1.0 - best));
    }
    (sums, lost.min(1.0))
}

/// 1 for the same word, the Dice coefficient of the trigrams for an inflection, 0 for another word.
fn likeness(a: &Word, b: &Word) -> f32 {
    if a.hash == b.hash {
        return 1.0;
    }
    let (mut at, mut bt, mut common) = (0, 0, 0);
    while at < a.trigrams.len() && bt < b.trigrams.len() {
        match a.trigrams[at].cmp(&b.trigrams[bt]) {
            Ordering::Less => at += 1,
            Ordering::Greater => bt += 1,
            Ordering::Equal => (at, bt, common) = (at + 1, bt + 1, common + 1),
        }
    }
    let dice = 2.0 * common as f32 / (a.trigrams.len() + b.trigrams.len()).max(1) as f32;
    if dice >= 0.4 { dice } else { 0.0 }
}

/// Cosine of the word vectors.
fn cosine(a: &Side, b: &Side, weigh: fn(&Word) -> f32) -> f32 {
    let vector = |side: &Side| {
        let mut vector: HashMap<u64, f32> = HashMap::new();
        side.words
            .iter()
            .for_each(|word| *vector.entry(word.hash).or_default() += weigh(word));
        vector
    };
    let (va, vb) = (vector(a), vector(b));
    let norm = |v: &HashMap<u64, f32>| sum_in_order(v.iter().map(|(hash, w)| (*hash, w * w))).sqrt();
    let dot = sum_in_order(
        va.iter()
            .filter_map(|(hash, w)| vb.get(hash).map(|other| (*hash, w * other))),
    );
    dot / (norm(&va) * norm(&vb)).max(1e-6)
}

/// A sum that doesn't depend on the order of a hash map.
fn sum_in_order(items: impl Iterator<Item = (u64, f32)>) -> f32 {
    let mut items: Vec<(u64, f32)> = items.collect();
    items.sort_unstable_by_key(|item| item.0);
    items.iter().map(|item| item.1).sum()
}

/// Mean F1 of the character n-grams of some orders.
fn character_f(a: &Side, b: &Side, orders: Range<usize>) -> f32 {
    let (mut sum, mut count) = (0f32, 0f32);
    for order in orders {
        let (ga, gb) = (&a.grams[order], &b.grams[order]);
        let total = ga.values().sum::<u32>() + gb.values().sum::<u32>();
        if total > 0 {
            let common: u32 = ga
                .iter()
                .map(|(gram, count)| gb.get(gram).map_or(0, |other| *count.min(other)))
                .sum();
            sum += 2.0 * common as f32 / total as f32;
            count += 1.0;
        }
    }
    sum / count.max(1.0)
}

/// Length of the longest common subsequence of words.
fn common_subsequence(a: &[Word], b: &[Word]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (at, other) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word.hash == other.hash {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

/// Jaccard index of two sorted lists with repetitions; 1 if both are empty.
fn shared(a: &[u64], b: &[u64]) -> f32 {
    let (mut at, mut bt, mut common) = (0, 0, 0);
    while at < a.len() && bt < b.len() {
        match a[at].cmp(&b[bt]) {
            Ordering::Less => at += 1,
            Ordering::Greater => bt += 1,
            Ordering::Equal => (at, bt, common) = (at + 1, bt + 1, common + 1),
        }
    }
    let all = a.len() + b.len() - common;
    if all == 0 { 1.0 } else { common as f32 / all as f32 }
}
