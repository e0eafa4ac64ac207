use std::sync::Arc;

use candle_core::Tensor;
use detoxd::model::Decoder;
use detoxd::model::kv_cache::{CachedSequence, KvCache};
use detoxd::model::layers::{Adaptation, LoraSpan};
use detoxd::model::lora::LoraModel;
use detoxd::model::packing::Packing;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::tiny;

const SAME: f32 = 1e-4;

struct Request {
    adapter: Option<(Arc<LoraModel>, f32)>,
    cache: KvCache,
}

impl Request {
    fn alone(&mut self, decoder: &Decoder, tokens: &[u32]) -> Tensor {
        let spans = match &self.adapter {
            Some((adapter, strength)) => tiny::span(adapter, tokens.len(), *strength),
            None => Vec::new(),
        };
        tiny::cached_logits(decoder, &mut self.cache, tokens, Adaptation::Mixed(&spans))
    }
}

fn requests(decoder: &Decoder) -> Vec<Request> {
    let caches = tiny::caches(decoder);
    let one = Arc::new(tiny::adapter(decoder));
    let two = Arc::new(tiny::other_adapter(decoder));
    [
        None,
        Some((one.clone(), 1.0)),
        Some((two.clone(), 1.0)),
        Some((one.clone(), 0.5)),
        None,
        Some((two.clone(), 2.0)),
        Some((one.clone(), 0.0)),
        Some((two, -0.5)),
        None,
    ]
    .into_iter()
    .map(|adapter| Request {
        adapter,
        cache: caches.cache(16),
    })
    .collect()
}

#[test]
fn a_mixed_batch_gives_what_its_requests_give_one_by_one() {
    for decoder in tiny::both_ways() {
        a_mixed_batch(&decoder, &tiny::tied());
    }
}

fn a_mixed_batch(decoder: &Decoder, reference: &Decoder) {
    let (mut mixed, mut alone) = (requests(decoder), requests(reference));
    // Prompts of any length, then one token each, then prompts among single tokens.
    for (round, lengths) in [
        [5, 1, 7, 3, 2, 9, 4, 6, 3],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 4, 1, 1, 1, 3, 1, 1, 2],
    ]
    .iter()
    .enumerate()
    {
        let inputs = tiny::sequences(lengths, round as u64);
        let mut spans = Vec::new();
        let mut first = 0;
        for (request, tokens) in mixed.iter().zip(&inputs) {
            let end = first + tokens.len();
            if let Some((adapter, strength)) = &request.adapter {
                spans.push(LoraSpan {
                    rows: first..end,
                    adapter: adapter.clone(),
                    strength: *strength,
                });
            }
            first = end;
        }
        let mut batch: Vec<CachedSequence<'_>> = mixed
            .iter_mut()
            .zip(&inputs)
            .map(|(request, tokens)| CachedSequence {
                cache: &mut request.cache,
                len: tokens.len(),
            })
            .collect();
        let hidden = decoder
            .forward_cached(&inputs.concat(), &mut batch, Adaptation::Mixed(&spans))
            .unwrap();
        let got = decoder.logits(&hidden, Adaptation::Base).unwrap();
        let want: Vec<Tensor> = alone
            .iter_mut()
            .zip(&inputs)
            .map(|(request, tokens)| request.alone(reference, tokens))
            .collect();
        tiny::assert_close(&got, &Tensor::cat(&want, 0).unwrap(), SAME, &format!("round {round}"));
    }
}

#[test]
fn token_by_token_gives_what_the_whole_sequence_gives() {
    for decoder in tiny::both_ways() {
        let adapter = Arc::new(tiny::adapter(&decoder));
        let sequence = tiny::sequences(&[40], 1);
        let whole = tiny::packed_logits(&tiny::tied(), &sequence, Adaptation::Lora(&adapter));
        let mut cache = tiny::cache(&decoder);
        let spans = tiny::span(&adapter, 1, 1.0);
        for (position, token) in sequence[0].iter().enumerate() {
            assert_eq!(cache.positions(), position);
            let got = tiny::cached_logits(&decoder, &mut cache, &[*token], Adaptation::Mixed(&spans));
            let want = whole.narrow(0, position, 1).unwrap();
            tiny::assert_close(&got, &want, SAME, &format!("position {position}"));
        }
    }
}

#[test]
fn a_shared_prompt_gives_what_copies_of_it_give() {
    for decoder in tiny::both_ways() {
        a_shared_prompt(&decoder, &tiny::tied());
    }
}

