//! Rewriting sentence by sentence, with drafts from the source and without, through the engine.
//!
//! `cargo bench --bench rewrite -- MODEL ADAPTER SENTENCES.jsonl [--count N] [--candidates N] [--in-flight N] [--drafts N] [--runs N]`: a GGUF file or
//! a folder, a folder in PEFT's layout, and lines with a field `toxic`. The two ways take turns; prints medians, and fails when they differ in a token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use candle_core::Device;
use detoxd::engine::{Completion, Engine, EngineConfig, Generation, Sampling};
use detoxd::model::Decoder;
use detoxd::model::lora::LoraModel;
use detoxd::model::weights::{ModelFiles, Purpose};
use detoxd::prompt::RewritePrompt;

struct Settings {
    files: Vec<PathBuf>,
    count: usize,
    candidates: usize,
    in_flight: usize,
    drafts: usize,
    runs: usize,
}

/// What a run came to.
struct Run {
    seconds: f64,
    steps: u64,
    computed: f64,
    drafts: (u64, u64),
    completions: Vec<Vec<Completion>>,
}

fn settings() -> anyhow::Result<Settings> {
    let mut settings = Settings {
        files: Vec::new(),
        count: 200,
        candidates: 1,
        in_flight: 1,
        drafts: EngineConfig::default().max_draft_tokens,
        runs: 5,
    };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let mut number = || -> anyhow::Result<usize> { Ok(arguments.next().context("a number is missing")?.parse()?) };
        match argument.as_str() {
            "--count" => settings.count = number()?,
            "--candidates" => settings.candidates = number()?,
            "--in-flight" => settings.in_flight = number()?,
            "--drafts" => settings.drafts = number()?,
            "--runs" => settings.runs = number()?,
            _ => settings.files.push(argument.into()),
        }
    }
    Ok(settings)
}

fn sentences(path: &Path, count: usize) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    text.lines()
        .take(count)
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line)?;
            Ok(row["toxic"]
                .as_str()
                .context("a line has no `toxic`")?
                .trim()
                .to_owned())
        })
        .collect()
}

async fn run(
    decoder: &Arc<Decoder>,
    generations: &[Generation],
    in_flight: usize,
    drafts: usize,
) -> anyhow::Result<Run> {
    let config = EngineConfig {
        max_draft_tokens: drafts,
        ..EngineConfig::default()
    };
    let engine = Engine::start(decoder.clone(), config)?;
    // The first steps measure what a step costs.
    for generation in &generations[..generations.len().min(3)] {
        engine.generate(generation.clone()).await?;
    }
    let (steps, computed, drafted) = (
        engine.steps(),
        engine.activity().computed_tokens(),
        engine.activity().drafts(),
    );
    let started = Instant::now();
    let mut completions = Vec::new();
    for chunk in generations.chunks(in_flight) {
        let tasks: Vec<_> = chunk
            .iter()
            .map(|generation| {
                let (engine, generation) = (engine.clone(), generation.clone());
                tokio::spawn(async move { engine.generate(generation).await })
            })
            .collect();
        for task in tasks {
            completions.push(task.await??.completions);
        }
    }
    let after = engine.activity().drafts();
    Ok(Run {
        seconds: started.elapsed().as_secs_f64(),
        steps: engine.steps() - steps,
        computed: engine.activity().computed_tokens() - computed,
        drafts: (after.0 - drafted.0, after.1 - drafted.1),
        completions,
    })
}

fn report(name: &str, runs: &mut [Run]) -> f64 {
    runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let run = &runs[runs.len() / 2];
    let written: usize = run
        .completions
        .iter()
        .flatten()
        .map(|completion| completion.tokens.len() + usize::from(completion.finished))
        .sum();
    let (proposed, accepted) = run.drafts;
    println!(
        "{name:8} {:8.1} tokens/s {:7.2} s {:6} passes {:6.2} tokens written and {:6.2} computed a pass; {accepted} of {proposed} drafted accepted ({:.1}%)",
        written as f64 / run.seconds,
        run.seconds,
        run.steps,
        written as f64 / run.steps as f64,
        run.computed / run.steps as f64,
        100.0 * accepted as f64 / proposed.max(1) as f64,
    );
    run.seconds
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = settings()?;
    let [model, adapter, sentences_file] = settings.files.as_slice() else {
        println!("usage: cargo bench --bench rewrite -- MODEL ADAPTER SENTENCES.jsonl");
        return Ok(());
    };
    let files = ModelFiles::open(model)?;
    let tokenizer = files.tokenizer()?;
    let prompt = RewritePrompt::new(&tokenizer)?;
    let decoder = Arc::new(files.load(Purpose::ServeQuantized, &Device::Cpu)?);
    let adapter = Arc::new(LoraModel::load(adapter, decoder.config(), &Device::Cpu)?);
    let generations: Vec<Generation> = sentences(sentences_file, settings.count)?
        .iter()
        .map(|sentence| {
            let source = tokenizer.encode(sentence)?;
            Ok(Generation {
                prompt: prompt.tokens(&source),
                end: prompt.end(),
                max_new_tokens: source.len() + source.len() / 2 + 8,
                candidates: settings.candidates,
                sampling: Sampling {
                    temperature: 0.8,
                    top_p: 0.95,
                    seed: 0,
                },
                adapter: Some((adapter.clone(), 1.0)),
                guidance: 0.0,
                deadline: None,
                draft: source,
                fairness: 0,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    ensure!(!generations.is_empty(), "no sentences");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..settings.runs {
        without.push(run(&decoder, &generations, settings.in_flight, 0).await?);
        with.push(run(&decoder, &generations, settings.in_flight, settings.drafts).await?);
    }
    for (number, (a, b)) in with[0].completions.iter().zip(&without[0].completions).enumerate() {
        if a != b {
            bail!("sentence {number} is rewritten another way with drafts")
        }
    }
    println!(
        "{} sentences, {} candidates each, {} at once; every token and likelihood is the same with drafts and without",
        generations.len(),
        settings.candidates,
        settings.in_flight
    );
    let (without, with) = (report("without", &mut without), report("drafts", &mut with));
    println!("ratio    {:8.2}", without / with);
    Ok(())
}
