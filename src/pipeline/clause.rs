//! Where to cut a sentence that is too long for a model.

use unicode_segmentation::UnicodeSegmentation;

/// Longest sentence in characters; a longer one is cut between clauses.
pub(super) const MAX_CHARS: usize = 600;
/// Longest sentence in words.
pub(super) const MAX_WORDS: usize = 120;

/// Where `text` becomes too long, if it does.
pub(super) fn limit_of(text: &str) -> Option<usize> {
    if text.len() <= MAX_CHARS.min(MAX_WORDS) {
        return None;
    }
    let mut words = 0;
    let mut in_word = false;
    for (count, (at, c)) in text.char_indices().enumerate() {
        if count == MAX_CHARS {
            return Some(at);
        }
        let is_word = !c.is_whitespace();
        if is_word && !in_word {
            words += 1;
            if words > MAX_WORDS {
                return Some(at);
            }
        }
        in_word = is_word;
    }
    None
}

/// The best place to cut within `window`: after a clause, else before a conjunction, else
/// between words, else between characters as a reader sees them. More than 0.
pub(super) fn clause_end(window: &str) -> usize {
    let half = window.floor_char_boundary(window.len() / 2);
    let late = |at: &usize| *at > half;
    let after_mark = window
        .char_indices()
        .zip(window.char_indices().skip(1))
        .filter(|((_, mark), (_, next))| ",;:)—–".contains(*mark) && next.is_whitespace())
        .map(|(_, (at, next))| at + next.len_utf8())
        .last();
    if let Some(at) = after_mark.filter(late) {
        return at;
    }
    let conjunctions = [" and ", " but ", " because ", " so ", " or ", " which "];
    let before_conjunction = conjunctions.iter().filter_map(|word| window.rfind(word)).max();
    if let Some(at) = before_conjunction.filter(late) {
        return at + 1;
    }
    let between_words = window
        .char_indices()
        .rfind(|(_, c)| c.is_whitespace())
        .map(|(at, c)| at + c.len_utf8());
    if let Some(at) = between_words.filter(|at| *at > window.len() / 4) {
        return at;
    }
    // The window's last character may go on after it, so the cut is before that one.
    match window.grapheme_indices(true).next_back() {
        Some((at, _)) if late(&at) => at,
        _ => window.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_marks_then_conjunctions_then_words() {
        assert_eq!(clause_end("one two three four, five si"), 20);
        assert_eq!(clause_end("one two three four and five"), 19);
        assert_eq!(clause_end("one two three four fi"), 19);
        assert_eq!(clause_end("onetwothree"), 10);
        assert_eq!(clause_end("a"), 1);
    }

    #[test]
    fn a_limit_in_characters_and_in_words() {
        assert_eq!(limit_of("short"), None);
        assert_eq!(limit_of(&"é".repeat(MAX_CHARS)), None);
        assert_eq!(limit_of(&"é".repeat(MAX_CHARS + 1)), Some(2 * MAX_CHARS));
        assert_eq!(limit_of(&"a ".repeat(MAX_WORDS + 1)), Some(2 * MAX_WORDS));
    }
}
