//! Tests of building: what is refused before a byte is written, what comes out, and that a person's data stays.

use std::fs;

use super::*;
use crate::bundle::Seal;
use crate::manifest::FILE_BYTES_MAX;
use crate::test_folder::TestFolder;
use crate::time::Timestamp;

const RECIPE: &str = r#"recipe = 1
product = "Tiles"
[[file]]
path = "tiles"
role = "launcher"
source = "tree:bundle/tiles"
licence = "MIT"
[[file]]
path = "bin/linux-x86_64/tiles"
role = "program"
source = "build:x86_64-unknown-linux-gnu"
licence = "MIT"
[[file]]
path = "bin/macos-arm64/tiles"
role = "program"
source = "build:aarch64-apple-darwin"
licence = "MIT"
[[file]]
path = "bin/macos-arm64/libx.dylib"
role = "program"
source = "pypi:x==1/lib/libx.dylib"
licence = "MIT"
[[file]]
path = "models/m/model.toml"
role = "model"
source = "tree:models/m/model.toml"
licence = "MIT"
[[file]]
path = "models/m/"
role = "model"
source = "pypi:x==1/x.gguf"
licence = "MIT"
"#;

struct Workshop {
    folder: TestFolder,
    key: SigningKey,
}

impl Workshop {
    fn new() -> Self {
        let workshop = Self { folder: TestFolder::new(), key: SigningKey::from_bytes(&[7; 32]) };
        workshop.write("tree/MANIFEST.toml", RECIPE.as_bytes());
        workshop.write("tree/bundle/tiles", b"#!/bin/sh\n");
        workshop.write("tree/models/m/model.toml", b"name = \"m\"\n");
        workshop.write("made/linux", &vec![5; CHUNKED_ABOVE_BYTES as usize + 1]);
        workshop.write("made/macos/tiles", b"mac");
        workshop.write("made/macos/libx.dylib", b"library");
        workshop.write("made/m/config.json", b"{}");
        workshop.write("made/m/model.toml", b"written by the import");
        workshop.write("made/m/config.json.chunks", b"stale");
        workshop.write("made/m/.DS_Store", b"litter");
        workshop
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("it can be made");
        fs::write(path, content).expect("it can be written");
    }

    fn pieces(&self, programs: &[(&str, &str)], models: &[(&str, &str)]) -> Pieces {
        let located = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, path)| ((*name).to_owned(), self.path(path))).collect::<BTreeMap<_, _>>()
        };
        Pieces { version: "1.0.0".into(), programs: located(programs), models: located(models) }
    }

    fn plan(&self, pieces: &Pieces) -> Result<BuildPlan, BuildError> {
        let seal = SealPublicKey(self.key.verifying_key().to_bytes());
        BuildPlan::new(&self.path("tree/MANIFEST.toml"), &self.path("drive"), pieces, seal)
    }

    fn build(&self, pieces: &Pieces) -> Result<Bundle<Verified>, BuildError> {
        self.plan(pieces)?.execute(&self.key, holder(), &mut |_| {})
    }

    fn all(&self) -> Pieces {
        self.pieces(&[("linux-x86_64", "made/linux"), ("macos-arm64", "made/macos/tiles")], &[("m", "made/m")])
    }
}

fn holder() -> Holder {
    Holder { host: "h".into(), pid: 1, boot_id: "b".into(), since: Timestamp::from_ms(0) }
}

fn paths(bundle: &Bundle<Verified>) -> Vec<&str> {
    bundle.manifest().files.iter().map(|entry| entry.path.as_str()).collect()
}

const ALL: [&str; 6] = [
    "bin/linux-x86_64/tiles",
    "bin/macos-arm64/libx.dylib",
    "bin/macos-arm64/tiles",
    "models/m/config.json",
    "models/m/model.toml",
    "tiles",
];

#[test]
fn a_bundle_is_built_sealed_and_read_back() {
    let workshop = Workshop::new();
    let plan = workshop.plan(&workshop.all()).expect("everything is there");
    assert!(!workshop.path("drive").exists(), "a plan writes nothing");
    assert!(plan.left_out.is_empty() && plan.removed.is_empty() && plan.kept.is_empty());
    let (mut written, mut read_back) = (0, 0);
    let built = plan.execute(&workshop.key, holder(), &mut |progress| match progress {
        Progress::Written(bytes) => written += bytes,
        Progress::ReadBack(bytes) => read_back += bytes,
    });
    let built = built.expect("it can be built");
    assert_eq!((written, read_back), (plan.bytes_to_write(), plan.bytes_to_write()));
    assert_eq!(paths(&built), ALL);
    assert_eq!(built.manifest().generation, 1);
    assert_eq!(built.seal(), &Seal::Release);
    assert!(built.data().is_dir());
    assert!(workshop.path("drive/.metadata_never_index").is_file());
    assert!(!workshop.path("drive/models/m/config.json.chunks").exists());
    assert!(!workshop.path("drive/models/m/.DS_Store").exists());
    assert_eq!(fs::read(workshop.path("drive/models/m/model.toml")).expect("is there"), b"name = \"m\"\n");
    use std::os::unix::fs::PermissionsExt as _;
    for path in ["drive/tiles", "drive/bin/linux-x86_64/tiles"] {
        assert_eq!(fs::metadata(workshop.path(path)).expect("is there").permissions().mode() & 0o111, 0o111, "{path}");
    }
    let again = Workshop::new();
    again.build(&again.all()).expect("it can be built");
    for name in [MANIFEST_NAME, SIGNATURE_NAME] {
        let read = |workshop: &Workshop| fs::read(workshop.path("drive").join(name)).expect("is there");
        assert_eq!(read(&workshop), read(&again), "the same pieces make the same {name}");
    }
}

