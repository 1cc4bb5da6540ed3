//! What the Hub says about a repository: its commit and files, checked as the words of a stranger.

use serde::Deserialize;

use crate::digest::Sha256Digest;
use crate::manifest::path::check_below;

/// The most files that a repository may list.
pub const REMOTE_FILES_MAX: usize = 10_000;
/// The longest name of a repository or revision, in bytes.
pub const REMOTE_NAME_BYTES_MAX: usize = 200;

/// What a file must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteDigest {
    /// SHA-256 of the content: what Git LFS keeps for large files.
    Sha256(Sha256Digest),
    /// The name of the Git blob: SHA-1 of `blob SIZE\0` and the content.
    GitSha1([u8; 20]),
}

/// One file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: RemoteDigest,
}

/// A repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// Its licence, as its page states it.
    pub licence: Option<String>,
    /// Its files at the top; those in folders are no part of a model.
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Wire {
    sha: String,
    #[serde(rename = "cardData")]
    card: Option<serde_json::Value>,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: Option<u64>,
}

impl Listing {
    /// Reads the answer of `GET /api/models/REPO/revision/REVISION?blobs=true`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(text).map_err(|error| format!("its listing: {error}"))?;
        if sha1_of(&wire.sha).is_none() {
            return Err("its listing has no commit".into());
        }
        if wire.siblings.len() > REMOTE_FILES_MAX {
            return Err(format!("it lists more than {REMOTE_FILES_MAX} files"));
        }
        let licence = wire.card.as_ref().and_then(|card| card.get("license")?.as_str());
        let licence = licence.map(|text| text.chars().filter(|c| !c.is_control()).take(100).collect());
        let mut files = Vec::new();
        for sibling in wire.siblings {
            let name = sibling.rfilename.as_str();
            let leads_out = name.starts_with('/') || name.split('/').any(|part| matches!(part, "." | ".." | ""));
            if leads_out || name.contains('\\') || name.chars().any(char::is_control) {
                return Err(format!("`{}` leads out of the model's folder", name.escape_default()));
            }
            if !name.contains('/') && check_below(name).is_ok() {
                files.push(sibling.into_file()?);
            }
        }
        Ok(Self { commit: wire.sha, licence, files })
    }
}

impl Sibling {
    fn into_file(self) -> Result<RemoteFile, String> {
        let Self { rfilename: path, size, blob, lfs } = self;
        let size = size.or(lfs.as_ref().and_then(|lfs| lfs.size)).ok_or(format!("`{path}` has no size"))?;
        if lfs.as_ref().and_then(|lfs| lfs.size).is_some_and(|lfs| lfs != size) {
            return Err(format!("`{path}` has two sizes"));
        }
        let digest = match (&lfs, &blob) {
            (Some(lfs), _) => lfs.sha256.parse().ok().map(RemoteDigest::Sha256),
            (None, Some(blob)) => sha1_of(blob).map(RemoteDigest::GitSha1),
            (None, None) => None,
        };
        let digest = digest.ok_or(format!("`{path}` has no digest"))?;
        Ok(RemoteFile { path, size, digest })
    }
}

/// Reads 40 hexadecimal digits.
fn sha1_of(text: &str) -> Option<[u8; 20]> {
    // A SHA-256 with the missing digits as zeros goes through the same strict parser.
    let padded: Sha256Digest = format!("{text}{}", "0".repeat(24)).parse().ok().filter(|_| text.len() == 40)?;
    padded.0[..20].try_into().ok()
}

/// Whether `text` can be a repository: `org/name`.
pub fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    text.len() <= REMOTE_NAME_BYTES_MAX && text.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// Whether `text` can be a branch, tag or commit.
pub fn is_revision(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= REMOTE_NAME_BYTES_MAX
        && !text.contains("..")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn listings_are_read_and_hostile_ones_refused() {
        let sha256 = "0".repeat(64);
        let one = |file: &str| format!(r#"{{"sha":"{COMMIT}","siblings":[{file}]}}"#);
        let right = one(&format!(
            r#"{{"rfilename":"config.json","size":5,"blobId":"{COMMIT}"}},
               {{"rfilename":"onnx/model.onnx","size":5}},
               {{"rfilename":"model.safetensors","size":9,"blobId":"x","lfs":{{"sha256":"{sha256}","size":9,"pointerSize":1}}}}"#
        ));
        let listing = Listing::parse(right.as_bytes()).expect("it is right");
        assert_eq!(
            listing.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(),
            ["config.json", "model.safetensors"]
        );
        assert!(matches!(listing.files[0].digest, RemoteDigest::GitSha1(_)));
        for (text, expected) in [
            ("{".into(), "EOF"),
            (r#"{"sha":"main","siblings":[]}"#.into(), "no commit"),
            (one(r#"{"rfilename":"tokenizer/../../x.json","size":1}"#), "leads out"),
            (one(r#"{"rfilename":"/etc/passwd","size":1}"#), "leads out"),
            (one(r#"{"rfilename":"a\\b","size":1}"#), "leads out"),
            (one(r#"{"rfilename":"config.json"}"#), "no size"),
            (one(r#"{"rfilename":"config.json","size":-1}"#), "invalid value"),
            (one(r#"{"rfilename":"config.json","size":1}"#), "no digest"),
            (one(r#"{"rfilename":"config.json","size":1,"blobId":"00"}"#), "no digest"),
            (one(&format!(r#"{{"rfilename":"m","size":1,"lfs":{{"sha256":"{sha256}","size":2}}}}"#)), "two sizes"),
            (one(&vec![r#"{"rfilename":"a/b"}"#; REMOTE_FILES_MAX + 1].join(",")), "more than 10000 files"),
        ] {
            let error = Listing::parse(text.as_bytes()).expect_err("it is wrong");
            assert!(error.contains(expected), "{error}\n{expected}");
        }
    }

    #[test]
    fn names_are_plain() {
        for (name, fits) in [
            ("a/b", true),
            ("mlx-community/Qwen3-0.6B-4bit", true),
            ("a", false),
            ("a/b/c", false),
            ("../b", false),
            ("a/..", false),
            ("a/b?x", false),
            ("", false),
        ] {
            assert_eq!(is_repo(name), fits, "{name}");
        }
        assert!(is_revision("refs/pr/1") && !is_revision("a/../b") && !is_revision("a b") && !is_revision(""));
    }
}
