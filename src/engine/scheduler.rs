//! The engine's thread: one loop that admits, steps and answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use candle_core::{Result, Tensor};

use super::activity::Activity;
use super::handle::{Command, EngineConfig, EngineError, LikelihoodRequest};
use super::sequence::{Group, State};
use crate::model::Decoder;
use crate::model::kv_cache::{CachedSequence, KvCache};
use crate::model::layers::{Adaptation, LoraSpan};
use crate::model::lora::LoraModel;
use crate::model::ops::{Target, with_values};

pub(super) struct Scheduler {
    decoder: Arc<Decoder>,
    config: EngineConfig,
    activity: Activity,
    groups: VecDeque<Group>,
}

/// Which logits row goes to whom.
struct Row {
    group: usize,
    /// The candidate; none for the end of a prompt.
    candidate: Option<usize>,
}

impl Scheduler {
    pub(super) fn new(decoder: Arc<Decoder>, config: EngineConfig, activity: Activity) -> Self {
        Self {
            decoder,
            config,
            activity,
            groups: VecDeque::new(),
        }
    }

    /// Runs until the last handle is dropped and everything admitted is answered.
    pub(super) fn run(mut self, commands: Receiver<Command>) {
        loop {
            if !self.admit(&commands) && self.groups.is_empty() {
                return;
            }
            self.drop_unwanted();
            self.tell();
            if self.groups.is_empty() {
                continue;
            }
            let (started, sequences) = (Instant::now(), self.sequences());
            if let Err(error) = self.step() {
                tracing::error!(%error, "the model failed; every request of the batch gets an error");
                for group in self.groups.drain(..) {
                    group.fail(EngineError::Failed(error.to_string()));
                }
            }
            self.activity.stepped(sequences, started.elapsed());
            self.answer();
            self.tell();
        }
    }

    /// Takes requests while there is room; waits for one when idle. `false` once all handles are gone.
    fn admit(&mut self, commands: &Receiver<Command>) -> bool {
        loop {
            let running: usize = self.groups.iter().map(|group| group.generation.candidates).sum();
            let waiting_tokens: usize = self
                .groups
                .iter()
                .filter(|group| group.prompt.is_some())
                .map(|group| group.generation.prompt.len())
                .sum();
            let cached_tokens: usize = self.groups.iter().map(Group::cached_tokens).sum();
            let is_full = running >= self.config.max_sequences
                || waiting_tokens >= self.config.max_prefill_tokens
                || cached_tokens >= self.config.max_cached_tokens;
            if is_full && !self.groups.is_empty() {
                return true;
            }
            let command = if self.groups.is_empty() {
                match commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            } else {
                match commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Generate(generation, submitted, reply) => {
                    if !reply.is_closed() {
                        self.groups
                            .push_back(Group::admit(*generation, submitted, reply, self.decoder.config()));
                    }
                    self.activity.received();
                }
                Command::Likelihood(request, reply) => {
                    if !reply.is_closed() {
                        let started = Instant::now();
                        let answer = self
                            .likelihood(&request)
                            .map_err(|error| EngineError::Failed(error.to_string()));
                        let _ = reply.send(answer);
                        self.activity.stepped(1, started.elapsed());
                    }
                    self.activity.received();
                }
            }
        }
    }

    fn tell(&self) {
        let cached = self.groups.iter().map(Group::cached_tokens).sum();
        self.activity
            .batch(self.groups.len(), cached, self.config.max_cached_tokens);
    }

    /// Sequences of the next step: new prompts and running candidates.
    fn sequences(&self) -> usize {
        let of = |group: &Group| {
            let running = group
                .candidates
                .iter()
                .filter(|candidate| candidate.state == State::Running);
            usize::from(group.prompt.is_some()) + running.count()
        };
        self.groups.iter().map(of).sum()
    }

    /// Lets go of requests whose client has left or whose deadline has passed.
    fn drop_unwanted(&mut self) {
        let now = Instant::now();
        for group in std::mem::take(&mut self.groups) {
            if group.is_abandoned() {
                continue;
            }
            if group.is_late(now) {
                group.fail(EngineError::DeadlinePassed);
            } else {
                self.groups.push_back(group);
            }
        }
    }

