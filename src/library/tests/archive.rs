//! Archives: ours come back as they were, others are refused.

use tar::EntryType::{Char, Directory, GNULongName, GNUSparse, Link, Regular, Symlink, XHeader};

use super::*;

#[test]
fn exports_are_the_same_each_time_and_come_back_the_same() {
    let bench = Bench::new();
    let mut library = bench.open();
    bench.import(&mut library, "Tiny Llama.F32.gguf", Some("tiny")).expect("it is right");
    for end in ["tar", "tar.zst"] {
        let files = [format!("a.{end}"), format!("b.{end}")];
        for file in &files {
            library.export("tiny", &bench.path(file), &mut go_on).expect("it is whole");
        }
        let [a, b] = files.each_ref().map(|file| fs::read(bench.path(file)).expect("it is there"));
        assert!(a == b && !a.is_empty(), "{end}");
        let before = contents(&bench.path("models/tiny"));
        let mut other = Library::open(&bench.path(&format!("m-{end}")), &[], &bench.path("data/other"), Some(&KEY))
            .expect("it is empty");
        let report = bench.import(&mut other, &files[0], None).expect("it is right");
        assert_eq!(report.name, "tiny");
        assert_eq!(contents(&bench.path(&format!("m-{end}/tiny"))), before, "{end}");
        added::remove(&bench.path("data/other")).expect("it is there");
        assert!(library.export("tiny", &bench.path(&files[0]), &mut go_on).is_err(), "it is there already");
    }
    let renamed = bench.import(&mut library, "a.tar", Some("other")).expect("it is right");
    assert_eq!(renamed.description.name, "other");
    assert!(matches!(library.export("tiny", &bench.path("a.zip"), &mut go_on), Err(LibraryError::Source { .. })));
}

