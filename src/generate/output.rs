//! The file that sets go to: a line a set, whole or not there.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sets::GenerateError;
use super::sort::RewriteSet;

/// A text of which a set is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Counted from 1 over the texts of the input.
    pub number: usize,
    /// The text.
    pub text: String,
}

/// Appends sets.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    path: String,
}

/// How every line begins: what has been cut short is known by it.
const BEGINNING: &[u8] = b"{\"number\":";

#[derive(Serialize)]
struct Line<'a> {
    number: usize,
    #[serde(flatten)]
    set: &'a RewriteSet,
}

#[derive(Deserialize)]
struct Made {
    number: usize,
    anchor: String,
}

impl Output {
    /// Opens the file and says the number of the last anchor that has a set in it, 0 if none has. A last line that was cut short is removed.
    ///
    /// # Errors
    /// When there is something in it and it is not to be resumed, when it was made of other anchors, or can't be read or written.
    pub fn open(path: &Path, anchors: &[Anchor], resume: bool) -> Result<(Self, usize), GenerateError> {
        let name = path.display().to_string();
        let io = |source| GenerateError::Io {
            path: name.clone(),
            source,
        };
        let last = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(io(error)),
            Ok(file) if file.metadata().map_err(io)?.len() == 0 => 0,
            Ok(_) if !resume => return Err(GenerateError::Exists(name)),
            Ok(file) => {
                let (last, whole) = done(BufReader::new(file), &name, anchors)?;
                let file = OpenOptions::new().write(true).open(path).map_err(io)?;
                file.set_len(whole).map_err(io)?;
                last
            }
        };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        Ok((Self { file, path: name }, last))
    }

    /// Appends a set. A kill after this leaves it there.
    pub fn write(&mut self, number: usize, set: &RewriteSet) -> Result<(), GenerateError> {
        let mut line = serde_json::to_vec(&Line { number, set })?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.flush());
        written.map_err(|source| GenerateError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// The number of the last set, and how many bytes whole lines take.
fn done(mut reader: impl BufRead, path: &str, anchors: &[Anchor]) -> Result<(usize, u64), GenerateError> {
    let (mut last, mut whole, mut line) = (0, 0u64, Vec::new());
    for number in 1.. {
        line.clear();
        let read = reader
            .read_until(b'\n', &mut line)
            .map_err(|source| GenerateError::Io {
                path: path.to_owned(),
                source,
            })?;
        if read == 0 {
            break;
        }
        let foreign = |reason: &'static str| GenerateError::Foreign {
            path: path.to_owned(),
            line: number,
            reason,
        };
        if line.last() != Some(&b'\n') {
            if line.starts_with(BEGINNING) || BEGINNING.starts_with(&line) {
                break;
            }
            return Err(foreign("is no set with a number"));
        }
        let made: Made = serde_json::from_slice(&line).map_err(|_| foreign("is no set with a number"))?;
        if made.number <= last {
            return Err(foreign("is out of order"));
        }
        // Anchors outside of what is asked for now (--skip, --limit) can't be compared.
        let index = anchors.partition_point(|anchor| anchor.number < made.number);
        if anchors
            .get(index)
            .is_some_and(|anchor| anchor.number == made.number && anchor.text != made.anchor)
        {
            return Err(foreign("is of another anchor than the data has at its number"));
        }
        last = made.number;
        whole += read as u64;
    }
    Ok((last, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors() -> Vec<Anchor> {
        let anchor = |(number, text): (usize, &str)| Anchor {
            number,
            text: text.to_owned(),
        };
        [(1, "one"), (2, "two"), (3, "three")].map(anchor).into()
    }

    fn set(anchor: &str) -> RewriteSet {
        RewriteSet {
            anchor: anchor.to_owned(),
            positives: vec!["yes".to_owned()],
            negatives: vec!["no".to_owned()],
        }
    }

    #[test]
    fn a_half_line_is_dropped_and_what_is_whole_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sets.jsonl");
        let (mut output, last) = Output::open(&path, &anchors(), false).unwrap();
        assert_eq!(last, 0);
        output.write(1, &set("one")).unwrap();
        output.write(3, &set("three")).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for cut in 1..whole.lines().nth(1).unwrap().len() {
            std::fs::write(&path, &whole[..whole.len() - cut - 1]).unwrap();
            let (mut output, last) = Output::open(&path, &anchors(), true).unwrap();
            assert_eq!(last, 1);
            output.write(3, &set("three")).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        }
        let example = crate::train::dataset::read(&path).unwrap();
        assert_eq!(example[1].anchor, "three");
    }

    #[test]
    fn nothing_of_another_run_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sets.jsonl");
        for (content, says) in [
            ("precious\n", "line 1 is no set"),
            ("precious", "line 1 is no set"),
            ("{\"anchor\": \"one\", \"number\": 2}\n", "line 1 is of another anchor"),
            (
                "{\"anchor\": \"two\", \"number\": 2}\n{\"anchor\": \"one\", \"number\": 1}\n",
                "line 2 is out of order",
            ),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Output::open(&path, &anchors(), false).unwrap_err();
            assert!(error.to_string().contains("--resume"), "{error}");
            let error = Output::open(&path, &anchors(), true).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
