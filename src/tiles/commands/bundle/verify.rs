//! `tiles bundle verify`: the quick look that each start takes, and every byte.

use serde_json::{Value, json};
use tilekit::bundle::examine::{Damage, Examination, Flaw, Resume, examine};
use tilekit::bundle::{Bundle, Found, Listed, Sealed, Verified};
use tilekit::identity::KeyFile;
use tilekit::library::{LibraryError, added};
use tilekit::manifest::Entry;

use super::{sealed_by, size, total, with_bar};
use crate::app::App;
use crate::args::OnboardingArguments;
use crate::failure::{Code, Failure};
use crate::terminal::escape::neutralise_line;

/// How many of the damages are told one by one on a terminal; `--json` has them all.
const SHOWN_MAX: usize = 50;

/// What was verified when the bundle was opened.
pub(super) fn quick(app: &App, bundle: &Bundle<Verified>) -> Result<(), Failure> {
    let files = bundle.manifest().files.len();
    app.print(&json!({ "whole": true, "full": false, "files": files, "seal": sealed_by(bundle) }), || {
        let how = "signature, small files and sizes; `--full` reads the weights too";
        format!("{files} files are as sealed ({how}); {}", sealed_by(bundle))
    })
}

/// Reads every byte.
pub(super) fn full(app: &App, shipped_only: bool, restart: bool) -> Result<(), Failure> {
    let found = Bundle::<Found>::find(app.global.bundle.as_deref(), &app.environment.executable)?;
    let bundle = found.sealed(App::trust())?;
    let listed = listed(app, &bundle, shipped_only)?;
    let mut resume = Resume::new(&bundle.verify_state(), &listed.entries, app.clock.now());
    // A program from elsewhere, which is there because the drive isn't trusted, doesn't take the drive's word.
    let is_own = app.environment.executable.starts_with(bundle.root());
    let goes_on = is_own && !bundle.is_read_only();
    if restart && goes_on {
        resume.forget();
    }
    let mut examined = with_bar(app, "Verifying", total(&listed.entries), |sink| {
        let resume = goes_on.then_some(&mut resume);
        examine(bundle.root(), &listed.entries, listed.added != Added::LeftOut, resume, sink)
    })?;
    if listed.added == Added::Damaged {
        examined.damaged.push(Damage { path: "data/models.toml".into(), flaw: Flaw::Content });
    }
    report(app, &bundle, &listed, &examined)
}

/// Reads every byte of what an installed Tiles has a list of: the models. Nothing vouches for the program.
pub(super) fn installed(app: &App) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    let open = app.unlock(&bundle, &OnboardingArguments::default())?;
    let models = added::read(&bundle.added_models(), &open.identity.models_key()).map_err(LibraryError::from);
    open.close()?;
    let listed = AllListed { entries: added_entries(models?).collect(), added: Added::Known };
    let examined = with_bar(app, "Verifying", total(&listed.entries), |sink| {
        examine(bundle.root(), &listed.entries, true, None, sink)
    })?;
    app.terminal.say(
        "This Tiles is installed on the computer: the program itself isn't covered, as no sealed list is over it. The \
         database verifies itself when it is read.",
    );
    report(app, &bundle, &listed, &examined)
}

/// What is known of the models that the person added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// There are none, or all are in the list.
    Known,
    /// The person left them out.
    LeftOut,
    /// Their list is damaged.
    Damaged,
}

/// Every file that a list vouches for.
pub(super) struct AllListed {
    /// The files, with paths below the bundle's root.
    pub(super) entries: Vec<Entry>,
    /// Whether those of added models are among them.
    pub(super) added: Added,
}

/// Every listed file: those of the manifest and, with the passphrase, those of added models.
pub(super) fn listed(app: &App, bundle: &Bundle<Sealed>, shipped_only: bool) -> Result<AllListed, Failure> {
    let mut entries = bundle.manifest().files.clone();
    if !added::exists(&bundle.added_models()) {
        return Ok(AllListed { entries, added: Added::Known });
    }
    if shipped_only {
        return Ok(AllListed { entries, added: Added::LeftOut });
    }
    let (_, unlocked) = app.open_key_file(&KeyFile::new(&bundle.key_folder())).map_err(|failure| Failure {
        hint: Some("the list of added models needs the passphrase; `--shipped` leaves these models out".into()),
        ..failure
    })?;
    match added::read(&bundle.added_models(), &unlocked.identity.models_key()) {
        Ok(models) => {
            entries.extend(added_entries(models));
            Ok(AllListed { entries, added: Added::Known })
        }
        Err(_) => Ok(AllListed { entries, added: Added::Damaged }),
    }
}

