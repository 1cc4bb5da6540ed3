//! `tiles data`: where the person's data is, what it holds, backups, recovery.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tilekit::bundle::{Bundle, Verified};
use tilekit::disk::{self, Kind};
use tilekit::identity::{KeyFile, KeyStore as _};
use tilekit::store::{Access, Recovery, Source, StoreError, backups};
use tilekit::time::Timestamp;

use super::size;
use crate::app::App;
use crate::args::OnboardingArguments;
use crate::args::data::DataCommand;
use crate::failure::{Code, Failure};
use crate::opening::Unexpected;
use crate::terminal::escape::neutralise_line;

pub(crate) mod adopt;
mod set_path;

/// The most names that are counted in one folder of the data.
const NAMES_MAX: usize = 100_000;
/// How deep folders of the data are counted.
const DEPTH_MAX: usize = 8;

/// Runs it.
pub(crate) fn run(app: &App, command: Option<DataCommand>) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    match command {
        None => overview(app, &bundle),
        Some(DataCommand::Path) => {
            let path = bundle.data().display().to_string();
            app.print(&json!({ "path": path }), || path.clone())
        }
        Some(DataCommand::SetPath { path, dry_run }) => set_path::run(app, &bundle, &path, dry_run),
        Some(DataCommand::Adopt { from, carry }) => {
            let from = adopt::home(&from)?;
            let carry = adopt::choose(app, carry)?;
            adopt::run(app, &bundle, &from, carry)
        }
        Some(DataCommand::Backup { file, replace }) => back_up(app, &bundle, file.as_deref(), replace),
        Some(DataCommand::Recover { from, dry_run, yes }) => {
            recover(app, &bundle, from.as_deref(), How { dry_run, yes })
        }
        Some(DataCommand::Accept { yes }) => accept(app, &bundle, yes),
    }
}

/// Whether to act, and whether to ask before.
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub(crate) dry_run: bool,
    pub(crate) yes: bool,
}

fn overview(app: &App, bundle: &Bundle<Verified>) -> Result<(), Failure> {
    let root = bundle.data();
    let mut parts: Vec<(&str, u64)> = Vec::new();
    for (what, names) in [
        ("conversations and settings", &["db", "tiles.db", "tiles.db-wal"][..]),
        ("keys", &["key.a", "key.b"]),
        ("backups", &["backup"]),
        ("kept engine states", &["cache"]),
        ("memory", &["memory"]),
        ("logs", &["logs"]),
    ] {
        let bytes: Result<u64, Failure> = names.iter().map(|name| bytes_below(&root.join(name), 0)).sum();
        parts.push((what, bytes?));
    }
    let total = bytes_below(&root, 0)?;
    let counted: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    parts.push(("everything else", total.saturating_sub(counted)));
    let rolling = backups(&bundle.backups())?;
    let shown = json!({
        "path": root.display().to_string(),
        "bytes": total,
        "parts": parts.iter().map(|(what, bytes)| json!({ "what": what, "bytes": bytes })).collect::<Vec<_>>(),
        "backups": rolling.iter().map(|backup| json!({
            "path": backup.path.display().to_string(), "bytes": backup.bytes, "made_at": backup.made_at.to_string(),
        })).collect::<Vec<_>>(),
        "free_bytes": disk::free_bytes(bundle.root())?,
    });
    app.print(&shown, || {
        let mut text = format!("{}\n", root.display());
        parts.iter().filter(|(_, bytes)| *bytes > 0).for_each(|(what, bytes)| {
            text.push_str(&format!("{:>10}  {what}\n", size(*bytes)));
        });
        text.push_str(&format!("{:>10}  in all\n", size(total)));
        match rolling.first() {
            Some(newest) => text.push_str(&format!("The newest backup is of {}.\n", newest.made_at)),
            None => text.push_str("There is no backup yet: `tiles data backup` makes one.\n"),
        }
        text
    })
}

/// The bytes of a file, or of everything in a folder; links count nothing.
fn bytes_below(path: &Path, depth: usize) -> Result<u64, Failure> {
    match disk::kind(path)? {
        Some(Kind::File) => Ok(disk::size_unopened(path)?.unwrap_or(0)),
        Some(Kind::Folder) if depth < DEPTH_MAX => {
            let names = disk::list_kinds(path, NAMES_MAX)?;
            names.iter().map(|(name, _)| bytes_below(&path.join(name), depth + 1)).sum()
        }
        _ => Ok(0),
    }
}

