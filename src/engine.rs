//! The engine: messages in, text out. Template → tokens → forward → sample → text; synchronous, on one thread.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::digest::Sha256Digest;
use crate::hint::Hint;
use crate::message::{Message, Role};
use crate::modelfile::Form;
use crate::sampling::Sampling;
use crate::time::Clock;
use crate::verified::VerifiedFolder;

pub mod gguf;
pub mod checkpoint;
pub mod prefix;
pub mod backend;
pub mod models;
pub mod template;
pub mod reasoning;
pub mod harmony;
pub mod control;
pub mod tokenizer;
pub mod grammar;
pub mod prompt;
pub mod sampler;
pub mod stop;
pub mod fit;
pub mod lookup;
mod output;
mod generation;
pub mod worker;
#[cfg(test)]
pub(crate) mod test_model;

pub use crate::transcript::FinishReason;

pub use self::fit::Fit;
pub use self::grammar::Grammar;
pub use self::reasoning::Piece;
pub use self::template::Think;

use self::checkpoint::CheckpointError;
use self::fit::Fitted;
use self::generation::{Generation, Parts};
use self::grammar::{Constraint, GrammarError, Vocabulary};
use self::lookup::Lookup;
use self::models::{ForwardError, LoadOptions, LoadProgress, Model};
use self::output::{Format, Output};
use self::prefix::PrefixState;
use self::prompt::Setting;
use self::sampler::{Sampler, SamplerError};
use self::template::{ChatTemplate, TemplateError};
use self::tokenizer::{Tokenizer, TokenizerError};

/// The largest state that is taken out of the engine, in bytes.
const STATE_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// No answer can be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model can't be loaded.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model's tokenizer can't be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template can't be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The model can't compute.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The model's numbers can't be sampled from.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The grammar can't be used.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// `PARSER harmony` with a model that has no such tags.
    #[error("this model's tokenizer has no Harmony tags, such as `<|channel|>`")]
    NotHarmony,
    /// The newest message with the system's leaves no room for an answer.
    #[error("the message has {tokens} tokens with its instructions, but the context holds only {num_ctx}")]
    TooLong {
        /// How many tokens the shortest possible prompt has.
        tokens: usize,
        /// How many tokens the context holds.
        num_ctx: usize,
    },
    /// The template made nothing of the conversation.
    #[error("the chat template makes an empty prompt of this conversation")]
    EmptyPrompt,
    /// The operating system gives no random seed.
    #[error("the operating system gives no random numbers: {0}")]
    Random(String),
    /// Loading failed, once for all requests.
    #[error(transparent)]
    Load(Arc<EngineError>),
    /// The engine's thread is gone.
    #[error("the engine met a defect of its own and has stopped")]
    Stopped,
}

impl Hint for EngineError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Template(error) => error.hint(),
            Self::Forward(error) => error.hint(),
            Self::Sampler(error) => error.hint(),
            Self::Grammar(error) => error.hint(),
            Self::TooLong { .. } => Some("shorten the message, or raise `num_ctx`".into()),
            Self::NotHarmony => Some("write `PARSER auto` in the Modelfile".into()),
            Self::EmptyPrompt => Some("correct the `TEMPLATE` of the Modelfile".into()),
            Self::Random(_) => Some("give a seed with `--seed`".into()),
            Self::Load(error) => error.hint(),
            Self::Stopped => Some("start Tiles again: everything it acknowledged is stored".into()),
        }
    }
}

/// How an engine is set up.
#[derive(Clone)]
pub struct EngineOptions {
    /// What the model is loaded with.
    pub load: LoadOptions,
    /// What tells templates today's date.
    pub clock: Arc<dyn Clock>,
}

