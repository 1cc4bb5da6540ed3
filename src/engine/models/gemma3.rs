//! Gemma 3, its text model: layers with a sliding window between global ones, each kind with its own rotary base; norms with
//! 1 + weight before and after attention and MLP; scaled embeddings; a GELU gate.
//!
//! Shapes and names are those of transformers' `modeling_gemma3.py` and mlx-lm's `gemma3_text.py`.

use super::architecture::Architecture;
use super::rope;
use crate::engine::backend::{Attention, Backend};
use crate::engine::checkpoint::{CheckpointError, Gemma3Config, ModelConfig, Particular};

/// A gemma over any backend.
pub(super) struct Gemma3<B: Backend> {
    embed_tokens: B::Linear,
    /// The embedding's factor: the root of its width, rounded to bfloat16 as in the reference.
    embed_factor: f32,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// `None` where the embedding is the head too.
    lm_head: Option<B::Linear>,
    local: Kind<B>,
    global: Kind<B>,
    rms_norm_eps: f32,
}

/// What all layers of one kind share.
struct Kind<B: Backend> {
    rope: B::Rope,
    attention: Attention,
}

struct Layer<B: Backend> {
    is_local: bool,
    input_layernorm: B::Vector,
    q_proj: B::Linear,
    k_proj: B::Linear,
    v_proj: B::Linear,
    o_proj: B::Linear,
    q_norm: B::Vector,
    k_norm: B::Vector,
    post_attention_layernorm: B::Vector,
    pre_feedforward_layernorm: B::Vector,
    gate_proj: B::Linear,
    up_proj: B::Linear,
    down_proj: B::Linear,
    post_feedforward_layernorm: B::Vector,
}

impl<B: Backend> Gemma3<B> {
    /// Takes its weights.
    ///
    /// # Errors
    /// A weight is missing or has another shape than `config` asks for.
    pub(super) fn new(backend: &B, config: &ModelConfig, weights: &mut B::Weights) -> Result<Self, CheckpointError> {
        let Particular::Gemma3(own) = &config.particular else {
            return Err(CheckpointError::UnknownArchitecture { model_type: config.model_type.name().into() });
        };
        let hidden = config.hidden_size;
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            layers.push(Layer::new(backend, config, weights, layer)?);
        }
        let norm = backend.vector(weights, "model.norm", hidden)?;
        let embed_tokens = backend.linear(weights, "model.embed_tokens", config.vocab_size, hidden)?;
        let has_head = backend.has(weights, "lm_head");
        Ok(Self {
            embed_tokens,
            embed_factor: half::bf16::from_f32((hidden as f32).sqrt()).to_f32(),
            layers,
            norm: backend.shift(norm, 1.0),
            lm_head: if has_head { Some(backend.linear(weights, "lm_head", config.vocab_size, hidden)?) } else { None },
            local: Kind::new(backend, config, own, true),
            global: Kind::new(backend, config, own, false),
            rms_norm_eps: config.rms_norm_eps,
        })
    }

    fn norm(&self, backend: &B, x: &B::Tensor, weight: &B::Vector) -> B::Tensor {
        backend.rms_norm(x, weight, self.rms_norm_eps)
    }
}

impl<B: Backend> Kind<B> {
    fn new(backend: &B, config: &ModelConfig, own: &Gemma3Config, is_local: bool) -> Self {
        let (base, scaling) =
            if is_local { (own.rope_local_base_freq, None) } else { (config.rope_theta, config.rope_scaling) };
        Self {
            rope: backend.rope_table(&rope::wavelengths(config.head_dim, base, scaling)),
            attention: Attention {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale: own.query_pre_attn_scalar.powf(-0.5) as f32,
                window: is_local.then_some(own.sliding_window),
            },
        }
    }
}

