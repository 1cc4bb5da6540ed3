//! A conversation: history, model and store together; one turn is answered, then kept whole, or not at all.

use std::time::Duration;

use crate::engine::worker::{Event, Next, Worker};
use crate::engine::{Completion, EngineError, FinishReason, Fit, Grammar, Piece, Request, Think};
use crate::hint::Hint;
use crate::message::{Message, Role, SessionId};
use crate::modelfile::Form;
use crate::sampling::Parameters;
use crate::store::{NewMessage, Store, StoreError};
use crate::time::Clock;
use crate::transcript::TokenCount;

/// How long a reply is waited for before an interruption is looked at.
const POLL: Duration = Duration::from_millis(40);
/// How many characters of the first message become a session's title.
const TITLE_CHARS: usize = 60;

/// A turn didn't come about.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The engine gave no answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The answer couldn't be kept, or the session not read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no turn yet.
    #[error("nothing was said yet")]
    Nothing,
}

impl Hint for ChatError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Nothing => Some("type a message first".into()),
        }
    }
}

/// How the model is asked: what a Modelfile, flags and slash commands set.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The model's name.
    pub model: String,
    /// The system message.
    pub system: Option<String>,
    /// Messages before the first turn.
    pub examples: Vec<Message>,
    /// Sampling and context.
    pub parameters: Parameters,
    /// A Jinja template instead of the checkpoint's.
    pub template: Option<String>,
    /// How much the model shall think.
    pub think: Option<Think>,
    /// How answers are taken apart.
    pub parser: Form,
    /// What answers must look like.
    pub grammar: Option<Grammar>,
}

/// A conversation and where it is kept.
#[derive(Debug, Default)]
pub struct ChatSession {
    /// How the model is asked.
    pub setup: Setup,
    history: Vec<Message>,
    session: Option<SessionId>,
}

impl ChatSession {
    /// Begins a conversation.
    pub fn new(setup: Setup) -> Self {
        Self { setup, history: Vec::new(), session: None }
    }

