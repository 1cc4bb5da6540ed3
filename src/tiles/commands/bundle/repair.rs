//! `tiles bundle repair`: what is damaged is replaced, out of another bundle or an archive.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tilekit::bundle::examine::{Damage, Examination, Resume, examine};
use tilekit::bundle::repair::{Donor, Repair, Task, repair, restore_list};
use tilekit::bundle::{Bundle, BundleError, Found, MANIFEST_NAME};
use tilekit::disk;
use tilekit::disk::DiskError;
use tilekit::library::{LibraryError, added};

use super::verify::{Added, AllListed, added_entries, describe, listed};
use super::{size, total, with_bar};
use crate::app::App;
use crate::args::OnboardingArguments;
use crate::failure::{Code, Failure};
use crate::terminal::escape::neutralise_line;

/// Runs it.
pub(super) fn run(app: &App, from: &Path, shipped_only: bool, dry_run: bool) -> Result<(), Failure> {
    let root = root(app)?;
    let donor = Donor::new(from, &root)?;
    let restored = restore_list(&root, &donor, dry_run)?;
    if let Some(name) = restored {
        let said = if dry_run { "would be restored" } else { "is restored" };
        app.terminal.say(&format!("`{name}` {said}: the other bundle has the same sealing."));
        if dry_run {
            return app.print(&json!({ "dry_run": true, "list_restored": name, "mended": [], "left": [] }), || {
                format!("would restore {name}; what else is damaged shows only then")
            });
        }
    }
    let bundle = Bundle::<Found>::find(Some(&root), &root)?.sealed(App::trust())?;
    if bundle.is_read_only() && !dry_run {
        return Err(DiskError::ReadOnly { path: root }.into());
    }
    let listed = listed(app, &bundle, shipped_only)?;
    let _lock = if dry_run { None } else { Some(app.lock(&bundle)?) };
    let (found, done) = mend(app, bundle.root(), &listed, &donor, dry_run)?;
    if !dry_run {
        // What an interrupted verification noted isn't so any more.
        Resume::new(&bundle.verify_state(), &listed.entries, app.clock.now()).forget();
    }
    report(app, &found, &done, restored, dry_run, &listed.added)
}

/// Repairs the models of an installed Tiles: they are all that a list vouches for there.
pub(super) fn installed(app: &App, from: &Path, dry_run: bool) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    let donor = Donor::new(from, bundle.root())?;
    // It holds the lock until all is done.
    let open = app.unlock(&bundle, &OnboardingArguments::default())?;
    let done = added::read(&bundle.added_models(), &open.identity.models_key()).map_err(|error| {
        let hint = "import the models again, or carry everything from another Tiles with `tiles data adopt`";
        Failure { hint: Some(hint.into()), ..LibraryError::from(error).into() }
    });
    let done = done.and_then(|models| {
        let listed = AllListed { entries: added_entries(models).collect(), added: Added::Known };
        let (found, done) = mend(app, bundle.root(), &listed, &donor, dry_run)?;
        report(app, &found, &done, None, dry_run, &listed.added)
    });
    done.and(open.close())
}

/// Finds what is damaged, and mends it.
fn mend(
    app: &App,
    root: &Path,
    listed: &AllListed,
    donor: &Donor,
    dry_run: bool,
) -> Result<(Examination, Repair), Failure> {
    let entries = &listed.entries;
    let found = with_bar(app, "Verifying", total(entries), |sink| {
        examine(root, entries, listed.added != Added::LeftOut, None, sink)
    })?;
    let task = Task { root, entries, found: &found, dry_run };
    let done = with_bar(app, "Repairing", to_read(&found), |sink| repair(task, donor, sink))?;
    Ok((found, done))
}

/// Says what doesn't belong there.
fn tell_strangers(app: &App, found: &Examination) {
    for path in &found.unlisted {
        app.terminal.warn(&format!("`{}` doesn't belong to the bundle: remove it", neutralise_line(path)));
    }
    for path in &found.strangers {
        app.terminal.say(&format!("`{}` isn't part of the bundle, and is never used", neutralise_line(path)));
    }
}

/// The bundle's folder, also where the list that makes it one is gone.
fn root(app: &App) -> Result<PathBuf, Failure> {
    match Bundle::<Found>::find(app.global.bundle.as_deref(), &app.environment.executable) {
        Ok(found) => Ok(found.root().to_path_buf()),
        Err(BundleError::NotABundle { folder }) if disk::exists(&folder.join("MANIFEST.sig")) => Ok(folder),
        Err(BundleError::Disk(_)) if app.global.bundle.is_some() => {
            Ok(disk::canonical(app.global.bundle.as_deref().unwrap_or(Path::new(MANIFEST_NAME)))?)
        }
        Err(error) => Err(error.into()),
    }
}

/// About how much of the other bundle is read.
fn to_read(found: &Examination) -> u64 {
    found.damaged.len() as u64 * u64::from(tilekit::digest::CHUNK_BYTES)
}

fn report(
    app: &App,
    found: &Examination,
    done: &Repair,
    restored: Option<&str>,
    dry_run: bool,
    added: &Added,
) -> Result<(), Failure> {
    tell_strangers(app, found);
    let mended: Vec<Value> = done.mended.iter().map(describe).collect();
    let with_why = |(damage, why): &(Damage, String)| {
        let mut described = describe(damage);
        described["why"] = json!(why);
        described
    };
    let left: Vec<Value> = done.left.iter().map(with_why).collect();
    let json = json!({
        "dry_run": dry_run, "list_restored": restored, "mended": mended, "left": left,
        "written_bytes": done.written_bytes, "unlisted": found.unlisted, "not_part_of_it": found.strangers,
        "added_models": if *added == Added::LeftOut { "left out" } else { "examined" },
    });
    let is_done = done.left.is_empty() && found.unlisted.is_empty();
    if app.global.json || is_done {
        app.print(&json, || {
            let (verb, bytes) = (if dry_run { "would mend" } else { "mended" }, size(done.written_bytes));
            match (done.mended.len(), restored) {
                (0, None) => "nothing is damaged".to_owned(),
                (0, Some(name)) => format!("{name} is restored; nothing else is damaged"),
                (1, _) => format!("{verb} 1 place ({bytes} written): {}", done.mended[0]),
                (count, _) => {
                    let lines = done.mended.iter().map(|damage| format!("  {damage}\n"));
                    format!("{verb} {count} places ({bytes} written)\n{}", lines.collect::<String>())
                }
            }
        })?;
    }
    for (damage, why) in &done.left {
        app.terminal.warn(&neutralise_line(&format!("{damage}, and stays so: {why}")));
    }
    if is_done {
        if !dry_run && !done.mended.is_empty() {
            app.terminal.say("Verify it: tiles bundle verify --full");
        }
        return Ok(());
    }
    let (what, hint) = match done.left.len() {
        0 => ("there are files that don't belong to the bundle".to_owned(), "remove them"),
        count => (
            format!("{count} of {} damaged places couldn't be mended", count + done.mended.len()),
            "give an undamaged bundle of the same version; models that you added can be imported again",
        ),
    };
    Err(Failure::new(Code::Integrity, what, hint))
}
