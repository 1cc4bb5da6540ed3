//! A line for each command of the program, to be run where something is watched; and the test that none is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::drive::{ANSWER, PASSPHRASE, TestBundle};

/// A command line and what comes of it.
pub(crate) struct Entry {
    /// What is typed after `tiles`; `@/` is the folder with what it is given.
    pub(crate) line: &'static str,
    /// The exit code.
    pub(crate) code: i32,
    /// Something that it says.
    pub(crate) says: &'static str,
    /// What of the host it looks at, on purpose.
    pub(crate) looks: Looks,
}

/// What of the host a command looks at because that is its work. Nothing is ever written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    /// Nothing.
    Nowhere,
    /// The names below HOME and the temporary folders, and no file's content.
    AtNames,
    /// The folder of the Tiles that is installed for this user. It is one in `@/installed` then.
    AtInstalled,
}

const fn done(line: &'static str, says: &'static str) -> Entry {
    Entry { line, code: 0, says, looks: Looks::Nowhere }
}

const fn refused(line: &'static str, code: i32, says: &'static str) -> Entry {
    Entry { line, code, says, looks: Looks::Nowhere }
}

const fn looking(looks: Looks, line: &'static str, says: &'static str) -> Entry {
    Entry { line, code: 0, says, looks }
}

/// In this order: some find what those before made.
const ENTRIES: &[Entry] = &[
    done("-p hi", ANSWER),
    done("run scripted -p hi --session given", ANSWER),
    done("run @/Modelfile -p hi --no-save", ANSWER),
    done("account", "did:key:"),
    refused("account create Ada", 1, "has an identity already"),
    done("account set-nickname Bob", "Bob"),
    done("bundle info", "self-built"),
    done("bundle verify", ""),
    done("bundle verify --full", ""),
    done(
        "bundle build @/source/MANIFEST.toml @/built --program @/program --model scripted=@/checkpoint --seal-key @/seal.key",
        "",
    ),
    done("model list", "scripted"),
    done("model list --available", ""),
    done("model show scripted", "scripted"),
    done("model import @/checkpoint --name added --dry-run", ""),
    done("model import @/checkpoint --name added", "added"),
    done("model verify added", "added"),
    done("model export added @/added.tar.zst", ""),
    done("model remove added --yes", ""),
    refused("model pull org/name", 7, "--allow-network"),
    done("modelfile check @/Modelfile", ""),
    done("modelfile fmt @/Modelfile", "FROM scripted"),
    done("modelfile explain @/Modelfile", "scripted"),
    done("session list", "given"),
    done("session show given", "given"),
    done("session search given", "given"),
    done("session rename given renamed", ""),
    done("session export renamed", "given"),
    done("session delete renamed --yes", ""),
    done("session import @/talk.json", ""),
    done("bundle create @/created", ""),
    looking(Looks::AtInstalled, "bundle create @/carried --from-installed --copy", "read back"),
    done("bundle copy @/copied", ""),
    done("bundle export @/Tiles.tar.zst", ""),
    done("bundle import @/Tiles.tar.zst @/imported", ""),
    done("bundle repair --from @/copied --dry-run", ""),
    done("bundle accept --yes", ""),
    done("key status", "key file"),
    done("key export @/key.age", ""),
    done("key export --age-scrypt @/scrypt.age", ""),
    done("key recovery --recovery-file @/words", ""),
    done("key restore --recovery-file @/words --new-passphrase-file @/new", ""),
    done("key passphrase --passphrase-file @/new --new-passphrase-file @/passphrase", ""),
    refused("key keychain on", 2, "stay on the drive"),
    done("key rotate-db", ""),
    done("data", ""),
    done("data path", ""),
    done("data backup", ""),
    done("data backup @/backup.db", ""),
    done("data recover --dry-run", ""),
    done("data accept --yes", ""),
    refused("data set-path @/elsewhere", 2, ""),
    // Linking itself uses the network: tests/it/link.rs looks at it. What can't be a code is refused before that.
    refused("link enable no-code", 2, "8 letters and digits"),
    done("link list-peers", ""),
    refused("link rename nobody somebody", 2, "no linked drive"),
    refused("link disable nobody --yes", 2, "no linked drive"),
    // Syncing too: tests/it/sync.rs. Who has no linked drive sends nothing.
    refused("sync", 1, "no drive is linked"),
    refused("model send scripted", 1, "no drive is linked"),
    refused("model receive", 1, "no drive is linked"),
    refused("model list --peers", 1, "no drive is linked"),
    refused("model list --wait 3", 2, "--peers"),
    refused("data adopt @/copied --copy", 1, "never overwritten"),
    done("data adopt @/copied --copy --bundle @/created", "read back"),
    done("doctor", "engine"),
    // Where a namespace can be made it is proved, in a jail it can't; which it was is said.
    done("doctor --offline", "proved: "),
    looking(Looks::AtNames, "doctor --traces", "traces"),
    done("doctor --clean --yes", "removed"),
    done("doctor --recover --yes", "sound"),
    done("privacy", ""),
    done("config show", ""),
    done("config set color never", "never"),
    done("config unset color", ""),
    done("completions bash", "tiles"),
    done("man", "tiles"),
];

