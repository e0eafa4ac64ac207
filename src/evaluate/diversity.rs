//! How different the candidates of one source are from each other.

use std::collections::HashSet;

use super::bleu::{sentence_bleu, tokens};

/// Figures of one set of candidates; one that can't be told is absent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Diversity {
    /// distinct-1 (Li et al. 2016): different words of all words.
    pub distinct_1: Option<f64>,
    /// distinct-2: different pairs of words in a row of all pairs.
    pub distinct_2: Option<f64>,
    /// Self-BLEU (Zhu et al. 2018): mean BLEU of each candidate with the others as references. 1 where all are the same.
    pub self_bleu: Option<f64>,
}

impl Diversity {
    /// Of candidates as they were written, equal ones included: a model that repeats itself is not diverse.
    pub fn of(candidates: &[String]) -> Self {
        let candidates: Vec<Vec<String>> = candidates.iter().map(|text| tokens(text)).collect();
        Self {
            distinct_1: distinct(&candidates, 1),
            distinct_2: distinct(&candidates, 2),
            self_bleu: self_bleu(&candidates),
        }
    }
}

fn distinct(candidates: &[Vec<String>], order: usize) -> Option<f64> {
    let all: Vec<&[String]> = candidates.iter().flat_map(|tokens| tokens.windows(order)).collect();
    let different: HashSet<&[String]> = all.iter().copied().collect();
    (!all.is_empty()).then(|| different.len() as f64 / all.len() as f64)
}

fn self_bleu(candidates: &[Vec<String>]) -> Option<f64> {
    if candidates.len() < 2 {
        return None;
    }
    let score = |place: usize| {
        let others = candidates.iter().enumerate().filter(|(other, _)| *other != place);
        let others: Vec<&[String]> = others.map(|(_, tokens)| tokens.as_slice()).collect();
        sentence_bleu(&candidates[place], &others)
    };
    Some((0..candidates.len()).map(score).sum::<f64>() / candidates.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::recorded;

    #[test]
    fn figures_are_those_of_sacrebleu_and_nltk() {
        for row in recorded("diversity") {
            let candidates: Vec<String> = serde_json::from_value(row["candidates"].clone()).unwrap();
            let got = Diversity::of(&candidates);
            for (got, wanted) in [
                (got.distinct_1, &row["distinct_1"]),
                (got.distinct_2, &row["distinct_2"]),
                (got.self_bleu, &row["self_bleu"]),
            ] {
                match (got, wanted.as_f64()) {
                    (Some(got), Some(wanted)) => assert!((got - wanted).abs() < 1e-9, "{row}: {got}"),
                    (got, wanted) => assert_eq!(got, wanted, "{row}"),
                }
            }
        }
    }
}
