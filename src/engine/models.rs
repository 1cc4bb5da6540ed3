//! STUB for this branch only: the other room's file replaces it. Knows checkpoints whose layers do nothing.

use std::ops::ControlFlow;

use crate::engine::checkpoint::CheckpointError;
use crate::hint::Hint;
use crate::verified::VerifiedFolder;

/// Stub.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Stub.
    pub model_type: String,
    /// Stub.
    pub vocab_size: usize,
    /// Stub.
    pub max_position_embeddings: usize,
    /// Stub.
    pub bos_token_id: Option<u32>,
    /// Stub.
    pub eos_token_ids: Vec<u32>,
}

/// Stub.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Stub.
    pub num_ctx: usize,
    /// Stub.
    pub threads: Option<usize>,
}

/// Stub.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    /// Stub.
    pub bytes_read: u64,
    /// Stub.
    pub bytes_total: u64,
}

/// Stub.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Stub.
    #[error("cancelled")]
    Cancelled,
    /// Stub.
    #[error("the context is full")]
    Full,
}

impl Hint for ForwardError {
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Stub.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    num_ctx: usize,
    hidden: usize,
    embed: Vec<f32>,
    head: Vec<f32>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

impl Model {
    /// Stub.
    pub fn load(
        folder: &VerifiedFolder,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self, CheckpointError> {
        let bytes = folder.read("model.safetensors", 1 << 30)?.ok_or(CheckpointError::Missing)?;
        let total = bytes.len() as u64;
        if progress(LoadProgress { bytes_read: 0, bytes_total: total }).is_break() {
            return Err(CheckpointError::Cancelled);
        }
        let config: serde_json::Value =
            serde_json::from_slice(&folder.read("config.json", 1 << 20)?.ok_or(CheckpointError::Missing)?)
                .map_err(|_| CheckpointError::Missing)?;
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(|_| CheckpointError::Missing)?;
        let floats = |name: &str| -> Result<Vec<f32>, CheckpointError> {
            let tensor = tensors.tensor(name).map_err(|_| CheckpointError::Missing)?;
            let floats = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            Ok(floats.collect())
        };
        let number = |name: &str| config[name].as_u64().unwrap_or_default() as usize;
        let (embed, head) = (floats("model.embed_tokens.weight")?, floats("lm_head.weight")?);
        let _ = progress(LoadProgress { bytes_read: total, bytes_total: total });
        Ok(Self {
            config: ModelConfig {
                model_type: "llama".into(),
                vocab_size: number("vocab_size"),
                max_position_embeddings: number("max_position_embeddings"),
                bos_token_id: None,
                eos_token_ids: vec![number("eos_token_id") as u32],
            },
            num_ctx: options.num_ctx,
            hidden: number("hidden_size"),
            embed,
            head,
            tokens: Vec::new(),
            logits: Vec::new(),
        })
    }

    /// Stub.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Stub.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Stub.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Stub.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    /// Stub.
    pub fn forward(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], ForwardError> {
        for &token in tokens {
            if cancelled() {
                return Err(ForwardError::Cancelled);
            }
            if self.tokens.len() >= self.num_ctx {
                return Err(ForwardError::Full);
            }
            self.tokens.push(token);
        }
        let last = *self.tokens.last().expect("tokens were given") as usize;
        let row = &self.embed[last * self.hidden..(last + 1) * self.hidden];
        let norm = (row.iter().map(|x| x * x).sum::<f32>() / self.hidden as f32 + 1e-5).sqrt();
        self.logits = self
            .head
            .chunks(self.hidden)
            .map(|head| head.iter().zip(row).map(|(a, b)| a * b).sum::<f32>() / norm)
            .collect();
        Ok(&self.logits)
    }
}
