//! `tiles bundle build`: a sealed bundle out of a source tree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tilekit::bundle::build::{BuildPlan, Pieces, Progress};
use tilekit::bundle::{Bundle, Found, Holder, seal_key};
use tilekit::disk;
use tilekit::host::{HOST_FOLDERS, Host};
use tilekit::library;
use tilekit::manifest::signature::SealPublicKey;

use crate::app::App;
use crate::commands::model::with_progress;
use crate::failure::{Code, Failure};

/// Builds and seals a bundle.
pub(super) fn run(
    app: &App,
    recipe: &Path,
    dest: &Path,
    programs: &[String],
    models: &[String],
    key_path: &Path,
) -> Result<(), Failure> {
    let host = Host::probe()?;
    let programs = by_host(&host, programs)?;
    key_path
        .parent()
        .map_or(Ok(()), |folder| if folder.as_os_str().is_empty() { Ok(()) } else { disk::create_folder(folder) })?;
    let (key, made) = seal_key::load_or_create(key_path)?;
    if made {
        app.terminal.say(&format!("Made a key to seal bundles with: {}. Keep it to yourself.", key_path.display()));
    }
    let public = SealPublicKey(key.verifying_key().to_bytes());
    let sealed = is_sealed(dest);
    let mut folders = BTreeMap::new();
    for model in models {
        let Some((name, source)) = model.split_once('=') else {
            return Err(Failure::new(Code::Usage, format!("`--model {model}` has no `=`"), "write NAME=PATH"));
        };
        let folder = dest.join("models").join(name);
        if !disk::exists(&folder) {
            let partial = dest.join("models").join(format!("{name}.partial"));
            disk::remove_folder(&partial)?;
            with_progress(app, |sink| library::convert(Path::new(source), name, &partial, sink))?;
            disk::rename(&partial, &folder)?;
            folders.insert(name.to_owned(), folder);
        } else if !sealed {
            folders.insert(name.to_owned(), folder);
        }
    }
    let pieces = Pieces { version: env!("CARGO_PKG_VERSION").into(), programs, models: folders };
    let plan = BuildPlan::new(recipe, dest, &pieces, public)?;
    let bar = app.terminal.progress("Building", plan.bytes_to_write());
    let holder = Holder::new(app.clock.now(), &host, std::process::id());
    let bundle = plan.execute(&key, holder, &mut |progress| {
        if let Progress::Written(bytes) = progress {
            bar.add(bytes);
        }
    })?;
    drop(bar);
    plan.left_out.iter().for_each(|path| app.terminal.say(&format!("left out: {path} (not given)")));
    app.terminal.say(&format!("{} is sealed and was read back.", bundle.root().display()));
    Ok(())
}

/// The programs by the host that each is for: `HOST=FILE`, or `FILE` for this one.
fn by_host(host: &Host, programs: &[String]) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let mut by_host = BTreeMap::new();
    for program in programs {
        let (folder, file) = match program.split_once('=') {
            Some((folder, file)) if HOST_FOLDERS.contains(&folder) => (folder, file),
            _ => (host.folder()?, program.as_str()),
        };
        if by_host.insert(folder.to_owned(), PathBuf::from(file)).is_some() {
            let hint = format!("give one for each of {}", HOST_FOLDERS.join(", "));
            return Err(Failure::new(Code::Usage, format!("two programs are given for {folder}"), hint));
        }
    }
    Ok(by_host)
}

/// Whether a bundle is there already, whose models stay.
fn is_sealed(dest: &Path) -> bool {
    Bundle::<Found>::find(Some(dest), dest).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_for_the_host_that_is_named_or_for_this_one() {
        let host = Host::probe().expect("this machine answers");
        let own = host.folder().expect("it is supported");
        let other = HOST_FOLDERS.into_iter().find(|folder| *folder != own).expect("there are several");
        let of = |programs: &[&str]| by_host(&host, &programs.iter().map(|text| (*text).into()).collect::<Vec<_>>());
        let both = of(&["made/a=b", &format!("{other}=made/c=d")]).expect("one for each host");
        let expected = [(own.to_owned(), "made/a=b".into()), (other.to_owned(), "made/c=d".into())];
        assert_eq!(both, BTreeMap::from(expected));
        let error = of(&["a", &format!("{own}=b")]).expect_err("two for one host");
        assert_eq!((error.code, error.error.to_string()), (Code::Usage, format!("two programs are given for {own}")));
    }
}
