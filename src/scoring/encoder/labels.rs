//! Which of a classifier's labels mean toxic.

use super::EncoderError;
use super::config::EncoderConfig;

/// Names that classifiers in the field give to toxic text, in lower case with `_` for other separators.
const TOXIC: &[&str] = &[
    "toxic",
    "toxicity",
    "severe_toxic",
    "severe_toxicity",
    "hate",
    "hateful",
    "hate_speech",
    "hatespeech",
    "offensive",
    "offensive_language",
    "abusive",
    "abuse",
    "obscene",
    "insult",
    "threat",
    "identity_attack",
    "identity_hate",
];

/// How a classifier's logits become one verdict.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// One label holds: the toxic ones' share of the softmax.
    OneOf(Vec<usize>),
    /// Any labels may hold: the likeliest of the toxic ones, by its sigmoid.
    AnyOf(Vec<usize>),
}

impl Verdict {
    /// By the labels' names, or by `wanted`: one or more of them, with commas between.
    pub fn new(config: &EncoderConfig, wanted: Option<&str>) -> Result<Self, EncoderError> {
        let EncoderConfig {
            labels, problem_type, ..
        } = config;
        let all = labels.join(", ");
        if labels.is_empty() {
            return Err(EncoderError::Labels(
                "config.json has no `id2label`: it is no classifier".to_owned(),
            ));
        }
        let toxic = match wanted {
            Some(wanted) => named(labels, wanted)?,
            None => guessed(labels).ok_or_else(|| {
                EncoderError::Labels(format!(
                    "none of its labels ({all}) is known to mean toxic: name one by --toxicity-label"
                ))
            })?,
        };
        let kind = problem_type.as_deref().unwrap_or(match labels.len() {
            1 => "multi_label_classification",
            _ => "single_label_classification",
        });
        match kind {
            "multi_label_classification" => Ok(Self::AnyOf(toxic)),
            "single_label_classification" if labels.len() == 1 => Ok(Self::AnyOf(toxic)),
            "single_label_classification" if toxic.len() == labels.len() => Err(EncoderError::Labels(format!(
                "all of its labels ({all}) mean toxic, and one of them always holds: name the toxic ones by --toxicity-label"
            ))),
            "single_label_classification" => Ok(Self::OneOf(toxic)),
            other => Err(EncoderError::Unsupported {
                setting: "problem_type",
                value: other.to_owned(),
                supported: "single_label_classification and multi_label_classification are computed",
            }),
        }
    }

    /// ln(p / (1 - p)) of the probability that the text is toxic.
    pub fn log_odds(&self, logits: &[f32]) -> f32 {
        match self {
            Self::AnyOf(toxic) => toxic
                .iter()
                .map(|&label| logits[label])
                .fold(f32::NEG_INFINITY, f32::max),
            Self::OneOf(toxic) => {
                let (of_toxic, of_others): (Vec<_>, Vec<_>) =
                    logits.iter().enumerate().partition(|(label, _)| toxic.contains(label));
                let log_sum = |part: Vec<(usize, &f32)>| {
                    let most = part.iter().map(|(_, logit)| **logit).fold(f32::NEG_INFINITY, f32::max);
                    most + part.iter().map(|(_, logit)| (**logit - most).exp()).sum::<f32>().ln()
                };
                log_sum(of_toxic) - log_sum(of_others)
            }
        }
    }
}

fn named(labels: &[String], wanted: &str) -> Result<Vec<usize>, EncoderError> {
    wanted
        .split(',')
        .map(|name| {
            let name = name.trim();
            labels
                .iter()
                .position(|label| label.eq_ignore_ascii_case(name))
                .ok_or_else(|| EncoderError::Labels(format!("it has no label `{name}`; it has {}", labels.join(", "))))
        })
        .collect()
}

/// The labels with a known name; of two without names the second, and a single one.
fn guessed(labels: &[String]) -> Option<Vec<usize>> {
    let plain = |label: &String| label.trim().to_lowercase().replace(['-', ' '], "_");
    let known: Vec<usize> = (0..labels.len())
        .filter(|&label| TOXIC.contains(&plain(&labels[label]).as_str()))
        .collect();
    match labels {
        _ if !known.is_empty() => Some(known),
        [_] => Some(vec![0]),
        [first, second] if first == "LABEL_0" && second == "LABEL_1" => Some(vec![1]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(labels: &[&str], problem_type: Option<&str>, wanted: Option<&str>) -> Result<Verdict, String> {
        let labels: serde_json::Map<String, serde_json::Value> = labels
            .iter()
            .enumerate()
            .map(|(number, label)| (number.to_string(), (*label).into()))
            .collect();
        let config = serde_json::json!({
            "model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 4, "max_position_embeddings": 8, "id2label": labels, "problem_type": problem_type
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let config = EncoderConfig::open(folder.path()).unwrap();
        Verdict::new(&config, wanted).map_err(|error| error.to_string())
    }

    #[test]
    fn names_of_the_field_are_known() {
        let one = |labels: &[&str]| verdict(labels, None, None).unwrap();
        assert_eq!(one(&["neutral", "toxic"]), Verdict::OneOf(vec![1]));
        assert_eq!(one(&["nothate", "hate"]), Verdict::OneOf(vec![1]));
        assert_eq!(
            one(&["Hate Speech", "offensive-language", "neither"]),
            Verdict::OneOf(vec![0, 1])
        );
        assert_eq!(one(&["LABEL_0", "LABEL_1"]), Verdict::OneOf(vec![1]));
        assert_eq!(one(&["LABEL_0"]), Verdict::AnyOf(vec![0]));
        let jigsaw = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"];
        let many = verdict(&jigsaw, Some("multi_label_classification"), None).unwrap();
        assert_eq!(many, Verdict::AnyOf(vec![0, 1, 2, 3, 4, 5]));
    }

    #[test]
    fn what_is_not_known_must_be_named_and_exist() {
        let labels = ["positive", "negative"];
        let error = verdict(&labels, None, None).unwrap_err();
        assert!(
            error.contains("positive, negative") && error.contains("--toxicity-label"),
            "{error}"
        );
        assert_eq!(verdict(&labels, None, Some("Negative")), Ok(Verdict::OneOf(vec![1])));
        let error = verdict(&labels, None, Some("negative, rude")).unwrap_err();
        assert!(
            error.contains("`rude`") && error.contains("positive, negative"),
            "{error}"
        );
        let error = verdict(&labels, None, Some("negative,positive")).unwrap_err();
        assert!(error.contains("always holds"), "{error}");
        let error = verdict(&["toxicity"], Some("regression"), None).unwrap_err();
        assert!(error.contains("`problem_type` is regression"), "{error}");
        assert!(verdict(&[], None, None).unwrap_err().contains("id2label"));
    }

    #[test]
    fn log_odds_are_those_of_softmax_and_sigmoid() {
        let logits = [1.0f32, -0.5, 2.0];
        let exp = logits.map(f32::exp);
        let share = (exp[0] + exp[2]) / exp.iter().sum::<f32>();
        let got = Verdict::OneOf(vec![0, 2]).log_odds(&logits);
        assert!((got - (share / (1.0 - share)).ln()).abs() < 1e-5, "{got}");
        assert_eq!(Verdict::AnyOf(vec![0, 1]).log_odds(&logits), 1.0);
        // Far from zero nothing overflows.
        assert_eq!(Verdict::OneOf(vec![1]).log_odds(&[-200.0, 200.0]), 400.0);
    }
}
