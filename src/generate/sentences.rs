//! Sentences to make sets of: lines, or JSON lines.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

use super::output::Anchor;

/// Fields that are looked for when none is named.
const FIELDS: [&str; 5] = ["text", "anchor", "sentence", "input", "neutral"];

/// Why sentences can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SentencesError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
}

/// Reads a file: one JSON object a line where its name ends in `.jsonl` or `.ndjson`, of which `field` (or the first there is of `text`, `anchor`,
/// `sentence`, `input`, `neutral`) is the sentence; else one sentence a line. Blank lines are skipped.
///
/// # Errors
/// When it can't be read; with the line that is malformed.
pub fn read(path: &Path, field: Option<&str>) -> Result<Vec<Anchor>, SentencesError> {
    let name = path.display().to_string();
    let io = |source| SentencesError::Io {
        path: name.clone(),
        source,
    };
    let json = path
        .extension()
        .is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
    let mut anchors = Vec::new();
    let lines = BufReader::new(File::open(path).map_err(io)?).lines();
    for (number, line) in (1..).zip(lines) {
        let line = line.map_err(io)?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let text = if json {
            of_json(line, field).map_err(|reason| SentencesError::Line {
                path: name.clone(),
                line: number,
                reason,
            })?
        } else {
            line.to_owned()
        };
        anchors.push(Anchor {
            number: anchors.len() + 1,
            text,
        });
    }
    Ok(anchors)
}

fn of_json(line: &str, field: Option<&str>) -> Result<String, String> {
    let json: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let names: &[&str] = field.as_ref().map_or(&FIELDS, std::slice::from_ref);
    let found = names.iter().find_map(|name| json.get(name)?.as_str());
    match found.map(str::trim) {
        Some("") => Err("the sentence is empty".to_owned()),
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("no text under {}", names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_json_lines() {
        let folder = tempfile::tempdir().unwrap();
        let texts = |name: &str, content: &str, field: Option<&str>| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            let anchors = read(&path, field)?;
            Ok::<_, SentencesError>(anchors.into_iter().map(|a| (a.number, a.text)).collect::<Vec<_>>())
        };
        let one_two = vec![(1, "one".to_owned()), (2, "{\"two\"}".to_owned())];
        assert_eq!(texts("a.txt", "\u{feff}one\r\n\n {\"two\"} \n", None).unwrap(), one_two);
        let json = "{\"text\": \"one\"}\n{\"x\": 1, \"anchor\": \"{\\\"two\\\"}\"}\n";
        assert_eq!(texts("a.jsonl", json, None).unwrap(), one_two);
        assert_eq!(
            texts("b.jsonl", "{\"a\": \"x\", \"text\": \"y\"}", Some("a")).unwrap(),
            [(1, "x".to_owned())]
        );
        let error = texts("c.jsonl", "{\"text\": \"one\"}\n{\"text\": 2}\n", None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2: no text under text, anchor"), "{error}");
    }
}
