//! An adapter merged into its base: a checkpoint in Hugging Face layout that needs no adapter any more.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::config::RopeScaling;
use super::lora::LoraModel;
use super::weights::{ModelFiles, Purpose};
use super::{DecoderConfig, ModelError, whole};

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const PREFIX: &str = "base_model.model.";

/// The update of each adapted matrix, by the name of the matrix: `W + alpha / r · B · A`.
struct Updates {
    pairs: BTreeMap<String, (Tensor, Tensor)>,
    scale: f64,
}

impl Updates {
    fn of(adapter: &LoraModel) -> Result<Self, ModelError> {
        let mut tensors: HashMap<String, Tensor> = adapter.named_tensors()?.into_iter().collect();
        let modules: Vec<String> = tensors
            .keys()
            .filter_map(|name| Some(name.strip_prefix(PREFIX)?.strip_suffix(".lora_A.weight")?.to_owned()))
            .collect();
        let mut pairs = BTreeMap::new();
        for module in modules {
            let mut take = |matrix: &str| {
                let name = format!("{PREFIX}{module}.{matrix}.weight");
                tensors.remove(&name).ok_or(ModelError::MissingTensor(name))
            };
            let pair = (take("lora_A")?, take("lora_B")?);
            pairs.insert(format!("{module}.weight"), pair);
        }
        Ok(Self {
            pairs,
            scale: f64::from(adapter.scale()),
        })
    }

    /// A tensor of the base with its update, if it has one, in `dtype` or else its own.
    fn apply(&mut self, name: &str, tensor: &Tensor, dtype: Option<DType>) -> Result<Tensor, ModelError> {
        let wanted = dtype.unwrap_or(tensor.dtype());
        let Some((a, b)) = self.pairs.remove(name) else {
            return Ok(tensor.to_dtype(wanted)?);
        };
        let update = (b.matmul(&a)? * self.scale)?;
        if update.dims() != tensor.dims() {
            return Err(ModelError::Shape {
                name: name.to_owned(),
                found: tensor.dims().to_vec(),
                expected: update.dims().to_vec(),
            });
        }
        Ok((tensor.to_dtype(DType::F32)? + update)?.to_dtype(wanted)?)
    }

    fn all_applied(&self) -> Result<(), ModelError> {
        match self.pairs.keys().next() {
            Some(name) => Err(ModelError::Adapter(format!(
                "it updates {name}, which the base does not have as a matrix of its own"
            ))),
            None => Ok(()),
        }
    }
}

/// Writes the base with the adapter merged in to a folder, which is made: the weights as safetensors (sharded as the base is), with
/// `config.json`, `tokenizer.json` and what else lies beside the base's weights. Numbers have the base's types, or `dtype`;
/// those of a GGUF file are dequantised.
///
/// # Errors
/// When a file can't be read or written, the adapter does not fit the base, or there is something in the folder already.
pub fn merge(base: &Path, adapter: &Path, out: &Path, dtype: Option<DType>) -> Result<(), ModelError> {
    let files = ModelFiles::open(base)?;
    let adapter = LoraModel::load(adapter, files.config(), &Device::Cpu)?;
    let mut updates = Updates::of(&adapter)?;
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ModelError::Io {
            path: out.display().to_string(),
            source: std::io::Error::from(std::io::ErrorKind::AlreadyExists),
        });
    }
    // Written aside and renamed: a folder of that name holds the whole checkpoint.
    let mut name = std::ffi::OsString::from(".unfinished-");
    name.push(out.file_name().unwrap_or_default());
    let unfinished = out.with_file_name(name);
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished).map_err(ModelError::io(&unfinished))?;
    if base.is_dir() {
        merge_folder(base, &mut updates, &unfinished, dtype)?;
    } else {
        merge_gguf(&files, &mut updates, &unfinished, dtype.unwrap_or(DType::F16))?;
    }
    updates.all_applied()?;
    if ModelFiles::open(&unfinished)?.config() != files.config() {
        return Err(ModelError::Config(
            "the base has settings that a config.json written here would lose".to_owned(),
        ));
    }
    fs::rename(&unfinished, out).map_err(ModelError::io(out))
}