#[test]
fn building_again_brings_new_programs_and_keeps_data_and_what_was_not_given() {
    let workshop = Workshop::new();
    workshop.build(&workshop.all()).expect("it can be built");
    workshop.write("drive/data/tiles.db", b"precious");
    workshop.write("drive/letter.txt", b"mine");
    workshop.write("made/new", b"new and short");
    let pieces = workshop.pieces(&[("linux-x86_64", "made/new")], &[]);
    let plan = workshop.plan(&pieces).expect("the rest is there");
    let kept: Vec<_> = plan.kept.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(
        kept,
        ["bin/macos-arm64/libx.dylib", "bin/macos-arm64/tiles", "models/m/config.json", "models/m/model.toml"]
    );
    assert!(plan.left_out.is_empty(), "{:?}", plan.left_out);
    let built = plan.execute(&workshop.key, holder(), &mut |_| {}).expect("it can be built");
    assert_eq!(paths(&built), ALL);
    assert_eq!(built.manifest().generation, 2);
    assert_eq!(fs::read(workshop.path("drive/bin/linux-x86_64/tiles")).expect("is there"), b"new and short");
    assert!(!workshop.path("drive/bin/linux-x86_64/tiles.chunks").exists(), "the old sidecar went");
    assert_eq!(fs::read(workshop.path("drive/data/tiles.db")).expect("is there"), b"precious");
    assert_eq!(fs::read(workshop.path("drive/letter.txt")).expect("is there"), b"mine");

    // A recipe without a host: its program goes.
    let start = RECIPE.find("[[file]]\npath = \"bin/macos-arm64").expect("it is in the recipe");
    let end = RECIPE.find("[[file]]\npath = \"models/m/model.toml").expect("it is in the recipe");
    workshop.write("tree/MANIFEST.toml", [&RECIPE[..start], &RECIPE[end..]].concat().as_bytes());
    let plan = workshop.plan(&pieces).expect("the rest is there");
    assert_eq!(plan.removed, ["bin/macos-arm64/libx.dylib", "bin/macos-arm64/tiles"]);
    plan.execute(&workshop.key, holder(), &mut |_| {}).expect("it can be built");
    assert!(!workshop.path("drive/bin/macos-arm64/tiles").exists());
}

#[test]
fn what_a_program_loads_comes_and_goes_with_it() {
    let workshop = Workshop::new();
    let built = workshop.build(&workshop.all()).expect("it can be built");
    assert_eq!(fs::read(built.root().join("bin/macos-arm64/libx.dylib")).expect("is there"), b"library");

    // A program without it, such as one linked otherwise, doesn't get that of the old one.
    workshop.write("made/alone/tiles", b"mac, alone");
    let plan = workshop.plan(&workshop.pieces(&[("macos-arm64", "made/alone/tiles")], &[])).expect("the rest is kept");
    assert_eq!(plan.removed, ["bin/macos-arm64/libx.dylib"]);
    assert_eq!(plan.left_out, ["bin/macos-arm64/libx.dylib"]);
    plan.execute(&workshop.key, holder(), &mut |_| {}).expect("it can be built");
    assert!(!workshop.path("drive/bin/macos-arm64/libx.dylib").exists());
    let again = workshop.build(&workshop.all()).expect("it can be built");
    assert_eq!(paths(&again), ALL);
}

#[test]
fn a_kept_file_that_was_damaged_is_not_sealed_as_it_is() {
    let workshop = Workshop::new();
    workshop.build(&workshop.all()).expect("it can be built");
    let path = workshop.path("drive/bin/linux-x86_64/tiles");
    let mut bytes = fs::read(&path).expect("is there");
    bytes[5_000_000] ^= 1;
    fs::write(&path, bytes).expect("it can be written");
    let error = workshop.build(&workshop.pieces(&[], &[("m", "made/m")])).expect_err("the program is damaged");
    assert!(error.to_string().contains("linux-x86_64/tiles` is damaged in the"), "{error}");
    workshop.build(&workshop.all()).expect("given again, it is healed");
}

