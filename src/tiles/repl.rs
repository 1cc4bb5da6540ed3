//! The conversation at the prompt: the line editor, slash commands, and how a reply is shown.

use std::rc::Rc;

use tilekit::bundle::{Bundle, Verified};
use tilekit::chat::{ChatError, ChatSession, is_interrupted};
use tilekit::disk::{self, DiskError};
use tilekit::engine::worker::Worker;
use tilekit::engine::{Completion, EngineError};
use tilekit::message::SessionId;
use tilekit::sampling::PARAMETERS;
use tilekit::store::{Access, Store, StoreError};
use tilekit::transcript;

use self::editor::prompt::{PromptReader, Values};
use self::editor::{ExternalEditor, Line, LineReader, PlainReader};
use self::markdown::code::Syntaxes;
use self::slash::{Argument, Shown, Slash, Typed};
use crate::app::App;
use crate::args::RunArguments;
use crate::changes::Changes;
use crate::commands::run::{after, keep};
use crate::conversation::{Resolved, Screen, shipped, statistics};
use crate::failure::{Code, Failure};
use crate::kept_state::KeptState;
use crate::terminal::Stream;
use crate::terminal::escape::{neutralise, neutralise_line};
use crate::terminal::style::paint;
use crate::unlock::Open;

pub(crate) mod slash;
pub(crate) mod editor;
pub(crate) mod markdown;
pub(crate) mod thoughts;

/// The prompt.
const PROMPT: &str = ">>> ";
/// How many lines of earlier conversations can be recalled.
const HISTORY_LINES: usize = 1_000;
/// How many sessions and hits a slash command lists.
const LISTED_MAX: usize = 20;
/// Two Ctrl-C within this time leave.
const TWICE: std::time::Duration = std::time::Duration::from_secs(1);

/// A conversation in progress.
struct Repl<'a> {
    app: &'a App,
    bundle: &'a Bundle<Verified>,
    open: Option<&'a Open>,
    state: KeptState<'a>,
    worker: Worker,
    resolved: Resolved,
    chat: ChatSession,
    syntaxes: Rc<Syntaxes>,
    editor: Option<ExternalEditor>,
    is_private: bool,
    /// Whether this session was answered here: then the engine holds it.
    has_answered: bool,
    shows_stats: bool,
    /// Whether thoughts are one line.
    folds: bool,
    last: Option<Completion>,
}

/// Whether the conversation goes on.
enum Flow {
    Go,
    Leave,
    Lock,
}

/// How a conversation ended.
pub(crate) enum Ended {
    /// The person left.
    Left,
    /// The person locked the bundle; it goes on with this session, where there is one on the drive.
    Locked(Option<SessionId>),
}

/// Talks until the person leaves.
pub(crate) fn talk(
    app: &App,
    bundle: &Bundle<Verified>,
    worker: Worker,
    resolved: Resolved,
    chat: ChatSession,
    open: Option<&Open>,
    arguments: &RunArguments,
) -> Result<Ended, Failure> {
    let history = open.map_or(Ok(Vec::new()), |open| open.store.history(HISTORY_LINES))?;
    let scratch = bundle.data().join("scratch.md");
    let editor = app.environment.editor.clone().map(|command| ExternalEditor { command, scratch });
    let mut reader: Box<dyn LineReader> = if app.terminal.is_dumb() {
        Box::new(PlainReader::new(std::io::BufReader::new(std::io::stdin()), Some(std::io::stderr())))
    } else {
        Box::new(PromptReader::new(&app.terminal, &history, values(bundle, open)?, editor.clone())?)
    };
    let mut repl = Repl {
        app,
        bundle,
        open,
        state: KeptState::new(app, bundle, open),
        worker,
        resolved,
        chat,
        syntaxes: Rc::new(Syntaxes::default()),
        editor,
        is_private: open.is_none(),
        has_answered: false,
        shows_stats: arguments.stats,
        folds: true,
        last: None,
    };
    repl.greet();
    let done = repl.serve(reader.as_mut());
    repl.keep_state();
    done
}

