//! What the engine's scheduler gives, beside a plain loop over whole sequences.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_nn::ops::log_softmax;
use detoxd::engine::{Completion, Engine, EngineConfig, EngineError, Generation, LikelihoodRequest, Sampling};
use detoxd::model::Decoder;
use detoxd::model::layers::Adaptation;
use detoxd::model::lora::LoraModel;
use detoxd::model::ops::Target;
use detoxd::model::packing::Packing;

use crate::tiny;

/// No token of the vocabulary, so that only the limit ends a text.
const NEVER: u32 = u32::MAX;

fn engine(config: EngineConfig) -> Engine {
    engine_on(tiny::tied(), config)
}

fn engine_on(decoder: Decoder, config: EngineConfig) -> Engine {
    Engine::start(Arc::new(decoder), config).unwrap()
}

fn limits() -> EngineConfig {
    EngineConfig {
        threads: 1,
        ..EngineConfig::default()
    }
}

fn generation(prompt: &[u32]) -> Generation {
    Generation {
        prompt: prompt.to_vec(),
        end: NEVER,
        max_new_tokens: 24,
        candidates: 1,
        sampling: Sampling {
            temperature: 0.9,
            top_p: 0.95,
            seed: 5,
        },
        adapter: None,
        guidance: 0.0,
        deadline: None,
        draft: Vec::new(),
        fairness: 0,
    }
}

/// Keeps the engine busy for a good while.
fn endless() -> Generation {
    Generation {
        candidates: 128,
        max_new_tokens: 250,
        ..generation(&[7, 8, 9])
    }
}

#[tokio::test]
async fn a_busy_engine_says_how_long_one_would_wait() {
    let engine = engine(limits());
    assert!(
        engine.check_wait(Duration::ZERO).is_ok(),
        "there is nothing to wait for"
    );
    engine.generate(generation(&[4, 5])).await.unwrap();
    assert!(engine.check_wait(Duration::ZERO).is_ok());
    let busy = tokio::spawn({
        let engine = engine.clone();
        async move { engine.generate(endless()).await }
    });
    while engine.activity().expected_wait().is_zero() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    match engine.check_wait(Duration::ZERO) {
        Err(EngineError::Overloaded { retry_after }) => assert!(retry_after > Duration::ZERO),
        other => panic!("{other:?}"),
    }
    assert!(engine.check_wait(Duration::from_secs(3600)).is_ok());
    busy.abort();
}

fn likelihood(decoder: &Decoder, tokens: &[u32], first: usize, adaptation: Adaptation<'_>) -> Vec<f32> {
    let mut packing = Packing::new();
    packing.push_sequence(tokens.len());
    let hidden = decoder.forward_packed(tokens, &Arc::new(packing), adaptation).unwrap();
    let targets: Vec<Target> = (first..tokens.len())
        .map(|at| Target {
            row: at as u32 - 1,
            token: tokens[at],
        })
        .collect();
    decoder
        .cross_entropy(&hidden, &targets, adaptation)
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The likeliest token, over and over, without any cache.
fn greedy(decoder: &Decoder, generation: &Generation) -> Completion {
    let adaptation = || match &generation.adapter {
        Some((adapter, strength)) => {
            assert_eq!(*strength, 1.0);
            Adaptation::Lora(adapter)
        }
        None => Adaptation::Base,
    };
    let mut tokens = generation.prompt.clone();
    let mut finished = false;
    while !finished && tokens.len() < generation.prompt.len() + generation.max_new_tokens {
        let log_probabilities = |adaptation: Adaptation<'_>| -> Vec<f32> {
            let logits = tiny::packed_logits(decoder, &[tokens.clone()], adaptation);
            let last = logits.get(tokens.len() - 1).unwrap();
            log_softmax(&last, 0).unwrap().to_vec1().unwrap()
        };
        let own = log_probabilities(adaptation());
        let base = log_probabilities(Adaptation::Base);
        let floor = own.iter().copied().fold(f32::MIN, f32::max) + 0.1f32.ln();
        let score = |token: usize| own[token] + generation.guidance * (own[token] - base[token]);
        let plausible = (0..own.len()).filter(|&token| own[token] >= floor);
        let next = plausible.max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap() as u32;
        tokens.push(next);
        finished = next == generation.end;
    }
    let nll = likelihood(decoder, &tokens, generation.prompt.len(), adaptation());
    let end = tokens.len() - usize::from(finished);
    Completion {
        mean_nll: nll.iter().sum::<f32>() / nll.len() as f32,
        tokens: tokens[generation.prompt.len()..end].to_vec(),
        finished,
    }
}