#[test]
fn a_model_that_was_imported_in_place_is_sealed_where_it_is() {
    let workshop = Workshop::new();
    let weights = vec![9; CHUNKED_ABOVE_BYTES as usize + 3];
    workshop.write("drive/models/m/model.safetensors", &weights);
    let pieces = workshop.pieces(&[("linux-x86_64", "made/linux")], &[("m", "drive/models/m")]);
    let plan = workshop.plan(&pieces).expect("only the model is there");
    assert_eq!(plan.left_out, ["bin/macos-arm64/tiles", "bin/macos-arm64/libx.dylib"]);
    assert!(plan.steps.iter().any(|step| step.is_in_place && step.path == "models/m/model.safetensors"));
    assert!(plan.bytes_to_write() < 9 << 20);
    let built = plan.execute(&workshop.key, holder(), &mut |_| {}).expect("it can be built");
    assert!(paths(&built).contains(&"models/m/model.safetensors"));
    assert_eq!(fs::read(workshop.path("drive/models/m/model.safetensors")).expect("is there"), weights);
}

#[test]
fn what_can_not_be_built_is_refused_before_a_byte_is_written() {
    let linux = [("linux-x86_64", "made/linux")];
    type Prepare = fn(&Workshop);
    let rows: &[(Prepare, Pieces, &str)] = &{
        let of = |programs: &[(&str, &str)], models: &[(&str, &str)]| {
            let own = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).into(), PathBuf::from(b))).collect();
            Pieces { version: "1.0.0".into(), programs: own(programs), models: own(models) }
        };
        [
            (|_| {}, of(&[], &[("m", "made/m")]), "no program was given"),
            (|_| {}, of(&[("windows", "made/linux")], &[]), "no piece `bin/windows/tiles`"),
            (|_| {}, of(&linux, &[("n", "made/m")]), "no piece `models/n`"),
            (|_| {}, of(&[("linux-x86_64", "made/none")], &[]), "made/none` doesn't exist"),
            (|w| w.write("drive/letter.txt", b"mine"), of(&linux, &[]), "isn't empty, and isn't a bundle"),
            (|w| w.write("drive/data/tiles.db", b"mine"), of(&linux, &[]), "isn't empty, and isn't a bundle"),
            (|w| w.write("drive/models/mine/x", b"mine"), of(&linux, &[]), "isn't empty, and isn't a bundle"),
            (|w| w.write("drive", b"a file"), of(&linux, &[]), "isn't empty, and isn't a bundle"),
            (|w| w.write("drive/MANIFEST.toml", b"recipe = 1"), of(&linux, &[]), "is Tiles' source tree"),
            (|w| w.write("drive/MANIFEST.toml", b"format = 9"), of(&linux, &[]), "can't be believed"),
            (|w| w.write("tree/MANIFEST.toml", b"recipe = 2"), of(&linux, &[]), "can't be used"),
            (|w| w.write("made/m/a b", b""), of(&linux, &[("m", "made/m")]), "has a character other than"),
            (|w| w.write("made/m/CONFIG.json", b""), of(&linux, &[("m", "made/m")]), "can't be used"),
            (|w| link(&w.path("made/m/link")), of(&linux, &[("m", "made/m")]), "it is a link or something else"),
            (huge, of(&linux, &[("m", "made/m")]), "a drive's file at most 4294967295"),
            (many_large, of(&linux, &[("m", "made/m")]), "bytes free, and the bundle needs"),
        ]
    };
    for (prepare, pieces, expected) in rows {
        let workshop = Workshop::new();
        prepare(&workshop);
        let mut pieces = pieces.clone();
        for path in pieces.programs.values_mut().chain(pieces.models.values_mut()) {
            *path = workshop.folder.path().join(&path);
        }
        let before = listing(&workshop.path("drive"));
        let error = workshop.build(&pieces).expect_err(expected);
        assert!(error.to_string().contains(expected), "`{error}` instead of `{expected}`");
        assert!(error.hint().is_some(), "{error}");
        assert_eq!(listing(&workshop.path("drive")), before, "{expected}");
    }
}

