//! What a GGUF file says about its model, as Hugging Face's `config.json` says it; and its tensors' names there.
//!
//! Source: llama.cpp's `gguf-py/gguf/constants.py` for the keys and names, `convert_hf_to_gguf.py` for what they mean.
//! A key of the architecture that isn't known here is refused: it would change the model's answers.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::GgufError;
use super::reader::{Gguf, Value};

/// The architectures that can be imported, as `general.architecture` names them.
pub const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];
/// The most layers a model may have.
pub const LAYERS_MAX: u64 = 1024;
/// The largest number that a dimension of a model may have.
pub const DIMENSION_MAX: u64 = 16 * 1024 * 1024;

/// Keys of an architecture that are read here, without its name and the dot.
const KEYS: [&str; 11] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
];
/// Keys that only say how the file was made or repeat what is known, or that are checked apart.
const SILENT_KEYS: [&str; 7] = [
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.type",
    "rope.scaling.factor",
    "expert_count",
    "expert_used_count",
    "attention.causal",
];

/// The names of a layer's tensors: GGUF's, Hugging Face's.
const LAYER_TENSORS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The rope factors of Llama 3.1 and later, which GGUF has as a tensor of their own.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// What a file says about its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Its name, one of [`ARCHITECTURES`].
    pub name: &'static str,
    /// The width of the residual stream.
    pub hidden: u64,
    /// How many layers there are.
    pub layers: u64,
    /// The width inside the feed-forward block.
    pub intermediate: u64,
    /// How many query heads a layer has.
    pub heads: u64,
    /// How many key and value heads a layer has.
    pub kv_heads: u64,
    /// The width of a head.
    pub head_dim: u64,
    /// The longest context it was trained for, in tokens.
    pub context: u64,
    /// The epsilon of the norms.
    pub norm_epsilon: f64,
    /// The base of the rotary embedding.
    pub rope_base: f64,
    /// The scaling of the rotary embedding, in the words of `config.json`.
    pub rope_scaling: Option<Json>,
}

/// Where one tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name of its module in MLX, without `.weight`.
    pub module: String,
    /// Whether it is a bias instead of a weight.
    pub is_bias: bool,
    /// How many heads' rows are interleaved in it and must be put back in halves; `None` where rows stay.
    pub interleaved_heads: Option<u64>,
    /// The shape it must have, the fastest dimension last; `None` where the vocabulary decides.
    pub shape: Vec<Option<u64>>,
}

impl Architecture {
    /// Reads it from the metadata.
    ///
    /// # Errors
    /// [`GgufError::Unsupported`] for what isn't known, [`GgufError::Damaged`] never.
    pub fn read(gguf: &Gguf) -> Result<Self, GgufError> {
        let path = gguf.path();
        let found = gguf.text("general.architecture").unwrap_or_default();
        let Some(name) = ARCHITECTURES.into_iter().find(|&name| name == found) else {
            let what = format!("its architecture is `{}`; known are {}", shown(found), ARCHITECTURES.join(", "));
            return Err(GgufError::unsupported(path, what));
        };
        refuse_unknown_keys(gguf, name)?;
        let number = |key: &str| number(gguf, name, key);
        let required = |key: &str| {
            number(key)?.ok_or_else(|| GgufError::unsupported(path, format!("it has no key `{name}.{key}`")))
        };
        let (hidden, heads) = (required("embedding_length")?, required("attention.head_count")?);
        let kv_heads = number("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = match number("attention.key_length")? {
            Some(length) => length,
            None if hidden % heads == 0 => hidden / heads,
            None => return Err(GgufError::unsupported(path, format!("{hidden} isn't a multiple of {heads} heads"))),
        };
        let layers = required("block_count")?;
        if layers > LAYERS_MAX {
            return Err(GgufError::unsupported(path, format!("{layers} layers are more than {LAYERS_MAX}")));
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = number(key)?.filter(|&other| other != head_dim) {
                let what = format!("`{name}.{key}` is {other}, but its heads are {head_dim} wide");
                return Err(GgufError::unsupported(path, what));
            }
        }
        if heads % kv_heads != 0 || head_dim % 2 != 0 {
            let what = format!("{heads} heads of {head_dim} can't share {kv_heads} key heads");
            return Err(GgufError::unsupported(path, what));
        }
        let rope_base = float(gguf, name, "rope.freq_base")?.unwrap_or(10_000.0);
        Ok(Self {
            name,
            hidden,
            layers,
            intermediate: required("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            context: required("context_length")?,
            norm_epsilon: float(gguf, name, "attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
                GgufError::unsupported(path, format!("it has no key `{name}.attention.layer_norm_rms_epsilon`"))
            })?,
            rope_base,
            rope_scaling: rope_scaling(gguf, rope_base, head_dim)?,
        })
    }

