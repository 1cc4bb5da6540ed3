//! `tiles doctor --traces`: what this machine would remember, and the home and temporary folders before and after an answer.

use std::path::PathBuf;

use serde_json::{Value, json};
use tilekit::bundle::{Bundle, Verified};
use tilekit::disk::volume::Listing;

use super::{Finding, answer};
use crate::app::App;
use crate::commands::privacy;
use crate::failure::Failure;
use crate::terminal::escape::neutralise_line;

/// The most names that are looked at.
const NAMES_MAX: usize = 200_000;
/// How many of the changes are named.
const NAMED_MAX: usize = 10;

/// Compares the folders, and lists what the system records.
pub(super) fn run(app: &App, bundle: &Bundle<Verified>) -> Result<(Value, Vec<Finding>), Failure> {
    let folders = app.environment.watched.clone();
    let look = || {
        let _spinner = app.terminal.spinner("Looking at the home and temporary folders");
        Listing::of(&folders, bundle.root(), NAMES_MAX)
    };
    let before = look();
    let has_answered = answer::plain(app, bundle);
    let after = look();
    let changed: Vec<PathBuf> = before.differences(&after).into_iter().map(PathBuf::from).collect();
    let is_cut = before.is_cut || after.is_cut;
    let watched = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
    let finding = comparison(&changed, before.len(), is_cut, has_answered, &watched.join(", "));
    let remembered = privacy::system();
    app.terminal.say("This machine may remember, whatever Tiles does:");
    remembered.iter().for_each(|line| app.terminal.say(&format!("  - {line}")));
    let names: Vec<String> = changed.iter().map(|path| path.display().to_string()).collect();
    let shown = json!({ "watched": watched, "names": before.len(), "is_cut": is_cut, "answered": has_answered,
                        "changed": names, "machine_remembers": remembered });
    Ok((shown, vec![finding]))
}

fn comparison(changed: &[PathBuf], names: usize, is_cut: bool, has_answered: bool, watched: &str) -> Finding {
    const WHAT: &str = "traces";
    if !has_answered {
        let advice = "see whether `tiles -p hello --no-save` answers at all";
        return Finding::bad(WHAT, "the child that was to be watched didn't answer", advice);
    }
    let looked = if is_cut { format!("the first {names} names") } else { format!("all {names} names") };
    if changed.is_empty() {
        let text = format!("none: of {looked} below {watched}, none changed while a child answered");
        return match is_cut {
            false => Finding::ok(WHAT, text),
            true => Finding::warn(WHAT, text, "there are more names than are compared, so this proves less"),
        };
    }
    let shown: Vec<String> =
        changed.iter().take(NAMED_MAX).map(|path| neutralise_line(&path.display().to_string()).into_owned()).collect();
    let text = format!("{} of {looked} below {watched} changed meanwhile: {}", changed.len(), shown.join(", "));
    Finding::warn(WHAT, text, "other programs write there too: end them, and run it again to see whether it is Tiles")
}
