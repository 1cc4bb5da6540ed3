//! `tiles data adopt`: identity, conversations and models of another Tiles, carried into this one.

use std::path::Path;

use serde_json::json;
use tilekit::bundle::moving::{self, AdoptPlan, MoveError, Personal};
use tilekit::bundle::{Bundle, Found, MANIFEST_NAME, Verified};
use tilekit::disk;
use tilekit::identity::{Identity, KeyFile, KeyStore as _};
use tilekit::library::{LibraryError, added};
use tilekit::manifest::Entry;
use tilekit::store::{Access, Store};

use crate::app::App;
use crate::args::OnboardingArguments;
use crate::args::data::Carry;
use crate::commands::bundle::verify::added_entries;
use crate::commands::bundle::{warn_of_memory, with_bars};
use crate::commands::size;
use crate::failure::{Code, Failure};
use crate::seal_memory::remember_seal;
use crate::unlock::{Open, causes};

/// What becomes of the home that was carried from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It stays in use.
    Copy,
    /// It goes out of use.
    Move,
    /// It goes out of use, and this installation is found in its new folder from then on.
    SetPath,
}

/// The home at a path: a bundle, or the folder of an installed Tiles.
pub(crate) fn home(path: &Path) -> Result<Bundle<Verified>, Failure> {
    if disk::exists(&path.join(MANIFEST_NAME)) {
        return Ok(Bundle::<Found>::find(Some(path), path)?.verify(App::trust())?);
    }
    if !KeyFile::new(&path.join("data")).exists()? {
        let why =
            format!("`{}` is neither a bundle nor the folder of an installed Tiles with an identity", path.display());
        return Err(Failure::new(
            Code::Usage,
            why,
            "give the folder that has `data` in it; `tiles data path` prints that",
        ));
    }
    Ok(Bundle::installed(path)?)
}

/// The home of the Tiles that is installed for this user.
pub(crate) fn installed_home(app: &App) -> Result<Bundle<Verified>, Failure> {
    let none = || {
        Failure::new(Code::Failure, "no Tiles is installed for this user", "give its folder: `tiles data adopt FOLDER`")
    };
    let root = app.installed_root()?.ok_or_else(none)?;
    if !KeyFile::new(&root.join("data")).exists()? {
        return Err(none());
    }
    Ok(Bundle::installed(&root)?)
}

/// Whether it is a move or a copy. The same identity in two places is a fork, so nobody gets one without having said so.
pub(crate) fn choose(app: &App, carry: Carry) -> Result<Carry, Failure> {
    if carry.is_move || carry.copy {
        return Ok(carry);
    }
    if !app.terminal.is_interactive() {
        let why = "it wasn't said what becomes of the Tiles that is carried from";
        return Err(Failure::new(
            Code::Usage,
            why,
            "add `--move` (it goes out of use) or `--copy` (both go on, separately)",
        ));
    }
    app.terminal
        .say("The same identity in two places is a fork: what is said on one isn't on the other, and nothing is");
    app.terminal.say(
        "ever merged by itself. A move takes the old place out of use, once the new one was read back and opened.",
    );
    loop {
        let typed = app.terminal.ask_line("Move or copy? [move/copy] ", "--move` or `--copy")?;
        match typed.trim() {
            "move" | "m" => return Ok(Carry { is_move: true, ..carry }),
            "copy" | "c" => return Ok(Carry { copy: true, ..carry }),
            _ => app.terminal.say("Type `move` or `copy`; Ctrl-C leaves everything as it is."),
        }
    }
}

/// Runs it.
pub(crate) fn run(app: &App, to: &Bundle<Verified>, from: &Bundle<Verified>, carry: Carry) -> Result<(), Failure> {
    let ending = if carry.is_move { Ending::Move } else { Ending::Copy };
    self::carry(app, to, from, carry.dry_run, ending)
}

