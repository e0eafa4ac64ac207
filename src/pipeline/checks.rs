//! What can be told from the words of a rewrite alone: faults that no score shows.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;
use unicode_segmentation::UnicodeSegmentation;

use super::protect::pattern;

/// Texts that only a prompt or a tokenizer has.
const MARKERS: [&str; 8] = ["<|", "|>", "<s>", "</s>", "[INST]", "[/INST]", "<unk>", "\u{FFFD}"];

/// Whether the candidate shows markers or control characters that the source has not.
pub fn leaks(source: &str, candidate: &str) -> bool {
    let is_control = |c: char| c.is_control() && !c.is_whitespace();
    MARKERS
        .iter()
        .any(|marker| candidate.contains(marker) && !source.contains(marker))
        || candidate.chars().any(|c| is_control(c) && !source.contains(c))
}

/// Whether the candidate says the same words or characters over and over, more than the source.
pub fn loops(source: &str, candidate: &str) -> bool {
    let words = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_lowercase).collect() };
    let (old, new) = (words(source), words(candidate));
    let allowed = |period: usize| if period < 4 { 2 } else { 1 };
    let in_words = (1..=12).any(|period| {
        let times = repeats(&new, period);
        times > allowed(period) && times > repeats(&old, period)
    });
    let (old, new): (Vec<char>, Vec<char>) = (source.chars().collect(), candidate.chars().collect());
    let in_chars = (1..=4).any(|period| {
        let times = repeats(&new, period);
        times > 4 && times > repeats(&old, period)
    });
    in_words || in_chars
}

/// How often a stretch of `period` items stands in direct repetition, at most; at least 1.
fn repeats<T: PartialEq>(items: &[T], period: usize) -> usize {
    let mut run = 0;
    let mut longest = 0;
    for at in period..items.len() {
        run = if items[at] == items[at - period] { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest / period + 1
}

/// Whether the candidate is written in a script that the source does not use, or leaves out the
/// one it mostly uses.
pub fn changes_script(source: &str, candidate: &str) -> bool {
    let (old, new) = (scripts(source), scripts(candidate));
    let main = (0..old.len()).max_by_key(|&script| old[script]);
    let foreign = old.iter().zip(&new).any(|(old, new)| *old == 0 && *new > 0);
    let lost = main.is_some_and(|main| old[main] > 0 && new[main] == 0);
    foreign || lost
}

/// Letters a script: Latin, Greek, Cyrillic, Hebrew, Arabic, of India, of East Asia, other.
fn scripts(text: &str) -> [usize; 8] {
    let mut counts = [0; 8];
    for c in text.chars().filter(|c| c.is_alphabetic()) {
        let script = match u32::from(c) {
            0..=0x02AF | 0x1E00..=0x1EFF | 0xFF21..=0xFF5A => 0,
            0x0370..=0x03FF | 0x1F00..=0x1FFF => 1,
            0x0400..=0x052F => 2,
            0x0590..=0x05FF => 3,
            0x0600..=0x077F | 0x08A0..=0x08FF | 0xFB50..=0xFEFC => 4,
            0x0900..=0x0DFF => 5,
            0x1100..=0x11FF | 0x2E80..=0xD7AF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF => 6,
            _ => 7,
        };
        counts[script] += 1;
    }
    counts
}

static NEGATION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"(?i)\b(?:not|no|never|none|nothing|nobody|nowhere|neither|nor|cannot|without|hardly|ain't",
        r"|dont|doesnt|didnt|isnt|wasnt|arent|werent|wont|wouldnt|cant|couldnt|shouldnt|aint|havent|hasnt|dnt)\b",
        r"|n ?['’] ?t\b|\bn't\b"
    ))
});

/// Whether the source denies something and the candidate denies nothing.
pub fn loses_negation(source: &str, candidate: &str) -> bool {
    NEGATION.is_match(source) && !NEGATION.is_match(candidate)
}

/// Without "one", which is a pronoun as well.
static NUMBER_WORD: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"(?i)\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen",
        r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion|trillion|dozen|twice|half)\b"
    ))
});

/// Whether the candidate has a number in words that the source has not. One may go, as in an idiom that nobody counts in.
pub fn invents_number(source: &str, candidate: &str) -> bool {
    let words = |text| NUMBER_WORD.find_iter(text).map(|word| word.as_str().to_lowercase());
    let known: HashSet<String> = words(source).collect();
    words(candidate).any(|word| !known.contains(&word))
}

