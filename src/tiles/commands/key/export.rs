//! `tiles key export`: the keys in forms that other programs open.

use std::fmt::Write as _;
use std::path::Path;

use secrecy::ExposeSecret as _;
use serde_json::json;
use tilekit::bundle::{Bundle, Verified};
use tilekit::disk;
use tilekit::identity::KeyFile;
use zeroize::Zeroizing;

use super::restore;
use crate::app::App;
use crate::args::key::ExportArguments;
use crate::failure::{Code, Failure};
use crate::terminal::Stream;

/// Runs it.
pub(super) fn run(app: &App, bundle: &Bundle<Verified>, arguments: &ExportArguments) -> Result<(), Failure> {
    let key_file = KeyFile::new(&bundle.key_folder());
    if let Some(path) = &arguments.recovery_identity {
        let words = restore::words(app, arguments.recovery_file.as_deref())?;
        key_file.check_words(&words)?;
        let identity = Zeroizing::new(format!("{}\n", words.to_age_key().expose_secret()));
        write(app, path, "age identity", identity.as_bytes())?;
        app.terminal
            .say("With it, `age -d -i FILE key.a` opens the keys without a passphrase: keep it like the words.");
        return Ok(());
    }
    if arguments.raw_database_key {
        return raw_database_key(app, bundle, &key_file, arguments.yes);
    }
    let (passphrase, _) = app.open_key_file(&key_file)?;
    if let Some(path) = &arguments.age_scrypt {
        let spinner = app.terminal.spinner("Sealing");
        let sealed = key_file.to_scrypt(&passphrase)?;
        drop(spinner);
        write(app, path, "age scrypt", &sealed)?;
        app.terminal
            .say("`age -d FILE` opens it with the passphrase, wherever age is. It stays valid when that is changed.");
        return Ok(());
    }
    if let Some(path) = &arguments.file {
        write(app, path, "key file", &key_file.sealed(&passphrase)?)?;
        app.terminal
            .say("As `key.a` and `key.b` of a bundle it opens with the passphrase; with the recovery words, stock age");
        app.terminal
            .say("opens it: `tiles key export --recovery-identity recovery.txt`, `age -d -i recovery.txt FILE`.");
    }
    Ok(())
}

/// Writes a new file that only its owner may read, or standard output where that is no terminal.
fn write(app: &App, path: &Path, form: &str, content: &[u8]) -> Result<(), Failure> {
    if path == Path::new("-") {
        if app.terminal.is_terminal(Stream::Out) && content.contains(&0) || app.global.json {
            let hint = "name a file, or send standard output into one, without `--json`";
            return Err(Failure::new(Code::Usage, "standard output takes no keys here", hint));
        }
        return Ok(app.terminal.out_bytes(content)?);
    }
    disk::write_private(path, content)?;
    let written = path.display().to_string();
    app.terminal.say(&format!("Written to {written}."));
    app.print(&json!({ "written": written, "form": form }), String::new)
}

/// Prints the key of the database: deliberate, and never by accident.
fn raw_database_key(app: &App, bundle: &Bundle<Verified>, key_file: &KeyFile, yes: bool) -> Result<(), Failure> {
    app.confirm("Show the key that reads every conversation here, unencrypted?", yes)?;
    let (_, unlocked) = app.open_key_file(key_file)?;
    let mut key = Zeroizing::new(String::with_capacity(64));
    for byte in unlocked.identity.database_key().expose_secret() {
        let _ = write!(key, "{byte:02x}");
    }
    let database = bundle.database().display().to_string();
    let pragma = format!("PRAGMA key = \"x'{}'\";", key.as_str());
    app.terminal.say("Whoever has this key and a copy of the database reads everything; no passphrase protects it.");
    app.terminal.say("With SQLCipher 4, while no Tiles has it open:");
    app.terminal.say(&format!("  sqlcipher \"{database}\""));
    app.terminal.say("  PRAGMA key = \"x'KEY'\";   SELECT * FROM message;");
    app.terminal.say("If it gets into wrong hands: `tiles key rotate-db`.\n");
    app.print(&json!({ "database": database, "database_key": key.as_str(), "pragma": pragma }), || key.to_string())
}
