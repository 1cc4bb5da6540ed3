//! The list of a bundle's files: what each must be, and the signature over all of it.
//!
//! The text comes from a drive that anybody may have written to, so everything in it is bounded and checked here: whoever
//! holds a [`Manifest`] can join its paths to the bundle's root and stay inside.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;
use toml::Spanned;

use crate::digest::{CHUNK_BYTES, CHUNKED_ABOVE_BYTES, Sha256Digest};
use crate::hint::Hint;

pub mod path;
pub mod recipe;
pub mod signature;

pub use signature::Signature;

/// The newest layout of the list that this program reads.
pub const MANIFEST_FORMAT: u32 = 1;
/// The longest list that is read, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// The most files a list may have.
pub const ENTRIES_MAX: usize = 4096;
/// The largest file a list may have, in bytes: what FAT32 can hold.
pub const FILE_BYTES_MAX: u64 = u32::MAX as u64;
/// The longest product name or version, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// What a listed file is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileRole {
    /// A program for one kind of host, or what it loads.
    Program,
    /// What starts the program that fits the host.
    Launcher,
    /// Part of a model.
    Model,
    /// Text for people.
    Doc,
}

impl FileRole {
    /// Every role with its name in the list.
    const NAMES: [(Self, &str); 4] =
        [(Self::Program, "program"), (Self::Launcher, "launcher"), (Self::Model, "model"), (Self::Doc, "doc")];

    /// The role's name in the list.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Launcher => "launcher",
            Self::Model => "model",
            Self::Doc => "doc",
        }
    }

    /// The role of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find_map(|(role, known)| (known == name).then_some(role))
    }
}

/// One listed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies below the folder that the list is for: names of `[A-Za-z0-9._+-]` joined by `/`.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// The digest of its bytes.
    pub sha256: Sha256Digest,
    /// What it is there for.
    pub role: FileRole,
    /// For a large file, the digest of its `.chunks` sidecar (see [`crate::digest::ChunkDigests`]).
    pub chunks_sha256: Option<Sha256Digest>,
}

/// What a bundle consists of, apart from what its owner keeps in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The layout of the list, [`MANIFEST_FORMAT`].
    pub format: u32,
    /// What the bundle is, such as `Tiles`.
    pub product: String,
    /// The version of the programs in it.
    pub version: String,
    /// Grows with each sealing of the same bundle, so that an older state is recognised.
    pub generation: u64,
    /// Every file outside `data/`, sorted by path.
    pub files: Vec<Entry>,
}

/// What is wrong with a list or its signature, by what a person can do about it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// A newer program wrote it.
    #[error("the list has format {format}, newer than the {MANIFEST_FORMAT} that this program reads")]
    Newer {
        /// The format it says it has.
        format: u64,
    },
    /// It is the recipe of the source tree, not the list of a bundle.
    #[error("it is a recipe for building a bundle, not the list of one")]
    Recipe,
    /// It is larger than a list can be.
    #[error("the list has {bytes} bytes, more than the {MANIFEST_BYTES_MAX} allowed")]
    TooLarge {
        /// Its length in bytes.
        bytes: u64,
    },
    /// Something in it is wrong.
    #[error("line {line}: {what}")]
    Invalid {
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// Something in the recipe is wrong.
    #[error("line {line} of the recipe: {what}")]
    InvalidRecipe {
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// The signature isn't one.
    #[error("the signature is damaged: {what}")]
    SignatureText {
        /// What is wrong with it.
        what: String,
    },
    /// The signature is over something else.
    #[error("the signature doesn't fit the list: one of the two was changed")]
    WrongSignature,
}

impl Hint for ManifestError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Newer { .. } => "use the newer Tiles that made this bundle".into(),
            Self::Recipe => "run `tools/start` in the source tree, or give a bundle with `--bundle DIR`".into(),
            Self::InvalidRecipe { .. } => "correct the recipe".into(),
            _ => "copy `MANIFEST.toml` and `MANIFEST.sig` again from where the bundle came from".into(),
        })
    }
}

/// What the text says before anything else of it is believed.
#[derive(Deserialize)]
struct Head {
    format: Option<u64>,
    recipe: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "format")]
    _format: u32,
    product: Spanned<String>,
    version: Spanned<String>,
    generation: u64,
    #[serde(default)]
    file: Vec<Spanned<WireEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEntry {
    path: Spanned<String>,
    size: Spanned<u64>,
    sha256: Spanned<String>,
    role: Spanned<String>,
    chunk_bytes: Option<Spanned<u64>>,
    chunks_sha256: Option<Spanned<String>>,
}

