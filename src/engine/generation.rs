//! One answer: forward, choose, emit, token after token, with drafts of what comes next where the text repeats itself.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Instant;

use super::grammar::{Constraint, GrammarError};
use super::lookup::Lookup;
use super::models::{ForwardError, Model};
use super::output::Output;
use super::reasoning::Piece;
use super::sampler::Sampler;
use super::tokenizer::Tokenizer;
use super::{EngineError, FinishReason, Timing};

/// The state of one answer, apart from its text.
pub(super) struct Generation {
    pub(super) sampler: Sampler,
    pub(super) constraint: Option<Constraint>,
    pub(super) lookup: Lookup,
    /// Whether the last token was chosen under the constraint.
    is_constrained: bool,
    /// The logits under the constraint; kept between tokens to allocate once.
    masked: Vec<f32>,
    tokens_max: usize,
    num_ctx: usize,
    start: Instant,
    decode_start: Instant,
    pub(super) timing: Timing,
    pub(super) output_tokens: usize,
}

/// What an answer is made with.
pub(super) struct Parts<'a> {
    pub(super) model: &'a mut Model,
    pub(super) tokenizer: &'a Tokenizer,
    /// The tokens whose keys and values the model holds.
    pub(super) cached: &'a mut Vec<u32>,
    pub(super) eos: &'a HashSet<u32>,
    pub(super) output: &'a mut Output,
    pub(super) cancelled: &'a dyn Fn() -> bool,
    pub(super) emit: &'a mut dyn FnMut(Piece) -> ControlFlow<()>,
}

/// What comes after a token was chosen.
enum Next {
    Token(u32),
    End(FinishReason),
}

impl Generation {
    /// Begins an answer of at most `tokens_max` tokens in a context of `num_ctx`.
    pub(super) fn new(
        sampler: Sampler,
        constraint: Option<Constraint>,
        lookup: Lookup,
        (tokens_max, num_ctx): (usize, usize),
        (start, load_ms): (Instant, u64),
    ) -> Self {
        Self {
            sampler,
            constraint,
            lookup,
            is_constrained: false,
            masked: Vec::new(),
            tokens_max,
            num_ctx,
            start,
            decode_start: start,
            timing: Timing { load_ms, ..Timing::default() },
            output_tokens: 0,
        }
    }

    /// Answers. The model then holds `cached` and no more, whatever happened but a failure.
    pub(super) fn run(&mut self, parts: &mut Parts<'_>, new_tokens: &[u32]) -> Result<FinishReason, EngineError> {
        if self.tokens_max == 0 {
            return Ok(FinishReason::Length);
        }
        let reason = self.tokens(parts, new_tokens);
        if reason.is_ok() {
            // A draft that wasn't looked at any more is still in there.
            parts.model.truncate(parts.cached.len());
        }
        reason
    }

    fn tokens(&mut self, parts: &mut Parts<'_>, new_tokens: &[u32]) -> Result<FinishReason, EngineError> {
        let mut token = match self.first(parts, new_tokens)? {
            Next::Token(token) => token,
            Next::End(reason) => return Ok(reason),
        };
        let mut next = Vec::new();
        loop {
            if (parts.cancelled)() {
                return Ok(FinishReason::Cancelled);
            }
            next.clear();
            next.push(token);
            // As many as could still be answered.
            let room = self.num_ctx.saturating_sub(parts.cached.len() + 1);
            let wanted = room.min(self.tokens_max - self.output_tokens).saturating_sub(1);
            self.lookup.draft(parts.cached, &mut next, wanted);
            token = match self.verified(parts, &next)? {
                Next::Token(token) => token,
                Next::End(reason) => return Ok(reason),
            };
        }
    }

