//! `tiles key`: how the keys of this drive are kept, and changing what opens them.

use serde_json::{Value, json};
use tilekit::bundle::{Bundle, BundleLock, Verified};
use tilekit::identity::{KeyFile, KeyFileReport, KeyStore as _, Passphrase, RecoveryWords, SlotReport};
use tilekit::store::Access;

use super::model::size;
use crate::app::App;
use crate::args::key::{KeyCommand, NewPassphrase};
use crate::failure::{Code, Failure};
use crate::opening::Unexpected;

mod export;
mod keychain;
mod restore;

/// Runs it.
pub(crate) fn run(app: &App, command: KeyCommand) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    match command {
        KeyCommand::Status => status(app, &bundle),
        KeyCommand::Passphrase { new } => passphrase(app, &bundle, &new),
        KeyCommand::Recovery { recovery_file } => recovery(app, &bundle, recovery_file.as_deref()),
        KeyCommand::Restore { recovery_file, new } => restore::run(app, &bundle, recovery_file.as_deref(), &new),
        KeyCommand::Export(arguments) => export::run(app, &bundle, &arguments),
        KeyCommand::Keychain { state } => keychain::run(app, &bundle, state),
        KeyCommand::RotateDb { dry_run } => rotate_database_key(app, &bundle, dry_run),
    }
}

/// The key file, for a change: the bundle is ours, and can be written.
fn for_change(app: &App, bundle: &Bundle<Verified>) -> Result<(KeyFile, BundleLock), Failure> {
    let lock = app.lock(bundle)?;
    if !lock.is_held() {
        let hint = "slide the drive's lock open, or plug it in where it can be written";
        return Err(Failure::new(Code::Failure, "the drive is write-protected, so its keys can't be changed", hint));
    }
    Ok((KeyFile::new(&bundle.key_folder()), lock))
}

fn status(app: &App, bundle: &Bundle<Verified>) -> Result<(), Failure> {
    let key_file = KeyFile::new(&bundle.key_folder());
    let report = key_file.report()?;
    let exists = key_file.exists()?;
    // The identity is inside. It is shown to who gives the passphrase, and nobody is asked for it.
    let did = match app.given_passphrase()? {
        Some(passphrase) if exists => Some(key_file.unlock(&passphrase)?.did().to_string()),
        _ => None,
    };
    let slots: Vec<Value> = report.slots.iter().map(|slot| slot_json(slot, exists)).collect();
    let work = report.work.map(|work| {
        json!({ "function": "argon2id", "memory_kib": work.memory_kib(), "passes": work.passes(), "lanes": work.lanes() })
    });
    let shown = json!({
        "exists": exists,
        "source": "key file",
        "folder": bundle.key_folder().display().to_string(),
        "slots": slots,
        "generation": report.newest().map(|header| header.generation),
        "work": work,
        "has_recovery_words": report.has_recovery,
        "keychain": keychain::state(app, bundle),
        "did": did,
    });
    app.print(&shown, || {
        let mut text = status_text(bundle, &report, exists, did.as_deref());
        if let Some(state) = keychain::state(app, bundle) {
            text.push_str(&format!("\nKeychain    {state}"));
        }
        text
    })
}

fn slot_json(slot: &SlotReport, exists: bool) -> Value {
    let (state, what) = match slot.state {
        None => ("whole", None),
        Some(_) if !exists => ("missing", None),
        Some(state) => (state.name(), Some(state.to_string())),
    };
    json!({
        "path": slot.path.display().to_string(),
        "state": state,
        "what": what,
        "generation": slot.header.map(|header| header.generation),
    })
}

fn status_text(bundle: &Bundle<Verified>, report: &KeyFileReport, exists: bool, did: Option<&str>) -> String {
    let folder = bundle.key_folder();
    if !exists {
        return format!(
            "source      key file in {}\nkeys        none yet; the first run of `tiles` makes them",
            folder.display()
        );
    }
    let slot = |slot: &SlotReport| match (slot.state, slot.header) {
        (None, Some(header)) => format!("whole, generation {}", header.generation),
        (Some(state), _) => state.to_string(),
        (None, None) => "missing".to_owned(),
    };
    let work = report.work.map_or_else(
        || "not one of ours".to_owned(),
        |work| {
            let memory = size(u64::from(work.memory_kib()) * 1024);
            format!("argon2id with {memory}, {} passes, {} lanes for each guess", work.passes(), work.lanes())
        },
    );
    let recovery = match report.has_recovery {
        Some(true) => "24 words open it too",
        Some(false) => "none: without the passphrase all is lost; `tiles key recovery` makes words",
        None => "unknown: no copy is whole",
    };
    let mut text = format!(
        "source      key file in {}\nkey.a       {}\nkey.b       {}\nwork        {work}\nrecovery    {recovery}\nidentity    {}",
        folder.display(),
        slot(&report.slots[0]),
        slot(&report.slots[1]),
        did.unwrap_or("sealed inside; `tiles account` shows it"),
    );
    if report.slots.iter().any(|slot| slot.state.is_some_and(|state| state.can_be_mended())) {
        text.push_str(match report.newest() {
            Some(_) => "\n\nOne good copy is enough: the next unlocking writes the other one anew.",
            None => "\n\nNo copy is whole: copy `key.a` or `key.b` back from a backup or another copy of `data`.",
        });
    }
    text
}

