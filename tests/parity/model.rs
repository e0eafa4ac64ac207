//! Logits against those of `transformers` and `peft` on a small random model, and the two ways through the decoder
//! against each other.

use std::sync::Arc;

use candle_core::Tensor;
use detoxd::model::Decoder;
use detoxd::model::kv_cache::{CachedSequence, KvCache};
use detoxd::model::layers::{Adaptation, LoraSpan};
use detoxd::model::weights::Purpose;

use super::support::{adapter, decoder, largest_difference, packed_logits, recorded, sequences};

fn check(model: &str, name: &str, tolerance: f32, with_adapter: bool) {
    let decoder = decoder(model, Purpose::ServeDense);
    let adapter = adapter(&decoder);
    let adaptation = if with_adapter {
        Adaptation::Lora(&adapter)
    } else {
        Adaptation::Base
    };
    let got = packed_logits(&decoder, &sequences(), adaptation);
    let want = recorded("expected.safetensors", name).flatten(0, 1).unwrap();
    let difference = largest_difference(&got, &want);
    assert!(difference < tolerance, "{name} differ by {difference}");
}

#[test]
fn tied_logits_are_those_of_transformers() {
    check("tied", "tied.logits", 1e-4, false);
}

#[test]
fn untied_sharded_bf16_logits_are_those_of_transformers() {
    check("untied", "untied.logits", 1e-3, false);
}

#[test]
fn logits_with_an_adapter_are_those_of_peft() {
    check("tied", "adapter.logits", 1e-3, true);
}

fn cached_logits(
    decoder: &Decoder,
    tokens: &[u32],
    caches: &mut [(KvCache, usize)],
    adaptation: Adaptation<'_>,
) -> Tensor {
    let mut batch: Vec<CachedSequence<'_>> = caches
        .iter_mut()
        .map(|(cache, len)| CachedSequence { cache, len: *len })
        .collect();
    let hidden = decoder.forward_cached(tokens, &mut batch, adaptation).unwrap();
    decoder.logits(&hidden).unwrap()
}

#[test]
fn serving_agrees_with_training_token_by_token_and_with_several_adapters_in_a_batch() {
    let decoder = decoder("tied", Purpose::ServeDense);
    let adapter = Arc::new(adapter(&decoder));
    let sequences = sequences();
    let length = sequences[0].len();
    let span = |rows, strength| LoraSpan {
        rows,
        adapter: adapter.clone(),
        strength,
    };
    let want = [
        packed_logits(&decoder, &sequences[..1], Adaptation::Base),
        packed_logits(&decoder, &sequences[1..], Adaptation::Lora(&adapter)),
        packed_logits(&decoder, &sequences[1..], Adaptation::Mixed(&[span(0..length, 0.5)])),
    ];
    let mut caches: Vec<(KvCache, usize)> = (0..3).map(|_| (KvCache::new(decoder.config(), length), 1)).collect();
    for step in 0..length {
        let tokens = [sequences[0][step], sequences[1][step], sequences[1][step]];
        let spans = [span(1..2, 1.0), span(2..3, 0.5)];
        let got = cached_logits(&decoder, &tokens, &mut caches, Adaptation::Mixed(&spans));
        for (row, want) in want.iter().enumerate() {
            let difference = largest_difference(&got.get(row).unwrap(), &want.get(step).unwrap());
            assert!(difference < 1e-4, "sequence {row}, token {step}: {difference}");
        }
    }
}

#[test]
fn a_shared_prompt_and_a_shortened_cache_change_nothing() {
    let decoder = decoder("tied", Purpose::ServeDense);
    let sequence = &sequences()[0];
    let (prompt, rest) = sequence.split_at(5);
    let whole = packed_logits(&decoder, std::slice::from_ref(sequence), Adaptation::Base);
    let want = whole.narrow(0, 5, rest.len()).unwrap();
    let mut caches = [(KvCache::new(decoder.config(), 5), 5)];
    cached_logits(&decoder, prompt, &mut caches, Adaptation::Base);
    let [(shared, _)] = caches;
    let shared = Arc::new(shared);
    let mut caches = [(KvCache::continuing(shared, decoder.config(), 16), rest.len())];
    assert!(largest_difference(&cached_logits(&decoder, rest, &mut caches, Adaptation::Base), &want) < 1e-4);
    caches[0].0.truncate(7);
    assert_eq!(caches[0].0.positions(), 7);
    caches[0].1 = rest.len() - 2;
    let got = cached_logits(&decoder, &rest[2..], &mut caches, Adaptation::Base);
    assert!(largest_difference(&got, &want.narrow(0, 2, rest.len() - 2).unwrap()) < 1e-4);
}

#[test]
fn quantised_weights_stay_near_the_dense_ones() {
    let want = packed_logits(&decoder("tied", Purpose::ServeDense), &sequences(), Adaptation::Base);
    let got = packed_logits(
        &decoder("tied", Purpose::ServeQuantized),
        &sequences(),
        Adaptation::Base,
    );
    let scale = want
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    let difference = largest_difference(&got, &want) / scale;
    assert!(
        difference > 0.0 && difference < 0.05,
        "{difference} of the largest logit"
    );
}
