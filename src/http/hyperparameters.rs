//! The hyperparameters of a training job, as `POST /train` has them.

use utoipa::ToSchema;

use super::fields::Fields;
use crate::{
    jobs::request::{Hyperparameters, ObjectiveName},
    model::lora::MODULES,
};

/// Settings of a training run, all optional; what is absent has the default.
#[derive(Debug, ToSchema)]
#[schema(example = json!({ "epochs": 1, "learning_rate": 0.0002, "lora_rank": 16 }))]
#[allow(dead_code, reason = "what `read` reads, for the OpenAPI document")]
pub struct HyperparametersBody {
    /// Where settings come from that are not given: `rewriter`, conditioned on the rewrite prompt; `paper`, as the paper has it;
    /// `released`, as its authors' program has it. The defaults shown here are those of `rewriter`.
    #[schema(default = "rewriter")]
    preset: Option<String>,
    /// Version to start from, `name@version`; its rank, scale and modules are kept.
    #[schema(example = "default@1")]
    init_adapter: Option<String>,
    /// Passes over the data.
    #[schema(exclusive_minimum = 0, maximum = 100_000, default = 1)]
    epochs: Option<f64>,
    /// Stops after so many steps.
    #[schema(minimum = 1, maximum = 1_000_000)]
    max_steps: Option<u64>,
    /// Most tokens in a packed batch.
    #[schema(minimum = 16, maximum = 65536, default = 2048)]
    batch_tokens: Option<u64>,
    /// Most anchors in a batch; without it as many as `batch_tokens` allows (`ppo`: 16).
    #[schema(minimum = 1, maximum = 4096)]
    batch_size: Option<u64>,
    /// Batches a step.
    #[schema(minimum = 1, maximum = 1024, default = 1)]
    gradient_accumulation: Option<u64>,
    /// Peak learning rate.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 0.0002)]
    learning_rate: Option<f64>,
    /// Steps to reach it.
    #[schema(minimum = 0, maximum = 1_000_000, default = 30)]
    warmup_steps: Option<u64>,
    /// What follows: `cosine`, `linear` or `constant`.
    #[schema(default = "cosine")]
    schedule: Option<String>,
    /// Seed of everything random.
    #[schema(minimum = 0, default = 1)]
    seed: Option<u64>,
    /// Rank of a new adapter.
    #[schema(minimum = 1, maximum = 256, default = 16)]
    lora_rank: Option<u64>,
    /// A new adapter's updates are scaled by alpha / rank.
    #[schema(exclusive_minimum = 0, maximum = 4096, default = 32)]
    lora_alpha: Option<f64>,
    /// Share of an update's inputs that are left out in training.
    #[schema(minimum = 0, exclusive_maximum = 1, default = 0)]
    lora_dropout: Option<f64>,
    /// How the frozen weights of the blocks are held: `none` (two or four bytes each), or in 4 bits, `nf4` or `q4_k`.
    #[schema(default = "none")]
    quantize: Option<String>,
    /// Modules a new adapter updates, by the names that the model gives them; `all-linear`, those of its blocks, without it; `lm_head` is the output head.
    target_modules: Option<Vec<String>>,
    /// Longest prompt with its rewrite, in tokens; longer examples are left out.
    #[schema(minimum = 16, maximum = 8192, default = 256)]
    max_tokens: Option<u64>,
    /// Most positives a set (|P|).
    #[schema(minimum = 1, maximum = 64, default = 4)]
    num_positives: Option<u64>,
    /// Most negatives a set (|N|); none are used by `sft`.
    #[schema(minimum = 1, maximum = 64, default = 6)]
    num_negatives: Option<u64>,
    /// Candidates of other anchors that are negatives beside them.
    #[schema(minimum = 0, maximum = 64, default = 0)]
    random_negatives: Option<u64>,
    /// What a candidate's likelihood is conditioned on: `prompt`, the rewrite prompt of its anchor, or `nothing`.
    #[schema(default = "prompt")]
    conditioning: Option<String>,
    /// What is compared: `perplexity`, or its logarithm, `log_perplexity`.
    #[schema(default = "log_perplexity")]
    phi: Option<String>,
    /// How the distance d of phi from the prototype becomes similarity: `paper` exp(-|d|) / tau, `symmetric` exp(-|d| / tau),
    /// `directed` exp(-d / tau) for negatives; `released` is what the authors' program computes.
    #[schema(default = "directed")]
    similarity: Option<String>,
    /// Negatives so far above the prototype are left alone (`directed`).
    #[schema(minimum = 0, maximum = 1000, default = 1)]
    margin: Option<f64>,
    /// Temperature.
    #[schema(exclusive_minimum = 0, maximum = 1000, default = 0.3)]
    tau: Option<f64>,
    /// Weight of the negatives.
    #[schema(minimum = 0, maximum = 1000, default = 1)]
    alpha: Option<f64>,
    /// The prototype is a constant for the gradient.
    #[schema(default = false)]
    detach_prototype: Option<bool>,
    /// Which parts of the contrastive loss are computed, for ablations: `both`, `positives`, `negatives`.
    #[schema(default = "both")]
    sides: Option<String>,
    /// Weight of the contrastive term.
    #[schema(minimum = 0, maximum = 1000, default = 0.75)]
    cp_weight: Option<f64>,
    /// Weight of the likelihood of the positives (`cp`; 0 for `dpo` and `simpo`).
    #[schema(minimum = 0, maximum = 1000, default = 1)]
    sft_weight: Option<f64>,
    /// Strength of the comparison (`dpo`: 0.1, `simpo`: 2), or price of a nat's divergence from the reference (`ppo`: 0.05).
    #[schema(exclusive_minimum = 0, maximum = 1000)]
    beta: Option<f64>,
    /// Margin by which a positive is to be ahead (`simpo`).
    #[schema(minimum = 0, maximum = 1000, default = 1)]
    gamma: Option<f64>,
    /// Compares likelihoods a token instead of those of whole texts (`dpo`).
    #[schema(default = false)]
    length_normalised: Option<bool>,
    /// Texts that are written for each prompt (`ppo`).
    #[schema(minimum = 2, maximum = 64, default = 4)]
    samples: Option<u64>,
    /// Updates with the same texts (`ppo`).
    #[schema(minimum = 1, maximum = 64, default = 2)]
    ppo_epochs: Option<u64>,
    /// How far a likelihood ratio may go (`ppo`).
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1, default = 0.2)]
    clip: Option<f64>,
}

