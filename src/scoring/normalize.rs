//! Splits text into word tokens, once as written and once with simple disguises undone.
//!
//! A text has one to three [`View`]s. The first is the text as written: NFKC, lower case, words of letters and
//! digits, URLs and @names left out. Where it reads differently with look-alike letters, digits for letters,
//! stretched or separated letters undone, up to two more views follow; a scorer takes the worst of them. Ordinary
//! text therefore keeps exactly its ordinary features.

mod characters;
mod disguise;
#[cfg(test)]
mod tests;

use std::ops::Range;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use self::characters::is_apostrophe;
pub(crate) use self::characters::is_invisible;
use self::disguise::undisguise;

/// A word of a view and the bytes of the original text it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    text: Range<usize>,
    /// Byte range of the original text, on character boundaries.
    pub source: Range<usize>,
}

/// One reading of a text: its words in order.
#[derive(Debug, Clone, Default)]
pub struct View {
    buffer: String,
    tokens: Vec<Token>,
}

impl View {
    /// The words with the places they come from.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The normalised spelling of a word of this view.
    pub fn word(&self, token: &Token) -> &str {
        &self.buffer[token.text.clone()]
    }

    /// All words, in order.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(|token| self.word(token))
    }

    fn push(&mut self, chars: impl Iterator<Item = char>, source: Range<usize>) {
        let start = self.buffer.len();
        self.buffer.extend(chars);
        if self.buffer.len() > start {
            self.tokens.push(Token {
                text: start..self.buffer.len(),
                source,
            });
        }
    }

    fn same_words(&self, other: &View) -> bool {
        self.tokens.len() == other.tokens.len() && self.words().eq(other.words())
    }
}

/// The readings of a text, the one as written first. Empty if the text holds no letter.
pub fn views(text: &str) -> Vec<View> {
    if !text.chars().any(char::is_alphabetic) {
        return Vec::new();
    }
    let mut plain = View::default();
    let mut suspicious = false;
    let mut singles = 0;
    for (start, chunk) in chunks(text) {
        let before = plain.tokens.len();
        suspicious |= push_plain(&mut plain, chunk, start);
        for token in &plain.tokens[before..] {
            singles = if token.text.len() == 1 { singles + 1 } else { 0 };
            suspicious |= singles >= 3;
        }
    }
    let mut views = vec![plain];
    if suspicious {
        let mut ambiguous = false;
        let undisguised = undisguise(text, 2, &mut ambiguous);
        if !undisguised.same_words(&views[0]) {
            views.push(undisguised);
        }
        if ambiguous {
            let tighter = undisguise(text, 1, &mut ambiguous);
            if !views.iter().any(|view| view.same_words(&tighter)) {
                views.push(tighter);
            }
        }
    }
    views
}

/// Pieces between white space, with their byte offsets.
fn chunks(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let base = text.as_ptr() as usize;
    text.split_whitespace()
        .map(move |chunk| (chunk.as_ptr() as usize - base, chunk))
}

/// Appends the words of `chunk` as written; says whether it could be a disguise.
fn push_plain(view: &mut View, chunk: &str, start: usize) -> bool {
    if is_reference(chunk) {
        return false;
    }
    if chunk.is_ascii() {
        let bytes = chunk.as_bytes();
        let mut suspicious = false;
        let (mut at, mut run) = (0, 1);
        while at < bytes.len() {
            if !bytes[at].is_ascii_alphanumeric() {
                // Sentence punctuation is ordinary at the edge of a chunk, and a disguise at most inside it.
                suspicious |= !matches!(
                    bytes[at],
                    b'.' | b',' | b'?' | b'!' | b';' | b':' | b'"' | b'\'' | b'(' | b')'
                ) || (at > 0
                    && at + 1 < bytes.len()
                    && bytes[at + 1].is_ascii_alphanumeric()
                    && bytes[at] != b'\'');
                at += 1;
                continue;
            }
            let from = at;
            while at < bytes.len() && is_ascii_word(bytes, from, at) {
                suspicious |= bytes[at].is_ascii_digit();
                run = if at > from && bytes[at].eq_ignore_ascii_case(&bytes[at - 1]) {
                    run + 1
                } else {
                    1
                };
                suspicious |= run >= 3;
                at += 1;
            }
            let lower = bytes[from..at].iter().map(|byte| char::from(byte.to_ascii_lowercase()));
            view.push(lower, start + from..start + at);
        }
        return suspicious;
    }
    let mut from = None;
    for (at, c) in chunk.char_indices().chain([(chunk.len(), ' ')]) {
        let inside = c.is_alphanumeric() || is_combining_mark(c) || is_invisible(c) || is_apostrophe(c);
        match (inside, from) {
            (true, None) if c.is_alphanumeric() => from = Some(at),
            (false, Some(begin)) => {
                push_normalised(view, &chunk[begin..at], start + begin);
                from = None;
            }
            _ => {}
        }
    }
    true
}

/// Whether `bytes[at]` continues the word that began at `from`: an apostrophe does if a letter follows.
fn is_ascii_word(bytes: &[u8], from: usize, at: usize) -> bool {
    bytes[at].is_ascii_alphanumeric()
        || (bytes[at] == b'\'' && at > from && bytes.get(at + 1).is_some_and(u8::is_ascii_alphanumeric))
}

fn push_normalised(view: &mut View, word: &str, start: usize) {
    let word = word.trim_end_matches(|c| is_apostrophe(c) || is_invisible(c));
    let chars = word
        .chars()
        .filter(|&c| !is_invisible(c))
        .nfkc()
        .flat_map(char::to_lowercase);
    let chars = chars.map(|c| if is_apostrophe(c) { '\'' } else { c });
    view.push(chars.filter(|c| !c.is_whitespace()), start..start + word.len());
}

/// URLs, e-mail addresses and @names: never judged by their letters.
fn is_reference(chunk: &str) -> bool {
    let bytes = chunk.as_bytes();
    if bytes.len() < 4 || !bytes.iter().any(|b| matches!(b, b'@' | b'.' | b':')) {
        return false;
    }
    let trimmed = chunk.trim_matches(|c: char| {
        matches!(
            c,
            '(' | ')' | '<' | '>' | '"' | '\'' | ',' | ';' | '!' | '?' | '.' | ':'
        )
    });
    if let Some(name) = trimmed.strip_prefix('@') {
        let name = name.split(['\'', '’', ':', ',', '.']).next().unwrap_or_default();
        // Two s after the sign are far more often a spelling of a word than the start of a name.
        return name.len() >= 3
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.as_bytes()[..2].eq_ignore_ascii_case(b"ss");
    }
    if trimmed.contains("://") || trimmed.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("www.")) {
        return true;
    }
    if let Some((user, host)) = trimmed.split_once('@') {
        return user.len() >= 2 && host.contains('.') && !host.contains("..");
    }
    const DOMAINS: [&str; 12] = [
        "com", "org", "net", "io", "gov", "edu", "co", "uk", "ly", "me", "tv", "ca",
    ];
    let host = trimmed.split('/').next().unwrap_or_default();
    trimmed.is_ascii()
        && host.rsplit_once('.').is_some_and(|(name, domain)| {
            name.len() >= 3 && DOMAINS.iter().any(|known| domain.eq_ignore_ascii_case(known))
        })
}
