use std::sync::Arc;

use candle_core::Tensor;
use detoxd::model::Decoder;
use detoxd::model::kv_cache::{CachedSequence, KvCache};
use detoxd::model::layers::{Adaptation, LoraSpan};
use detoxd::model::lora::LoraModel;
use detoxd::model::packing::Packing;

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
        cache: tiny::cache(decoder),
    })
    .collect()
}

#[test]
fn a_mixed_batch_gives_what_its_requests_give_one_by_one() {
    let decoder = tiny::tied();
    let (mut mixed, mut alone) = (requests(&decoder), requests(&decoder));
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
            .map(|(request, tokens)| request.alone(&decoder, tokens))
            .collect();
        tiny::assert_close(&got, &Tensor::cat(&want, 0).unwrap(), SAME, &format!("round {round}"));
    }
}

#[test]
fn token_by_token_gives_what_the_whole_sequence_gives() {
    let decoder = tiny::tied();
    let adapter = Arc::new(tiny::adapter(&decoder));
    let sequence = tiny::sequences(&[40], 1);
    let whole = tiny::packed_logits(&decoder, &sequence, Adaptation::Lora(&adapter));
    let mut cache = tiny::cache(&decoder);
    let spans = tiny::span(&adapter, 1, 1.0);
    for (position, token) in sequence[0].iter().enumerate() {
        assert_eq!(cache.positions(), position);
        let got = tiny::cached_logits(&decoder, &mut cache, &[*token], Adaptation::Mixed(&spans));
        let want = whole.narrow(0, position, 1).unwrap();
        tiny::assert_close(&got, &want, SAME, &format!("position {position}"));
    }
}

#[test]
fn a_shared_prompt_gives_what_copies_of_it_give() {
    let decoder = tiny::tied();
    let prompt = &tiny::sequences(&[12], 2)[0];
    let continuations = tiny::sequences(&[3, 5, 1], 3);
    let mut shared = tiny::cache(&decoder);
    tiny::cached_logits(&decoder, &mut shared, prompt, Adaptation::Base);
    let shared = Arc::new(shared);
    let mut caches: Vec<KvCache> = continuations
        .iter()
        .map(|_| KvCache::continuing(shared.clone(), decoder.config(), 8))
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
            let logits = tiny::packed_logits(&decoder, &[whole], Adaptation::Base);
            logits.narrow(0, prompt.len(), continuation.len()).unwrap()
        })
        .collect();
    let want = Tensor::cat(&separate, 0).unwrap();
    tiny::assert_close(&got, &want, SAME, "cached");

    let mut packing = Packing::new();
    packing.push_shared(prompt.len(), &[3, 5, 1]);
    let tokens = [prompt.clone(), continuations.concat()].concat();
    let hidden = decoder
        .forward_packed(&tokens, &Arc::new(packing), Adaptation::Base)
        .unwrap();
    let packed = decoder
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
    let decoder = tiny::tied();
    let [long, next] = &tiny::sequences(&[20, 6], 4)[..] else {
        unreachable!()
    };
    for keep in [0, 1, 7, 20, 99] {
        let mut cache = tiny::cache(&decoder);
        tiny::cached_logits(&decoder, &mut cache, long, Adaptation::Base);
        cache.truncate(keep);
        let kept = keep.min(long.len());
        assert_eq!(cache.positions(), kept);
        let got = tiny::cached_logits(&decoder, &mut cache, next, Adaptation::Base);

        let mut fresh = tiny::cache(&decoder);
        if kept > 0 {
            tiny::cached_logits(&decoder, &mut fresh, &long[..kept], Adaptation::Base);
        }
        let want = tiny::cached_logits(&decoder, &mut fresh, next, Adaptation::Base);
        tiny::assert_close(&got, &want, SAME, &format!("{kept} kept"));
    }
}

#[test]
fn a_sequence_beyond_the_last_position_is_an_error() {
    let decoder = tiny::tied();
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
