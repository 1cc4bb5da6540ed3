//! `data/models.toml`: the models that a person added, with their files, authenticated with a key of theirs.
//!
//! The first line is the HMAC-SHA256 of everything after it. Whoever hasn't the key can't add a model or change one.
//! There are two copies, `models.toml` and `models.b.toml`, which are written in place, one after the other: replacing a
//! file by renaming another one isn't safe on exFAT when power goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;

use super::description::{FILES_MAX, WireFile, quoted, write_entry};
use super::name::is_model_name;
use crate::digest::Sha256Digest;
use crate::disk::{self, DiskError, Kind};
use crate::manifest::Entry;

/// The longest list that is read, in bytes.
pub const ADDED_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The most models that a person can add.
pub const ADDED_MODELS_MAX: usize = 1024;
/// Keeps the key's other uses apart from this one.
const LABEL: &[u8] = b"tiles/v1/models.toml\n";

/// The list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AddedError {
    /// It can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Somebody without the key wrote it, or it is damaged.
    #[error("`{}` isn't what this bundle wrote: its authentication code is wrong", path.display())]
    Forged {
        /// Where it is.
        path: PathBuf,
    },
    /// The drive took it, and doesn't have it.
    #[error("`{}` isn't on the drive as it was written", path.display())]
    NotKept {
        /// Where it is.
        path: PathBuf,
    },
    /// The key fits, but what it says doesn't.
    #[error("`{}` can't be used: {what}", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// The models by name, each with its files below the model's folder.
pub type Added = BTreeMap<String, Vec<Entry>>;

#[derive(Deserialize)]
struct Wire {
    format: u64,
    #[serde(default)]
    edition: u64,
    #[serde(default)]
    model: Vec<WireModel>,
}

#[derive(Deserialize)]
struct WireModel {
    name: String,
    #[serde(default)]
    file: Vec<WireFile>,
}

/// The two copies of the list. A power cut damages the one that is being written; the other is then what was listed before.
fn copies(path: &Path) -> [PathBuf; 2] {
    [path.into(), path.with_extension("b.toml")]
}

/// Whether there is a list, damaged or not.
pub fn exists(path: &Path) -> bool {
    copies(path).iter().any(|copy| disk::exists(copy))
}

/// A copy that is whole.
struct Whole {
    /// Counts the writes.
    edition: u64,
    added: Added,
}