/// Takes the new passphrase from a flag, or asks for it.
fn new_passphrase(app: &App, new: &NewPassphrase) -> Result<Passphrase, Failure> {
    match app.read_passphrase(new.new_passphrase_file.as_deref(), new.new_passphrase_fd)? {
        Some(passphrase) => Ok(passphrase),
        None => app.choose_passphrase("--new-passphrase-file"),
    }
}

/// What no change of a passphrase or of recovery words can do.
fn tell_old_copies(app: &App, what: &str) {
    app.terminal.say(&format!(
        "Copies of `data`, or of its key files alone, that were made before still open with the old {what}."
    ));
}

fn passphrase(app: &App, bundle: &Bundle<Verified>, new: &NewPassphrase) -> Result<(), Failure> {
    let (key_file, _lock) = for_change(app, bundle)?;
    if keychain::renew_key_file(app, bundle, &key_file, new)? {
        return changed(app, &key_file);
    }
    let (current, _) = app.open_key_file(&key_file)?;
    let new = new_passphrase(app, new)?;
    if new.matches(&current) {
        let hint = "choose another one; to seal the same keys anew, change it twice";
        return Err(Failure::new(Code::Usage, "the new passphrase is the one in force, so nothing was changed", hint));
    }
    let spinner = app.terminal.spinner("Sealing both copies of the key file");
    key_file.change_passphrase(&current, &new)?;
    drop(spinner);
    app.terminal.say("The passphrase is changed, in both copies of the key file.");
    tell_old_copies(app, "passphrase");
    changed(app, &key_file)
}

fn recovery(app: &App, bundle: &Bundle<Verified>, file: Option<&std::path::Path>) -> Result<(), Failure> {
    let (key_file, _lock) = for_change(app, bundle)?;
    let (passphrase, _) = app.open_key_file(&key_file)?;
    let had_words = key_file.report()?.has_recovery == Some(true);
    let words = RecoveryWords::generate()?;
    // Before the change, so that words that were never seen aren't the only ones.
    app.hand_over(&words, file)?;
    let spinner = app.terminal.spinner("Sealing both copies of the key file");
    if let Err(error) = key_file.change_recovery(&passphrase, Some(&words)) {
        if let Some(path) = file {
            app.terminal.warn(&format!("the words in `{}` open nothing", path.display()));
        }
        return Err(error.into());
    }
    drop(spinner);
    app.terminal.say("These words open everything now, beside the passphrase.");
    if had_words {
        app.terminal.say("The former words don't any more.");
        tell_old_copies(app, "words");
    }
    app.terminal.say("If the passphrase is lost: `tiles key restore`.");
    // With `-`, the words were the output.
    if file == Some(std::path::Path::new("-")) { Ok(()) } else { changed(app, &key_file) }
}

/// The one JSON value of a change.
fn changed(app: &App, key_file: &KeyFile) -> Result<(), Failure> {
    let generation = key_file.report()?.newest().map(|header| header.generation);
    app.print(&json!({ "changed": true, "generation": generation }), String::new)
}

fn rotate_database_key(app: &App, bundle: &Bundle<Verified>, dry_run: bool) -> Result<(), Failure> {
    let bytes = tilekit::disk::size(&bundle.database())?.unwrap_or(0);
    if dry_run {
        let text =
            format!("would draw a new key and encrypt the database ({}) anew; needs as much free space", size(bytes));
        return app.print(&json!({ "changed": false, "database_bytes": bytes }), || text);
    }
    let (key_file, _lock) = for_change(app, bundle)?;
    let (passphrase, unlocked) = app.open_key_file(&key_file)?;
    let (header, unexpected) = (unlocked.header, Unexpected::Ask);
    let store = app.open_database(bundle, &unlocked.identity, header, Access::ReadWrite, unexpected)?;
    // A key that the database can't get must not be drawn.
    if store.opening().previous_key || !store.has_room_to_rekey()? {
        let why = format!("there is no room for a second copy of the database ({})", size(bytes));
        return Err(Failure::new(Code::Failure, why, "free some space; nothing was changed"));
    }
    // Under the former key, which the key file keeps, so that `tiles data recover` opens it.
    app.at_exit(bundle).make(&store, &unlocked.identity, &|| app.is_interrupted())?;
    let spinner = app.terminal.spinner("Drawing a new key and sealing it");
    let identity = key_file.rotate_database_key(&passphrase)?;
    drop(spinner);
    let spinner = app.terminal.spinner("Encrypting the database anew");
    store.rekey(identity.database_key())?.close()?;
    drop(spinner);
    app.terminal.say(&format!("The database ({}) is encrypted with a new key, and was read back.", size(bytes)));
    app.terminal.say(
        "Earlier backups of it stay under the former key, which the key file keeps so that they can be recovered; delete \
         them if that key got into wrong hands.",
    );
    changed(app, &key_file)
}