/// The files of added models, with paths below the bundle's root.
pub(crate) fn added_entries(models: added::Added) -> impl Iterator<Item = Entry> {
    models.into_iter().flat_map(|(name, files)| {
        files.into_iter().map(move |entry| Entry { path: format!("models/{name}/{}", entry.path), ..entry })
    })
}

/// A damage as data.
pub(super) fn describe(damage: &Damage) -> Value {
    let (flaw, offset) = match damage.flaw {
        Flaw::Missing => ("missing", None),
        Flaw::WrongKind => ("wrong kind", None),
        Flaw::Size { .. } => ("size", None),
        Flaw::Content => ("content", None),
        Flaw::Chunk { offset } => ("chunk", Some(offset)),
        Flaw::Sidecar => ("sidecar", None),
    };
    json!({ "path": damage.path, "flaw": flaw, "offset": offset, "text": damage.to_string() })
}

/// Lists damages on stderr.
pub(super) fn warn_all<'a>(app: &App, damages: impl ExactSizeIterator<Item = &'a Damage>) {
    let count = damages.len();
    damages.take(SHOWN_MAX).for_each(|damage| app.terminal.warn(&neutralise_line(&damage.to_string())));
    if count > SHOWN_MAX {
        app.terminal.warn(&format!("and {} more; `--json` lists them all", count - SHOWN_MAX));
    }
}

fn report(app: &App, bundle: &Bundle<impl Listed>, listed: &AllListed, examined: &Examination) -> Result<(), Failure> {
    let Examination { files, bytes, .. } = *examined;
    let added = match listed.added {
        Added::Known => "verified",
        Added::LeftOut => "left out",
        Added::Damaged => "list damaged",
    };
    let damaged: Vec<Value> = examined.damaged.iter().map(describe).collect();
    let json = json!({
        "whole": examined.is_whole(), "full": true, "files": files, "bytes": bytes, "seal": sealed_by(bundle),
        "added_models": added, "damaged": damaged, "unlisted": examined.unlisted,
        "not_part_of_it": examined.strangers, "continued_bytes": examined.continued_bytes,
        "repair": if examined.damaged.is_empty() { Value::Null } else { json!("tiles bundle repair --from PATH") },
    });
    for name in &examined.strangers {
        app.terminal.say(&format!("`{}` isn't part of the bundle, and is never used", neutralise_line(name)));
    }
    if examined.is_whole() {
        return app.print(&json, || {
            let before = match examined.continued_bytes {
                0 => String::new(),
                bytes => format!(", {} of it by the verification that was interrupted", size(bytes)),
            };
            let left_out = if listed.added == Added::LeftOut { "; added models were left out" } else { "" };
            format!(
                "{files} files are as sealed (every byte, {}{before}){left_out}; {}",
                size(bytes),
                sealed_by(bundle)
            )
        });
    }
    if app.global.json {
        app.print(&json, String::new)?;
    }
    warn_all(app, examined.damaged.iter());
    for path in &examined.unlisted {
        app.terminal.warn(&format!("`{}` doesn't belong to the bundle", neutralise_line(path)));
    }
    let what = match (examined.damaged.len(), examined.unlisted.len()) {
        (0, 1) => "1 file doesn't belong to the bundle".to_owned(),
        (0, unlisted) => format!("{unlisted} files don't belong to the bundle"),
        (1, _) => "1 place of the bundle isn't as sealed".to_owned(),
        (damaged, _) => format!("{damaged} places of the bundle aren't as sealed"),
    };
    let hint = match (examined.damaged.is_empty(), listed.added) {
        (true, _) => "remove it; your own files may lie beside the bundle",
        (false, Added::Damaged) => {
            "run `tiles bundle repair --from PATH` with an undamaged bundle or archive; import added models again"
        }
        (false, _) => "run `tiles bundle repair --from PATH` with an undamaged bundle or an archive of one",
    };
    Err(Failure::new(Code::Integrity, what, hint))
}
