//! Memory that weights are streamed from: aligned to cache lines, in large pages where the system gives some.

#![expect(unsafe_code, reason = "numbers as bytes, and advice about memory")]

/// The bytes of a cache line.
const LINE_BYTES: usize = 64;

/// From how many bytes on large pages are asked for: below, a matrix is in a page or two anyway.
const LARGE_BYTES: usize = 32 * 1024;

/// Bytes, the first of which begins a cache line: a vector load that straddles two lines counts as two.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Some more than needed. Asked for with an alignment, the allocator would write zeros itself, which costs a pass over all
    /// weights.
    words: Vec<u32>,
    /// The first word that begins a line.
    start: usize,
    len: usize,
}

impl Memory {
    /// So many zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let words = vec![0_u32; (len + LINE_BYTES).div_ceil(4)];
        let start = words.as_ptr().align_offset(LINE_BYTES);
        if len >= LARGE_BYTES {
            ask_for_large_pages(&words);
        }
        Self { words, start, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let words = &self.words[self.start..];
        // SAFETY: u32 has no padding and any alignment is fine for bytes; `zeros` made room for so many.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let words = &mut self.words[self.start..];
        // SAFETY: u32 has no padding and takes any bits; for the rest as above.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), self.len) }
    }
}

/// Asks for pages of 2 MiB, whose addresses the processor looks up without a walk. All matrices are asked for before the
/// first is written, so they are neighbours and fill such pages together.
#[cfg(target_os = "linux")]
fn ask_for_large_pages(words: &[u32]) {
    // Where the system's pages are larger than these the call is refused.
    let page = 4096;
    let range = words.as_ptr_range();
    let before = range.start.addr() % page;
    let start = range.start.wrapping_byte_sub(before);
    let len = (range.end.addr() - start.addr()).next_multiple_of(page);
    // SAFETY: the advice changes no contents, whoever else has part of the first or the last page. Refused, the pages stay
    // small.
    let _ = unsafe { rustix::mm::madvise(start.cast_mut().cast(), len, rustix::mm::Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages(_: &[u32]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_a_line_and_is_as_long_as_asked() {
        for len in [0, 1, 63, 64, 65, 4_096, 100_001, 3 << 20] {
            let mut memory = Memory::zeros(len);
            assert!(memory.bytes().as_ptr().addr().is_multiple_of(LINE_BYTES), "{len}");
            assert!(memory.bytes().len() == len && memory.bytes().iter().all(|byte| *byte == 0), "{len}");
            memory.bytes_mut().fill(7);
            assert!(memory.bytes().iter().all(|byte| *byte == 7), "{len}");
        }
    }
}
