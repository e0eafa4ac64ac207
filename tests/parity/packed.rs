use std::sync::Arc;

use detoxd::model::ops::Target;
use detoxd::model::packing::Packing;
use detoxd::train::batch::{Batch, CandidateSet, TokenSet};
use detoxd::train::objectives::{Objective, Sft};
use detoxd::train::optimizer::AdamW;

use crate::tiny;

/// The same candidates with a copy of their prompt each.
fn unpacked(sets: &[TokenSet]) -> Batch {
    let (mut tokens, mut targets, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
    let mut packing = Packing::new();
    for set in sets {
        let mut place = |candidate: &Vec<u32>| {
            let sequence = [set.prompt.as_slice(), candidate].concat();
            let start = packing.push_sequence(sequence.len() - 1);
            tokens.extend(&sequence[..sequence.len() - 1]);
            let first = targets.len();
            targets.extend((set.prompt.len()..sequence.len()).map(|at| Target {
                row: (start + at - 1) as u32,
                token: sequence[at],
            }));
            first..targets.len()
        };
        let positives = set.positives.iter().map(&mut place).collect();
        let negatives = set.negatives.iter().map(&mut place).collect();
        ranges.push(CandidateSet { positives, negatives });
    }
    Batch {
        tokens,
        packing: Arc::new(packing),
        targets,
        sets: ranges,
        dropout_seed: 0,
    }
}

#[test]
fn a_packed_set_gives_the_loss_and_the_gradients_of_its_sequences() {
    let decoder = tiny::tied();
    let schedules = tiny::schedules();
    let sets = tiny::sets(4, 50);
    let (shared, separate) = (Batch::pack(&sets), unpacked(&sets));
    assert!(shared.tokens.len() < separate.tokens.len());
    assert_eq!(shared.sets, separate.sets);
    for (name, objective) in [("SFT", &Sft as &dyn Objective), ("CP", &tiny::DIRECTED)] {
        let adapter = tiny::adapter(&decoder).into_variables().unwrap();
        let optimizer = AdamW::new(adapter.parameters(), schedules.adamw).unwrap();
        let trainer = tiny::trainer("unused".as_ref(), &sets, objective, &schedules);
        let (got, got_gradients) = trainer
            .gradients(&shared, &tiny::trainable(&decoder, &adapter), &optimizer)
            .unwrap();
        let (want, want_gradients) = trainer
            .gradients(&separate, &tiny::trainable(&decoder, &adapter), &optimizer)
            .unwrap();
        println!("{name}: {got}, unpacked {want}");
        assert!((got - want).abs() < 1e-4, "{name}: {got}, unpacked {want}");
        let parameters = adapter.parameters();
        assert_eq!(got_gradients.tensors().len(), parameters.len());
        let pairs = got_gradients.tensors().iter().zip(want_gradients.tensors());
        for ((parameter, _), (got, want)) in parameters.iter().zip(pairs) {
            tiny::assert_close(got, want, 1e-4, &format!("{name}, gradient of {parameter}"));
        }
    }
}