impl<B: Backend> Layer<B> {
    fn new(backend: &B, config: &ModelConfig, weights: &mut B::Weights, layer: usize) -> Result<Self, CheckpointError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let mut norm = |part: &str, len: usize| -> Result<B::Vector, CheckpointError> {
            Ok(backend.shift(backend.vector(weights, &name(part), len)?, 1.0))
        };
        let (input_layernorm, post_attention_layernorm) =
            (norm("input_layernorm", hidden)?, norm("post_attention_layernorm", hidden)?);
        let (pre_feedforward_layernorm, post_feedforward_layernorm) =
            (norm("pre_feedforward_layernorm", hidden)?, norm("post_feedforward_layernorm", hidden)?);
        let (q_norm, k_norm) = (norm("self_attn.q_norm", config.head_dim)?, norm("self_attn.k_norm", config.head_dim)?);
        Ok(Self {
            is_local: config.window_of(layer).is_some(),
            input_layernorm,
            q_proj: backend.linear(weights, &name("self_attn.q_proj"), q_width, hidden)?,
            k_proj: backend.linear(weights, &name("self_attn.k_proj"), kv_width, hidden)?,
            v_proj: backend.linear(weights, &name("self_attn.v_proj"), kv_width, hidden)?,
            o_proj: backend.linear(weights, &name("self_attn.o_proj"), hidden, q_width)?,
            q_norm,
            k_norm,
            post_attention_layernorm,
            pre_feedforward_layernorm,
            gate_proj: backend.linear(weights, &name("mlp.gate_proj"), inner, hidden)?,
            up_proj: backend.linear(weights, &name("mlp.up_proj"), inner, hidden)?,
            down_proj: backend.linear(weights, &name("mlp.down_proj"), hidden, inner)?,
            post_feedforward_layernorm,
        })
    }
}

impl<B: Backend> Architecture<B> for Gemma3<B> {
    fn caches(&self, backend: &B) -> Vec<B::Cache> {
        let kind = |layer: &Layer<B>| if layer.is_local { &self.local } else { &self.global };
        self.layers.iter().map(|layer| backend.cache(&kind(layer).attention)).collect()
    }

    fn forward(
        &self,
        backend: &B,
        tokens: &[u32],
        first: usize,
        caches: &mut [B::Cache],
        cancelled: &dyn Fn() -> bool,
    ) -> Option<B::Tensor> {
        let mut x = backend.scale(backend.embed(&self.embed_tokens, tokens), self.embed_factor);
        for (layer, cache) in self.layers.iter().zip(caches) {
            if cancelled() {
                return None;
            }
            let kind = if layer.is_local { &self.local } else { &self.global };
            let normed = self.norm(backend, &x, &layer.input_layernorm);
            let [q, k, v] = backend.linears(&normed, [&layer.q_proj, &layer.k_proj, &layer.v_proj]);
            let q = backend.rope(self.norm(backend, &q, &layer.q_norm), &kind.rope, first);
            let k = backend.rope(self.norm(backend, &k, &layer.k_norm), &kind.rope, first);
            let attended = backend.attention(&kind.attention, None, cache, &q, k, v);
            let [attended] = backend.linears(&attended, [&layer.o_proj]);
            x = backend.add(x, &self.norm(backend, &attended, &layer.post_attention_layernorm));
            let normed = self.norm(backend, &x, &layer.pre_feedforward_layernorm);
            let [gate, up] = backend.linears(&normed, [&layer.gate_proj, &layer.up_proj]);
            let [down] = backend.linears(&backend.gelu_gate(gate, &up), [&layer.down_proj]);
            x = backend.add(x, &self.norm(backend, &down, &layer.post_feedforward_layernorm));
        }
        Some(x)
    }

    fn logits(&self, backend: &B, states: &B::Tensor) -> B::Tensor {
        let normed = self.norm(backend, states, &self.norm);
        let [logits] = backend.linears(&normed, [self.lm_head.as_ref().unwrap_or(&self.embed_tokens)]);
        logits
    }
}
