//! `tiles run`, and `tiles` alone: one answer, or the conversation at the prompt.

use std::io::Read as _;
use std::rc::Rc;

use serde_json::json;
use tilekit::bundle::Preferences;
use tilekit::chat::{ChatSession, is_interrupted};
use tilekit::engine::worker::Worker;
use tilekit::engine::{Completion, FinishReason};
use tilekit::identity::{KeyFile, KeyStore as _};
use tilekit::store::{Access, Store};

use crate::app::App;
use crate::args::RunArguments;
use crate::changes::Changes;
use crate::conversation::{Screen, shipped, statistics};
use crate::failure::{Code, Failure};
use crate::kept_state::KeptState;
use crate::repl::markdown::code::Syntaxes;
use crate::repl::{self, Ended};
use crate::terminal::Stream;
use crate::terminal::style::paint;
use crate::unlock::Open;

/// The longest question that is read from standard input: 4 MiB.
const QUESTION_BYTES_MAX: u64 = 4 << 20;

/// Runs it.
pub(crate) fn run(app: &App, arguments: &RunArguments) -> Result<(), Failure> {
    let question = question(app, arguments)?;
    if question.is_none() && app.global.json {
        return Err(Failure::new(Code::Usage, "`--json` needs a question", "add `-p TEXT`"));
    }
    if question.is_none() && app.global.no_input {
        return Err(Failure::new(
            Code::Usage,
            "there is no question, and `--no-input` allows no prompt",
            "add `-p TEXT`",
        ));
    }
    let bundle = app.bundle()?;
    app.watch_drive(&bundle);
    // Where none is named, the one of the bundle's settings answers.
    let model = arguments.model.clone().or(Preferences::read(&bundle.preferences())?.model);
    let arguments = &RunArguments { model, ..arguments.clone() };
    // A model that came with the bundle needs no key: it is read while the person types the passphrase.
    let early = match app.resolve(&shipped(&bundle)?, arguments) {
        Ok(resolved) => Some((app.start_engine(&resolved)?, resolved)),
        // A model that was added is known to nobody before the bundle is unlocked.
        Err(failure) if !matches!(failure.code, Code::Model | Code::Locked) => return Err(failure),
        // Nothing can have been added before there is an identity, and `--no-save` makes none.
        Err(failure) if arguments.no_save && !KeyFile::new(&bundle.key_folder()).exists()? => return Err(failure),
        Err(_) => None,
    };
    let is_needed = !arguments.no_save || early.is_none();
    let mut open = if is_needed { Some(app.unlock(&bundle, &arguments.onboarding)?) } else { None };
    let changes = match &open {
        Some(open) if arguments.after_lock => Changes::take(&open.store)?,
        _ => Changes::default(),
    };
    let arguments = &RunArguments { changes: Box::new(changes), ..arguments.clone() };
    let (worker, resolved) = match (early, &open) {
        // The same weights, whatever else was changed.
        (Some((worker, _)), Some(open))
            if *arguments.changes != Changes::default() && arguments.changes.model.is_none() =>
        {
            (worker, app.resolve(&open.library(&bundle)?, arguments)?)
        }
        (Some(early), _) if arguments.changes.model.is_none() => early,
        (_, Some(open)) => {
            let resolved = app.resolve(&open.library(&bundle)?, arguments)?;
            (app.start_engine(&resolved)?, resolved)
        }
        (_, None) => unreachable!("the bundle was unlocked where the model wasn't found"),
    };
    if arguments.no_save
        && let Some(open) = open.take()
    {
        open.close()?;
    }
    let mut chat = ChatSession::new(resolved.setup.clone());
    if let (Some(id), Some(open)) = (&arguments.session, &open) {
        chat.resume(&open.store, open.store.find(id)?)?;
    }
    let mut locked = None;
    let done = match question {
        Some(question) => {
            let state = KeptState::new(app, &bundle, open.as_ref());
            app.wait_for_engine(&worker);
            state.take_up(&worker, &chat);
            let done = one_answer(app, arguments, &worker, &mut chat, open.as_ref(), &question);
            state.keep(&worker, &chat);
            done
        }
        None => repl::talk(app, &bundle, worker, resolved, chat, open.as_ref(), arguments).map(|ended| {
            if let Ended::Locked(session) = ended {
                locked = Some(session);
            }
        }),
    };
    let done = match open {
        // The answer's own error is the one to report.
        Some(open) => done.and(open.close()),
        None => done,
    };
    match locked {
        // Whatever closing met, the keys are to be gone: it is told first, and the rest follows.
        Some(session) => Err(app.start_again(session, done)),
        None => done,
    }
}

