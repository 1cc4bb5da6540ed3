//! `tiles model pull`: a model from the Hub, with an explicit leave to use the network.

use std::ops::ControlFlow;

use serde_json::{Value, json};
use tilekit::hub::{Hub, Limits};
use tilekit::library::Library;
use tilekit::library::pull::PullRequest;

use super::{size, with_progress};
use crate::app::App;
use crate::args::PullArguments;
use crate::failure::{Code, Failure};

/// Refuses to use the network where nobody allowed it.
pub(super) fn check_allowed(arguments: &PullArguments) -> Result<(), Failure> {
    let hub = Hub::new(&arguments.endpoint, Limits::default())?;
    if arguments.allow_network {
        return Ok(());
    }
    let error = format!(
        "pulling `{}` needs the network: files from `{}`, how many bytes is unknown until it is asked",
        crate::terminal::escape::neutralise_line(&arguments.repo),
        hub.host()
    );
    let hint = "add `--allow-network`; with `--dry-run` too, it only lists files and bytes";
    Err(Failure::new(Code::Network, error, hint))
}

/// Runs it.
pub(super) fn run(app: &App, arguments: &PullArguments, library: &mut Library) -> Result<(), Failure> {
    let hub = Hub::new(&arguments.endpoint, Limits::default())?;
    let request = PullRequest {
        repo: &arguments.repo,
        revision: arguments.revision.as_deref(),
        name: arguments.name.as_deref(),
        modelfile: None,
    };
    let mut tick = || if app.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let plan = library.plan_pull(&hub, request, &mut tick).map_err(|error| match app.take_interrupt() {
        true => Failure::from(error).with_code(Code::Interrupted),
        false => Failure::from(error),
    })?;
    let files: Vec<Value> = plan.files.iter().map(|file| json!({ "path": file.path, "size": file.size })).collect();
    let shown = json!({ "name": plan.name, "repo": plan.repo, "revision": plan.commit, "host": hub.host(),
                        "licence": plan.licence, "bytes": plan.bytes(), "kept_bytes": plan.kept_bytes, "files": files });
    if arguments.dry_run {
        return app.print(&shown, || {
            let rows = plan.files.iter().map(|file| format!("  {:<40} {:>9}\n", file.path, size(file.size)));
            format!(
                "would pull {} ({}) from {}\n{}",
                plan.name,
                size(plan.bytes()),
                hub.host(),
                rows.collect::<String>()
            )
        });
    }
    app.terminal.say(&format!(
        "Pulling {} ({} in {} files, {} of it here already) from {}, commit {}",
        plan.name,
        size(plan.bytes()),
        plan.files.len(),
        size(plan.kept_bytes),
        hub.host(),
        &plan.commit
    ));
    let report = with_progress(app, |sink| library.pull(&hub, &plan, sink)).inspect_err(|failure| {
        if failure.code == Code::Interrupted {
            app.terminal.say("Stopped. What was fetched is kept: run the same command again to go on.");
        }
    })?;
    let bytes = library.find(&report.name)?.size_bytes();
    let printed = json!({ "name": report.name, "size_bytes": bytes, "revision": plan.commit });
    app.print(&printed, || format!("{} is on the drive ({})", report.name, size(bytes)))?;
    app.terminal.say(&format!("Try it: tiles run {}", report.name));
    Ok(())
}