/// What to answer, and how.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The conversation, the newest message last.
    pub messages: Vec<Message>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// How many tokens of context to use; `None` all that the model was loaded with, and never more.
    pub num_ctx: Option<usize>,
    /// Turns within so many first tokens of the prompt are dropped last.
    pub num_keep: usize,
    /// A Jinja template to use instead of the checkpoint's.
    pub template: Option<String>,
    /// How much the model shall think; `None` leaves it to the template.
    pub think: Option<Think>,
    /// How the answer is taken apart: `PARSER`.
    pub parser: Form,
    /// What the answer must look like; `None` leaves it free.
    pub grammar: Option<Grammar>,
    /// Whether tokens are drafted from what was said before, which changes no answer; `None` where it pays.
    pub speculates: Option<bool>,
}

/// How many tokens an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The prompt's.
    pub input_tokens: usize,
    /// Those of the prompt that were in the cache from the turn before.
    pub cached_tokens: usize,
    /// The answer's, thoughts included; the token that ends the turn isn't counted.
    pub output_tokens: usize,
    /// How many tokens were drafted from what was said before.
    pub drafted_tokens: usize,
    /// How many of them were what the model then said: so many computations were saved.
    pub accepted_tokens: usize,
}

/// How long an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Loading the model, in milliseconds.
    pub load_ms: u64,
    /// From the request to the first token, in milliseconds.
    pub first_token_ms: u64,
    /// Tokens of the prompt that weren't in the cache, a second; 0 where none was computed.
    pub prompt_tokens_per_s: f64,
    /// Tokens of the answer after the first, a second; 0 where there is no second one.
    pub decode_tokens_per_s: f64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The answer's text.
    pub text: String,
    /// What the model thought before.
    pub reasoning: Option<String>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Its tokens.
    pub usage: Usage,
    /// Its time.
    pub timing: Timing,
    /// The seed that makes the same answer again.
    pub seed: u64,
    /// How many of the oldest messages didn't fit into the context; the person is told.
    pub dropped_messages: usize,
}

/// A loaded model with its tokenizer and template.
pub struct Engine {
    model: Model,
    tokenizer: Tokenizer,
    /// Absent where the model has none: then every request must bring one.
    template: Option<ChatTemplate>,
    /// Made for the first answer that has a grammar.
    vocabulary: Option<Vocabulary>,
    clock: Arc<dyn Clock>,
    eos: HashSet<u32>,
    /// The most tokens that the model was loaded for.
    num_ctx: usize,
    /// The tokens whose keys and values the model holds.
    cached: Vec<u32>,
    load_ms: u64,
    /// Which weights these are and what computes; `None` where nothing vouches for the weights.
    origin: Option<Sha256Digest>,
}

impl Engine {
    /// Loads the model in `folder`.
    ///
    /// # Errors
    /// What its files can hold against it; [`CheckpointError`] says when `progress` cancelled.
    pub fn load(
        folder: &VerifiedFolder,
        options: &EngineOptions,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self, EngineError> {
        let start = Instant::now();
        // The small files first: what is wrong with them is told at once.
        let template = match ChatTemplate::load(folder) {
            Ok(template) => Some(template),
            Err(TemplateError::Missing) => None,
            Err(error) => return Err(error.into()),
        };
        let model = Model::load(folder, &options.load, progress)?;
        let config = model.config();
        let origin = origin(folder, &options.load, model.engine());
        let source = template.as_ref().map_or("", ChatTemplate::source);
        let tokenizer = Tokenizer::load(folder, source, config.vocab_size)?;
        let num_ctx = match options.load.num_ctx {
            0 => config.max_position_embeddings,
            num_ctx => num_ctx.min(config.max_position_embeddings),
        };
        Ok(Self {
            eos: config.eos_token_ids.iter().copied().collect(),
            num_ctx,
            model,
            tokenizer,
            template,
            vocabulary: None,
            clock: Arc::clone(&options.clock),
            cached: Vec::new(),
            load_ms: milliseconds(start),
            origin,
        })
    }

    /// How many tokens the context holds at most.
    pub fn num_ctx(&self) -> usize {
        self.num_ctx
    }

    /// The source of the checkpoint's own chat template.
    pub fn template(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// Counts the tokens of a text on its own.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn count_tokens(&mut self, text: &str) -> Result<usize, EngineError> {
        Ok(self.tokenizer.encode(text)?.len())
    }

    /// Says what of a request's messages would be in the context.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn fit(&mut self, request: &Request) -> Result<Fit, EngineError> {
        Ok(self.prepare(request)?.0.fit)
    }

