//! `tiles doctor`: this drive and this machine, as far as they can be checked without the passphrase.

use serde_json::json;
use tilekit::engine::backend::cpu::{Activations, Cpu};
use tilekit::engine::backend::{BackendChoice, BackendKind};
use tilekit::host::Host;
use tilekit::identity::{KeyFile, KeyStore as _};

use super::bundle::sealed_by;
use super::model::size;
use crate::app::App;
use crate::conversation::shipped;
use crate::failure::Failure;

/// Runs it.
pub(crate) fn run(app: &App, arguments: &crate::args::data::DoctorArguments) -> Result<(), Failure> {
    if arguments.recover {
        let how = super::data::How { dry_run: arguments.dry_run, yes: arguments.yes };
        return super::data::recover(app, &app.bundle()?, None, how);
    }
    let host = Host::probe()?;
    let bundle = app.bundle()?;
    let key_file = KeyFile::new(&bundle.key_folder());
    let has_identity = key_file.exists()?;
    let slots = key_file.headers()?.iter().filter(|slot| slot.is_ok()).count();
    let (kind, why) = BackendChoice::Auto.resolve()?;
    let engine = match kind {
        BackendKind::Mlx => format!("mlx: {why}"),
        BackendKind::Cpu => {
            let cpu = Cpu::new(host.physical_cores, Activations::default(), true);
            format!("cpu, {} with {} threads: {why}", cpu.instruction_set(), cpu.threads())
        }
    };
    let models: Vec<String> = shipped(&bundle)?.list().into_iter().map(|model| model.name).collect();
    let root = bundle.root().display().to_string();
    let key = match (has_identity, slots) {
        (false, _) => "none yet: the first run makes one".to_owned(),
        (true, 2) => "key file, both copies whole".to_owned(),
        (true, good) => format!("key file, {good} of 2 copies whole"),
    };
    let source = app.found_by(&bundle);
    let shown = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "bundle": { "root": root, "found_by": source, "seal": sealed_by(&bundle), "read_only": bundle.is_read_only(),
                    "files": bundle.manifest().files.len() },
        "key": { "exists": has_identity, "whole_copies": slots },
        "engine": { "name": kind.name(), "why": why, "description": engine },
        "host": { "os": host.os, "arch": host.arch, "physical_cores": host.physical_cores,
                  "memory_total_bytes": host.memory_total_bytes, "memory_available_bytes": host.memory_available_bytes },
        "models": models,
    });
    app.print(&shown, || {
        format!(
            "tiles    {}\nbundle   {root} ({source})\nseal     {}\nkey      {key}\nengine   {engine}\nhost     {} {}, {} of \
             {} memory available\nmodels   {}\n",
            env!("CARGO_PKG_VERSION"),
            sealed_by(&bundle),
            host.os,
            host.arch,
            size(host.memory_available_bytes),
            size(host.memory_total_bytes),
            models.join(", ")
        )
    })
}
