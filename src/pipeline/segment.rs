//! A text as sentences that tile it: put end to end, they are the text again, byte for byte.

use std::ops::Range;

use super::clause::{clause_end, limit_of};
use super::protect::{Kind, Span};
use super::split::split_line;
use super::trim::{body_of, core_of};
use super::unfit::Unfit;

/// A protected stretch of more bytes than this is a segment of its own.
const MAX_INLINE: usize = 200;
/// A sentence, or a protected stretch that stands alone. All ranges are bytes of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// All of it, with the white space around it.
    pub range: Range<usize>,
    /// Without white space and list markers: what is scored.
    pub body: Range<usize>,
    /// Without emoji and addresses at either end: what a model may rewrite. May be empty.
    pub core: Range<usize>,
    /// What it is, if it is never touched.
    pub protected: Option<Kind>,
    /// Why a model must not rewrite it, if so.
    pub unfit: Option<Unfit>,
}

impl Sentence {
    /// Keeps it from the model: nothing of it may be rewritten.
    pub(super) fn mark(&mut self, reason: Unfit) {
        self.unfit = Some(reason);
        self.core = self.body.start..self.body.start;
    }
}

/// Splits `text`, in linear time. `spans` are its protected stretches ([`super::protect::find`]):
/// no boundary falls within one, and blocks of them are segments of their own.
///
/// A line break always ends a sentence, so text wrapped at a fixed width is judged line by line.
pub fn sentences(text: &str, spans: &[Span]) -> Vec<Sentence> {
    let mut splitter = Splitter {
        text,
        spans,
        pieces: Vec::new(),
    };
    let stands_alone = |span: &&Span| span.kind.is_block() || span.range.len() > MAX_INLINE;
    let mut at = 0;
    for span in spans.iter().filter(stands_alone) {
        splitter.prose(at..span.range.start);
        splitter.pieces.push((span.range.clone(), Some(span.kind)));
        at = span.range.end;
    }
    splitter.prose(at..text.len());
    splitter
        .pieces
        .into_iter()
        .map(|(range, protected)| sentence(text, spans, range, protected))
        .collect()
}

/// All of `text` as one sentence; none if it is empty.
pub fn whole(text: &str, spans: &[Span]) -> Vec<Sentence> {
    if text.is_empty() {
        return Vec::new();
    }
    vec![sentence(text, spans, 0..text.len(), None)]
}

struct Splitter<'a> {
    text: &'a str,
    spans: &'a [Span],
    pieces: Vec<(Range<usize>, Option<Kind>)>,
}

