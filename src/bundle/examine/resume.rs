//! How far an interrupted verification came: one small file that counts only for the very same list.
//!
//! Whoever can write to the drive could forge it, and so hide damage; as they could by replacing the program that reads it.
//! So a program that isn't the drive's own passes no [`Resume`], and a state of more than a day is forgotten.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Damage, Flaw};
use crate::digest::Sha256Digest;
use crate::disk;
use crate::manifest::Entry;
use crate::time::Timestamp;

/// The longest state that is read or kept, in bytes.
const STATE_BYTES_MAX: u64 = 64 * 1024;
/// After how many chunks it is written: each 256 MiB.
const KEEP_EACH_CHUNKS: u64 = 64;
/// How long a state counts, in milliseconds: drives rot.
const AGE_MS_MAX: i64 = 24 * 60 * 60 * 1000;

/// The state of a verification of one list.
#[derive(Debug)]
pub struct Resume {
    path: PathBuf,
    list: Sha256Digest,
    since: Timestamp,
    now: Timestamp,
    seen_chunks: u64,
    /// The files that are read chunk by chunk; only their damage is kept, since the others are read again.
    large: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    list: String,
    since_ms: i64,
    path: String,
    chunk: u64,
    #[serde(default)]
    damaged: Vec<WireDamage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireDamage {
    path: String,
    flaw: String,
    at: u64,
}

impl Resume {
    /// The state that is kept at `path` for a verification of `entries` at the time `now`.
    pub fn new(path: &Path, entries: &[Entry], now: Timestamp) -> Self {
        let mut text = String::new();
        let mut sorted: Vec<&Entry> = entries.iter().collect();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        for entry in sorted {
            text.push_str(&format!("{} {} {}\n", entry.sha256, entry.size, entry.path));
        }
        let large = entries.iter().filter(|entry| entry.chunks_sha256.is_some()).map(|entry| entry.path.clone());
        let list = Sha256Digest::of(text.as_bytes());
        Self { path: path.into(), list, since: now, now, seen_chunks: 0, large: large.collect() }
    }

    /// Forgets what was kept: the next verification begins at the beginning.
    pub fn forget(&self) {
        // On a drive that can't be written nothing was kept.
        let _ = disk::remove(&self.path);
    }

    /// Where to go on: file and chunk. What was damaged before that is added to `damaged`.
    pub(super) fn start(&mut self, damaged: &mut Vec<Damage>) -> Option<(String, u64)> {
        let text = disk::read_text(&self.path, STATE_BYTES_MAX).ok()?;
        // A rotten bit must not make it pass over chunks that nobody read.
        let (digest, text) = text.split_once('\n')?;
        if digest.strip_prefix("# ")?.parse() != Ok(Sha256Digest::of(text.as_bytes())) {
            return None;
        }
        let wire: Wire = toml::from_str(text).ok()?;
        let age_ms = self.now.as_ms().checked_sub(wire.since_ms)?;
        if wire.list.parse() != Ok(self.list) || !(0..=AGE_MS_MAX).contains(&age_ms) {
            return None;
        }
        let before: Vec<Damage> = wire.damaged.into_iter().map(|damage| damage.read()).collect::<Option<_>>()?;
        self.since = Timestamp::from_ms(wire.since_ms);
        damaged.extend(before);
        Some((wire.path, wire.chunk))
    }

    /// Notes that all before chunk `chunk_idx` of the file at `path` is read; writes it now and then, and when it `stops`.
    pub(super) fn reached(&mut self, path: &str, chunk_idx: u64, damaged: &[Damage], stops: bool) {
        self.seen_chunks += 1;
        if !stops && !self.seen_chunks.is_multiple_of(KEEP_EACH_CHUNKS) {
            return;
        }
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let (list, since_ms) = (self.list, self.since.as_ms());
        let mut text =
            format!("list = \"{list}\"\nsince_ms = {since_ms}\npath = {}\nchunk = {chunk_idx}\n", quoted(path));
        for damage in damaged.iter().filter(|damage| self.large.contains(&damage.path)) {
            let (flaw, at) = match damage.flaw {
                Flaw::Chunk { offset } => ("chunk", offset),
                Flaw::Sidecar => ("sidecar", 0),
                Flaw::Content => ("content", 0),
                Flaw::Size { found } => ("size", found),
                Flaw::Missing | Flaw::WrongKind => ("missing", 0),
            };
            text.push_str(&format!("[[damaged]]\npath = {}\nflaw = \"{flaw}\"\nat = {at}\n", quoted(&damage.path)));
        }
        // With more damage than this, reading everything again isn't what takes the time.
        if text.len() as u64 <= STATE_BYTES_MAX && self.path.parent().is_some_and(disk::is_folder) {
            let digest = Sha256Digest::of(text.as_bytes());
            let _ = disk::write(&self.path, format!("# {digest}\n{text}").as_bytes());
        }
    }

    /// Notes that everything is read.
    pub(super) fn finish(&mut self) {
        self.forget();
    }
}

impl WireDamage {
    fn read(self) -> Option<Damage> {
        let flaw = match self.flaw.as_str() {
            "chunk" => Flaw::Chunk { offset: self.at },
            "sidecar" => Flaw::Sidecar,
            "content" => Flaw::Content,
            "size" => Flaw::Size { found: self.at },
            "missing" => Flaw::Missing,
            _ => return None,
        };
        Some(Damage { path: self.path, flaw })
    }
}
