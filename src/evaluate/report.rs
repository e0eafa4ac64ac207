//! What an evaluation came to: figures with intervals, systems side by side.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Resampled};
use super::figures::{Figures, Metric};
use super::measure::{How, Measurements};

/// How well one adapter does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct System {
    /// What was measured: `name@version`, a folder's name, or `none@0` for the bare base model.
    pub adapter: String,
    /// Sentences measured.
    pub examples: u64,
    /// What was measured.
    pub figures: Figures,
    /// How much higher each figure is than the first system's, from draws in pairs; none of the first itself.
    #[serde(default, skip_serializing_if = "Figures::is_empty")]
    pub differences: Figures,
}

/// What the figures rest on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Setting {
    /// The base model.
    pub model: String,
    /// How the outputs came about.
    pub outputs: How,
    /// Who judged toxicity: `built-in`, a folder or a hub id.
    pub toxicity_model: String,
    /// Who judged similarity.
    pub similarity_model: String,
    /// Examples left out because they exceed the model's context.
    pub skipped: u64,
    /// Neutral texts.
    pub neutral_texts: u64,
    /// Candidates drawn of each source for the diversity.
    pub samples: u64,
    /// Windows of the plain text.
    pub windows: u64,
    /// Most tokens of a window.
    pub window_tokens: u64,
    /// Draws behind an interval.
    pub resamples: u64,
    /// Which draws.
    pub seed: u64,
}

/// What an evaluation came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the figures rest on.
    pub setting: Setting,
    /// Of the base model alone, as far as no output is needed.
    pub base: Figures,
    /// The first is the one that the others are compared with.
    pub systems: Vec<System>,
    /// What was not as asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Two systems of a report, for who must choose between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The one that asks to be activated.
    pub candidate: System,
    /// The one that is active, or the bare base model.
    pub baseline: System,
    /// What the figures rest on.
    pub setting: Setting,
    /// What was not as asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl System {
    /// Whether the bare base model was measured, which is no rewriter.
    pub fn is_bare_base(&self) -> bool {
        self.adapter == crate::adapters::AdapterVersion::none().to_string()
    }

    /// A figure's value, if it was measured.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.figures.get(&metric).map(|figure| figure.value)
    }
}

impl Report {
    /// Sums up; `names` are the systems'.
    pub fn new(setting: Setting, names: Vec<String>, measurements: &Measurements, note: Option<String>) -> Self {
        let bootstrap = Bootstrap {
            resamples: setting.resamples as usize,
            seed: setting.seed,
        };
        let base = measurements.base.series().into_iter().filter_map(|(metric, series)| {
            let figure = bootstrap.resample(&series)?;
            Some((metric, figure.estimate()))
        });
        let resampled: Vec<Vec<Option<Resampled>>> = measurements
            .systems
            .iter()
            .map(|measured| {
                Metric::ALL
                    .map(|metric| bootstrap.resample(&measured.series(metric)))
                    .into()
            })
            .collect();
        let systems = names.into_iter().zip(&measurements.systems).zip(&resampled).enumerate();
        let systems = systems.map(|(place, ((adapter, measured), own))| {
            let own_and_first = Metric::ALL.into_iter().zip(own.iter().zip(&resampled[0]));
            System {
                adapter,
                examples: measured.samples.len() as u64,
                figures: own_and_first
                    .clone()
                    .filter_map(|(metric, (own, _))| Some((metric, own.as_ref()?.estimate())))
                    .collect(),
                differences: own_and_first
                    .filter(|_| place > 0)
                    .filter_map(|(metric, (own, first))| Some((metric, own.as_ref()?.difference(first.as_ref()?))))
                    .collect(),
            }
        });
        Self {
            base: base.collect(),
            systems: systems.collect(),
            setting,
            note,
        }
    }

    /// The system in this place beside the first; none for the first itself.
    pub fn comparison(&self, place: usize) -> Option<Comparison> {
        Some(Comparison {
            candidate: self.systems.get(place).filter(|_| place > 0)?.clone(),
            baseline: self.systems.first()?.clone(),
            setting: self.setting.clone(),
            note: self.note.clone(),
        })
    }
}

/// Reports for tests, where what was measured does not matter.
#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::evaluate::sample::{Measured, MeasuredBase, Sample};
    use crate::pipeline::Likelihood;

    /// Of systems with these toxicities of their outputs, sentence by sentence.
    pub fn report(toxicities: &[&[f64]]) -> Report {
        let measured = |toxicities: &[f64]| Measured {
            samples: toxicities
                .iter()
                .map(|&toxicity| Sample {
                    toxicity,
                    similarity: 0.8,
                    fluency: 1.0,
                    ..Sample::default()
                })
                .collect(),
            changed: vec![false, true],
            windows: vec![Likelihood { nll: 30.0, tokens: 10 }],
        };
        let measurements = Measurements {
            base: MeasuredBase {
                plain: Vec::new(),
                windows: vec![Likelihood { nll: 20.0, tokens: 10 }],
            },
            systems: toxicities.iter().map(|system| measured(system)).collect(),
        };
        let setting = Setting {
            model: "micro".to_owned(),
            outputs: How::Greedy,
            toxicity_model: "built-in".to_owned(),
            similarity_model: "built-in".to_owned(),
            skipped: 1,
            neutral_texts: 2,
            samples: 0,
            windows: 1,
            window_tokens: 64,
            resamples: 200,
            seed: 0,
        };
        let names = (1..=toxicities.len()).map(|number| format!("a@{number}")).collect();
        Report::new(setting, names, &measurements, Some("a <note>".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_compared_with_by_pairs() {
        // The second is less toxic by 0.1 on every sentence: the figures are uncertain, the difference is not.
        let report = testing::report(&[&[0.2, 0.9, 0.5, 0.7], &[0.1, 0.8, 0.4, 0.6]]);
        assert!(report.systems[0].differences.is_empty());
        let own = report.systems[1].figures[&Metric::Toxicity];
        assert!(own.high - own.low > 0.2, "{own:?}");
        let difference = report.systems[1].differences[&Metric::Toxicity];
        assert!(
            (difference.low + 0.1).abs() < 1e-9 && (difference.high + 0.1).abs() < 1e-9,
            "{difference:?}"
        );
        assert!(!report.systems[0].figures.contains_key(&Metric::SelfBleu));
        assert!((report.base[&Metric::TextPerplexity].value - 2f64.exp()).abs() < 1e-9);
        let text = serde_json::to_string(&report).unwrap();
        let read: Report = serde_json::from_str(&text).unwrap();
        assert_eq!((&read.setting, &read.note), (&report.setting, &report.note));
        for (read, system) in read.systems.iter().zip(&report.systems) {
            assert_eq!(read.adapter, system.adapter);
            for (read, written) in [
                (&read.figures, &system.figures),
                (&read.differences, &system.differences),
            ] {
                assert!(read.keys().eq(written.keys()));
                // A number that is read from text may be off by its last bit.
                assert!(
                    read.iter()
                        .all(|(metric, figure)| (figure.value - written[metric].value).abs() < 1e-12)
                );
            }
        }
        assert_eq!(report.comparison(0), None);
        let comparison = report.comparison(1).unwrap();
        assert_eq!(
            (
                comparison.candidate.adapter.as_str(),
                comparison.baseline.adapter.as_str()
            ),
            ("a@2", "a@1")
        );
    }
}
