//! `config.json`: the shape of a model, checked before anything is allocated by it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{CheckpointError, text_part};

/// The largest value of any dimension in a configuration.
const DIMENSION_MAX: u64 = 1 << 20;
/// The most layers of a model.
const LAYERS_MAX: u64 = 1_024;
/// The most experts of a layer.
const EXPERTS_MAX: u64 = 1_024;
/// The longest context in tokens.
const POSITIONS_MAX: u64 = 1 << 27;

/// What the codes of a quantised matrix mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `code · scale + bias`, both floats.
    Affine,
    /// The code is a float of 4 bits (E2M1), the scale a power of two in a byte (OCP Microscaling Formats, 5.3).
    Mxfp4,
}

/// How a matrix is quantised: codes, with a scale for each group of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantisation {
    /// Bits a code: 2, 3, 4, 5, 6 or 8; 4 of MXFP4.
    pub bits: usize,
    /// Elements that share a scale: 32, 64 or 128; 32 of MXFP4.
    pub group_size: usize,
    /// What the codes mean.
    pub mode: Mode,
}

/// How rotary embeddings are stretched to a longer context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// All wavelengths times `factor`.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths times `factor`, short ones unchanged, smooth between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than `original_positions / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context that the model was first trained for.
        original_positions: f64,
    },
    /// YaRN: as Llama 3.1, with the border given in turns over the original context.
    Yarn {
        /// The factor.
        factor: f64,
        /// Wavelengths with more turns are kept.
        beta_fast: f64,
        /// Wavelengths with fewer turns are stretched.
        beta_slow: f64,
        /// The context that the model was first trained for.
        original_positions: f64,
    },
}

/// What only some architectures have.
#[derive(Clone, Debug, PartialEq)]
pub enum Particular {
    /// Nothing.
    Dense,
    /// Gemma 3.
    Gemma3(Gemma3Config),
    /// gpt-oss.
    GptOss(GptOssConfig),
}

/// What only Gemma 3 has.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma3Config {
    /// The scores' factor is its inverse root.
    pub query_pre_attn_scalar: f64,
    /// How many positions a local layer's query sees.
    pub sliding_window: usize,
    /// Every so manieth layer is global.
    pub sliding_window_pattern: usize,
    /// The base of the rotary wavelengths of local layers.
    pub rope_local_base_freq: f64,
}

/// What only gpt-oss has.
#[derive(Clone, Debug, PartialEq)]
pub struct GptOssConfig {
    /// How many experts a layer has.
    pub experts: usize,
    /// How many of them a token goes to.
    pub experts_per_token: usize,
    /// How many positions a sliding layer's query sees.
    pub sliding_window: usize,
    /// Which layers slide.
    pub slides: Vec<bool>,
    /// Where the gate is clipped.
    pub swiglu_limit: f32,
}

/// The shape of a model. Sizes are within limits, and agree with each other.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The architecture.
    pub model_type: ModelType,
    /// Whether the checkpoint has other parts than the text model, which are not used.
    pub has_other_parts: bool,
    /// The width of a token's state.
    pub hidden_size: usize,
    /// How many layers.
    pub layers: usize,
    /// The width inside the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// The width of a head.
    pub head_dim: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f32,
    /// The base of the rotary wavelengths.
    pub rope_theta: f64,
    /// How they are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// How many tokens there are.
    pub vocab_size: usize,
    /// The longest context in tokens.
    pub max_position_embeddings: usize,
    /// Whether the embedding is the head too.
    pub tie_word_embeddings: bool,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// How matrices are quantised that have scales, unless an override says otherwise.
    quantisation: Option<Quantisation>,
    overrides: BTreeMap<String, Quantisation>,
    /// What only its architecture has.
    pub particular: Particular,
}

/// The architectures that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelType {
    /// Llama, and what is built as it.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// The text part of Gemma 3.
    Gemma3Text,
    /// gpt-oss.
    GptOss,
}

impl ModelType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3Text, Self::GptOss];

    /// Its name in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3Text => "gemma3_text",
            Self::GptOss => "gpt_oss",
        }
    }
}