/// Reads them; what is wrong is noted in `fields`.
pub fn read(fields: &mut Fields, objective: ObjectiveName, max_rank: u32) -> Hyperparameters {
    let read = Hyperparameters {
        preset: word(fields, "preset", &["rewriter", "paper", "released"]),
        init_adapter: fields.text("init_adapter"),
        epochs: fields.number("epochs", "above 0, at most 100000", |n| n > 0.0 && n <= 100_000.0),
        max_steps: fields.count("max_steps", 1..=1_000_000),
        batch_tokens: fields.count("batch_tokens", 16..=65_536),
        batch_size: fields.count("batch_size", 1..=4096),
        gradient_accumulation: fields.count("gradient_accumulation", 1..=1024),
        learning_rate: fields.number("learning_rate", "above 0, at most 1", |n| n > 0.0 && n <= 1.0),
        warmup_steps: fields.count("warmup_steps", 0..=1_000_000),
        schedule: word(fields, "schedule", &["cosine", "linear", "constant"]),
        seed: fields.whole("seed", 0..=i64::MAX).map(i64::unsigned_abs),
        lora_rank: fields.count("lora_rank", 1..=max_rank),
        lora_alpha: fields.number("lora_alpha", "above 0, at most 4096", |n| n > 0.0 && n <= 4096.0),
        lora_dropout: fields.number("lora_dropout", "at least 0, below 1", |n| (0.0..1.0).contains(&n)),
        quantize: word(fields, "quantize", &["none", "nf4", "q4_k"]),
        target_modules: fields.words("target_modules", &MODULES),
        max_tokens: fields.count("max_tokens", 16..=8192),
        num_positives: fields.count("num_positives", 1..=64),
        num_negatives: fields.count("num_negatives", 1..=64),
        random_negatives: fields.count("random_negatives", 0..=64),
        conditioning: word(fields, "conditioning", &["prompt", "nothing"]),
        phi: word(fields, "phi", &["perplexity", "log_perplexity"]),
        similarity: word(fields, "similarity", &["paper", "symmetric", "directed", "released"]),
        margin: weight(fields, "margin"),
        tau: fields.number("tau", "above 0, at most 1000", |n| n > 0.0 && n <= 1000.0),
        alpha: weight(fields, "alpha"),
        detach_prototype: fields.truth("detach_prototype"),
        sides: word(fields, "sides", &["both", "positives", "negatives"]),
        cp_weight: weight(fields, "cp_weight"),
        sft_weight: weight(fields, "sft_weight"),
        beta: fields.number("beta", "above 0, at most 1000", |n| n > 0.0 && n <= 1000.0),
        gamma: weight(fields, "gamma"),
        length_normalised: fields.truth("length_normalised"),
        samples: fields.count("samples", 2..=64),
        ppo_epochs: fields.count("ppo_epochs", 1..=64),
        clip: fields.number("clip", "between 0 and 1", |n| n > 0.0 && n < 1.0),
    };
    if objective == ObjectiveName::Cp && read.cp_weight == Some(0.0) && read.sft_weight == Some(0.0) {
        fields.error(
            "cp_weight",
            "must not be 0 together with sft_weight: nothing would be trained",
        );
    }
    if objective == ObjectiveName::Ppo && read.conditioning.as_deref() == Some("nothing") {
        fields.error("conditioning", "must be prompt for ppo, which writes rewrites");
    }
    if read.init_adapter.is_some() {
        for (name, given) in [
            ("lora_rank", read.lora_rank.is_some()),
            ("lora_alpha", read.lora_alpha.is_some()),
            ("lora_dropout", read.lora_dropout.is_some()),
            ("target_modules", read.target_modules.is_some()),
        ] {
            if given {
                fields.error(name, "can't be given with init_adapter, whose own is kept");
            }
        }
    }
    read
}

