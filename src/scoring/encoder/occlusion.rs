//! Which words make a text toxic, asked of a judge that can't say: each is left out, and what that changes is what it adds.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// Most texts without something: a longer one loses several words in a row at a time, which then share the blame.
const STRETCHES: usize = 64;

/// What each word of `text` (byte ranges, in order) adds to what `log_odds` says of a text.
pub(super) fn occlusion(text: &str, log_odds: impl FnOnce(&[&str]) -> Vec<f32>) -> Vec<(Range<usize>, f32)> {
    let words: Vec<Range<usize>> = text
        .unicode_word_indices()
        .map(|(at, word)| at..at + word.len())
        .collect();
    let stretches: Vec<&[Range<usize>]> = words.chunks(words.len().div_ceil(STRETCHES).max(1)).collect();
    let without: Vec<String> = stretches
        .iter()
        .map(|stretch| [&text[..stretch[0].start], &text[stretch[stretch.len() - 1].end..]].concat())
        .collect();
    let mut texts = vec![text];
    texts.extend(without.iter().map(String::as_str));
    let odds = log_odds(&texts);
    let whole = odds[0];
    stretches
        .iter()
        .zip(&odds[1..])
        .flat_map(|(stretch, without)| stretch.iter().map(move |word| (word.clone(), whole - without)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A judge that counts idiots.
    fn count(texts: &[&str]) -> Vec<f32> {
        texts.iter().map(|text| text.matches("idiot").count() as f32).collect()
    }

    #[test]
    fn the_word_that_matters_has_the_blame() {
        let text = "Ünd you, idiot, are late";
        let words = occlusion(text, count);
        let blamed: Vec<&str> = words
            .iter()
            .filter(|(_, odds)| *odds > 0.0)
            .map(|(word, _)| &text[word.clone()])
            .collect();
        assert_eq!((words.len(), blamed), (5, vec!["idiot"]));
    }

    #[test]
    fn a_long_text_is_asked_for_a_bounded_number_of_times() {
        let text = format!("{}idiot {}", "fine ".repeat(200), "words ".repeat(300));
        let mut asked = 0;
        let words = occlusion(&text, |texts| {
            asked = texts.len();
            count(texts)
        });
        assert_eq!(words.len(), 501);
        assert!(asked <= STRETCHES + 1, "{asked}");
        let blamed = words.iter().filter(|(_, odds)| *odds > 0.0).count();
        assert_eq!(blamed, 8, "the words of one stretch");
        assert!(occlusion("", count).is_empty());
    }
}