#[track_caller]
fn assert_same(got: &[Completion], want: &[Completion]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert_eq!((&got.tokens, got.finished), (&want.tokens, want.finished));
        assert!(
            (got.mean_nll - want.mean_nll).abs() < 1e-4,
            "{got:?}, expected {want:?}"
        );
    }
}

/// Requests of every kind at once: two adapters, strengths, the base; one candidate or several; seeds.
fn assorted(decoder: &Decoder) -> Vec<Generation> {
    let one = Arc::new(tiny::adapter(decoder));
    let two = Arc::new(tiny::other_adapter(decoder));
    let adapters: [Option<(Arc<LoraModel>, f32)>; 7] = [
        Some((one.clone(), 1.0)),
        None,
        Some((two.clone(), 1.0)),
        Some((one.clone(), 0.5)),
        Some((two, 1.7)),
        Some((one.clone(), 0.0)),
        Some((one, 1.0)),
    ];
    let prompts = tiny::sequences(&[3, 9, 1, 14, 6, 2, 11, 30, 5, 8, 1, 4, 7, 2], 30);
    prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| Generation {
            candidates: 1 + index % 4,
            max_new_tokens: 5 + 3 * (index % 6),
            adapter: adapters[index % adapters.len()].clone(),
            guidance: [0.0, 0.0, 0.8][index % 3],
            // Few tokens to draw from: what is drawn then does not hang on a logit's last bit.
            sampling: Sampling {
                temperature: 0.7,
                top_p: 0.6,
                seed: index as u64,
            },
            ..generation(prompt)
        })
        .collect()
}

#[tokio::test]
async fn greedy_text_is_that_of_a_plain_loop() {
    for decoder in tiny::both_ways() {
        greedy_text(decoder).await;
    }
}

async fn greedy_text(decoder: Decoder) {
    let adapter = Arc::new(tiny::adapter(&decoder));
    let engine = engine_on(decoder, limits());
    let decoder = tiny::tied();
    for (prompt, adapter, guidance) in tiny::sequences(&[1, 6, 12, 40], 20).iter().flat_map(|prompt| {
        let adapter = Some((adapter.clone(), 1.0));
        [
            (prompt, None, 0.0),
            (prompt, adapter.clone(), 0.0),
            (prompt, adapter, 1.5),
        ]
    }) {
        let mut request = Generation {
            adapter,
            guidance,
            ..generation(prompt)
        };
        let want = greedy(&decoder, &request);
        assert!(!want.finished);
        let got = engine.generate(request.clone()).await.unwrap();
        assert_same(&got.completions, std::slice::from_ref(&want));
        // The same, when a token in its midst is the one that ends it.
        request.end = want.tokens[want.tokens.len() / 2];
        let want = greedy(&decoder, &request);
        assert!(want.finished);
        let got = engine.generate(request).await.unwrap();
        assert_same(&got.completions, &[want]);
    }
}

#[tokio::test]
async fn requests_at_once_get_what_they_get_one_by_one() {
    requests_at_once(tiny::tied).await;
    requests_at_once(on_device).await;
}

fn on_device() -> Decoder {
    tiny::decoder("tied", tiny::ON_DEVICE)
}