/// A tar header for `path`.
fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn tar_of(members: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, kind, content) in members {
        bytes.extend(header(path, *kind, content.len() as u64).as_bytes());
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A `model.toml` that lists an empty file `a`.
fn lists_a() -> String {
    let empty = crate::digest::Sha256Digest::of(b"");
    format!("[[file]]\npath = \"a\"\nsize = 0\nsha256 = \"{empty}\"\n")
}

/// An archive in which nothing is wrong but that it holds no model.
fn whole() -> Vec<u8> {
    tar_of(&[("m/", Directory, b""), ("m/a", Regular, b""), ("m/model.toml", Regular, lists_a().as_bytes())])
}

#[test]
fn archives_that_are_no_exports_are_refused() {
    let bench = Bench::new();
    let library = bench.open();
    let toml: &[u8] = b"format = 1\n";
    let ok = ("m/model.toml", Regular, toml);
    let lists_a = lists_a();
    let whole = whole();
    let mut wrong_sum = whole.clone();
    wrong_sum[100] ^= 1;
    let mut huge = header("m/a", Regular, u64::from(u32::MAX) + 1).as_bytes().to_vec();
    huge.resize(5120, 0);
    let table: Vec<(Vec<u8>, &str)> = vec![
        (tar_of(&[ok, ("m/../../x", Regular, b"x")]), "isn't a plain path"),
        (tar_of(&[ok, ("/etc/x", Regular, b"x")]), "isn't a plain path"),
        (tar_of(&[ok, ("m//x", Regular, b"x")]), "isn't a plain path"),
        (tar_of(&[ok, ("m\\x", Regular, b"x")]), "a character other than"),
        (tar_of(&[ok, ("x", Regular, b"x")]), "`x` isn't a file in the model's folder"),
        (tar_of(&[ok, ("m/d/x", Regular, b"x")]), "`m/d/x` isn't a file in the model's folder"),
        (tar_of(&[ok, ("m/d/", Directory, b"")]), "`m/d/` isn't a file in the model's folder"),
        (tar_of(&[ok, ("n/x", Regular, b"x")]), "`n` is a second folder"),
        (tar_of(&[ok, ("m/x", Symlink, b"")]), "`m/x` is neither a file nor a folder"),
        (tar_of(&[ok, ("m/x", Link, b"")]), "neither a file nor a folder"),
        (tar_of(&[ok, ("m/x", Char, b"")]), "neither a file nor a folder"),
        (tar_of(&[ok, ("m/x", GNUSparse, b"")]), "neither a file nor a folder"),
        (tar_of(&[ok, ("m/x", GNULongName, b"m/y")]), "neither a file nor a folder"),
        (tar_of(&[ok, ("m/x", XHeader, b"9 path=x\n")]), "neither a file nor a folder"),
        (tar_of(&[ok, ("m/con.txt", Regular, b"x")]), "reserved name"),
        (tar_of(&[ok, ("m/a.chunks", Regular, b"x")]), "reserved name"),
        (tar_of(&[ok, ("m/a", Regular, b"x"), ("m/A", Regular, b"x")]), "`A` is there twice"),
        (tar_of(&[ok, ("m/a", Regular, b"x")]), "`a` isn't listed in its `model.toml`"),
        (tar_of(&[("m/a", Regular, b"x"), ("m/model.toml", Regular, lists_a.as_bytes())]), "have another size"),
        (tar_of(&[("m/model.toml", Regular, lists_a.as_bytes())]), "missing or have another size"),
        (tar_of(&[("m/a", Regular, b"x")]), "it has no `model.toml`"),
        (tar_of(&[]), "it has no `model.toml`"),
        (tar_of(&[("m/model.toml", Regular, b"=")]), "its model.toml:"),
        (tar_of(&[("m/model.toml", Regular, b"\xff")]), "UTF-8"),
        (huge, "`a` has 4294967296 bytes, more than allowed"),
        (wrong_sum, "a header of it is damaged"),
        (b"".to_vec(), "it is damaged"),
        (whole[..whole.len() - 1200].to_vec(), "it is damaged"),
        (vec![0xff; 2048], "a header of it is damaged"),
    ];
    for (bytes, expected) in &table {
        for end in ["tar", "tar.zst"] {
            let path = bench.path(&format!("x.{end}"));
            let packed = zstd::encode_all(&bytes[..], 1).expect("it packs");
            fs::write(&path, if end == "tar" { bytes } else { &packed }).expect("it can be written");
            let error = library.plan_import(&path, Some("x"), &mut go_on).expect_err("it is none");
            assert!(error.to_string().contains(expected), "{error}\n{expected}");
        }
    }
}

#[test]
fn a_list_with_its_files_is_still_no_model() {
    let bench = Bench::new();
    let library = bench.open();
    let whole = whole();
    fs::write(bench.path("x.tar.zst"), &whole).expect("it can be written");
    assert!(library.plan_import(&bench.path("x.tar.zst"), None, &mut go_on).is_err(), "it isn't packed");
    // The negative control: what is refused above is refused for its own reason.
    fs::write(bench.path("x.tar"), &whole).expect("it can be written");
    let plan = library.plan_import(&bench.path("x.tar"), None, &mut go_on).expect("it is a list with its file");
    let mut library = bench.open();
    let error = library.import(&plan, &mut go_on).expect_err("it is no model");
    assert!(error.to_string().contains("it has no `config.json`"), "{error}");
    assert_eq!(names(&bench.path("models")), [""; 0]);
}

#[test]
fn a_bomb_is_stopped_by_its_own_headers() {
    let bench = Bench::new();
    let library = bench.open();
    // 2,500 folders and no file: small when packed, and refused by their number.
    let folders: Vec<(&str, tar::EntryType, &[u8])> = (0..2500).map(|_| ("m/", Directory, &[][..])).collect();
    let packed = zstd::encode_all(&tar_of(&folders)[..], 3).expect("it packs");
    assert!(packed.len() < 10_000);
    fs::write(bench.path("x.tar.zst"), packed).expect("it can be written");
    let error = library.plan_import(&bench.path("x.tar.zst"), Some("x"), &mut go_on).expect_err("it is none");
    assert!(error.to_string().contains("too many entries"), "{error}");
}
