//! A bundle of an installed program itself, where there is none to copy: this program for this host, and its texts.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tilekit::bundle::build::{BuildPlan, Pieces, Progress};
use tilekit::bundle::{Bundle, Holder, Trust, Verified, seal_key};
use tilekit::disk;
use tilekit::host::Host;
use tilekit::manifest::signature::SealPublicKey;

use super::size;
use crate::app::App;
use crate::failure::{Code, Failure};

/// What a bundle has beside its programs: path, role and content.
const TEXTS: [(&str, &str, &[u8]); 5] = [
    ("tiles", "launcher", include_bytes!("../../../../bundle/tiles")),
    ("Tiles.command", "launcher", include_bytes!("../../../../bundle/Tiles.command")),
    ("README.txt", "doc", include_bytes!("../../../../bundle/README.txt")),
    ("LICENSE-MIT", "doc", include_bytes!("../../../../bundle/LICENSE-MIT")),
    ("LICENSE-APACHE", "doc", include_bytes!("../../../../bundle/LICENSE-APACHE")),
];
/// What the Mac's program loads from its own folder.
const BESIDE: [(&str, &str); 3] = [("libmlx.dylib", "program"), ("mlx.metallib", "program"), ("LICENSE-MLX", "doc")];
/// The key that seals it, in the folder of the installed Tiles.
const SEAL_KEY_NAME: &str = "seal.key";
/// Where recipe and texts lie while it is built: what a cut leaves of it, `tiles doctor --clean` removes.
const SOURCE_NAME: &str = "source.partial";

/// Builds and seals it in `dest`; `None` where only said what would be done.
pub(super) fn build(
    app: &App,
    dest: &Path,
    home: &Bundle<Verified>,
    dry_run: bool,
) -> Result<Option<Bundle<Verified>>, Failure> {
    if matches!(App::trust(), Trust::Release(_)) {
        let why = "this program trusts its makers' seal alone, so it can't seal a bundle by itself";
        let hint = "get a released bundle, make it at DEST with `tiles bundle import FILE DEST`, and run this again";
        return Err(Failure::new(Code::Usage, why, hint));
    }
    let source = home.root().join(SOURCE_NAME);
    disk::remove_folder(&source)?;
    disk::create_folder(&source)?;
    let built = build_from(app, dest, home, &source, dry_run);
    disk::remove_folder(&source)?;
    built
}

fn build_from(
    app: &App,
    dest: &Path,
    home: &Bundle<Verified>,
    source: &Path,
    dry_run: bool,
) -> Result<Option<Bundle<Verified>>, Failure> {
    let host = Host::probe()?;
    let folder = host.folder()?;
    let mut recipe = String::from("recipe = 1\nproduct = \"Tiles\"\n");
    let mut piece = |path: &str, role: &str, from: &str| {
        recipe.push_str(&format!(
            "[[file]]\npath = \"{path}\"\nrole = \"{role}\"\nsource = \"{from}\"\nlicence = \"MIT OR Apache-2.0\"\n"
        ));
    };
    for (path, role, content) in TEXTS {
        disk::write(&source.join(path), content)?;
        piece(path, role, &format!("tree:{path}"));
    }
    piece(&format!("bin/{folder}/tiles"), "program", "build:this-program");
    for (name, role) in BESIDE {
        piece(&format!("bin/{folder}/{name}"), role, &format!("pypi:mlx-metal==0/{name}"));
    }
    let path = source.join("recipe.toml");
    disk::write(&path, recipe.as_bytes())?;
    let (key, made) = match dry_run {
        // A key is no plan: this one seals nothing.
        true => seal_key::load_or_create(&source.join(SEAL_KEY_NAME))?,
        false => seal_key::load_or_create(&home.root().join(SEAL_KEY_NAME))?,
    };
    let programs = BTreeMap::from([(folder.to_owned(), app.environment.executable.clone())]);
    let pieces = Pieces { version: env!("CARGO_PKG_VERSION").into(), programs, models: BTreeMap::new() };
    let plan = BuildPlan::new(&path, dest, &pieces, SealPublicKey(key.verifying_key().to_bytes()))?;
    if dry_run {
        let (folder, bytes) = (dest.display().to_string(), plan.bytes_to_write());
        let shown = json!({ "dry_run": true, "folder": folder, "files": plan.steps.len(), "bytes": bytes });
        app.print(&shown, || {
            format!("would build {folder} of this program ({}), and carry everything into it", size(bytes))
        })?;
        return Ok(None);
    }
    if made {
        app.terminal.say(&format!("Made a key to seal bundles with: {}.", home.root().join(SEAL_KEY_NAME).display()));
    }
    let bar = app.terminal.progress("Building", plan.bytes_to_write());
    let holder = Holder::new(app.clock.now(), &host, std::process::id());
    let built = plan.execute(&key, holder, &mut |progress| {
        if let Progress::Written(bytes) = progress {
            bar.add(bytes);
        }
    })?;
    drop(bar);
    app.terminal.say(&format!("{} has this program, for {folder} alone, and was read back.", built.root().display()));
    Ok(Some(built))
}
