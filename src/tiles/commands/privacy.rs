//! `tiles privacy`: what is stored where, and what the operating system records by itself.

use serde_json::json;

use crate::app::App;
use crate::failure::Failure;

/// What Tiles itself does.
const OURS: [&str; 6] = [
    "Everything you say and every answer is in `data/tiles.db`, encrypted with a key that only your passphrase opens.",
    "What the model computed of your last conversations is in `data/cache/`, encrypted too; deleting it costs only time.",
    "The identity and all keys are in `data/key.a` and `data/key.b`, twice the same, sealed with your passphrase.",
    "Added models are in `models/`, their list in `data/models.toml`. Neither is encrypted: they say which models you use.",
    "Nothing is written outside the bundle's folder, and no connection is opened but by `tiles model pull --allow-network`, to its endpoint (huggingface.co) and where that redirects.",
    "`--no-save` and `/private` keep nothing of a conversation.",
];

/// What the machine may record, whatever Tiles does. Not a promise that the list is complete.
const SYSTEM: [&str; 6] = [
    "The shell's history keeps what you type after `tiles`, such as `-p \"…\"`. The prompt inside Tiles isn't seen by it.",
    "The operating system notes that a drive was plugged in, its name, and that a program was started from it.",
    "Swap and hibernation files may hold parts of a conversation while it goes on. Keys are locked in memory where allowed.",
    "A terminal keeps its scrollback, some of them on disk.",
    "Administrators of the machine, and what they installed, can see the screen, the keyboard and the memory.",
    "On a Mac: Gatekeeper and the unified log record the program's start, Spotlight may index the drive's file names.",
];

/// Runs it.
pub(crate) fn run(app: &App) -> Result<(), Failure> {
    app.print(&json!({ "tiles": OURS, "operating_system": SYSTEM }), || {
        let list = |lines: &[&str]| lines.iter().map(|line| format!("  - {line}\n")).collect::<String>();
        format!(
            "What Tiles keeps:\n{}\nWhat this machine may keep, which Tiles can't prevent:\n{}\nDeleting the bundle's \
             folder removes everything that Tiles keeps.",
            list(&OURS),
            list(&SYSTEM)
        )
    })
}
