//! The house rules as a test: floors, effect-free values, headers, lengths, and who may touch what.

use std::fs;
use std::path::Path;

/// Files past this many lines hold two things.
const FILE_LINES_MAX: usize = 600;

/// One source file: its path from the repository's root, and its text.
struct Source {
    path: String,
    text: String,
}

/// What is forbidden where. `applies` gets the path below `src/`.
struct Ban {
    what: &'static str,
    patterns: &'static [&'static str],
    applies: fn(&str, &House) -> bool,
}

/// The module list of `lib.rs`: names in dependency order, and how many of them stand on floor 0.
struct House {
    modules: Vec<String>,
    floor_0: usize,
}

const BANS: &[Ban] = &[
    Ban {
        what: "has an effect, on floor 0",
        patterns: &[
            "std::fs",
            "std::net",
            "std::env",
            "std::thread",
            "std::process",
            "Instant::now",
            "SystemTime",
            "getrandom",
            "rusqlite",
            "File::",
        ],
        applies: |path, house| house.rank(path).is_some_and(|rank| rank < house.floor_0),
    },
    Ban {
        what: "opens files outside `disk`",
        patterns: &[
            "use std::fs;",
            "std::fs::{",
            "fs::read",
            "fs::write",
            "fs::remove",
            "fs::create",
            "fs::rename",
            "fs::copy",
            "fs::metadata",
            "File::open",
            "File::create",
            "OpenOptions",
        ],
        applies: |path, _| !path.starts_with("disk") && path != "test_folder.rs",
    },
    Ban { what: "speaks SQL outside `store`", patterns: &["rusqlite"], applies: |path, _| !path.starts_with("store") },
    Ban { what: "uses a temporary folder of the host", patterns: &["temp_dir(", "tempfile"], applies: |_, _| true },
    Ban {
        what: "prints, prompts or exits in the library",
        patterns: &["println!", "print!(", "eprintln!", "eprint!(", "process::exit", "stdin()"],
        applies: |path, _| !path.starts_with("tiles/"),
    },
    Ban {
        what: "reads the environment outside `tiles::app` and `main`",
        patterns: &["env::var", "env::args", "env::current", "env::home", "env::set", "env::remove"],
        applies: |path, _| !matches!(path, "tiles/app.rs" | "tiles/main.rs" | "test_folder.rs"),
    },
    Ban {
        what: "opens a socket outside `peer`",
        patterns: &["TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener"],
        applies: |path, _| !path.starts_with("peer"),
    },
    Ban {
        what: "names the network's library outside `peer` and `sync`",
        patterns: &["iroh", "swarm_discovery", "if_addrs"],
        applies: |path, _| !path.starts_with("peer") && !path.starts_with("sync"),
    },
    Ban {
        what: "is async outside `peer`, `sync` and `server`",
        patterns: &["async fn", "async move", "async {", "tokio"],
        applies: |path, _| !["peer", "sync", "server"].iter().any(|module| path.starts_with(module)),
    },
    Ban { what: "opens a connection outside `hub`", patterns: &["ureq"], applies: |path, _| !path.starts_with("hub") },
    Ban {
        what: "looks at certificates outside `hub` and `peer::relay`",
        patterns: &["rustls"],
        applies: |path, _| !path.starts_with("hub") && path != "peer/relay.rs",
    },
    Ban {
        what: "is unsafe outside the kernels and the calls of MLX's C functions",
        patterns: &["unsafe {", "unsafe fn"],
        applies: |path, _| !path.starts_with("engine/backend/cpu") && path != "engine/backend/mlx/raw.rs",
    },
];

impl House {
    fn read(lib: &str) -> Self {
        let mut house = Self { modules: Vec::new(), floor_0: 0 };
        for line in lib.lines() {
            if line.starts_with("// ──") && !line.contains("floor 0") && house.floor_0 == 0 {
                house.floor_0 = house.modules.len();
            }
            if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
                house.modules.push(name.into());
            }
        }
        house
    }

    /// Where the module of the file `path` (below `src/`) stands in the list.
    fn rank(&self, path: &str) -> Option<usize> {
        let module = path.split(['/', '.']).next()?;
        self.modules.iter().position(|name| name == module)
    }
}

/// The part of a file that isn't its inline tests, with comments removed.
fn product_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let code = product.lines().enumerate().map(|(idx, line)| (idx + 1, line.split("//").next().unwrap_or(line)));
    code.filter(|(_, line)| !line.trim().is_empty())
}

