//! SHA-256 digests: of whole files, and of a large file's chunks, so that damage has an address.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// The size of the chunks in which large files are hashed: 4 MiB.
pub const CHUNK_BYTES: u32 = 4 * 1024 * 1024;

/// Files larger than this (8 MiB) are hashed in chunks, with the digests in a `.chunks` sidecar.
pub const CHUNKED_ABOVE_BYTES: u64 = 8 * 1024 * 1024;

/// A SHA-256 digest (FIPS 180-4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest(pub [u8; 32]);

impl Sha256Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256Digest({self})")
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a SHA-256 digest is 64 lower-case hexadecimal digits")]
pub struct ParseDigestError;

impl FromStr for Sha256Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(ParseDigestError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = [nibble(pair[0])?, nibble(pair[1])?];
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Result<u8, ParseDigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseDigestError),
    }
}

/// Hashes a stream piece by piece: the whole of it and each of its chunks in one pass.
#[derive(Clone, Debug, Default)]
pub struct StreamHasher {
    whole: Sha256,
    chunk: Sha256,
    chunk_bytes: u32,
    chunks: Vec<Sha256Digest>,
    bytes: u64,
}

impl StreamHasher {
    /// Starts with nothing hashed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next `piece` of the stream.
    pub fn update(&mut self, mut piece: &[u8]) {
        self.whole.update(piece);
        self.bytes += piece.len() as u64;
        while !piece.is_empty() {
            let room = (CHUNK_BYTES - self.chunk_bytes) as usize;
            let (now, rest) = piece.split_at(room.min(piece.len()));
            self.chunk.update(now);
            self.chunk_bytes += now.len() as u32;
            if self.chunk_bytes == CHUNK_BYTES {
                self.chunks.push(Sha256Digest(self.chunk.finalize_reset().into()));
                self.chunk_bytes = 0;
            }
            piece = rest;
        }
    }

    /// Ends the stream: its length in bytes, its digest and the digests of its chunks.
    pub fn finish(mut self) -> (u64, Sha256Digest, ChunkDigests) {
        if self.chunk_bytes > 0 {
            self.chunks.push(Sha256Digest(self.chunk.finalize().into()));
        }
        (self.bytes, Sha256Digest(self.whole.finalize().into()), ChunkDigests(self.chunks))
    }
}

/// The digests of a file's consecutive chunks of [`CHUNK_BYTES`]; the last chunk may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkDigests(Vec<Sha256Digest>);

impl ChunkDigests {
    /// How many chunks a file of `size` bytes has.
    pub const fn count_of(size: u64) -> u64 {
        size.div_ceil(CHUNK_BYTES as u64)
    }

    /// Reads a sidecar: 32 bytes a chunk, nothing else. `None` unless it fits a file of `size` bytes.
    pub fn from_sidecar(bytes: &[u8], size: u64) -> Option<Self> {
        let (digests, rest) = bytes.as_chunks::<32>();
        (rest.is_empty() && digests.len() as u64 == Self::count_of(size))
            .then(|| Self(digests.iter().map(|digest| Sha256Digest(*digest)).collect()))
    }

    /// The bytes of the sidecar.
    pub fn to_sidecar(&self) -> Vec<u8> {
        self.0.iter().flat_map(|digest| digest.0).collect()
    }

    /// The digest of chunk `chunk_idx`.
    pub fn get(&self, chunk_idx: u64) -> Option<Sha256Digest> {
        self.0.get(usize::try_from(chunk_idx).ok()?).copied()
    }

    /// How many chunks there are.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether there are none, which only an empty file has.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_print_and_parse() {
        // FIPS 180-4, the one-block example.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Sha256Digest::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse(), Ok(Sha256Digest::of(b"abc")));
        for bad in ["", "ba", &abc.to_uppercase(), &abc[1..], &format!("{abc}0")] {
            assert_eq!(bad.parse::<Sha256Digest>(), Err(ParseDigestError));
        }
    }

    #[test]
    fn a_stream_has_the_digests_of_its_chunks() {
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| (i % 251) as u8).collect();
        let mut hasher = StreamHasher::new();
        bytes.chunks(1_000_003).for_each(|piece| hasher.update(piece));
        let (size, whole, chunks) = hasher.finish();
        assert_eq!((size, whole), (bytes.len() as u64, Sha256Digest::of(&bytes)));
        let expected: Vec<_> = bytes.chunks(CHUNK_BYTES as usize).map(Sha256Digest::of).collect();
        assert_eq!(chunks, ChunkDigests(expected));
        assert_eq!(ChunkDigests::from_sidecar(&chunks.to_sidecar(), size), Some(chunks.clone()));
        assert_eq!(ChunkDigests::from_sidecar(&chunks.to_sidecar(), size + u64::from(CHUNK_BYTES)), None);
        assert_eq!(ChunkDigests::from_sidecar(&chunks.to_sidecar()[1..], size), None);
    }
}
