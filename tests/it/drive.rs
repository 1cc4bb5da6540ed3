//! A bundle for one test: the real program with a scripted model, run with a cleared environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tilekit::identity::{Identity, KeyFile, KeyStore as _, Passphrase, WorkFactor};
use tilekit::time::Timestamp;

/// What the scripted model says to everything.
pub(crate) const ANSWER: &str = "Hello from the scripted model.";
/// The passphrase of every test bundle that has one.
pub(crate) const PASSPHRASE: &str = "correct horse battery staple";

/// A bundle of its own, with a home folder that must still be empty at the end.
pub(crate) struct TestBundle {
    folder: PathBuf,
    /// The bundle's root.
    pub(crate) root: PathBuf,
    /// The home folder that the program is given.
    pub(crate) home: PathBuf,
    /// A file with the passphrase, outside the bundle.
    pub(crate) passphrase: PathBuf,
}

/// The folder of this run's tests.
pub(crate) fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("drives-{}", std::process::id()))
}

/// Removes what earlier runs left: a bundle that several tests share has nobody who would drop it.
fn sweep() {
    let Ok(entries) = fs::read_dir(env!("CARGO_TARGET_TMPDIR")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("drives-"));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another run may be sweeping too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Builds the sealed bundle that all tests copy, once.
fn sealed() -> &'static Path {
    static SEALED: OnceLock<PathBuf> = OnceLock::new();
    SEALED.get_or_init(|| {
        sweep();
        build(&scratch().join("sealed"), Path::new(env!("CARGO_BIN_EXE_tiles")))
    })
}

/// Builds a sealed bundle with that program and the scripted model in `folder`, and gives its root.
pub(crate) fn build(folder: &Path, program: &Path) -> PathBuf {
    let (recipe, model) = (folder.join("source"), folder.join("checkpoint"));
    fs::create_dir_all(&recipe).expect("target can be written");
    let mut text = String::from("recipe = 1\nproduct = \"Tiles\"\n");
    let mut file = |path: &str, role: &str, source: &str| {
        text.push_str(&format!(
            "[[file]]\npath = \"{path}\"\nrole = \"{role}\"\nsource = \"{source}\"\nlicence = \"MIT\"\n"
        ));
    };
    for (name, role) in [("tiles", "launcher"), ("README.txt", "doc")] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundle").join(name);
        fs::copy(from, recipe.join(name)).expect("it is in the tree");
        file(name, role, &format!("tree:{name}"));
    }
    file("bin/linux-x86_64/tiles", "program", "build:x86_64-unknown-linux-gnu");
    file("models/scripted/", "model", "pypi:scripted==1/checkpoint");
    fs::write(recipe.join("MANIFEST.toml"), text).expect("target can be written");
    crate::scripted::write(&model, &["Hello", " from", " the", " scripted", " model."], false);
    let root = folder.join("Tiles");
    let built = Command::new(env!("CARGO_BIN_EXE_tiles"))
        .args(["bundle", "build"])
        .args([&recipe.join("MANIFEST.toml"), &root])
        .args(["--program", &program.display().to_string()])
        .args(["--model", &format!("scripted={}", model.display())])
        .args(["--seal-key", &folder.join("seal.key").display().to_string()])
        .output()
        .expect("the program can be run");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    root
}

/// Gives a bundle an identity whose passphrase is turned into a key with the least work there is.
pub(crate) fn identify(root: &Path) {
    let data = root.join("data");
    fs::create_dir_all(&data).expect("target can be written");
    let identity = Identity::generate(Timestamp::from_ms(1_700_000_000_000)).expect("there is randomness");
    let passphrase = Passphrase::new(PASSPHRASE.into()).expect("it is one");
    KeyFile::with_work_factor(&data, WorkFactor::MIN).create(&identity, &passphrase, None).expect("it can be made");
}

