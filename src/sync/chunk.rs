//! Chunks: runs one after the other, compressed, as they go over the wire. Those that wait go into one transaction.

use std::io::Read as _;

use super::error::SyncError;
use crate::oplog::run::RUN_BYTES_MAX;
use crate::oplog::{CheckedRun, Run, RunError};
use crate::time::Timestamp;

/// How many bytes of runs a chunk has before it ends; the last run may go beyond.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// The most bytes of runs in a chunk.
pub const CHUNK_CONTENT_BYTES_MAX: usize = CHUNK_BYTES + RUN_BYTES_MAX;
/// The most bytes of a compressed chunk: what doesn't compress grows by less than that.
pub const CHUNK_BYTES_MAX: usize = CHUNK_CONTENT_BYTES_MAX + CHUNK_CONTENT_BYTES_MAX / 128 + 1_024;
/// How hard the compressor tries: the network of a home is faster than its better levels.
const LEVEL: i32 = 1;
/// The largest window of the compressor, as a power of two: what a hostile chunk makes the reader reserve.
const WINDOW_LOG_MAX: u32 = 24;

/// Compresses runs, each in the form of [`Run::to_bytes`].
pub(super) fn compress(runs: &[u8]) -> Result<Vec<u8>, SyncError> {
    Ok(zstd::bulk::compress(runs, LEVEL)?)
}

/// Reads a chunk and checks each run of it; the bytes may come from anyone.
///
/// # Errors
/// [`SyncError::Malformed`] where it isn't one, or becomes larger than any; each run's own error is beside the run.
pub fn read(compressed: &[u8], now: Timestamp) -> Result<Vec<Result<CheckedRun, RunError>>, SyncError> {
    let broken = |_| SyncError::Malformed { what: "a chunk can't be decompressed" };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(broken)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(broken)?;
    let mut content = Vec::new();
    let most = CHUNK_CONTENT_BYTES_MAX as u64;
    decoder.by_ref().take(most + 1).read_to_end(&mut content).map_err(broken)?;
    if content.len() as u64 > most {
        return Err(SyncError::Malformed { what: "a chunk becomes larger than any that Tiles writes" });
    }
    if !decoder.finish().is_empty() {
        return Err(SyncError::Malformed { what: "something follows the end of a chunk" });
    }
    let (mut runs, mut rest) = (Vec::new(), content.as_slice());
    while !rest.is_empty() {
        let (run, after) = Run::take_from_bytes(rest)?;
        runs.push(CheckedRun::new(run, now));
        rest = after;
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oplog::body::tests::each;
    use crate::oplog::tests::run_of;

    const NOW: Timestamp = Timestamp::from_ms(1_000_000);

    #[test]
    fn runs_come_back_out_of_their_chunk_and_a_bad_one_is_named() {
        let (good, mut bad) = (run_of(1, &each()), run_of(2, &each()));
        bad.signature[9] ^= 1;
        let chunk = compress(&[good.to_bytes(), bad.to_bytes(), good.to_bytes()].concat()).expect("it can be");
        let runs = read(&chunk, NOW).expect("it is one");
        assert_eq!(runs.len(), 3);
        assert!(runs[0].as_ref().is_ok_and(|run| *run.run() == good) && runs[2].is_ok());
        assert_eq!(runs[1], Err(RunError::Signature));
        for end in 0..chunk.len() {
            assert!(read(&chunk[..end], NOW).is_err(), "cut at {end}");
        }
        assert!(read(&[&chunk[..], &[0]].concat(), NOW).is_err(), "something follows");
        assert!(read(&[&chunk[..], &chunk[..]].concat(), NOW).is_err(), "another one follows");
    }

    #[test]
    fn bombs_are_stopped_at_the_limit() {
        let bomb = compress(&vec![0; 64 << 20]).expect("it can be");
        assert!(bomb.len() < 64 << 10);
        assert!(matches!(read(&bomb, NOW), Err(SyncError::Malformed { .. })));
        // A frame that says it has a window of 2 GiB: magic number, no single segment, window descriptor, an empty block.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        assert!(matches!(read(&window, NOW), Err(SyncError::Malformed { .. })));
        // The control: the same with one of 1 KiB.
        let small = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00, 0x01, 0x00, 0x00];
        assert_eq!(read(&small, NOW).expect("it is empty"), []);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, NOW);
            let _ = read(&compress(&bytes).expect("it can be"), NOW);
        }
    }
}
