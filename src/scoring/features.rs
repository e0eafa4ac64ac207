//! Hashed features of a view: word 1-2-grams and skip-grams, and character 2-5-grams inside words.
//!
//! Each of the two blocks has sublinear counts (1 + ln count) and length 1. There is no idf factor at scoring
//! time: training regularises frequent features more strongly and folds the scale into the weights.

use super::normalize::View;

/// Buckets of the weight table.
pub const BUCKET_BITS: u32 = 22;

/// Which normalised block a feature belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Word n-grams.
    Words,
    /// Character n-grams.
    Characters,
}

/// Calls `emit(block, first token, last token, bucket)` for every occurrence of a feature.
pub fn visit(view: &View, mut emit: impl FnMut(Block, usize, usize, u32)) {
    let (mut previous, mut before) = (None, None);
    for (at, token) in view.tokens().iter().enumerate() {
        let word = view.word(token);
        let number = word.bytes().all(|b| b.is_ascii_digit());
        let hash = if number { WORD } else { word.chars().fold(WORD, step) };
        emit(Block::Words, at, at, bucket(hash));
        if let Some(previous) = previous {
            emit(Block::Words, at - 1, at, bucket(mix(previous, hash) ^ PAIR));
        }
        if let Some(before) = before {
            emit(Block::Words, at - 2, at, bucket(mix(before, hash) ^ SKIP));
        }
        (before, previous) = (previous, Some(hash));
        if !number {
            character_grams(word, |hash| emit(Block::Characters, at, at, bucket(hash)));
        }
    }
}

/// Hashes of the 2-5-grams of `word` between two spaces.
fn character_grams(word: &str, mut emit: impl FnMut(u64)) {
    let mut rest = word.chars();
    let mut window = std::iter::once(' ').chain(word.chars()).chain(std::iter::once(' '));
    loop {
        let mut hash = CHARACTERS;
        for (length, c) in window.clone().take(5).enumerate() {
            hash = step(hash, c);
            if length >= 1 {
                emit(hash);
            }
        }
        window.next();
        if rest.next().is_none() {
            return;
        }
    }
}

const WORD: u64 = 0x9ae1_6a3b_2f90_404f;
const CHARACTERS: u64 = 0xc3a5_c85c_97cb_3127;
const PAIR: u64 = 0x2545_f491_4f6c_dd1d;
const SKIP: u64 = 0x8cb9_2ba7_2f3d_8dd7;

fn step(hash: u64, c: char) -> u64 {
    (hash ^ u64::from(c))
        .wrapping_mul(0x0000_0100_0000_01b3)
        .rotate_left(23)
}

fn mix(a: u64, b: u64) -> u64 {
    a.rotate_left(17).wrapping_mul(0xff51_afd7_ed55_8ccd) ^ b
}

fn bucket(hash: u64) -> u32 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> (64 - BUCKET_BITS)) as u32
}

/// A hash of one word, for tables other than the toxicity weights.
pub fn word_hash(word: &str) -> u64 {
    let hash = word.chars().fold(WORD, step);
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Reusable room for the features of one view.
#[derive(Default)]
pub struct Extractor {
    words: Vec<u32>,
    characters: Vec<u32>,
}

impl Extractor {
    /// Calls `take(bucket, value, count)` for every distinct feature of the view, block by block.
    pub fn extract(&mut self, view: &View, mut take: impl FnMut(u32, f32, u32)) {
        self.words.clear();
        self.characters.clear();
        visit(view, |block, _, _, bucket| match block {
            Block::Words => self.words.push(bucket),
            Block::Characters => self.characters.push(bucket),
        });
        for block in [&mut self.words, &mut self.characters] {
            block.sort_unstable();
            let squares: f32 = block
                .chunk_by(|a, b| a == b)
                .map(|same| sublinear(same.len()).powi(2))
                .sum();
            let scale = squares.max(1.0).sqrt().recip();
            for same in block.chunk_by(|a, b| a == b) {
                take(same[0], sublinear(same.len()) * scale, same.len() as u32);
            }
        }
    }
}

fn sublinear(count: usize) -> f32 {
    if count == 1 { 1.0 } else { 1.0 + (count as f32).ln() }
}
