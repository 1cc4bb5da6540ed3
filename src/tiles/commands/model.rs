//! `tiles model`: the models on the drive.

use std::ops::ControlFlow;

use serde_json::{Value, json};
use tilekit::library::{Description, Library, Report};
use tilekit::model_folder::{Progress, Step};

use crate::app::App;
use crate::args::{ModelCommand, OnboardingArguments};
use crate::conversation::shipped;
use crate::failure::{Code, Failure};
use crate::terminal::escape::neutralise_line;
use crate::unlock::Open;

mod handover;
mod pull;

/// Runs it.
pub(crate) fn run(app: &App, command: ModelCommand) -> Result<(), Failure> {
    if let ModelCommand::Pull(arguments) = &command {
        // Asked for before anything else: without the flag nothing is opened, not even the bundle.
        pull::check_allowed(arguments)?;
    }
    let bundle = app.bundle()?;
    if let ModelCommand::List { available: true, .. } = command {
        return pull::list_available(app, &bundle.models());
    }
    let library = shipped(&bundle)?;
    // Models that came with the bundle need no key; those that were added are listed under one.
    let is_enough = match &command {
        ModelCommand::Show { name } | ModelCommand::Verify { name: Some(name) } | ModelCommand::Export { name, .. } => {
            library.find(name).is_ok()
        }
        _ => {
            !tilekit::library::added::exists(&bundle.added_models())
                && !matches!(
                    command,
                    ModelCommand::Pull(_)
                        | ModelCommand::List { peers: true, .. }
                        | ModelCommand::Import { .. }
                        | ModelCommand::Remove { .. }
                        | ModelCommand::Send { .. }
                        | ModelCommand::Receive { .. }
                )
        }
    };
    if is_enough {
        return act(app, command, library);
    }
    let open: Open = app.unlock(&bundle, &OnboardingArguments::default())?;
    let library = open.library(&bundle)?;
    let done = match command {
        ModelCommand::List { peers: true, wait, .. } => handover::list(app, &bundle, &open, &library, wait),
        ModelCommand::Send { name, with } => handover::send(app, &bundle, &open, &library, &name, &with),
        ModelCommand::Receive { with, name, yes } => {
            handover::receive(app, &bundle, &open, library, (&with, name.as_deref(), yes))
        }
        command => act(app, command, library),
    };
    done.and(open.close())
}

fn act(app: &App, command: ModelCommand, mut library: Library) -> Result<(), Failure> {
    match command {
        ModelCommand::List { .. } => list(app, &library),
        ModelCommand::Show { name } => show(app, &library, &name),
        ModelCommand::Import { path, name, dry_run } => {
            let plan = with_progress(app, |sink| library.plan_import(&path, name.as_deref(), sink))?;
            let files: Vec<Value> =
                plan.files().iter().map(|(name, bytes)| json!({ "path": name, "size": bytes })).collect();
            if dry_run {
                let planned = json!({ "name": plan.name(), "needed_bytes": plan.needed_bytes(), "files": files });
                return app.print(&planned, || {
                    format!("would import {} ({} files, {})", plan.name(), files.len(), size(plan.needed_bytes()))
                });
            }
            let report = with_progress(app, |sink| library.import(&plan, sink))?;
            let model = library.find(&report.name)?;
            let description = model.description()?.unwrap_or_default();
            let loss = description.loss.clone().unwrap_or_else(|| "none".into());
            app.print(&json!({ "name": report.name, "size_bytes": model.size_bytes(), "loss": loss }), || {
                format!("{} is there now ({}, loss: {loss})", report.name, size(model.size_bytes()))
            })?;
            app.terminal.say(&format!("Try it: tiles run {}", report.name));
            Ok(())
        }
        ModelCommand::Pull(arguments) => pull::run(app, &arguments, &mut library),
        ModelCommand::Send { .. } | ModelCommand::Receive { .. } => {
            Err(Failure::new(Code::Defect, "a model is handed over only with the keys open", "please report this"))
        }
        ModelCommand::Verify { name } => verify(app, &library, name),
        ModelCommand::Remove { name, yes, dry_run } => {
            let bytes = library.find(&name)?.size_bytes();
            if dry_run {
                return app.print(&json!({ "would_remove": name, "size_bytes": bytes }), || {
                    format!("would remove {name} ({})", size(bytes))
                });
            }
            app.confirm(&format!("Remove {name} ({})?", size(bytes)), yes)?;
            library.remove(&name)?;
            app.print(&json!({ "removed": name }), || format!("{name} is removed"))
        }
        ModelCommand::Export { name, file } => {
            with_progress(app, |sink| library.export(&name, &file, sink))?;
            let shown = file.display().to_string();
            app.print(&json!({ "name": name, "file": shown }), || format!("{name} is in {}", neutralise_line(&shown)))?;
            app.terminal.say("Another bundle takes it with `tiles model import`.");
            Ok(())
        }
    }
}