    /// Where the tensor `name` goes; `None` for one that this architecture doesn't have.
    pub fn place_of(&self, name: &str) -> Option<Place> {
        let (stem, is_bias) = match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
            (Some(stem), _) => (stem, false),
            (None, Some(stem)) => (stem, true),
            (None, None) => return None,
        };
        let at = |module: &str, shape: &[Option<u64>]| {
            Some(Place { module: module.into(), is_bias, interleaved_heads: None, shape: shape.to_vec() })
        };
        match stem {
            "token_embd" if !is_bias => return at("model.embed_tokens", &[None, Some(self.hidden)]),
            "output" if !is_bias => return at("lm_head", &[None, Some(self.hidden)]),
            "output_norm" if !is_bias => return at("model.norm", &[Some(self.hidden)]),
            _ => {}
        }
        let (layer, short) = stem.strip_prefix("blk.")?.split_once('.')?;
        let number: u64 = layer.parse().ok()?;
        if number >= self.layers || number.to_string() != layer {
            return None;
        }
        let (_, long) = LAYER_TENSORS.into_iter().find(|&(known, _)| known == short)?;
        let (q, kv) = (self.heads.checked_mul(self.head_dim)?, self.kv_heads.checked_mul(self.head_dim)?);
        let shape = match short {
            "attn_norm" | "ffn_norm" => vec![self.hidden],
            "attn_q_norm" | "attn_k_norm" => vec![self.head_dim],
            "attn_q" => vec![q, self.hidden],
            "attn_k" | "attn_v" => vec![kv, self.hidden],
            "attn_output" => vec![self.hidden, q],
            "ffn_down" => vec![self.hidden, self.intermediate],
            _ => vec![self.intermediate, self.hidden],
        };
        let known = match (self.name, short, is_bias) {
            (_, "attn_q_norm" | "attn_k_norm", bias) => self.name == "qwen3" && !bias,
            (_, "attn_q" | "attn_k" | "attn_v", true) => self.name != "qwen3",
            ("llama", "attn_output", true) => true,
            (_, _, bias) => !bias,
        };
        // llama.cpp turns pairs of neighbours for this architecture and halves for the others.
        let interleaved_heads = match (self.name, short) {
            ("llama", "attn_q") => Some(self.heads),
            ("llama", "attn_k") => Some(self.kv_heads),
            _ => None,
        };
        let shape = if is_bias { vec![shape[0]] } else { shape };
        known.then(|| Place {
            module: format!("model.layers.{number}.{long}"),
            is_bias,
            interleaved_heads,
            shape: shape.into_iter().map(Some).collect(),
        })
    }

    /// The names of the tensors without which the model isn't whole.
    pub fn required_tensors(&self) -> impl Iterator<Item = String> + '_ {
        let whole = ["token_embd.weight".to_owned(), "output_norm.weight".to_owned()];
        let layers = (0..self.layers).flat_map(move |layer| {
            let has = |short: &str| match short {
                "attn_q_norm" | "attn_k_norm" => self.name == "qwen3",
                _ => true,
            };
            let of_layer = LAYER_TENSORS.into_iter().filter(move |&(short, _)| has(short));
            let weights = of_layer.map(move |(short, _)| format!("blk.{layer}.{short}.weight"));
            let biases: &[&str] = if self.name == "qwen2" { &["attn_q", "attn_k", "attn_v"] } else { &[] };
            weights.chain(biases.iter().map(move |short| format!("blk.{layer}.{short}.bias")))
        });
        whole.into_iter().chain(layers)
    }

    /// The part of `config.json` that is the architecture's.
    pub fn config(&self, vocab_size: u64, has_head: bool, has_attention_bias: bool) -> Map<String, Json> {
        let class = match self.name {
            "llama" => "LlamaForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "Qwen3ForCausalLM",
        };
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| {
            config.insert(key.into(), value);
        };
        set("model_type", json!(self.name));
        set("architectures", json!([class]));
        set("hidden_size", json!(self.hidden));
        set("num_hidden_layers", json!(self.layers));
        set("intermediate_size", json!(self.intermediate));
        set("num_attention_heads", json!(self.heads));
        set("num_key_value_heads", json!(self.kv_heads));
        set("head_dim", json!(self.head_dim));
        set("rms_norm_eps", json!(self.norm_epsilon));
        set("rope_theta", json!(self.rope_base));
        if let Some(scaling) = &self.rope_scaling {
            set("rope_scaling", scaling.clone());
        }
        set("vocab_size", json!(vocab_size));
        set("max_position_embeddings", json!(self.context));
        set("tie_word_embeddings", json!(!has_head));
        if self.name == "llama" && has_attention_bias {
            set("attention_bias", json!(true));
        }
        config
    }
}

