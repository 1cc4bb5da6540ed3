//! LoRA adapters: two narrow matrices beside each matrix that was trained on, `y = W x + scale · (x A) B`.
//!
//! Formats: mlx-lm's (`adapters.safetensors`, `adapter_config.json`; mlx_lm/tuner/lora.py) and PEFT's
//! (`adapter_model.safetensors`, `adapter_config.json` with a `peft_type`). Which layers and parts an adapter changes is told
//! by its tensors alone; they must fit the model, or the adapter is refused before any weight is read.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{Checkpoint, CheckpointError, TensorInfo, text_part};
use crate::digest::Sha256Digest;
use crate::hint::Hint;
use crate::verified::{IntegrityError, VerifiedFile, VerifiedFolder};

/// The name of an adapter's configuration, in both formats.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The largest configuration of an adapter that is read: 1 MiB.
pub const ADAPTER_CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The largest rank of an adapter.
pub const RANK_MAX: usize = 1_024;
/// The largest factor of an adapter; mlx-lm's own default is 20.
const SCALE_MAX: f64 = 10_000.0;

/// An adapter can't be used, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file that every adapter has isn't there.
    #[error("the adapter has no `{file}`")]
    Missing {
        /// Which.
        file: String,
    },
    /// A file isn't what its name says.
    #[error("the adapter's `{file}` isn't valid: {why}")]
    Malformed {
        /// Which.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A kind of adapter that is known and can't be applied.
    #[error("the adapter is {what}, which isn't supported")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// A tensor doesn't fit the model.
    #[error("the adapter's tensor `{name}` doesn't fit the model: {why}")]
    Misfit {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl Hint for AdapterError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing { .. } => {
                "name the folder that `mlx_lm.lora` wrote, with `adapters.safetensors` and `adapter_config.json`".into()
            }
            Self::Malformed { .. } => "copy the adapter again from where it was trained".into(),
            Self::Unsupported { .. } => {
                "train it with `fine_tune_type: lora`, or merge it with `mlx_lm.fuse` and import the result".into()
            }
            Self::Misfit { .. } => "use the adapter with the model that it was trained for".into(),
        })
    }
}

/// Where an adapter is: a folder, or a file in it beside its configuration.
#[derive(Clone, Debug)]
pub struct AdapterFiles {
    folder: VerifiedFolder,
    /// What stands before the names of its files in `folder`: nothing, or folders that end with `/`.
    below: String,
    /// Its weights, where they were named; else they have their format's usual name.
    weights: Option<String>,
}

impl AdapterFiles {
    /// The adapter that `path`, relative to `folder`, names: a folder, or the `.safetensors` file in one.
    pub fn new(folder: VerifiedFolder, path: &str) -> Self {
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let is_file = parts.last().is_some_and(|last| last.to_ascii_lowercase().ends_with(".safetensors"));
        let weights = if is_file { parts.pop().map(str::to_owned) } else { None };
        let below = parts.iter().map(|part| format!("{part}/")).collect();
        Self { folder, below, weights }
    }

    /// A digest of its files and of which of them count. `None` where nothing vouches for them.
    pub fn fingerprint(&self) -> Option<Sha256Digest> {
        let which = format!("{}{}", self.below, self.weights.as_deref().unwrap_or_default());
        Some(Sha256Digest::of(&[&self.folder.fingerprint()?.0[..], which.as_bytes()].concat()))
    }

    /// The paths of its configuration and of its weights, relative to its folder.
    ///
    /// # Errors
    /// There is no configuration, or it isn't that of an adapter that can be used.
    pub fn paths(&self) -> Result<[String; 2], CheckpointError> {
        let config = self.config()?;
        Ok([ADAPTER_CONFIG, self.weights_name(&config)].map(|name| format!("{}{name}", self.below)))
    }

    fn config(&self) -> Result<AdapterConfig, CheckpointError> {
        let bytes = self.folder.read(&format!("{}{ADAPTER_CONFIG}", self.below), ADAPTER_CONFIG_BYTES_MAX)?;
        let bytes = bytes.ok_or_else(|| AdapterError::Missing { file: ADAPTER_CONFIG.into() })?;
        Ok(AdapterConfig::parse(&bytes)?)
    }

    fn weights_name<'a>(&'a self, config: &AdapterConfig) -> &'a str {
        self.weights.as_deref().unwrap_or(config.layout.file_name())
    }

    fn open(&self, name: &str) -> Result<VerifiedFile, CheckpointError> {
        self.folder.open(&format!("{}{name}", self.below)).map_err(|error| match error {
            IntegrityError::Unlisted { .. } => AdapterError::Missing { file: name.into() }.into(),
            IntegrityError::Disk(disk) if disk.is_not_found() => AdapterError::Missing { file: name.into() }.into(),
            error => error.into(),
        })
    }
}