fn word(fields: &mut Fields, name: &str, words: &[&str]) -> Option<String> {
    fields.word(name, words).map(str::to_owned)
}

fn weight(fields: &mut Fields, name: &str) -> Option<f64> {
    fields.number(name, "from 0 to 1000", |n| (0.0..=1000.0).contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use utoipa::PartialSchema;

    /// The document names what is read, and the other way round.
    #[test]
    fn the_schema_has_the_fields_that_are_read() {
        let schema = serde_json::to_value(HyperparametersBody::schema()).unwrap();
        let documented: BTreeSet<&str> = schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(|name| &**name)
            .collect();
        for name in &documented {
            // A value of no field's type: a field that is read is refused by its type, another one by its name.
            let mut fields = Fields::of(serde_json::json!({ *name: {} })).unwrap();
            read(&mut fields, ObjectiveName::Cp, 256);
            let problem = fields.finish(Some(())).unwrap_err();
            assert!(!problem.detail.contains("no field"), "{name}: {}", problem.detail);
        }
        let every = Hyperparameters {
            preset: Some(String::new()),
            init_adapter: Some(String::new()),
            epochs: Some(1.0),
            max_steps: Some(1),
            batch_tokens: Some(1),
            batch_size: Some(1),
            gradient_accumulation: Some(1),
            learning_rate: Some(1.0),
            warmup_steps: Some(1),
            schedule: Some(String::new()),
            seed: Some(1),
            lora_rank: Some(1),
            lora_alpha: Some(1.0),
            lora_dropout: Some(0.5),
            quantize: Some(String::new()),
            target_modules: Some(Vec::new()),
            max_tokens: Some(1),
            num_positives: Some(1),
            num_negatives: Some(1),
            random_negatives: Some(1),
            conditioning: Some(String::new()),
            phi: Some(String::new()),
            similarity: Some(String::new()),
            margin: Some(1.0),
            tau: Some(1.0),
            alpha: Some(1.0),
            detach_prototype: Some(true),
            sides: Some(String::new()),
            cp_weight: Some(1.0),
            sft_weight: Some(1.0),
            beta: Some(1.0),
            gamma: Some(1.0),
            length_normalised: Some(true),
            samples: Some(2),
            ppo_epochs: Some(1),
            clip: Some(0.5),
        };
        let every = serde_json::to_value(every).unwrap();
        let kept: BTreeSet<&str> = every.as_object().unwrap().keys().map(|name| &**name).collect();
        assert_eq!(documented, kept);
    }
}
