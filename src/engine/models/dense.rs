//! The dense decoder that llama, qwen2 and qwen3 share: grouped-query attention with rotary embeddings, a gated MLP,
//! root-mean-square norms. Each of them has a file that says what is its own.
//!
//! The names are those of the weights; the shapes those of transformers' and mlx-lm's model files.

use super::architecture::Architecture;
use super::rope;
use crate::engine::backend::{Attention, Backend};
use crate::engine::checkpoint::{CheckpointError, ModelConfig};

/// What an architecture has that others don't.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Particulars {
    /// A norm over each head of q and k before they are rotated: `q_norm`, `k_norm`.
    pub(super) qk_norm: bool,
    /// q, k and v have biases, always.
    pub(super) qkv_bias: bool,
}

/// A dense decoder over any backend.
pub(super) struct Dense<B: Backend> {
    embed_tokens: B::Linear,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// `None` where the embedding is the head too.
    lm_head: Option<B::Linear>,
    rope: B::Rope,
    attention: Attention,
    rms_norm_eps: f32,
}

struct Layer<B: Backend> {
    input_layernorm: B::Vector,
    q_proj: B::Linear,
    k_proj: B::Linear,
    v_proj: B::Linear,
    /// The norms over the heads of q and of k.
    qk_norm: Option<[B::Vector; 2]>,
    o_proj: B::Linear,
    post_attention_layernorm: B::Vector,
    gate_proj: B::Linear,
    up_proj: B::Linear,
    down_proj: B::Linear,
}

impl<B: Backend> Dense<B> {
    /// Takes its weights.
    ///
    /// # Errors
    /// A weight is missing or has another shape than `config` asks for.
    pub(super) fn new(
        backend: &B,
        config: &ModelConfig,
        weights: &mut B::Weights,
        particulars: Particulars,
    ) -> Result<Self, CheckpointError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            if particulars.qkv_bias {
                for part in ["q_proj", "k_proj", "v_proj"] {
                    backend.require_bias(weights, &name(&format!("self_attn.{part}")))?;
                }
            }
            layers.push(Layer {
                input_layernorm: backend.vector(weights, &name("input_layernorm"), hidden)?,
                q_proj: backend.linear(weights, &name("self_attn.q_proj"), q_width, hidden)?,
                k_proj: backend.linear(weights, &name("self_attn.k_proj"), kv_width, hidden)?,
                v_proj: backend.linear(weights, &name("self_attn.v_proj"), kv_width, hidden)?,
                qk_norm: match particulars.qk_norm {
                    true => Some([
                        backend.vector(weights, &name("self_attn.q_norm"), config.head_dim)?,
                        backend.vector(weights, &name("self_attn.k_norm"), config.head_dim)?,
                    ]),
                    false => None,
                },
                o_proj: backend.linear(weights, &name("self_attn.o_proj"), hidden, q_width)?,
                post_attention_layernorm: backend.vector(weights, &name("post_attention_layernorm"), hidden)?,
                gate_proj: backend.linear(weights, &name("mlp.gate_proj"), inner, hidden)?,
                up_proj: backend.linear(weights, &name("mlp.up_proj"), inner, hidden)?,
                down_proj: backend.linear(weights, &name("mlp.down_proj"), hidden, inner)?,
            });
        }
        let tied = config.tie_word_embeddings;
        Ok(Self {
            embed_tokens: backend.linear(weights, "model.embed_tokens", config.vocab_size, hidden)?,
            layers,
            norm: backend.vector(weights, "model.norm", hidden)?,
            lm_head: if tied { None } else { Some(backend.linear(weights, "lm_head", config.vocab_size, hidden)?) },
            rope: backend.rope_table(&rope::wavelengths(config.head_dim, config.rope_theta, config.rope_scaling)),
            attention: Attention {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f32).powf(-0.5),
                window: None,
            },
            rms_norm_eps: config.rms_norm_eps,
        })
    }
}

impl<B: Backend> Architecture<B> for Dense<B> {
    fn caches(&self, backend: &B) -> Vec<B::Cache> {
        self.layers.iter().map(|_| backend.cache(&self.attention)).collect()
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
            let (q, k) = match &layer.qk_norm {
                Some([q_norm, k_norm]) => {
                    (backend.rms_norm(&q, q_norm, self.rms_norm_eps), backend.rms_norm(&k, k_norm, self.rms_norm_eps))
                }
                None => (q, k),
            };
            let (q, k) = (backend.rope(q, &self.rope, first), backend.rope(k, &self.rope, first));
            let attended = backend.attention(&self.attention, None, cache, &q, k, v);
            let [attended] = backend.linears(&attended, [&layer.o_proj]);
            x = backend.add(x, &attended);
            let normed = backend.rms_norm(&x, &layer.post_attention_layernorm, self.rms_norm_eps);
            let [gate, up] = backend.linears(&normed, [&layer.gate_proj, &layer.up_proj]);
            let [down] = backend.linears(&backend.silu_gate(gate, &up), [&layer.down_proj]);
            x = backend.add(x, &down);
        }
        Some(x)
    }

    fn logits(&self, backend: &B, states: &B::Tensor) -> B::Tensor {
        let normed = backend.rms_norm(states, &self.norm, self.rms_norm_eps);
        let [logits] = backend.linears(&normed, [self.lm_head.as_ref().unwrap_or(&self.embed_tokens)]);
        logits
    }
}
