//! Every objective against losses that PyTorch and TRL gave for the same likelihoods (`tests/fixtures/record_objectives.py`).

use std::ops::Range;

use serde_json::Value;

use super::super::batch::CandidateSet;
use super::{ContrastivePerplexity, Dpo, Objective, Released, Scored, Sft, SimPo, Similarity};

fn numbers(value: &Value) -> Vec<f32> {
    let number = |value: &Value| value.as_f64().unwrap() as f32;
    value.as_array().unwrap().iter().map(number).collect()
}

fn spans(value: &Value) -> Vec<Range<usize>> {
    let span = |value: &Value| {
        let at = |index: usize| value[index].as_u64().unwrap() as usize;
        at(0)..at(1)
    };
    value.as_array().unwrap().iter().map(span).collect()
}

fn objective(name: &str, settings: &Value) -> Box<dyn Objective> {
    let number = |name: &str| settings[name].as_f64().unwrap();
    match name {
        "sft" => Box::new(Sft),
        "cp" => Box::new(ContrastivePerplexity {
            phi: serde_json::from_value(settings["phi"].clone()).unwrap(),
            similarity: match settings["similarity"].as_str().unwrap() {
                "paper" => Similarity::Paper,
                "symmetric" => Similarity::Symmetric,
                _ => Similarity::Directed {
                    margin: number("margin"),
                },
            },
            tau: number("tau"),
            alpha: number("alpha"),
            detach_prototype: settings["detach"].as_bool().unwrap(),
            sides: serde_json::from_value(settings["sides"].clone()).unwrap(),
            weight: number("weight"),
            sft_weight: number("sft_weight"),
        }),
        "released" => Box::new(Released {
            tau: number("tau"),
            alpha: number("alpha"),
        }),
        "dpo" => Box::new(Dpo {
            beta: number("beta"),
            length_normalised: settings["length_normalised"].as_bool().unwrap(),
            sft_weight: number("sft_weight"),
        }),
        "simpo" => Box::new(SimPo {
            beta: number("beta"),
            gamma: number("gamma"),
            sft_weight: number("sft_weight"),
        }),
        other => panic!("{other}"),
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch_and_trl() {
    let file: Value = serde_json::from_str(include_str!("../../../tests/fixtures/objectives.json")).unwrap();
    let cases = file["cases"].as_array().unwrap();
    let (mut worst, mut by_trl) = ((0f64, 0f64), 0);
    for case in cases {
        let name = case["objective"].as_str().unwrap();
        let set = |value: &Value| CandidateSet {
            positives: spans(&value["positives"]),
            negatives: spans(&value["negatives"]),
            random: spans(&value["random"]),
        };
        let sets: Vec<CandidateSet> = case["sets"].as_array().unwrap().iter().map(set).collect();
        let reference = case.get("reference").map(numbers).unwrap_or_default();
        let objective = objective(name, &case["settings"]);
        assert_eq!(objective.needs_reference(), !reference.is_empty(), "{name}");
        let loss = objective.loss(&Scored {
            nll: &numbers(&case["nll"]),
            reference: &reference,
            sets: &sets,
        });
        let close = |got: f64, want: &Value| {
            let want = want.as_f64().unwrap();
            assert!(
                (got - want).abs() < 1e-6,
                "{name}: {got}, expected {want} with {}",
                case["settings"]
            );
            (got - want).abs()
        };
        worst.0 = worst.0.max(close(loss.value, &case["loss"]));
        let gradient = case["gradient"].as_array().unwrap();
        assert_eq!(loss.gradient.len(), gradient.len());
        for (got, want) in loss.gradient.iter().zip(gradient) {
            worst.1 = worst.1.max(close(*got, want));
        }
        by_trl += usize::from(case["by"] == "trl");
    }
    assert!(cases.len() > 25 && by_trl == 7);
    println!(
        "{} losses differ by at most {:.1e}, their gradients by {:.1e}",
        cases.len(),
        worst.0,
        worst.1
    );
}
