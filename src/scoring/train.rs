//! Trains the built-in toxicity scorer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::calibration::{Calibration, Reliability};
use super::contrasts;
use super::corpus::{CorpusError, Held, Labelled, Parallel, clean, json_lines, key, lines, sentences, starred};
use super::features::{BUCKET_BITS, Extractor};
use super::groups;
use super::logistic::{Example, Linear, Random, Rows, fit};
use super::normalize::views;
use super::toxicity::{FORMAT, METADATA_FILE, Metadata, WEIGHTS_FILE, encode};

/// What training reads and how hard it tries.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder with `toxicity/`, `detox/`, `text/` and `lexicon.txt`.
    pub data: PathBuf,
    /// Benign paragraphs, one a line; none without it.
    pub background: Option<PathBuf>,
    /// At most this many background sentences.
    pub background_sentences: usize,
    /// Cost of an error on a background sentence, as a share of that on a text of a toxic-neutral pair.
    pub background_weight: f32,
    /// The same of a harmless comment.
    pub comment_weight: f32,
    /// The same of a hurtful sentence of ours.
    pub hurtful_weight: f32,
    /// Cost of an error on a labelled text, as a share of that on a text of a toxic-neutral pair.
    pub labelled_weight: f32,
    /// How far a feature's scale follows its class contrast instead of its rarity, 0..=1.
    pub contrast: f32,
    /// Inverse regularisation strength.
    pub cost: f32,
    /// Passes over the data.
    pub passes: usize,
    /// Features in fewer texts than this are ignored.
    pub min_texts: u32,
    /// The share of toxic texts for which a score of 0.5 shall mean one half.
    pub prior: f32,
    /// Parts the data is cut into for calibration.
    pub folds: usize,
    /// Order of examples, choice of background.
    pub seed: u64,
}

/// Why training failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data can't be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The scorer can't be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The scorer to build on can't be used.
    #[error(transparent)]
    Scorer(#[from] super::toxicity::ScorerError),
    /// The metadata can't be encoded.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Where an example comes from, which decides its part in calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Labelled,
    Parallel,
    Background,
    Group,
}

struct Text {
    text: String,
    toxic: bool,
    weight: f32,
    origin: Origin,
    group: u64,
}

/// What was learnt from how much.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Labelled texts.
    pub labelled: usize,
    /// Texts of toxic-neutral pairs.
    pub parallel: usize,
    /// Background sentences.
    pub background: usize,
    /// Features with a weight.
    pub features: usize,
    /// Held-out folds, labelled texts.
    pub labelled_folds: Reliability,
    /// Held-out folds, toxic-neutral pairs.
    pub parallel_folds: Reliability,
}

/// Trains on everything under `settings.data` but what validation holds, and writes the scorer to `out`.
pub fn train(settings: &Settings, out: &Path, report: impl Fn(&str)) -> Result<Summary, TrainError> {
    let texts = gather(settings)?;
    report(&format!("{} texts", texts.len()));
    let (mut rows, owners) = extract(&texts);
    let mut scale = feature_scale(&rows, settings.min_texts);
    emphasise_contrast(&mut scale, settings.contrast, &texts, &rows, &owners);
    rows.rescale(|index| scale[index as usize]);
    report(&format!("{} rows, features counted", rows.len()));

    let examples: Vec<Example> = owners
        .iter()
        .enumerate()
        .map(|(row, &owner)| {
            let text = &texts[owner];
            Example {
                row,
                positive: text.toxic,
                cost: settings.cost * text.weight,
            }
        })
        .collect();
    let dimensions = 1 << BUCKET_BITS;
    let held_out = held_out_margins(settings, &texts, &rows, &owners, &examples);
    let calibration = calibrate(settings, &texts, &held_out);
    report(&format!("calibrated on held-out folds: {calibration:?}"));
    let model = fit(&rows, &examples, dimensions, settings.passes, settings.seed);
    let folds = |origin: Origin| {
        let chosen = texts.iter().zip(&held_out).filter(|(text, _)| text.origin == origin);
        Reliability::of(
            &chosen
                .map(|(text, &margin)| (calibration.probability(margin), text.toxic))
                .collect::<Vec<_>>(),
            settings.prior,
        )
    };
    let count = |origin: Origin| texts.iter().filter(|text| text.origin == origin).count();
    let summary = Summary {
        labelled: count(Origin::Labelled),
        parallel: count(Origin::Parallel),
        background: count(Origin::Background),
        features: model.weights.iter().filter(|w| **w != 0.0).count(),
        labelled_folds: folds(Origin::Labelled),
        parallel_folds: folds(Origin::Parallel),
    };
    write(model, &scale, calibration, settings, out)?;
    Ok(summary)
}

