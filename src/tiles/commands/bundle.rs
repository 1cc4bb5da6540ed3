//! `tiles bundle`: what the bundle is, whether it is whole, and building one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use tilekit::bundle::build::{BuildPlan, Pieces, Progress};
use tilekit::bundle::{Bundle, Found, Holder, Seal, Verified, seal_key};
use tilekit::disk;
use tilekit::host::{HOST_FOLDERS, Host};
use tilekit::library;
use tilekit::manifest::signature::SealPublicKey;

use super::model::{size, with_progress};
use crate::app::App;
use crate::args::BundleCommand;
use crate::failure::{Code, Failure};

/// Runs it.
pub(crate) fn run(app: &App, command: BundleCommand) -> Result<(), Failure> {
    match command {
        BundleCommand::Info => info(app, &app.bundle()?),
        BundleCommand::Verify { full } => verify(app, &app.bundle()?, full),
        BundleCommand::Build { recipe, dest, program, model, seal_key } => {
            build(app, &recipe, &dest, &program, &model, &seal_key)
        }
    }
}

/// Who sealed the bundle, in words.
pub(crate) fn sealed_by(bundle: &Bundle<Verified>) -> String {
    match bundle.seal() {
        Seal::Release => "released, sealed by the makers of this program".into(),
        Seal::SelfBuilt { short_key } => format!("self-built, sealed by {short_key}"),
    }
}

fn info(app: &App, bundle: &Bundle<Verified>) -> Result<(), Failure> {
    let manifest = bundle.manifest();
    let bytes: u64 = manifest.files.iter().map(|entry| entry.size).sum();
    let root = bundle.root().display().to_string();
    let shown = json!({
        "root": root, "product": manifest.product, "version": manifest.version, "generation": manifest.generation,
        "seal": sealed_by(bundle), "files": manifest.files.len(), "bytes": bytes,
        "read_only": bundle.is_read_only(), "not_part_of_it": bundle.strangers(),
    });
    app.print(&shown, || {
        let mut text = format!(
            "{} {} (generation {})\nfolder   {root}\nseal     {}\nfiles    {}, {}\n",
            manifest.product,
            manifest.version,
            manifest.generation,
            sealed_by(bundle),
            manifest.files.len(),
            size(bytes)
        );
        if bundle.is_read_only() {
            text.push_str("medium   write-protected\n");
        }
        text
    })
}

fn verify(app: &App, bundle: &Bundle<Verified>, full: bool) -> Result<(), Failure> {
    // Signature and small files were verified when the bundle was opened.
    if full {
        let total = bundle.manifest().files.iter().filter(|e| e.chunks_sha256.is_some()).map(|e| e.size).sum();
        let bar = app.terminal.progress("Verifying", total);
        bundle.verify_large(&mut |bytes| bar.add(bytes))?;
    }
    let files = bundle.manifest().files.len();
    app.print(&json!({ "whole": true, "full": full, "files": files, "seal": sealed_by(bundle) }), || {
        let how = if full { "every byte" } else { "signature, small files and sizes; `--full` reads the weights too" };
        format!("{files} files are as sealed ({how}); {}", sealed_by(bundle))
    })
}

fn build(
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
