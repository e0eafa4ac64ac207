//! Fits the similarity scorer to cosines of sentence embeddings.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::corpus::{Labelled, Parallel, json_lines, lines};
use super::features::word_hash;
use super::normalize::views;
use super::similarity::{RARITY_FILE, Rarity, Regression, SIMILARITY_FILE, SimilarityScorer, TERMS, terms};
use super::toxicity::ToxicityScorer;
use super::train::TrainError;

/// A pair of texts and what an embedding model makes of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Pair {
    /// One text.
    pub a: String,
    /// The other.
    pub b: String,
    /// Cosine of their embeddings, 0..=1.
    pub cosine: f32,
    /// How the pair was made, for the report.
    #[serde(default)]
    pub kind: String,
}

/// Agreement with the cosines.
#[derive(Debug, Serialize)]
pub struct Agreement {
    /// Which pairs.
    pub kind: String,
    /// How many.
    pub n: usize,
    /// Linear correlation.
    pub pearson: f64,
    /// Rank correlation.
    pub spearman: f64,
    /// Mean absolute difference.
    pub error: f64,
}

/// Counts words, fits the regression on `pairs`, writes both to `out` and returns the scorer.
pub fn train(
    toxicity: Arc<ToxicityScorer>,
    data: &Path,
    background: Option<&Path>,
    pairs: &[Pair],
    out: &Path,
) -> Result<SimilarityScorer, TrainError> {
    let table = count_words(data, background)?;
    let unfitted = Regression {
        weights: vec![0.0; TERMS],
    };
    let scorer = SimilarityScorer::from_parts(toxicity.clone(), Rarity::new(table.clone().into())?, unfitted);
    let rows: Vec<(Vec<f64>, f64)> = pairs
        .par_iter()
        .map(|pair| {
            (
                terms(&scorer.features(&pair.a, &pair.b)).map(f64::from).collect(),
                f64::from(pair.cosine),
            )
        })
        .collect();
    let regression = Regression {
        weights: ridge(&rows, 2.0),
    };
    let save = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes).map_err(|source| TrainError::Write { path, source })
    };
    save(RARITY_FILE, &table)?;
    save(
        SIMILARITY_FILE,
        format!("{}\n", serde_json::to_string(&regression)?).as_bytes(),
    )?;
    Ok(SimilarityScorer::from_parts(
        toxicity,
        Rarity::new(table.into())?,
        regression,
    ))
}

/// A rarity for every bucket: the logarithm of how many texts a word is in, stretched over a byte.
fn count_words(data: &Path, background: Option<&Path>) -> Result<Vec<u8>, TrainError> {
    let mut texts: Vec<String> = json_lines::<Labelled>(&data.join("toxicity/train.jsonl"))?
        .into_iter()
        .map(|row| row.text)
        .collect();
    for row in json_lines::<Parallel>(&data.join("detox/train.jsonl"))? {
        texts.extend(row.neutral);
    }
    if let Some(background) = background {
        texts.extend(lines(background)?.into_iter().take(100_000));
    }
    let words = |text: &String| {
        let mut found: Vec<u64> = views(text)
            .first()
            .map_or_else(Vec::new, |view| view.words().map(word_hash).collect());
        found.sort_unstable();
        found.dedup();
        found
    };
    let mut counts: HashMap<u64, u32> = HashMap::new();
    for found in texts.par_iter().map(words).collect::<Vec<_>>() {
        found.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
    }
    let most = (texts.len() as f32).ln();
    let mut table = vec![255u8; 1 << Rarity::BITS];
    for (hash, count) in counts {
        // Where words share a bucket, the commoner one rules: it is met more often.
        let rarity = (1.0 - (count as f32).ln() / most) * 255.0;
        let slot = &mut table[Rarity::bucket(hash)];
        *slot = (*slot).min(rarity as u8);
    }
    Ok(table)
}