/// One by one by our loops, at once by a decoder.
async fn requests_at_once(decoder: fn() -> Decoder) {
    let requests = assorted(&decoder());
    let alone = engine(limits());
    let mut want = Vec::new();
    for request in &requests {
        want.push(alone.generate(request.clone()).await.unwrap().completions);
    }
    for (max_sequences, max_prefill_tokens, shared) in [(64, 512, 4), (3, 10, 1)] {
        let together = engine_on(
            decoder(),
            EngineConfig {
                max_sequences,
                max_prefill_tokens,
                ..limits()
            },
        );
        let tasks: Vec<_> = requests
            .iter()
            .map(|request| {
                let (engine, request) = (together.clone(), request.clone());
                tokio::spawn(async move { engine.generate(request).await })
            })
            .collect();
        for (task, want) in tasks.into_iter().zip(&want) {
            assert_same(&task.await.unwrap().unwrap().completions, want);
        }
        assert!(
            together.steps() < alone.steps() / shared,
            "{} steps, {} one by one: nothing was batched",
            together.steps(),
            alone.steps()
        );
    }
}

#[tokio::test]
async fn when_only_one_fits_into_memory_the_others_wait_their_turn() {
    only_one_fits(tiny::tied(), 1).await;
    // On a device each that is larger than all there is gets a space of its own, and smaller ones the usual one again.
    only_one_fits(on_device(), 1).await;
    only_one_fits(on_device(), 30).await;
}

async fn only_one_fits(decoder: Decoder, max_cached_tokens: usize) {
    let requests = assorted(&decoder);
    let alone = engine(limits());
    let narrow = engine_on(
        decoder,
        EngineConfig {
            max_cached_tokens,
            ..limits()
        },
    );
    let tasks: Vec<_> = requests
        .iter()
        .map(|request| {
            let (engine, request) = (narrow.clone(), request.clone());
            tokio::spawn(async move { engine.generate(request).await })
        })
        .collect();
    for (task, request) in tasks.into_iter().zip(&requests) {
        let want = alone.generate(request.clone()).await.unwrap();
        assert_same(&task.await.unwrap().unwrap().completions, &want.completions);
    }
    if max_cached_tokens == 1 {
        assert_eq!(narrow.steps(), alone.steps(), "one at a time");
    }
}

#[tokio::test]
async fn the_same_seed_gives_the_same_samples() {
    let engine = engine(limits());
    let sample = async |seed: u64| {
        let mut request = generation(&[5, 6, 7]);
        request.candidates = 4;
        request.sampling.seed = seed;
        engine.generate(request).await.unwrap().completions
    };
    let (first, again, other) = (sample(1).await, sample(1).await, sample(2).await);
    assert_same(&again, &first);
    assert_eq!(first[0], other[0], "the first candidate is greedy");
    for number in 1..4 {
        assert_ne!(first[number].tokens, other[number].tokens);
        assert_ne!(first[number].tokens, first[number - 1].tokens);
    }
}

#[tokio::test]
async fn a_likelihood_is_that_of_the_whole_sequence() {
    for decoder in tiny::both_ways() {
        likelihood_of(decoder).await;
    }
}

async fn likelihood_of(decoder: Decoder) {
    let adapter = Arc::new(tiny::adapter(&decoder));
    let engine = engine_on(decoder, limits());
    let decoder = tiny::tied();
    let texts = [tiny::sequences(&[25, 3, 40, 1], 21), vec![Vec::new()]].concat();
    for adapter in [None, Some((adapter.clone(), 1.0))] {
        let adaptation = adapter
            .as_ref()
            .map_or(Adaptation::Base, |(adapter, _)| Adaptation::Lora(adapter));
        let request = LikelihoodRequest {
            texts: texts.clone(),
            adapter: adapter.clone(),
            fairness: None,
        };
        let got = engine.likelihoods(request).await.unwrap();
        assert_eq!(got.len(), texts.len());
        for (got, tokens) in got.iter().zip(&texts) {
            let want = match tokens.len() {
                0 | 1 => Vec::new(),
                _ => likelihood(&decoder, tokens, 1, adaptation),
            };
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-4));
        }
    }
}

