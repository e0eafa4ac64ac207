//! Whether a sentence is in a language that scorer and model don't know.
//!
//! Sentences are short and informal, so a guess by letters alone errs often. Frequent words decide first; letters, by `whatlang`, where
//! no frequent word is English and there is enough of the sentence ([decision 42](../../../docs/decisions/0042-language.md)).

mod words;

use std::collections::HashMap;
use std::sync::LazyLock;

use unicode_segmentation::UnicodeSegmentation;

use self::words::{ENGLISH, OTHERS};
use crate::scoring::normalize::views;

/// Words from which on the letters alone may tell.
const ENOUGH_WORDS: usize = 5;

/// For each word the languages it is frequent in, a bit each; the lowest is English.
static FREQUENT: LazyLock<HashMap<&'static str, u16>> = LazyLock::new(|| {
    let mut languages: HashMap<&str, u16> = HashMap::new();
    for (bit, list) in std::iter::once(ENGLISH).chain(OTHERS).enumerate() {
        for word in list.split_whitespace() {
            *languages.entry(word).or_default() |= 1 << bit;
        }
    }
    languages
});

/// Whether `sentence` is in another language than English, as far as can be told; where it can't, it is English.
pub(super) fn is_foreign(sentence: &str) -> bool {
    if let Some(foreign) = by_script(sentence) {
        return foreign;
    }
    let lower = sentence.to_lowercase().replace('’', "'");
    let words: Vec<&str> = lower
        .unicode_words()
        .filter(|word| word.chars().any(char::is_alphabetic))
        .collect();
    let mut counts = [0usize; OTHERS.len() + 1];
    for word in &words {
        let languages = FREQUENT.get(word).copied().unwrap_or(0);
        for (bit, count) in counts.iter_mut().enumerate() {
            *count += usize::from(languages >> bit & 1);
        }
    }
    let english = counts[0];
    let other = counts[1..].iter().copied().max().unwrap_or(0);
    if other > english {
        // One word of a few: "Eres idiota", and not "el presidente is here".
        return other >= 2 || (english == 0 && words.len() <= 3);
    }
    english == 0 && words.len() >= ENOUGH_WORDS && by_letters(sentence)
}

/// Told by the letters' frequency, if that is sure.
fn by_letters(sentence: &str) -> bool {
    whatlang::detect(sentence).is_some_and(|info| info.lang() != whatlang::Lang::Eng && info.is_reliable())
}

/// Another script than Latin, unless it is English in look-alike letters; none if most words are in Latin letters.
fn by_script(sentence: &str) -> Option<bool> {
    if sentence.is_ascii() {
        return None;
    }
    let is_latin = |c: char| {
        c < '\u{250}'
            || ('\u{1e00}'..'\u{1f00}').contains(&c)
            || ('\u{ff21}'..='\u{ff5a}').contains(&c)
            || ('\u{1d400}'..='\u{1d7ff}').contains(&c)
    };
    let letters = || sentence.chars().filter(|c| c.is_alphabetic());
    let foreign = letters().filter(|&c| !is_latin(c)).count();
    if 2 * foreign <= letters().count() {
        return None;
    }
    let english = views(sentence)
        .iter()
        .flat_map(|view| view.words())
        .filter(|word| FREQUENT.get(word).is_some_and(|languages| languages & 1 == 1))
        .count();
    Some(english == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sentences_of_many_languages_are_told_from_english() {
        for sentence in [
            "Du bist ein Idiot.",
            "Halt die Klappe, du Idiot!",
            "Eres idiota.",
            "Cállate, eres un imbécil.",
            "Tu es vraiment stupide.",
            "Sei un idiota.",
            "Você é um idiota.",
            "Je bent een idioot.",
            "Jesteś głupi.",
            "Ты идиот.",
            "你是个白痴",
            "أنت أحمق",
            "Sen bir aptalsın.",
            "Du är en idiot.",
        ] {
            assert!(is_foreign(sentence), "{sentence}");
        }
    }

    #[test]
    fn english_of_any_kind_is_english() {
        for sentence in [
            "You are an idiot.",
            "idiot",
            "u r so dumb lol",
            "Trump sucks",
            "Shut up, amigo!",
            "El Niño is coming",
            "ain't nobody got time for that",
            "he a clown fr fr",
            "What the hell, dude?",
            "Total moron die hard fan",
            "Y\u{43e}u \u{430}r\u{435} \u{430}n \u{456}d\u{456}\u{43e}t",
            "That café owner, Señor García, was rude.",
            "",
        ] {
            assert!(!is_foreign(sentence), "{sentence}");
        }
    }
}
