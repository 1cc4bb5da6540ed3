//! Hostile archives: each kind is refused by name, and leaves nothing behind.

use std::io::Write as _;

use tar::EntryType;

use super::*;
use crate::bundle::SIGNATURE_NAME;
use crate::manifest::Signature;

/// The members of an archive, to be changed before they are written.
#[derive(Clone)]
struct Recipe {
    members: Vec<([u8; 512], Vec<u8>)>,
    end: Vec<u8>,
    after: Vec<u8>,
}

fn header(path: &[u8], bytes: u64, kind: EntryType) -> [u8; 512] {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(kind);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path);
    header.set_cksum();
    *header.as_bytes()
}

impl Recipe {
    /// What `export` would write of a small bundle, uncompressed.
    fn of(bundle: &Bundle<Verified>) -> Self {
        let mut members = Vec::new();
        let mut add = |path: &str, content: Vec<u8>| {
            let path = format!("Tiles/{path}");
            members.push((header(path.as_bytes(), content.len() as u64, EntryType::Regular), content));
        };
        add(MANIFEST_NAME, bundle.manifest_bytes().to_vec());
        add(SIGNATURE_NAME, bundle.signature_text().as_bytes().to_vec());
        for entry in &bundle.manifest().files {
            add(&entry.path, fs::read(bundle.root().join(&entry.path)).expect("it is there"));
        }
        Self { members, end: vec![0; 1024], after: Vec::new() }
    }

    fn insert(mut self, at: usize, path: &[u8], content: &[u8], kind: EntryType) -> Self {
        self.members.insert(at, (header(path, content.len() as u64, kind), content.to_vec()));
        self
    }

    /// Changes the header of a member, whose sum is made right again.
    fn edit(mut self, at: usize, edit: impl FnOnce(&mut [u8; 512])) -> Self {
        let block = &mut self.members[at].0;
        edit(block);
        let mut header = tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        *block = *header.as_bytes();
        self
    }

    fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        for (header, content) in &self.members {
            tar.extend_from_slice(header);
            tar.extend_from_slice(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.extend_from_slice(&self.end);
        tar
    }

    fn write(&self, path: &Path) {
        let mut packed = zstd::encode_all(self.tar().as_slice(), 1).expect("memory takes it");
        packed.extend_from_slice(&self.after);
        fs::write(path, packed).expect("it can be written");
    }
}

/// A bundle with few and small files.
fn small(place: &Place) -> Bundle<Verified> {
    let root = place.path("small");
    let files = vec![
        write(&root, "README.txt", b"read me"),
        write(&root, "bin/linux-x86_64/tiles", b"program"),
        write(&root, "tiles", b"#!/bin/sh\n"),
    ];
    seal(&root, files);
    verified(&root)
}

const SEALED: usize = 2;

/// Archives whose headers or contents lie, with what the refusal says.
fn liars(good: &Recipe) -> Vec<(&'static str, Recipe, &'static str)> {
    let plain = |path: &[u8]| good.clone().insert(SEALED, path, b"x", EntryType::Regular);
    let kind = |kind: EntryType| good.clone().insert(SEALED, b"Tiles/README.txt", b"", kind);
    let name = |bytes: &'static [u8]| good.clone().edit(SEALED, |block| block[..bytes.len()].copy_from_slice(bytes));
    vec![
        ("..", plain(b"Tiles/../../evil"), "isn't a plain path"),
        (". in a path", plain(b"Tiles/./README.txt"), "isn't a plain path"),
        ("absolute", plain(b"/etc/passwd"), "isn't in the folder"),
        ("another folder", plain(b"Other/README.txt"), "isn't in the folder"),
        ("no folder", plain(b"README.txt"), "isn't in the folder"),
        ("a prefix of the folder", plain(b"TilesX/README.txt"), "isn't in the folder"),
        ("the folder as a file", plain(b"Tiles"), "isn't a file in"),
        ("symlink", kind(EntryType::Symlink), "is a link"),
        ("hard link", kind(EntryType::Link), "is a link"),
        ("character device", kind(EntryType::Char), "is a device"),
        ("block device", kind(EntryType::Block), "is a device"),
        ("pipe", kind(EntryType::Fifo), "is a device or pipe"),
        ("GNU sparse", kind(EntryType::GNUSparse), "is a sparse file"),
        ("PAX header", good.clone().insert(SEALED, b"Tiles/p", b"19 path=/etc/passwd\n", EntryType::XHeader), "PAX"),
        ("PAX size", good.clone().insert(SEALED, b"Tiles/p", b"12 size=999\n", EntryType::XHeader), "PAX"),
        ("global PAX header", kind(EntryType::XGlobalHeader), "PAX"),
        ("GNU long name", good.clone().insert(SEALED, b"././@LongLink", b"Tiles/x", EntryType::GNULongName), "GNU"),
        ("GNU long link", kind(EntryType::GNULongLink), "GNU"),
        ("contiguous file", kind(EntryType::Continuous), "neither a file nor a folder"),
        ("unknown kind", kind(EntryType::new(b'Z')), "neither a file nor a folder"),
        ("folder with content", good.clone().insert(SEALED, b"Tiles/d", b"x", EntryType::Directory), "has content"),
        ("name too long", plain(&[b"Tiles/".as_slice(), &[b'a'; 94]].concat()), "isn't listed"),
        ("backslash", plain(b"Tiles\\README.txt"), "isn't in the folder"),
        ("colon", plain(b"Tiles/C:evil"), "a character other than"),
        ("device name", plain(b"Tiles/con.txt"), "reserved name"),
        ("a sidecar", plain(b"Tiles/README.txt.chunks"), "reserved name"),
        ("non-UTF-8", plain(b"Tiles/\xff\xfe"), "isn't UTF-8"),
        ("NUL in the name", name(b"Tiles/README.txt\0evil"), "has a NUL"),
        ("terminal escape", plain(b"Tiles/\x1b]0;x\x07"), "a character other than"),
        ("data", plain(b"Tiles/data/key.a"), "isn't listed"),
        ("unlisted", plain(b"Tiles/evil"), "isn't listed"),
        ("capital letters", plain(b"Tiles/readme.TXT"), "isn't listed"),
        ("GNU header", good.clone().edit(SEALED, |block| block[257..265].copy_from_slice(b"ustar  \0")), "than ustar"),
    ]
}

/// Archives that aren't what was sealed, as wholes.
fn others(place: &Place, good: &Recipe) -> Vec<(&'static str, Recipe, &'static str)> {
    let size =
        |size: &'static [u8]| good.clone().edit(SEALED, |block| block[124..124 + size.len()].copy_from_slice(size));
    let with = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = good.clone();
        change(&mut recipe);
        recipe
    };
    let foreign = |seed: u8| {
        with(&|recipe| {
            let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
            let text = Signature::sign(&key, &recipe.members[0].1).to_toml().into_bytes();
            recipe.members[1] = (recipe.members[1].0, text);
        })
    };
    let _ = place;
    vec![
        ("size lies, more", size(b"00000000010\0"), "has 8 bytes in it instead of 7"),
        ("size lies, less", size(b"00000000006\0"), "has 6 bytes in it instead of 7"),
        ("size isn't octal", size(b"99999999999\0"), "size of"),
        (
            "huge binary size",
            size(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            "more than a drive",
        ),
        ("damaged header", with(&|recipe| recipe.members[SEALED].0[0] ^= 1), "header of it is damaged"),
        ("twice", with(&|recipe| recipe.members.insert(SEALED, recipe.members[SEALED].clone())), "there twice"),
        ("wrong order", with(&|recipe| recipe.members.swap(SEALED, SEALED + 1)), "out of order"),
        ("missing file", with(&|recipe| drop(recipe.members.remove(SEALED + 1))), "out of order"),
        ("missing last file", with(&|recipe| drop(recipe.members.pop())), "`tiles` is missing"),
        ("wrong digest", with(&|recipe| recipe.members[SEALED].1[0] ^= 1), "isn't what its `MANIFEST.toml` lists"),
        ("wrong digest, last", with(&|recipe| recipe.members.last_mut().expect("there").1[3] ^= 1), "`tiles` in it"),
        ("list not first", with(&|recipe| recipe.members.swap(0, 2)), "`MANIFEST.toml` is expected"),
        ("unsigned", with(&|recipe| drop(recipe.members.remove(1))), "`MANIFEST.sig` is expected"),
        ("empty", with(&|recipe| recipe.members.clear()), "it has no `MANIFEST.toml`"),
        ("changed list", with(&|recipe| recipe.members[0].1[20] ^= 1), "can't be believed"),
        ("foreign seal", foreign(8), "trusts only its makers' key"),
        ("file after the last", good.clone().insert(5, b"Tiles/evil", b"x", EntryType::Regular), "follows the last"),
        ("no end", with(&|recipe| recipe.end.clear()), "incomplete"),
        ("half an end", with(&|recipe| recipe.end.truncate(512)), "incomplete"),
        ("something after the end", with(&|recipe| recipe.end.extend([7; 512])), "follows its end"),
        ("something in the end", with(&|recipe| recipe.end[700] = 1), "follows its end"),
        ("garbage after the frame", with(&|recipe| recipe.after = b"garbage".to_vec()), "damaged or incomplete"),
        (
            "too long a list",
            with(&|recipe| {
                recipe.members[0] = (header(b"Tiles/MANIFEST.toml", 2 << 20, EntryType::Regular), vec![b'#'; 2 << 20]);
            }),
            "more than allowed",
        ),
    ]
}

#[test]
fn each_kind_of_hostile_archive_is_refused_by_name_and_leaves_nothing() {
    let place = Place::new();
    let good = Recipe::of(&small(&place));
    good.write(&place.path("good.tar.zst"));
    place.import("good.tar.zst", "good", Rules::default()).expect("the control is accepted");
    let with_folder = good.clone().insert(SEALED, b"Tiles/bin/", b"", EntryType::Directory);
    with_folder.write(&place.path("folder.tar.zst"));
    place.import("folder.tar.zst", "folder", Rules::default()).expect("a folder's header is fine");

    let cases = [liars(&good), others(&place, &good)].concat();
    assert!(cases.len() > 50, "{}", cases.len());
    for (kind, recipe, expected) in cases {
        recipe.write(&place.path("bad.tar.zst"));
        let error = place.import("bad.tar.zst", "victim", Rules::default()).expect_err(kind);
        let mut said = error.to_string();
        let mut cause = Error::source(&error);
        while let Some(error) = cause {
            said.push_str(&format!(": {error}"));
            cause = error.source();
        }
        assert!(said.contains(expected), "{kind}: {said}");
        assert!(!said.contains('\x1b'), "{kind}: {said:?}");
        assert!(!place.path("victim").exists(), "{kind}: something was left behind");
    }
    assert!(!place.path("evil").exists());
}

#[test]
fn what_is_behind_a_file_or_packed_to_burst_is_refused() {
    let place = Place::new();
    let good = Recipe::of(&small(&place));
    let refuse = |packed: Vec<u8>, kind: &str| {
        fs::write(place.path("bad.tar.zst"), packed).expect("it can be written");
        let error = place.import("bad.tar.zst", "victim", Rules::default()).expect_err(kind);
        assert!(!place.path("victim").exists(), "{kind}");
        error.to_string()
    };
    // A byte in what fills the last block of a file.
    let mut tar = good.tar();
    let content = tar.windows(7).position(|window| window == b"read me").expect("it is there");
    tar[content + 10] = 7;
    assert!(refuse(zstd::encode_all(tar.as_slice(), 1).expect("memory"), "hidden").contains("hidden behind"));
    // Cut at every length, nothing is ever accepted.
    let whole = zstd::encode_all(good.tar().as_slice(), 1).expect("memory");
    for length in (0..whole.len()).step_by(37) {
        refuse(whole[..length].to_vec(), "cut short");
    }
    // A gigabyte of zeros in a few kilobytes: a list of that length isn't read, and nothing after the end is.
    let mut bomb = zstd::Encoder::new(Vec::new(), 19).expect("memory");
    bomb.write_all(&header(b"Tiles/MANIFEST.toml", 1 << 30, EntryType::Regular)).expect("memory");
    for _ in 0..1024 {
        bomb.write_all(&vec![0; 1 << 20]).expect("memory");
    }
    let bomb = bomb.finish().expect("memory");
    assert!(bomb.len() < 1 << 20);
    let start = std::time::Instant::now();
    assert!(refuse(bomb, "bomb").contains("more than allowed"));
    assert!(start.elapsed().as_secs() < 2);
    // A window of gigabytes isn't made room for.
    let mut wide = zstd::Encoder::new(Vec::new(), 3).expect("memory");
    wide.window_log(28).expect("it is allowed");
    wide.write_all(&good.tar()).expect("memory");
    assert!(refuse(wide.finish().expect("memory"), "window").contains("damaged or incomplete"));
    assert!(refuse(b"no archive at all".to_vec(), "text").contains("damaged or incomplete"));
}

#[test]
fn an_older_archive_does_not_replace_a_newer_bundle() {
    let place = Place::new();
    let bundle = small(&place);
    Recipe::of(&bundle).write(&place.path("old.tar.zst"));
    let text = String::from_utf8_lossy(bundle.manifest_bytes()).replace("generation = 4", "generation = 5");
    let root = place.path("small");
    fs::write(root.join(MANIFEST_NAME), &text).expect("it can be written");
    fs::write(root.join(SIGNATURE_NAME), Signature::sign(&key(), text.as_bytes()).to_toml())
        .expect("it can be written");
    let before = tree(&root);
    assert!(matches!(place.import("old.tar.zst", "small", REPLACE), Err(MoveError::Older { .. })));
    assert_eq!(tree(&root), before);
    place.import("old.tar.zst", "small", Rules { allow_older: true, ..REPLACE }).expect("it was asked for");
}

#[test]
fn a_hostile_archive_does_not_touch_the_bundle_that_it_would_replace() {
    let place = Place::new();
    let bundle = small(&place);
    let before = tree(bundle.root());
    let mut bad = Recipe::of(&bundle);
    bad.members.last_mut().expect("it has files").1[0] ^= 1;
    bad.write(&place.path("bad.tar.zst"));
    assert!(matches!(place.import("bad.tar.zst", "small", REPLACE), Err(MoveError::Archive { .. })));
    assert_eq!(tree(bundle.root()), before);
}
