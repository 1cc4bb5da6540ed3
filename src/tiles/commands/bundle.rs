//! `tiles bundle`: what the bundle is, whether it is whole, mending it, and making others.

use std::ops::ControlFlow;

use serde_json::json;
use tilekit::bundle::moving::{Medium, Progress};
use tilekit::bundle::{Bundle, Listed, Seal, Verified};
use tilekit::manifest::Entry;

use super::model::size;
use crate::app::App;
use crate::args::BundleCommand;
use crate::args::data::Carry;
use crate::failure::{Code, Failure};

mod accept;
mod archive;
mod build;
mod create;
mod own;
mod repair;
pub(crate) mod verify;

/// Runs it.
pub(crate) fn run(app: &App, command: BundleCommand) -> Result<(), Failure> {
    match command {
        BundleCommand::Info => info(app, &app.bundle()?),
        BundleCommand::Verify { .. } if app.is_installed()? => verify::installed(app),
        BundleCommand::Verify { full: false, .. } => verify::quick(app, &app.drive()?),
        BundleCommand::Verify { full: true, shipped, restart } => verify::full(app, shipped, restart),
        BundleCommand::Repair { from, dry_run, .. } if app.is_installed()? => repair::installed(app, &from, dry_run),
        BundleCommand::Repair { from, shipped, dry_run } => repair::run(app, &from, shipped, dry_run),
        BundleCommand::Create { dest, from_installed: false, landing, .. } => create::create(app, &dest, landing),
        BundleCommand::Create { dest, is_move, copy, landing, .. } => {
            create::from_installed(app, &dest, landing, Carry { is_move, copy, dry_run: landing.dry_run })
        }
        BundleCommand::Copy { dest, dry_run } => create::copy(app, &dest, dry_run),
        BundleCommand::Export { file } => archive::export(app, &file),
        BundleCommand::Import { file, dest, landing } => archive::import(app, &file, &dest, landing),
        BundleCommand::Accept { yes } => accept::run(app, yes),
        BundleCommand::Build { recipe, dest, program, model, seal_key } => {
            build::run(app, &recipe, &dest, &program, &model, &seal_key)
        }
    }
}

/// Who sealed the bundle, in words.
pub(crate) fn sealed_by(bundle: &Bundle<impl Listed>) -> String {
    match bundle.seal() {
        Seal::Installed => "none: installed on this computer, and no list is over it".into(),
        Seal::Release => "released, sealed by the makers of this program".into(),
        Seal::SelfBuilt { short_key } => format!("self-built, sealed by {short_key}"),
    }
}

fn info(app: &App, bundle: &Bundle<Verified>) -> Result<(), Failure> {
    let manifest = bundle.manifest();
    let bytes: u64 = manifest.files.iter().map(|entry| entry.size).sum();
    let root = bundle.root().display().to_string();
    let shown = json!({
        "root": root, "product": manifest.product, "version": manifest.version, "generation": manifest.generation,
        "seal": sealed_by(bundle), "files": manifest.files.len(), "bytes": bytes,
        "read_only": bundle.is_read_only(), "not_part_of_it": bundle.strangers(),
    });
    app.print(&shown, || {
        let mut text = format!(
            "{} {} (generation {})\nfolder   {root}\nseal     {}\nfiles    {}, {}\n",
            manifest.product,
            manifest.version,
            manifest.generation,
            sealed_by(bundle),
            manifest.files.len(),
            size(bytes)
        );
        if bundle.is_read_only() {
            text.push_str("medium   write-protected\n");
        }
        text
    })
}

/// Runs a long step that tells how many bytes it read; Ctrl-C ends it.
fn with_bar<T, E>(
    app: &App,
    label: &str,
    total_bytes: u64,
    step: impl FnOnce(&mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<T, E>,
) -> Result<T, Failure>
where
    Failure: From<E>,
{
    let bar = app.terminal.progress(label, total_bytes);
    let result = step(&mut |bytes| {
        bar.add(bytes);
        if app.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(bar);
    ended(app, result)
}

/// Runs what writes a bundle or an archive, with a bar for each of its parts; Ctrl-C ends it.
pub(crate) fn with_bars<T, E>(
    app: &App,
    total_bytes: u64,
    step: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<T, E>,
) -> Result<T, Failure>
where
    Failure: From<E>,
{
    let mut bar: Option<(&str, crate::terminal::progress::Progress)> = None;
    let result = step(&mut |progress| {
        let (label, bytes) = match progress {
            Progress::Checked(bytes) => ("Checking", bytes),
            Progress::Written(bytes) => ("Writing", bytes),
            Progress::ReadBack(bytes) => ("Reading back", bytes),
        };
        if bar.as_ref().is_none_or(|(shown, _)| *shown != label) {
            bar = Some((label, app.terminal.progress(label, total_bytes)));
        }
        if let Some((_, bar)) = &bar {
            bar.add(bytes);
        }
        if app.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(bar);
    ended(app, result)
}

/// An interruption has its own exit code, and says what is kept.
fn ended<T, E>(app: &App, result: Result<T, E>) -> Result<T, Failure>
where
    Failure: From<E>,
{
    let is_interrupted = app.take_interrupt();
    result.map_err(|error| {
        let failure = Failure::from(error);
        if !is_interrupted {
            return failure;
        }
        app.terminal.say("Interrupted. Run the same command again: it goes on from there.");
        failure.with_code(Code::Interrupted)
    })
}

/// How many bytes files have together.
fn total(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.size).sum()
}

/// Says how a drive was read back, where that is less than sure.
pub(crate) fn warn_of_memory(app: &App, medium: Medium) {
    if medium == Medium::Asked {
        app.terminal.warn(
            "the system may have answered for the drive while it was read back; plug it in again and run `tiles bundle \
             verify --full` to be sure",
        );
    }
}