/// Everything in `sources` that breaks a rule, one line each.
fn violations(sources: &[Source]) -> Vec<String> {
    let Some(lib) = sources.iter().find(|source| source.path == "src/lib.rs") else {
        return vec!["src/lib.rs is missing".into()];
    };
    let house = House::read(&lib.text);
    let mut found = Vec::new();
    for source in sources {
        let Source { path, text } = source;
        if !text.starts_with("//! ") {
            found.push(format!("{path}: the first line doesn't say what the file is for"));
        }
        if text.lines().count() > FILE_LINES_MAX {
            found.push(format!("{path}: more than {FILE_LINES_MAX} lines"));
        }
        if path.ends_with("/mod.rs") {
            found.push(format!("{path}: modules are named by their own file"));
        }
        let Some(below) = path.strip_prefix("src/") else { continue };
        // Tests may do what they like to the product.
        if below.ends_with("/tests.rs") || below.contains("/tests/") || below.contains("/test_") {
            continue;
        }
        for (line_number, line) in product_lines(text) {
            for ban in BANS.iter().filter(|ban| (ban.applies)(below, &house)) {
                if ban.patterns.iter().any(|pattern| has_word(line, pattern)) {
                    found.push(format!("{path}:{line_number}: {}", ban.what));
                }
            }
            found.extend(
                arrow_down(&house, below, line)
                    .map(|used| format!("{path}:{line_number}: uses `{used}`, which stands below it in lib.rs")),
            );
        }
    }
    found
}

/// Whether `line` has `pattern` where a name begins: `File::open`, but not within `VerifiedFile::open`.
fn has_word(line: &str, pattern: &str) -> bool {
    let mut found = line.match_indices(pattern);
    found.any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The module that `line` of the file `path` uses though it stands below its own in the list.
fn arrow_down(house: &House, path: &str, line: &str) -> Option<String> {
    let rank = house.rank(path)?;
    let mut uses =
        line.split("crate::").skip(1).filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next());
    uses.find(|used| house.modules.iter().position(|name| name == used).is_some_and(|other| other > rank))
        .map(Into::into)
}

fn collect(folder: &Path, root: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("the source tree can be read") {
        let path = entry.expect("the source tree can be read").path();
        if path.is_dir() {
            collect(&path, root, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are text");
            let path = path.strip_prefix(root).expect("it is below the root").to_string_lossy().into_owned();
            sources.push(Source { path, text });
        }
    }
}

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    collect(&root.join("src"), root, &mut sources);
    collect(&root.join("tests/it"), root, &mut sources);
    assert!(sources.len() > 10, "the sources were found");
    let found = violations(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn planted_violations_are_found() {
    let lib = "//! Map.\n// ── floor 0\npub mod hint;\npub mod time;\n// ── floor 1\npub mod disk;\npub mod store;\n";
    let long = format!("//! Long.\n{}", "\n".repeat(FILE_LINES_MAX));
    let cases: &[(&str, &str, &str)] = &[
        ("src/hint.rs", "//! H.\nuse crate::disk::DiskError;\n", "src/hint.rs:2: uses `disk`"),
        ("src/time.rs", "//! T.\nfn now() { std::time::Instant::now(); }\n", "has an effect"),
        ("src/time.rs", "//! T.\nuse std::fs;\n", "has an effect"),
        ("src/store.rs", "//! S.\nuse std::fs;\n", "opens files outside `disk`"),
        ("src/store.rs", "//! S.\nfn f() { File::open(p); }\n", "opens files outside `disk`"),
        ("src/disk.rs", "//! D.\nuse rusqlite::Connection;\n", "speaks SQL"),
        ("src/store.rs", "//! S.\nfn f() { println!(); }\n", "prints"),
        ("src/store.rs", "//! S.\nfn f() { std::env::var(\"X\"); }\n", "reads the environment"),
        ("src/tiles/repl.rs", "//! R.\nfn f() { std::env::temp_dir(); }\n", "temporary folder"),
        ("src/store.rs", "//! S.\nfn f() { unsafe { g() } }\n", "unsafe outside"),
        ("src/engine/backend/mlx.rs", "//! M.\nfn f() { unsafe { g() } }\n", "unsafe outside"),
        ("src/store.rs", "//! S.\nuse std::net::TcpStream;\n", "opens a socket"),
        ("src/store.rs", "//! S.\nuse iroh::Endpoint;\n", "the network's library"),
        ("src/store.rs", "//! S.\npub async fn f() {}\n", "is async outside"),
        ("src/store.rs", "//! S.\nuse ureq::Agent;\n", "outside `hub`"),
        ("src/disk.rs", "use crate::hint::Hint;\n", "first line"),
        ("src/disk/mod.rs", "//! D.\n", "named by their own file"),
        ("src/disk.rs", &long, "more than 600 lines"),
    ];
    for (path, text, expected) in cases {
        let sources =
            [("src/lib.rs", lib), (*path, *text)].map(|(path, text)| Source { path: path.into(), text: text.into() });
        let found = violations(&sources);
        assert!(found.iter().any(|line| line.contains(expected)), "{path}: expected {expected:?}, found {found:?}");
    }
    let clean = [
        ("src/lib.rs", lib),
        (
            "src/store.rs",
            "//! S.\nuse crate::disk;\nuse std::fs::File;\nfn f() { VerifiedFile::open(p) }\n#[cfg(test)]\nmod tests { use std::fs; }\n",
        ),
    ];
    assert_eq!(
        violations(&clean.map(|(path, text)| Source { path: path.into(), text: text.into() })),
        Vec::<String>::new()
    );
}