/// A text of a file for a message: nothing that a terminal could act on, and not endless.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn refuse_unknown_keys(gguf: &Gguf, name: &str) -> Result<(), GgufError> {
    for key in gguf.keys() {
        let Some(short) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else { continue };
        if !KEYS.contains(&short) && !SILENT_KEYS.contains(&short) {
            let what = format!("the meaning of its key `{}` isn't known here", shown(key));
            return Err(GgufError::unsupported(gguf.path(), what));
        }
    }
    let refused = |what: &str| Err(GgufError::unsupported(gguf.path(), what));
    if !matches!(gguf.value(&format!("{name}.expert_count")), None | Some(Value::Integer(0))) {
        return refused("it is a mixture of experts");
    }
    if gguf.value(&format!("{name}.attention.causal")) == Some(&Value::Bool(false)) {
        return refused("its attention isn't causal");
    }
    match gguf.text(&format!("{name}.rope.scaling.type")) {
        None | Some("none") => Ok(()),
        Some(other) => refused(&format!("its rope is scaled by `{}`, which isn't converted", shown(other))),
    }
}

/// The whole number of a key of the architecture, from 1 to [`DIMENSION_MAX`].
fn number(gguf: &Gguf, name: &str, key: &str) -> Result<Option<u64>, GgufError> {
    match gguf.value(&format!("{name}.{key}")) {
        None => Ok(None),
        Some(&Value::Integer(n)) if (1..=i128::from(DIMENSION_MAX)).contains(&n) => Ok(Some(n as u64)),
        Some(_) => {
            let what = format!("its key `{name}.{key}` isn't a number from 1 to {DIMENSION_MAX}");
            Err(GgufError::unsupported(gguf.path(), what))
        }
    }
}

/// The number of a key of the architecture; one of 32 bits is read as the shortest decimal that means it.
fn float(gguf: &Gguf, name: &str, key: &str) -> Result<Option<f64>, GgufError> {
    match gguf.value(&format!("{name}.{key}")) {
        None => Ok(None),
        Some(&Value::Float(n, is_short)) if n.is_finite() && n > 0.0 => {
            let shortest = if is_short { (n as f32).to_string().parse().ok() } else { Some(n) };
            Ok(shortest)
        }
        Some(_) => {
            let what = format!("its key `{name}.{key}` isn't a positive number");
            Err(GgufError::unsupported(gguf.path(), what))
        }
    }
}

/// The scaling that [`ROPE_FACTORS`] says, if it is that of Llama 3: its factors are computed again and compared.
fn rope_scaling(gguf: &Gguf, base: f64, head_dim: u64) -> Result<Option<Json>, GgufError> {
    let Some(tensor) = gguf.tensors().iter().find(|tensor| tensor.name == ROPE_FACTORS) else {
        return Ok(None);
    };
    let other = || GgufError::unsupported(gguf.path(), format!("`{ROPE_FACTORS}` isn't the scaling of Llama 3"));
    if tensor.kind.as_str() != "F32" || tensor.shape != [head_dim / 2] {
        return Err(other());
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    gguf.read(tensor, 0, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<4>();
    let factors: Vec<f64> = words.iter().map(|word| f32::from_le_bytes(*word).into()).collect();
    if factors.iter().all(|&factor| factor == 1.0) {
        return Ok(None);
    }
    // The lowest frequency is divided by the whole factor.
    let factor = factors.last().copied().unwrap_or(1.0);
    let fits = factors.iter().enumerate().all(|(i, &found)| {
        let expected = llama3_factor(base, head_dim, i as u64, factor);
        (found - expected).abs() <= 1e-3 * expected
    });
    if !fits || factor <= 1.0 || factor.fract() != 0.0 {
        return Err(other());
    }
    Ok(Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQ_FACTOR,
        "high_freq_factor": HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT as u64,
    })))
}

/// What all published models of this kind have: Llama 3.1, 3.2 and 3.3.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_CONTEXT: f64 = 8192.0;

/// What the wavelength of pair `i` is multiplied by (`rope_type` llama3 of transformers' `modeling_rope_utils.py`).
fn llama3_factor(base: f64, head_dim: u64, i: u64, factor: f64) -> f64 {
    let wavelength = std::f64::consts::TAU * base.powf(2.0 * i as f64 / head_dim as f64);
    if wavelength < ORIGINAL_CONTEXT / HIGH_FREQ_FACTOR {
        return 1.0;
    }
    if wavelength > ORIGINAL_CONTEXT / LOW_FREQ_FACTOR {
        return factor;
    }
    let smooth = (ORIGINAL_CONTEXT / wavelength - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

/// Checks that a tensor has the shape that its place asks for.
///
/// # Errors
/// [`GgufError::Unsupported`].
pub fn check_shape(path: &Path, name: &str, shape: &[u64], place: &Place) -> Result<(), GgufError> {
    let fits = shape.len() == place.shape.len()
        && shape.iter().zip(&place.shape).all(|(&found, expected)| expected.is_none_or(|expected| expected == found));
    if fits {
        return Ok(());
    }
    let expected: Vec<String> = place.shape.iter().map(|n| n.map_or("any".into(), |n| n.to_string())).collect();
    let what = format!("tensor `{name}` has shape {shape:?} instead of [{}]", expected.join(", "));
    Err(GgufError::unsupported(path, what))
}
