//! `tiles model pull`: a model from the Hub, with an explicit leave to use the network.

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};
use tilekit::host::Host;
use tilekit::hub::{Hub, Limits};
use tilekit::library::Library;
use tilekit::library::available::available;
use tilekit::library::pull::{PullRequest, unfinished};

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
    let known = available().into_iter().find(|model| model.name == arguments.repo || model.source == arguments.repo);
    let short = known.as_ref().map(|model| model.name.as_str());
    let request = PullRequest {
        repo: known.as_ref().map_or(&arguments.repo, |model| &model.source),
        revision: arguments.revision.as_deref(),
        name: arguments.name.as_deref().or(short),
        modelfile: known.as_ref().map(|model| model.modelfile),
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
    app.print(&printed, || format!("{} is there now ({})", report.name, size(bytes)))?;
    app.terminal.say(&format!("Try it: tiles run {}", report.name));
    Ok(())
}

/// Lists what can be pulled by a short name, and whether it fits this machine and this drive.
pub(super) fn list_available(app: &App, models_folder: &Path) -> Result<(), Failure> {
    let host = Host::probe()?;
    let free_bytes = tilekit::disk::free_bytes(models_folder)?;
    let unfinished = unfinished(models_folder)?;
    let models = available();
    let fits = |memory_bytes: u64| host.fits(memory_bytes).is_ok();
    let rows: Vec<Value> = models
        .iter()
        .map(|model| {
            json!({ "name": model.name, "title": model.title, "source": model.source, "licence": model.licence,
                    "approximate_bytes": model.weights_bytes, "approximate_memory_bytes": model.memory_bytes,
                    "fits_memory": fits(model.memory_bytes), "fits_drive": model.weights_bytes <= free_bytes,
                    "unfinished": unfinished.contains(&model.name) })
        })
        .collect();
    app.print(&json!(rows), || {
        let rows = models.iter().map(|model| {
            let memory = if fits(model.memory_bytes) { "fits this machine" } else { "too large for this machine now" };
            let drive = if model.weights_bytes <= free_bytes { "" } else { ", no space here" };
            let begun = if unfinished.contains(&model.name) { ", pull begun" } else { "" };
            format!(
                "{:<14} about {:>8}, memory about {:>8}  {:<20} {memory}{drive}{begun}\n",
                model.name,
                size(model.weights_bytes),
                size(model.memory_bytes),
                model.licence
            )
        });
        rows.collect()
    })
}