    /// Computes the prompt and chooses the first token.
    fn first(&mut self, parts: &mut Parts<'_>, new_tokens: &[u32]) -> Result<Next, EngineError> {
        let forward_start = Instant::now();
        let logits = match parts.model.forward(new_tokens, parts.cancelled) {
            Ok(logits) => logits.to_vec(),
            Err(ForwardError::Cancelled) => return Ok(Next::End(FinishReason::Cancelled)),
            Err(error) => return Err(error.into()),
        };
        parts.cached.extend_from_slice(new_tokens);
        let token = self.choose(parts, &logits)?;
        self.timing.first_token_ms = super::milliseconds(self.start);
        self.timing.prompt_tokens_per_s = super::rate(new_tokens.len(), forward_start);
        self.decode_start = Instant::now();
        self.took(parts, token)
    }

    /// Computes a token and the draft after it; keeps of the draft what would have been chosen anyway.
    fn verified(&mut self, parts: &mut Parts<'_>, tokens: &[u32]) -> Result<Next, EngineError> {
        let rows = match parts.model.forward_each(tokens, parts.cancelled) {
            Ok(rows) => rows,
            Err(ForwardError::Cancelled) => return Ok(Next::End(FinishReason::Cancelled)),
            Err(error) => return Err(error.into()),
        };
        let width = rows.len() / tokens.len();
        for (idx, logits) in rows.chunks_exact(width).enumerate() {
            parts.cached.push(tokens[idx]);
            let token = self.choose(parts, logits)?;
            self.timing.decode_tokens_per_s = super::rate(self.output_tokens, self.decode_start);
            let next = self.took(parts, token)?;
            let is_drafted = tokens.get(idx + 1) == Some(&token);
            if !is_drafted || matches!(next, Next::End(_)) {
                self.lookup.verified(tokens.len() - 1, idx);
                parts.model.truncate(parts.cached.len());
                return Ok(next);
            }
        }
        unreachable!("after the last row nothing is drafted")
    }

    /// Chooses the token after `cached`, held to the grammar where it belongs to the answer.
    fn choose(&mut self, parts: &Parts<'_>, logits: &[f32]) -> Result<u32, EngineError> {
        let Some(constraint) = self.constraint.as_mut().filter(|_| parts.output.is_answering()) else {
            self.is_constrained = false;
            return Ok(self.sampler.choose(logits, parts.cached)?);
        };
        self.masked.clear();
        self.masked.extend_from_slice(logits);
        constraint.mask(&mut self.masked)?;
        // What begins a thought may come all the same: no grammar holds thoughts.
        let tag = parts.output.thought_tag();
        let tag = tag.and_then(|tag| parts.tokenizer.control().iter().find(|token| token.text == tag));
        let tag = tag.map(|tag| tag.id).filter(|tag| (*tag as usize) < logits.len());
        if let Some(tag) = tag {
            self.masked[tag as usize] = logits[tag as usize];
        }
        let token = self.sampler.choose(&self.masked, parts.cached)?;
        self.is_constrained = tag != Some(token);
        Ok(token)
    }

    /// Takes a chosen token into the text; says how it goes on.
    fn took(&mut self, parts: &mut Parts<'_>, token: u32) -> Result<Next, EngineError> {
        if parts.eos.contains(&token) || parts.tokenizer.ends_turn(token) {
            return Ok(Next::End(FinishReason::Stop));
        }
        self.output_tokens += 1;
        let is_complete = self.advance(token)?;
        for piece in parts.output.push(parts.tokenizer, token)? {
            if (parts.emit)(piece).is_break() {
                return Ok(Next::End(FinishReason::Cancelled));
            }
        }
        if is_complete || parts.output.is_stopped() {
            return Ok(Next::End(FinishReason::Stop));
        }
        if self.output_tokens >= self.tokens_max || parts.cached.len() >= self.num_ctx {
            return Ok(Next::End(FinishReason::Length));
        }
        Ok(Next::Token(token))
    }

    /// Takes a chosen token into the grammar; says whether the answer is complete.
    fn advance(&mut self, token: u32) -> Result<bool, GrammarError> {
        match &mut self.constraint {
            Some(constraint) if self.is_constrained => constraint.take(token),
            _ => Ok(false),
        }
    }
}