    /// Takes up a kept session with its whole history.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn resume(&mut self, store: &Store, session: SessionId) -> Result<(), StoreError> {
        let messages = store.messages(session)?;
        self.history = messages.iter().map(crate::transcript::StoredMessage::to_message).collect();
        self.session = Some(session);
        Ok(())
    }

    /// Forgets history and session; what was kept stays kept.
    pub fn begin_anew(&mut self) {
        self.history.clear();
        self.session = None;
    }

    /// The session that turns are kept in; `None` before the first.
    pub fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// What was said so far.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// What the model is asked: system message, examples, history.
    pub fn request(&self) -> Request {
        let system = self.setup.system.iter().map(|text| Message::new(Role::System, text.clone()));
        let messages = system.chain(self.setup.examples.iter().cloned()).chain(self.history.iter().cloned()).collect();
        Request {
            messages,
            sampling: self.setup.parameters.sampling.clone(),
            num_ctx: self.setup.parameters.num_ctx,
            num_keep: self.setup.parameters.num_keep,
            template: self.setup.template.clone(),
            think: self.setup.think,
            parser: self.setup.parser,
            grammar: self.setup.grammar.clone(),
            speculates: None,
        }
    }

    /// What of the conversation would be in the context.
    ///
    /// # Errors
    /// What the engine can meet.
    pub fn fit(&self, worker: &Worker) -> Result<Fit, EngineError> {
        worker.fit(self.request())
    }

    /// Says `text` and gives the answer, piece by piece to `emit`. When this returns, both are durable in `store`.
    ///
    /// An answer that `interrupted` ends is kept as far as it came. After an error the conversation is as before.
    ///
    /// # Errors
    /// No answer, or one that couldn't be kept.
    pub fn ask(
        &mut self,
        worker: &Worker,
        keep: Option<(&Store, &dyn Clock)>,
        text: &str,
        emit: &mut dyn FnMut(Piece),
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Completion, ChatError> {
        let question = Message::new(Role::User, text);
        self.history.push(question.clone());
        let result =
            answer(worker, self.request(), emit, interrupted).map_err(ChatError::from).and_then(|completion| {
                if let Some((store, clock)) = keep {
                    let now = clock.now();
                    let session = match self.session {
                        Some(session) => session,
                        None => store.create(now, title_of(text).as_deref(), &self.setup.model)?,
                    };
                    store.append_turn(session, &[question.into(), self.kept(&completion)], now)?;
                    self.session = Some(session);
                }
                Ok(completion)
            });
        match &result {
            Ok(completion) => self.history.push(said(completion)),
            Err(_) => drop(self.history.pop()),
        }
        result
    }

    /// Answers the last message again; the new answer takes the place of the old one when it is complete.
    ///
    /// # Errors
    /// As [`Self::ask`], and [`ChatError::Nothing`].
    pub fn regenerate(
        &mut self,
        worker: &Worker,
        keep: Option<(&Store, &dyn Clock)>,
        emit: &mut dyn FnMut(Piece),
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Completion, ChatError> {
        let last = self.history.iter().rposition(|message| message.role == Role::User).ok_or(ChatError::Nothing)?;
        let old = self.history.split_off(last + 1);
        let result =
            answer(worker, self.request(), emit, interrupted).map_err(ChatError::from).and_then(|completion| {
                if let (Some((store, clock)), Some(session)) = (keep, self.session) {
                    store.replace_last_answer(session, &self.kept(&completion), clock.now())?;
                }
                Ok(completion)
            });
        match &result {
            Ok(completion) => self.history.push(said(completion)),
            Err(_) => self.history.extend(old),
        }
        result
    }

    /// Takes the last turn back and gives what the person had said.
    ///
    /// # Errors
    /// [`ChatError::Nothing`], and what writing can meet.
    pub fn undo(&mut self, store: Option<&Store>) -> Result<String, ChatError> {
        let last = self.history.iter().rposition(|message| message.role == Role::User).ok_or(ChatError::Nothing)?;
        if let (Some(store), Some(session)) = (store, self.session) {
            store.undo_last_turn(session)?;
        }
        let taken = self.history.split_off(last);
        Ok(taken.into_iter().next().map(|message| message.content).unwrap_or_default())
    }

    fn kept(&self, completion: &Completion) -> NewMessage {
        NewMessage {
            role: Role::Assistant,
            content: completion.text.clone(),
            reasoning: completion.reasoning.clone(),
            finish_reason: Some(completion.finish_reason),
            model: Some(self.setup.model.clone()),
            usage: Some(TokenCount {
                input_tokens: completion.usage.input_tokens as u64,
                output_tokens: completion.usage.output_tokens as u64,
            }),
        }
    }
}

fn said(completion: &Completion) -> Message {
    Message { role: Role::Assistant, content: completion.text.clone(), reasoning: completion.reasoning.clone() }
}

/// Asks the worker and passes pieces on, looking at `interrupted` between them.
fn answer(
    worker: &Worker,
    request: Request,
    emit: &mut dyn FnMut(Piece),
    interrupted: &dyn Fn() -> bool,
) -> Result<Completion, EngineError> {
    let mut reply = worker.generate(request);
    loop {
        if interrupted() {
            reply.cancel();
        }
        match reply.next_within(POLL) {
            Next::Event(Event::Piece(piece)) => emit(piece),
            Next::Event(Event::Done(completion)) => return Ok(completion),
            Next::Event(Event::Failed(error)) => return Err(error),
            Next::Waiting => {}
            Next::End => return Err(EngineError::Stopped),
        }
    }
}

/// Whether the person stopped the answer.
pub fn is_interrupted(completion: &Completion) -> bool {
    completion.finish_reason == FinishReason::Cancelled
}

/// A session's title: the beginning of the first message, on one line.
fn title_of(text: &str) -> Option<String> {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut words = String::new();
    for word in line.split_whitespace() {
        if words.chars().count() + word.chars().count() >= TITLE_CHARS {
            if words.is_empty() {
                words.extend(word.chars().take(TITLE_CHARS));
            }
            words.push('…');
            break;
        }
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    }
    (!words.is_empty()).then_some(words).filter(|title| crate::transcript::is_title(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_the_beginning_of_the_first_message() {
        let long = "word ".repeat(40);
        let cases = [
            ("What is the capital of France?", Some("What is the capital of France?".to_owned())),
            ("two\nlines\tand\u{7}bell", Some("two lines and bell".to_owned())),
            ("   \n ", None),
            (&long, Some(format!("{}…", ["word"; 12].join(" ")))),
        ];
        for (text, title) in cases {
            assert_eq!(title_of(text), title, "{text:?}");
        }
    }
}