/// Whether the candidate speaks of somebody (I, you) the source does not speak of.
pub fn changes_person(source: &str, candidate: &str) -> bool {
    let (old, new) = (persons(source), persons(candidate));
    (new.0 && !old.0) || (new.1 && !old.1)
}

/// Whether a first and a second person are spoken of.
fn persons(text: &str) -> (bool, bool) {
    let (mut first, mut second) = (false, false);
    for word in text.unicode_words() {
        let word = word.to_lowercase();
        let stem = word.split(['\'', '’']).next().unwrap_or_default();
        first |= matches!(
            stem,
            "i" | "im" | "ive" | "ill" | "id" | "me" | "my" | "mine" | "myself" | "we" | "us" | "our" | "ours"
        );
        second |= matches!(
            stem,
            "you" | "your" | "yours" | "youre" | "yourself" | "yourselves" | "u" | "ur" | "ya" | "yall" | "y"
        );
    }
    (first, second)
}

/// What became of the source's words.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wording {
    /// Whether the candidate has no word of its own: it is the source with words left out.
    pub only_leaves_out: bool,
    /// Words that it has more than the source, as a share of the source's.
    pub excess: f32,
}

impl Wording {
    /// Of words in any case.
    pub fn of(source: &str, candidate: &str) -> Self {
        let known: HashSet<String> = source.unicode_words().map(str::to_lowercase).collect();
        let (old, new) = (source.unicode_words().count(), candidate.unicode_words().count());
        Self {
            only_leaves_out: candidate
                .unicode_words()
                .all(|word| known.contains(&word.to_lowercase())),
            excess: new.saturating_sub(old) as f32 / old.max(1) as f32,
        }
    }
}

/// Whether the candidate ends in a word that wants another one, and the source does not.
pub fn is_cut_short(source: &str, candidate: &str) -> bool {
    let dangles = |text: &str| {
        text.unicode_words().next_back().is_some_and(|word| {
            matches!(
                word.to_lowercase().as_str(),
                "the"
                    | "a"
                    | "an"
                    | "of"
                    | "and"
                    | "or"
                    | "but"
                    | "your"
                    | "my"
                    | "their"
                    | "such"
                    | "very"
                    | "because"
                    | "are"
                    | "is"
            )
        })
    };
    dangles(candidate) && !dangles(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaks_of_the_prompt() {
        assert!(leaks("you fool", "you <|im_end|>"));
        assert!(leaks("you fool", "you\0"));
        assert!(!leaks("write <|x|> fool", "write <|x|>"));
    }

    #[test]
    fn repetition_beyond_the_source() {
        assert!(loops("you are dumb", "you are are are here"));
        assert!(loops("a b", "it is not fair it is not fair"));
        assert!(loops("😆😆 fool", "😆😆😆😆😆😆😆"));
        assert!(!loops("hahahahahaha fool", "hahahahahaha"));
        assert!(!loops("what ! ! ! !", "what ! ! ! !"));
        assert!(!loops("you fool", "you are very very wrong"));
    }

    #[test]
    fn scripts_stay() {
        assert!(changes_script("you fool", "ты дурак"));
        assert!(changes_script("du bist dumm 你", "你"));
        assert!(!changes_script("ты глупый fool", "ты"));
        assert!(!changes_script("naïve fool", "naive"));
    }

    #[test]
    fn words_left_out_and_words_too_many() {
        let of = |candidate| {
            let wording = Wording::of("That is a stupid idea", candidate);
            (wording.only_leaves_out, wording.excess)
        };
        assert_eq!(of("that is a idea."), (true, 0.0));
        assert_eq!(of("That is a bad idea"), (false, 0.0));
        assert_eq!(of("That is, I think, a bad idea"), (false, 0.4));
        assert_eq!(of(""), (true, 0.0));
    }

    #[test]
    fn polarity_person_and_broken_ends() {
        assert!(loses_negation("I don't like it", "I like it"));
        assert!(loses_negation("i couldn 't care", "i could care"));
        assert!(!loses_negation("stupid", "not smart"));
        assert!(invents_number("since day ONE", "since day two"));
        assert!(!invents_number("Two damn fools of ten", "Two people of ten"));
        assert!(changes_person("things ive seen", "things you have seen"));
        assert!(!changes_person("you fool", "you are wrong"));
        assert!(is_cut_short("they are idiots", "they are the"));
        assert!(!is_cut_short("they are the", "they are the"));
    }
}
