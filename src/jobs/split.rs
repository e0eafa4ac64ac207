//! Which examples of a dataset are trained on and which are held back for the evaluation.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::request::Evaluation;
use crate::train::TrainError;
use crate::train::dataset::Example;

/// Splits the dataset `from` into the lines to train on and the lines held back. Always the same ones: those whose anchors' hashes
/// are the smallest, so that a job that moves to another worker is evaluated on nothing it was trained on. Lines with the same anchor
/// stay together for the same reason, and at least one line is left to train on. Returns the number of lines held back.
///
/// # Errors
/// When a file can't be read or written or a line is malformed.
pub fn split(from: &Path, train: &Path, held: &Path, evaluation: &Evaluation) -> Result<u64, TrainError> {
    let text = fs::read_to_string(from).map_err(TrainError::io(from))?;
    let mut anchors: HashMap<[u8; 32], Vec<usize>> = HashMap::new();
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let example = Example::parse(line).map_err(|reason| TrainError::Dataset {
            path: from.display().to_string(),
            line: index + 1,
            reason,
        })?;
        let hash = Sha256::digest(example.anchor.trim()).into();
        anchors.entry(hash).or_default().push(lines.len());
        lines.push(line);
    }
    let share = (evaluation.held_back.clamp(0.0, 0.5) * lines.len() as f64).ceil() as u64;
    let most = share
        .min(evaluation.max_examples)
        .min((lines.len() as u64).saturating_sub(1));
    let mut anchors: Vec<_> = anchors.into_iter().collect();
    anchors.sort_unstable_by_key(|(hash, _)| *hash);
    let mut is_held = vec![false; lines.len()];
    let mut count = 0;
    for (_, group) in anchors {
        if count + group.len() as u64 <= most {
            count += group.len() as u64;
            for line in group {
                is_held[line] = true;
            }
        }
    }
    for (file, wanted) in [(train, false), (held, true)] {
        let of_file = lines.iter().zip(&is_held).filter(|&(_, &is_held)| is_held == wanted);
        let text: String = of_file.flat_map(|(line, _)| [*line, "\n"]).collect();
        fs::write(file, text).map_err(TrainError::io(file))?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halves(dataset: &str, held_back: f64, max_examples: u64) -> (Vec<String>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let [from, train, held] = ["a", "b", "c"].map(|name| folder.path().join(name));
        fs::write(&from, dataset).unwrap();
        let evaluation = Evaluation {
            held_back,
            max_examples,
        };
        let count = split(&from, &train, &held, &evaluation).unwrap();
        let [train, held] = [train, held].map(|file| {
            let text = fs::read_to_string(file).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        assert_eq!(held.len() as u64, count);
        (train, held)
    }

    fn line(anchor: usize, positive: usize) -> String {
        format!("{{\"anchor\": \"a{anchor}\", \"positives\": [\"p{positive}\"]}}\n")
    }

    #[test]
    fn every_line_is_on_one_side_and_an_anchor_on_one_only() {
        let dataset: String = (0..200).map(|n| line(n % 120, n)).collect();
        let (train, held) = halves(&dataset, 0.1, 64);
        assert_eq!((train.len(), held.len()), (180, 20));
        let anchor = |line: &String| line.split('"').nth(3).unwrap().to_owned();
        let held_anchors: Vec<_> = held.iter().map(anchor).collect();
        assert!(train.iter().map(anchor).all(|anchor| !held_anchors.contains(&anchor)));
        // The order of the lines does not matter for who is held back.
        let reversed: String = (0..200).rev().map(|n| line(n % 120, n)).collect();
        let (_, mut again) = halves(&reversed, 0.1, 64);
        again.reverse();
        assert_eq!(again, held);
    }

    #[test]
    fn limits_hold() {
        let dataset: String = (0..50).map(|n| line(n, n)).collect();
        assert_eq!(halves(&dataset, 0.5, 7).1.len(), 7);
        assert_eq!(halves(&dataset, 0.0, 7).1.len(), 0);
        assert_eq!(
            halves(&line(1, 1), 0.5, 7),
            (vec![line(1, 1).trim().to_owned()], vec![])
        );
        let (train, held) = halves(&format!("{}\n\n{}", line(1, 1), line(2, 2)), 0.1, 7);
        assert_eq!((train.len(), held.len()), (1, 1));
        // One anchor only: something must be left to train on.
        let same: String = (0..9).map(|n| line(1, n)).collect();
        assert_eq!(halves(&same, 0.5, 64).1.len(), 0);
    }
}
