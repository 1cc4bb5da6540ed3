//! `tiles bundle accept`: another seal, or an older state, is what the person wants.

use serde_json::json;

use super::sealed_by;
use crate::app::App;
use crate::failure::Failure;
use crate::seal_memory::remember_seal;

/// Runs it.
pub(super) fn run(app: &App, yes: bool) -> Result<(), Failure> {
    let bundle = app.drive()?;
    let open = app.unlock_any_seal(&bundle, &Default::default())?;
    let mark = bundle.seal_mark();
    let question = format!("Accept this bundle ({}, generation {})?", sealed_by(&bundle), mark.generation);
    let done = app.confirm(&question, yes).and_then(|()| remember_seal(&bundle, &open.store)).and_then(|()| {
        let json = json!({ "accepted": true, "seal": sealed_by(&bundle), "generation": mark.generation });
        app.print(&json, || format!("accepted: {}, generation {}", sealed_by(&bundle), mark.generation))
    });
    done.and(open.close())
}