fn describe(description: Option<&Description>) -> Value {
    let Some(description) = description else { return Value::Null };
    json!({
        "source": description.source, "revision": description.revision, "licence": description.licence,
        "architecture": description.architecture, "quantisation": description.quantisation,
        "parameters": description.parameters, "context": description.context,
        "converted_by": description.converted_by, "loss": description.loss,
    })
}

fn list(app: &App, library: &Library) -> Result<(), Failure> {
    let models = library.list();
    let rows: Vec<Value> = models
        .iter()
        .map(|model| {
            json!({ "name": model.name, "size_bytes": model.size_bytes, "shipped": model.is_shipped,
                    "problem": model.problem, "description": describe(model.description.as_ref()) })
        })
        .collect();
    app.print(&json!(rows), || {
        let rows = models.iter().map(|model| {
            let licence = model.description.as_ref().and_then(|d| d.licence.clone()).unwrap_or_else(|| "?".into());
            let kind = if model.is_shipped { "came with the bundle" } else { "added" };
            let problem = model.problem.as_ref().map(|problem| format!("  {problem}")).unwrap_or_default();
            format!(
                "{:<28} {:>9}  {licence:<12} {kind}{}\n",
                model.name,
                size(model.size_bytes),
                neutralise_line(&problem)
            )
        });
        rows.collect()
    })
}

fn show(app: &App, library: &Library, name: &str) -> Result<(), Failure> {
    let model = library.find(name)?;
    let description = model.description()?;
    let files: Vec<Value> = model
        .entries()
        .iter()
        .map(|entry| json!({ "path": entry.path, "size": entry.size, "sha256": entry.sha256.to_string() }))
        .collect();
    let mut shown = json!({ "name": name, "size_bytes": model.size_bytes(), "shipped": model.is_shipped() });
    shown["description"] = describe(description.as_ref());
    shown["files"] = json!(files);
    app.print(&shown, || {
        let mut text = format!("name          {name}\nsize          {}\n", size(model.size_bytes()));
        if let Value::Object(rows) = describe(description.as_ref()) {
            for (key, value) in rows.iter().filter(|(_, value)| !value.is_null()) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                text.push_str(&format!("{key:<13} {}\n", neutralise_line(&value)));
            }
        }
        for entry in model.entries() {
            text.push_str(&format!("  {:<28} {:>9}  {}\n", entry.path, size(entry.size), entry.sha256));
        }
        text
    })
}

fn verify(app: &App, library: &Library, name: Option<String>) -> Result<(), Failure> {
    let names = match name {
        Some(name) => vec![name],
        None => library.list().into_iter().map(|model| model.name).collect(),
    };
    let mut reports: Vec<Report> = Vec::new();
    for name in &names {
        reports.push(with_progress(app, |sink| library.verify(name, sink))?);
    }
    let rows: Vec<Value> = reports
        .iter()
        .map(|report| {
            let damaged: Vec<String> = report.damaged.iter().map(ToString::to_string).collect();
            json!({ "name": report.name, "files": report.files, "bytes": report.bytes, "whole": report.is_whole(),
                    "damaged": damaged, "unlisted": report.unlisted })
        })
        .collect();
    app.print(&json!(rows), || {
        let rows = reports.iter().filter(|report| report.is_whole());
        rows.map(|report| format!("{}: {} files, {} verified\n", report.name, report.files, size(report.bytes)))
            .collect()
    })?;
    match reports.into_iter().flat_map(|report| report.damaged).next() {
        Some(damage) => Err(Failure::from(damage).with_code(Code::Integrity)),
        None => Ok(()),
    }
}

/// Runs a long step with a progress bar; Ctrl-C ends it.
pub(crate) fn with_progress<T, E>(
    app: &App,
    step: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<T, E>,
) -> Result<T, Failure>
where
    Failure: From<E>,
{
    let mut bar: Option<(Step, crate::terminal::progress::Progress)> = None;
    let result = step(&mut |progress| {
        if bar.as_ref().is_none_or(|(step, _)| *step != progress.step) {
            let label = match progress.step {
                Step::Examining => "Examining",
                Step::Downloading => "Downloading",
                Step::Writing => "Writing",
                Step::Verifying => "Verifying",
            };
            bar = Some((progress.step, app.terminal.progress(label, progress.total_bytes)));
        }
        if let Some((_, bar)) = &bar {
            bar.set(progress.done_bytes);
        }
        if app.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(bar);
    let code = if app.take_interrupt() { Some(Code::Interrupted) } else { None };
    result.map_err(|error| match (Failure::from(error), code) {
        (failure, Some(code)) => failure.with_code(code),
        (failure, None) => failure,
    })
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