impl Splitter<'_> {
    /// Splits a stretch without blocks. Blank lines go with what stands before them.
    fn prose(&mut self, range: Range<usize>) {
        let first = self.pieces.len();
        let mut start = range.start;
        let mut line_start = range.start;
        while line_start < range.end {
            let line_end = self.line_end(line_start, range.end);
            if self.text[line_start..line_end].trim().is_empty() {
                if let Some((last, _)) = self.pieces[first..].last_mut() {
                    last.end = line_end;
                    start = line_end;
                }
            } else {
                for end in self.ends(line_start..line_end) {
                    self.cut(start..end);
                    start = end;
                }
            }
            line_start = line_end;
        }
        if start < range.end {
            self.pieces.push((start..range.end, None));
        }
    }

    /// Where the line that begins at `start` ends, its line break included.
    fn line_end(&self, start: usize, limit: usize) -> usize {
        let mut at = start;
        while let Some(found) = self.text[at..limit].find('\n') {
            at += found + 1;
            if self.span_around(at).is_none() {
                return at;
            }
        }
        limit
    }

    /// Where the sentences of a line end.
    fn ends(&self, line: Range<usize>) -> Vec<usize> {
        let mut ends: Vec<usize> = Vec::new();
        let mut start = line.start;
        let (mut has_letters, mut has_digits) = (false, false);
        for end in split_line(self.text, line.clone()) {
            has_letters |= self.text[start..end].chars().any(char::is_alphabetic);
            has_digits |= self.text[start..end].chars().any(char::is_numeric);
            start = end;
            if self.span_around(end).is_some() {
                continue;
            }
            // Without letters it is no sentence: "2." goes with the one after, "!!!" with the one
            // before, or the one after at the start of a line.
            if !has_letters {
                match ends.last_mut() {
                    Some(last) if !has_digits => *last = end,
                    _ => continue,
                }
            } else {
                ends.push(end);
            }
            (has_letters, has_digits) = (false, false);
        }
        match ends.last_mut() {
            Some(last) if !has_letters => *last = line.end,
            Some(last) if *last == line.end => {}
            _ => ends.push(line.end),
        }
        ends
    }

    /// Takes a sentence, in pieces that are short enough for a model.
    fn cut(&mut self, range: Range<usize>) {
        let mut start = range.start;
        while let Some(limit) = limit_of(&self.text[start..range.end]) {
            let mut at = start + clause_end(&self.text[start..start + limit]);
            if let Some(span) = self.span_around(at) {
                at = if span.range.start > start {
                    span.range.start
                } else {
                    span.range.end
                };
            }
            if at >= range.end {
                break;
            }
            self.pieces.push((start..at, None));
            start = at;
        }
        if start < range.end {
            self.pieces.push((start..range.end, None));
        }
    }

    /// The span that a boundary at `at` would break.
    fn span_around(&self, at: usize) -> Option<&Span> {
        let next = self.spans.partition_point(|span| span.range.end <= at);
        self.spans.get(next).filter(|span| span.range.start < at)
    }
}