/// The entries, those of commands that this program doesn't have left out.
pub(crate) fn entries(bundle: &TestBundle) -> Vec<&'static Entry> {
    let commands = commands_of(bundle);
    let is_there = |entry: &&Entry| {
        entry.line.starts_with('-') || command_of(entry.line, &commands).is_some_and(|path| can_be_run(path, &commands))
    };
    ENTRIES.iter().filter(is_there).collect()
}

/// The folder that has the bundle and, in `given`, what commands are given and make: all that they may touch.
pub(crate) fn ours(bundle: &TestBundle) -> &Path {
    bundle.root.parent().expect("it is in a folder")
}

/// The words of a line.
pub(crate) fn words(line: &str, given: &Path) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("@/", &format!("{}/", given.display()))).collect()
}

/// Puts what commands are given into the bundle's folder.
fn give(bundle: &TestBundle) {
    let given = ours(bundle).join("given");
    fs::create_dir_all(given.join("source")).expect("target can be written");
    let put = |name: &str, text: &str| fs::write(given.join(name), text).expect("target can be written");
    put("passphrase", &format!("{PASSPHRASE}\n"));
    put("new", "another horse, another battery\n");
    put("program", "no program, but its bytes will do\n");
    put("Modelfile", "FROM scripted\nPARAMETER temperature 0\n");
    crate::scripted::write(&given.join("checkpoint"), &["Hello", " from", " the", " scripted", " model."], false);
    let file = |path: &str, role: &str, source: &str| {
        format!("[[file]]\npath = \"{path}\"\nrole = \"{role}\"\nsource = \"{source}\"\nlicence = \"MIT\"\n")
    };
    let program = file("bin/linux-x86_64/tiles", "program", "build:x86_64-unknown-linux-gnu");
    let model = file("models/scripted/", "model", "pypi:scripted==1/checkpoint");
    put("source/MANIFEST.toml", &format!("recipe = 1\nproduct = \"Tiles\"\n{program}{model}"));
    crate::drive::identify(&given.join("installed/tiles"));
}

/// A bundle with what the entries need.
pub(crate) fn prepared() -> TestBundle {
    let bundle = TestBundle::quick("ours/Tiles");
    give(&bundle);
    bundle.ok(&["-p", "given"]);
    let talk = bundle.ok(&["session", "export", "given", "--format", "json"]);
    fs::write(ours(&bundle).join("given/talk.json"), talk).expect("target can be written");
    bundle
}

/// A bundle without an identity.
pub(crate) fn fresh() -> TestBundle {
    let bundle = TestBundle::fresh_at("ours/Tiles");
    give(&bundle);
    bundle
}

/// The commands that the program has, hidden ones included, as clap's own tree has them: with their subcommands, where
/// they can be run.
fn commands_of(bundle: &TestBundle) -> BTreeSet<String> {
    let script = bundle.ok(&["completions", "bash"]);
    let ids = script.lines().filter_map(|line| line.trim().strip_prefix("cmd=\"tiles__subcmd__")?.strip_suffix("\""));
    // A hyphen in a name is written like the space before it.
    let paths = ids.map(|id| id.replace("__subcmd__", " "));
    paths.filter(|path| path.split(' ').all(|word| word != "help")).collect()
}

/// The command that a line has: the longest that it begins with.
fn command_of<'a>(line: &str, commands: &'a BTreeSet<String>) -> Option<&'a String> {
    let line = line.replace('-', " ");
    commands.iter().filter(|path| line == **path || line.starts_with(&format!("{path} "))).max_by_key(|path| path.len())
}

/// The options that make a command another one: each of them is watched by itself.
const OTHERS: &[(&str, &str)] = &[
    ("bundle create", "--from-installed"),
    ("doctor", "--offline"),
    ("doctor", "--traces"),
    ("doctor", "--clean"),
    ("doctor", "--recover"),
];

/// Whether a command does something by itself: most that have subcommands don't.
fn can_be_run(path: &str, commands: &BTreeSet<String>) -> bool {
    let begin = format!("{path} ");
    matches!(path, "account" | "data") || !commands.iter().any(|other| other.starts_with(&begin))
}

#[test]
fn every_command_is_watched() {
    let bundle = TestBundle::quick("Tiles");
    let commands = commands_of(&bundle);
    assert!(commands.contains("model import") && commands.contains("man"), "{commands:?}");
    let watched: BTreeSet<&String> = ENTRIES.iter().filter_map(|entry| command_of(entry.line, &commands)).collect();
    let missing: Vec<_> =
        commands.iter().filter(|path| !watched.contains(path) && can_be_run(path, &commands)).collect();
    assert!(missing.is_empty(), "write an entry for {missing:?}");
    for (command, option) in OTHERS {
        assert!(bundle.ok(&[command.split(' ').collect::<Vec<_>>(), vec!["--help"]].concat()).contains(option));
        let is_watched = |entry: &Entry| entry.line.starts_with(command) && entry.line.contains(option);
        assert!(ENTRIES.iter().any(is_watched), "write an entry for {command} {option}");
    }
    // The check can fail: a command that nobody wrote an entry for.
    let more: BTreeSet<String> = commands.iter().cloned().chain(["model polish".to_owned()]).collect();
    assert!(!ENTRIES.iter().any(|entry| command_of(entry.line, &more).is_some_and(|path| path == "model polish")));
}
