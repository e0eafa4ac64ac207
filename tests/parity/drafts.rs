//! Drafts change the time that a text takes and nothing else: every token is the one that plain decoding writes, one token a step, one
//! text at a time, whatever shares the batch.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use detoxd::engine::{Completion, Engine, EngineConfig, EngineError, Generation, Sampling};
use detoxd::model::Decoder;
use detoxd::model::kv_cache::CachedSequence;
use detoxd::model::layers::{Adaptation, LoraSpan};
use detoxd::model::lora::LoraModel;
use detoxd::model::weights::{ModelFiles, Purpose};
use detoxd::prompt::RewritePrompt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::tiny;

const END: u32 = 2;

fn engine(decoder: &Arc<Decoder>, max_draft_tokens: usize) -> Engine {
    let config = EngineConfig {
        threads: 2,
        max_draft_tokens,
        max_sequences: 48,
        max_waiting: 1 << 20,
        max_prefill_tokens: 40,
        ..EngineConfig::default()
    };
    Engine::start(decoder.clone(), config).unwrap()
}

/// A text of the model's own making, as a source that a rewrite may follow in part: written once, then edited.
fn edited(text: &[u32], rng: &mut StdRng) -> Vec<u32> {
    let mut source = text.to_vec();
    for _ in 0..rng.random_range(0..4) {
        if source.is_empty() {
            break;
        }
        let at = rng.random_range(0..source.len());
        match rng.random_range(0..4) {
            0 => drop(source.remove(at)),
            1 => source.insert(at, rng.random_range(3..tiny::VOCABULARY)),
            2 => source[at] = rng.random_range(3..tiny::VOCABULARY),
            _ => {
                let other = rng.random_range(0..source.len());
                source.swap(at, other);
            }
        }
    }
    source
}

/// Likeliest tokens one by one, with nothing else in the pass.
fn plain(decoder: &Decoder, generation: &Generation) -> Vec<u32> {
    let mut cache = tiny::cache(decoder);
    let mut feed = generation.prompt.clone();
    let mut written = Vec::new();
    loop {
        let len = feed.len();
        let spans: Vec<LoraSpan> = generation
            .adapter
            .iter()
            .filter(|(_, strength)| *strength != 0.0)
            .flat_map(|(adapter, strength)| tiny::span(adapter, len, *strength))
            .collect();
        let mut sequences = [CachedSequence { cache: &mut cache, len }];
        let hidden = decoder
            .forward_cached(&feed, &mut sequences, Adaptation::Mixed(&spans))
            .unwrap();
        let last = hidden.narrow(0, len - 1, 1).unwrap();
        let spans: Vec<LoraSpan> = spans.into_iter().map(|span| LoraSpan { rows: 0..1, ..span }).collect();
        let logits = decoder.logits(&last, Adaptation::Mixed(&spans)).unwrap();
        let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
        let mut best = 0;
        for (token, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = token;
            }
        }
        if best as u32 == generation.end {
            return written;
        }
        written.push(best as u32);
        if written.len() == generation.max_new_tokens {
            return written;
        }
        feed = vec![best as u32];
    }
}

