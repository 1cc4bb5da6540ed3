//! Tests of the list: what is refused and where, and that printing and parsing are inverse.

use proptest::prelude::*;

use super::*;

fn entry(path: &str, size: u64) -> Entry {
    let sha256 = Sha256Digest::of(path.as_bytes());
    let chunks_sha256 = (size > CHUNKED_ABOVE_BYTES).then_some(Sha256Digest([3; 32]));
    Entry { path: path.into(), size, sha256, role: FileRole::Model, chunks_sha256 }
}

fn manifest(files: Vec<Entry>) -> Manifest {
    Manifest { format: 1, product: "Tiles".into(), version: "0.1.0".into(), generation: 7, files }
}

fn check(text: &str, expected: &str) {
    let error = Manifest::parse(text).expect_err(expected).to_string();
    assert!(error.contains(expected), "`{error}` instead of `{expected}`");
    assert!(error.len() < 600 && !error.contains(char::is_control), "{error}");
}

#[test]
fn the_canonical_text_is_as_documented() {
    let list = manifest(vec![entry("tiles", 5), entry("bin/linux-x86_64/tiles", CHUNKED_ABOVE_BYTES + 1)]);
    let text = list.to_toml();
    let expected = format!(
        r#"format = 1
product = "Tiles"
version = "0.1.0"
generation = 7

[[file]]
path = "bin/linux-x86_64/tiles"
size = 8388609
sha256 = "{}"
role = "model"
chunk_bytes = 4194304
chunks_sha256 = "{}"

[[file]]
path = "tiles"
size = 5
sha256 = "{}"
role = "model"
"#,
        Sha256Digest::of(b"bin/linux-x86_64/tiles"),
        Sha256Digest([3; 32]),
        Sha256Digest::of(b"tiles"),
    );
    assert_eq!(text, expected);
    let parsed = Manifest::parse(&text).expect("it is canonical");
    assert_eq!(parsed.files[0].path, "bin/linux-x86_64/tiles", "sorted");
    assert_eq!(parsed.entry("tiles"), Some(&entry("tiles", 5)));
}

#[test]
fn a_wrong_list_is_refused_with_its_line() {
    let good = manifest(vec![entry("a/b", 5), entry("c", CHUNKED_ABOVE_BYTES + 1)]).to_toml();
    Manifest::parse(&good).expect("the unchanged list is right");
    for (from, to, expected) in [
        ("generation = 7", "generation = 7\nmore = 1", "line 5: unknown field"),
        ("role = \"model\"", "role = \"model\"\nmode = 1", "line 11: unknown field"),
        ("role = \"model\"", "role = \"kernel\"", "line 10: `a/b` has an unknown role"),
        ("generation = 7", "generation = -7", "line 4"),
        ("generation = 7\n", "", "missing field `generation`"),
        ("size = 5", "size = 5\nsize = 6", "line 9: duplicate key"),
        ("size = 5", "size = 4294967296", "line 8: `a/b` has 4294967296 bytes"),
        ("size = 5", "size = 99999999", "line 8: `a/b`: `chunk_bytes` and"),
        ("size = 8388609", "size = 8388608", "line 14: `c`: `chunk_bytes` and"),
        ("chunk_bytes = 4194304\n", "", "`c`: `chunk_bytes` and"),
        ("chunk_bytes = 4194304", "chunk_bytes = 1", "line 17: `c`: `chunk_bytes` isn't 4194304"),
        ("sha256 = \"", "sha256 = \"A", "line 9: `a/b`: a SHA-256 digest is"),
        ("product = \"Tiles\"", "product = \"\"", "line 2: `product` has 0 bytes"),
        ("version = \"0.1.0\"", "version = \"\\u001b[2J\"", "line 3: `version` has a character"),
        ("format = 1", "format = 0", "`format = 1` is missing"),
        ("format = 1\n", "", "`format = 1` is missing"),
        ("format = 1", "format = 2", "format 2, newer than the 1"),
        ("format = 1", "format = 2\nwhatever = [[]]", "format 2, newer than the 1"),
        ("format = 1", "recipe = 1", "a recipe for building"),
        ("[[file]]", "[file]", "line "),
        ("[[file]]", "[[file]", "line 6"),
        ("format = 1", "format = \u{0}1", "line 1"),
    ] {
        assert!(good.contains(from), "{from}");
        check(&good.replacen(from, to, 1), expected);
    }
    check("", "`format = 1` is missing");
    check(&"#".repeat(MANIFEST_BYTES_MAX as usize + 1), "more than the 1048576 allowed");
    check(&format!("format = 1\nx = {}", "[".repeat(100_000)), "line 2");
}

