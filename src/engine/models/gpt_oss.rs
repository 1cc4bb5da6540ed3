//! gpt-oss: a mixture of experts behind each attention, attention with sinks, a sliding window in every other layer, YaRN,
//! biases everywhere, and a SwiGLU that is clipped.
//!
//! Shapes and names are those of mlx-lm's `gpt_oss.py`, which parts the published `gate_up_proj` into its two halves.

use super::architecture::Architecture;
use super::rope;
use crate::engine::backend::{Attention, Backend};
use crate::engine::checkpoint::{CheckpointError, GptOssConfig, ModelConfig, Particular};

/// The steepness of the gate's sigmoid.
const SWIGLU_ALPHA: f32 = 1.702;

/// A gpt-oss over any backend.
pub(super) struct GptOss<B: Backend> {
    embed_tokens: B::Linear,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    lm_head: B::Linear,
    rope: B::Rope,
    rms_norm_eps: f32,
    experts_per_token: usize,
    swiglu_limit: f32,
}

struct Layer<B: Backend> {
    attention: Attention,
    input_layernorm: B::Vector,
    q_proj: B::Linear,
    k_proj: B::Linear,
    v_proj: B::Linear,
    sinks: B::Vector,
    o_proj: B::Linear,
    post_attention_layernorm: B::Vector,
    router: B::Linear,
    gate_proj: B::Experts,
    up_proj: B::Experts,
    down_proj: B::Experts,
}

impl<B: Backend> GptOss<B> {
    /// Takes its weights.
    ///
    /// # Errors
    /// A weight is missing or has another shape than `config` asks for.
    pub(super) fn new(backend: &B, config: &ModelConfig, weights: &mut B::Weights) -> Result<Self, CheckpointError> {
        let Particular::GptOss(own) = &config.particular else {
            return Err(CheckpointError::UnknownArchitecture { model_type: config.model_type.name().into() });
        };
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            layers.push(Layer::new(backend, config, own, weights, layer)?);
        }
        let wavelengths = rope::wavelengths(config.head_dim, config.rope_theta, config.rope_scaling);
        Ok(Self {
            embed_tokens: backend.linear(weights, "model.embed_tokens", config.vocab_size, config.hidden_size)?,
            layers,
            norm: backend.vector(weights, "model.norm", config.hidden_size)?,
            lm_head: backend.linear(weights, "lm_head", config.vocab_size, config.hidden_size)?,
            rope: backend.rope_table(&wavelengths),
            rms_norm_eps: config.rms_norm_eps,
            experts_per_token: own.experts_per_token,
            swiglu_limit: own.swiglu_limit,
        })
    }

    /// The experts that the router chooses, weighed and added.
    fn mixture(&self, backend: &B, layer: &Layer<B>, x: &B::Tensor) -> B::Tensor {
        let [scores] = backend.linears(x, [&layer.router]);
        let routing = backend.route(scores, self.experts_per_token);
        let [gate, up] = backend.expert_linears(x, [&layer.gate_proj, &layer.up_proj], &routing);
        let inner = backend.clipped_swiglu(gate, &up, SWIGLU_ALPHA, self.swiglu_limit);
        let [down] = backend.expert_linears(&inner, [&layer.down_proj], &routing);
        backend.combine(down, &routing)
    }
}

impl<B: Backend> Layer<B> {
    fn new(
        backend: &B,
        config: &ModelConfig,
        own: &GptOssConfig,
        weights: &mut B::Weights,
        layer: usize,
    ) -> Result<Self, CheckpointError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        // Every one of them has a bias, whatever the configuration says.
        for part in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.router"] {
            backend.require_bias(weights, &name(part))?;
        }
        for part in ["gate_proj", "up_proj", "down_proj"] {
            backend.require_bias(weights, &name(&format!("mlp.experts.{part}")))?;
        }
        let scale = (config.head_dim as f32).powf(-0.5) * rope::score_factor(config.rope_scaling);
        let mut experts = |part: &str, rows: usize, columns: usize| {
            backend.experts(weights, &name(&format!("mlp.experts.{part}")), own.experts, rows, columns)
        };
        let (gate_proj, up_proj) = (experts("gate_proj", inner, hidden)?, experts("up_proj", inner, hidden)?);
        let down_proj = experts("down_proj", hidden, inner)?;
        Ok(Self {
            attention: Attention {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale,
                window: config.window_of(layer),
            },
            input_layernorm: backend.vector(weights, &name("input_layernorm"), hidden)?,
            q_proj: backend.linear(weights, &name("self_attn.q_proj"), q_width, hidden)?,
            k_proj: backend.linear(weights, &name("self_attn.k_proj"), kv_width, hidden)?,
            v_proj: backend.linear(weights, &name("self_attn.v_proj"), kv_width, hidden)?,
            sinks: backend.vector(weights, &name("self_attn.sinks"), config.heads)?,
            o_proj: backend.linear(weights, &name("self_attn.o_proj"), hidden, q_width)?,
            post_attention_layernorm: backend.vector(weights, &name("post_attention_layernorm"), hidden)?,
            router: backend.linear(weights, &name("mlp.router"), own.experts, hidden)?,
            gate_proj,
            up_proj,
            down_proj,
        })
    }
}

impl<B: Backend> Architecture<B> for GptOss<B> {
    fn caches(&self, backend: &B) -> Vec<B::Cache> {
        self.layers.iter().map(|layer| backend.cache(&layer.attention)).collect()
    }

    fn forward(
        &self,
        backend: &B,
        tokens: &[u32],
        first: usize,
        caches: &mut [B::Cache],
        cancelled: &dyn Fn() -> bool,
    ) -> Option<B::Tensor> {
        let mut x = backend.embed(&self.embed_tokens, tokens);
        for (layer, cache) in self.layers.iter().zip(caches) {
            if cancelled() {
                return None;
            }
            let normed = backend.rms_norm(&x, &layer.input_layernorm, self.rms_norm_eps);
            let [q, k, v] = backend.linears(&normed, [&layer.q_proj, &layer.k_proj, &layer.v_proj]);
            let (q, k) = (backend.rope(q, &self.rope, first), backend.rope(k, &self.rope, first));
            let attended = backend.attention(&layer.attention, Some(&layer.sinks), cache, &q, k, v);
            let [attended] = backend.linears(&attended, [&layer.o_proj]);
            x = backend.add(x, &attended);
            let normed = backend.rms_norm(&x, &layer.post_attention_layernorm, self.rms_norm_eps);
            x = backend.add(x, &self.mixture(backend, layer, &normed));
        }
        Some(x)
    }

    fn logits(&self, backend: &B, states: &B::Tensor) -> B::Tensor {
        let normed = backend.rms_norm(states, &self.norm, self.rms_norm_eps);
        let [logits] = backend.linears(&normed, [&self.lm_head]);
        logits
    }
}