/// Carries everything of `from` into `to`.
pub(crate) fn carry(
    app: &App,
    to: &Bundle<Verified>,
    from: &Bundle<Verified>,
    dry_run: bool,
    ending: Ending,
) -> Result<(), Failure> {
    if !KeyFile::new(&from.key_folder()).exists()? {
        let why = format!("`{}` has no identity that could be carried", from.root().display());
        return Err(Failure::new(Code::Failure, why, ""));
    }
    // What can't work is said before the passphrase is asked for.
    let is_there = ending == Ending::Move && has_same_keys(to, from)?;
    if !is_there {
        AdoptPlan::new(from, to, Vec::new()).map_err(taken)?;
    }
    if to.is_read_only() {
        return Err(disk::DiskError::ReadOnly { path: to.root().into() }.into());
    }
    if ending != Ending::Copy && from.is_read_only() {
        let hint = "open its lock, or give `--copy`";
        return Err(Failure::new(Code::Failure, "what is write-protected can't go out of use", hint));
    }
    let open = app.unlock(from, &OnboardingArguments::default())?;
    if is_there {
        let plan = all_there(app, to, from, &open);
        let closed = open.close();
        let plan = plan?;
        closed?;
        return if dry_run { would(app, to, from, &plan) } else { end(app, to, from, &plan, ending) };
    }
    let models = models(from, to, &open.identity);
    let done = models.and_then(|models| carry_open(app, to, from, &open, &models, dry_run));
    let closed = open.close();
    let plan = done?;
    closed?;
    if dry_run { would(app, to, from, &plan) } else { end(app, to, from, &plan, ending) }
}

/// Whether both have the very same key file, as after a move that was cut before the old place went out of use.
fn has_same_keys(to: &Bundle<Verified>, from: &Bundle<Verified>) -> Result<bool, Failure> {
    let newest = |home: &Bundle<Verified>| KeyFile::new(&home.key_folder()).report().map(|report| report.newest());
    let (here, there) = (newest(to)?, newest(from)?);
    Ok(here.is_some() && here == there)
}

/// Makes sure that `to` has everything that was ever said in `from`: then a move has only to be finished.
fn all_there(app: &App, to: &Bundle<Verified>, from: &Bundle<Verified>, open: &Open) -> Result<AdoptPlan, Failure> {
    let _lock = app.lock(to)?;
    let store = Store::open(&to.database(), open.identity.database_key(), Access::ReadOnly)?;
    let here = store.runs()?;
    store.close()?;
    let has_all = open.store.runs()?.iter().all(|run| here.iter().any(|other| other.id == run.id));
    if !has_all {
        return Err(taken(MoveError::HasData { folder: to.root().into() }));
    }
    app.terminal.say("Everything was carried before; only the old place is still in use.");
    let (data_bytes, left) = from.personal().map_err(MoveError::from)?;
    Ok(AdoptPlan { models: Vec::new(), models_bytes: 0, data_bytes, left })
}

/// Says what would be done.
fn would(app: &App, to: &Bundle<Verified>, from: &Bundle<Verified>, plan: &AdoptPlan) -> Result<(), Failure> {
    let shown = json!({
        "dry_run": true, "from": from.root().display().to_string(), "to": to.root().display().to_string(),
        "data_bytes": plan.data_bytes, "models_bytes": plan.models_bytes, "not_copied": plan.left,
    });
    app.print(&shown, || {
        format!(
            "would carry the identity, {} of data and {} of models from {} to {}",
            size(plan.data_bytes),
            size(plan.models_bytes),
            from.root().display(),
            to.root().display()
        )
    })
}

/// The models that come along: those that were added and, where the new place has none of its own, those that were shipped.
fn models(from: &Bundle<Verified>, to: &Bundle<Verified>, identity: &Identity) -> Result<added::Added, Failure> {
    let mut models = added::read(&from.added_models(), &identity.models_key()).map_err(LibraryError::from)?;
    if to.is_installed() {
        for entry in from.shipped_models() {
            let Some((name, path)) = entry.path.strip_prefix("models/").and_then(|path| path.split_once('/')) else {
                continue;
            };
            models.entry(name.to_owned()).or_default().push(Entry { path: path.to_owned(), ..entry.clone() });
        }
    }
    let mut shipped: std::collections::BTreeMap<String, Vec<Entry>> = std::collections::BTreeMap::new();
    for entry in to.shipped_models() {
        if let Some((name, path)) = entry.path.strip_prefix("models/").and_then(|path| path.split_once('/')) {
            shipped.entry(name.to_owned()).or_default().push(Entry { path: path.to_owned(), ..entry.clone() });
        }
    }
    let digests = |files: &[Entry]| -> std::collections::BTreeSet<_> {
        files.iter().filter(|file| file.path.ends_with(".safetensors")).map(|file| file.sha256.0).collect()
    };
    for (name, files) in &shipped {
        match models.remove(name) {
            Some(other) if digests(&other) != digests(files) => {
                let why = format!("`{name}` is one model there and another one here");
                let hint =
                    format!("remove one of them first: `tiles model remove {name}`; export it before to keep it");
                return Err(Failure::new(Code::Failure, why, hint));
            }
            _ => {}
        }
    }
    Ok(models)
}

