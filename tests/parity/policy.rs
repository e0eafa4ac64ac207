//! Runs that compare with the model they began with, or learn from texts that they write themselves.

use std::path::Path;

use detoxd::model::Decoder;
use detoxd::model::tokenizer::TextTokenizer;
use detoxd::prompt::RewritePrompt;
use detoxd::train::batch::TokenSet;
use detoxd::train::objectives::Dpo;
use detoxd::train::rollout::{PolicyOptimisation, PolicySettings, Reward};
use detoxd::train::trainable::{Start, nll};
use detoxd::train::trainer::{Goal, Schedules, StepReport, Trainer};

use crate::tiny;

/// Short texts are worth more.
struct Brevity;

impl Reward for Brevity {
    fn reward(&self, _: &str, rewrite: &str) -> f64 {
        (-0.1 * rewrite.chars().count() as f64).exp()
    }
}

const SETTINGS: PolicySettings = PolicySettings {
    samples: 4,
    epochs: 2,
    clip: 0.2,
    beta: 0.01,
    seed: 5,
};

fn tokenizer() -> TextTokenizer {
    TextTokenizer::from_file(tiny::folder("tied").join("tokenizer.json")).unwrap()
}

/// Ends a rewrite; the small model writes it often enough.
const END: u32 = 2;

fn policy(tokenizer: &TextTokenizer) -> PolicyOptimisation<'_> {
    PolicyOptimisation {
        settings: SETTINGS,
        reward: &Brevity,
        tokenizer,
        prompt: RewritePrompt::new(tokenizer).unwrap(),
    }
}

fn prompts() -> Vec<TokenSet> {
    tiny::sets(24, 70)
}

fn schedules() -> Schedules {
    Schedules {
        batch_size: Some(8),
        batch_tokens: 10_000,
        ..tiny::schedules()
    }
}

fn run(
    decoder: &Decoder,
    goal: Goal<'_>,
    sets: &[TokenSet],
    schedules: &Schedules,
    folder: &Path,
    resume: bool,
    stop: usize,
) -> (Vec<StepReport>, Option<Vec<u8>>) {
    let trainer = Trainer {
        goal,
        ..tiny::trainer(folder, sets, &tiny::DIRECTED, schedules)
    };
    let mut reports = Vec::new();
    let start = Start::Adapter {
        base: decoder,
        adapter: tiny::adapter(decoder),
    };
    let written = trainer
        .train(start, resume, |report: &StepReport| {
            reports.push(report.clone());
            report.step != stop
        })
        .unwrap();
    let bytes = written.map(|folder| std::fs::read(folder.join("adapter_model.safetensors")).unwrap());
    (reports, bytes)
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_reference_and_texts() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        let (decoder, tokenizer) = (tiny::tied(), tokenizer());
        let policy = policy(&tokenizer);
        let dpo = Dpo {
            beta: 0.5,
            length_normalised: false,
            sft_weight: 0.0,
        };
        let offline = schedules();
        // A policy's sets have prompts alone.
        let online = Schedules {
            num_positives: 0,
            num_negatives: 0,
            epochs: 2.0,
            ..schedules()
        };
        for (goal, schedules) in [(Goal::Loss(&dpo), &offline), (Goal::Reward(&policy), &online)] {
            let sets = prompts();
            let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (reports, adapter) = run(&decoder, goal, &sets, schedules, whole.path(), false, usize::MAX);
            let steps = reports.len();
            assert!(steps > 4, "{steps}");
            run(&decoder, goal, &sets, schedules, broken.path(), false, 3);
            let (rest, resumed) = run(&decoder, goal, &sets, schedules, broken.path(), true, usize::MAX);
            assert_eq!(rest.len(), steps - 3);
            assert_eq!(rest.last().unwrap().loss.to_bits(), reports[steps - 1].loss.to_bits());
            assert!(resumed.is_some() && resumed == adapter);
            assert!(whole.path().join("curves.svg").exists());
        }
    });
}

#[test]
fn a_policy_learns_what_is_rewarded() {
    let (decoder, tokenizer) = (tiny::tied(), tokenizer());
    let policy = policy(&tokenizer);
    let schedules = Schedules {
        num_positives: 0,
        num_negatives: 0,
        epochs: 10.0,
        learning_rate: 1e-2,
        ..schedules()
    };
    let folder = tempfile::tempdir().unwrap();
    let goal = Goal::Reward(&policy);
    let (reports, _) = run(&decoder, goal, &prompts(), &schedules, folder.path(), false, usize::MAX);
    let mean = |reports: &[StepReport]| reports.iter().filter_map(|r| r.reward).sum::<f64>() / reports.len() as f64;
    let (before, after) = (mean(&reports[..5]), mean(&reports[reports.len() - 5..]));
    println!("mean reward of the first and the last five steps: {before:.3}, {after:.3}");
    assert!(after > before + 0.2, "{before} before, {after} after");
    assert!(reports.last().unwrap().divergence.unwrap() > reports[0].divergence.unwrap() + 0.1);
    let log = std::fs::read_to_string(folder.path().join("loss.jsonl")).unwrap();
    assert!(log.lines().all(|line| line.contains("\"reward\"")));
}

#[test]
fn a_rollout_holds_the_policys_own_texts_and_likelihoods() {
    let (decoder, tokenizer) = (tiny::tied(), tokenizer());
    let adapter = tiny::adapter(&decoder);
    let start = Start::Adapter {
        base: &decoder,
        adapter: adapter.clone(),
    };
    let (reference, trainable) = (start.reference().unwrap(), tiny::trainable(&decoder, &adapter));
    let sets = &prompts()[..6];
    let rollout = |number| {
        policy(&tokenizer)
            .roll_out(sets, number, &trainable, &reference)
            .unwrap()
    };
    let (one, same, other) = (rollout(3), rollout(3), rollout(4));
    assert_eq!(one.batch.tokens, same.batch.tokens);
    assert_ne!(one.batch.tokens, other.batch.tokens);
    assert_eq!(one.objective.advantages.len(), one.batch.targets.len());
    // The policy is still the reference.
    assert!(one.divergence.abs() < 1e-6 && one.reward > 0.0 && one.reward < 1.0);
    let again = nll(&decoder, detoxd::model::layers::Adaptation::Lora(&adapter), &one.batch).unwrap();
    assert_eq!(again, one.objective.old);
    for (set, source) in one.batch.sets.iter().zip(sets) {
        assert_eq!(set.positives.len(), SETTINGS.samples);
        for span in &set.positives {
            let tokens: Vec<u32> = one.batch.targets[span.clone()]
                .iter()
                .map(|target| target.token)
                .collect();
            let longest = source.prompt.len() * 3 / 2 + 8;
            assert!(tokens.len() == longest || tokens.last() == Some(&END), "{tokens:?}");
            assert!(tokens.len() <= longest && !tokens[..tokens.len() - 1].contains(&END));
        }
    }
    // Drawn by the cached way, scored by the packed one: a text's tokens are likely ones, as draws are.
    let mean = again.iter().sum::<f32>() / again.len() as f32;
    assert!(mean < (tiny::VOCABULARY as f32).ln(), "{mean} nats a token");
}
