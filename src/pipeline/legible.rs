//! A sentence as its reader sees it: what a model is given.

use std::borrow::Cow;

use crate::scoring::normalize::is_invisible;

/// Without the marks inside words of the Latin script that take no room: they are put there to hide a word, and a model that copies one half
/// of such a word writes another word. Other scripts, and emoji, need theirs.
pub(super) fn legible(sentence: &str) -> Cow<'_, str> {
    if sentence.is_ascii() || !sentence.contains(is_invisible) {
        return Cow::Borrowed(sentence);
    }
    let is_latin = |c: Option<char>| c.is_some_and(|c| c.is_alphabetic() && c < '\u{250}');
    let mut seen = String::with_capacity(sentence.len());
    for (at, c) in sentence.char_indices() {
        let next = || sentence[at..].chars().find(|&c| !is_invisible(c));
        if !(is_invisible(c) && is_latin(seen.chars().next_back()) && is_latin(next())) {
            seen.push(c);
        }
    }
    Cow::Owned(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole_and_other_scripts_are_left_alone() {
        for (sentence, seen) in [
            ("You are an i\u{200b}d\u{200d}\u{2060}iot.", "You are an idiot."),
            ("naïve co\u{ad}operation", "naïve cooperation"),
            ("\u{200b}yes\u{200b} no", "\u{200b}yes\u{200b} no"),
            ("می\u{200c}خواهم", "می\u{200c}خواهم"),
            ("a family 👩\u{200d}👧", "a family 👩\u{200d}👧"),
        ] {
            assert_eq!(legible(sentence), seen);
        }
        assert!(matches!(legible("plain"), Cow::Borrowed("plain")));
    }
}