fn a_shared_prompt(decoder: &Decoder, reference: &Decoder) {
    let prompt = &tiny::sequences(&[12], 2)[0];
    let continuations = tiny::sequences(&[3, 5, 1], 3);
    let mut shared = tiny::cache(decoder);
    tiny::cached_logits(decoder, &mut shared, prompt, Adaptation::Base);
    let shared = Arc::new(shared);
    let mut caches: Vec<KvCache> = continuations
        .iter()
        .map(|_| KvCache::continuing(shared.clone(), 8))
        .collect();
    let mut batch: Vec<CachedSequence<'_>> = caches
        .iter_mut()
        .zip(&continuations)
        .map(|(cache, tokens)| CachedSequence {
            cache,
            len: tokens.len(),
        })
        .collect();
    let hidden = decoder
        .forward_cached(&continuations.concat(), &mut batch, Adaptation::Base)
        .unwrap();
    let got = decoder.logits(&hidden, Adaptation::Base).unwrap();

    let separate: Vec<Tensor> = continuations
        .iter()
        .map(|continuation| {
            let whole = [prompt.as_slice(), continuation].concat();
            let logits = tiny::packed_logits(reference, &[whole], Adaptation::Base);
            logits.narrow(0, prompt.len(), continuation.len()).unwrap()
        })
        .collect();
    let want = Tensor::cat(&separate, 0).unwrap();
    tiny::assert_close(&got, &want, SAME, "cached");

    let mut packing = Packing::new();
    packing.push_shared(prompt.len(), &[3, 5, 1]);
    let tokens = [prompt.clone(), continuations.concat()].concat();
    let hidden = reference
        .forward_packed(&tokens, &Arc::new(packing), Adaptation::Base)
        .unwrap();
    let packed = reference
        .logits(&hidden.narrow(0, prompt.len(), 9).unwrap(), Adaptation::Base)
        .unwrap();
    tiny::assert_close(&packed, &want, SAME, "packed");

    for (cache, continuation) in caches.iter_mut().zip(&continuations) {
        assert_eq!(cache.positions(), prompt.len() + continuation.len());
        cache.truncate(0);
        assert_eq!(cache.positions(), prompt.len(), "the prompt is never shortened");
    }
}

#[test]
fn a_truncated_cache_goes_on_like_a_fresh_one() {
    for decoder in tiny::both_ways() {
        a_truncated_cache(&decoder, &tiny::tied());
    }
}

fn a_truncated_cache(decoder: &Decoder, reference: &Decoder) {
    let [long, next] = &tiny::sequences(&[20, 6], 4)[..] else {
        unreachable!()
    };
    for keep in [0, 1, 7, 20, 99] {
        let mut cache = tiny::cache(decoder);
        tiny::cached_logits(decoder, &mut cache, long, Adaptation::Base);
        cache.truncate(keep);
        let kept = keep.min(long.len());
        assert_eq!(cache.positions(), kept);
        let got = tiny::cached_logits(decoder, &mut cache, next, Adaptation::Base);

        let mut fresh = tiny::cache(reference);
        if kept > 0 {
            tiny::cached_logits(reference, &mut fresh, &long[..kept], Adaptation::Base);
        }
        let want = tiny::cached_logits(reference, &mut fresh, next, Adaptation::Base);
        tiny::assert_close(&got, &want, SAME, &format!("{kept} kept"));
    }
}

#[test]
fn a_sequence_beyond_the_last_position_is_an_error() {
    for decoder in tiny::both_ways() {
        let longest = decoder.config().max_positions;
        let mut cache = tiny::cache(&decoder);
        tiny::cached_logits(&decoder, &mut cache, &vec![5; longest], Adaptation::Base);
        let mut batch = [CachedSequence {
            cache: &mut cache,
            len: 1,
        }];
        let error = decoder.forward_cached(&[5], &mut batch, Adaptation::Base).unwrap_err();
        assert!(error.to_string().contains("256"), "{error}");
    }
}

