//! A text's whole way: see the story in [`super`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::assemble::{Assembled, Assembler, SegmentObserver, Verdict};
use super::join::try_join_bounded;
use super::legible::legible;
use super::mask::mask;
use super::options::{Action, Fallback, MAX_CANDIDATES, Options, OtherLanguages};
use super::outcome::{Detoxified, DetoxifyError, SegmentAction, Usage};
use super::protect::{self, Span};
use super::rejection::Rejection;
use super::rewriter::{RewriteError, RewriteRequest, Rewriter, Rewrites};
use super::scorers::{OfProse, Similarity, Toxicity, similarity_of, toxicity_of};
use super::segment::{self, Sentence};
use super::tidy::tidy;
use super::unfit::{self, Unfit};
use super::verify::{Source, Verifier, Weights};
use crate::engine::Activity;

/// Sentences of one text that are with the rewriter at the same time.
const MAX_IN_FLIGHT: usize = 16;
/// Sentences scored between two looks at the clock, and two chances for others to run.
const SCORED_AT_ONCE: usize = 64;

/// Rewrites texts. Cheap to share, has no state of its own.
pub struct Detoxifier {
    rewriter: Arc<dyn Rewriter>,
    toxicity: Arc<dyn Toxicity>,
    similarity: Arc<dyn Similarity>,
    weights: Weights,
}

/// A distinct toxic sentence on its way to the rewriter.
struct Task<'t> {
    /// Which sentence it is.
    at: usize,
    body: &'t str,
    core: Range<usize>,
    /// Relative to the body.
    spans: Vec<Span>,
    toxicity: f32,
}

/// What the rewriting of all sentences took.
#[derive(Default)]
struct Spent {
    usage: Usage,
    queue: Duration,
    inference: Duration,
    rejections: Vec<Rejection>,
}

impl Spent {
    fn add(&mut self, rewrites: &Rewrites) {
        self.usage.prompt_tokens += rewrites.prompt_tokens;
        self.usage.completion_tokens += rewrites.completion_tokens;
        self.queue = self.queue.max(rewrites.queue);
        self.inference = self.inference.max(rewrites.inference);
    }
}

impl Detoxifier {
    /// With the default weights.
    pub fn new(rewriter: Arc<dyn Rewriter>, toxicity: Arc<dyn Toxicity>, similarity: Arc<dyn Similarity>) -> Self {
        Self {
            rewriter,
            toxicity,
            similarity,
            weights: Weights::default(),
        }
    }

    /// Judges candidates by other weights.
    #[must_use]
    pub fn with_weights(mut self, weights: Weights) -> Self {
        self.weights = weights;
        self
    }

    /// What the engine behind the rewriter is doing; none without an engine.
    pub fn activity(&self) -> Option<&Activity> {
        self.rewriter.activity()
    }

    /// Takes one text through the pipeline. Dropping the future withdraws what is under way.
    ///
    /// # Errors
    /// Whatever ails the rewriter, and a deadline that passed; the text is then not touched at all.
    pub async fn detoxify(&self, text: &str, options: &Options) -> Result<Detoxified, DetoxifyError> {
        self.detoxify_observed(text, options, &|_| {}).await
    }

    /// The same; `observer` hears of each segment, in order, as soon as it and those before it are
    /// settled.
    ///
    /// # Errors
    /// The same; what was observed until then does not count.
    pub async fn detoxify_observed(
        &self,
        text: &str,
        options: &Options,
        observer: SegmentObserver<'_>,
    ) -> Result<Detoxified, DetoxifyError> {
        let spans = protect::find(text, options.format);
        let mut sentences = if options.whole_text {
            segment::whole(text, &spans)
        } else {
            segment::sentences(text, &spans)
        };
        let scores = self.score(text, &sentences, &spans, options).await?;
        let mut toxic: Vec<usize> = (0..sentences.len())
            .filter(|&at| {
                // An address on its own leaves nothing that could be rewritten.
                let exceeded =
                    (options.always && !sentences[at].core.is_empty()) || options.threshold.is_exceeded_by(scores[at]);
                sentences[at].protected.is_none() && exceeded
            })
            .collect();
        if !options.always {
            let policy = options.other_languages;
            unfit::sort_out(text, &mut sentences, &mut toxic, policy, self.toxicity.as_ref());
        }
        if options.action == Action::Block && !toxic.is_empty() {
            let withheld = Assembled::withheld(text, &sentences, &scores);
            withheld.segments.iter().for_each(observer);
            return Ok(self.finish(text, withheld, options, Spent::default()));
        }
        let mut assembler = Assembler::new(text, &sentences, &scores, &toxic, observer);
        let mut spent = Spent::default();
        match options.action {
            Action::Rewrite => {
                let withheld = |at: &usize| {
                    options.other_languages == OtherLanguages::Block && sentences[*at].unfit == Some(Unfit::Language)
                };
                toxic
                    .iter()
                    .copied()
                    .filter(withheld)
                    .for_each(|at| assembler.settle(at, blocked()));
                let tasks: Vec<Task<'_>> = toxic
                    .iter()
                    .filter(|at| !withheld(at))
                    .map(|&at| Task::new(text, at, &sentences[at], &spans, scores[at]))
                    .collect();
                (assembler, spent) = self.rewrite(tasks, options, assembler).await?;
            }
            Action::Annotate | Action::Block => {
                for at in toxic {
                    let body = text[sentences[at].body.clone()].to_owned();
                    assembler.settle(at, annotated(body, scores[at]));
                }
            }
        }
        Ok(self.finish(text, assembler.finish(), options, spent))
    }

