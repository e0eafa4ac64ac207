//! From what a model answered to the texts in it.

use std::sync::LazyLock;

use regex::Regex;

/// What an answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The model says that it will not.
    Refused,
    /// Texts, in their order; none if the answer is empty.
    Texts(Vec<String>),
}

/// Takes an answer apart. A list, numbered or with bullets, gives its items, and what stands around it is left out; otherwise each line that is
/// not blank is a text, but for an introduction that ends in a colon. Quotes, bold marks and labels (`Paraphrase:`) around a text are taken off.
/// `whole` is false for an answer that was cut off: then its last line is.
pub fn parse(answer: &str, whole: bool) -> Parsed {
    let answer = match answer.rsplit_once("</think>") {
        Some((_, said)) => said,
        None => answer,
    };
    let mut lines: Vec<&str> = answer
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !is_rule(line))
        .collect();
    if lines.first().is_some_and(|first| is_refusal(first)) {
        return Parsed::Refused;
    }
    if !whole {
        lines.pop();
    }
    let items: Vec<&str> = lines.iter().filter_map(|line| item(line)).collect();
    let texts = if items.is_empty() {
        if lines.len() > 1 && is_introduction(lines[0]) {
            lines.remove(0);
        }
        lines
    } else {
        items
    };
    let texts = texts
        .into_iter()
        .map(bare)
        .filter(|text| !text.is_empty() && !is_refusal(text));
    Parsed::Texts(texts.collect())
}

/// Code fences and rules.
fn is_rule(line: &str) -> bool {
    line.starts_with("```") || line.chars().all(|c| matches!(c, '-' | '*' | '_' | '=' | '#'))
}

/// The text behind a number or a bullet.
fn item(line: &str) -> Option<&str> {
    static MARK: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^(?:\*\*)?(?:\(?\d{1,3}[.):](?:\*\*)?|\(?[a-zA-Z]\)|[-*•–‣◦])\s+(\S.*)$").ok());
    let found = MARK.as_ref()?.captures(line)?;
    found.get(1).map(|text| text.as_str())
}

fn is_introduction(line: &str) -> bool {
    line.ends_with(':') || line.trim_end_matches('*').ends_with(':')
}

/// Without label, bold marks and quotes around it.
fn bare(text: &str) -> String {
    static LABEL: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"(?i)^\W{0,3}(?:toxic |very toxic )?(?:paraphrased?|rephrased|rewrite|rewritten|version|output|response|answer|sentence)(?: (?:sentence|version|text))?s?(?: \d{1,2})?\W{0,2}:\W{0,2}\s+").ok()
    });
    let mut text = text.trim();
    if let Some(label) = LABEL.as_ref().and_then(|label| label.find(text)) {
        // The quote that may have been taken with the label is put back by looking at what is left.
        let rest = &text[label.end()..];
        text = rest.trim();
        if rest.ends_with(['"', '”']) && !rest.starts_with(['"', '“']) {
            text = text.trim_end_matches(['"', '”']);
        }
    }
    const PAIRS: [(&str, &str); 8] = [
        ("**", "**"),
        ("\"", "\""),
        ("“", "”"),
        ("‘", "’"),
        ("«", "»"),
        ("'", "'"),
        ("*", "*"),
        ("`", "`"),
    ];
    loop {
        let inner = PAIRS.iter().find_map(|(open, close)| {
            let inner = text.strip_prefix(open)?.strip_suffix(close)?;
            // `"A," he said, "B"` begins and ends with quotes that are not a pair.
            (!inner.contains(open) && !inner.contains(close)).then_some(inner)
        });
        match inner {
            Some(inner) if !inner.trim().is_empty() => text = inner.trim(),
            _ => return text.to_owned(),
        }
    }
}