fn carry_open(
    app: &App,
    to: &Bundle<Verified>,
    from: &Bundle<Verified>,
    open: &Open,
    models: &added::Added,
    dry_run: bool,
) -> Result<AdoptPlan, Failure> {
    let plan = AdoptPlan::new(from, to, added_entries(models.clone()).collect()).map_err(taken)?;
    if dry_run {
        return Ok(plan);
    }
    let _lock = app.lock(to)?;
    let identity = &open.identity;
    let mut database =
        |path: &Path| open.store.backup(path, identity.database_key()).map_err(|error| Box::new(error).into());
    let mut prove = |data: &Path| prove(data, to, open, models).map_err(|failure| failure.error);
    let personal = Personal { database: &mut database };
    let total = plan.models_bytes;
    let medium = with_bars(app, total, |sink| moving::adopt(from, to, &plan, personal, &mut prove, sink))?;
    warn_of_memory(app, medium);
    Ok(plan)
}

/// Makes what was carried belong to its new place, and opens it.
fn prove(data: &Path, to: &Bundle<Verified>, open: &Open, models: &added::Added) -> Result<(), Failure> {
    let list = data.join("models.toml");
    match models.is_empty() {
        true => added::remove(&list).map_err(LibraryError::from)?,
        false => added::write(&list, &open.identity.models_key(), models).map_err(LibraryError::from)?,
    }
    let store = Store::open(&data.join("db/tiles.db"), open.identity.database_key(), Access::ReadWrite)?;
    if !to.is_installed() {
        // The person put it under this seal.
        remember_seal(to, &store)?;
    }
    let count = |store: &Store| -> Result<usize, Failure> { Ok(store.list()?.len()) };
    let (here, there) = (count(&store)?, count(&open.store)?);
    store.close()?;
    if here != there {
        let why = format!("the copy of the database has {here} sessions instead of {there}");
        return Err(Failure::new(Code::Integrity, why, "run `tiles doctor`"));
    }
    Ok(())
}

/// Says where it is now, and takes the old place out of use where that was wanted.
fn end(
    app: &App,
    to: &Bundle<Verified>,
    from: &Bundle<Verified>,
    plan: &AdoptPlan,
    ending: Ending,
) -> Result<(), Failure> {
    for name in &plan.left {
        app.terminal.warn(&format!("`data/{name}` isn't known to Tiles and wasn't carried along"));
    }
    let (here, there) = (to.root().display().to_string(), from.root().display().to_string());
    if ending == Ending::SetPath {
        app.set_installed_path(to.root())?;
    }
    let retired = match ending {
        Ending::Copy => None,
        Ending::Move | Ending::SetPath => {
            if let Some(keychain) = app.keychain(from).filter(|keychain| keychain.is_on()) {
                match keychain.forget() {
                    Ok(()) if ending == Ending::SetPath => {
                        app.terminal
                            .say("The Keychain has the keys no more; `tiles key keychain on` puts them back there.");
                    }
                    Ok(()) => {}
                    Err(error) => app.terminal.warn(&causes(&error)),
                }
            }
            let retired = moving::retire(from)?;
            // Its models are not secret, large, and were read back at the new place.
            for name in plan.models.iter().filter_map(|entry| entry.path.split('/').nth(1)) {
                if from.is_installed() {
                    disk::remove_folder(&from.models().join(name))?;
                }
            }
            Some(retired.display().to_string())
        }
    };
    let shown = json!({
        "from": there, "to": here, "moved": retired.is_some(), "retired": retired, "data_bytes": plan.data_bytes,
        "models_bytes": plan.models_bytes, "not_copied": plan.left, "read_back": true,
    });
    app.print(&shown, || {
        format!("{here} has the identity, the conversations and the models of {there}; it was read back and opened")
    })?;
    match &retired {
        Some(retired) => {
            app.terminal.say(&format!("{there} is out of use. What was in it is kept in {retired}, sealed as before:"));
            app.terminal.say("remove that folder when the new place has proved itself.");
        }
        None => {
            app.terminal.say("Both have the same identity, and go separate ways from now on: what is said on one isn't on the other.");
            app.terminal.say("Should their files meet, Tiles says so and merges nothing by itself.");
        }
    }
    if !to.is_installed() {
        app.terminal.say("The drive is safe to remove once your system has ejected it.");
    }
    Ok(())
}

/// That there is somebody's data already, in the words of this command.
fn taken(error: MoveError) -> Failure {
    match error {
        MoveError::HasData { folder } => {
            let why = format!("`{}` has an identity or data already, which is never overwritten", folder.display());
            let hint = "bring what you miss over with `tiles session export ID --format json` and `tiles session import FILE`, \
                        or make a new bundle with `tiles bundle create DEST`";
            Failure::new(Code::Failure, why, hint)
        }
        error => error.into(),
    }
}