    /// The state after as much of this conversation as the engine holds, and of no other; `None` where that is nothing, or
    /// nothing vouches for the weights.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn state(&mut self, conversation: &Request) -> Result<Option<PrefixState>, EngineError> {
        let tokens = self.prepare(conversation)?.0.tokens;
        let shared = self.cached.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        let Some(origin) = self.origin.filter(|_| shared > 0 && self.model.len() == self.cached.len()) else {
            return Ok(None);
        };
        // Longer ones are computed again rather than copied, written and read.
        if self.model.cache_bytes() > STATE_BYTES_MAX {
            return Ok(None);
        }
        let layers = self.model.snapshot().map_err(ForwardError::from)?;
        let state = PrefixState { origin, tokens: self.cached.clone(), layers };
        Ok(state.truncated(shared))
    }

    /// Takes up a state that [`Self::state`] gave, in place of what the engine holds, where it is of these weights and says
    /// more. A foreign or stale one changes nothing.
    pub fn take_up(&mut self, state: &PrefixState) -> bool {
        let is_ours = self.origin == Some(state.origin) && state.tokens.len() > self.cached.len();
        if !is_ours || state.tokens.iter().any(|token| *token as usize >= self.model.config().vocab_size) {
            return false;
        }
        let fits = self.model.restore(&state.layers, state.tokens.len());
        self.cached.clear();
        if fits {
            self.cached.extend_from_slice(&state.tokens);
        }
        fits
    }

    /// The tokens that every conversation begins with that has this request's instructions: those before its first message
    /// of a person.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn opening(&mut self, request: &Request) -> Result<Vec<u32>, EngineError> {
        let instructions = request.messages.iter().take_while(|message| message.role != Role::User).cloned();
        let with = |text: &str| Request {
            messages: instructions.clone().chain([Message::new(Role::User, text)]).collect(),
            ..request.clone()
        };
        // What two conversations have in common that differ from the first character of the first message on.
        let (one, other) = (self.prepare(&with("0"))?.0.tokens, self.prepare(&with("Ω"))?.0.tokens);
        Ok(one.iter().zip(&other).take_while(|(a, b)| a == b).map(|(a, _)| *a).collect())
    }

    /// Which weights these are, by what vouches for them, and what computes.
    pub fn origin(&self) -> Option<Sha256Digest> {
        self.origin
    }

    /// Answers a request. `emit` takes each piece as soon as it is certain, and can end the answer.
    ///
    /// # Errors
    /// [`EngineError::TooLong`], and what template, tokenizer, model and sampler can meet.
    pub fn generate(
        &mut self,
        request: &Request,
        emit: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> Result<Completion, EngineError> {
        self.generate_until(request, &|| false, emit)
    }

    /// As [`Self::generate`]; `cancelled` is also asked while the prompt is computed, before `emit` has anything.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_until(
        &mut self,
        request: &Request,
        cancelled: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> Result<Completion, EngineError> {
        let start = Instant::now();
        let seed = match request.sampling.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| EngineError::Random(error.to_string()))?,
        };
        let (Fitted { fit, text: prompt, tokens }, format) = self.prepare(request)?;
        let mut output = Output::new(format, &prompt, &request.sampling.stop);
        let constraint = request.grammar.as_ref().map(|grammar| self.constraint(grammar)).transpose()?;
        let shared = self.cached.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        self.model.truncate(shared.min(tokens.len().saturating_sub(1)));
        // A rotated sliding window may not have gone back all the way.
        let cached_tokens = self.model.len();
        self.cached.truncate(cached_tokens);
        let tokens_max = request.sampling.num_predict.map_or(usize::MAX, |max| max as usize);
        let mut run = Generation::new(
            Sampler::new(&request.sampling, seed),
            constraint,
            Lookup::new(request.speculates.unwrap_or(true) && self.model.is_exact_in_batches()),
            (tokens_max, fit.num_ctx),
            (start, self.load_ms),
        );
        let Self { model, tokenizer, cached, eos, .. } = self;
        let mut parts = Parts { model, tokenizer, cached, eos, output: &mut output, cancelled, emit: &mut *emit };
        let finished = run.run(&mut parts, &tokens[cached_tokens..]);
        if finished.is_err() {
            // How far the model got is not known: the next request starts anew.
            self.model.truncate(0);
            self.cached.clear();
        }
        let finish_reason = finished?;
        // What is still held back goes out, unless nobody listens; the completion has it in any case.
        for piece in output.finish(&self.tokenizer)? {
            if finish_reason == FinishReason::Cancelled || emit(piece).is_break() {
                break;
            }
        }
        let (text, reasoning) = output.into_text();
        Ok(Completion {
            text,
            reasoning,
            finish_reason,
            usage: Usage {
                input_tokens: tokens.len(),
                cached_tokens,
                output_tokens: run.output_tokens,
                drafted_tokens: run.lookup.drafted,
                accepted_tokens: run.lookup.accepted,
            },
            timing: run.timing,
            seed,
            dropped_messages: fit.dropped_messages,
        })
    }

    /// Renders, fits and encodes a request; says too how its answer is written.
    fn prepare(&mut self, request: &Request) -> Result<(Fitted, Format), EngineError> {
        let given = match (&request.template, &self.template) {
            (Some(source), Some(template)) => Some(template.with_source(source)?),
            (Some(source), None) => Some(ChatTemplate::from_source(source)?),
            (None, _) => None,
        };
        let template = given.as_ref().or(self.template.as_ref()).ok_or(TemplateError::Missing)?;
        let setting = Setting { template, think: request.think, now: self.clock.now(), add_generation_prompt: true };
        let num_ctx = request.num_ctx.unwrap_or(usize::MAX).min(self.num_ctx);
        let fitted = fit::fit(&mut self.tokenizer, &setting, &request.messages, num_ctx, request.num_keep)?;
        if fitted.tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let format = Format::of(request.parser, template.source(), &self.tokenizer).ok_or(EngineError::NotHarmony)?;
        Ok((fitted, format))
    }

    /// Begins an answer of a grammar.
    fn constraint(&mut self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let vocabulary = match self.vocabulary.take() {
            Some(vocabulary) => vocabulary,
            None => {
                let mut ends: Vec<u32> = self.eos.iter().copied().chain(self.tokenizer.turn_ends()).collect();
                ends.sort_unstable();
                ends.dedup();
                ends.retain(|&end| (end as usize) < self.model.config().vocab_size);
                Vocabulary::new(&self.tokenizer, &ends)?
            }
        };
        Constraint::new(self.vocabulary.insert(vocabulary), grammar)
    }
}

/// What a state of these weights belongs to; `None` where nothing vouches for them, or for what an adapter adds to them.
fn origin(folder: &VerifiedFolder, load: &LoadOptions, engine: &str) -> Option<Sha256Digest> {
    // Another version of the kernels rounds otherwise.
    let made_by = format!("{} {engine} {:?}", env!("CARGO_PKG_VERSION"), load.activations);
    let mut origin = [&folder.fingerprint()?.0[..], made_by.as_bytes()].concat();
    if let Some(adapter) = &load.adapter {
        origin.extend(adapter.fingerprint()?.0);
    }
    Some(Sha256Digest::of(&origin))
}

fn milliseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn rate(tokens: usize, start: Instant) -> f64 {
    tokens as f64 / start.elapsed().as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests;