    /// One forward pass: the prompts that are new, and one token of every running candidate.
    fn step(&mut self) -> Result<()> {
        let mut tokens = Vec::new();
        let mut sequences = Vec::new();
        let mut spans: Vec<LoraSpan> = Vec::new();
        let (mut rows, mut owners) = (Vec::new(), Vec::new());
        let mut row_spans: Vec<LoraSpan> = Vec::new();
        for (index, group) in self.groups.iter_mut().enumerate() {
            let (first, first_row) = (tokens.len(), owners.len());
            if let Some(cache) = group.prompt.as_mut() {
                tokens.extend(&group.generation.prompt);
                sequences.push(CachedSequence {
                    cache,
                    len: group.generation.prompt.len(),
                });
                rows.push(tokens.len() as u32 - 1);
                owners.push(Row {
                    group: index,
                    candidate: None,
                });
            }
            for (number, candidate) in group.candidates.iter_mut().enumerate() {
                if let (State::Running, Some(&last)) = (candidate.state, candidate.tokens.last()) {
                    tokens.push(last);
                    sequences.push(CachedSequence {
                        cache: &mut candidate.cache,
                        len: 1,
                    });
                    rows.push(tokens.len() as u32 - 1);
                    owners.push(Row {
                        group: index,
                        candidate: Some(number),
                    });
                }
            }
            if let Some((adapter, strength)) = &group.generation.adapter {
                extend_spans(&mut spans, first, tokens.len(), adapter, *strength);
                extend_spans(&mut row_spans, first_row, owners.len(), adapter, *strength);
            }
        }
        let hidden = self
            .decoder
            .forward_cached(&tokens, &mut sequences, Adaptation::Mixed(&spans))?;
        drop(sequences);
        let rows = Tensor::from_vec(rows, owners.len(), hidden.device())?;
        let logits = self
            .decoder
            .logits(&hidden.index_select(&rows, 0)?, Adaptation::Mixed(&row_spans))?
            .to_device(&candle_core::Device::Cpu)?;
        let vocabulary = self.decoder.config().vocab_size;
        with_values(&logits, |logits| {
            for (owner, logits) in owners.iter().zip(logits.chunks(vocabulary)) {
                let group = &mut self.groups[owner.group];
                match owner.candidate {
                    None => group.begin(logits, self.decoder.config()),
                    Some(number) => group.candidates[number].take(logits, &group.generation),
                }
            }
            Ok(())
        })
    }

    fn answer(&mut self) {
        for group in std::mem::take(&mut self.groups) {
            if group.is_done() {
                group.finish();
            } else {
                self.groups.push_back(group);
            }
        }
    }

    fn likelihood(&self, request: &LikelihoodRequest) -> Result<Vec<f32>> {
        let mut cache = KvCache::new(self.decoder.config(), request.tokens.len());
        let mut spans = Vec::new();
        if let Some((adapter, strength)) = &request.adapter {
            extend_spans(&mut spans, 0, request.tokens.len(), adapter, *strength);
        }
        let mut sequences = [CachedSequence {
            cache: &mut cache,
            len: request.tokens.len(),
        }];
        let hidden = self
            .decoder
            .forward_cached(&request.tokens, &mut sequences, Adaptation::Mixed(&spans))?;
        let targets: Vec<Target> = request
            .tokens
            .iter()
            .skip(1)
            .enumerate()
            .map(|(row, &token)| Target { row: row as u32, token })
            .collect();
        self.decoder
            .cross_entropy(&hidden, &targets, Adaptation::Mixed(&spans))?
            .to_vec1()
    }
}

/// Adds rows `first..end` to the spans, joined to the last one when it has the same adapter and strength.
fn extend_spans(spans: &mut Vec<LoraSpan>, first: usize, end: usize, adapter: &Arc<LoraModel>, strength: f32) {
    if first == end || strength == 0.0 {
        return;
    }
    match spans.last_mut() {
        Some(last) if last.rows.end == first && Arc::ptr_eq(&last.adapter, adapter) && last.strength == strength => {
            last.rows.end = end;
        }
        _ => spans.push(LoraSpan {
            rows: first..end,
            adapter: adapter.clone(),
            strength,
        }),
    }
}
