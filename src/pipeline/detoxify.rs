//! A text's whole way: see the story in [`super`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::assemble::{Assembled, Assembler, SegmentObserver};
use super::decide::{Rule, Task, annotated, blocked};
use super::join::try_join_bounded;
use super::judges::Judges;
use super::legible::{legible, spelt_out};
use super::options::{Action, MAX_CANDIDATES, Options};
use super::outcome::{Detoxified, DetoxifyError, Usage};
use super::protect::{self, Span};
use super::rejection::Rejection;
use super::rewriter::{RewriteError, RewriteRequest, Rewriter, Rewrites};
use super::scorers::{Unseen, similarities_of, toxicities_of};
use super::segment::{self, Sentence};
use super::style::Style;
use super::unfit;
use super::verify::Weights;
use crate::engine::Activity;

/// Sentences of one text that are with the rewriter at the same time.
const MAX_IN_FLIGHT: usize = 16;
/// Sentences scored between two looks at the clock, and two chances for others to run.
const SCORED_AT_ONCE: usize = 64;

/// Rewrites texts. Cheap to share, has no state of its own.
pub struct Detoxifier {
    rewriter: Arc<dyn Rewriter>,
    judges: Judges,
    weights: Weights,
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
    pub fn new(rewriter: Arc<dyn Rewriter>, judges: Judges) -> Self {
        Self {
            rewriter,
            judges,
            weights: Weights::default(),
        }
    }

    /// Judges candidates by other weights.
    #[must_use]
    pub fn with_weights(mut self, weights: Weights) -> Self {
        self.weights = weights;
        self
    }

