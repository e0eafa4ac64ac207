//! chrF (Popović 2015): how close a text is to references, by character n-grams.

use std::collections::HashMap;

/// Longest n-gram.
const ORDER: usize = 6;
/// How much more recall counts than precision, squared.
const BETA_SQUARED: f64 = 4.0;

/// chrF of order 6 and beta 2 of `text` against the closest of `references`, 0 to 1: as sacrebleu's sentence score by its defaults, over 100.
///
/// Precision and recall of character n-grams, white space left out, are averaged over those orders for which both texts are long enough; chrF is their
/// F-score.
pub fn chrf(text: &str, references: &[String]) -> f64 {
    let text = characters(text);
    references
        .iter()
        .map(|reference| f_score(&text, &characters(reference)))
        .fold(0.0, f64::max)
}

fn characters(text: &str) -> Vec<char> {
    text.chars().filter(|letter| !letter.is_whitespace()).collect()
}

fn f_score(text: &[char], reference: &[char]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for order in 1..=ORDER.min(text.len()).min(reference.len()) {
        let mut wanted: HashMap<&[char], usize> = HashMap::new();
        for gram in reference.windows(order) {
            *wanted.entry(gram).or_default() += 1;
        }
        let mut matches = 0;
        for gram in text.windows(order) {
            if let Some(left) = wanted.get_mut(gram).filter(|left| **left > 0) {
                *left -= 1;
                matches += 1;
            }
        }
        let share = |of: &[char]| f64::from(matches) / (of.len() + 1 - order) as f64;
        precision += share(text);
        recall += share(reference);
        orders += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::recorded;

    /// What sacrebleu says (`tests/fixtures/record_text_metrics.py`).
    #[test]
    fn scores_are_those_of_sacrebleu() {
        let rows = recorded("chrf");
        for row in &rows {
            let references: Vec<String> = serde_json::from_value(row["references"].clone()).unwrap();
            let (got, wanted) = (
                chrf(row["text"].as_str().unwrap(), &references),
                row["score"].as_f64().unwrap() / 100.0,
            );
            assert!((got - wanted).abs() < 1e-9, "{row}: {got}");
        }
        assert!(rows.len() > 10);
    }
}