#[test]
fn a_path_that_leads_elsewhere_is_refused() {
    let long_name = "n".repeat(101);
    let long_path = ["abcdefghijklmnopqrstuvwxyz0123"; 7].join("/");
    for (bad, expected) in [
        ("", "a path is empty"),
        ("/etc/passwd", "isn't a plain path"),
        ("../x", "isn't a plain path"),
        ("a/../../x", "isn't a plain path"),
        ("a/./x", "isn't a plain path"),
        ("a//x", "isn't a plain path"),
        ("a/", "isn't a plain path"),
        ("a\\\\..\\\\x", "has a character"),
        ("C:/x", "has a character"),
        ("a b", "has a character"),
        ("caf\u{e9}", "has a character"),
        ("x\\u0000", "has a character"),
        ("x\\u001b[2J", "has a character"),
        ("data/tiles.db", "belongs to the person"),
        ("DATA/x", "belongs to the person"),
        ("data", "belongs to the person"),
        ("MANIFEST.toml", "reserved"),
        ("manifest.SIG", "reserved"),
        ("bin/nul", "reserved"),
        ("bin/Com1.txt", "reserved"),
        ("a./x", "reserved"),
        ("w.safetensors.chunks", "reserved"),
        ("x.PARTIAL", "reserved"),
        ("._tiles", "reserved"),
        ("a/.DS_Store", "reserved"),
        (&long_name, "more than 200 bytes"),
        (&long_path, "more than 200 bytes"),
        ("1/2/3/4/5/6/7/8/9", "more than 200 bytes"),
    ] {
        let text = manifest(vec![entry("a/b", 5)]).to_toml().replace("\"a/b\"", &format!("\"{bad}\""));
        check(&text, expected);
        check(&text, "line 7: ");
    }
    for good in ["databases/x", "com10", "a.b..c", "-x", "models/m/tokenizer.json", "1/2/3/4/5/6/7/8", "console"] {
        Manifest::parse(&manifest(vec![entry(good, 5)]).to_toml()).expect(good);
    }
}

#[test]
fn paths_that_are_one_on_some_drive_are_refused() {
    for (paths, expected) in [
        (&["a", "a"][..], "`a` is listed twice"),
        (&["Tiles", "tiles"], "is listed twice"),
        (&["bin/a", "Bin/b"], "also written `Bin`"),
        (&["a", "a/b"], "`a` is listed as a file and as a folder"),
        (&["A", "a/b"], "`A` is listed as a file and as a folder"),
    ] {
        check(&manifest(paths.iter().map(|path| entry(path, 5)).collect()).to_toml(), expected);
    }
    let many = (0..=ENTRIES_MAX).map(|i| entry(&format!("f{i}"), 5)).collect();
    check(&manifest(many).to_toml(), "more than 4096 files");
}

#[test]
fn the_corpus_is_refused_or_read_but_never_more() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/manifest");
    let mut seen = 0;
    for file in std::fs::read_dir(corpus).expect("the corpus is in the tree") {
        let path = file.expect("it can be listed").path();
        let bytes = std::fs::read(&path).expect("it can be read");
        let parsed = std::str::from_utf8(&bytes).ok().and_then(|text| Manifest::parse(text).ok());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert_eq!(parsed.is_some(), name.starts_with("good"), "{name}");
        if let Some(list) = parsed {
            assert_eq!(Manifest::parse(&list.to_toml()), Ok(list), "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 12, "only {seen} files");
}

fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = "[a-z0-9._+-]{1,6}";
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let one = (path, 0..=FILE_BYTES_MAX, 0..4_usize, any::<[u8; 32]>()).prop_map(|(path, size, role, digest)| {
        let role = FileRole::NAMES[role].0;
        Entry { sha256: Sha256Digest(digest), role, ..entry(&path, size) }
    });
    prop::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn parsing_what_was_printed_gives_the_same(files in any_entries(), generation in 0..=i64::MAX as u64) {
        let mut list = Manifest { generation, ..manifest(files) };
        // Paths that can't be in a list together are a matter of the tables above.
        list.files.retain(|entry| path::check(&entry.path).is_ok());
        let mut kept: Vec<Entry> = Vec::new();
        for entry in list.files {
            let clash = |other: &Entry| {
                let (a, b) = (format!("{}/", entry.path), format!("{}/", other.path));
                a.starts_with(&b) || b.starts_with(&a)
            };
            if !kept.iter().any(clash) {
                kept.push(entry);
            }
        }
        kept.sort_by(|a, b| a.path.cmp(&b.path));
        list.files = kept;
        let text = list.to_toml();
        let parsed = Manifest::parse(&text);
        prop_assert_eq!(parsed.as_ref(), Ok(&list));
        prop_assert_eq!(parsed.map(|list| list.to_toml()), Ok(text));
    }

    #[test]
    fn no_text_makes_parsing_panic(text in "(?s).{0,200}") {
        let _ = Manifest::parse(&text);
    }

    #[test]
    fn a_flipped_byte_is_an_error_or_another_list(at in 0..500_usize, with in any::<u8>()) {
        let list = manifest(vec![entry("a/b", 5), entry("c", CHUNKED_ABOVE_BYTES + 1)]);
        let mut bytes = list.to_toml().into_bytes();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(text) = std::str::from_utf8(&bytes)
            && let Ok(parsed) = Manifest::parse(text)
        {
            prop_assert_eq!(Manifest::parse(&parsed.to_toml()), Ok(parsed));
        }
    }
}
