//! The engine's thread: one loop that admits, steps and answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::activity::Activity;
use super::handle::{Command, EngineConfig, EngineError};
use super::pace::Pace;
use super::prefixes::Prefixes;
use super::queue::FairQueue;
use super::scoring::Scoring;
use super::sequence::Group;
use crate::model::Decoder;
use crate::model::kv_cache::CacheSpace;

pub(super) struct Scheduler {
    pub(super) decoder: Arc<Decoder>,
    pub(super) caches: CacheSpace,
    pub(super) config: EngineConfig,
    pub(super) activity: Activity,
    queue: FairQueue<Command>,
    pub(super) groups: VecDeque<Group>,
    /// Texts whose likelihood is being computed.
    scoring: VecDeque<Scoring>,
    pub(super) prefixes: Prefixes,
    pub(super) pace: Pace,
}

impl Scheduler {
    pub(super) fn new(decoder: Arc<Decoder>, caches: CacheSpace, config: EngineConfig, activity: Activity) -> Self {
        Self {
            prefixes: Prefixes::new(config.max_cached_tokens / 4),
            pace: Pace::new(config.max_draft_tokens),
            decoder,
            caches,
            config,
            activity,
            queue: FairQueue::new(),
            groups: VecDeque::new(),
            scoring: VecDeque::new(),
        }
    }

    /// Runs until the last handle is dropped and everything admitted is answered.
    pub(super) fn run(mut self, commands: Receiver<Command>) {
        while self.receive(&commands) || !self.is_idle() {
            self.drop_unwanted();
            self.admit();
            self.tell();
            if !self.groups.is_empty() {
                self.step_groups();
            }
            self.step_scoring();
            self.tell();
        }
    }

    fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.scoring.is_empty() && self.queue.is_empty()
    }

    /// Queues what has come in; waits for something when idle. `false` once all handles are gone.
    fn receive(&mut self, commands: &Receiver<Command>) -> bool {
        if self.is_idle() {
            match commands.recv() {
                Ok(command) => self.queue.push(command.key(), command.cost(), command),
                Err(_) => return false,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => self.queue.push(command.key(), command.cost(), command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Takes requests into the batch while there is room, in a fair order.
    fn admit(&mut self) {
        loop {
            let running: usize = self.groups.iter().map(|group| group.generation.sequences()).sum();
            let held = self.held_tokens();
            let is_empty = self.groups.is_empty() && self.scoring.is_empty();
            let (config, groups) = (&self.config, &self.groups);
            // The rest of the batch is kept for others: who comes next then does not wait for a long text to end.
            let share = config.max_sequences - config.max_sequences / 4;
            let next = self.queue.pop(
                |key, command| {
                    let own: usize = groups
                        .iter()
                        .filter(|group| group.generation.fairness == key)
                        .map(|group| group.generation.sequences())
                        .sum();
                    own == 0 || own + command.sequences() <= share
                },
                // What is larger than all there is goes alone.
                |command| {
                    is_empty
                        || (running + command.sequences() <= config.max_sequences
                            && held + command.most_tokens() <= config.max_cached_tokens)
                },
            );
            let Some(command) = next else { return };
            self.activity.received(command.key(), command.cost());
            let wanted = held + command.most_tokens();
            self.prefixes
                .shrink(self.config.max_cached_tokens.saturating_sub(wanted));
            if is_empty {
                self.fit_caches(wanted);
            }
            match command {
                Command::Generate(generation, submitted, reply) => {
                    let group = Group::admit(*generation, submitted, reply, &self.caches, &self.pace);
                    self.groups.push_back(group);
                }
                Command::Likelihood(request, reply) => {
                    self.scoring.push_back(Scoring::new(request, reply, &self.caches));
                }
            }
        }
    }

    /// On a device, where memory is taken once: a space of its own for a single request that is larger than all there is, and the usual one again
    /// after it. Nothing but kept prefixes is held now.
    fn fit_caches(&mut self, wanted: usize) {
        let wanted = wanted.max(self.config.max_cached_tokens);
        if self.caches.tokens().is_some_and(|tokens| tokens != wanted) {
            self.prefixes.shrink(0);
            self.caches = self.decoder.cache_space(wanted);
        }
    }

    /// Tokens whose keys and values may be held for what is under way; kept prefixes give way to it.
    fn held_tokens(&self) -> usize {
        let groups: usize = self.groups.iter().map(Group::cached_tokens).sum();
        groups + self.scoring.iter().map(Scoring::cached_tokens).sum::<usize>()
    }

    fn tell(&self) {
        let tokens = self.held_tokens();
        self.activity.batch(
            self.groups.len() + self.scoring.len(),
            tokens,
            tokens + self.prefixes.tokens(),
            self.config.max_cached_tokens,
        );
    }

    /// Lets go of requests whose client has left or whose deadline has passed, waiting or running.
    fn drop_unwanted(&mut self) {
        let now = Instant::now();
        for command in self.queue.take_out(|command| !command.is_unwanted(now)) {
            self.activity.received(command.key(), command.cost());
            command.fail(EngineError::DeadlinePassed);
        }
        self.scoring.retain(|scoring| !scoring.is_abandoned());
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

    fn step_groups(&mut self) {
        let started = Instant::now();
        match self.step() {
            Ok(stepped) => {
                let took = started.elapsed();
                self.pace.stepped(stepped.rows, stepped.with_logits, took);
                self.activity.stepped(&stepped, took);
            }
            Err(error) => {
                tracing::error!(%error, "the model failed; every request of the batch gets an error");
                for group in self.groups.drain(..) {
                    group.fail(EngineError::Failed(error.to_string()));
                }
            }
        }
        self.answer(started.elapsed());
    }

    fn answer(&mut self, took: Duration) {
        let (done, rest): (VecDeque<_>, _) = std::mem::take(&mut self.groups).into_iter().partition(Group::is_done);
        self.groups = rest;
        let cost = done.iter().map(|group| group.generation.cost()).sum();
        self.activity.worked(cost, took);
        // Before the answers: who has one finds the place free.
        self.tell();
        done.into_iter().for_each(Group::finish);
    }

    /// A piece of the text that waits longest, then the others' turn.
    fn step_scoring(&mut self) {
        let Some(mut scoring) = self.scoring.pop_front() else {
            return;
        };
        let started = Instant::now();
        let most = self.config.max_prefill_tokens.max(1);
        let (cost, rows) = (scoring.cost(), scoring.left().min(most));
        match scoring.step(&self.decoder, most) {
            Ok(true) => scoring.finish(),
            Ok(false) => {
                self.scoring.push_back(scoring);
                self.activity.scored(rows, started.elapsed());
                self.activity.worked(0, started.elapsed());
                return;
            }
            Err(error) => scoring.fail(&error),
        }
        self.activity.scored(rows, started.elapsed());
        self.activity.worked(cost, started.elapsed());
    }
}