/// How an adapter's matrices lie in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterLayout {
    /// mlx-lm's: A is `[columns, rank]`, B `[rank, rows]`.
    Mlx,
    /// PEFT's: A is `[rank, columns]`, B `[rows, rank]`.
    Peft,
}

impl AdapterLayout {
    const fn file_name(self) -> &'static str {
        match self {
            Self::Mlx => "adapters.safetensors",
            Self::Peft => "adapter_model.safetensors",
        }
    }

    /// What a tensor is called here, `MODULE.lora_a` or `MODULE.lora_b`, whichever format calls it `name`.
    fn canonical(self, name: &str) -> Result<String, AdapterError> {
        let unsupported = |what: &str| Err(AdapterError::Unsupported { what: what.into() });
        let ends: [(&str, &str); 2] = match self {
            Self::Mlx => [(".lora_a", ".lora_a"), (".lora_b", ".lora_b")],
            Self::Peft => [(".lora_A.weight", ".lora_a"), (".lora_B.weight", ".lora_b")],
        };
        for (end, canonical) in ends {
            if let Some(module) = name.strip_suffix(end) {
                let module = module.strip_prefix("base_model.model.").filter(|_| self == Self::Peft).unwrap_or(module);
                return Ok(format!("{module}{canonical}"));
            }
        }
        if name.ends_with(".m") || name.contains(".lora_magnitude_vector") {
            return unsupported("of the type `dora`");
        }
        if name.contains(".lora_embedding_") {
            return unsupported("for the embedding");
        }
        Err(AdapterError::Misfit { name: name.into(), why: "it isn't one of the two matrices of a LoRA".into() })
    }
}

/// An adapter's `adapter_config.json`, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterConfig {
    layout: AdapterLayout,
    rank: usize,
    scale: f32,
}

impl AdapterConfig {
    /// Parses and checks an `adapter_config.json` of mlx-lm or of PEFT.
    ///
    /// # Errors
    /// It isn't JSON, lacks a value or has one that is out of range, or is that of another kind of adapter.
    pub fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        let json: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if json.contains_key("peft_type") {
            return Self::peft(&json);
        }
        match json.get("fine_tune_type") {
            None => {}
            Some(Value::String(kind)) if kind == "lora" => {}
            Some(Value::String(kind)) if kind == "dora" || kind == "full" => {
                return Err(AdapterError::Unsupported { what: format!("of the type `{kind}`") });
            }
            Some(_) => return Err(malformed("`fine_tune_type` is none of `lora`, `dora`, `full`")),
        }
        let parameters = json.get("lora_parameters").and_then(Value::as_object);
        let parameters = parameters.ok_or_else(|| malformed("it has no `lora_parameters`"))?;
        let scale = number(parameters, "scale")?;
        Ok(Self { layout: AdapterLayout::Mlx, rank: rank(parameters, "rank")?, scale: scale as f32 })
    }

    fn peft(json: &Map<String, Value>) -> Result<Self, AdapterError> {
        let kind = json.get("peft_type").and_then(Value::as_str).unwrap_or("?");
        if kind != "LORA" {
            let kind: String = kind.chars().filter(|c| !c.is_control()).take(40).collect();
            return Err(AdapterError::Unsupported { what: format!("of PEFT's type `{kind}`") });
        }
        // Each of these changes more than the two matrices say.
        for name in [
            "use_dora",
            "fan_in_fan_out",
            "lora_bias",
            "modules_to_save",
            "trainable_token_indices",
            "rank_pattern",
            "alpha_pattern",
            "layer_replication",
        ] {
            let is_set = match json.get(name) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::Array(list)) => !list.is_empty(),
                Some(Value::Object(map)) => !map.is_empty(),
                Some(_) => true,
            };
            if is_set {
                return Err(AdapterError::Unsupported { what: format!("one with PEFT's `{name}`") });
            }
        }
        if json.get("bias").is_some_and(|bias| bias.as_str() != Some("none")) {
            return Err(AdapterError::Unsupported { what: "one with PEFT's `bias`".into() });
        }
        let (rank, alpha) = (rank(json, "r")?, number(json, "lora_alpha")?);
        let stabilised = json.get("use_rslora").and_then(Value::as_bool) == Some(true);
        let divisor = if stabilised { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Self { layout: AdapterLayout::Peft, rank, scale: (alpha / divisor) as f32 })
    }
}

fn malformed(why: impl Into<String>) -> AdapterError {
    AdapterError::Malformed { file: ADAPTER_CONFIG.into(), why: why.into() }
}

fn rank(json: &Map<String, Value>, name: &str) -> Result<usize, AdapterError> {
    match json.get(name).and_then(Value::as_u64) {
        Some(rank) if (1..=RANK_MAX as u64).contains(&rank) => Ok(rank as usize),
        Some(rank) => Err(malformed(format!("`{name}` is {rank}, not within 1 to {RANK_MAX}"))),
        None => Err(malformed(format!("it has no whole number `{name}`"))),
    }
}

