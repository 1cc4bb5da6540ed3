//! `tiles doctor --clean`: removes what commands that were cut left behind.

use serde_json::json;
use tilekit::bundle::{Bundle, Leftover, Verified};

use crate::app::App;
use crate::commands::data::How;
use crate::commands::size;
use crate::failure::Failure;
use crate::terminal::escape::neutralise_line;

/// Runs it. The bundle is held meanwhile, so nothing that is still being written is taken for a leftover.
pub(super) fn run(app: &App, bundle: &Bundle<Verified>, how: How) -> Result<(), Failure> {
    let _lock = app.lock(bundle)?;
    let left = bundle.leftovers()?;
    let bytes: u64 = left.iter().map(|leftover| leftover.bytes).sum();
    let name =
        |leftover: &Leftover| leftover.path.strip_prefix(bundle.root()).unwrap_or(&leftover.path).display().to_string();
    let names: Vec<String> = left.iter().map(name).collect();
    if !how.dry_run && !left.is_empty() {
        names.iter().for_each(|name| app.terminal.say(&format!("  {}", neutralise_line(name))));
        app.confirm(&format!("Remove these {} ({})?", left.len(), size(bytes)), how.yes)?;
        left.iter().try_for_each(Leftover::remove)?;
    }
    let shown = json!({ "removed": names, "bytes": bytes, "dry_run": how.dry_run });
    app.print(&shown, || {
        let verb = if how.dry_run { "would be removed" } else { "removed" };
        let list: String = names.iter().map(|name| format!("{}\n", neutralise_line(name))).collect();
        format!("{list}{} {verb}, {}", names.len(), size(bytes))
    })
}