/// Requests of every kind, with sources that the texts follow for the most part.
async fn requests(decoder: &Arc<Decoder>, sampling: Sampling, count: usize, seed: u64) -> Vec<Generation> {
    let one = Arc::new(tiny::adapter(decoder));
    let two = Arc::new(tiny::other_adapter(decoder));
    let adapters: [Option<(Arc<LoraModel>, f32)>; 6] = [
        Some((one.clone(), 1.0)),
        None,
        Some((two.clone(), 1.0)),
        Some((one.clone(), 0.4)),
        Some((two, 1.6)),
        Some((one, 0.0)),
    ];
    let mut rng = StdRng::seed_from_u64(seed);
    let writer = engine(decoder, 0);
    let mut requests = Vec::new();
    for number in 0..count {
        let mut prompt: Vec<u32> = (0..rng.random_range(1..14))
            .map(|_| rng.random_range(3..tiny::VOCABULARY))
            .collect();
        // Some prompts are those of others, or begin as they do.
        if let Some(other) = requests.choose(&mut rng)
            && rng.random_bool(0.2)
        {
            let other: &Generation = other;
            prompt.splice(0..0, other.prompt.iter().copied());
            prompt.truncate(16);
        }
        let mut request = Generation {
            prompt,
            end: END,
            max_new_tokens: rng.random_range(1..24),
            candidates: *[1, 1, 1, 2, 5].choose(&mut rng).unwrap(),
            sampling: Sampling {
                seed: number as u64,
                ..sampling
            },
            adapter: adapters.choose(&mut rng).unwrap().clone(),
            guidance: *[0.0, 0.0, 0.0, 0.7].choose(&mut rng).unwrap(),
            deadline: None,
            draft: Vec::new(),
            fairness: rng.random_range(0..5),
        };
        let written = writer.generate(request.clone()).await.unwrap();
        let written = written.completions.choose(&mut rng).unwrap();
        // A random model seldom ends by itself: let it end with a token that it writes.
        if let Some(token) = written.tokens.last()
            && rng.random_bool(0.5)
        {
            request.end = *token;
        }
        request.draft = edited(&written.tokens, &mut rng);
        requests.push(request);
    }
    requests
}

#[track_caller]
fn assert_same(got: &[Completion], want: &[Completion], number: usize) {
    assert_near(got, want, number, 0.0);
}

/// The same texts, of likelihoods that differ by at most `tolerance`.
#[track_caller]
fn assert_near(got: &[Completion], want: &[Completion], number: usize, tolerance: f32) {
    for (candidate, (got, want)) in got.iter().zip(want).enumerate() {
        let place = format!("request {number}, candidate {candidate}");
        assert_eq!((&got.tokens, got.finished), (&want.tokens, want.finished), "{place}");
        assert!(
            (got.mean_nll - want.mean_nll).abs() <= tolerance,
            "{place}: {got:?}, expected {want:?}"
        );
    }
    assert_eq!(got.len(), want.len());
}

const SAMPLING: Sampling = Sampling {
    temperature: 0.7,
    top_p: 0.95,
    seed: 0,
};

