//! Fits a conversation into the context: the oldest turns go, whole, and the person is told how many messages went.

use super::EngineError;
use super::control::PromptText;
use super::prompt::{self, Setting};
use super::tokenizer::Tokenizer;
use crate::message::{Message, Role};

/// At most so many tokens are kept free for the answer while older turns can still go; else a quarter of the context.
const ANSWER_ROOM_TOKENS_MAX: usize = 1024;
/// A conversation with more bytes for each token of the context isn't tried whole at first.
const WHOLE_BYTES_A_TOKEN_MAX: usize = 8;

/// What of a conversation is in the context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// For each message, whether it is in.
    pub is_in: Vec<bool>,
    /// How many messages aren't: the oldest turns, whole.
    pub dropped_messages: usize,
    /// How many tokens the prompt has.
    pub prompt_tokens: usize,
    /// How many tokens the context holds, prompt and answer together.
    pub num_ctx: usize,
}

/// A prompt that fits.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) fit: Fit,
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
}

/// Renders and encodes as much of `messages` as fits into `num_ctx` tokens with some room for the answer.
///
/// System messages and the newest turn stay. Turns that lie within the prompt's first `num_keep` tokens stay as long
/// as the others suffice.
pub(crate) fn fit(
    tokenizer: &mut Tokenizer,
    setting: &Setting<'_>,
    messages: &[Message],
    num_ctx: usize,
    num_keep: usize,
) -> Result<Fitted, EngineError> {
    let turns = turns(messages);
    let mut order: Vec<usize> = (0..turns.len().saturating_sub(1)).collect();
    let room = (num_ctx / 4).min(ANSWER_ROOM_TOKENS_MAX);
    // How many droppable turns are too many: more than there are, until a try says otherwise.
    let mut too_many = order.len() + 1;
    let said = |message: &Message| message.content.len() + message.reasoning.as_ref().map_or(0, String::len);
    if messages.iter().map(said).sum::<usize>() <= num_ctx.saturating_mul(WHOLE_BYTES_A_TOKEN_MAX) {
        let whole = without(tokenizer, setting, messages, &turns, &[])?;
        if whole.0.1.len() + room <= num_ctx {
            return Ok(fitted(whole, num_ctx));
        }
        too_many = order.len();
    }
    let kept_turns = kept_turns(tokenizer, setting, messages, &turns, num_keep)?.min(order.len());
    order.rotate_left(kept_turns);
    let mut best = without(tokenizer, setting, messages, &turns, &order)?;
    if best.0.1.len() >= num_ctx {
        return Err(EngineError::TooLong { tokens: best.0.1.len(), num_ctx });
    }
    // From the newest turn on, twice as many each time, then by bisection: the tries cost about what fits, not what the
    // whole conversation would. The newest turn alone may take the answer's room, but for one token.
    let (mut kept, mut is_doubling) = (0, true);
    while kept + 1 < too_many {
        let step = if is_doubling { (kept + 1).min(too_many - 1 - kept) } else { (too_many - kept) / 2 };
        let tried = without(tokenizer, setting, messages, &turns, &order[..order.len() - kept - step])?;
        if tried.0.1.len() + room <= num_ctx {
            (kept, best) = (kept + step, tried);
        } else {
            (too_many, is_doubling) = (kept + step, false);
        }
    }
    Ok(fitted(best, num_ctx))
}

fn fitted(((prompt, tokens), is_in): Tried, num_ctx: usize) -> Fitted {
    let dropped_messages = is_in.iter().filter(|is_in| !**is_in).count();
    let fit = Fit { is_in, dropped_messages, prompt_tokens: tokens.len(), num_ctx };
    Fitted { fit, text: prompt.text, tokens }
}

/// The turns of a conversation, each the places of its messages: a user's message and what follows it. System
/// messages belong to none.
fn turns(messages: &[Message]) -> Vec<Vec<usize>> {
    let mut turns: Vec<Vec<usize>> = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        match (message.role, turns.last_mut()) {
            (Role::System, _) => {}
            (Role::Assistant, Some(turn)) => turn.push(i),
            _ => turns.push(vec![i]),
        }
    }
    turns
}

/// How many of the oldest turns lie within the first `num_keep` tokens.
fn kept_turns(
    tokenizer: &mut Tokenizer,
    setting: &Setting<'_>,
    messages: &[Message],
    turns: &[Vec<usize>],
    num_keep: usize,
) -> Result<usize, EngineError> {
    let setting = Setting { add_generation_prompt: false, ..*setting };
    let mut is_in: Vec<bool> = messages.iter().map(|message| message.role == Role::System).collect();
    for (kept, turn) in turns.iter().enumerate() {
        turn.iter().for_each(|&i| is_in[i] = true);
        // A turn has at least one token, so this ends after `num_keep` turns at the latest.
        if kept >= num_keep || encode(tokenizer, &setting, messages, &is_in)?.1.len() > num_keep {
            return Ok(kept);
        }
    }
    Ok(turns.len())
}

type Tried = ((PromptText, Vec<u32>), Vec<bool>);

fn without(
    tokenizer: &mut Tokenizer,
    setting: &Setting<'_>,
    messages: &[Message],
    turns: &[Vec<usize>],
    dropped: &[usize],
) -> Result<Tried, EngineError> {
    let mut is_in = vec![true; messages.len()];
    dropped.iter().flat_map(|&turn| &turns[turn]).for_each(|&i| is_in[i] = false);
    Ok((encode(tokenizer, setting, messages, &is_in)?, is_in))
}

fn encode(
    tokenizer: &mut Tokenizer,
    setting: &Setting<'_>,
    messages: &[Message],
    is_in: &[bool],
) -> Result<(PromptText, Vec<u32>), EngineError> {
    let chosen: Vec<&Message> = messages.iter().zip(is_in).filter(|(_, is_in)| **is_in).map(|(m, _)| m).collect();
    let prompt = prompt::render(tokenizer, setting, &chosen)?;
    let tokens = tokenizer.encode_prompt(&prompt)?;
    Ok((prompt, tokens))
}
