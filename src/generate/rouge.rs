//! ROUGE-L (Lin 2004): how much of two texts is one common sequence of words.

/// F1 of the longest common subsequence of words, 0 to 1, as the package `rouge-score` computes it without stemming: words are runs of
/// ASCII letters and digits in lower case, so a text in another script has none and scores 0.
pub fn rouge_l(a: &str, b: &str) -> f64 {
    let (a, b) = (words(a), words(b));
    let common = common_subsequence(&a, &b) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / b.len() as f64, common / a.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// The words of a text as ROUGE sees them.
pub(super) fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (at, other) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_reference() {
        let recorded: Vec<(String, String, f64)> =
            serde_json::from_str(include_str!("../../tests/fixtures/rouge.json")).unwrap();
        assert!(recorded.len() > 10);
        for (a, b, expected) in recorded {
            let found = rouge_l(&a, &b);
            assert!(
                (found - expected).abs() < 1e-12,
                "{a:?} {b:?}: {found}, recorded {expected}"
            );
        }
    }
}