fn back_up(app: &App, bundle: &Bundle<Verified>, file: Option<&Path>, replace: bool) -> Result<(), Failure> {
    if file == Some(Path::new("-")) {
        let hint = "give the path of a new file, such as one on another drive";
        return Err(Failure::new(Code::Usage, "a backup isn't written to standard output: it is read back", hint));
    }
    // Relative paths are the person's own folder; what is there is asked before anything is unlocked.
    if let Some(path) = file.filter(|path| disk::exists(path)) {
        return Err(disk::DiskError::Exists { path: path.into() }.into());
    }
    let open = app.unlock(bundle, &OnboardingArguments::default())?;
    let key = open.identity.database_key();
    let (path, removed) = match file {
        Some(path) => {
            let bytes = disk::size_unopened(open.store.path())?.unwrap_or(0);
            let spinner = app.terminal.spinner(&format!("Backing up {}", size(bytes)));
            open.store.backup(path, key)?;
            drop(spinner);
            (path.to_path_buf(), 0)
        }
        None if open.store.access() == Access::ReadOnly => {
            let error = StoreError::ReadOnly { path: bundle.backups() };
            return Err(Failure::from(error));
        }
        None => {
            let made = open.at_exit.make(&open.store, &open.identity, &|| app.is_interrupted())?;
            let removed = if replace { open.store.forget_backups(&bundle.backups(), &made)? } else { 0 };
            (made.path, removed)
        }
    };
    let bytes = disk::size_unopened(&path)?.unwrap_or(0);
    let shown = json!({ "path": path.display().to_string(), "bytes": bytes, "removed": removed });
    app.print(&shown, || format!("{} ({}, read back and checked)", path.display(), size(bytes)))?;
    if removed > 0 {
        app.terminal.say(&format!("{removed} older backups were removed, and with them what was deleted since."));
    }
    app.terminal.say("It opens with the keys that are here only. Go back to it with `tiles data recover --from FILE`.");
    open.close()
}

/// Recovers the database; `tiles doctor --recover` is the same.
pub(crate) fn recover(app: &App, bundle: &Bundle<Verified>, from: Option<&Path>, how: How) -> Result<(), Failure> {
    let mut lock = app.lock(bundle)?;
    if !lock.is_held() && !how.dry_run {
        return Err(StoreError::ReadOnly { path: bundle.database() }.into());
    }
    let key_file = KeyFile::new(&bundle.key_folder());
    if !key_file.exists()? {
        let hint = "put `data/key.a` or `data/key.b` back: nothing opens without them";
        return Err(Failure::new(Code::Locked, "there is no key file here, so nothing can be recovered", hint));
    }
    let (_, unlocked) = app.open_key_file(&key_file)?;
    let identity = &unlocked.identity;
    let keys: Vec<_> = std::iter::once(identity.database_key()).chain(identity.previous_database_keys()).collect();
    let spinner = app.terminal.spinner("Reading every page of the database and its backups");
    let plan = Recovery::plan(&bundle.database(), &bundle.backups(), from, &keys);
    drop(spinner);
    let plan = plan.map_err(nothing_left)?;
    if plan.source == Source::Sound {
        tell(app, &plan, None, how.dry_run)?;
        return Ok(());
    }
    if plan.damage.is_none() && matches!(plan.source, Source::Backup(_)) && !how.dry_run {
        app.confirm("The database is sound. Put this backup in its place, and keep it aside?", how.yes)?;
    }
    if how.dry_run {
        return tell(app, &plan, None, true);
    }
    let spinner = app.terminal.spinner("Writing the recovered database, and reading it back");
    let aside = plan.carry_out(identity.database_key())?;
    drop(spinner);
    let store = app.open_database(bundle, identity, unlocked.header, Access::ReadWrite, Unexpected::Accept)?;
    store.accept_lineage()?;
    store.close()?;
    lock.settle();
    tell(app, &plan, aside.as_deref(), false)
}