/// The question of a single answer; `None` means a conversation.
fn question(app: &App, arguments: &RunArguments) -> Result<Option<String>, Failure> {
    let piped = || -> Result<String, Failure> {
        let mut text = String::new();
        let read = std::io::stdin().lock().take(QUESTION_BYTES_MAX + 1).read_to_string(&mut text);
        match read {
            Ok(bytes) if bytes as u64 > QUESTION_BYTES_MAX => {
                Err(Failure::new(Code::Usage, "standard input is longer than 4 MiB", "send it in parts"))
            }
            Ok(_) => Ok(text),
            Err(error) => Err(Failure::new(Code::Usage, error, "standard input must be UTF-8 text")),
        }
    };
    let question = match arguments.prompt.as_deref() {
        Some("-") => Some(piped()?),
        Some(text) if app.environment.stdin_is_terminal || app.global.no_input => Some(text.to_owned()),
        // `cat notes.txt | tiles -p "Summarise this."`
        Some(text) => Some(match piped()?.trim() {
            "" => text.to_owned(),
            more => format!("{text}\n\n{more}"),
        }),
        None if app.environment.stdin_is_terminal => None,
        None => Some(piped()?),
    };
    match question {
        Some(text) if text.trim().is_empty() => {
            Err(Failure::new(Code::Usage, "the question is empty", "give it with `-p TEXT`, or on standard input"))
        }
        question => Ok(question.map(|text| text.trim().to_owned())),
    }
}

fn one_answer(
    app: &App,
    arguments: &RunArguments,
    worker: &Worker,
    chat: &mut ChatSession,
    open: Option<&Open>,
    question: &str,
) -> Result<(), Failure> {
    let syntaxes = Rc::new(Syntaxes::default());
    let mut screen = Screen::new(app, &syntaxes, false);
    let keep = keep(app, open.map(|open| &open.store));
    let quiet = app.global.json;
    assert!(!App::shall_break("answer"), "a defect that quotes `{question}`");
    let completion = chat.ask(
        worker,
        keep,
        question,
        &mut |piece| {
            if !quiet {
                screen.show(piece);
            }
        },
        &|| app.is_interrupted(),
    )?;
    if quiet {
        app.print(&answer_json(&completion, chat), String::new)?;
    } else {
        screen.finish()?;
        if !completion.text.ends_with('\n') && !app.terminal.is_terminal(Stream::Out) {
            app.terminal.out("\n")?;
        }
    }
    after(app, &completion, arguments.stats);
    if is_interrupted(&completion) {
        return Err(Failure::new(Code::Interrupted, "interrupted", ""));
    }
    if arguments.schema.is_some() && completion.finish_reason == FinishReason::Length {
        let hint = "raise `num_predict` or `num_ctx`, or simplify the schema";
        return Err(Failure::new(Code::Failure, "the answer was cut before it was complete", hint));
    }
    Ok(())
}

/// Where turns are kept, if anywhere.
pub(crate) fn keep<'a>(app: &'a App, store: Option<&'a Store>) -> Option<(&'a Store, &'a dyn tilekit::time::Clock)> {
    store.filter(|store| store.access() == Access::ReadWrite).map(|store| (store, &*app.clock))
}

/// What is said after an answer: that old turns no longer fit, and statistics.
pub(crate) fn after(app: &App, completion: &Completion, stats: bool) {
    if completion.dropped_messages > 0 {
        let count = completion.dropped_messages;
        app.terminal.warn(&format!("the context is full: the {count} oldest messages were left out of this question"));
    }
    if stats {
        let dim = app.terminal.styles(Stream::Err).dim;
        app.terminal.say(&paint(dim, &statistics(completion)));
    }
}

fn answer_json(completion: &Completion, chat: &ChatSession) -> serde_json::Value {
    let Completion { text, reasoning, finish_reason, usage, timing, seed, dropped_messages } = completion;
    json!({
        "session": chat.session().map(|id| id.to_string()),
        "model": chat.setup.model,
        "text": text,
        "reasoning": reasoning,
        "finish_reason": finish_reason.as_str(),
        "usage": {
            "input_tokens": usage.input_tokens,
            "cached_tokens": usage.cached_tokens,
            "output_tokens": usage.output_tokens,
            "drafted_tokens": usage.drafted_tokens,
            "accepted_tokens": usage.accepted_tokens,
        },
        "timing": {
            "load_ms": timing.load_ms,
            "first_token_ms": timing.first_token_ms,
            "decode_tokens_per_s": timing.decode_tokens_per_s,
            "prompt_tokens_per_s": timing.prompt_tokens_per_s,
        },
        "seed": seed,
        "dropped_messages": dropped_messages,
    })
}