fn sentence(text: &str, spans: &[Span], range: Range<usize>, protected: Option<Kind>) -> Sentence {
    let body = body_of(text, &range, protected.is_none());
    let core = match protected {
        Some(_) => body.start..body.start,
        None => core_of(text, spans, &body),
    };
    Sentence {
        range,
        body,
        core,
        protected,
        unfit: None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::clause::{MAX_CHARS, MAX_WORDS};
    use crate::pipeline::options::Format;
    use crate::pipeline::protect;

    fn split(text: &str, format: Format) -> Vec<Sentence> {
        sentences(text, &protect::find(text, format))
    }

    fn cores(text: &str) -> Vec<&str> {
        split(text, Format::Plain)
            .into_iter()
            .map(|sentence| &text[sentence.core])
            .collect()
    }

    fn check(text: &str, format: Format) -> Result<(), TestCaseError> {
        let mut at = 0;
        for sentence in split(text, format) {
            prop_assert_eq!(sentence.range.start, at);
            prop_assert!(sentence.range.end > at);
            let Sentence { range, body, core, .. } = sentence;
            prop_assert!(range.start <= body.start && body.end <= range.end);
            prop_assert!(body.start <= core.start && core.start <= core.end && core.end <= body.end);
            for range in [&range, &body, &core] {
                prop_assert!(text.get(range.clone()).is_some());
            }
            at = range.end;
        }
        prop_assert_eq!(at, text.len());
        Ok(())
    }

    #[test]
    fn sentences_lines_and_white_space() {
        assert_eq!(
            cores("Hi there.  You fool!\nWhat now?\r\n\r\n  1. First. 2. Second. !!!\n"),
            ["Hi there.", "You fool!", "What now?", "First.", "2. Second. !!!"]
        );
        assert_eq!(
            cores("haha , you fool ! where are you"),
            ["haha , you fool ! where are you"]
        );
        assert!(cores("").is_empty());
        assert_eq!(cores(" \n\n "), [""]);
    }

    #[test]
    fn markers_emoji_and_addresses_stay_outside() {
        assert_eq!(
            cores("- you fool 😆😆 https://a.example/x.y\n## 🙂 so what"),
            ["you fool", "so what"]
        );
        assert_eq!(cores("fool 🖕"), ["fool 🖕"]);
        assert_eq!(cores("https://a.example"), [""]);
    }

    #[test]
    fn an_address_is_not_split() {
        assert_eq!(
            cores("Is www.a.example/What?no=1. Yes the one"),
            ["Is www.a.example/What?no=1.", "Yes the one"]
        );
    }

    #[test]
    fn blocks_stand_alone() {
        let text = "You fool.\n\n```\nstupid. code.\n```\n> a quote. of two.\n\nBye.\n";
        let kinds: Vec<_> = split(text, Format::Markdown)
            .into_iter()
            .map(|sentence| (&text[sentence.body], sentence.protected))
            .collect();
        assert_eq!(
            kinds,
            vec![
                ("You fool.", None),
                ("```\nstupid. code.\n```", Some(Kind::CodeBlock)),
                ("\n", None),
                ("> a quote. of two.", Some(Kind::Quote)),
                ("Bye.", None),
            ]
            .into_iter()
            .map(|(body, kind)| (body.trim(), kind))
            .collect::<Vec<_>>()
        );
    }

    #[test]
    fn long_sentences_are_cut_between_clauses() {
        let text = "you always say that it is fine when it is not, ".repeat(40);
        let pieces = split(&text, Format::Plain);
        assert!(pieces.len() > 2);
        for piece in &pieces {
            assert!(text[piece.core.clone()].ends_with(','));
            assert!(piece.range.len() <= MAX_CHARS);
        }
        let unbroken = "é".repeat(2000);
        assert!(
            split(&unbroken, Format::Plain)
                .iter()
                .all(|s| s.range.len() <= 2 * MAX_CHARS)
        );
        let words = "a ".repeat(1000);
        assert!(
            split(&words, Format::Plain)
                .iter()
                .all(|s| s.range.len() <= 2 * MAX_WORDS)
        );
    }

    #[test]
    fn a_sentence_over_the_end_of_a_window_stays_whole() {
        let text = format!("{}Here is one more of them.", "This is a plain sentence. ".repeat(80));
        let cores = cores(&text);
        assert_eq!(cores.len(), 81);
        assert!(cores[..80].iter().all(|core| *core == "This is a plain sentence."));
    }

    #[test]
    fn a_megabyte_of_anything_takes_linear_time() {
        let units = [
            ".",
            "a",
            "😀",
            "\u{200b}",
            "\" ",
            "``",
            "' ",
            "« ",
            "“a. ",
            "a. ",
            "\n",
            "a\n",
            "1. ",
            "( ",
            ". ",
            "a.b@",
            "@a ",
            "#",
            "[",
            "](",
            "*a ",
            "`a ",
            "> ",
            "- ",
            "<a ",
            "1:",
            "www.",
            "http://",
            "a.com/",
            "e\u{301}",
            "\u{1F468}\u{200D}",
            "|a\n",
            "[a]: ",
        ];
        for unit in units {
            let text = unit.repeat((1 << 20) / unit.len());
            for format in [Format::Plain, Format::Markdown] {
                let start = Instant::now();
                let spans = protect::find(&text, format);
                let found = start.elapsed();
                let count = sentences(&text, &spans).len();
                let took = start.elapsed();
                if took > Duration::from_millis(500) {
                    eprintln!("{unit:?} {format:?}: spans {found:?}, all {took:?}, {count} sentences");
                }
                assert!(took < Duration::from_secs(10), "{unit:?} {format:?} took {took:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn any_text_is_tiled(text in any::<String>()) {
            check(&text, Format::Plain)?;
            check(&text, Format::Markdown)?;
        }

        #[test]
        fn any_markup_is_tiled(text in "([.!?\"'`#>*\\-\\[\\]()@<:/ \n\r1a]|www\\.|a\\. |\\PC){0,200}") {
            check(&text, Format::Plain)?;
            check(&text, Format::Markdown)?;
        }

        #[test]
        fn long_text_is_tiled(unit in "[.!?\"'` \na-c1,é😀-]{1,40}", times in 1usize..200) {
            check(&unit.repeat(times), Format::Plain)?;
            check(&unit.repeat(times), Format::Markdown)?;
        }
    }
}