impl ModelConfig {
    /// Parses and checks a `config.json`.
    ///
    /// # Errors
    /// It isn't JSON, lacks a value or has one that is out of range; its architecture is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let mut json: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        let has_other_parts = text_part::unwrap(&mut json)?;
        spread_rope_parameters(&mut json)?;
        let reader = Reader(&json);
        let model_type = json.get("model_type").and_then(Value::as_str);
        let name = model_type.ok_or_else(|| malformed("it has no `model_type`"))?;
        let model_type = ModelType::ALL.into_iter().find(|known| known.name() == name);
        let model_type = model_type.ok_or_else(|| CheckpointError::UnknownArchitecture { model_type: name.into() })?;
        let is_gemma = model_type == ModelType::Gemma3Text;
        let activation = json.get("hidden_activation").or_else(|| json.get("hidden_act")).and_then(Value::as_str);
        let known: &[&str] = if is_gemma { &["gelu_pytorch_tanh"] } else { &["silu", "swish"] };
        if let Some(activation) = activation.filter(|activation| !known.contains(activation)) {
            return Err(CheckpointError::Unsupported { what: format!("the activation `{activation}`") });
        }
        let hidden_size = reader.size("hidden_size", DIMENSION_MAX)?;
        let heads = reader.size("num_attention_heads", DIMENSION_MAX)?;
        let kv_heads = reader.size_or("num_key_value_heads", DIMENSION_MAX, heads)?;
        let head_dim = reader.size_or("head_dim", 4_096, hidden_size / heads)?;
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) || head_dim == 0 {
            return Err(malformed(format!("{heads} heads, {kv_heads} for keys, {head_dim} wide, don't go together")));
        }
        let (quantisation, overrides) = reader.quantisation()?;
        let layers = reader.size("num_hidden_layers", LAYERS_MAX)?;
        let particular = match model_type {
            ModelType::Gemma3Text => Particular::Gemma3(reader.gemma3()?),
            ModelType::GptOss => Particular::GptOss(reader.gpt_oss(layers)?),
            _ if reader.0.get("use_sliding_window").and_then(Value::as_bool) == Some(true) => {
                return Err(CheckpointError::Unsupported { what: format!("a sliding window of `{name}`") });
            }
            _ => Particular::Dense,
        };
        Ok(Self {
            model_type,
            has_other_parts,
            hidden_size,
            layers,
            particular,
            intermediate_size: reader.size("intermediate_size", DIMENSION_MAX)?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: reader.number("rms_norm_eps", 1e-12..=1.0, Some(1e-6))? as f32,
            rope_theta: reader.number("rope_theta", 1.0..=1e12, Some(10_000.0))?,
            rope_scaling: reader.rope_scaling()?,
            vocab_size: reader.size("vocab_size", DIMENSION_MAX * 4)?,
            max_position_embeddings: reader.size_or("max_position_embeddings", POSITIONS_MAX, 2_048)?,
            tie_word_embeddings: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true),
            bos_token_id: reader.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: reader.tokens("eos_token_id")?,
            quantisation,
            overrides,
        })
    }

    /// How many positions the queries of a layer see; `None` all before them.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        match &self.particular {
            Particular::Dense => None,
            Particular::Gemma3(own) => {
                (!(layer + 1).is_multiple_of(own.sliding_window_pattern)).then_some(own.sliding_window)
            }
            Particular::GptOss(own) => {
                own.slides.get(layer).is_some_and(|slides| *slides).then_some(own.sliding_window)
            }
        }
    }

    /// How the matrix `module` is quantised, if it has scales.
    pub fn quantisation_of(&self, module: &str) -> Option<Quantisation> {
        self.overrides.get(module).copied().or(self.quantisation)
    }
}

/// Writes `rope_parameters`, as transformers 5 has them, in the keys that were there before: one set of them, or one for each
/// kind of layer.
fn spread_rope_parameters(json: &mut Map<String, Value>) -> Result<(), CheckpointError> {
    let Some(parameters) = json.remove("rope_parameters").filter(|value| !value.is_null()) else { return Ok(()) };
    let object =
        |value: &Value| value.as_object().cloned().ok_or_else(|| malformed("`rope_parameters` isn't an object"));
    let mut global = object(&parameters)?;
    if let Some(local) = global.get("sliding_attention") {
        let local = object(local)?;
        if local.get("rope_type").and_then(Value::as_str).is_some_and(|kind| kind != "default") {
            return Err(CheckpointError::Unsupported { what: "rope scaling of sliding layers".into() });
        }
        if let Some(theta) = local.get("rope_theta") {
            json.insert("rope_local_base_freq".into(), theta.clone());
        }
        global = global.get("full_attention").map(object).transpose()?.unwrap_or_default();
    }
    if let Some(theta) = global.remove("rope_theta") {
        json.insert("rope_theta".into(), theta);
    }
    if global.contains_key("rope_type") || global.contains_key("type") {
        json.insert("rope_scaling".into(), Value::Object(global));
    }
    Ok(())
}

