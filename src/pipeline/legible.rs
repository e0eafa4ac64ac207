//! A sentence as its reader sees it: what a model is given.

use std::borrow::Cow;

use super::scorers::toxicities_of;
use crate::scoring::Toxicity;
use crate::scoring::normalize::{is_invisible, views};

/// Toxicity over which a word is an insult, whatever stands around it.
const INSULT: f32 = 0.5;

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

/// With the insults spelt out that are disguised by spaces, dots, digits and signs between or for their letters: a model that takes
/// "i d i o t" for five words writes some of them. Disguised words that are no insults by themselves stay as they are.
pub(super) fn spelt_out<'s>(sentence: &'s str, scorer: &dyn Toxicity) -> Cow<'s, str> {
    let views = views(sentence);
    let mut disguised: Vec<_> = views
        .iter()
        .skip(1)
        .flat_map(|view| {
            view.tokens()
                .iter()
                .map(|token| (token.source.clone(), view.word(token)))
        })
        .filter(|(place, word)| sentence[place.clone()].to_lowercase() != *word)
        .collect();
    if disguised.is_empty() {
        return Cow::Borrowed(sentence);
    }
    // Two readings may agree on a word: it is judged once.
    disguised.sort_by_key(|(place, word)| (place.start, place.end, *word));
    disguised.dedup();
    let words: Vec<&str> = disguised.iter().map(|(_, word)| *word).collect();
    let mut seen = String::with_capacity(sentence.len());
    let mut at = 0;
    for ((place, word), toxicity) in disguised.iter().zip(toxicities_of(scorer, &words)) {
        if toxicity > INSULT && at <= place.start {
            seen.push_str(&sentence[at..place.start]);
            seen.push_str(word);
            at = place.end;
        }
    }
    if at == 0 {
        return Cow::Borrowed(sentence);
    }
    seen.push_str(&sentence[at..]);
    Cow::Owned(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::WordToxicity;

    #[test]
    fn disguised_insults_are_spelt_out_and_nothing_else() {
        for (sentence, seen) in [
            ("you i d i o t, read it", "you idiot, read it"),
            ("What an 1d10t! At 5 p.m. I am l8.", "What an idiot! At 5 p.m. I am l8."),
            ("\u{456}diot", "idiot"),
            ("You idiot, you IDIOT", "You idiot, you IDIOT"),
            ("you are a i d i o t", "you are a idiot"),
            ("c o o l s t u f f", "c o o l s t u f f"),
        ] {
            assert_eq!(spelt_out(sentence, &WordToxicity), seen);
        }
    }

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
