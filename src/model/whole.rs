//! A decoder that is itself trained: from random weights or a folder's, through variables, to a folder in Hugging Face layout.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;
use rand::rngs::StdRng;

use super::build::{TensorSource, build};
use super::decoder::{Block, Decoder, Placement};
use super::layers::{Embedding, Linear, Norm, Projection, Weight};
use super::layout::{self, HEAD};
use super::tokenizer::TextTokenizer;
use super::weights::{ModelFiles, Purpose};
use super::{DecoderConfig, ModelError};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";

/// Standard deviation of new weights.
const INITIAL_DEVIATION: f64 = 0.02;

/// The shape of a model that is to be trained: the `config.json` and `tokenizer.json` of a folder.
#[derive(Debug)]
pub struct Blueprint {
    folder: PathBuf,
    json: serde_json::Map<String, serde_json::Value>,
    tokenizer_json: Vec<u8>,
    tokenizer: TextTokenizer,
    config: DecoderConfig,
}

impl Blueprint {
    /// Reads a folder.
    ///
    /// # Errors
    /// When a file is missing or malformed, or the tokenizer has more tokens than the configuration says.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(ModelError::io(&path))
        };
        let text = read(CONFIG)?;
        let config = DecoderConfig::from_hugging_face(&text)?;
        let json = serde_json::from_str(&text).map_err(|error| ModelError::Config(error.to_string()))?;
        let path = folder.join(TOKENIZER);
        let tokenizer = TextTokenizer::from_file(&path).map_err(|error| ModelError::Format {
            path: path.display().to_string(),
            what: "tokenizer",
            reason: error.to_string(),
        })?;
        if tokenizer.vocabulary_size() > config.vocab_size {
            return Err(ModelError::Config(format!(
                "vocab_size is {}, the tokenizer has {} tokens",
                config.vocab_size,
                tokenizer.vocabulary_size()
            )));
        }
        Ok(Self {
            folder: folder.to_owned(),
            json,
            tokenizer_json: read(TOKENIZER)?.into_bytes(),
            tokenizer,
            config,
        })
    }

    /// Where it was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// A decoder of this shape whose weights are variables: those of the folder, where it has `.safetensors` files, else
    /// [random ones](Self::initialise).
    ///
    /// # Errors
    /// When the folder's weights don't fit its configuration, or memory cannot be had.
    pub fn begin(&self, device: &Device, rng: &mut StdRng) -> Result<Decoder, ModelError> {
        let mut files = std::fs::read_dir(&self.folder).map_err(ModelError::io(&self.folder))?;
        let is_weights = |file: std::fs::DirEntry| {
            file.path()
                .extension()
                .is_some_and(|extension| extension == "safetensors")
        };
        if files.any(|file| file.is_ok_and(is_weights)) {
            return self.load(&self.folder, device);
        }
        self.initialise(device, rng)
    }

    /// A decoder of this shape whose weights are variables, drawn from a normal distribution: of deviation 0.02, and of
    /// 0.02 / √(2 layers) where a projection writes to the residual stream (Radford et al. 2019). Norms begin at one.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn initialise(&self, device: &Device, rng: &mut StdRng) -> Result<Decoder, ModelError> {
        let residual_deviation = INITIAL_DEVIATION / (2.0 * self.config.num_layers as f64).sqrt();
        let mut source = RandomWeights {
            rng,
            device,
            residual_deviation,
        };
        build(self.config.clone(), Placement::own(device.clone()), &mut source)
    }

    /// A decoder whose weights are variables, as [`Blueprint::save`] left it in a folder.
    ///
    /// # Errors
    /// When the folder holds a model of another shape, or none.
    pub fn load(&self, folder: &Path, device: &Device) -> Result<Decoder, ModelError> {
        let files = ModelFiles::open(folder)?;
        if *files.config() != self.config {
            return Err(ModelError::Config(format!(
                "the model in {} has another shape than {}",
                folder.display(),
                self.folder.display()
            )));
        }
        files.load(Purpose::TrainWhole, device)
    }

    /// Writes a decoder of this shape as a folder in Hugging Face layout, which must exist.
    ///
    /// # Errors
    /// When a file cannot be written, or the decoder's weights are packed or quantised.
    pub fn save(&self, decoder: &Decoder, folder: &Path, dtype: DType) -> Result<(), ModelError> {
        let mut json = self.json.clone();
        let name = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        json.insert("torch_dtype".to_owned(), name.into());
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(ModelError::io(&path))
        };
        write(CONFIG, format!("{:#}\n", serde_json::Value::Object(json)).as_bytes())?;
        write(TOKENIZER, &self.tokenizer_json)?;
        let tensors = named_tensors(decoder)?
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(dtype)?)))
            .collect::<Result<Vec<_>, ModelError>>()?;
        // transformers refuses a file that does not say this.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let path = folder.join(WEIGHTS);
        safetensors::serialize_to_file(tensors, Some(metadata), &path).map_err(|error| ModelError::Io {
            path: path.display().to_string(),
            source: std::io::Error::other(error),
        })
    }
}

