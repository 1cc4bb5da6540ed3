//! The commands, one file each.

use clap::CommandFactory as _;

use crate::app::App;
use crate::args::{Arguments, Command, RunArguments};
use crate::failure::{Code, Failure};

pub(crate) mod account;
mod bundle;
mod config;
mod doctor;
mod model;
mod modelfile;
mod privacy;
pub(crate) mod run;
mod session;

pub(crate) use session::{hits_text as hits, list_text as session_list};

/// Runs the command that was typed; none means a conversation.
pub(crate) fn dispatch(app: &App, command: Option<Command>, arguments: RunArguments) -> Result<(), Failure> {
    match command {
        None => {
            if let Some(word) = arguments.model.as_deref() {
                return Err(unknown(word));
            }
            run::run(app, &arguments)
        }
        Some(Command::Run(arguments)) => run::run(app, &arguments),
        Some(Command::Account { command }) => account::run(app, command),
        Some(Command::Model { command }) => model::run(app, command),
        Some(Command::Modelfile { command }) => modelfile::run(app, command),
        Some(Command::Session { command }) => session::run(app, command),
        Some(Command::Bundle { command }) => bundle::run(app, command),
        Some(Command::Doctor) => doctor::run(app),
        Some(Command::Privacy) => privacy::run(app),
        Some(Command::Config { .. }) => config::run(app),
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
fn unknown(word: &str) -> Failure {
    let command = Arguments::command();
    let names = command.get_subcommands().map(|command| command.get_name().to_owned());
    let near = names.map(|name| (strsim::jaro_winkler(&name, word), name)).filter(|(likeness, _)| *likeness > 0.7);
    let near = near.max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match near {
        Some((_, name)) => format!("run `tiles {name}`; `tiles help` lists the commands"),
        None => format!("`tiles help` lists the commands; to ask something: `tiles -p {word:?}`"),
    };
    Failure::new(Code::Usage, format!("there is no command `{word}`"), hint)
}