/// Whether a model begins like this when it refuses.
fn is_refusal(text: &str) -> bool {
    const OPENINGS: [&str; 22] = [
        "i can't",
        "i cannot",
        "i can not",
        "i won't",
        "i will not",
        "i'm sorry",
        "i am sorry",
        "sorry, but",
        "sorry, i",
        "i'm unable",
        "i am unable",
        "i'm not able",
        "i am not able",
        "i'm not going to",
        "as an ai",
        "as a language model",
        "as a responsible",
        "i apologize",
        "i apologise",
        "i must decline",
        "i do not feel comfortable",
        "i don't feel comfortable",
    ];
    const OBJECTS: [&str; 20] = [
        "assist",
        "help",
        "fulfill",
        "fulfil",
        "comply",
        "request",
        "generate",
        "create",
        "provide",
        "produce",
        "rewrite",
        "rephrase",
        "paraphrase",
        "engage",
        "toxic",
        "harmful",
        "offensive",
        "inappropriate",
        "language model",
        "write",
    ];
    let text = text
        .trim_start_matches(['"', '“', '*', '\''])
        .to_lowercase()
        .replace('’', "'");
    let opens = OPENINGS.iter().any(|opening| text.starts_with(opening));
    // "I can't find my keys" is a paraphrase, "I can't help with that" is none.
    opens && OBJECTS.iter().any(|object| text.contains(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(answer: &str) -> Vec<String> {
        match parse(answer, true) {
            Parsed::Texts(texts) => texts,
            Parsed::Refused => vec!["REFUSED".to_owned()],
        }
    }

    #[test]
    fn lists_of_all_kinds() {
        for answer in [
            "1. The bus is late.\n2. The bus isn't on time.",
            "1) The bus is late.\n\n2) The bus isn't on time.\n",
            "(1) The bus is late.\n(2) The bus isn't on time.",
            "Sure! Here are two:\n\n- The bus is late.\n- The bus isn't on time.\n\nLet me know if you want more!",
            "* \"The bus is late.\"\n* “The bus isn't on time.”",
            "• **The bus is late.**\n• The bus isn't on time.",
            "a) The bus is late.\nb) The bus isn't on time.",
            "Here are paraphrases:\nThe bus is late.\n\nThe bus isn't on time.",
            "```\nThe bus is late.\nThe bus isn't on time.\n```",
            "**1.** The bus is late.\r\n**2.** The bus isn't on time.\r\n",
            "<think>\n1. Hm.\n</think>\n1. The bus is late.\n2. The bus isn't on time.",
        ] {
            assert_eq!(
                texts(answer),
                ["The bus is late.", "The bus isn't on time."],
                "{answer}"
            );
        }
    }

    #[test]
    fn single_answers() {
        for answer in [
            "The bus is late.",
            "\"The bus is late.\"",
            "Paraphrase: The bus is late.",
            "Paraphrased sentence: \"The bus is late.\"",
            "**Paraphrase:** The bus is late.",
            "Here is one:\n\n\"The bus is late.\"",
            "  The bus is late.  \n\n",
        ] {
            assert_eq!(texts(answer), ["The bus is late."], "{answer}");
        }
        assert_eq!(texts("\"No,\" she said, \"never.\""), ["\"No,\" she said, \"never.\""]);
        assert_eq!(texts("10:30 is too late."), ["10:30 is too late."]);
        assert_eq!(texts("Note this: he left."), ["Note this: he left."]);
        assert!(texts(" \n\n---\n").is_empty());
    }

    #[test]
    fn refusals_are_told_from_paraphrases() {
        for answer in [
            "I can't help with that.",
            "I’m sorry, but I can't create toxic content.",
            "As an AI language model, I don't write such things.\n1. Be kind.",
            "\"I cannot fulfill this request.\"",
        ] {
            assert_eq!(parse(answer, true), Parsed::Refused, "{answer}");
        }
        for answer in [
            "I can't find my keys.",
            "I'm sorry about the weather.",
            "Sorry, I was late.",
        ] {
            assert_eq!(texts(answer), [answer]);
        }
    }

    #[test]
    fn the_last_line_of_an_answer_that_was_cut_off_is_left_out() {
        assert_eq!(
            parse("1. The bus is late.\n2. The bus is", false),
            Parsed::Texts(vec!["The bus is late.".to_owned()])
        );
        assert_eq!(parse("The bus is", false), Parsed::Texts(Vec::new()));
    }
}