/// The tensors of a decoder by name, in a fixed order, fused ones as one: what an optimizer moves when they are variables.
///
/// # Errors
/// When a weight is packed or quantised.
pub fn parameters(decoder: &Decoder) -> Result<Vec<(String, Tensor)>, ModelError> {
    let mut named = outer_tensors(decoder)?;
    for (layer, block) in decoder.blocks.iter().enumerate() {
        named.extend(norms(layer, block, decoder));
        for linear in linears(block) {
            let module = decoder
                .config
                .naming
                .in_block(layer, &format!("{:?}", linear.projection()));
            let name = format!("{module}.weight");
            let weight = dense(linear.weight(), &name)?;
            named.push((name, weight));
            named.extend(linear.bias().map(|bias| (format!("{module}.bias"), bias.clone())));
        }
    }
    Ok(named)
}

/// The tensors of a decoder under the names that Hugging Face gives them, fused ones apart.
///
/// # Errors
/// When a weight is packed or quantised.
pub fn named_tensors(decoder: &Decoder) -> Result<Vec<(String, Tensor)>, ModelError> {
    let config = &decoder.config;
    let mut named = outer_tensors(decoder)?;
    for (layer, block) in decoder.blocks.iter().enumerate() {
        named.extend(norms(layer, block, decoder));
        for linear in linears(block) {
            for part in config.parts(linear.projection()) {
                let module = config.module_name(layer, linear.projection(), part.module);
                let weight = dense(linear.weight(), &module)?;
                let order = config.grouped_rows(&module).map(|order| {
                    let order: Vec<u32> = order.into_iter().map(|row| row as u32).collect();
                    layout::inverse(&order)
                });
                for (tensor, fused) in [("weight", Some(&weight)), ("bias", linear.bias())] {
                    let Some(fused) = fused else { continue };
                    let mut own = fused.narrow(0, part.rows.start, part.rows.len())?.contiguous()?;
                    if let Some(order) = &order {
                        own = own.index_select(&Tensor::from_slice(order, order.len(), own.device())?, 0)?;
                    }
                    named.push((format!("{module}.{tensor}"), own));
                }
            }
        }
    }
    Ok(named
        .into_iter()
        .map(|(name, tensor)| (name, tensor.detach()))
        .collect())
}

/// Embedding, last norm, and the head where it is a matrix of its own.
fn outer_tensors(decoder: &Decoder) -> Result<Vec<(String, Tensor)>, ModelError> {
    let name = format!("{}.weight", decoder.config.naming.embedding());
    let embedding = match &decoder.embedding {
        Embedding::Dense(table) => table.clone(),
        Embedding::Blocks(weight) => dense(weight, &name)?,
    };
    let mut named = vec![(name, embedding)];
    named.extend(norm_tensors(decoder.config.naming.last_norm(), &decoder.norm));
    if !decoder.config.tie_word_embeddings {
        named.push((format!("{HEAD}.weight"), dense(decoder.head.weight(), HEAD)?));
    }
    Ok(named)
}

fn norms(layer: usize, block: &Block, decoder: &Decoder) -> Vec<(String, Tensor)> {
    let (attention, mlp) = decoder.config.norm_names();
    let norms = [
        (Some(attention), Some(&block.attention_norm)),
        (mlp, block.mlp_norm.as_ref()),
    ];
    norms
        .into_iter()
        .filter_map(|(name, norm)| {
            let name = decoder.config.naming.in_block(layer, name?);
            Some(norm_tensors(&name, norm?).collect::<Vec<_>>())
        })
        .flatten()
        .collect()
}

fn norm_tensors(name: &str, norm: &Norm) -> impl Iterator<Item = (String, Tensor)> {
    norm.tensors()
        .map(move |(tensor, value)| (format!("{name}.{tensor}"), value.clone()))
}

