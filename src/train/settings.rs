//! The settings of a run as a person gives them, and what they come to: a preset, with what was given put over it.

use clap::{Args, FromArgMatches};
use serde::Serialize;

use super::TrainError;
use super::objectives::{ContrastivePerplexity, Dpo, Objective, Phi, Released, Sft, Sides, SimPo, Similarity};
use super::optimizer::{AdamWConfig, Schedule};
use super::rollout::PolicySettings;
use super::trainer::Schedules;

mod names;
mod preset;

pub use names::{ConditioningName, ObjectiveName, Quantize, SimilarityName};
pub use preset::Preset;

/// What a person may give; the defaults shown are those of the preset `rewriter` with the objective `cp`.
#[derive(Debug, Clone, Default, Args)]
pub struct Hyperparameters {
    /// Where settings come from that are not given
    #[arg(long, value_enum, default_value_t)]
    pub preset: Preset,
    /// Passes over the data [default: 1]
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Stops after so many steps
    #[arg(long)]
    pub max_steps: Option<usize>,
    /// Most tokens in a packed batch [default: 2048]
    #[arg(long)]
    pub batch_tokens: Option<usize>,
    /// Most anchors in a batch [default: as many as --batch-tokens allows]
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Batches a step [default: 1]
    #[arg(long)]
    pub gradient_accumulation: Option<usize>,
    /// Peak learning rate [default: 0.0002]
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Steps to reach it [default: 30]
    #[arg(long)]
    pub warmup_steps: Option<usize>,
    /// What follows [default: cosine]
    #[arg(long, value_enum)]
    pub schedule: Option<Schedule>,
    /// Seed of everything random [default: 1]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Rank of a new adapter [default: 16]
    #[arg(long)]
    pub lora_rank: Option<usize>,
    /// A new adapter's updates are scaled by alpha / rank [default: 32]
    #[arg(long)]
    pub lora_alpha: Option<f64>,
    /// Share of an update's inputs that are left out in training [default: 0]
    #[arg(long)]
    pub lora_dropout: Option<f64>,
    /// Modules a new adapter updates, by the names the model gives them; all-linear are those of the blocks, lm_head is the output
    /// head [default: all-linear]
    #[arg(long, value_delimiter = ',')]
    pub target_modules: Option<Vec<String>>,
    /// Holds the frozen weights in 4 bits, for models that would not fit [default: none]
    #[arg(long, value_enum)]
    pub quantize: Option<Quantize>,
    /// Longest prompt with its rewrite, in tokens [default: 256]
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// Most positives a set (|P|) [default: 4]
    #[arg(long)]
    pub num_positives: Option<usize>,
    /// Most negatives a set (|N|); none are used by sft [default: 6]
    #[arg(long)]
    pub num_negatives: Option<usize>,
    /// Candidates of other anchors that are negatives beside them [default: 0]
    #[arg(long)]
    pub random_negatives: Option<usize>,
    /// What a candidate's likelihood is conditioned on [default: prompt]
    #[arg(long, value_enum)]
    pub conditioning: Option<ConditioningName>,
    /// What is compared (cp) [default: log_perplexity]
    #[arg(long, value_enum, value_name = "PHI")]
    pub phi: Option<Phi>,
    /// How distance from the prototype becomes similarity (cp) [default: directed]
    #[arg(long, value_enum)]
    pub similarity: Option<SimilarityName>,
    /// Negatives so far above the prototype are left alone (cp, directed) [default: 1]
    #[arg(long)]
    pub margin: Option<f64>,
    /// Temperature (cp) [default: 0.3]
    #[arg(long)]
    pub tau: Option<f64>,
    /// Weight of the negatives (cp) [default: 1]
    #[arg(long)]
    pub alpha: Option<f64>,
    /// The prototype is a constant for the gradient (cp) [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub detach_prototype: Option<bool>,
    /// Which parts of the loss are computed (cp), for ablations [default: both]
    #[arg(long, value_enum)]
    pub sides: Option<Sides>,
    /// Weight of the contrastive term (cp) [default: 0.75]
    #[arg(long)]
    pub cp_weight: Option<f64>,
    /// Weight of the likelihood of the positives (cp, dpo, simpo) [default: 1; dpo and simpo: 0]
    #[arg(long)]
    pub sft_weight: Option<f64>,
    /// Strength of the comparison (dpo: 0.1, simpo: 2), or price of a nat's divergence from the reference (ppo: 0.05)
    #[arg(long)]
    pub beta: Option<f64>,
    /// Margin by which a positive is to be ahead (simpo) [default: 1]
    #[arg(long)]
    pub gamma: Option<f64>,
    /// Compares likelihoods a token instead of those of whole texts (dpo) [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub length_normalised: Option<bool>,
    /// Texts that are written for each prompt (ppo) [default: 4]
    #[arg(long)]
    pub samples: Option<usize>,
    /// Updates with the same texts (ppo) [default: 2]
    #[arg(long)]
    pub ppo_epochs: Option<usize>,
    /// How far a likelihood ratio may go (ppo) [default: 0.2]
    #[arg(long)]
    pub clip: Option<f64>,
}

