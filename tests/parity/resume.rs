//! A run that was interrupted and taken up again, beside one that was not.

use std::fs;
use std::path::Path;

use detoxd::model::Decoder;
use detoxd::model::lora::LoraConfig;
use detoxd::train::batch::{self, Batch, SetSize, TokenSet};
use detoxd::train::optimizer::AdamW;
use detoxd::train::trainable::Start;
use detoxd::train::trainer::{Schedules, StepReport};

use crate::tiny;

struct Run<'a> {
    decoder: &'a Decoder,
    sets: &'a [TokenSet],
    schedules: &'a Schedules,
    folder: &'a Path,
    dropout: f64,
}

impl Run<'_> {
    fn config(&self) -> LoraConfig {
        LoraConfig {
            lora_dropout: self.dropout,
            ..tiny::adapter(self.decoder).config().clone()
        }
    }

    /// Trains until after step `stop`; the reports, and the bytes of the adapter if the run came to its end.
    fn go(&self, resume: bool, stop: usize) -> (Vec<StepReport>, Option<Vec<u8>>) {
        let trainer = tiny::trainer(self.folder, self.sets, &tiny::DIRECTED, self.schedules);
        let mut reports = Vec::new();
        let adapter = trainer
            .train(
                Start::NewAdapter {
                    base: self.decoder,
                    config: self.config(),
                },
                resume,
                |report: &StepReport| {
                    reports.push(report.clone());
                    report.step != stop
                },
            )
            .unwrap();
        let bytes = adapter.map(|folder| fs::read(folder.join("adapter_model.safetensors")).unwrap());
        (reports, bytes)
    }

    fn logged_steps(&self) -> Vec<u64> {
        let log = fs::read_to_string(self.folder.join("loss.jsonl")).unwrap();
        let step = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["step"]
                .as_u64()
                .unwrap()
        };
        log.lines().map(step).collect()
    }
}

fn with_two_threads(test: impl FnOnce() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(test);
}

#[test]
fn an_interrupted_run_ends_with_the_adapter_of_an_unbroken_one() {
    with_two_threads(|| {
        let (decoder, sets) = (tiny::tied(), tiny::sets(30, 90));
        for gradient_accumulation in [1, 2] {
            let schedules = Schedules {
                gradient_accumulation,
                ..tiny::schedules()
            };
            let run = |folder: &Path, resume: bool, stop: usize| {
                Run {
                    decoder: &decoder,
                    sets: &sets,
                    schedules: &schedules,
                    folder,
                    dropout: 0.1,
                }
                .go(resume, stop)
            };
            let unbroken = tempfile::tempdir().unwrap();
            let (reports, adapter) = run(unbroken.path(), false, usize::MAX);
            let adapter = adapter.unwrap();
            let steps = reports.len();
            assert!(steps > 6 && reports[steps - 1].loss < reports[0].loss, "{reports:?}");
            for stops in [vec![1], vec![2, 5], vec![steps - 1], vec![1, 3, 4]] {
                let broken = tempfile::tempdir().unwrap();
                for (index, &stop) in stops.iter().enumerate() {
                    let (reports, unfinished) = run(broken.path(), index > 0, stop);
                    assert_eq!(reports.last().unwrap().step, stop);
                    assert!(unfinished.is_none());
                }
                let (rest, resumed) = run(broken.path(), true, usize::MAX);
                assert_eq!(rest[0].step, stops[stops.len() - 1] + 1);
                let made = |report: &StepReport| (report.step, report.loss.to_bits(), report.tokens);
                let tail: Vec<_> = reports[rest[0].step - 1..].iter().map(made).collect();
                assert_eq!(
                    rest.iter().map(made).collect::<Vec<_>>(),
                    tail,
                    "stopped after {stops:?}"
                );
                assert_eq!(resumed.unwrap(), adapter, "stopped after {stops:?}");
                let run = Run {
                    decoder: &decoder,
                    sets: &sets,
                    schedules: &schedules,
                    folder: broken.path(),
                    dropout: 0.1,
                };
                assert_eq!(run.logged_steps(), (1..=steps as u64).collect::<Vec<_>>());
            }
        }
    });
}