pub(super) fn malformed(why: impl Into<String>) -> CheckpointError {
    CheckpointError::Malformed { file: "config.json".into(), why: why.into() }
}

/// Reads checked values by name.
struct Reader<'a>(&'a Map<String, Value>);

impl Reader<'_> {
    fn size(&self, name: &str, max: u64) -> Result<usize, CheckpointError> {
        match self.0.get(name).and_then(Value::as_u64) {
            Some(size) if (1..=max).contains(&size) => Ok(size as usize),
            Some(size) => Err(malformed(format!("`{name}` is {size}, not within 1 to {max}"))),
            None => Err(malformed(format!("it has no whole number `{name}`"))),
        }
    }

    fn size_or(&self, name: &str, max: u64, default: usize) -> Result<usize, CheckpointError> {
        if self.0.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.size(name, max) }
    }

    fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<f64>,
        default: Option<f64>,
    ) -> Result<f64, CheckpointError> {
        match self.0.get(name).filter(|value| !value.is_null()).map(Value::as_f64) {
            None => default.ok_or_else(|| malformed(format!("it has no number `{name}`"))),
            Some(Some(number)) if range.contains(&number) => Ok(number),
            Some(_) => Err(malformed(format!("`{name}` isn't a number within {} to {}", range.start(), range.end()))),
        }
    }

    /// A token or a list of tokens; none where it is absent.
    fn tokens(&self, name: &str) -> Result<Vec<u32>, CheckpointError> {
        let one = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
        let tokens = match self.0.get(name) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(list)) if list.len() <= 64 => list.iter().map(one).collect(),
            Some(value) => one(value).map(|token| vec![token]),
        };
        tokens.ok_or_else(|| malformed(format!("`{name}` isn't a token or a list of tokens")))
    }

    fn gemma3(&self) -> Result<Gemma3Config, CheckpointError> {
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.0.get(name).is_some_and(|value| !value.is_null()) {
                return Err(CheckpointError::Unsupported { what: format!("`{name}`") });
            }
        }
        let pattern = self.size_or("sliding_window_pattern", LAYERS_MAX, 6)?;
        if let Some(types) = self.layer_types()? {
            let slides = |layer: usize| !(layer + 1).is_multiple_of(pattern);
            if types.iter().enumerate().any(|(layer, is_sliding)| *is_sliding != slides(layer)) {
                return Err(CheckpointError::Unsupported { what: "other `layer_types` than a regular pattern".into() });
            }
        }
        Ok(Gemma3Config {
            query_pre_attn_scalar: self.number("query_pre_attn_scalar", 1.0..=1e6, Some(256.0))?,
            sliding_window: self.size_or("sliding_window", POSITIONS_MAX, 512)?,
            sliding_window_pattern: pattern,
            rope_local_base_freq: self.number("rope_local_base_freq", 1.0..=1e12, Some(10_000.0))?,
        })
    }

    fn gpt_oss(&self, layers: usize) -> Result<GptOssConfig, CheckpointError> {
        let experts = self.size("num_local_experts", EXPERTS_MAX)?;
        let chosen =
            if self.0.contains_key("num_experts_per_tok") { "num_experts_per_tok" } else { "experts_per_token" };
        let experts_per_token = self.size(chosen, EXPERTS_MAX)?;
        if !(2..=experts).contains(&experts_per_token) {
            return Err(malformed(format!("`{chosen}` is {experts_per_token}, not within 2 to {experts}")));
        }
        let slides = match self.layer_types()? {
            Some(types) if types.len() == layers => types,
            Some(types) => return Err(malformed(format!("`layer_types` names {} of {layers} layers", types.len()))),
            None => (0..layers).map(|layer| layer.is_multiple_of(2)).collect(),
        };
        Ok(GptOssConfig {
            experts,
            experts_per_token,
            sliding_window: self.size_or("sliding_window", POSITIONS_MAX, 128)?,
            slides,
            swiglu_limit: self.number("swiglu_limit", 1e-3..=1e6, Some(7.0))? as f32,
        })
    }

    /// Which layers slide, where it is said.
    fn layer_types(&self) -> Result<Option<Vec<bool>>, CheckpointError> {
        let Some(types) = self.0.get("layer_types").filter(|value| !value.is_null()) else { return Ok(None) };
        let types = types.as_array().filter(|types| types.len() as u64 <= LAYERS_MAX);
        let types = types.ok_or_else(|| malformed("`layer_types` isn't a list of layers"))?;
        let slides = types.iter().map(|kind| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(malformed("`layer_types` names another kind than `sliding_attention` and `full_attention`")),
        });
        slides.collect::<Result<_, _>>().map(Some)
    }

    fn rope_scaling(&self) -> Result<Option<RopeScaling>, CheckpointError> {
        let Some(scaling) = self.0.get("rope_scaling").filter(|value| !value.is_null()) else { return Ok(None) };
        let scaling = scaling.as_object().ok_or_else(|| malformed("`rope_scaling` isn't an object"))?;
        let kind =
            scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
        let number = |name: &str| Reader(scaling).number(name, 1e-3..=1e9, None);
        match kind {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_positions: number("original_max_position_embeddings")?,
                };
                match scaling {
                    RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. }
                        if high_freq_factor <= low_freq_factor =>
                    {
                        Err(malformed("`high_freq_factor` isn't above `low_freq_factor`"))
                    }
                    _ => Ok(Some(scaling)),
                }
            }
            "yarn" => {
                let or = |name: &str, default: f64| Reader(scaling).number(name, 1e-3..=1e9, Some(default));
                let positions = self.number("max_position_embeddings", 1.0..=POSITIONS_MAX as f64, Some(4_096.0))?;
                for name in ["mscale", "mscale_all_dim", "attention_factor"] {
                    if scaling.get(name).is_some_and(|value| !value.is_null()) {
                        return Err(CheckpointError::Unsupported { what: format!("YaRN with `{name}`") });
                    }
                }
                let [beta_fast, beta_slow] = [or("beta_fast", 32.0)?, or("beta_slow", 1.0)?];
                if beta_fast <= beta_slow {
                    return Err(malformed("`beta_fast` isn't above `beta_slow`"));
                }
                let original_positions = or("original_max_position_embeddings", positions)?;
                Ok(Some(RopeScaling::Yarn { factor: number("factor")?, beta_fast, beta_slow, original_positions }))
            }
            other => Err(CheckpointError::Unsupported { what: format!("rope scaling of type `{other}`") }),
        }
    }

    fn quantisation(&self) -> Result<(Option<Quantisation>, BTreeMap<String, Quantisation>), CheckpointError> {
        let stated = self.0.get("quantization").or_else(|| self.0.get("quantization_config"));
        let Some(stated) = stated.filter(|value| !value.is_null()) else { return Ok((None, BTreeMap::new())) };
        let stated = stated.as_object().ok_or_else(|| malformed("`quantization` isn't an object"))?;
        let mut overrides = BTreeMap::new();
        for (module, value) in stated {
            if let Some(own) = value.as_object() {
                overrides.insert(module.clone(), one_quantisation(own)?);
            }
        }
        Ok((Some(one_quantisation(stated)?), overrides))
    }
}