#[test]
fn a_build_that_was_cut_goes_on_with_the_same_command() {
    let workshop = Workshop::new();
    let all = workshop.all();
    let target = workshop.path("drive");
    let total = {
        let mut steps = 0;
        let plan = workshop.plan(&all).expect("it can be built");
        plan.execute(&workshop.key, holder(), &mut |_| steps += 1).expect("it can be built");
        steps
    };
    let whole: Vec<_> = listing(&target);
    assert!(total > 5 && !target.join(BEGUN_NAME).exists(), "{total}");
    for cut_at in 1..=total {
        fs::remove_dir_all(&target).expect("it is there");
        let plan = workshop.plan(&all).expect("it can be built");
        let mut steps = 0;
        let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            plan.execute(&workshop.key, holder(), &mut |_| {
                steps += 1;
                assert!(steps < cut_at, "power goes");
            })
        }));
        assert!(cut.is_err());
        workshop.write("drive/bin/linux-x86_64/tiles.partial", b"torn");
        let bundle = workshop.build(&all).unwrap_or_else(|error| panic!("cut at {cut_at}: {error}"));
        assert_eq!(bundle.manifest().generation, 1);
        fs::remove_file(target.join("bin/linux-x86_64/tiles.partial")).unwrap_or_default();
        assert_eq!(listing(&target), whole, "cut at {cut_at}");
    }
    // At the last step the list is half named, as exFAT may leave it.
    fs::remove_dir_all(&target).expect("it is there");
    workshop.write("drive/build.partial", BEGUN);
    workshop.write("drive/MANIFEST.toml", b"");
    workshop.build(&all).expect("it goes on");
    // What isn't ours is nobody's beginning.
    for (name, content) in [("build.partial/x", &b"x"[..]), ("other", BEGUN)] {
        fs::remove_dir_all(&target).expect("it is there");
        workshop.write(&format!("drive/{name}"), content);
        assert!(matches!(workshop.plan(&all), Err(BuildError::Occupied { .. })), "{name}");
    }
    fs::remove_dir_all(&target).expect("it is there");
    workshop.write("drive/build.partial", b"a build of another kind");
    workshop.write("drive/bin/mine", b"precious");
    assert!(matches!(workshop.plan(&all), Err(BuildError::Occupied { .. })));
}

fn link(path: &Path) {
    std::os::unix::fs::symlink("/etc/hostname", path).expect("it can be linked");
}

fn sparse(path: &Path, bytes: u64) {
    fs::File::create(path).and_then(|file| file.set_len(bytes)).expect("it can be made");
}

fn huge(workshop: &Workshop) {
    sparse(&workshop.path("made/m/w"), FILE_BYTES_MAX + 1);
}

/// Sparse files that have no room on any drive: 1000 of almost 4 GiB.
fn many_large(workshop: &Workshop) {
    (0..1000).for_each(|i| sparse(&workshop.path(&format!("made/m/w{i}")), FILE_BYTES_MAX));
}

fn listing(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_link_on_the_drive_does_not_lead_the_build_out_of_it() {
    for path in ["bin", "bin/linux-x86_64/tiles.partial", "data", "data/lock", "MANIFEST.sig.partial", "models/m"] {
        let workshop = Workshop::new();
        workshop.build(&workshop.all()).expect("it can be built");
        workshop.write("victim/keep", b"precious");
        let link = workshop.path("drive").join(path);
        let target = if link.is_dir() { "victim" } else { "victim/keep" };
        let _ = fs::remove_dir_all(&link);
        std::os::unix::fs::symlink(workshop.path(target), &link).expect("it can be linked");
        let error = workshop.build(&workshop.all()).expect_err("a link is in the way");
        assert!(matches!(&error, BuildError::Bundle(BundleError::WrongKind { .. })), "{path}: {error}");
        assert_eq!(listing(&workshop.path("victim")), [workshop.path("victim/keep")]);
        assert_eq!(fs::read(workshop.path("victim/keep")).expect("is there"), b"precious");
    }
}

#[test]
fn another_key_or_a_bundle_in_use_is_refused() {
    let mut workshop = Workshop::new();
    workshop.build(&workshop.all()).expect("it can be built");
    let found = Bundle::find(Some(&workshop.path("drive")), Path::new("/nowhere")).expect("it is there");
    let lock = found.lock(holder()).expect("nobody has it");
    let error = workshop.build(&workshop.all()).expect_err("it is in use");
    assert!(matches!(error, BuildError::Bundle(BundleError::InUse { .. })), "{error}");
    drop(lock);

    let sealed_by = SealPublicKey(workshop.key.verifying_key().to_bytes()).short();
    workshop.key = SigningKey::from_bytes(&[8; 32]);
    let error = workshop.build(&workshop.all()).expect_err("it is another's");
    assert!(error.to_string().contains(&format!("is sealed by {sealed_by}")), "{error}");

    // Cut short between the two files: the signature fits nothing, so nothing is kept and everything must be given.
    fs::write(workshop.path("drive/MANIFEST.sig"), b"").expect("it can be written");
    let error = workshop.build(&workshop.pieces(&[], &[("m", "made/m")])).expect_err("no program is kept");
    assert!(matches!(error, BuildError::NoProgram), "{error}");
    let healed = workshop.build(&workshop.all()).expect("everything is given");
    assert_eq!(healed.manifest().generation, 2);
}
