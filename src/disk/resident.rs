//! Files that shall be in memory before they are needed: those of the running program.
//!
//! The code of a program is read page by page, when it is first run. On a drive that was pulled out meanwhile that is no
//! error but SIGBUS: the program ends without a word, on the very path that should say one, and leaves the terminal as the
//! line editor had it. What was read once is taken from the system's cache.

use std::io::Read as _;
use std::path::Path;

use super::{DiskError, open};

/// How much is read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Reads the file at `path` from end to end, at most `bytes_max` bytes of it, and keeps nothing but what the system does.
/// Gives how many bytes that were.
///
/// # Errors
/// What reading can meet.
pub fn read_through(path: &Path, bytes_max: u64) -> Result<u64, DiskError> {
    let (file, _) = open(path)?;
    let (mut file, mut piece, mut total) = (file.take(bytes_max), vec![0; PIECE_BYTES], 0);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(total),
            Ok(bytes) => total += bytes as u64,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DiskError::new("read", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::write;
    use crate::test_folder::TestFolder;

    #[test]
    fn a_file_is_read_to_its_end_or_the_limit() {
        let folder = TestFolder::new();
        let path = folder.path().join("program");
        write(&path, &vec![7; PIECE_BYTES + 5]).expect("the folder can be written");
        let bytes = PIECE_BYTES as u64 + 5;
        assert_eq!(read_through(&path, u64::MAX).expect("it is there"), bytes);
        assert_eq!(read_through(&path, bytes - 1).expect("it is there"), bytes - 1);
        assert!(read_through(folder.path(), 9).is_err(), "a folder is no file");
    }
}
