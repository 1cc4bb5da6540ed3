//! From messages to the prompt's tokens, so that no message can speak a control token.
//!
//! Templates cut, trim and compare what a message says, so its text can't be kept out of the rendering. Instead, the
//! first character of every control token (nearly always `<`) is replaced in the messages by a stand-in: one character
//! of Unicode's private use areas that no message and no template has. The template is rendered with that. Whatever it
//! does with the messages, a control token in the result begins with a character that only the template can
//! have written. The places of those tokens are noted, then the stand-ins are turned back.
//!
//! A consequence that is wanted: to the template's own tests (`'</think>' in content`) a message is opaque.
//! What remains: a template that writes the beginning of a control token right before a message's text, and its end
//! after it, as `'<|' + content + '|>'`. None is known.

use std::collections::BTreeSet;

use minijinja::value::Value;

use super::control::{ControlToken, PromptText, find_control};
use super::reasoning::split_whole;
use super::template::{ChatTemplate, Rendering, TemplateError, Think};
use super::tokenizer::Tokenizer;
use crate::message::{Message, Role};
use crate::time::Timestamp;

/// The stand-ins of one prompt: pairs of a character and what stands for it.
#[derive(Debug)]
struct StandIns(Vec<(char, char)>);

impl StandIns {
    /// Chooses stand-ins that none of `texts` has; `None` where those have every character for private use.
    fn choose<'a>(control: &[ControlToken], texts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let is_private = |c: &char| matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10fffd}');
        let taken: BTreeSet<char> = texts.flat_map(str::chars).filter(is_private).collect();
        let firsts: BTreeSet<char> = control.iter().filter_map(|token| token.text.chars().next()).collect();
        let mut free = ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{ffffd}').filter(|c| !taken.contains(c));
        firsts.into_iter().map(|first| Some((first, free.next()?))).collect::<Option<Vec<_>>>().map(Self)
    }

    fn hide(&self, text: &str) -> String {
        let stand_in = |c| self.0.iter().find(|(first, _)| *first == c).map_or(c, |(_, stand_in)| *stand_in);
        text.chars().map(stand_in).collect()
    }

    fn reveal(&self, text: &str, out: &mut String) {
        let first = |c| self.0.iter().find(|(_, stand_in)| *stand_in == c).map_or(c, |(first, _)| *first);
        out.extend(text.chars().map(first));
    }
}

/// What a template makes of a conversation, apart from the conversation.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The template.
    pub template: &'a ChatTemplate,
    /// How much the model shall think.
    pub think: Option<Think>,
    /// Today's date.
    pub now: Timestamp,
    /// Whether the prompt ends with the opening of the model's turn.
    pub add_generation_prompt: bool,
}

/// Renders a conversation and notes which control tokens are the template's.
///
/// # Errors
/// [`TemplateError::Render`].
pub fn render(
    tokenizer: &Tokenizer,
    setting: &Setting<'_>,
    messages: &[&Message],
) -> Result<PromptText, TemplateError> {
    let control = tokenizer.control();
    let said = messages.iter().flat_map(|message| [Some(&message.content), message.reasoning.as_ref()]);
    let texts = said.flatten().map(String::as_str).chain([setting.template.source()]);
    let stand_ins = StandIns::choose(control, texts)
        .ok_or_else(|| TemplateError::Render("it uses every character of the private use areas".into()))?;
    let rendering = Rendering {
        messages: messages.iter().map(|message| to_value(message, &stand_ins)).collect(),
        add_generation_prompt: setting.add_generation_prompt,
        think: setting.think,
        variables: Vec::new(),
        now: setting.now,
    };
    let hidden = setting.template.render(&rendering)?;
    let mut prompt = PromptText { text: String::with_capacity(hidden.len()), control: Vec::new() };
    let mut at = 0;
    for (range, token) in find_control(&hidden, control) {
        stand_ins.reveal(&hidden[at..range.start], &mut prompt.text);
        let start = prompt.text.len();
        prompt.text.push_str(&control[token].text);
        prompt.control.push((start..prompt.text.len(), token));
        at = range.end;
    }
    stand_ins.reveal(&hidden[at..], &mut prompt.text);
    Ok(prompt)
}

/// A message as templates know it. A thought goes by both of its published names: `reasoning_content` and `thinking`.
fn to_value(message: &Message, stand_ins: &StandIns) -> Value {
    let (reasoning, content) = match (&message.reasoning, message.role) {
        // Other programs store the thought within the answer.
        (None, Role::Assistant) => split_whole(&message.content),
        (reasoning, _) => (reasoning.clone(), message.content.clone()),
    };
    let mut fields =
        vec![("role", Value::from(message.role.as_str())), ("content", Value::from(stand_ins.hide(&content)))];
    if let Some(reasoning) = reasoning {
        let reasoning = Value::from(stand_ins.hide(&reasoning));
        fields.extend([("reasoning_content", reasoning.clone()), ("thinking", reasoning)]);
    }
    Value::from_pairs(fields)
}

#[cfg(test)]
mod tests;
