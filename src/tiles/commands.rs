//! The commands, one file each.

use clap::CommandFactory as _;
use clap::error::ErrorKind;

use crate::app::App;
use crate::args::{Arguments, Command, RunArguments};
use crate::failure::{Code, Failure};
use crate::terminal::escape::neutralise_line;

pub(crate) mod account;
pub(crate) mod bundle;
mod config;
pub(crate) mod data;
mod doctor;
mod key;
mod link;
mod model;
mod modelfile;
mod privacy;
pub(crate) mod run;
mod session;
mod sync;

pub(crate) use model::size;
pub(crate) use session::{hits_text as hits, list_text as session_list};

/// Runs the command that was typed; none means a conversation.
pub(crate) fn dispatch(app: &App, command: Option<Command>, arguments: RunArguments) -> Result<(), Failure> {
    match command {
        None => run::run(app, &arguments),
        // `tiles -p hi doctor` would answer nothing.
        Some(_) if arguments != RunArguments::default() => {
            let why = "flags of a conversation stand before a command that isn't one";
            Err(Failure::new(Code::Usage, why, "write `tiles run` first, then its flags"))
        }
        Some(Command::Run { model, arguments }) => run::run(app, &RunArguments { model, ..arguments }),
        Some(Command::Account { command }) => account::run(app, command),
        Some(Command::Key { command }) => key::run(app, command),
        Some(Command::Model { command }) => model::run(app, command),
        Some(Command::Modelfile { command }) => modelfile::run(app, command),
        Some(Command::Session { command }) => session::run(app, command),
        Some(Command::Bundle { command }) => bundle::run(app, command),
        Some(Command::Doctor(arguments)) => doctor::run(app, &arguments),
        Some(Command::Data { command }) => data::run(app, command),
        Some(Command::Link { command }) => link::run(app, command),
        Some(Command::Sync(arguments)) => sync::run(app, &arguments),
        Some(Command::Privacy) => privacy::run(app),
        Some(Command::Config { command }) => config::run(app, command),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tiles", &mut script);
            Ok(app.terminal.out(&String::from_utf8_lossy(&script))?)
        }
        Some(Command::Man) => {
            let mut page = Vec::new();
            // Writing into memory can't fail.
            let _ = clap_mangen::Man::new(Arguments::command()).render(&mut page);
            Ok(app.terminal.out(&String::from_utf8_lossy(&page))?)
        }
    }
}

/// A word that is no command never becomes a conversation.
pub(crate) fn unknown(word: &str) -> clap::Error {
    let word = neutralise_line(word);
    let hint = format!("`tiles help` lists the commands; to ask something: `tiles -p {word:?}`");
    Arguments::command().error(ErrorKind::InvalidSubcommand, format!("there is no command `{word}`\n\nhint: {hint}"))
}
