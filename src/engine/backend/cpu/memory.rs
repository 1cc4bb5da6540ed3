//! Memory that weights are streamed from: whole cache lines, one matrix after the other, in large pages where the system
//! gives some.
//!
//! Two threads read 98 MB of weights at 62 GB/s from pages of 2 MiB and at 40 GB/s from those of 4 KiB (Zen 4, a virtual
//! machine, where looking up an address takes two walks).

#![expect(unsafe_code, reason = "matrices share an allocation")]

use std::sync::Arc;

/// The bytes of a cache line: a vector load that straddles two of them counts as two.
const LINE_BYTES: usize = 64;

/// The bytes of a large page.
const PAGE_BYTES: usize = 2 << 20;

/// How much is allocated at once: what no matrix uses is never touched and takes no memory.
const CHUNK_BYTES: usize = 32 << 20;

/// Gives out memory of one allocation after the other.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunk: Option<Arc<Chunk>>,
    /// How many bytes of the chunk were given out.
    used: usize,
}

/// One allocation, from a border of large pages on.
#[derive(Debug)]
struct Chunk {
    words: Vec<u32>,
    /// The first word that begins a page.
    first: usize,
    len: usize,
}

/// Zeros, and then what is written there: the part of a chunk that is nobody else's.
#[derive(Debug)]
pub(super) struct Memory {
    start: *mut u8,
    len: usize,
    /// Keeps the bytes.
    _chunk: Arc<Chunk>,
}

// SAFETY: the bytes are this memory's alone, and are borrowed as it is.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Arena {
    /// So many zeros, the first of which begins a cache line.
    pub(super) fn zeros(&mut self, len: usize) -> Memory {
        let reserved = len.next_multiple_of(LINE_BYTES);
        let chunk = match self.chunk.take() {
            Some(chunk) if self.used + reserved <= chunk.len => chunk,
            _ => {
                self.used = 0;
                Arc::new(Chunk::new(reserved.max(CHUNK_BYTES)))
            }
        };
        let start = chunk.words[chunk.first..].as_ptr().cast_mut().cast::<u8>().wrapping_add(self.used);
        self.used += reserved;
        self.chunk = Some(Arc::clone(&chunk));
        Memory { start, len, _chunk: chunk }
    }
}

impl Chunk {
    fn new(len: usize) -> Self {
        // Asked for with an alignment, the allocator would write the zeros itself, a pass over all weights.
        let words = vec![0_u32; (len + PAGE_BYTES) / 4];
        let first = words.as_ptr().align_offset(PAGE_BYTES);
        ask_for_large_pages(&words[first..first + len / 4]);
        Self { words, first, len }
    }
}

impl Memory {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: they lie in the chunk, are nobody else's, and any bits and alignment do for bytes.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Refused, the pages stay small.
#[cfg(target_os = "linux")]
fn ask_for_large_pages(words: &[u32]) {
    let start = words.as_ptr().cast_mut().cast();
    // SAFETY: the advice changes no contents.
    let _ = unsafe { rustix::mm::madvise(start, words.len() * 4, rustix::mm::Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages(_: &[u32]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_begin_lines_are_as_long_as_asked_and_apart() {
        let mut arena = Arena::default();
        let lens = [0, 1, 63, 64, 65, 4_096, 100_001, 3 << 20, CHUNK_BYTES - 1, 5, CHUNK_BYTES + 1, 7];
        let mut memories: Vec<Memory> = lens.iter().map(|len| arena.zeros(*len)).collect();
        for (idx, memory) in memories.iter_mut().enumerate() {
            assert!(memory.bytes().as_ptr().addr().is_multiple_of(LINE_BYTES), "{idx}");
            assert!(memory.bytes().len() == lens[idx] && memory.bytes().iter().all(|byte| *byte == 0), "{idx}");
            memory.bytes_mut().fill(idx as u8 + 1);
        }
        for (idx, memory) in memories.iter().enumerate() {
            assert!(memory.bytes().iter().all(|byte| *byte == idx as u8 + 1), "{idx}");
        }
    }
}