/// Waits until the engine has begun with what it was given.
async fn begun(engine: &Engine) {
    let steps = engine.steps();
    while engine.steps() == steps {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_dropped_request_makes_room_at_once() {
    let engine = engine(EngineConfig {
        max_sequences: 1,
        ..limits()
    });
    let busy = tokio::spawn({
        let engine = engine.clone();
        async move { engine.generate(endless()).await }
    });
    begun(&engine).await;
    busy.abort();
    assert!(busy.await.unwrap_err().is_cancelled());
    let request = generation(&[4, 5]);
    let got = engine.generate(request.clone()).await.unwrap();
    assert_eq!(got.completions[0].tokens.len(), request.max_new_tokens);
    let steps = engine.steps();
    assert!(steps < 150, "{steps} steps: the dropped request ran on");
}

#[tokio::test]
async fn a_deadline_ends_a_request_and_nothing_else() {
    let engine = engine(limits());
    let late = Generation {
        deadline: Some(Instant::now()),
        ..generation(&[4, 5])
    };
    let error = engine.generate(late).await.unwrap_err();
    assert!(matches!(error, EngineError::DeadlinePassed), "{error}");

    let soon = Generation {
        deadline: Some(Instant::now() + Duration::from_millis(20)),
        ..endless()
    };
    let beside = generation(&[4, 5]);
    let (soon, beside) = tokio::join!(engine.generate(soon), engine.generate(beside));
    let error = soon.unwrap_err();
    assert!(matches!(error, EngineError::DeadlinePassed), "{error}");
    assert_eq!(beside.unwrap().completions[0].tokens.len(), 24);
    assert!(engine.steps() < 250);
}

#[tokio::test]
async fn a_full_queue_is_said_to_be_full() {
    let engine = engine(EngineConfig {
        max_waiting: 1,
        max_sequences: 1,
        ..limits()
    });
    let start = |generation: Generation| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.generate(generation).await })
    };
    let busy = start(endless());
    begun(&engine).await;
    let waiting = start(generation(&[4, 5]));
    tokio::task::yield_now().await;
    let error = engine.generate(generation(&[6])).await.unwrap_err();
    assert!(matches!(error, EngineError::Overloaded { .. }), "{error}");
    busy.abort();
    assert!(waiting.await.unwrap().is_ok());
}

#[tokio::test]
async fn what_cannot_be_computed_is_refused_before_it_meets_the_batch() {
    let engine = engine(limits());
    let good = generation(&[4, 5]);
    for (bad, what) in [
        (generation(&[]), "prompt"),
        (
            Generation {
                candidates: 0,
                ..good.clone()
            },
            "candidates",
        ),
        (
            Generation {
                max_new_tokens: 0,
                ..good.clone()
            },
            "tokens",
        ),
        (
            Generation {
                max_new_tokens: 255,
                ..good.clone()
            },
            "256",
        ),
        (
            Generation {
                guidance: f32::NAN,
                ..good.clone()
            },
            "guidance",
        ),
        (generation(&[4, 300]), "vocabulary"),
    ] {
        let error = engine.generate(bad).await.unwrap_err();
        assert!(
            matches!(&error, EngineError::Invalid(reason) if reason.contains(what)),
            "{error}"
        );
    }
    let unknown = LikelihoodRequest {
        texts: vec![vec![4, 300]],
        adapter: None,
        fairness: None,
    };
    assert!(matches!(
        engine.likelihoods(unknown).await,
        Err(EngineError::Invalid(_))
    ));
    assert!(
        engine
            .generate(Generation {
                max_new_tokens: 254,
                ..good
            })
            .await
            .is_ok()
    );
}
