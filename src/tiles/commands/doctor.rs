//! `tiles doctor`: this drive and this machine, each line proved by looking, with what to do where something is wrong.

mod answer;
mod clean;
mod drive;
mod machine;
mod traces;

use serde_json::{Value, json};
use tilekit::bundle::{Bundle, Verified};
use tilekit::host::Host;
use tilekit::identity::{KeyFile, KeyStore as _};

use super::bundle::sealed_by;
use super::data::{self, How};
use crate::app::App;
use crate::args::data::DoctorArguments;
use crate::conversation::shipped;
use crate::failure::{Code, Failure};
use crate::terminal::Stream;
use crate::terminal::escape::neutralise_line;
use crate::terminal::style::{Styles, paint};

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// A fact, or as it should be.
    Ok,
    /// Worth knowing; Tiles works.
    Warn,
    /// Something is broken.
    Bad,
}

/// One line of the doctor.
struct Finding {
    what: &'static str,
    level: Level,
    text: String,
    advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, text: impl Into<String>) -> Self {
        Self { what, level: Level::Ok, text: text.into(), advice: None }
    }

    fn warn(what: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, level: Level::Warn, text: text.into(), advice: Some(advice.into()) }
    }

    fn bad(what: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, level: Level::Bad, text: text.into(), advice: Some(advice.into()) }
    }

    fn json(&self) -> Value {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Bad => "bad",
        };
        json!({ "what": self.what, "level": level, "text": self.text, "advice": self.advice })
    }

    fn print(&self, styles: Styles) -> String {
        let label = match self.level {
            Level::Ok => paint(styles.good, "ok  "),
            Level::Warn => paint(styles.warning, "warn"),
            Level::Bad => paint(styles.error, "bad "),
        };
        let mut text = format!("{label}  {:<10} {}\n", self.what, neutralise_line(&self.text));
        if let Some(advice) = &self.advice {
            text.push_str(&format!("{:17}→ {}\n", "", neutralise_line(advice)));
        }
        text
    }
}

/// Runs it.
pub(crate) fn run(app: &App, arguments: &DoctorArguments) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    if arguments.recover {
        return data::recover(app, &bundle, None, How { dry_run: arguments.dry_run, yes: arguments.yes });
    }
    if arguments.clean {
        return clean::run(app, &bundle, How { dry_run: arguments.dry_run, yes: arguments.yes });
    }
    let host = Host::probe()?;
    let (mut shown, mut findings) = look(app, &bundle, &host)?;
    if arguments.offline {
        findings.push(answer::offline(app, &bundle)?);
    }
    if arguments.traces {
        let (traces, more) = traces::run(app, &bundle)?;
        shown["traces"] = traces;
        findings.extend(more);
    }
    shown["findings"] = findings.iter().map(Finding::json).collect();
    let styles = app.terminal.styles(Stream::Out);
    app.print(&shown, || findings.iter().map(|finding| finding.print(styles)).collect())?;
    let bad = findings.iter().filter(|finding| finding.level == Level::Bad).count();
    if bad > 0 {
        let why = format!("{bad} of {} findings are bad", findings.len());
        return Err(Failure::new(Code::Failure, why, "do what stands below each"));
    }
    Ok(())
}

/// The facts for programs, and the findings for people.
fn look(app: &App, bundle: &Bundle<Verified>, host: &Host) -> Result<(Value, Vec<Finding>), Failure> {
    let key_file = KeyFile::new(&bundle.key_folder());
    let has_identity = key_file.exists()?;
    let slots = key_file.headers()?.iter().filter(|slot| slot.is_ok()).count();
    let in_keychain = app.keychain(bundle).is_some_and(|keychain| keychain.is_on());
    let source = if in_keychain { "Keychain and key file" } else { "key file" };
    let root = bundle.root().display().to_string();
    let found_by = app.found_by(bundle);
    let models: Vec<String> = shipped(bundle)?.list().into_iter().map(|model| model.name).collect();
    let engine = machine::engine(host)?;
    let files = bundle.manifest().files.len();
    let mut findings = vec![
        Finding::ok("tiles", format!("{} for {} on {}", env!("CARGO_PKG_VERSION"), host.os, host.arch)),
        Finding::ok("bundle", format!("{root}, because of {found_by}")),
        Finding::ok(
            "seal",
            format!("{}; {files} files are listed, the small ones were verified just now", sealed_by(bundle)),
        ),
        key(has_identity, slots),
        Finding::ok("engine", &engine.description),
        machine::memory(host),
        Finding::ok("models", if models.is_empty() { "none came with the bundle".into() } else { models.join(", ") }),
    ];
    if in_keychain {
        findings.push(Finding::ok(
            "keychain",
            "this Mac's Keychain has the keys too, so that the passphrase isn't asked for",
        ));
    }
    findings.extend(machine::protection());
    findings.extend(drive::findings(app, bundle)?);
    let shown = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "bundle": { "root": root, "found_by": found_by, "seal": sealed_by(bundle), "read_only": bundle.is_read_only(),
                    "files": files },
        "key": { "exists": has_identity, "whole_copies": slots, "source": source },
        "engine": { "name": engine.name, "why": engine.why, "description": engine.description },
        "host": { "os": host.os, "arch": host.arch, "physical_cores": host.physical_cores,
                  "memory_total_bytes": host.memory_total_bytes, "memory_available_bytes": host.memory_available_bytes },
        "models": models,
    });
    Ok((shown, findings))
}

fn key(has_identity: bool, slots: usize) -> Finding {
    match (has_identity, slots) {
        (false, _) => Finding::ok("key", "none yet: the first run makes one, in this bundle's key file"),
        (true, 2) => Finding::ok("key", "the key file of this bundle, both copies whole"),
        (true, 1) => Finding::warn(
            "key",
            "the key file of this bundle, 1 of 2 copies whole",
            "unlock it once, with `tiles account`: the other copy is written anew",
        ),
        (true, _) => Finding::bad(
            "key",
            "the key file of this bundle, and neither copy is whole",
            "put `data/key.a` back from a copy of `data`: nothing opens without it",
        ),
    }
}