fn linears(block: &Block) -> [&Linear; 4] {
    [&block.qkv, &block.output, &block.gate_up, &block.down]
}

fn dense(weight: &Weight, name: &str) -> Result<Tensor, ModelError> {
    match weight {
        Weight::Dense(tensor) => Ok(tensor.clone()),
        Weight::Bf16 { .. } | Weight::Quantized(_) | Weight::Blocks(_) => Err(ModelError::DType {
            name: name.to_owned(),
            dtype: "packed or quantised".to_owned(),
        }),
    }
}

/// Draws every weight.
struct RandomWeights<'a> {
    rng: &'a mut StdRng,
    device: &'a Device,
    residual_deviation: f64,
}

impl RandomWeights<'_> {
    fn normal(&mut self, (rows, columns): (usize, usize), deviation: f64) -> Result<Tensor, ModelError> {
        let values: Vec<f32> = (0..rows * columns)
            .map(|_| {
                // Box and Muller 1958.
                let radius = (-2.0 * self.rng.random_range(f64::MIN_POSITIVE..1.0).ln()).sqrt();
                let angle = self.rng.random_range(0.0..std::f64::consts::TAU);
                (deviation * radius * angle.cos()) as f32
            })
            .collect();
        let tensor = Tensor::from_vec(values, (rows, columns), self.device)?;
        Ok(Var::from_tensor(&tensor)?.into_inner())
    }
}

