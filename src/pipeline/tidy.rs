//! Undoes what a model does to the style of a sentence: case, spacing, final punctuation, quotes.
//!
//! The source is the measure: words that survive have the source's form, and a source in lower
//! case is left that way, unless the [`Style`] is that of print. No step looks at what is said.

use std::sync::LazyLock;

use regex::Regex;
use similar::{Algorithm, DiffOp, capture_diff_slices};
use unicode_segmentation::UnicodeSegmentation;

use super::protect::pattern;
use super::style::{Style, printed};

/// Candidates this many times as long as their source are beyond help and not aligned.
const MAX_GROWTH: usize = 8;

static TAIL: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:\s*[.!?…])+$"));
static QUESTION_WORD: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)^(?:who|whom|whose|what|when|where|why|how|which|is|are|am|was|were|do|does|did|can|could|will|would|shall|should|have|has|had|may|might|must|isn|aren|don|doesn|didn|can|won)\b",
    )
});

/// `candidate` in the given style. In that of the source, a candidate equal to it is left alone, but for runs of white space.
/// `is_last` tells whether nothing follows in the sentence.
pub fn tidy(source: &str, candidate: &str, style: Style, is_last: bool) -> String {
    let words: Vec<&str> = candidate.split_whitespace().collect();
    let mut text = words.join(" ");
    if text.is_empty() {
        return text;
    }
    if !is_quoted(source) && is_quoted(&text) && text.matches('"').count() == 2 {
        text = text[1..text.len() - 1].trim().to_owned();
    }
    if style == Style::Print || source.split_whitespace().eq(close_up(source).split(' ')) {
        text = close_up(&text);
    }
    if text.len() <= source.len().saturating_mul(MAX_GROWTH) {
        text = restore_case(source, &text);
    }
    text = match style {
        Style::Source => restore_end(source, text),
        Style::Print => restore_end(&closed(source), text),
    };
    if is_quoted(source) && source.matches('"').count() == 2 && !text.contains('"') {
        text = format!("\"{text}\"");
    }
    if source.contains('’') && !source.contains('\'') {
        text = text.replace('\'', "’");
    }
    match style {
        Style::Source => text,
        Style::Print => printed(&text, is_last),
    }
}

fn is_quoted(text: &str) -> bool {
    text.len() > 2 && text.starts_with('"') && text.ends_with('"')
}

/// Takes out the spaces that a tokenised text has before punctuation and within contractions.
fn close_up(text: &str) -> String {
    let mut closed = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        let sticks = word.chars().all(|c| ".,!?;:…".contains(c)) || is_contraction(word);
        if !closed.is_empty() && !sticks {
            closed.push(' ');
        }
        closed.push_str(word);
    }
    closed
}

/// A whole source closed up: "? ." was one mark before a tokeniser came.
fn closed(source: &str) -> String {
    let mut closed = close_up(source);
    if closed.ends_with("?.") || closed.ends_with("!.") {
        closed.pop();
    }
    closed
}

/// The second half of a contraction that was taken apart: `'m`, `n't`.
fn is_contraction(word: &str) -> bool {
    let word = word.trim_end_matches(|c| ".,!?;:…".contains(c)).to_lowercase();
    let word = word.replace('’', "'");
    matches!(word.as_str(), "'s" | "'m" | "'re" | "'ve" | "'ll" | "'d" | "'t" | "n't")
}

fn restore_case(source: &str, candidate: &str) -> String {
    let old: Vec<&str> = source.unicode_words().collect();
    let new: Vec<(usize, &str)> = candidate.unicode_word_indices().collect();
    let forms = forms_in_source(&old, &new);
    let shouts = is_shouting(source) && old.len() > 1;
    let is_lower = !source.chars().any(char::is_uppercase);
    let first_is_upper = old.first().is_some_and(|word| starts_upper(word));
    let mut text = String::with_capacity(candidate.len());
    let mut at = 0;
    for (index, (&(start, word), form)) in new.iter().zip(forms).enumerate() {
        text.push_str(&candidate[at..start]);
        at = start + word.len();
        let restored = match form {
            // A capital at the start of the source says nothing about the word further on.
            Some(0) if index > 0 && !shouts => word.to_owned(),
            Some(form) if index == 0 && first_is_upper => capitalised(old[form]),
            Some(form) => old[form].to_owned(),
            None if shouts => word.to_uppercase(),
            None if !is_lower && is_lower_i(word) && !old.iter().any(|word| is_lower_i(word)) => capitalised(word),
            None if index > 0 || old.is_empty() => word.to_owned(),
            None if first_is_upper => capitalised(word),
            None if is_title(word) && starts_lower(old[0]) && !is_lower_i(&word.to_lowercase()) => word.to_lowercase(),
            None => word.to_owned(),
        };
        text.push_str(&restored);
    }
    text.push_str(&candidate[at..]);
    text
}

/// For each word of the candidate, which word of the source it is, if it is one.
fn forms_in_source(old: &[&str], new: &[(usize, &str)]) -> Vec<Option<usize>> {
    let lower = |word: &str| word.to_lowercase();
    let old: Vec<String> = old.iter().map(|word| lower(word)).collect();
    let lowered: Vec<String> = new.iter().map(|(_, word)| lower(word)).collect();
    let mut forms = vec![None; new.len()];
    for operation in capture_diff_slices(Algorithm::Myers, &old, &lowered) {
        if let DiffOp::Equal {
            old_index,
            new_index,
            len,
        } = operation
        {
            for step in 0..len {
                forms[new_index + step] = Some(old_index + step);
            }
        }
    }
    forms
}

fn starts_upper(word: &str) -> bool {
    word.chars().next().is_some_and(char::is_uppercase)
}

fn starts_lower(word: &str) -> bool {
    word.chars().next().is_some_and(char::is_lowercase)
}