/// Prompts longer than what is attended to in one go, together with short ones: on a device they are cut and grouped.
#[test]
fn long_and_short_prompts_in_one_pass_give_what_they_give_alone() {
    let [own, on_device] = tiny::both_ways();
    let inputs = tiny::sequences(&[200, 1, 129, 3, 128, 40, 1], 8);
    let caches = tiny::caches(&on_device);
    let mut together: Vec<KvCache> = inputs.iter().map(|_| caches.cache(0)).collect();
    let mut batch: Vec<CachedSequence<'_>> = together
        .iter_mut()
        .zip(&inputs)
        .map(|(cache, tokens)| CachedSequence {
            cache,
            len: tokens.len(),
        })
        .collect();
    let hidden = on_device
        .forward_cached(&inputs.concat(), &mut batch, Adaptation::Base)
        .unwrap();
    let got = on_device.logits(&hidden, Adaptation::Base).unwrap();
    let want = tiny::packed_logits(&own, &inputs, Adaptation::Base);
    tiny::assert_close(&got, &want, SAME, "together");
}

#[test]
fn a_space_on_a_device_is_a_bound_and_gives_back_what_is_let_go() {
    let [_, decoder] = tiny::both_ways();
    let caches = decoder.cache_space(30);
    let tokens = tiny::sequences(&[20], 5).remove(0);
    for _ in 0..50 {
        let mut cache = caches.cache(0);
        tiny::cached_logits(&decoder, &mut cache, &tokens, Adaptation::Base);
        // Shared: neither copies what they have in common.
        let mut fork = cache.fork(15, 0).unwrap();
        tiny::cached_logits(&decoder, &mut fork, &tokens[..5], Adaptation::Base);
        cache.truncate(10);
        tiny::cached_logits(&decoder, &mut cache, &tokens[..10], Adaptation::Base);
        let mut batch = [CachedSequence {
            cache: &mut fork,
            len: 1,
        }];
        let error = decoder.forward_cached(&[5], &mut batch, Adaptation::Base).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
    }
    let mut whole = caches.cache(0);
    tiny::cached_logits(&decoder, &mut whole, &[7; 30], Adaptation::Base);
    let other = tiny::cache(&decoder);
    assert!(whole.extend_from(&other, 30..30).is_err(), "another space");
}

/// Logits `[tokens, vocabulary]` of tokens that a cache takes up.
fn logits(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32]) -> Vec<f32> {
    // As the engine runs it: without spans the base, by products that do not depend on the batch.
    let logits = tiny::cached_logits(decoder, cache, tokens, Adaptation::Mixed(&[]));
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_cache_that_was_cut_forked_and_extended_is_as_one_that_was_filled_at_once() {
    let [own, on_device] = tiny::both_ways();
    cut_forked_and_extended(&own, 0.0, 200);
    cut_forked_and_extended(&on_device, 1e-4, 50);
}

fn cut_forked_and_extended(decoder: &Decoder, tolerance: f32, times: usize) {
    let space = tiny::caches(decoder);
    let mut rng = StdRng::seed_from_u64(9);
    for _ in 0..times {
        let text = tiny::sequences(&[24], rng.random()).remove(0);
        let (prompt, rest) = text.split_at(rng.random_range(1..8));
        let mut prefix = space.cache(prompt.len());
        logits(decoder, &mut prefix, prompt);
        let prefix = Arc::new(prefix);
        let mut cache = KvCache::continuing(prefix.clone(), 0);
        let mut known = 0;
        while known < rest.len() {
            let next = rng.random_range(1..=4).min(rest.len() - known);
            logits(decoder, &mut cache, &rest[known..known + next]);
            // Wrong tokens come and go.
            let wrong = tiny::sequences(&[rng.random_range(1..5)], rng.random()).remove(0);
            logits(decoder, &mut cache, &wrong);
            known += next;
            let here = prompt.len() + known;
            cache = match rng.random_range(0..3) {
                0 => {
                    cache.truncate(here);
                    cache
                }
                1 => cache.fork(here, 3).unwrap(),
                _ => {
                    let mut other = KvCache::continuing(prefix.clone(), 0);
                    other.extend_from(&cache, prompt.len()..here).unwrap();
                    other
                }
            };
            assert_eq!(cache.positions(), here);
        }
        let mut whole = space.cache(24);
        logits(decoder, &mut whole, &text);
        let probe = [5, 6, 7];
        let got = logits(decoder, &mut cache, &probe);
        let want = logits(decoder, &mut whole, &probe);
        let is_same = |(got, want): (&f32, &f32)| got.to_bits() == want.to_bits() || (got - want).abs() < tolerance;
        assert!(got.iter().zip(&want).all(is_same), "other logits");
        assert!(cache.extend_from(&whole, 0..2).is_err(), "not where it ends");
        assert!(cache.fork(200, 0).is_err(), "more than it holds");
        cache.truncate(0);
        assert_eq!(cache.positions(), prompt.len(), "a prefix is not cut");
    }
}