fn number(json: &Map<String, Value>, name: &str) -> Result<f64, AdapterError> {
    match json.get(name).and_then(Value::as_f64) {
        Some(number) if number.abs() <= SCALE_MAX => Ok(number),
        Some(_) => Err(malformed(format!("`{name}` isn't within -{SCALE_MAX} to {SCALE_MAX}"))),
        None => Err(malformed(format!("it has no number `{name}`"))),
    }
}

/// The adapter of an open checkpoint. Its tensors are among the checkpoint's, as `MODULE.lora_a` and `MODULE.lora_b`, and fit
/// the matrix `MODULE.weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adapter {
    /// How its matrices lie in the file.
    pub layout: AdapterLayout,
    /// The width between the two matrices.
    pub rank: usize,
    /// The factor on what they add.
    pub scale: f32,
    /// The index of its first tensor; all tensors from it on are the adapter's.
    first: usize,
}

impl Adapter {
    /// Whether the tensor `tensor_idx` is one of its own.
    pub fn has(&self, tensor_idx: usize) -> bool {
        tensor_idx >= self.first
    }
}

impl Checkpoint {
    /// Reads the headers of an adapter, whose tensors are then streamed with the checkpoint's own.
    ///
    /// # Errors
    /// See [`AdapterError`]; and damage.
    pub(super) fn add_adapter(&mut self, files: &AdapterFiles) -> Result<(), CheckpointError> {
        let config = files.config()?;
        let file_name = files.weights_name(&config);
        let file = files.open(file_name)?;
        let first = self.tensors.len();
        let has_other_parts = self.config.has_other_parts;
        let canonical = |name: &str| {
            let canonical = config.layout.canonical(name)?;
            if !has_other_parts {
                return Ok(Some(canonical));
            }
            let why = "it changes a part of the model that isn't used: only its text part is".into();
            let in_text = text_part::text_name(&canonical).map(Cow::into_owned);
            in_text.map(Some).ok_or(AdapterError::Misfit { name: name.into(), why }.into())
        };
        self.add_shard(file_name, file, &canonical).map_err(|error| match error {
            CheckpointError::Malformed { file, why } => AdapterError::Malformed { file, why }.into(),
            error => error,
        })?;
        let adapter = Adapter { layout: config.layout, rank: config.rank, scale: config.scale, first };
        if first == self.tensors.len() {
            return Err(AdapterError::Malformed { file: file_name.into(), why: "it has no tensors".into() }.into());
        }
        for tensor in &self.tensors[first..] {
            self.check_adapted(&adapter, tensor)?;
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Checks that a tensor of the adapter, and the other of its pair, fit a matrix of the model.
    fn check_adapted(&self, adapter: &Adapter, tensor: &TensorInfo) -> Result<(), AdapterError> {
        let misfit = |why: String| AdapterError::Misfit { name: tensor.name.clone(), why };
        let (module, side) = tensor.name.rsplit_once('.').ok_or_else(|| misfit("it has no part".into()))?;
        let layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        if layer.is_some_and(|layer| layer >= self.config.layers) {
            return Err(misfit(format!("the model has {} layers", self.config.layers)));
        }
        if module == "model.embed_tokens" {
            return Err(AdapterError::Unsupported { what: "for the embedding".into() });
        }
        let matrix = self.tensor(&format!("{module}.weight"));
        let matrix = matrix.ok_or_else(|| misfit("the model has no such part".into()))?;
        let (rows, columns) = match matrix.shape[..] {
            [rows, columns] if matrix.dtype.is_float() => (rows, columns),
            [rows, words] => {
                let bits = self.config.quantisation_of(module).map(|quantisation| quantisation.bits);
                let columns = bits.and_then(|bits| Some(words.checked_mul(32)? / bits));
                (rows, columns.ok_or_else(|| misfit("the model's `config.json` has no `quantization`".into()))?)
            }
            [_, _, _] => return Err(AdapterError::Unsupported { what: "for experts".into() }),
            _ => return Err(misfit("that part of the model is no matrix".into())),
        };
        let expected = match (adapter.layout, side) {
            (AdapterLayout::Mlx, "lora_a") => [columns, adapter.rank],
            (AdapterLayout::Mlx, _) => [adapter.rank, rows],
            (AdapterLayout::Peft, "lora_a") => [adapter.rank, columns],
            (AdapterLayout::Peft, _) => [rows, adapter.rank],
        };
        if tensor.shape != expected {
            return Err(misfit(format!("its shape is {:?} where {expected:?} is needed", tensor.shape)));
        }
        if !tensor.dtype.is_float() {
            return Err(misfit("its numbers aren't floats".into()));
        }
        let other = if side == "lora_a" { "lora_b" } else { "lora_a" };
        match self.tensor(&format!("{module}.{other}")) {
            Some(_) => Ok(()),
            None => Err(misfit(format!("its `{other}` is missing"))),
        }
    }
}

#[cfg(test)]
mod tests;