    /// The toxicity of each sentence; code and other markup has none.
    async fn score(
        &self,
        text: &str,
        sentences: &[Sentence],
        spans: &[Span],
        options: &Options,
    ) -> Result<Vec<f32>, RewriteError> {
        let mut known: HashMap<&str, f32> = HashMap::new();
        let mut scores = Vec::with_capacity(sentences.len());
        for sentence in sentences {
            let body = &text[sentence.body.clone()];
            let has_language = sentence.protected.is_none_or(|kind| kind.is_language());
            if body.is_empty() || !has_language {
                scores.push(0.0);
                continue;
            }
            if known.len().is_multiple_of(SCORED_AT_ONCE) {
                check_deadline(options)?;
                tokio::task::yield_now().await;
            }
            let score = *known.entry(body).or_insert_with(|| {
                let spans = match sentence.protected {
                    Some(_) => Vec::new(),
                    None => protect::within(spans, &sentence.body),
                };
                toxicity_of(&OfProse::new(self.toxicity.as_ref(), body, &spans), body)
            });
            scores.push(score);
        }
        Ok(scores)
    }

    /// Settles each task as soon as its answer is there; equal tasks are worked on once.
    async fn rewrite<'t>(
        &self,
        tasks: Vec<Task<'t>>,
        options: &Options,
        assembler: Assembler<'t>,
    ) -> Result<(Assembler<'t>, Spent), RewriteError> {
        let mut places: HashMap<(&str, usize, usize), usize> = HashMap::new();
        let mut distinct: Vec<(Task<'_>, Vec<usize>)> = Vec::new();
        for task in tasks {
            let place = *places
                .entry((task.body, task.core.start, task.core.end))
                .or_insert(distinct.len());
            match distinct.get_mut(place) {
                Some((_, sentences)) => sentences.push(task.at),
                None => distinct.push((task, Vec::new())),
            }
        }
        let shared = Mutex::new((assembler, Spent::default()));
        // A loop, because a closure here would make the future too narrow to be spawned.
        let mut requests = Vec::with_capacity(distinct.len());
        for (task, others) in &distinct {
            requests.push(self.settle(task, others, options, &shared));
        }
        try_join_bounded(requests, MAX_IN_FLIGHT).await?;
        Ok(shared.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for one task, decides, and hands the verdict to all sentences that are equal.
    async fn settle(
        &self,
        task: &Task<'_>,
        others: &[usize],
        options: &Options,
        shared: &Mutex<(Assembler<'_>, Spent)>,
    ) -> Result<(), RewriteError> {
        let rewrites = self.ask(task, options).await?;
        check_deadline(options)?;
        // One future polls all: the lock is free.
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (assembler, spent) = &mut *shared;
        spent.add(&rewrites);
        let verdict = self.decide(task, &rewrites, options, &mut spent.rejections);
        for &at in others {
            assembler.settle(at, verdict.clone());
        }
        assembler.settle(task.at, verdict);
        Ok(())
    }

    async fn ask(&self, task: &Task<'_>, options: &Options) -> Result<Rewrites, RewriteError> {
        if task.core.is_empty() {
            return Ok(Rewrites::default());
        }
        let candidates = if options.verify {
            options.candidates.clamp(1, MAX_CANDIDATES)
        } else {
            1
        };
        let sentence = legible(task.core());
        let request = RewriteRequest {
            sentence: &sentence,
            adapter: &options.adapter,
            strength: options.strength.get(),
            candidates,
            seed: options.seed,
            deadline: options.deadline,
            turn: &options.turn,
        };
        self.rewriter.rewrite(request).await
    }

    fn decide(
        &self,
        task: &Task<'_>,
        rewrites: &Rewrites,
        options: &Options,
        rejections: &mut Vec<Rejection>,
    ) -> Verdict {
        let prose = task.prose(self.toxicity.as_ref());
        let body_with = |core: &str| [task.before(), core, task.after()].concat();
        if !options.verify {
            if let Some(first) = rewrites.candidates.first() {
                let body = body_with(&tidy(task.core(), &first.text));
                let toxicity = toxicity_of(&prose, &body);
                return Verdict {
                    action: SegmentAction::Rewritten,
                    body,
                    toxicity,
                };
            }
            return self.fall_back(task, options);
        }
        let verifier = Verifier {
            toxicity: &prose,
            similarity: self.similarity.as_ref(),
            threshold: options.threshold,
            weights: &self.weights,
        };
        let core_spans = protect::within(&task.spans, &task.core);
        let source = Source {
            before: task.before(),
            core: task.core(),
            after: task.after(),
            spans: &core_spans,
        };
        let mut ranking = verifier.rank(&source, &rewrites.candidates);
        rejections.append(&mut ranking.rejected);
        match ranking.accepted.into_iter().next() {
            Some(best) => Verdict {
                action: SegmentAction::Rewritten,
                body: body_with(&best.text),
                toxicity: best.toxicity,
            },
            None => self.fall_back(task, options),
        }
    }

    fn fall_back(&self, task: &Task<'_>, options: &Options) -> Verdict {
        match options.fallback {
            Fallback::Annotate => annotated(task.body.to_owned(), task.toxicity),
            Fallback::Block => blocked(),
            Fallback::Mask => mask(
                task.body,
                &task.spans,
                &task.prose(self.toxicity.as_ref()),
                options.threshold,
            )
            .map_or_else(blocked, |masked| Verdict {
                action: SegmentAction::Masked,
                body: masked.text,
                toxicity: masked.toxicity,
            }),
        }
    }

    fn finish(&self, text: &str, assembled: Assembled, options: &Options, spent: Spent) -> Detoxified {
        let changed = assembled.text != text;
        let similarity = match (changed, assembled.text.is_empty()) {
            (false, _) => 1.0,
            (true, true) => 0.0,
            _ => similarity_of(self.similarity.as_ref(), text, &assembled.text),
        };
        Detoxified {
            changed,
            toxicity: assembled.toxicity(),
            similarity,
            text: assembled.text,
            segments: assembled.segments,
            edits: assembled.edits,
            adapter: options.adapter.version().to_string(),
            model: self.rewriter.model().to_owned(),
            usage: spent.usage,
            queue: spent.queue,
            inference: spent.inference,
            rejections: spent.rejections,
        }
    }
}

impl<'t> Task<'t> {
    fn new(text: &'t str, at: usize, sentence: &Sentence, spans: &[Span], toxicity: f32) -> Self {
        let start = sentence.body.start;
        Self {
            at,
            body: &text[sentence.body.clone()],
            core: sentence.core.start - start..sentence.core.end - start,
            spans: protect::within(spans, &sentence.body),
            toxicity,
        }
    }

    fn prose<'s>(&'s self, toxicity: &'s dyn Toxicity) -> OfProse<'s> {
        OfProse::new(toxicity, self.body, &self.spans)
    }

    fn before(&self) -> &'t str {
        &self.body[..self.core.start]
    }

    fn core(&self) -> &'t str {
        &self.body[self.core.clone()]
    }

    fn after(&self) -> &'t str {
        &self.body[self.core.end..]
    }
}

fn blocked() -> Verdict {
    Verdict {
        action: SegmentAction::Blocked,
        body: String::new(),
        toxicity: 0.0,
    }
}

fn annotated(body: String, toxicity: f32) -> Verdict {
    Verdict {
        action: SegmentAction::Annotated,
        body,
        toxicity,
    }
}

fn check_deadline(options: &Options) -> Result<(), RewriteError> {
    match options.deadline {
        Some(deadline) if Instant::now() >= deadline => Err(RewriteError::DeadlinePassed),
        _ => Ok(()),
    }
}
