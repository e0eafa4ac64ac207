//! Sentence BLEU (Papineni et al. 2002; smoothing of Chen & Cherry 2014, method 3), and the tokens it counts.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

/// Longest n-gram.
const ORDER: usize = 4;

/// Tokens of a text by the rules of mteval-v13a: punctuation apart from words, but within numbers.
pub fn tokens(text: &str) -> Vec<String> {
    // In this order: each works on what the one before it wrote.
    static RULES: LazyLock<Vec<(Option<Regex>, &str)>> = LazyLock::new(|| {
        [
            (r"([\x7b-\x7e\x5b-\x60 -&(-+:-@/])", " $1 "),
            (r"([^0-9])([.,])", "$1 $2 "),
            (r"([.,])([^0-9])", " $1 $2"),
            (r"([0-9])(-)", "$1 $2 "),
        ]
        // The patterns are constants, which a test compiles.
        .map(|(pattern, put)| (Regex::new(pattern).ok(), put))
        .into()
    });
    let mut text = text
        .trim_end()
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    for (entity, letter) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, letter);
    }
    text = format!(" {text} ");
    for (rule, put) in RULES.iter() {
        if let Some(rule) = rule {
            text = rule.replace_all(&text, *put).into_owned();
        }
    }
    text.split_whitespace().map(str::to_owned).collect()
}

/// BLEU of a text against references, all as [`tokens`], 0 to 1: orders that the text is too short for don't count, and an order without a match has half
/// the precision that the last such order had. 0 without a single match.
pub fn sentence_bleu(text: &[String], references: &[&[String]]) -> f64 {
    let closest = references
        .iter()
        .map(|reference| reference.len())
        .min_by_key(|length| (length.abs_diff(text.len()), *length));
    let Some(closest) = closest.filter(|_| !text.is_empty()) else {
        return 0.0;
    };
    let (mut sum, mut orders, mut smoothing, mut any) = (0.0, 0.0, 1.0, false);
    for order in 1..=ORDER.min(text.len()) {
        let mut most: HashMap<&[String], usize> = HashMap::new();
        for reference in references {
            for (gram, count) in counts(reference, order) {
                let most = most.entry(gram).or_default();
                *most = count.max(*most);
            }
        }
        let matches: usize = counts(text, order)
            .into_iter()
            .map(|(gram, count)| count.min(most.get(gram).copied().unwrap_or(0)))
            .sum();
        let total = (text.len() + 1 - order) as f64;
        let precision = if matches > 0 {
            any = true;
            matches as f64 / total
        } else {
            smoothing *= 2.0;
            1.0 / (smoothing * total)
        };
        sum += precision.ln();
        orders += 1.0;
    }
    if !any {
        return 0.0;
    }
    let brevity = (1.0 - closest as f64 / text.len() as f64).min(0.0).exp();
    brevity * f64::exp(sum / orders)
}

fn counts(tokens: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in tokens.windows(order) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::recorded;

    #[test]
    fn tokens_and_scores_are_those_of_sacrebleu() {
        let rows = recorded("bleu");
        for row in &rows {
            let text = tokens(row["text"].as_str().unwrap());
            assert_eq!(serde_json::json!(text), row["tokens"], "{row}");
            let references: Vec<String> = serde_json::from_value(row["references"].clone()).unwrap();
            let references: Vec<Vec<String>> = references.iter().map(|text| tokens(text)).collect();
            let references: Vec<&[String]> = references.iter().map(Vec::as_slice).collect();
            let (got, wanted) = (
                sentence_bleu(&text, &references),
                row["score"].as_f64().unwrap() / 100.0,
            );
            assert!((got - wanted).abs() < 1e-9, "{row}: {got}");
        }
        assert!(rows.len() > 8);
    }
}