fn gather(settings: &Settings) -> Result<Vec<Text>, CorpusError> {
    let path = |name: &str| settings.data.join(name);
    let mut held = Held::default();
    for row in json_lines::<Labelled>(&path("toxicity/valid.jsonl"))? {
        held.add(&clean(&row.text));
    }
    for row in json_lines::<Parallel>(&path("detox/valid.jsonl"))? {
        held.add(&row.toxic);
        row.neutral.iter().for_each(|text| held.add(text));
    }
    // Half of the harmless comments teach their style, the other half counts false alarms.
    let comments = lines(&path("text/comments.neutral.txt"))?;
    comments.iter().step_by(2).for_each(|line| held.add(line));
    groups::HELD_OUT.iter().for_each(|text| held.add(text));

    let mut random = Random(settings.seed);
    let mut texts = Vec::new();
    let mut add = |text: String, toxic: bool, weight: f32, origin: Origin, group: u64| {
        if !held.contains(&text) {
            texts.push(Text {
                text,
                toxic,
                weight,
                origin,
                group,
            });
        }
    };
    for row in json_lines::<Labelled>(&path("toxicity/train.jsonl"))? {
        // Posts of that set were collected for being toxic; no marked span doesn't make one harmless.
        if row.source == "toxic-spans" && row.label == 0 {
            continue;
        }
        let text = clean(&row.text);
        let group = key(&text);
        add(text, row.label != 0, settings.labelled_weight, Origin::Labelled, group);
    }
    for row in json_lines::<Parallel>(&path("detox/train.jsonl"))? {
        let group = key(&row.toxic);
        let count = row.neutral.len().max(1) as f32;
        if random.below(4) == 0 {
            add(starred(&row.toxic, &mut random), true, 0.5, Origin::Group, group);
            if let Some(neutral) = row.neutral.first() {
                add(starred(neutral, &mut random), false, 0.5, Origin::Group, group);
            }
        }
        add(row.toxic, true, count, Origin::Parallel, group);
        for neutral in row.neutral {
            add(neutral, false, 1.0, Origin::Parallel, group);
        }
    }
    for line in comments.into_iter().skip(1).step_by(2) {
        let group = key(&line);
        add(line, false, settings.comment_weight, Origin::Background, group);
    }
    for text in groups::training().into_iter().chain(contrasts::harmless()) {
        let group = key(&text);
        add(text, false, 1.0, Origin::Group, group);
    }
    for text in contrasts::hurtful() {
        let group = key(&text);
        add(text, true, settings.hurtful_weight, Origin::Group, group);
    }
    if let Some(background) = &settings.background {
        let obscene: HashSet<String> = lines(&path("lexicon.txt"))?
            .into_iter()
            .map(|word| word.to_lowercase())
            .collect();
        let mut paragraphs = lines(background)?;
        random.shuffle(&mut paragraphs);
        let mut taken = 0;
        'paragraphs: for paragraph in paragraphs {
            for sentence in sentences(&paragraph) {
                let words = sentence.split_whitespace().count();
                let clean_enough = views(sentence)
                    .iter()
                    .all(|view| view.words().all(|word| !obscene.contains(word)));
                if (3..=60).contains(&words) && clean_enough {
                    add(
                        sentence.to_owned(),
                        false,
                        settings.background_weight,
                        Origin::Background,
                        key(sentence),
                    );
                    taken += 1;
                    if taken >= settings.background_sentences {
                        break 'paragraphs;
                    }
                }
            }
        }
    }
    Ok(texts)
}

/// One row a view of each text, and the text each row is of.
fn extract(texts: &[Text]) -> (Rows, Vec<usize>) {
    let extracted: Vec<Vec<Vec<(u32, f32)>>> = texts
        .par_iter()
        .map_init(Extractor::default, |extractor, text| {
            let row = |view: &_| {
                let mut row = Vec::new();
                extractor.extract(view, |bucket, value, _| row.push((bucket, value)));
                row
            };
            views(&text.text).iter().map(row).collect()
        })
        .collect();
    let (mut rows, mut owners) = (Rows::default(), Vec::new());
    for (owner, views) in extracted.into_iter().enumerate() {
        for view in views {
            view.into_iter().for_each(|(bucket, value)| rows.push(bucket, value));
            rows.end_row();
            owners.push(owner);
        }
    }
    (rows, owners)
}

