//! `tiles bundle create` and `copy`: another bundle, without a person's data and with it.

use std::path::Path;

use serde_json::json;
use tilekit::bundle::moving::{self, MovePlan, Personal, Rules};
use tilekit::bundle::{Bundle, Found, MANIFEST_NAME, Verified};
use tilekit::disk;
use tilekit::identity::{KeyFile, KeyStore as _};
use tilekit::library::added;
use tilekit::manifest::Entry;

use super::verify::added_entries;
use super::{own, size, warn_of_memory, with_bars};
use crate::app::App;
use crate::args::data::Carry;
use crate::args::{Landing, OnboardingArguments};
use crate::commands::data::adopt;
use crate::failure::Failure;

/// Makes a bundle without data.
pub(super) fn create(app: &App, dest: &Path, landing: Landing) -> Result<(), Failure> {
    let bundle = app.drive()?;
    let rules = Rules { replace: landing.replace, allow_older: landing.allow_older, with_data: false };
    let plan = bundle.plan_move(dest, &[], 0, rules)?;
    if landing.dry_run {
        return would(app, &plan, "create");
    }
    let total = plan.bytes;
    let made = make(app, &bundle, plan)?;
    let root = made.root().display().to_string();
    app.print(
        &json!({ "bundle": root, "files": made.manifest().files.len(), "bytes": total, "read_back": true }),
        || format!("{root} is a bundle ({}), and was read back", size(total)),
    )?;
    app.terminal.say("It is safe to remove once your system has ejected it. Start it there with `./tiles`.");
    Ok(())
}

fn make(app: &App, bundle: &Bundle<Verified>, plan: MovePlan) -> Result<Bundle<Verified>, Failure> {
    let total = plan.bytes;
    let (made, medium) = with_bars(app, total, |sink| moving::copy(bundle, plan, None, sink))?;
    warn_of_memory(app, medium);
    Ok(made)
}

/// Makes a bundle, and carries what the installed Tiles has into it. A bundle that is there already, as after a cut, gets
/// it where it has no identity.
pub(super) fn from_installed(app: &App, dest: &Path, landing: Landing, carry: Carry) -> Result<(), Failure> {
    let from = adopt::installed_home(app)?;
    let carry = adopt::choose(app, carry)?;
    let is_there = disk::exists(&dest.join(MANIFEST_NAME));
    if is_there && !landing.replace {
        let to = Bundle::<Found>::find(Some(dest), dest)?.verify(App::trust())?;
        return adopt::run(app, &to, &from, carry);
    }
    if app.is_installed()? {
        // There is no bundle to make another of: this program goes into one of its own.
        return match own::build(app, dest, &from, landing.dry_run)? {
            Some(made) => adopt::run(app, &made, &from, carry),
            None => Ok(()),
        };
    }
    let bundle = app.drive()?;
    let rules = Rules { replace: landing.replace, allow_older: landing.allow_older, with_data: false };
    let plan = bundle.plan_move(dest, &[], 0, rules)?;
    if landing.dry_run {
        return would(app, &plan, "create");
    }
    let made = make(app, &bundle, plan)?;
    adopt::run(app, &made, &from, carry)
}

/// Makes a bundle with everything in it.
pub(super) fn copy(app: &App, dest: &Path, dry_run: bool) -> Result<(), Failure> {
    let bundle = app.drive()?;
    let rules = Rules { with_data: true, ..Rules::default() };
    if !KeyFile::new(&bundle.key_folder()).exists()? {
        // Nobody has data in it yet.
        let plan = bundle.plan_move(dest, &[], 0, rules)?;
        return finish(app, &bundle, plan, &[], None, dry_run);
    }
    // What can't work is said before the passphrase is asked for.
    let (data_bytes, left) = bundle.personal()?;
    bundle.plan_move(dest, &[], data_bytes, rules)?;
    let open = app.unlock(&bundle, &OnboardingArguments::default())?;
    let models = added::read(&bundle.added_models(), &open.identity.models_key());
    let added: Vec<Entry> = added_entries(models.map_err(tilekit::library::LibraryError::from)?).collect();
    let plan = bundle.plan_move(dest, &added, data_bytes, rules)?;
    let mut database =
        |path: &Path| open.store.backup(path, open.identity.database_key()).map_err(|error| Box::new(error).into());
    let done = finish(app, &bundle, plan, &left, Some(Personal { database: &mut database }), dry_run);
    done.and(open.close())
}

fn finish(
    app: &App,
    bundle: &Bundle<Verified>,
    plan: MovePlan,
    left: &[String],
    personal: Option<Personal>,
    dry_run: bool,
) -> Result<(), Failure> {
    if dry_run {
        return would(app, &plan, "copy");
    }
    let (total, with_data) = (plan.bytes, personal.is_some());
    let (made, medium) = with_bars(app, total, |sink| moving::copy(bundle, plan, personal, sink))?;
    warn_of_memory(app, medium);
    for name in left {
        app.terminal.warn(&format!("`data/{name}` isn't known to Tiles and wasn't copied"));
    }
    let root = made.root().display().to_string();
    let shown = json!({ "bundle": root, "bytes": total, "data": with_data, "not_copied": left, "read_back": true });
    app.print(&shown, || {
        let data = if with_data { " with your data" } else { "" };
        format!("{root} is a copy of this bundle{data} ({}), and was read back", size(total))
    })?;
    app.terminal.say("It is safe to remove once your system has ejected it.");
    if with_data {
        app.terminal.say("From now on the two go separate ways: what is said on one isn't on the other.");
    }
    Ok(())
}

/// Says what would be done.
pub(super) fn would(app: &App, plan: &MovePlan, verb: &str) -> Result<(), Failure> {
    let folder = plan.folder.display().to_string();
    let shown = json!({
        "dry_run": true, "folder": folder, "files": plan.entries.len(), "bytes": plan.bytes,
        "needed_bytes": plan.needed_bytes, "goes_on": plan.goes_on, "removed": plan.removed,
    });
    app.print(&shown, || {
        let mut text = format!("would {verb} {folder} ({} files, {})\n", plan.entries.len(), size(plan.needed_bytes));
        plan.removed.iter().for_each(|path| text.push_str(&format!("would remove {path}\n")));
        text
    })
}
