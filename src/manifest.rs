//! The list of a bundle's files: what each must be, and the signature over all of it.

use crate::digest::Sha256Digest;

/// What a listed file is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileRole {
    /// A program for one kind of host.
    Program,
    /// What starts the program that fits the host.
    Launcher,
    /// Part of a model.
    Model,
    /// Text for people.
    Doc,
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
