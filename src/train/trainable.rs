//! What a run trains: an adapter over a frozen decoder, or a whole decoder.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::TrainError;
use super::batch::Batch;
use crate::model::Decoder;
use crate::model::layers::Adaptation;
use crate::model::lora::{LoraConfig, LoraModel};
use crate::model::whole::{self, Blueprint};

/// What a run begins with.
pub enum Start<'a> {
    /// A new adapter.
    NewAdapter {
        /// The frozen model.
        base: &'a Decoder,
        /// The adapter's shape.
        config: LoraConfig,
    },
    /// An existing adapter, trained on.
    Adapter {
        /// The frozen model.
        base: &'a Decoder,
        /// The adapter.
        adapter: LoraModel,
    },
    /// A new model, every weight of which is trained.
    NewModel {
        /// Its shape and tokenizer.
        blueprint: &'a Blueprint,
        /// Where it lives.
        device: Device,
    },
}

/// Variables, and the decoder that they are part of.
pub enum Trainable<'a> {
    /// An adapter; the decoder is frozen.
    Adapter {
        /// The frozen model.
        base: &'a Decoder,
        /// Its tensors are variables.
        adapter: LoraModel,
    },
    /// Every weight of the decoder.
    Whole {
        /// Its shape and tokenizer.
        blueprint: &'a Blueprint,
        /// Its weights are variables.
        decoder: Decoder,
    },
}

/// The model that a run began with, from which a policy must not stray too far.
pub struct Reference<'a> {
    base: &'a Decoder,
    adapter: Option<LoraModel>,
}

impl Reference<'_> {
    /// Nats of each of a batch's targets, without a gradient.
    ///
    /// # Errors
    /// When the model cannot run the batch.
    pub fn nll(&self, batch: &Batch) -> Result<Vec<f32>, TrainError> {
        let adaptation = self.adapter.as_ref().map_or(Adaptation::Base, Adaptation::Lora);
        nll(self.base, adaptation, batch)
    }
}

/// Nats of each of a batch's targets.
///
/// # Errors
/// When the model cannot run the batch.
pub fn nll(decoder: &Decoder, adaptation: Adaptation<'_>, batch: &Batch) -> Result<Vec<f32>, TrainError> {
    let hidden = decoder.forward_packed(&batch.tokens, &batch.packing, adaptation)?;
    Ok(decoder
        .cross_entropy(&hidden, &batch.targets, adaptation)?
        .to_vec1::<f32>()?)
}

impl<'a> Start<'a> {
    /// The model as it is now, also when the run is resumed later; `None` for one that is trained as a whole, of which there is no
    /// second copy.
    pub fn reference(&self) -> Option<Reference<'a>> {
        match self {
            // A new adapter changes nothing yet.
            Self::NewAdapter { base, .. } => Some(Reference { base, adapter: None }),
            Self::Adapter { base, adapter } => Some(Reference {
                base,
                adapter: Some(adapter.clone()),
            }),
            Self::NewModel { .. } => None,
        }
    }

    /// The variables of the first step.
    ///
    /// # Errors
    /// When the adapter's settings do not fit the model.
    pub fn begin(self, seed: u64) -> Result<Trainable<'a>, TrainError> {
        let mut rng = StdRng::seed_from_u64(seed);
        Ok(match self {
            Self::NewAdapter { base, config } => Trainable::Adapter {
                base,
                adapter: LoraModel::initialise(config, base.config(), base.device(), &mut rng)?,
            },
            Self::Adapter { base, adapter } => Trainable::Adapter {
                base,
                adapter: adapter.into_variables()?,
            },
            Self::NewModel { blueprint, device } => Trainable::Whole {
                blueprint,
                decoder: blueprint.begin(&device, &mut rng)?,
            },
        })
    }

    /// The variables of a later step, as [`Trainable::save`] left them in a folder.
    ///
    /// # Errors
    /// When the folder holds something else.
    pub fn resume(&self, folder: &Path) -> Result<Trainable<'a>, TrainError> {
        Ok(match self {
            Self::NewAdapter { base, .. } | Self::Adapter { base, .. } => Trainable::Adapter {
                base,
                adapter: LoraModel::load(folder, base.config(), base.device())?.into_variables()?,
            },
            Self::NewModel { blueprint, device } => Trainable::Whole {
                blueprint,
                decoder: blueprint.load(folder, device)?,
            },
        })
    }
}

impl Trainable<'_> {
    /// The decoder, to be run with [`Trainable::adaptation`].
    pub fn decoder(&self) -> &Decoder {
        match self {
            Self::Adapter { base, .. } => base,
            Self::Whole { decoder, .. } => decoder,
        }
    }

    /// What the decoder runs with in training; the seed decides what an adapter's dropout leaves out.
    pub fn adaptation(&self, dropout_seed: u64) -> Adaptation<'_> {
        match self {
            Self::Adapter { adapter, .. } => Adaptation::Training(adapter, dropout_seed),
            Self::Whole { .. } => Adaptation::Base,
        }
    }

    /// The adapter without a gradient, to run the decoder with where none is wanted.
    pub fn frozen(&self) -> Option<LoraModel> {
        match self {
            Self::Adapter { adapter, .. } => Some(adapter.detached()),
            Self::Whole { .. } => None,
        }
    }

    /// The variables by name, in a fixed order.
    ///
    /// # Errors
    /// When the decoder was not loaded for training as a whole.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        Ok(match self {
            Self::Adapter { adapter, .. } => adapter.parameters(),
            Self::Whole { decoder, .. } => whole::parameters(decoder)?,
        })
    }

    /// Writes what others can load to a folder that exists: a PEFT adapter, or a model in Hugging Face layout.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, dtype: DType) -> Result<(), TrainError> {
        match self {
            Self::Adapter { adapter, .. } => adapter.save(folder, dtype)?,
            Self::Whole { blueprint, decoder } => blueprint.save(decoder, folder, dtype)?,
        }
        Ok(())
    }

    /// Name of the finished folder within the run.
    pub fn folder_name(&self) -> &'static str {
        match self {
            Self::Adapter { .. } => "adapter",
            Self::Whole { .. } => "model",
        }
    }
}
