//! Zstandard frames: packed ones for what gets smaller, and stored ones for weights, which don't.
//!
//! RFC 8878: frames follow each other, and a reader sees one stream. A stored frame is made of raw blocks, so that it costs a
//! copy; packing quantised weights costs far more and saves little.

use std::io::{self, Write};

/// How strongly small files are packed; the same on every machine, with one thread, so that archives are the same.
const LEVEL: i32 = 3;
/// The first bytes of a frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The longest block, in bytes.
const BLOCK_BYTES_MAX: usize = 128 * 1024;
/// A window of 128 KiB: exponent 7 (2^(10 + 7)), mantissa 0.
const WINDOW: u8 = 7 << 3;

/// A packed frame, which other writing goes into.
pub(super) fn packed<W: Write>(out: W) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(out, LEVEL)?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

/// A stored frame. [`Stored::finish`] ends it; without that it has no end.
pub(super) struct Stored<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> Stored<W> {
    /// Begins a frame.
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        // No content size, no checksum (each file has a SHA-256), no dictionary; then the window.
        out.write_all(&MAGIC)?;
        out.write_all(&[0, WINDOW])?;
        Ok(Self { out, block: Vec::with_capacity(BLOCK_BYTES_MAX) })
    }

    /// Ends the frame.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        Ok(self.out)
    }

    fn put(&mut self, is_last: bool) -> io::Result<()> {
        // Bit 0: the last block; bits 1 and 2: raw, 0; then the length.
        let header = (self.block.len() as u32) << 3 | u32::from(is_last);
        self.out.write_all(&header.to_le_bytes()[..3])?;
        self.out.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }
}

impl<W: Write> Write for Stored<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == BLOCK_BYTES_MAX {
            self.put(false)?;
        }
        let bytes = &bytes[..bytes.len().min(BLOCK_BYTES_MAX - self.block.len())];
        self.block.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_zstandard_sees_one_stream() {
        for length in [0, 1, BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 1, 3 * BLOCK_BYTES_MAX] {
            let content: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut out = Vec::new();
            let mut frame = packed(&mut out).expect("memory takes it");
            frame.write_all(b"before").expect("memory takes it");
            frame.finish().expect("memory takes it");
            let mut frame = Stored::new(&mut out).expect("memory takes it");
            frame.write_all(&content).expect("memory takes it");
            frame.finish().expect("memory takes it");
            let unpacked = zstd::decode_all(out.as_slice()).expect("it is Zstandard");
            assert_eq!(unpacked, [b"before".as_slice(), &content].concat(), "{length} bytes");
        }
    }
}
