//! The adapters within the binary.

use candle_core::Device;

use super::files::AdapterFiles;
use super::lease::AdapterLease;
use super::version::{AdapterRef, AdapterVersion};
use crate::model::lora::LoraModel;
use crate::model::{DecoderConfig, ModelError, Placement};

/// An adapter that comes with the program, for one base model.
#[derive(Debug)]
pub struct ShippedAdapter {
    name: &'static str,
    number: u32,
    /// The base model's name in the catalogue.
    base: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
}

macro_rules! shipped {
    ($name:literal, $number:literal, $base:literal) => {
        ShippedAdapter {
            name: $name,
            number: $number,
            base: $base,
            config: shipped!(file "adapter_config.json", $name, $number, $base),
            weights: shipped!(file "adapter_model.safetensors", $name, $number, $base),
        }
    };
    (file $file:literal, $name:literal, $number:literal, $base:literal) => {
        include_bytes!(concat!("../../assets/adapters/", $base, "/", $name, "-", $number, "/", $file))
    };
}

/// A version stays once it was shipped: deployments name it.
static SHIPPED: [ShippedAdapter; 5] = [
    shipped!("default", 1, "smollm2-135m"),
    shipped!("default", 2, "smollm2-135m"),
    shipped!("default", 3, "smollm2-135m"),
    shipped!("default", 4, "smollm2-135m"),
    shipped!("tiny", 1, "tiny"),
];

impl ShippedAdapter {
    /// The newest shipped adapter that `wanted` means.
    pub fn find(wanted: &AdapterRef) -> Option<&'static Self> {
        SHIPPED
            .iter()
            .rev()
            .find(|shipped| shipped.version().answers_to(wanted))
    }

    /// The newest one shipped for a base model, as the catalogue names it.
    pub fn for_base(base: &str) -> Option<&'static Self> {
        SHIPPED.iter().rev().find(|shipped| shipped.base == base)
    }

    /// This one and those shipped before it for the same base, oldest first: registered in this order, each gets its own number.
    pub fn with_older(&'static self) -> impl Iterator<Item = &'static Self> {
        SHIPPED
            .iter()
            .filter(|shipped| (shipped.name, shipped.base) == (self.name, self.base) && shipped.number <= self.number)
    }

    /// What it is called.
    pub fn version(&self) -> AdapterVersion {
        AdapterVersion::new(self.name, self.number)
    }

    /// The base model it was trained on, as the catalogue names it.
    pub fn base(&self) -> &'static str {
        self.base
    }

    /// Its files, as they are registered.
    pub fn files(&self) -> AdapterFiles {
        AdapterFiles {
            config: self.config.to_vec(),
            weights: self.weights.to_vec(),
        }
    }

    /// Loads it for a decoder.
    ///
    /// # Errors
    /// When the decoder is not of the base model's shape.
    pub fn load(&self, decoder: &DecoderConfig, placement: &Placement) -> Result<AdapterLease, ModelError> {
        let adapter = LoraModel::from_bytes(self.config, self.weights, decoder, &Device::Cpu)?;
        let adapter = adapter.placed(decoder, placement)?;
        Ok(AdapterLease::new(self.version(), adapter.into()))
    }
}