/// Least squares with a penalty on everything but the constant, by Cholesky's method.
fn ridge(rows: &[(Vec<f64>, f64)], penalty: f64) -> Vec<f32> {
    let n = rows.first().map_or(0, |row| row.0.len());
    let mut matrix = vec![vec![0f64; n]; n];
    let mut right = vec![0f64; n];
    for (x, y) in rows {
        for i in 0..n {
            right[i] += x[i] * y;
            (0..=i).for_each(|j| matrix[i][j] += x[i] * x[j]);
        }
    }
    for i in 0..n {
        matrix[i][i] += if i == 0 { 1e-6 } else { penalty };
        for j in 0..=i {
            let sum = matrix[i][j] - (0..j).map(|k| matrix[i][k] * matrix[j][k]).sum::<f64>();
            matrix[i][j] = if i == j {
                sum.max(1e-9).sqrt()
            } else {
                sum / matrix[j][j]
            };
        }
    }
    for i in 0..n {
        right[i] = (right[i] - (0..i).map(|k| matrix[i][k] * right[k]).sum::<f64>()) / matrix[i][i];
    }
    for i in (0..n).rev() {
        right[i] = (right[i] - (i + 1..n).map(|k| matrix[k][i] * right[k]).sum::<f64>()) / matrix[i][i];
    }
    right.into_iter().map(|weight| weight as f32).collect()
}

/// Agreement of a scorer with the cosines, over all pairs and by kind.
pub fn agreement(scorer: &SimilarityScorer, pairs: &[Pair]) -> Vec<Agreement> {
    let scored: Vec<(&str, f64, f64)> = pairs
        .par_iter()
        .map(|pair| {
            (
                pair.kind.as_str(),
                f64::from(scorer.score(&pair.a, &pair.b)),
                f64::from(pair.cosine),
            )
        })
        .collect();
    let mut kinds: Vec<&str> = scored.iter().map(|s| s.0).collect();
    kinds.sort_unstable();
    kinds.dedup();
    std::iter::once("all")
        .chain(kinds)
        .map(|kind| {
            let (x, y): (Vec<f64>, Vec<f64>) = scored
                .iter()
                .filter(|s| kind == "all" || s.0 == kind)
                .map(|s| (s.1, s.2))
                .unzip();
            let error = x.iter().zip(&y).map(|(a, b)| (a - b).abs()).sum::<f64>() / x.len().max(1) as f64;
            Agreement {
                kind: kind.to_owned(),
                n: x.len(),
                pearson: pearson(&x, &y),
                spearman: pearson(&ranks(&x), &ranks(&y)),
                error,
            }
        })
        .collect()
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len().max(1) as f64;
    let (mx, my) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let sum = |a: &[f64], ma: f64, b: &[f64], mb: f64| a.iter().zip(b).map(|(a, b)| (a - ma) * (b - mb)).sum::<f64>();
    sum(x, mx, y, my) / (sum(x, mx, x, mx) * sum(y, my, y, my)).sqrt().max(1e-12)
}

/// Ranks, the mean rank for ties.
fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    let mut ranks = vec![0.0; x.len()];
    let mut below = 0;
    for same in order.chunk_by(|&a, &b| x[a] == x[b]) {
        same.iter()
            .for_each(|&at| ranks[at] = below as f64 + (same.len() - 1) as f64 / 2.0);
        below += same.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ridge_recovers_a_line() {
        let rows: Vec<(Vec<f64>, f64)> = (0..50)
            .map(|x| (vec![1.0, f64::from(x)], 3.0 + 0.5 * f64::from(x)))
            .collect();
        let fitted = ridge(&rows, 1e-6);
        assert!(
            (fitted[0] - 3.0).abs() < 1e-3 && (fitted[1] - 0.5).abs() < 1e-4,
            "{fitted:?}"
        );
    }

    #[test]
    fn ties_share_their_rank() {
        assert_eq!(ranks(&[2.0, 1.0, 2.0, 3.0]), [1.5, 0.0, 1.5, 3.0]);
    }
}