/// The database's own error, with what is left to do.
fn nothing_left(error: StoreError) -> Failure {
    let is_lost = error.is_integrity() || matches!(&error, StoreError::Disk(disk) if disk.is_not_found());
    let failure = Failure::from(error);
    if !is_lost {
        return failure;
    }
    let hint = "nothing of it can be read, and there is no good backup in `data/backup`: give one with `--from FILE`, or \
                move `data/db/tiles.db` away and begin anew with `tiles data accept`";
    Failure { code: Code::Integrity, hint: Some(hint.into()), ..failure }
}

fn tell(app: &App, plan: &Recovery, aside: Option<&Path>, dry_run: bool) -> Result<(), Failure> {
    let (source, file): (&str, Option<&PathBuf>) = match &plan.source {
        Source::Sound => ("sound", None),
        Source::Salvage => ("salvage", None),
        Source::SalvageAndBackup(path) => ("salvage and backup", Some(path)),
        Source::Backup(path) => ("backup", Some(path)),
        Source::Unfinished(path) => ("unfinished recovery", Some(path)),
    };
    let missing: Vec<Value> = plan
        .missing
        .iter()
        .map(|m| json!({ "session": m.session.to_string(), "title": m.title, "messages": m.messages }))
        .collect();
    let shown = json!({
        "source": source, "file": file.map(|path| path.display().to_string()), "damage": plan.damage,
        "sessions": plan.sessions, "messages": plan.messages, "messages_from_backup": plan.from_backup,
        "missing": missing, "may_lack_more": plan.may_lack_more, "dry_run": dry_run,
        "kept_aside": aside.map(|path| path.display().to_string()),
    });
    app.print(&shown, || report(plan, file.map(PathBuf::as_path), aside, dry_run))?;
    if !dry_run && plan.source != Source::Sound {
        app.terminal.say("See what is there with `tiles session list`.");
    }
    Ok(())
}

fn report(plan: &Recovery, file: Option<&Path>, aside: Option<&Path>, dry_run: bool) -> String {
    let (sessions, messages) = (plan.sessions, plan.messages);
    if plan.source == Source::Sound {
        return format!("The database is sound: {sessions} sessions, {messages} messages. Nothing needs to be done.\n");
    }
    let mut lines = Vec::new();
    lines.extend(plan.damage.as_ref().map(|damage| format!("Found: {damage}.")));
    let (verb, have) = if dry_run { ("would be", "would have") } else { ("was", "has") };
    let from = match (&plan.source, file) {
        (Source::SalvageAndBackup(_), Some(file)) => {
            format!("its own pages, and {} messages from `{}`", plan.from_backup, file.display())
        }
        (Source::Backup(_), Some(file)) => format!("`{}` alone", file.display()),
        (Source::Unfinished(_), _) => "the recovery that was cut".into(),
        _ => "its own pages".into(),
    };
    lines.push(format!(
        "The database {verb} recovered from {from}: it {have} {sessions} sessions, {messages} messages."
    ));
    for missing in &plan.missing {
        let title = missing.title.as_deref().map_or("without a title".into(), neutralise_line);
        let id = missing.session.to_string();
        lines.push(format!("Missing: {} messages of session {} ({title}).", missing.messages, &id[..8]));
    }
    if plan.may_lack_more {
        lines.push("More may be missing: the damage hit the lists that would say so.".into());
    } else if plan.missing.is_empty() && !matches!(plan.source, Source::Backup(_)) {
        lines.push("Nothing is missing.".into());
    }
    if matches!(plan.source, Source::Backup(_)) {
        lines.push("What was said after that backup was made isn't in it.".into());
    }
    lines.extend(aside.map(|path| format!("The old file is kept as `{}`.", path.display())));
    lines.join("\n")
}

/// Goes on with the database as it is.
fn accept(app: &App, bundle: &Bundle<Verified>, yes: bool) -> Result<(), Failure> {
    app.confirm("Make the database that is there now, or a new one, the one to go on with?", yes)?;
    let open = app.unlock_with(bundle, &OnboardingArguments::default(), Unexpected::Accept)?;
    open.store.accept_lineage()?;
    let sessions = open.store.list()?.len();
    let since: Option<Timestamp> = open.store.runs()?.first().map(|run| run.started_at);
    let shown = json!({ "sessions": sessions, "first_used_at": since.map(|at| at.to_string()) });
    app.print(&shown, || format!("From now on the database that is there counts: {sessions} sessions."))?;
    app.terminal.say("Talk with `tiles`, or see what is there with `tiles session list`.");
    open.close()
}
