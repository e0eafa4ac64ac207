//! The two files of an adapter, as bytes.

use candle_core::DType;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::model::ModelError;
use crate::model::fingerprint::hex;
use crate::model::lora::read_config;

/// Name of the settings in PEFT's layout.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the weights in PEFT's layout.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The two files of an adapter in PEFT's layout, read once: what was checked is what is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

/// What an adapter is going to take, as its files claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Bytes of its tensors once loaded, in single precision.
    pub bytes: u64,
    /// Its rank.
    pub rank: usize,
}

impl std::fmt::Debug for AdapterFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterFiles")
            .field("config", &self.config.len())
            .field("weights", &self.weights.len())
            .finish()
    }
}

impl AdapterFiles {
    /// What identifies the content: SHA-256 over the SHA-256 of either file, in hexadecimal.
    pub fn sha256(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(Sha256::digest(&self.config));
        digest.update(Sha256::digest(&self.weights));
        hex(&digest.finalize())
    }

    /// Size of the two files.
    pub fn bytes(&self) -> u64 {
        (self.config.len() + self.weights.len()) as u64
    }

    /// What it is going to take, from the settings and the header of the weights: nothing is loaded.
    ///
    /// # Errors
    /// When either is malformed, a PEFT feature is asked for that is not computed here, or the weights are shorter or longer than their
    /// header says.
    pub fn claim(&self) -> Result<Claim, ModelError> {
        let config = read_config(&self.config)?;
        let wrong = |reason: String| ModelError::Adapter(format!("{WEIGHTS}: {reason}"));
        let tensors = SafeTensors::deserialize(&self.weights).map_err(|error| wrong(error.to_string()))?;
        let mut bytes = 0u64;
        for (name, tensor) in tensors.iter() {
            if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(wrong(format!(
                    "the tensor {name} has type {:?}, expected F32, F16 or BF16",
                    tensor.dtype()
                )));
            }
            let values: usize = tensor.shape().iter().product();
            // Serving makes a copy in the order in which it reads.
            bytes += 2 * (values * DType::F32.size_in_bytes()) as u64;
        }
        Ok(Claim { bytes, rank: config.r })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> AdapterFiles {
        let read = |name: &str| std::fs::read(format!("tests/fixtures/micro/adapter/{name}")).unwrap();
        AdapterFiles {
            config: read(CONFIG),
            weights: read(WEIGHTS),
        }
    }

    #[test]
    fn the_sum_tells_the_files_apart() {
        let files = files();
        let swapped = AdapterFiles {
            config: files.weights.clone(),
            weights: files.config.clone(),
        };
        assert_eq!(files.sha256().len(), 64);
        assert_ne!(files.sha256(), swapped.sha256());
        let mut changed = files.clone();
        changed.weights[100] ^= 1;
        assert_ne!(files.sha256(), changed.sha256());
    }

    #[test]
    fn the_claim_is_read_from_the_header_and_must_be_true() {
        let files = files();
        let claim = files.claim().unwrap();
        assert_eq!(claim.rank, 4);
        // Half precision in the file, single precision in memory.
        assert!(claim.bytes > files.weights.len() as u64, "{claim:?}");
        let mut short = files.clone();
        short.weights.truncate(files.weights.len() - 1);
        assert!(short.claim().unwrap_err().to_string().contains(WEIGHTS));
        let mut long = files.clone();
        long.weights.push(0);
        assert!(long.claim().is_err());
        let mut dora = files;
        dora.config = String::from_utf8(dora.config)
            .unwrap()
            .replace("\"use_dora\": false", "\"use_dora\": true")
            .into_bytes();
        assert!(dora.claim().unwrap_err().to_string().contains("use_dora"));
    }
}