fn is_title(word: &str) -> bool {
    starts_upper(word) && !word.chars().skip(1).any(char::is_uppercase)
}

fn is_lower_i(word: &str) -> bool {
    word == "i" || word.starts_with("i'") || word.starts_with("i’")
}

fn is_shouting(text: &str) -> bool {
    let upper = text.chars().filter(|c| c.is_uppercase()).count();
    let lower = text.chars().filter(|c| c.is_lowercase()).count();
    upper >= 6 && upper * 3 >= (upper + lower) * 2
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

fn restore_end(source: &str, mut candidate: String) -> String {
    let tail_at = |text: &str| TAIL.find(text).map_or(text.len(), |tail| tail.start());
    let tail = &source[tail_at(source)..];
    let body = tail_at(&candidate);
    let own = candidate[body..].to_owned();
    let ends_in_word = |text: &str| {
        text.chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '*')
    };
    if own == tail || body == 0 {
        return candidate;
    }
    // A full stop set off by a space is a tokeniser's, not the writer's; only a question needs its mark.
    if tail.starts_with(char::is_whitespace) && !tail.contains('?') {
        return candidate;
    }
    let restores = if tail.is_empty() {
        // The model likes full stops; a source without one had none.
        own.trim() == "." && ends_in_word(source)
    } else if own.is_empty() {
        ends_in_word(&candidate)
    } else if tail.contains('?') && !own.contains('?') {
        // Only what still reads as a question becomes one again.
        own.trim() == "." && (QUESTION_WORD.is_match(&candidate) || same_start(source, &candidate))
    } else {
        tail.contains('?') || !own.contains('?')
    };
    if restores {
        candidate.truncate(body);
        candidate.push_str(tail);
    }
    candidate
}

fn same_start(source: &str, candidate: &str) -> bool {
    let first = |text: &str| text.unicode_words().next().map(str::to_lowercase);
    first(source).is_some() && first(source) == first(candidate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tidy(source: &str, candidate: &str) -> String {
        super::tidy(source, candidate, Style::Source, true)
    }

    #[test]
    fn restores_case() {
        assert_eq!(
            tidy(
                "You know Anna is an idiot, and I agree.",
                "you know anna is not smart, and i agree."
            ),
            "You know Anna is not smart, and I agree."
        );
        assert_eq!(tidy("Stupid Bob left.", "bob left."), "Bob left.");
        assert_eq!(tidy("The fool left.", "he left."), "He left.");
        assert_eq!(
            tidy("Idiots like you fail.", "people like you fail"),
            "People like you fail."
        );
        assert_eq!(
            tidy("YOU ARE STUPID PEOPLE!", "you are not smart people"),
            "YOU ARE NOT SMART PEOPLE!"
        );
        assert_eq!(
            tidy("Well idiots lie.", "I think well of them, i do."),
            "I think well of them, I do."
        );
    }

    #[test]
    fn leaves_the_style_of_a_lower_case_source() {
        assert_eq!(
            tidy("he was in two crap episodes .", "He was in two episodes"),
            "he was in two episodes"
        );
        assert_eq!(
            tidy("i 'm an idiot , ok ?", "i 'm not smart , ok ?"),
            "i 'm not smart , ok ?"
        );
        assert_eq!(tidy("stupid game", "It was a game."), "it was a game");
        assert_eq!(tidy("stupid game", "I lost a game."), "I lost a game");
    }

    #[test]
    fn print_has_capitals_and_full_stops() {
        let printed = |source: &str, candidate: &str| super::tidy(source, candidate, Style::Print, true);
        assert_eq!(
            printed("i 'm an idiot , ok ?", "i 'm not smart , ok ?"),
            "I'm not smart, ok?"
        );
        assert_eq!(
            printed("he was in two crap episodes .", "He was in two episodes"),
            "He was in two episodes."
        );
        assert_eq!(
            printed("STUPID MOVIE, STUPID END", "bad movie, bad end"),
            "BAD MOVIE, BAD END."
        );
    }

    #[test]
    fn restores_spacing() {
        assert_eq!(
            tidy(
                "I'm sure you're stupid, fool!",
                "i 'm sure you 're not smart , my friend !"
            ),
            "I'm sure you're not smart, my friend!"
        );
        assert_eq!(tidy("You couldn't, idiot.", "you could n't ."), "You couldn't.");
        assert_eq!(tidy("You fool :)", "you :)"), "You :)");
    }

    #[test]
    fn restores_the_end() {
        assert_eq!(
            tidy("Why are you so stupid?", "Why are you so unwise."),
            "Why are you so unwise?"
        );
        assert_eq!(tidy("Is it crap?!", "It is not good."), "It is not good.");
        assert_eq!(tidy("Stop it, idiot!!!", "Stop it"), "Stop it!!!");
        assert_eq!(tidy("so stupid...", "so unwise."), "so unwise...");
        assert_eq!(tidy("you idiot", "you."), "you");
        assert_eq!(tidy("Shut up.", "Could you be quiet?"), "Could you be quiet?");
    }

    #[test]
    fn restores_quotes() {
        assert_eq!(tidy("You fool.", "\"You are wrong.\""), "You are wrong.");
        assert_eq!(tidy("\"You fool\"", "You"), "\"You\"");
        assert_eq!(tidy("Don’t be a fool", "Don't do it"), "Don’t do it");
    }

    proptest! {
        #[test]
        fn a_copy_is_left_alone(source in "[A-Za-z .,!?'\"’:)1é😀-]{0,60}") {
            let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
            prop_assert_eq!(tidy(&source, &source), source);
        }

        #[test]
        fn anything_goes(source in any::<String>(), candidate in any::<String>()) {
            tidy(&source, &candidate);
        }
    }
}