/// A factor per feature in the manner of idf, 0 for rare features.
fn feature_scale(rows: &Rows, min_texts: u32) -> Vec<f32> {
    let mut texts = vec![0u32; 1 << BUCKET_BITS];
    for row in 0..rows.len() {
        rows.row(row)
            .iter()
            .for_each(|&(bucket, _)| texts[bucket as usize] += 1);
    }
    let total = rows.len() as f32;
    // About 6 is the idf of a typical feature: it keeps rows near length 1, where the cost is easy to choose.
    let factor = |&count: &u32| {
        if count < min_texts {
            0.0
        } else {
            (1.0 + (total / count as f32).ln()) / 6.0
        }
    };
    texts.iter().map(factor).collect()
}

/// Blends the absolute log count ratio of the classes into the scale of each feature, so that telling features are
/// regularised less (Wang and Manning, "Baselines and Bigrams", ACL 2012).
fn emphasise_contrast(scale: &mut [f32], contrast: f32, texts: &[Text], rows: &Rows, owners: &[usize]) {
    let mut counts = vec![[1f32; 2]; scale.len()];
    let mut totals = [0f32; 2];
    for (row, &owner) in owners.iter().enumerate() {
        let (class, weight) = (usize::from(texts[owner].toxic), texts[owner].weight);
        totals[class] += weight;
        rows.row(row)
            .iter()
            .for_each(|&(bucket, _)| counts[bucket as usize][class] += weight);
    }
    for (scale, [harmless, toxic]) in scale.iter_mut().zip(counts) {
        if *scale > 0.0 {
            let ratio = ((toxic / totals[1]) / (harmless / totals[0])).ln().abs();
            *scale = (1.0 - contrast) * *scale + contrast * ratio.min(4.0) / 1.5;
        }
    }
}

/// The margin of every text (of its worst view) under a model that hasn't seen it or its siblings.
fn held_out_margins(
    settings: &Settings,
    texts: &[Text],
    rows: &Rows,
    owners: &[usize],
    examples: &[Example],
) -> Vec<f32> {
    let fold_of = |owner: usize| (texts[owner].group >> 20) as usize % settings.folds;
    let parts: Vec<Vec<(usize, f32)>> = (0..settings.folds)
        .into_par_iter()
        .map(|fold| {
            let seen: Vec<Example> = examples
                .iter()
                .filter(|e| fold_of(owners[e.row]) != fold)
                .copied()
                .collect();
            let model = fit(
                rows,
                &seen,
                1 << BUCKET_BITS,
                settings.passes,
                settings.seed + 1 + fold as u64,
            );
            let unseen = owners.iter().enumerate().filter(|(_, owner)| fold_of(**owner) == fold);
            unseen
                .map(|(row, &owner)| (owner, model.margin(rows.row(row))))
                .collect()
        })
        .collect();
    let mut margins = vec![f32::NEG_INFINITY; texts.len()];
    for (owner, margin) in parts.into_iter().flatten() {
        margins[owner] = margins[owner].max(margin);
    }
    margins
}

/// Platt's sigmoid on labelled and parallel texts, each half of the weight, with toxic texts weighted to the prior.
fn calibrate(settings: &Settings, texts: &[Text], margins: &[f32]) -> Calibration {
    let chosen = |origin: Origin, toxic: bool| {
        texts
            .iter()
            .zip(margins)
            .filter(move |(t, m)| t.origin == origin && t.toxic == toxic && m.is_finite())
    };
    let mut held_out = Vec::new();
    for origin in [Origin::Labelled, Origin::Parallel] {
        for (toxic, share) in [(true, settings.prior), (false, 1.0 - settings.prior)] {
            let weight = share / chosen(origin, toxic).count().max(1) as f32;
            held_out.extend(chosen(origin, toxic).map(|(_, &margin)| (margin, toxic, weight)));
        }
    }
    Calibration::fit(&held_out)
}

fn write(
    model: Linear,
    feature_scale: &[f32],
    calibration: Calibration,
    settings: &Settings,
    out: &Path,
) -> Result<(), TrainError> {
    let weights: Vec<f32> = model
        .weights
        .iter()
        .zip(feature_scale)
        .map(|(weight, scale)| weight * scale)
        .collect();
    let scale = weights
        .iter()
        .fold(f32::MIN_POSITIVE, |most, weight| most.max(weight.abs()));
    let bytes: Vec<u8> = weights.iter().map(|&weight| encode(weight, scale)).collect();
    let metadata = Metadata {
        format: FORMAT,
        bucket_bits: BUCKET_BITS,
        scale,
        bias: model.bias,
        calibration,
        prior: settings.prior,
    };
    let save = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes).map_err(|source| TrainError::Write { path, source })
    };
    std::fs::create_dir_all(out).map_err(|source| TrainError::Write {
        path: out.to_owned(),
        source,
    })?;
    save(WEIGHTS_FILE, &bytes)?;
    save(
        METADATA_FILE,
        format!("{}\n", serde_json::to_string_pretty(&metadata)?).as_bytes(),
    )
}