fn one_quantisation(stated: &Map<String, Value>) -> Result<Quantisation, CheckpointError> {
    // As gpt-oss was first published: blocks of bytes, and both halves of the gate in one tensor.
    if stated.contains_key("quant_method") {
        let what = "a checkpoint quantised as transformers does it; import its MLX conversion".into();
        return Err(CheckpointError::Unsupported { what });
    }
    let mode = match stated.get("mode").and_then(Value::as_str).unwrap_or("affine") {
        "affine" => Mode::Affine,
        "mxfp4" => Mode::Mxfp4,
        mode => return Err(CheckpointError::Unsupported { what: format!("quantisation of mode `{mode}`") }),
    };
    let number = |name: &str| stated.get(name).and_then(Value::as_u64);
    match (number("bits"), number("group_size")) {
        (Some(4), Some(32)) if mode == Mode::Mxfp4 => Ok(Quantisation { bits: 4, group_size: 32, mode }),
        (Some(bits @ (2 | 3 | 4 | 5 | 6 | 8)), Some(group_size @ (32 | 64 | 128))) if mode == Mode::Affine => {
            Ok(Quantisation { bits: bits as usize, group_size: group_size as usize, mode })
        }
        (bits, group_size) => {
            let shown = |number: Option<u64>| number.map_or("?".into(), |number| number.to_string());
            let what = format!("quantisation to {} bits in groups of {}", shown(bits), shown(group_size));
            Err(CheckpointError::Unsupported { what })
        }
    }
}