    /// Who judges for it.
    pub fn judges(&self) -> &Judges {
        &self.judges
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
            unfit::sort_out(text, &mut sentences, &mut toxic, options.other_languages, &self.judges).await?;
        }
        if options.action == Action::Block && !toxic.is_empty() {
            let withheld = Assembled::withheld(text, &sentences, &scores);
            withheld.segments.iter().for_each(observer);
            return Ok(self.finish(text, withheld, options, Spent::default()).await?);
        }
        let mut assembler = Assembler::new(text, &sentences, &scores, &toxic, observer);
        let mut spent = Spent::default();
        match options.action {
            Action::Rewrite => {
                let style = Style::of(text, &sentences, &toxic);
                let mut tasks = Vec::new();
                for &at in &toxic {
                    match options.other_languages.withholds(&sentences[at]) {
                        true => assembler.settle(at, blocked()),
                        false => {
                            tasks.push(Task::new(
                                text,
                                at,
                                &sentences[at],
                                &spans,
                                style.at(text, &sentences[at]),
                                scores[at],
                            ));
                        }
                    }
                }
                (assembler, spent) = self.rewrite(tasks, options, assembler).await?;
            }
            Action::Annotate | Action::Block => {
                for at in toxic {
                    let body = text[sentences[at].body.clone()].to_owned();
                    assembler.settle(at, annotated(body, scores[at]));
                }
            }
        }
        Ok(self.finish(text, assembler.finish(), options, spent).await?)
    }

    /// The toxicity of each sentence; code and other markup has none.
    async fn score(
        &self,
        text: &str,
        sentences: &[Sentence],
        spans: &[Span],
        options: &Options,
    ) -> Result<Vec<f32>, RewriteError> {
        // What is seen of each sentence, equal ones once.
        let mut places: HashMap<&str, Option<usize>> = HashMap::new();
        let mut seen: Vec<String> = Vec::new();
        let mut places_of = Vec::with_capacity(sentences.len());
        for sentence in sentences {
            let body = &text[sentence.body.clone()];
            let has_language = sentence.protected.is_none_or(|kind| kind.is_language());
            if body.is_empty() || !has_language {
                places_of.push(None);
                continue;
            }
            let place = *places.entry(body).or_insert_with(|| {
                let spans = match sentence.protected {
                    Some(_) => Vec::new(),
                    None => protect::within(spans, &sentence.body),
                };
                let prose = Unseen::of(body, &spans).seen(body)?.into_owned();
                seen.push(prose);
                Some(seen.len() - 1)
            });
            places_of.push(place);
        }
        let mut scores = Vec::with_capacity(seen.len());
        let mut seen = seen.into_iter();
        while seen.len() > 0 {
            check_deadline(options)?;
            tokio::task::yield_now().await;
            let texts: Vec<String> = seen.by_ref().take(SCORED_AT_ONCE).collect();
            let judged = self.judges.judge(move |judges| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                toxicities_of(judges.toxicity.as_ref(), &texts)
            });
            scores.extend(judged.await?);
        }
        Ok(places_of
            .into_iter()
            .map(|place| place.map_or(0.0, |place| scores[place]))
            .collect())
    }

    /// Settles each task as soon as its answer is there; equal tasks are worked on once.
    async fn rewrite<'t>(
        &self,
        tasks: Vec<Task>,
        options: &Options,
        assembler: Assembler<'t>,
    ) -> Result<(Assembler<'t>, Spent), RewriteError> {
        let mut places: HashMap<(Arc<str>, usize, usize, Style), usize> = HashMap::new();
        let mut distinct: Vec<(Arc<Task>, Vec<usize>)> = Vec::new();
        for task in tasks {
            let place = *places
                .entry((Arc::clone(&task.body), task.core.start, task.core.end, task.style))
                .or_insert(distinct.len());
            match distinct.get_mut(place) {
                Some((_, sentences)) => sentences.push(task.at),
                None => distinct.push((Arc::new(task), Vec::new())),
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
        task: &Arc<Task>,
        others: &[usize],
        options: &Options,
        shared: &Mutex<(Assembler<'_>, Spent)>,
    ) -> Result<(), RewriteError> {
        let rewrites = self.ask(task, options).await?;
        check_deadline(options)?;
        // One future polls all: the lock is free.
        let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        lock().1.add(&rewrites);
        let (task_of_judge, rule) = (Arc::clone(task), Rule::new(options, self.weights));
        let decided = self
            .judges
            .judge(move |judges| task_of_judge.decide(&rewrites, &rule, judges));
        let (verdict, mut rejections) = decided.await?;
        let mut shared = lock();
        let (assembler, spent) = &mut *shared;
        spent.rejections.append(&mut rejections);
        for &at in others {
            assembler.settle(at, verdict.clone());
        }
        assembler.settle(task.at, verdict);
        Ok(())
    }

    async fn ask(&self, task: &Task, options: &Options) -> Result<Rewrites, RewriteError> {
        if task.core.is_empty() {
            return Ok(Rewrites::default());
        }
        let candidates = if options.verify {
            options.candidates.clamp(1, MAX_CANDIDATES)
        } else {
            1
        };
        let core = task.core().to_owned();
        let seen = self
            .judges
            .judge(move |judges| spelt_out(&legible(&core), judges.toxicity.as_ref()).into_owned());
        let sentence = seen.await?;
        let request = RewriteRequest {
            sentence: &sentence,
            adapter: &options.adapter,
            strength: options.strength.get(),
            guidance: options.guidance.get(),
            candidates,
            seed: options.seed,
            deadline: options.deadline,
            turn: &options.turn,
        };
        self.rewriter.rewrite(request).await
    }

    async fn finish(
        &self,
        text: &str,
        assembled: Assembled,
        options: &Options,
        spent: Spent,
    ) -> Result<Detoxified, RewriteError> {
        let changed = assembled.text != text;
        let similarity = match (changed, assembled.text.is_empty()) {
            (false, _) => 1.0,
            (true, true) => 0.0,
            _ => {
                let (before, after) = (text.to_owned(), assembled.text.clone());
                let judged = self
                    .judges
                    .judge(move |judges| similarities_of(judges.similarity.as_ref(), &before, &[&after]));
                judged.await?.first().copied().unwrap_or(0.0)
            }
        };
        Ok(Detoxified {
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
        })
    }
}

fn check_deadline(options: &Options) -> Result<(), RewriteError> {
    match options.deadline {
        Some(deadline) if Instant::now() >= deadline => Err(RewriteError::DeadlinePassed),
        _ => Ok(()),
    }
}