#[test]
fn a_run_stopped_at_its_last_step_is_finished() {
    let (decoder, sets, schedules) = (tiny::tied(), tiny::sets(30, 90), tiny::schedules());
    let folder = tempfile::tempdir().unwrap();
    let run = Run {
        decoder: &decoder,
        sets: &sets,
        schedules: &schedules,
        folder: folder.path(),
        dropout: 0.1,
    };
    let steps = tiny::trainer(folder.path(), &sets, &tiny::DIRECTED, &schedules).steps();
    let (reports, adapter) = run.go(false, steps);
    assert_eq!(reports.len(), steps);
    let adapter = adapter.expect("an adapter");
    let (again, same) = run.go(true, usize::MAX);
    assert!(again.is_empty(), "a finished run has no step left to make");
    assert_eq!(same.unwrap(), adapter);
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_what_differs() {
    let (decoder, sets, schedules) = (tiny::tied(), tiny::sets(30, 90), tiny::schedules());
    let folder = tempfile::tempdir().unwrap();
    let run = Run {
        decoder: &decoder,
        sets: &sets,
        schedules: &schedules,
        folder: folder.path(),
        dropout: 0.1,
    };
    run.go(false, 2);
    let mut trainer = tiny::trainer(folder.path(), &sets, &tiny::DIRECTED, &schedules);
    trainer.settings["name"] = "another".into();
    let error = trainer
        .train(
            Start::NewAdapter {
                base: &decoder,
                config: run.config(),
            },
            true,
            |_: &StepReport| true,
        )
        .unwrap_err()
        .to_string();
    assert!(error.contains("(name)"), "{error}");
}

#[test]
fn a_damaged_checkpoint_costs_the_steps_since_the_one_before_it() {
    with_two_threads(|| {
        let (decoder, sets, schedules) = (tiny::tied(), tiny::sets(30, 90), tiny::schedules());
        let run = |folder: &Path, resume: bool, stop: usize| {
            Run {
                decoder: &decoder,
                sets: &sets,
                schedules: &schedules,
                folder,
                dropout: 0.1,
            }
            .go(resume, stop)
        };
        let unbroken = tempfile::tempdir().unwrap();
        let (_, adapter) = run(unbroken.path(), false, usize::MAX);
        type Damage = fn(&Path) -> std::io::Result<()>;
        let damages: [(&str, Damage); 4] = [
            ("optimizer.safetensors", |file| fs::remove_file(file)),
            ("optimizer.safetensors", |file| {
                fs::File::options().write(true).open(file)?.set_len(100)
            }),
            ("adapter_model.safetensors", |file| fs::write(file, "")),
            ("progress.json", |file| fs::write(file, "{")),
        ];
        for (name, damage) in damages {
            let broken = tempfile::tempdir().unwrap();
            run(broken.path(), false, 2);
            run(broken.path(), true, 5);
            let checkpoint = |step: u32| broken.path().join(format!("checkpoints/step-{step:08}"));
            damage(&checkpoint(5).join(name)).unwrap();
            let (reports, _) = run(broken.path(), true, 3);
            assert_eq!(reports[0].step, 3, "{name}");
            // The damaged one is still the newest.
            let (reports, resumed) = run(broken.path(), true, usize::MAX);
            assert_eq!(reports[0].step, 4, "{name}");
            assert_eq!(resumed, adapter, "{name}");
        }
        let broken = tempfile::tempdir().unwrap();
        run(broken.path(), false, 2);
        fs::remove_file(broken.path().join("checkpoints/step-00000002/progress.json")).unwrap();
        let (reports, resumed) = run(broken.path(), true, usize::MAX);
        assert_eq!((reports[0].step, resumed), (1, adapter), "none is left");
    });
}

#[test]
fn accumulated_gradients_are_averaged() {
    let (decoder, sets) = (tiny::tied(), tiny::sets(30, 90));
    let schedules = Schedules {
        gradient_accumulation: 2,
        max_steps: Some(1),
        ..tiny::schedules()
    };
    let folder = tempfile::tempdir().unwrap();
    let run = Run {
        decoder: &decoder,
        sets: &sets,
        schedules: &schedules,
        folder: folder.path(),
        dropout: 0.0,
    };
    let (reports, _) = run.go(false, usize::MAX);

    let trainer = tiny::trainer(folder.path(), &sets, &tiny::DIRECTED, &schedules);
    let size = SetSize {
        positives: schedules.num_positives,
        negatives: schedules.num_negatives,
    };
    let batches = batch::epoch(&sets, size, schedules.batch_tokens, schedules.seed, 0);
    let mut rng = rand::SeedableRng::seed_from_u64(schedules.seed);
    let adapter =
        detoxd::model::lora::LoraModel::initialise(run.config(), decoder.config(), decoder.device(), &mut rng).unwrap();
    let optimizer = AdamW::new(adapter.parameters(), schedules.adamw).unwrap();
    let gradients = |index: usize| {
        let batch = Batch::pack(&batches[index]);
        trainer
            .gradients(&batch, &tiny::trainable(&decoder, &adapter), &optimizer)
            .unwrap()
            .1
    };
    let squares: f64 = gradients(0)
        .tensors()
        .iter()
        .zip(gradients(1).tensors())
        .map(|(a, b)| {
            let mean = ((a + b).unwrap() * 0.5).unwrap();
            f64::from(mean.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
        })
        .sum();
    let (got, want) = (reports[0].gradient_norm, squares.sqrt());
    assert!((got - want).abs() < 1e-4 * want, "{got}, expected {want}");
}