/// The same with an identity, made once, without recovery words.
fn personal() -> &'static Path {
    static PERSONAL: OnceLock<PathBuf> = OnceLock::new();
    PERSONAL.get_or_init(|| {
        let bundle = TestBundle::fresh();
        let made = bundle.run(&["account", "create", "Ada", "--no-recovery", "--passphrase-file", bundle.passphrase()]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let root = bundle.root.clone();
        std::mem::forget(bundle);
        root
    })
}

/// The same with the default model added as `smollm2`, made once.
fn with_smollm2() -> &'static Path {
    static WITH_SMOLLM2: OnceLock<PathBuf> = OnceLock::new();
    WITH_SMOLLM2.get_or_init(|| {
        let bundle = TestBundle::new();
        let model = crate::model::folder().display().to_string();
        bundle.ok(&["model", "import", &model, "--name", "smollm2"]);
        let root = bundle.root.clone();
        std::mem::forget(bundle);
        root
    })
}

/// Copies a folder; the large program, which no test changes in place, is linked.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("target can be written");
    for entry in fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("it can be listed");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else if entry.metadata().expect("it is there").len() > 8 << 20 {
            fs::hard_link(&source, &target).expect("target is one file system");
        } else {
            fs::copy(&source, &target).expect("target can be written");
        }
    }
}

impl TestBundle {
    /// A sealed bundle without an identity.
    pub(crate) fn fresh() -> Self {
        Self::copy_of(sealed(), "Tiles")
    }

    /// The same at a path of its own choosing below the test's folder.
    pub(crate) fn fresh_at(path: &str) -> Self {
        Self::copy_of(sealed(), path)
    }

    /// A bundle with an identity (Ada's) and an empty store.
    pub(crate) fn new() -> Self {
        Self::copy_of(personal(), "Tiles")
    }

    /// The same at a path of its own choosing below the test's folder.
    pub(crate) fn at(path: &str) -> Self {
        Self::copy_of(personal(), path)
    }

    /// A bundle at that path that has the default model too, under the name `smollm2`.
    pub(crate) fn with_smollm2(path: &str) -> Self {
        Self::copy_of(with_smollm2(), path)
    }

    fn copy_of(from: &Path, path: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = scratch().join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        let (root, home, passphrase) = (folder.join(path), folder.join("home"), folder.join("passphrase"));
        copy(from, &root);
        fs::create_dir_all(&home).expect("target can be written");
        fs::write(&passphrase, format!("{PASSPHRASE}\n")).expect("target can be written");
        Self { folder, root, home, passphrase }
    }

    /// A bundle with an identity that opens at once: its passphrase is turned into a key with the least work there is.
    pub(crate) fn quick(path: &str) -> Self {
        let bundle = Self::fresh_at(path);
        identify(&bundle.root);
        bundle
    }

    /// The path of the passphrase file, for `--passphrase-file`.
    pub(crate) fn passphrase(&self) -> &str {
        self.passphrase.to_str().expect("target's path is text")
    }

    /// The program in the bundle, ready to be given arguments: no environment but HOME, no input, another folder.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.root.join("bin/linux-x86_64/tiles"));
        command.env_clear().env("HOME", &self.home).current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Runs the program.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("the program can be run")
    }

    /// Runs the program with the passphrase.
    pub(crate) fn unlocked(&self, arguments: &[&str]) -> Output {
        self.run(&[arguments, &["--passphrase-file", self.passphrase()]].concat())
    }

    /// Runs the program with the passphrase, which must succeed, and gives what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.unlocked(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tiles {arguments:?}: {:?}\n{errors}", output.status.code());
        String::from_utf8(output.stdout).expect("output is text")
    }

    /// Runs the program with the passphrase and `--json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let printed = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|e| panic!("tiles {arguments:?} printed {printed:?}: {e}"))
    }
}

impl Drop for TestBundle {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let left: Vec<_> = fs::read_dir(&self.home).expect("it is there").collect();
            assert!(left.is_empty(), "the program wrote into the home folder: {left:?}");
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