/// Reads the list; one that isn't there is empty. `path` is its first copy, the other lies beside it.
///
/// # Errors
/// [`AddedError::Forged`] where no copy is whole, and what reading can meet.
pub fn read(path: &Path, key: &[u8; 32]) -> Result<Added, AddedError> {
    let [first, second] = copies(path).map(|copy| read_copy(&copy, key));
    match (first, second) {
        (Err(error @ AddedError::Disk(_)), _) | (_, Err(error @ AddedError::Disk(_))) => Err(error),
        (Ok(Some(one)), Ok(Some(other))) => Ok(if other.edition > one.edition { other.added } else { one.added }),
        (Ok(Some(whole)), _) | (_, Ok(Some(whole))) => Ok(whole.added),
        (Ok(None), Ok(None)) => Ok(Added::new()),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn read_copy(path: &Path, key: &[u8; 32]) -> Result<Option<Whole>, AddedError> {
    let text = match disk::read(path, ADDED_BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let forged = || AddedError::Forged { path: path.into() };
    let line_end = text.iter().position(|&byte| byte == b'\n').ok_or_else(forged)?;
    let (line, body) = text.split_at(line_end + 1);
    let code = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("mac = \"")?.strip_suffix("\"\n"));
    let code: Sha256Digest = code.and_then(|code| code.parse().ok()).ok_or_else(forged)?;
    // In constant time, so that nothing about the right code leaks.
    mac(key, body).verify_slice(&code.0).map_err(|_| forged())?;
    let unreadable = |what: String| AddedError::Unreadable { path: path.into(), what };
    let body = std::str::from_utf8(body).map_err(|error| unreadable(error.to_string()))?;
    let wire: Wire = toml::from_str(body).map_err(|error| unreadable(error.message().into()))?;
    if wire.format != 1 {
        return Err(unreadable(format!("its format {} isn't 1", wire.format)));
    }
    let mut added = Added::new();
    for model in wire.model {
        if !is_model_name(&model.name) || model.file.len() > FILES_MAX || added.len() == ADDED_MODELS_MAX {
            return Err(unreadable(format!("`{}` isn't a model's name, or there is too much of it", model.name)));
        }
        let entries = model.file.into_iter().map(WireFile::into_entry).collect::<Result<_, _>>().map_err(unreadable)?;
        added.insert(model.name, entries);
    }
    Ok(Some(Whole { edition: wire.edition, added }))
}

/// Writes the list durably, into both copies; last into the one that was read until now.
///
/// # Errors
/// What writing can meet, and [`AddedError::NotKept`]; the list that was there is then untouched.
pub fn write(path: &Path, key: &[u8; 32], added: &Added) -> Result<(), AddedError> {
    let copies = copies(path);
    let [first, second] = [0, 1].map(|copy| read_copy(&copies[copy], key).ok().flatten().map(|whole| whole.edition));
    let edition = first.max(second).map_or(0, |edition| edition.saturating_add(1));
    let content = content(key, edition, added);
    let [next, last] = if first >= second { [1, 0] } else { [0, 1] };
    write_copy(&copies[next], &content)?;
    // With the first the new list counts; that they aren't alike is mended the next time (see [`mend`]).
    let _ = write_copy(&copies[last], &content);
    Ok(())
}

/// Makes both copies alike where they aren't, and gives the path of one that is damaged. Where `is_writable` says that
/// nothing can be written, it is only told.
///
/// # Errors
/// As [`read()`] and [`write()`].
pub fn mend(path: &Path, key: &[u8; 32], is_writable: bool) -> Result<Option<PathBuf>, AddedError> {
    let copies = copies(path);
    let held = [0, 1].map(|copy| read_copy(&copies[copy], key));
    let damaged = held.iter().position(Result::is_err).map(|copy| copies[copy].clone());
    let edition = |held: &Option<Whole>| held.as_ref().map(|whole| whole.edition);
    let are_alike = matches!(&held, [Ok(first), Ok(second)] if edition(first) == edition(second));
    if !are_alike {
        let added = read(path, key)?;
        if is_writable {
            write(path, key, &added)?;
        }
    }
    Ok(damaged)
}

/// Removes the list.
///
/// # Errors
/// What removing can meet.
pub fn remove(path: &Path) -> Result<(), AddedError> {
    Ok(copies(path).iter().try_for_each(|copy| disk::remove(copy))?)
}

fn content(key: &[u8; 32], edition: u64, added: &Added) -> Vec<u8> {
    let mut body = format!("format = 1\nedition = {edition}\n");
    for (name, entries) in added {
        body.push_str(&format!("\n[[model]]\nname = {}\n", quoted(name)));
        entries.iter().for_each(|entry| write_entry(&mut body, "model.file", entry));
    }
    let code = Sha256Digest(mac(key, body.as_bytes()).finalize().into_bytes().into());
    format!("mac = \"{code}\"\n{body}").into_bytes()
}

/// Writes a copy in place, which on exFAT endangers no other file, and reads it back.
fn write_copy(path: &Path, content: &[u8]) -> Result<(), AddedError> {
    if disk::kind(path)? == Some(Kind::File) {
        let file = disk::open_in_place(path)?;
        disk::overwrite(&file, path, content)?;
        disk::sync(&file, path)?;
    } else {
        disk::remove(path)?;
        disk::write(path, content)?;
    }
    let _ = disk::forget_cached(path);
    match disk::read(path, ADDED_BYTES_MAX)? == content {
        true => Ok(()),
        false => Err(AddedError::NotKept { path: path.into() }),
    }
}

fn mac(key: &[u8; 32], body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(LABEL);
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::FileRole;
    use crate::test_folder::TestFolder;

    #[test]
    fn the_list_is_read_with_its_key_only_and_as_it_was_written() {
        let folder = TestFolder::new();
        let path = folder.path().join("models.toml");
        let key = [7; 32];
        assert_eq!(read(&path, &key).expect("none is empty"), Added::new());
        let entry = |path: &str, chunks: Option<Sha256Digest>| Entry {
            path: path.into(),
            size: 9,
            sha256: Sha256Digest::of(b"x"),
            role: FileRole::Model,
            chunks_sha256: chunks,
        };
        let mut added = Added::new();
        added.insert("a".into(), vec![entry("m", Some(Sha256Digest::of(b"y"))), entry("n", None)]);
        added.insert("b".into(), vec![]);
        write(&path, &key, &added).expect("it can be written");
        assert_eq!(read(&path, &key).expect("it is ours"), added);
        assert!(matches!(read(&path, &[8; 32]), Err(AddedError::Forged { .. })));

        let whole = std::fs::read(&path).expect("it is there");
        for at in 0..whole.len() {
            let mut text = whole.clone();
            text[at] ^= 1;
            std::fs::write(&path, &text).expect("it can be written");
            assert_eq!(read(&path, &key).expect("the other copy is whole"), added);
            assert_eq!(mend(&path, &key, false).expect("it can be read"), Some(path.clone()), "byte {at}");
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("it can be written");
            assert!(matches!(read_copy(&path, &key), Err(AddedError::Forged { .. })), "{length} bytes");
        }
        assert_eq!(mend(&path, &key, true).expect("it can be written"), Some(path.clone()));
        assert_eq!(mend(&path, &key, true).expect("it can be read"), None, "once is enough");
        assert_eq!(read_copy(&path, &key).expect("it is whole").expect("it is there").added, added);
        for copy in copies(&path) {
            std::fs::write(copy, b"mac").expect("it can be written");
        }
        assert!(matches!(read(&path, &key), Err(AddedError::Forged { .. })), "no copy is whole");
        assert!(exists(&path));
        remove(&path).expect("it can be removed");
        assert!(!exists(&path));
    }

    #[test]
    fn whatever_was_cut_the_newest_whole_copy_counts() {
        let folder = TestFolder::new();
        let path = folder.path().join("models.toml");
        let key = [7; 32];
        let named = |name: &str| Added::from([(name.to_owned(), vec![])]);
        let [a, b] = copies(&path);
        // A list of before there were two copies.
        let mut old = String::from_utf8(content(&key, 0, &named("old"))).expect("it is text");
        old = old.replace("edition = 0\n", "");
        let body = old.split_once('\n').expect("there is a first line").1;
        let code = Sha256Digest(mac(&key, body.as_bytes()).finalize().into_bytes().into());
        std::fs::write(&a, format!("mac = \"{code}\"\n{body}")).expect("it can be written");
        assert_eq!(read(&path, &key).expect("it is ours"), named("old"));
        write(&path, &key, &named("first")).expect("it can be written");
        let first = std::fs::read(&a).expect("it is there");
        assert_eq!(first, std::fs::read(&b).expect("both are written"));
        write(&path, &key, &named("second")).expect("it can be written");
        let second = std::fs::read(&a).expect("it is there");
        for (next, last) in [(&a, &b), (&b, &a)] {
            std::fs::write(last, &first).expect("it can be written");
            for cut in [0, 1, second.len() - 1] {
                std::fs::write(next, &second[..cut]).expect("it can be written");
                assert_eq!(
                    read(&path, &key).expect("it is ours"),
                    named("first"),
                    "cut in the copy that is written first"
                );
            }
            std::fs::write(next, &second).expect("it can be written");
            assert_eq!(read(&path, &key).expect("it is ours"), named("second"), "cut before the other one");
            assert_eq!(mend(&path, &key, true).expect("it can be written"), None, "nothing is damaged");
            assert_eq!(std::fs::read(last).expect("it is there"), std::fs::read(next).expect("it is there"));
            assert_eq!(read(&path, &key).expect("it is ours"), named("second"));
        }
    }

    #[test]
    fn a_list_with_the_right_code_is_still_checked() {
        let folder = TestFolder::new();
        let path = folder.path().join("models.toml");
        for (body, expected) in [
            ("format = 2\n", "format 2"),
            ("x = 2\n", "missing field"),
            ("format = 1\n[[model]]\nname = \"..\"\n", "`..` isn't a model's name"),
            (
                "format = 1\n[[model]]\nname = \"a\"\n[[model.file]]\npath = \"/x\"\nsize = 0\nsha256 = \"\"\n",
                "isn't a plain path",
            ),
        ] {
            let code = Sha256Digest(mac(&[0; 32], body.as_bytes()).finalize().into_bytes().into());
            std::fs::write(&path, format!("mac = \"{code}\"\n{body}")).expect("it can be written");
            let error = read(&path, &[0; 32]).expect_err("it is wrong").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
