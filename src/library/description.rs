//! `model.toml`: where a model comes from, what it is, and which files it has.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::digest::Sha256Digest;
use crate::manifest::path::check_below;
use crate::manifest::{Entry, FileRole};

/// The longest `model.toml` that is read, in bytes.
pub const DESCRIPTION_BYTES_MAX: u64 = 1024 * 1024;
/// The name of the file.
pub const DESCRIPTION_NAME: &str = "model.toml";
/// The newest layout of it.
pub const DESCRIPTION_FORMAT: u64 = 1;
/// The most files of a model.
pub const FILES_MAX: usize = 1024;

/// What is known about a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// What it is called.
    pub name: String,
    /// Where it came from, such as `org/name` or a file's name; never a path of some machine.
    pub source: String,
    /// Which revision of the source.
    pub revision: Option<String>,
    /// Its licence, as the source states it.
    pub licence: Option<String>,
    /// Its architecture, as `config.json` names it.
    pub architecture: Option<String>,
    /// Its quantisation in words.
    pub quantisation: Option<String>,
    /// How many numbers it has.
    pub parameters: Option<u64>,
    /// Its longest context in tokens.
    pub context: Option<u64>,
    /// What brought it into this form.
    pub converted_by: Option<String>,
    /// What the conversion lost: `none`, or in words.
    pub loss: Option<String>,
    /// Its files but `model.toml` itself.
    pub files: Vec<Entry>,
}

#[derive(Deserialize)]
struct Wire {
    format: Option<u64>,
    name: Option<String>,
    source: Option<String>,
    revision: Option<String>,
    licence: Option<String>,
    architecture: Option<String>,
    quantisation: Option<String>,
    parameters: Option<u64>,
    context: Option<u64>,
    converted_by: Option<String>,
    loss: Option<String>,
    #[serde(default)]
    file: Vec<WireFile>,
}

#[derive(Deserialize)]
pub(super) struct WireFile {
    path: String,
    size: u64,
    sha256: String,
    chunks_sha256: Option<String>,
}

impl WireFile {
    /// The entry, or what is wrong with it.
    pub(super) fn into_entry(self) -> Result<Entry, String> {
        check_below(&self.path).map_err(|error| error.to_string())?;
        let digest = |text: &str| text.parse::<Sha256Digest>().map_err(|error| format!("`{}`: {error}", self.path));
        let (sha256, chunks_sha256) = (digest(&self.sha256)?, self.chunks_sha256.as_deref().map(digest).transpose()?);
        Ok(Entry { path: self.path, size: self.size, sha256, role: FileRole::Model, chunks_sha256 })
    }
}

/// Writes one entry as a table of an array called `key`.
pub(super) fn write_entry(out: &mut String, key: &str, entry: &Entry) {
    let _ = write!(
        out,
        "\n[[{key}]]\npath = {}\nsize = {}\nsha256 = \"{}\"\n",
        quoted(&entry.path),
        entry.size,
        entry.sha256
    );
    if let Some(digest) = entry.chunks_sha256 {
        let _ = writeln!(out, "chunks_sha256 = \"{digest}\"");
    }
}

/// A text as TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Description {
    /// Reads the text of a `model.toml`.
    ///
    /// Unknown keys are left alone: whoever made the file may say more.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wire: Wire = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        if let Some(format) = wire.format.filter(|&format| format > DESCRIPTION_FORMAT) {
            return Err(format!("its format {format} is newer than the {DESCRIPTION_FORMAT} that this program reads"));
        }
        if wire.file.len() > FILES_MAX {
            return Err(format!("it lists more than {FILES_MAX} files"));
        }
        Ok(Self {
            name: wire.name.unwrap_or_default(),
            source: wire.source.unwrap_or_default(),
            revision: wire.revision,
            licence: wire.licence,
            architecture: wire.architecture,
            quantisation: wire.quantisation,
            parameters: wire.parameters,
            context: wire.context,
            converted_by: wire.converted_by,
            loss: wire.loss,
            files: wire.file.into_iter().map(WireFile::into_entry).collect::<Result<_, _>>()?,
        })
    }

    /// The text of the file. The same description gives the same bytes.
    pub fn print(&self) -> String {
        let mut out = format!("format = {DESCRIPTION_FORMAT}\n");
        let texts = [
            ("name", Some(&self.name)),
            ("source", Some(&self.source)),
            ("revision", self.revision.as_ref()),
            ("licence", self.licence.as_ref()),
            ("architecture", self.architecture.as_ref()),
            ("quantisation", self.quantisation.as_ref()),
            ("converted_by", self.converted_by.as_ref()),
            ("loss", self.loss.as_ref()),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                let _ = writeln!(out, "{key} = {}", quoted(text));
            }
        }
        for (key, number) in [("parameters", self.parameters), ("context", self.context)] {
            if let Some(number) = number {
                let _ = writeln!(out, "{key} = {number}");
            }
        }
        self.files.iter().for_each(|entry| write_entry(&mut out, "file", entry));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wrong_descriptions_are_refused() {
        for (text, expected) in [
            ("format = 2", "newer"),
            ("name = 1", "invalid type"),
            ("format = -1", "invalid value"),
            ("[[file]]\npath = \"../x\"\nsize = 1\nsha256 = \"\"", "isn't a plain path"),
            ("[[file]]\npath = \"x\"\nsize = 1\nsha256 = \"00\"", "64 lower-case"),
            ("[[file]]\npath = \"x\"\nsize = -1\nsha256 = \"00\"", "invalid value"),
            ("=", "key"),
        ] {
            let error = Description::parse(text).expect_err("it is wrong");
            assert!(error.contains(expected), "{error}\n{expected}");
        }
        assert_eq!(Description::parse("").expect("all may be missing"), Description::default());
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(
            texts in prop::collection::vec(any::<String>(), 2),
            maybe in prop::option::of(any::<String>()),
            number in prop::option::of(0..i64::MAX as u64),
            files in prop::collection::vec(("[a-z]{1,9}", 0..i64::MAX as u64, any::<[u8; 32]>(), any::<bool>()), 0..4),
        ) {
            let entry = |(path, size, sha256, large): (String, u64, [u8; 32], bool)| Entry {
                path, size, sha256: Sha256Digest(sha256), role: FileRole::Model,
                chunks_sha256: large.then_some(Sha256Digest(sha256)),
            };
            let description = Description {
                name: texts[0].clone(), source: texts[1].clone(), revision: maybe.clone(), licence: maybe.clone(),
                architecture: maybe.clone(), quantisation: maybe.clone(), parameters: number, context: number,
                converted_by: maybe.clone(), loss: maybe, files: files.into_iter().map(entry).collect(),
            };
            let files_ok = description.files.iter().all(|entry| check_below(&entry.path).is_ok());
            prop_assume!(files_ok);
            prop_assert_eq!(Description::parse(&description.print()), Ok(description));
        }
    }
}
