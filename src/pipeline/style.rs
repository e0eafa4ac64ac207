//! How rewritten sentences are spelt: like those of the text that stay; where none stays that says otherwise, as print has it.

use std::sync::LazyLock;

use regex::Regex;
use unicode_segmentation::UnicodeSegmentation;

use super::protect::pattern;
use super::segment::Sentence;

/// The spelling of a rewritten sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// As the source has it: in lower case, without a full stop, with spaces before commas.
    Source,
    /// A capital first, a full stop last, no space before punctuation, "I" for "i".
    Print,
}

/// A text with fewer words is a caption or a cry, and gets no full stop.
const MIN_WORDS: usize = 3;

/// What stands before a sentence: the end of another, a list marker, an opening quotation mark.
const BEFORE_SENTENCES: [char; 11] = ['.', '!', '?', '…', '\n', '"', '“', '”', '-', '*', '•'];

/// What a tokeniser sets apart: punctuation, and the second half of a contraction.
static SET_APART: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)\s+(?:[.,!?;:…]+|(?:['’](?:s|m|re|ve|ll|d|t)|n['’]t)[.,!?;:…]*)(?:\s|$)"));

impl Style {
    /// That of a text of which the sentences in `toxic` are rewritten.
    pub(super) fn of(text: &str, sentences: &[Sentence], toxic: &[usize]) -> Self {
        let stays = |(at, sentence): &(usize, &Sentence)| {
            sentence.protected.is_none() && !sentence.body.is_empty() && toxic.binary_search(at).is_err()
        };
        let mut staying = sentences.iter().enumerate().filter(stays);
        match staying.all(|(_, sentence)| is_print(&text[sentence.body.clone()])) {
            true => Self::Print,
            false => Self::Source,
        }
    }

    /// The same for one of them: no capital where a line or a long sentence only goes on.
    pub(super) fn at(self, text: &str, sentence: &Sentence) -> Self {
        let before = text[..sentence.body.start].trim_end_matches([' ', '\t']);
        let begins = before.is_empty() || before.ends_with(BEFORE_SENTENCES);
        if begins { self } else { Self::Source }
    }
}

/// Whether a sentence looks printed; one without a letter does.
fn is_print(sentence: &str) -> bool {
    let first = sentence.chars().find(|c| c.is_alphanumeric());
    let ends = |c: char| !c.is_alphanumeric();
    first.is_none_or(|c| !c.is_lowercase()) && sentence.ends_with(ends) && !SET_APART.is_match(sentence)
}

/// `text` as print has it. `is_last` tells whether nothing follows it in its sentence.
pub(super) fn printed(text: &str, is_last: bool) -> String {
    let mut printed = String::with_capacity(text.len() + 1);
    let mut at = 0;
    let words: Vec<(usize, &str)> = text.unicode_word_indices().collect();
    for (index, &(start, word)) in words.iter().enumerate() {
        let is_i = word == "i" || word.starts_with("i'") || word.starts_with("i’");
        if is_i || (index == 0 && !word.contains(char::is_uppercase)) {
            printed.push_str(&text[at..start]);
            let mut chars = word.chars();
            printed.extend(chars.next().into_iter().flat_map(char::to_uppercase));
            printed.push_str(chars.as_str());
            at = start + word.len();
        }
    }
    printed.push_str(&text[at..]);
    if is_last && words.len() >= MIN_WORDS && printed.ends_with(char::is_alphanumeric) {
        printed.push('.');
    }
    printed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::options::Format;
    use crate::pipeline::{protect, segment};

    fn styles(text: &str, toxic: &[usize]) -> Vec<Style> {
        let spans = protect::find(text, Format::Plain);
        let sentences = segment::sentences(text, &spans);
        let style = Style::of(text, &sentences, toxic);
        toxic.iter().map(|&at| style.at(text, &sentences[at])).collect()
    }

    #[test]
    fn like_the_sentences_that_stay() {
        assert_eq!(styles("you fool", &[0]), [Style::Print]);
        assert_eq!(styles("See you at ten. you fool", &[1]), [Style::Print]);
        assert_eq!(styles("see you at ten. you fool", &[1]), [Style::Source]);
        assert_eq!(styles("see you at ten\nyou fool", &[1]), [Style::Source]);
        assert_eq!(styles("See you at ten . you fool", &[1]), [Style::Source]);
        assert_eq!(styles("you fool. you clown", &[0, 1]), [Style::Print; 2]);
    }

    #[test]
    fn as_print_has_it() {
        assert_eq!(printed("i think i'm right", true), "I think I'm right.");
        assert_eq!(printed("\"this is it\"", true), "\"This is it\"");
        assert_eq!(printed("this is it", false), "This is it");
        assert_eq!(printed("iPhones are bad, ok?", true), "iPhones are bad, ok?");
        assert_eq!(printed("not good", true), "Not good");
        assert_eq!(printed("", true), "");
    }
}