impl Manifest {
    /// Reads the text of `MANIFEST.toml`.
    ///
    /// # Errors
    /// [`ManifestError::Newer`] and [`ManifestError::Recipe`] where the rest can't be judged, else the first wrong line.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let bytes = text.len() as u64;
        if bytes > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes });
        }
        let head: Head = toml::from_str(text).map_err(|e| syntax_error(text, &e))?;
        match head {
            Head { recipe: Some(_), .. } => return Err(ManifestError::Recipe),
            Head { format: Some(format), .. } if format > u64::from(MANIFEST_FORMAT) => {
                return Err(ManifestError::Newer { format });
            }
            Head { format: Some(1), .. } => {}
            Head { .. } => {
                return Err(ManifestError::Invalid { line: 1, what: "`format = 1` is missing".into() });
            }
        }
        let wire: Wire = toml::from_str(text).map_err(|e| syntax_error(text, &e))?;
        for (key, value) in [("product", &wire.product), ("version", &wire.version)] {
            check_name(value.get_ref()).map_err(|what| invalid(text, value, format!("`{key}` {what}")))?;
        }
        if wire.file.len() > ENTRIES_MAX {
            let first = &wire.file[ENTRIES_MAX];
            return Err(invalid(text, first, format!("more than {ENTRIES_MAX} files are listed")));
        }
        let mut files =
            wire.file.iter().map(|entry| parse_entry(text, entry.get_ref())).collect::<Result<Vec<_>, _>>()?;
        check_together(text, &wire.file)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self {
            format: MANIFEST_FORMAT,
            product: wire.product.into_inner(),
            version: wire.version.into_inner(),
            generation: wire.generation,
            files,
        })
    }

    /// The canonical text: sorted by path, one way to write each value. What [`Manifest::parse`] reads back as the same.
    pub fn to_toml(&self) -> String {
        let mut text = format!("format = {}\n", self.format);
        // Writing to a string can't fail.
        let _ = writeln!(text, "product = {}", quoted(&self.product));
        let _ = writeln!(text, "version = {}", quoted(&self.version));
        let _ = writeln!(text, "generation = {}", self.generation);
        let mut files: Vec<&Entry> = self.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        for entry in files {
            let _ = writeln!(text, "\n[[file]]\npath = {}", quoted(&entry.path));
            let _ = writeln!(text, "size = {}\nsha256 = \"{}\"", entry.size, entry.sha256);
            let _ = writeln!(text, "role = \"{}\"", entry.role.as_str());
            if let Some(digest) = entry.chunks_sha256 {
                let _ = writeln!(text, "chunk_bytes = {CHUNK_BYTES}\nchunks_sha256 = \"{digest}\"");
            }
        }
        text
    }

    /// The entry of the file at `path`.
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.path == path)
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn parse_entry(text: &str, wire: &WireEntry) -> Result<Entry, ManifestError> {
    path::check(wire.path.get_ref()).map_err(|e| invalid(text, &wire.path, e.to_string()))?;
    let path = wire.path.get_ref().clone();
    let size = *wire.size.get_ref();
    if size > FILE_BYTES_MAX {
        let what = format!("`{path}` has {size} bytes, more than the {FILE_BYTES_MAX} a drive's file can have");
        return Err(invalid(text, &wire.size, what));
    }
    let digest = |digits: &Spanned<String>| -> Result<Sha256Digest, ManifestError> {
        digits.get_ref().parse().map_err(|e| invalid(text, digits, format!("`{path}`: {e}")))
    };
    let sha256 = digest(&wire.sha256)?;
    let Some(role) = FileRole::from_name(wire.role.get_ref()) else {
        return Err(invalid(text, &wire.role, format!("`{path}` has an unknown role")));
    };
    let chunks_sha256 = match (&wire.chunk_bytes, &wire.chunks_sha256) {
        (Some(bytes), Some(digits)) if size > CHUNKED_ABOVE_BYTES => {
            if *bytes.get_ref() != u64::from(CHUNK_BYTES) {
                return Err(invalid(text, bytes, format!("`{path}`: `chunk_bytes` isn't {CHUNK_BYTES}")));
            }
            Some(digest(digits)?)
        }
        (None, None) if size <= CHUNKED_ABOVE_BYTES => None,
        _ => {
            let what = format!(
                "`{path}`: `chunk_bytes` and `chunks_sha256` belong to files of more than {CHUNKED_ABOVE_BYTES} bytes, and only to them"
            );
            return Err(invalid(text, &wire.size, what));
        }
    };
    Ok(Entry { path, size, sha256, role, chunks_sha256 })
}

/// What no entry shows alone: paths that are the same on a drive that doesn't tell `A` from `a`, and files that are folders.
fn check_together(text: &str, entries: &[Spanned<WireEntry>]) -> Result<(), ManifestError> {
    let mut files = BTreeSet::new();
    let mut folders: BTreeMap<String, &str> = BTreeMap::new();
    for wire in entries {
        let path = &wire.get_ref().path;
        let name = path.get_ref();
        if !files.insert(name.to_ascii_lowercase()) {
            return Err(invalid(text, path, format!("`{name}` is listed twice (capital letters don't count)")));
        }
        for (end, _) in name.match_indices('/') {
            let folder = &name[..end];
            let known = folders.entry(folder.to_ascii_lowercase()).or_insert(folder);
            if *known != folder {
                return Err(invalid(text, path, format!("`{name}` is in a folder that is also written `{known}`")));
            }
        }
    }
    for wire in entries {
        let path = &wire.get_ref().path;
        if folders.contains_key(&path.get_ref().to_ascii_lowercase()) {
            return Err(invalid(text, path, format!("`{}` is listed as a file and as a folder", path.get_ref())));
        }
    }
    Ok(())
}

/// Checks a product name or version: letters, digits, spaces and `._+-`, not empty, not long.
fn check_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" ._+-".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(format!("has {} bytes; 1 to {NAME_BYTES_MAX} are allowed", name.len()));
    }
    if name.bytes().all(plain) { Ok(()) } else { Err("has a character that isn't allowed there".into()) }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn invalid<T>(text: &str, at: &Spanned<T>, what: String) -> ManifestError {
    ManifestError::Invalid { line: line_at(text, at.span().start), what }
}

fn syntax_error(text: &str, error: &toml::de::Error) -> ManifestError {
    let (line, what) = line_and_what(text, error);
    ManifestError::Invalid { line, what }
}

fn line_and_what(text: &str, error: &toml::de::Error) -> (usize, String) {
    let offset = error.span().map_or(0, |span| span.start);
    // The parser may quote what it found, which is anybody's text.
    let what = error.message().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    (line_at(text, offset), what)
}

#[cfg(test)]
mod tests;