impl Hyperparameters {
    /// Reads them from arguments of the command: `["--tau", "0.2"]`.
    ///
    /// # Errors
    /// Says which is unknown or malformed.
    pub fn from_arguments(arguments: &[String]) -> Result<Self, TrainError> {
        let command = Self::augment_args(clap::Command::new("train").no_binary_name(true));
        command
            .try_get_matches_from(arguments)
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| TrainError::Setting(error.to_string()))
    }
}

/// Every setting of a run, as its `config.json` records them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is described where it is given, in Hyperparameters")]
pub struct Settings {
    pub objective: ObjectiveName,
    pub preset: Preset,
    pub epochs: f64,
    pub max_steps: Option<usize>,
    pub batch_tokens: usize,
    pub batch_size: Option<usize>,
    pub gradient_accumulation: usize,
    pub learning_rate: f64,
    pub warmup_steps: usize,
    pub schedule: Schedule,
    pub seed: u64,
    pub lora_rank: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub target_modules: Vec<String>,
    pub quantize: Quantize,
    pub max_tokens: usize,
    pub num_positives: usize,
    pub num_negatives: usize,
    pub random_negatives: usize,
    pub conditioning: ConditioningName,
    pub phi: Phi,
    pub similarity: SimilarityName,
    pub margin: f64,
    pub tau: f64,
    pub alpha: f64,
    pub detach_prototype: bool,
    pub sides: Sides,
    pub cp_weight: f64,
    pub sft_weight: f64,
    pub beta: f64,
    pub gamma: f64,
    pub length_normalised: bool,
    pub samples: usize,
    pub ppo_epochs: usize,
    pub clip: f64,
}

impl Settings {
    /// What was given, over the preset.
    ///
    /// # Errors
    /// Names a setting that is out of range.
    pub fn resolve(given: &Hyperparameters, objective: ObjectiveName) -> Result<Self, TrainError> {
        let mut settings = given.preset.settings(objective);
        macro_rules! put {
            ($($name:ident),*) => {
                $(if let Some(value) = &given.$name {
                    settings.$name = value.clone();
                })*
            };
        }
        put!(
            epochs,
            batch_tokens,
            gradient_accumulation,
            learning_rate,
            warmup_steps,
            schedule,
            seed,
            lora_rank,
            lora_alpha,
            lora_dropout,
            target_modules,
            quantize,
            max_tokens,
            num_positives,
            num_negatives,
            random_negatives,
            conditioning,
            phi,
            similarity,
            margin,
            tau,
            alpha,
            detach_prototype,
            sides,
            cp_weight,
            sft_weight,
            beta,
            gamma,
            length_normalised,
            samples,
            ppo_epochs,
            clip
        );
        settings.max_steps = given.max_steps.or(settings.max_steps);
        settings.batch_size = given.batch_size.or(settings.batch_size);
        if matches!(objective, ObjectiveName::Sft | ObjectiveName::Ppo) {
            settings.num_negatives = 0;
            settings.random_negatives = 0;
        }
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), TrainError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let ppo = self.objective == ObjectiveName::Ppo;
        let rules = [
            (positive(self.epochs), "epochs must be positive"),
            (self.max_steps != Some(0), "max_steps must be at least 1"),
            (self.batch_tokens > 0, "batch_tokens must be at least 1"),
            (self.batch_size != Some(0), "batch_size must be at least 1"),
            (
                self.gradient_accumulation > 0,
                "gradient_accumulation must be at least 1",
            ),
            (positive(self.learning_rate), "learning_rate must be positive"),
            (self.lora_rank > 0, "lora_rank must be at least 1"),
            (positive(self.lora_alpha), "lora_alpha must be positive"),
            (
                (0.0..1.0).contains(&self.lora_dropout),
                "lora_dropout must be at least 0 and below 1",
            ),
            (self.num_positives > 0, "num_positives must be at least 1"),
            (not_negative(self.margin), "margin must not be negative"),
            (positive(self.tau), "tau must be positive"),
            (not_negative(self.alpha), "alpha must not be negative"),
            (not_negative(self.cp_weight), "cp_weight must not be negative"),
            (not_negative(self.sft_weight), "sft_weight must not be negative"),
            (
                not_negative(self.beta) && (ppo || self.beta > 0.0),
                "beta must be positive",
            ),
            (not_negative(self.gamma), "gamma must not be negative"),
            (
                self.samples > 1,
                "samples must be at least 2: each is compared with the others",
            ),
            (self.ppo_epochs > 0, "ppo_epochs must be at least 1"),
            (positive(self.clip) && self.clip < 1.0, "clip must lie between 0 and 1"),
            (
                !ppo || self.conditioning == ConditioningName::Prompt,
                "ppo writes rewrites: conditioning must be prompt",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(TrainError::Setting(rule.to_owned())),
            None => Ok(()),
        }
    }

