//! Where the sentences of a line end.

use std::ops::Range;

/// Bytes that the sentence splitter sees at a time: it takes quadratic time over quotation marks.
const WINDOW: usize = 1536;

/// Sentence ends of one line, in bytes of the text; the last is the line's end.
pub(super) fn split_line(text: &str, line: Range<usize>) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut start = line.start;
    while start < line.end {
        let end = window_end(text, start, line.end);
        let window = &text[start..end];
        let mut found: Vec<usize> = sentencex::get_sentence_boundaries("en", window)
            .iter()
            .map(|boundary| start + boundary.end_byte)
            .filter(|&at| at > start && at < end && text.is_char_boundary(at))
            .collect();
        found.dedup();
        // The last sentence of a window may go on after it: look at it again from its start, or,
        // where it fills the window, go on behind.
        start = match found.last() {
            Some(&last) if end < line.end => last,
            _ => end,
        };
        if end == line.end {
            found.push(end);
        }
        ends.extend(found);
    }
    ends
}

/// The end of a window: after white space if there is some in its last quarter.
fn window_end(text: &str, start: usize, limit: usize) -> usize {
    if limit - start <= WINDOW {
        return limit;
    }
    let end = text.floor_char_boundary(start + WINDOW);
    let tail = text.floor_char_boundary(start + WINDOW / 4 * 3);
    match text[tail..end].rfind(char::is_whitespace) {
        Some(at) => text.ceil_char_boundary(tail + at + 1),
        None => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_rise_to_the_end_of_the_line() {
        let text = "One. Two! Three";
        assert_eq!(split_line(text, 0..text.len()), [5, 10, 15]);
        assert_eq!(split_line(text, 5..15), [10, 15]);
        assert!(split_line(text, 3..3).is_empty());
    }

    #[test]
    fn a_window_ends_between_words() {
        let text = "word ".repeat(WINDOW);
        assert_eq!(window_end(&text, 0, text.len()) % 5, 0);
        assert_eq!(window_end("short", 0, 5), 5);
    }
}
