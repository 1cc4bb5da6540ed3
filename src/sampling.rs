//! How the next token is chosen: the sampling parameters as checked values.

mod parameters;

pub(crate) use parameters::nearest;
pub use parameters::{
    Effect, Kind, NUM_CTX_MAX, PARAMETERS, Parameter, ParameterError, Parameters, STOP_BYTES_MAX, STOP_TEXTS_MAX,
};

/// The parameters of one generation, with Ollama's names and defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 chooses the most likely token. 0 to 10.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens whose probabilities add up to `top_p`; 1 keeps all. 0 to 1.
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the most likely one; 0 keeps all. 0 to 1.
    pub min_p: f32,
    /// Locally typical sampling; 1 keeps all. 0 to 1.
    pub typical_p: f32,
    /// How many of the last tokens the penalties look at; 0 none, -1 the whole context.
    pub repeat_last_n: i32,
    /// Divides a positive logit (multiplies a negative one) of a token seen before; 1 does nothing. Above 0, to 10.
    pub repeat_penalty: f32,
    /// Taken off the logit of a token seen before. -2 to 2.
    pub presence_penalty: f32,
    /// Taken off the logit of a token for each time it was seen before. -2 to 2.
    pub frequency_penalty: f32,
    /// The seed of the random choice; `None` draws one and shows it.
    pub seed: Option<u64>,
    /// How many tokens to generate at most; `None` until the model stops.
    pub num_predict: Option<u32>,
    /// Texts at which generation stops; they are not part of the answer.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            num_predict: None,
            stop: Vec::new(),
        }
    }
}