    /// What is minimised; `None` for `ppo`, whose texts are yet to be written: see [`Settings::policy`].
    pub fn objective(&self) -> Option<Box<dyn Objective>> {
        let similarity = match self.similarity {
            SimilarityName::Paper => Similarity::Paper,
            SimilarityName::Symmetric => Similarity::Symmetric,
            SimilarityName::Directed | SimilarityName::Released => Similarity::Directed { margin: self.margin },
        };
        Some(match self.objective {
            ObjectiveName::Ppo => return None,
            ObjectiveName::Sft => Box::new(Sft),
            ObjectiveName::Cp if self.similarity == SimilarityName::Released => Box::new(Released {
                tau: self.tau,
                alpha: self.alpha,
            }),
            ObjectiveName::Cp => Box::new(ContrastivePerplexity {
                phi: self.phi,
                similarity,
                tau: self.tau,
                alpha: self.alpha,
                detach_prototype: self.detach_prototype,
                sides: self.sides,
                weight: self.cp_weight,
                sft_weight: self.sft_weight,
            }),
            ObjectiveName::Dpo => Box::new(Dpo {
                beta: self.beta,
                length_normalised: self.length_normalised,
                sft_weight: self.sft_weight,
            }),
            ObjectiveName::SimPo => Box::new(SimPo {
                beta: self.beta,
                gamma: self.gamma,
                sft_weight: self.sft_weight,
            }),
        })
    }

    /// How `ppo` is done.
    pub fn policy(&self) -> PolicySettings {
        PolicySettings {
            samples: self.samples,
            epochs: self.ppo_epochs,
            clip: self.clip,
            beta: self.beta,
            seed: self.seed,
        }
    }

    /// How long, how fast, and in what portions.
    pub fn schedules(&self) -> Schedules {
        Schedules {
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_tokens: self.batch_tokens,
            batch_size: self.batch_size,
            gradient_accumulation: self.gradient_accumulation,
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps,
            schedule: self.schedule,
            seed: self.seed,
            // The texts of ppo are written, not read.
            num_positives: if self.objective == ObjectiveName::Ppo {
                0
            } else {
                self.num_positives
            },
            num_negatives: self.num_negatives,
            random_negatives: self.random_negatives,
            adamw: AdamWConfig::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        hyperparameters: Hyperparameters,
    }

    fn given(flags: &str) -> Hyperparameters {
        Line::try_parse_from(["train"].into_iter().chain(flags.split_whitespace()))
            .unwrap()
            .hyperparameters
    }

    #[test]
    fn what_is_given_goes_over_the_preset() {
        let settings = Settings::resolve(
            &given("--preset paper --alpha 1.1 --num-negatives 8 --detach-prototype --phi log_perplexity"),
            ObjectiveName::Cp,
        )
        .unwrap();
        assert_eq!((settings.alpha, settings.num_negatives), (1.1, 8));
        assert!(settings.detach_prototype && settings.phi == Phi::LogPerplexity);
        assert_eq!((settings.batch_size, settings.learning_rate), (Some(2), 2.2e-5));
        assert_eq!(
            (settings.quantize, settings.target_modules.join(",")),
            (Quantize::Nf4, "all-linear,lm_head".to_owned())
        );
        assert!(
            !Settings::resolve(&given("--detach-prototype=false"), ObjectiveName::Cp)
                .unwrap()
                .detach_prototype
        );
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        for (flags, name) in [
            ("--tau 0", "tau"),
            ("--learning-rate NaN", "learning_rate"),
            ("--batch-size 0", "batch_size"),
            ("--clip 1", "clip"),
            ("--samples 1", "samples"),
            ("--conditioning nothing", "conditioning"),
        ] {
            let error = Settings::resolve(&given(flags), ObjectiveName::Ppo)
                .unwrap_err()
                .to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    /// The help of an option that depends on the preset can't ask it, so its defaults are written out.
    #[test]
    fn the_defaults_in_the_help_are_those_of_the_default_preset() {
        let settings = serde_json::to_value(Preset::default().settings(ObjectiveName::Cp)).unwrap();
        let mut checked = 0;
        for argument in Line::command().get_arguments() {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let Some((_, rest)) = help.split_once("[default: ") else {
                continue;
            };
            let written = rest.trim_end_matches(']').split(';').next().unwrap();
            let value = &settings[argument.get_id().as_str()];
            match value {
                serde_json::Value::Number(number) => {
                    assert_eq!(written.parse::<f64>().unwrap(), number.as_f64().unwrap(), "{help}");
                    checked += 1;
                }
                serde_json::Value::String(text) => {
                    assert_eq!(written, text, "{help}");
                    checked += 1;
                }
                serde_json::Value::Bool(flag) => assert_eq!(written, flag.to_string(), "{help}"),
                _ => {}
            }
        }
        assert!(checked > 20, "{checked}");
    }
}