/// What completes the arguments of slash commands.
fn values(bundle: &Bundle<Verified>, open: Option<&Open>) -> Result<Values, Failure> {
    let library = open.map_or_else(|| shipped(bundle), |open| open.library(bundle))?;
    let models: Vec<String> = library.list().into_iter().map(|model| model.name).collect();
    let sessions = open.map_or(Ok(Vec::new()), |open| open.store.list())?;
    let sessions: Vec<String> = sessions.into_iter().map(|session| session.id.to_string()).collect();
    Ok(Box::new(move |argument| match argument {
        Argument::Session => sessions.clone(),
        Argument::Model => models.clone(),
        Argument::Parameter => PARAMETERS.iter().map(|parameter| parameter.name.to_owned()).collect(),
        _ => Vec::new(),
    }))
}

impl Repl<'_> {
    fn greet(&self) {
        let name = self.open.and_then(|open| open.store.setting(crate::unlock::NICKNAME).ok().flatten());
        let hello = name.map_or("Hello.".into(), |name| format!("Hello, {}.", neutralise_line(&name)));
        let model = neutralise_line(&self.chat.setup.model);
        self.app.terminal.say(&format!("{hello} {model} runs on this machine alone."));
        self.app.terminal.say("/help lists commands, /bye leaves.");
        if self.chat.history().is_empty() {
            self.say_dim("Try: Explain in two sentences why the sky is blue.");
        } else {
            self.say_dim(&format!("Resumed with {} messages.", self.chat.history().len()));
        }
    }

    fn say_dim(&self, line: &str) {
        self.app.terminal.say(&paint(self.app.terminal.styles(Stream::Err).dim, line));
    }

    fn serve(&mut self, reader: &mut dyn LineReader) -> Result<Ended, Failure> {
        // What is typed while a reply runs waits for the next prompt. A dumb terminal edits its lines itself, all the time.
        let terminal = &self.app.terminal;
        let _held = (!terminal.is_dumb()).then(|| terminal.hold_typing());
        let mut interrupted_at: Option<std::time::Instant> = None;
        loop {
            let line = match reader.read_line(PROMPT)? {
                Line::Eof => return Ok(Ended::Left),
                Line::Interrupted => {
                    if interrupted_at.is_some_and(|at| at.elapsed() < TWICE) {
                        return Ok(Ended::Left);
                    }
                    interrupted_at = Some(std::time::Instant::now());
                    self.say_dim("Ctrl-C again or /bye leaves.");
                    continue;
                }
                line => line,
            };
            self.app.take_interrupt();
            let (text, typed) = match line {
                Line::Text(text) if text.trim().is_empty() => continue,
                Line::Text(text) => (text.clone(), slash::parse(&text)),
                Line::Block(text) => (text.clone(), Ok(Typed::Message(text))),
                Line::Eof | Line::Interrupted => continue,
            };
            reader.add_history(&text);
            if let Ok(Typed::Message(_)) = typed {
                // Before anything is written: on a slow drive that waits behind what is read of the model, unseen.
                self.app.wait_for_engine(&self.worker);
            }
            match self.store().map(|store| store.history_append(&text)) {
                // On a full drive the line can't be recalled later; that the answer isn't kept is told with the answer.
                Some(Err(StoreError::Disk(DiskError::Full { .. }))) | None => {}
                Some(appended) => appended?,
            }
            let result = match typed {
                Ok(Typed::Message(message)) => self.say(&message).map(|()| Flow::Go),
                Ok(Typed::Command(command)) => self.command(command),
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(Flow::Go) => {}
                Ok(Flow::Leave) => return Ok(Ended::Left),
                Ok(Flow::Lock) => return Ok(Ended::Locked(self.session_on_drive())),
                Err(failure) if is_final(&failure) => return Err(failure),
                Err(failure) => self.app.terminal.error(&*failure.error, failure.hint.as_deref()),
            }
        }
    }

    /// The store, unless nothing is to be kept, or can be.
    fn store(&self) -> Option<&Store> {
        self.open.filter(|_| !self.is_private).map(|open| &open.store).filter(|s| s.access() == Access::ReadWrite)
    }

    /// This session, where it can be resumed.
    fn session_on_drive(&self) -> Option<SessionId> {
        let (store, session) = (self.store()?, self.chat.session()?);
        store.summary(session).ok().map(|summary| summary.id)
    }

    /// Keeps what the engine holds of this session.
    fn keep_state(&self) {
        if !self.is_private && self.has_answered {
            self.state.keep(&self.worker, &self.chat);
        }
    }

    /// Before the first answer of a session here: takes up what was kept of it.
    fn take_up_state(&mut self) {
        if !self.is_private && !std::mem::replace(&mut self.has_answered, true) {
            self.state.take_up(&self.worker, &self.chat);
        }
    }

    fn need_store(&self) -> Result<&Store, Failure> {
        let hint = "start Tiles without `--no-save`";
        self.open.map(|open| &open.store).ok_or_else(|| Failure::new(Code::Failure, "nothing is kept here", hint))
    }

    fn say(&mut self, message: &str) -> Result<(), Failure> {
        assert!(!App::shall_break("prompt"), "a defect that quotes `{message}`");
        self.app.wait_for_engine(&self.worker);
        self.take_up_state();
        let mut screen = Screen::new(self.app, &self.syntaxes, self.folds);
        let store = self.open.filter(|_| !self.is_private).map(|open| &open.store);
        let interrupted = || self.app.is_interrupted();
        let answered =
            self.chat.ask(&self.worker, keep(self.app, store), message, &mut |p| screen.show(p), &interrupted);
        self.answered(screen, answered)
    }

    fn answered(&mut self, screen: Screen<'_>, answered: Result<Completion, ChatError>) -> Result<(), Failure> {
        screen.finish()?;
        let completion = answered?;
        self.app.take_interrupt();
        if !completion.text.ends_with('\n') && !self.app.terminal.has_color(Stream::Out) {
            self.app.terminal.out("\n")?;
        }
        if is_interrupted(&completion) {
            self.say_dim(if self.store().is_some() {
                "interrupted; what there is of it is kept"
            } else {
                "interrupted"
            });
        }
        after(self.app, &completion, self.shows_stats);
        self.last = Some(completion);
        Ok(())
    }

    fn command(&mut self, command: Slash) -> Result<Flow, Failure> {
        let terminal = &self.app.terminal;
        match command {
            Slash::Bye => return Ok(Flow::Leave),
            Slash::Lock => {
                self.need_store()?;
                let changes = &self.resolved.changes;
                if !changes.keep(self.store()) && *changes != Changes::default() {
                    self.say_dim("What /model, /system, /set and /think changed isn't kept.");
                }
                return Ok(Flow::Lock);
            }
            Slash::Help => terminal.out(&slash::help(terminal.styles(Stream::Out), terminal.width(Stream::Out)))?,
            Slash::New => self.new_session(),
            Slash::Clear => {
                self.new_session();
                if terminal.is_terminal(Stream::Out) && !terminal.is_dumb() {
                    self.app.terminal.out("\u{1b}[2J\u{1b}[H")?;
                }
            }
            Slash::Sessions => {
                let mut sessions = self.need_store()?.list()?;
                sessions.truncate(LISTED_MAX);
                terminal.out(&crate::commands::session_list(&sessions))?;
            }
            Slash::Resume(id) => {
                let store = self.need_store()?;
                let session = store.find(&id)?;
                self.keep_state();
                self.has_answered = false;
                let store = self.open.map(|open| &open.store);
                if let Some(store) = store {
                    self.chat.resume(store, session)?;
                }
                self.say_dim(&format!("Resumed with {} messages.", self.chat.history().len()));
            }
            Slash::Search(text) => {
                let hits = self.need_store()?.search(&text, LISTED_MAX)?;
                terminal.out(&crate::commands::hits(self.app, &hits))?;
            }
            Slash::Rename(title) => {
                let session = self.chat.session().ok_or(ChatError::Nothing)?;
                self.need_store()?.rename(session, &title, self.app.clock.now())?;
                self.say_dim(&format!("This session is called {} now.", neutralise_line(&title)));
            }
            Slash::Undo => {
                let store = self.open.filter(|_| !self.is_private).map(|open| &open.store);
                let taken = self.chat.undo(store)?;
                self.say_dim(&format!("Taken back: {}", neutralise_line(&taken)));
            }
            Slash::Regenerate => self.regenerate()?,
            Slash::Edit => self.edit()?,
            Slash::Export(file) => self.export(&file)?,
            command => self.setting(command)?,
        }
        Ok(Flow::Go)
    }

    fn setting(&mut self, command: Slash) -> Result<(), Failure> {
        let terminal = &self.app.terminal;
        match command {
            Slash::Model(None) => terminal.out(&format!("{}\n", neutralise_line(&self.chat.setup.model)))?,
            Slash::Model(Some(name)) => self.change_model(name)?,
            Slash::System(None) => {
                let system = self.chat.setup.system.as_deref().unwrap_or("(the model's own)");
                terminal.out(&format!("{}\n", neutralise(system)))?;
            }
            Slash::System(Some(text)) => {
                self.resolved.changes.system = Some(text.clone());
                self.chat.setup.system = Some(text);
                self.say_dim("The system message is set for this conversation.");
            }
            Slash::Set(name, value) => {
                let assignment = format!("{name}={value}");
                self.app.set(&mut self.chat.setup.parameters, &assignment)?;
                self.resolved.changes.set(assignment);
                self.say_dim(&format!("{name} is {value} now."));
            }
            Slash::Show(shown) => self.show(shown)?,
            Slash::Think(think, word) => {
                self.chat.setup.think = Some(think);
                self.resolved.changes.think = Some(word.into());
                self.say_dim("Set; it acts where the model's template knows of it.");
            }
            Slash::Thoughts(None) => {
                let thoughts = self.last.as_ref().and_then(|last| last.reasoning.as_deref());
                let text = thoughts.unwrap_or("(the last reply came without thoughts)");
                terminal.out(&format!("{}\n", neutralise(text.trim_end())))?;
            }
            Slash::Thoughts(Some(folds)) => {
                self.folds = folds;
                self.say_dim(if folds { "Thoughts are folded." } else { "Thoughts are shown in full." });
            }
            Slash::Stats => {
                self.shows_stats = !self.shows_stats;
                match &self.last {
                    Some(completion) if self.shows_stats => self.say_dim(&statistics(completion)),
                    _ => {
                        self.say_dim(if self.shows_stats { "Statistics are shown." } else { "Statistics are hidden." })
                    }
                }
            }
            Slash::Context => {
                let fit = self.chat.fit(&self.worker)?;
                let messages = self.chat.history().len();
                let (prompt, room, dropped) = (fit.prompt_tokens, fit.num_ctx, fit.dropped_messages);
                terminal.out(&format!(
                    "{prompt} of {room} tokens; {messages} messages, {dropped} of them no longer fit\n"
                ))?;
            }
            Slash::Private => {
                // What was said before is kept like any session.
                self.new_session();
                self.is_private = true;
                self.say_dim("Nothing of what follows is kept.");
            }
            Slash::Status => self.status()?,
            _ => {
                let hint = "it comes with a later version";
                return Err(Failure::new(Code::Failure, "memory mode isn't in this version", hint));
            }
        }
        Ok(())
    }

    fn new_session(&mut self) {
        self.keep_state();
        self.has_answered = false;
        self.chat.begin_anew();
        self.last = None;
        self.say_dim("A new session.");
    }

    fn regenerate(&mut self) -> Result<(), Failure> {
        self.take_up_state();
        let mut screen = Screen::new(self.app, &self.syntaxes, self.folds);
        let store = self.open.filter(|_| !self.is_private).map(|open| &open.store);
        let interrupted = || self.app.is_interrupted();
        let answered = self.chat.regenerate(&self.worker, keep(self.app, store), &mut |p| screen.show(p), &interrupted);
        self.answered(screen, answered)
    }

    fn edit(&mut self) -> Result<(), Failure> {
        let hint = "set `EDITOR` to an editor that is installed, such as `nano`";
        let editor = self.editor.clone().ok_or_else(|| Failure::new(Code::Failure, "no editor is set", hint))?;
        let last = self.chat.history().iter().rfind(|message| message.role == tilekit::message::Role::User);
        let text = editor.edit(&last.ok_or(ChatError::Nothing)?.content.clone())?;
        if text.trim().is_empty() {
            self.say_dim("Nothing was changed.");
            return Ok(());
        }
        let store = self.open.filter(|_| !self.is_private).map(|open| &open.store);
        self.chat.undo(store)?;
        self.say(&text)
    }

    fn export(&self, file: &str) -> Result<(), Failure> {
        let session = self.chat.session().ok_or(ChatError::Nothing)?;
        let transcript = self.need_store()?.export(session)?;
        let text = if file.ends_with(".json") {
            transcript::to_json(std::slice::from_ref(&transcript))
        } else {
            transcript::to_markdown(&transcript)
        };
        disk::write(std::path::Path::new(file), text.as_bytes())?;
        self.app.terminal.warn(&format!("`{file}` is not encrypted"));
        Ok(())
    }

    fn change_model(&mut self, name: String) -> Result<(), Failure> {
        let library = self.open.map_or_else(|| shipped(self.bundle), |open| open.library(self.bundle))?;
        let arguments = RunArguments { changes: Box::new(Changes::of_model(name)), ..RunArguments::default() };
        let resolved = self.app.resolve(&library, &arguments)?;
        self.keep_state();
        self.has_answered = false;
        self.worker = self.app.start_engine(&resolved)?;
        self.chat.setup = resolved.setup.clone();
        self.resolved = resolved;
        self.say_dim(&format!("{} answers now.", neutralise_line(&self.chat.setup.model)));
        Ok(())
    }

    fn show(&self, shown: Shown) -> Result<(), Failure> {
        let text = match shown {
            Shown::Modelfile => self.resolved.modelfile.to_canonical(),
            Shown::Template => self.chat.setup.template.clone().unwrap_or_else(|| "(the checkpoint's own)".into()),
            Shown::Parameters => {
                let rows = self.chat.setup.parameters.rows();
                rows.iter().map(|(name, value)| format!("{name:<18} {value}\n")).collect()
            }
        };
        Ok(self.app.terminal.out(&format!("{}\n", neutralise(text.trim_end())))?)
    }

    fn status(&self) -> Result<(), Failure> {
        let session = self.chat.session().map_or("none yet".into(), |id| id.to_string());
        let kept = if self.store().is_some() { "kept, encrypted" } else { "not kept" };
        Ok(self.app.terminal.out(&format!(
            "bundle   {}\nmodel    {}\nsession  {session} ({kept})\nmessages {}\n",
            self.bundle.root().display(),
            neutralise_line(&self.chat.setup.model),
            self.chat.history().len()
        ))?)
    }
}

/// Whether going on makes no sense: the drive or the engine is gone.
fn is_final(failure: &Failure) -> bool {
    if failure.error.downcast_ref::<crate::terminal::TerminalError>().is_some() {
        return true;
    }
    let of_store =
        |error: &StoreError| error.is_integrity() || matches!(error, StoreError::Disk(DiskError::Gone { .. }));
    if let Some(error) = failure.error.downcast_ref::<StoreError>() {
        return of_store(error);
    }
    match failure.error.downcast_ref::<ChatError>() {
        Some(ChatError::Engine(EngineError::Load(_) | EngineError::Stopped)) => true,
        Some(ChatError::Store(error)) => of_store(error),
        _ => false,
    }
}
