//! The program `tiles`: parses what was typed, runs it, reports how it ended.

use std::process::ExitCode;

mod app;
mod args;
mod changes;
mod commands;
mod conversation;
mod kept_state;
mod failure;
mod onboarding;
mod opening;
mod presence;
mod repl;
mod seal_memory;
mod terminal;
mod unlock;

fn main() -> ExitCode {
    // A defect of ours ends in an exit code of its own and a sentence, not in a backtrace over somebody's terminal.
    std::panic::catch_unwind(app::run).unwrap_or_else(|_| ExitCode::from(failure::Code::Defect as u8))
}