fn merge_folder(base: &Path, updates: &mut Updates, out: &Path, dtype: Option<DType>) -> Result<(), ModelError> {
    let mut bytes = 0;
    for path in files_in(base)? {
        let Some(name) = path.file_name() else { continue };
        let to = out.join(name);
        let extension = path.extension().unwrap_or_default();
        if extension == "safetensors" {
            // SAFETY: the file is read only; a model file changed under a running process is outside the contract.
            let shard = unsafe { MmapedSafetensors::new(&path) }?;
            let mut tensors = Vec::new();
            for (name, _) in shard.tensors() {
                let tensor = updates.apply(&name, &shard.load(&name, &Device::Cpu)?, dtype)?;
                bytes += tensor.elem_count() * tensor.dtype().size_in_bytes();
                tensors.push((name, tensor));
            }
            write_weights(tensors, &to)?;
        } else if !["bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx"]
            .iter()
            .any(|other| extension == *other)
        {
            fs::copy(&path, &to).map_err(ModelError::io(&to))?;
        }
    }
    if let Some(dtype) = dtype {
        change_json(&out.join(CONFIG), |config| {
            // Newer checkpoints have the shorter name, older ones the longer.
            let key = if config.contains_key("dtype") {
                "dtype"
            } else {
                "torch_dtype"
            };
            config.insert(key.to_owned(), type_name(dtype).into());
        })?;
    }
    let index = out.join(INDEX);
    if index.exists() {
        change_json(&index, |index| {
            if let Some(Value::Object(metadata)) = index.get_mut("metadata") {
                metadata.insert("total_size".to_owned(), bytes.into());
            }
        })?;
    }
    Ok(())
}

fn merge_gguf(files: &ModelFiles, updates: &mut Updates, out: &Path, dtype: DType) -> Result<(), ModelError> {
    let decoder = files.load(Purpose::ServeDense, &Device::Cpu)?;
    let mut tensors = Vec::new();
    for (name, tensor) in whole::named_tensors(&decoder)? {
        let merged = updates.apply(&name, &tensor, Some(dtype))?;
        tensors.push((name, merged));
    }
    write_weights(tensors, &out.join("model.safetensors"))?;
    let tokenizer = files.tokenizer()?;
    let path = out.join("tokenizer.json");
    tokenizer.save(&path).map_err(|error| ModelError::Format {
        path: path.display().to_string(),
        what: "tokenizer",
        reason: error.to_string(),
    })?;
    let path = out.join(CONFIG);
    let end = tokenizer.token_id("<|im_end|>");
    let json = written_config(files.config(), type_name(dtype), end);
    fs::write(&path, format!("{json:#}\n")).map_err(ModelError::io(&path))
}

/// A `config.json` of the family whose defaults are nearest to what a GGUF file says; what it cannot say is seen when it is read back.
fn written_config(config: &DecoderConfig, dtype: &str, end: Option<u32>) -> Value {
    let window = config.windows.first().copied().flatten();
    let (architecture, family) = match (config.biases.qkv, window) {
        (true, _) => ("Qwen2ForCausalLM", "qwen2"),
        (false, Some(_)) => ("MistralForCausalLM", "mistral"),
        (false, None) => ("LlamaForCausalLM", "llama"),
    };
    let mut json = serde_json::json!({
        "architectures": [architecture],
        "model_type": family,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "eos_token_id": end,
        "torch_dtype": dtype,
    });
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        json["rope_scaling"] = serde_json::json!({ "rope_type": "linear", "factor": factor });
    }
    if let Some(window) = window {
        json["sliding_window"] = window.into();
        json["use_sliding_window"] = true.into();
        json["max_window_layers"] = 0.into();
    }
    json
}

fn write_weights(tensors: Vec<(String, Tensor)>, path: &Path) -> Result<(), ModelError> {
    // transformers refuses a file that does not say this.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| ModelError::Io {
        path: path.display().to_string(),
        source: std::io::Error::other(error),
    })
}

fn change_json(path: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Result<(), ModelError> {
    let bytes = fs::read(path).map_err(ModelError::io(path))?;
    let mut json = serde_json::from_slice(&bytes).map_err(|error| ModelError::Format {
        path: path.display().to_string(),
        what: "JSON object",
        reason: error.to_string(),
    })?;
    change(&mut json);
    fs::write(path, format!("{:#}\n", Value::Object(json))).map_err(ModelError::io(path))
}

/// Plain files of a folder, hidden ones not, in the order of their names.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let entries = fs::read_dir(folder).map_err(ModelError::io(folder))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] != b'.'))
        .collect();
    paths.sort();
    Ok(paths)
}

fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
}