impl TensorSource for RandomWeights<'_> {
    fn weight(
        &mut self,
        projection: Projection,
        names: &[(String, usize)],
        columns: usize,
    ) -> Result<Weight, ModelError> {
        let rows = names.iter().map(|(_, rows)| rows).sum();
        let deviation = match projection {
            Projection::Output | Projection::Down => self.residual_deviation,
            Projection::Qkv | Projection::GateUp | Projection::Head => INITIAL_DEVIATION,
        };
        Ok(Weight::Dense(self.normal((rows, columns), deviation)?))
    }

    fn embedding(&mut self, _: &str, shape: (usize, usize)) -> Result<Embedding, ModelError> {
        Ok(Embedding::Dense(self.normal(shape, INITIAL_DEVIATION)?))
    }

    fn norm(&mut self, _: &str, len: usize) -> Result<Tensor, ModelError> {
        let ones = Tensor::ones(len, DType::F32, self.device)?;
        Ok(Var::from_tensor(&ones)?.into_inner())
    }

    fn bias(&mut self, names: &[(String, usize)]) -> Result<Tensor, ModelError> {
        let len: usize = names.iter().map(|(_, len)| len).sum();
        let zeros = Tensor::zeros(len, DType::F32, self.device)?;
        Ok(Var::from_tensor(&zeros)?.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::SeedableRng;

    use super::*;
    use crate::model::layers::Adaptation;
    use crate::model::ops::Target;
    use crate::model::packing::Packing;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/llama-tiny")
            .join(name)
    }

    fn loss(decoder: &Decoder) -> Tensor {
        // Every token of the vocabulary takes part, so that each row of the embedding has a gradient.
        let tokens: Vec<u32> = (0..decoder.config.vocab_size as u32).collect();
        let mut packing = Packing::new();
        let mut targets = Vec::new();
        for start in (0..tokens.len()).step_by(20) {
            let len = 20.min(tokens.len() - start);
            packing.push_sequence(len);
            targets.extend((start..start + len - 1).map(|row| Target {
                row: row as u32,
                token: tokens[row + 1],
            }));
        }
        let hidden = decoder
            .forward_packed(&tokens, &Arc::new(packing), Adaptation::Base)
            .unwrap();
        decoder
            .cross_entropy(&hidden, &targets, Adaptation::Base)
            .unwrap()
            .mean_all()
            .unwrap()
    }

    #[test]
    fn every_weight_gets_a_gradient() {
        for name in ["tied", "untied"] {
            let files = ModelFiles::open(&fixture(name)).unwrap();
            let decoder = files.load(Purpose::TrainWhole, &Device::Cpu).unwrap();
            let store = loss(&decoder).backward().unwrap();
            let parameters = parameters(&decoder).unwrap();
            let outer = if name == "tied" { 2 } else { 3 };
            assert_eq!(parameters.len(), outer + 6 * decoder.config.num_layers);
            for (parameter, tensor) in parameters {
                let gradient = store
                    .get(&tensor)
                    .unwrap_or_else(|| panic!("{name}: none for {parameter}"));
                let values: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
                assert!(values.iter().all(|value| value.is_finite()), "{name}: {parameter}");
                // Rows of the embedding that are never an input still have one as outputs when tied.
                let zeros = values.iter().filter(|value| **value == 0.0).count();
                let allowed = if parameter.contains("embed") {
                    values.len() / 10
                } else {
                    values.len() / 100
                };
                assert!(
                    zeros <= allowed,
                    "{name}: {zeros} zeros of {} in {parameter}",
                    values.len()
                );
            }
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let files = ModelFiles::open(&fixture("untied")).unwrap();
        let decoder = files.load(Purpose::TrainWhole, &Device::Cpu).unwrap();
        let store = loss(&decoder).backward().unwrap();
        let value = |decoder: &Decoder| f64::from(loss(decoder).to_scalar::<f32>().unwrap());
        for (name, tensor) in parameters(&decoder).unwrap() {
            // Along the gradient itself the difference is largest and so least lost in rounding.
            let gradient = store.get(&tensor).unwrap();
            let slope = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            let step = 0.02 / slope.sqrt();
            let variable = Var::from_tensor(&tensor).unwrap();
            let begin = tensor.copy().unwrap();
            let at = |step: f64| {
                variable.set(&(&begin + (gradient * step).unwrap()).unwrap()).unwrap();
                value(&decoder)
            };
            let difference = (at(step) - at(-step)) / (2.0 * step);
            at(0.0);
            assert!(
                (difference / slope - 1.0).abs() < 0.03,
                "{name}: {difference}, gradient {slope}"
            );
        }
    }

    #[test]
    fn a_saved_decoder_is_read_back_as_it_was() {
        let blueprint = Blueprint::open(&fixture("untied")).unwrap();
        let decoder = blueprint
            .initialise(&Device::Cpu, &mut StdRng::seed_from_u64(3))
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        blueprint.save(&decoder, folder.path(), DType::F32).unwrap();
        let read = blueprint.load(folder.path(), &Device::Cpu).unwrap();
        for ((name, a), (_, b)) in parameters(&decoder).unwrap().iter().zip(parameters(&read).unwrap()) {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(a), values(&b), "{name}");
        }
        let other = Blueprint::open(&fixture("tied")).unwrap();
        assert!(other.load(folder.path(), &Device::Cpu).is_err());
    }

    #[test]
    fn training_begins_with_the_weights_of_the_folder_if_it_has_any() {
        let blueprint = Blueprint::open(&fixture("untied")).unwrap();
        let begun = blueprint.begin(&Device::Cpu, &mut StdRng::seed_from_u64(3)).unwrap();
        let files = ModelFiles::open(&fixture("untied")).unwrap();
        let read = files.load(Purpose::TrainWhole, &Device::Cpu).unwrap();
        let norm = |decoder: &Decoder| {
            let (_, tensor) = parameters(decoder).unwrap().swap_remove(0);
            tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!(norm(&begun), norm(&read));

        let bare = tempfile::tempdir().unwrap();
        for name in [CONFIG, TOKENIZER] {
            std::fs::copy(fixture("untied").join(name), bare.path().join(name)).unwrap();
        }
        let random = Blueprint::open(bare.path()).unwrap();
        let random = random.begin(&Device::Cpu, &mut StdRng::seed_from_u64(3)).unwrap();
        assert_ne!(norm(&random), norm(&read));
    }

    #[test]
    fn new_weights_have_the_deviation_they_should() {
        let blueprint = Blueprint::open(&fixture("tied")).unwrap();
        let new = |seed| {
            let decoder = blueprint
                .initialise(&Device::Cpu, &mut StdRng::seed_from_u64(seed))
                .unwrap();
            named_tensors(&decoder).unwrap()
        };
        let layers = blueprint.config.num_layers as f32;
        for ((name, tensor), (_, other)) in new(1).into_iter().zip(new(2)) {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            let expected = match &name {
                norm if norm.contains("norm") => 1.0,
                residual if residual.contains("o_proj") || residual.contains("down_proj") => {
                    0.02 / (2.0 * layers).sqrt()
                }
                _ => 0.02,
            };
            assert!((deviation / expected - 1.0).abs() < 0.1, "{name}: {deviation}");
            let other: Vec<f32> = other.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(values == other, name.contains("norm"), "{name}");
        }
    }
}
