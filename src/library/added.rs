//! `data/models.toml`: the models that a person added, with their files, authenticated with a key of theirs.
//!
//! The first line is the HMAC-SHA256 of everything after it. Whoever hasn't the key can't add a model or change one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;

use super::description::{FILES_MAX, WireFile, quoted, write_entry};
use super::name::is_model_name;
use crate::digest::Sha256Digest;
use crate::disk::{self, DiskError};
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
    model: Vec<WireModel>,
}

#[derive(Deserialize)]
struct WireModel {
    name: String,
    #[serde(default)]
    file: Vec<WireFile>,
}

/// Reads the list; one that isn't there is empty.
///
/// # Errors
/// [`AddedError::Forged`], and what reading can meet.
pub fn read(path: &Path, key: &[u8; 32]) -> Result<Added, AddedError> {
    let text = match disk::read(path, ADDED_BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(Added::new()),
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
    Ok(added)
}

/// Writes the list durably.
///
/// # Errors
/// What writing can meet; the list that was there is then untouched.
pub fn write(path: &Path, key: &[u8; 32], added: &Added) -> Result<(), AddedError> {
    let mut body = String::from("format = 1\n");
    for (name, entries) in added {
        body.push_str(&format!("\n[[model]]\nname = {}\n", quoted(name)));
        entries.iter().for_each(|entry| write_entry(&mut body, "model.file", entry));
    }
    let code = Sha256Digest(mac(key, body.as_bytes()).finalize().into_bytes().into());
    Ok(disk::write(path, format!("mac = \"{code}\"\n{body}").as_bytes())?)
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
            assert!(matches!(read(&path, &key), Err(AddedError::Forged { .. })), "byte {at}");
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("it can be written");
            assert!(matches!(read(&path, &key), Err(AddedError::Forged { .. })), "{length} bytes");
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