async fn compare(decoder: Arc<Decoder>, sampling: Sampling, tolerance: f32, count: usize, seed: u64) {
    let requests = requests(&decoder, sampling, count, seed).await;
    let one_by_one = engine(&decoder, 0);
    let mut want = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let bare = Generation {
            draft: Vec::new(),
            ..request.clone()
        };
        let completions = one_by_one.generate(bare).await.unwrap().completions;
        if request.guidance == 0.0 {
            assert_eq!(completions[0].tokens, plain(&decoder, request), "request {number}");
        }
        want.push(completions);
    }
    let together = engine(&decoder, 8);
    let mut rng = StdRng::seed_from_u64(seed + 1);
    let mut tasks = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let (engine, request) = (together.clone(), request.clone());
        let leaves = rng.random_bool(0.1);
        let task = tokio::spawn(async move {
            if leaves {
                let work = engine.generate(request);
                let _ = tokio::time::timeout(Duration::from_millis(number as u64 % 20), work).await;
                return None;
            }
            Some(engine.generate(request).await.unwrap().completions)
        });
        tasks.push(task);
        if number % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for (number, (task, want)) in tasks.into_iter().zip(&want).enumerate() {
        if let Some(got) = task.await.unwrap() {
            assert_near(&got, want, number, tolerance);
        }
    }
    let (proposed, accepted) = together.activity().drafts();
    assert!(proposed > 2 * count as u64, "{proposed} tokens drafted");
    assert!(accepted > proposed / 5, "{accepted} of {proposed} accepted");
    assert!(together.activity().prompt_tokens().1 > 0, "no prompt was shared");
    assert!(
        2 * together.steps() < one_by_one.steps(),
        "{} steps, {} one by one",
        together.steps(),
        one_by_one.steps()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_in_mixed_batches_write_what_plain_decoding_writes() {
    compare(Arc::new(tiny::tied()), SAMPLING, 0.0, 1500, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_so_they_do_with_quantised_weights() {
    compare(
        Arc::new(tiny::decoder("tied", Purpose::ServeQuantized)),
        SAMPLING,
        0.0,
        1500,
        7,
    )
    .await;
}

/// On a device products depend on the batch, so that likelihoods do to rounding; with few tokens to draw from texts do not.
#[tokio::test(flavor = "multi_thread")]
async fn and_so_they_do_on_a_device() {
    let sampling = Sampling { top_p: 0.6, ..SAMPLING };
    compare(Arc::new(tiny::decoder("tied", tiny::ON_DEVICE)), sampling, 1e-4, 150, 3).await;
}

/// The likeliest tokens after a prompt, so many, whatever they are.
fn greedy(prompt: Vec<u32>, max_new_tokens: usize) -> Generation {
    Generation {
        prompt,
        end: u32::MAX,
        max_new_tokens,
        candidates: 1,
        sampling: Sampling {
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
        },
        adapter: None,
        guidance: 0.0,
        deadline: None,
        draft: Vec::new(),
        fairness: 0,
    }
}

#[tokio::test]
async fn a_draft_that_is_right_saves_steps_and_a_wrong_one_costs_none() {
    let decoder = Arc::new(tiny::tied());
    let bare = engine(&decoder, 0);
    let request = greedy(vec![5, 6, 7], 40);
    let want = bare.generate(request.clone()).await.unwrap().completions;
    assert_eq!(bare.steps(), 40);
    let right = engine(&decoder, 4);
    let draft = want[0].tokens.clone();
    let got = right
        .generate(Generation {
            draft,
            ..request.clone()
        })
        .await
        .unwrap();
    assert_eq!(got.completions, want);
    assert!(right.steps() < 30, "{} steps", right.steps());
    let wrong = engine(&decoder, 4);
    let draft = want[0]
        .tokens
        .iter()
        .map(|token| (token + 1) % tiny::VOCABULARY)
        .collect();
    let got = wrong.generate(Generation { draft, ..request }).await.unwrap();
    assert_eq!(got.completions, want);
    assert!(wrong.steps() <= 40, "{} steps", wrong.steps());
}

#[tokio::test]
async fn a_request_of_many_texts_does_not_hold_up_a_small_one() {
    let decoder = Arc::new(tiny::tied());
    let engine = engine(&decoder, 0);
    let request = |seed: u64, fairness: u64| Generation {
        prompt: tiny::sequences(&[12], seed).remove(0),
        end: u32::MAX,
        max_new_tokens: 20,
        candidates: 4,
        sampling: Sampling {
            temperature: 0.8,
            top_p: 0.9,
            seed,
        },
        adapter: None,
        guidance: 0.0,
        deadline: None,
        draft: Vec::new(),
        fairness,
    };
    let start = |request: Generation| {
        let engine = engine.clone();
        tokio::spawn(async move {
            let result = engine.generate(request).await.unwrap();
            (result, engine.steps())
        })
    };
    let large: Vec<_> = (0..500).map(|seed| start(request(seed, 1))).collect();
    while engine.steps() < 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for seed in 0..5 {
        let before = engine.steps();
        let (_, after) = start(request(1000 + seed, 2 + seed)).await.unwrap();
        // Its own 20 steps, and what passes until it is noticed.
        assert!(after - before <= 30, "{} steps", after - before);
    }
    assert!(!large.iter().all(tokio::task::JoinHandle::is_finished));
    for task in large {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_long_prompt_is_taken_in_pieces_while_others_write() {
    let decoder = Arc::new(tiny::tied());
    let engine = engine(&decoder, 0);
    let request = |length: usize, max_new_tokens: usize| Generation {
        fairness: length as u64,
        ..greedy(tiny::sequences(&[length], 3).remove(0), max_new_tokens)
    };
    let long = request(200, 3);
    let want = plain(&decoder, &long);
    let (long, short) = tokio::join!(engine.generate(long), engine.generate(request(5, 20)));
    assert_eq!(long.unwrap().completions[0].tokens, want);
    assert_eq!(short.unwrap().completions[0].tokens.len(), 20);
    // 205 prompt tokens at 40 a step are six steps, within the 20 of the short one; one after the other they would take 28.
    assert!(engine.steps() < 28, "{} steps", engine.steps());
    let registry = prometheus::Registry::new();
    engine.activity().register(&registry).unwrap();
    let metrics = registry.gather();
    let tokens = metrics
        .iter()
        .find(|family| family.name() == "detoxd_batch_tokens")
        .unwrap();
    let histogram = tokens.get_metric()[0].get_histogram();
    let small = histogram
        .get_bucket()
        .iter()
        .find(|bucket| bucket.upper_bound() == 64.0)
        .unwrap();
    assert_eq!(
        small.cumulative_count(),
        histogram.get_sample_count(),
        "a step was large"
    );
}

#[tokio::test]
async fn what_waits_too_long_hears_so_at_once() {
    let decoder = Arc::new(tiny::tied());
    let engine = Engine::start(
        decoder.clone(),
        EngineConfig {
            max_sequences: 1,
            threads: 1,
            ..EngineConfig::default()
        },
    )
    .unwrap();
    let request = |deadline| Generation {
        prompt: vec![4, 5],
        end: u32::MAX,
        max_new_tokens: 250,
        candidates: 16,
        sampling: Sampling {
            temperature: 1.0,
            top_p: 1.0,
            seed: 0,
        },
        adapter: None,
        guidance: 0.0,
        deadline,
        draft: Vec::new(),
        fairness: 0,
    };
    let busy = tokio::spawn({
        let (engine, request) = (engine.clone(), request(None));
        async move { engine.generate(request).await }
    });
    while engine.steps() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let start = Instant::now();
    let late = engine.generate(request(Some(start + Duration::from_millis(20)))).await;
    assert!(matches!(late, Err(EngineError::DeadlinePassed)));
    assert!(!busy.is_finished(), "it waited for the batch");
    busy.abort();
}

/// Every sentence of a file (a field `toxic` in each line) under the default adapter: drafts and a full batch against one by one.
/// Runs where `DETOXD_TEST_BASE` names SmolLM2's GGUF file and `DETOXD_TEST_SENTENCES` the sentences.
#[tokio::test(flavor = "multi_thread")]
async fn real_sentences_are_rewritten_the_same() {
    let (Some(base), Some(sentences)) = (crate::base_model(), std::env::var_os("DETOXD_TEST_SENTENCES")) else {
        return;
    };
    let files = ModelFiles::open(&base).unwrap();
    let tokenizer = files.tokenizer().unwrap();
    let prompt = RewritePrompt::new(&tokenizer).unwrap();
    let decoder = Arc::new(files.load(Purpose::ServeQuantized, &Device::Cpu).unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/adapters/smollm2-135m/default-1");
    let adapter = Arc::new(LoraModel::load(&folder, decoder.config(), &Device::Cpu).unwrap());
    let requests: Vec<Generation> = std::fs::read_to_string(sentences)
        .unwrap()
        .lines()
        .enumerate()
        .map(|(number, line)| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let source = tokenizer.encode(row["toxic"].as_str().unwrap().trim()).unwrap();
            Generation {
                prompt: prompt.tokens(&source),
                end: prompt.end(),
                max_new_tokens: source.len() + source.len() / 2 + 8,
                candidates: 1 + number % 2,
                sampling: Sampling {
                    temperature: 0.8,
                    top_p: 0.95,
                    seed: number as u64,
                },
                adapter: Some((adapter.clone(), [1.0, 0.75, 1.25][number % 3])),
                guidance: 0.0,
                deadline: None,
                draft: source,
                fairness: number as u64 % 7,
            }
        })
        .collect();
    let (one_by_one, together) = (engine(&decoder, 0), engine(&decoder, 16));
    let tasks: Vec<_> = requests
        .iter()
        .map(|request| {
            let (engine, request) = (together.clone(), request.clone());
            tokio::spawn(async move { engine.generate(request).await.unwrap().completions })
        })
        .collect();
    for (number, (task, request)) in tasks.into_iter().zip(&requests).enumerate() {
        let want = one_by_one.generate(request.clone()).await.unwrap().completions;
        assert_same(&task.await.unwrap(), &want, number);
    }
}
