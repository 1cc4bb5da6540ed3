//! Two-slot files: small precious content that survives a power cut on any file system, exFAT included.
//!
//! Renaming a new file over the old one isn't safe there: 83 of 260 measured cuts lost the acknowledged version and 6
//! left none. So the content lives twice, in two files of one fixed size, and is changed in place: no name, no length
//! and no allocation table entry changes. The slot that can be spared is overwritten, synced, read back and opened;
//! only then the other one. At every moment at least one slot is whole, and who reads takes the newest that opens.

use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::{DiskError, PartialFile, read, sync_folder};

/// One of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The file that ends in `.a`.
    A,
    /// The file that ends in `.b`.
    B,
}

impl Slot {
    /// Both, in the order in which they are read.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A file kept in two slots, `NAME.a` and `NAME.b`, both of exactly `slot_bytes` bytes.
#[derive(Clone, Debug)]
pub struct TwoSlot {
    a: PathBuf,
    b: PathBuf,
    slot_bytes: usize,
}

/// Why a slot wasn't written. The other slot is as it was.
#[derive(Debug, thiserror::Error)]
pub enum TwoSlotError<E> {
    /// Reading or writing failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What was read back isn't what had been written.
    #[error("`{}` reads back differently from what was written: the drive loses what it is given", path.display())]
    NotKept {
        /// The slot.
        path: PathBuf,
    },
    /// What was read back is what had been written, and the caller finds it unusable.
    #[error(transparent)]
    Refused(E),
}

impl TwoSlot {
    /// The two slots named `name` in `folder`, each of `slot_bytes` bytes. Touches nothing.
    pub fn new(folder: &Path, name: &str, slot_bytes: usize) -> Self {
        Self { a: folder.join(format!("{name}.a")), b: folder.join(format!("{name}.b")), slot_bytes }
    }

    /// Where a slot is.
    pub fn path(&self, slot: Slot) -> &Path {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }

    /// Reads a slot, whatever its content is; `None` where there is no file. More than `bytes_max` bytes are refused.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(&self, slot: Slot, bytes_max: u64) -> Result<Option<Vec<u8>>, DiskError> {
        match read(self.path(slot), bytes_max) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes both slots where neither is there. A cut on the way leaves none, one or two, each whole.
    ///
    /// # Errors
    /// [`DiskError::Exists`] where a slot is there already, and as [`TwoSlot::write`].
    pub fn create<E>(
        &self,
        content: &[u8],
        check: impl FnOnce(Slot, &[u8]) -> Result<(), E>,
    ) -> Result<(), TwoSlotError<E>> {
        self.assert_size(content);
        if let Some(slot) = Slot::BOTH.into_iter().find(|slot| super::exists(self.path(*slot))) {
            return Err(DiskError::Exists { path: self.path(slot).into() }.into());
        }
        let created = self.create_both(content, check);
        if created.is_err() {
            // Both are ours: a slot that doesn't open mustn't be taken for keys. The error that led here is the one to report.
            Slot::BOTH.into_iter().for_each(|slot| drop(super::remove(self.path(slot))));
        }
        created
    }

    fn create_both<E>(
        &self,
        content: &[u8],
        check: impl FnOnce(Slot, &[u8]) -> Result<(), E>,
    ) -> Result<(), TwoSlotError<E>> {
        // Nothing is replaced here, so a file that takes its name when it is complete is safe.
        let mut check = Some(check);
        for slot in Slot::BOTH {
            let mut partial = PartialFile::create(self.path(slot))?;
            partial.write(content)?;
            partial.finish()?;
            self.check_kept(slot, content, check.take())?;
        }
        Ok(())
    }

    /// Writes `content` to both slots, last to the one that is `proven` to open with what it held until now.
    ///
    /// That is more than taking the older first: a slot of the same age may have a flaw that only opening shows. `check`
    /// opens what is read back from the first slot before the proven one is touched.
    ///
    /// # Errors
    /// What writing can meet, [`TwoSlotError::NotKept`], and what `check` says. The proven slot is then untouched, or
    /// the other one is complete.
    pub fn replace<E>(
        &self,
        proven: Slot,
        content: &[u8],
        check: impl FnOnce(Slot, &[u8]) -> Result<(), E>,
    ) -> Result<(), TwoSlotError<E>> {
        self.write(proven.other(), content, check)?;
        self.write(proven, content, |_, _| Ok(()))
    }

    /// Writes `content` to one slot in place, syncs it, reads it back, and has `check` open it.
    ///
    /// # Errors
    /// What writing can meet, [`TwoSlotError::NotKept`], and what `check` says.
    pub fn write<E>(
        &self,
        slot: Slot,
        content: &[u8],
        check: impl FnOnce(Slot, &[u8]) -> Result<(), E>,
    ) -> Result<(), TwoSlotError<E>> {
        self.assert_size(content);
        let path = self.path(slot);
        let failed = |e| DiskError::new("write", path, e);
        let is_new = !super::exists(path);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        // Only a damaged slot has another length; a whole one keeps its clusters.
        if file.metadata().map_err(failed)?.len() != self.slot_bytes as u64 {
            file.set_len(self.slot_bytes as u64).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        drop(file);
        if let (true, Some(folder)) = (is_new, path.parent()) {
            sync_folder(folder)?;
        }
        self.check_kept(slot, content, Some(check))
    }

    fn check_kept<E>(
        &self,
        slot: Slot,
        content: &[u8],
        check: Option<impl FnOnce(Slot, &[u8]) -> Result<(), E>>,
    ) -> Result<(), TwoSlotError<E>> {
        // Where the cache is kept, the read-back checks less, and says nothing wrong.
        let _ = super::forget_cached(self.path(slot));
        let kept = read(self.path(slot), self.slot_bytes as u64)?;
        if kept != content {
            return Err(TwoSlotError::NotKept { path: self.path(slot).into() });
        }
        check.map_or(Ok(()), |check| check(slot, &kept).map_err(TwoSlotError::Refused))
    }

    fn assert_size(&self, content: &[u8]) {
        assert_eq!(content.len(), self.slot_bytes, "a slot's content is padded to the slot's size by who makes it");
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::test_folder::TestFolder;

    const BYTES: usize = 256;

    fn content(generation: u8) -> Vec<u8> {
        vec![generation; BYTES]
    }

    /// The generation of a whole slot.
    fn whole(file: &TwoSlot, slot: Slot) -> Option<u8> {
        let bytes = file.read(slot, BYTES as u64).expect("it can be read")?;
        let is_whole = bytes.len() == BYTES && bytes.iter().all(|byte| *byte == bytes[0]);
        is_whole.then_some(bytes[0])
    }

    fn both(file: &TwoSlot) -> [Option<u8>; 2] {
        Slot::BOTH.map(|slot| whole(file, slot))
    }

    fn accept(_: Slot, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    #[test]
    fn a_cut_at_any_byte_of_any_step_leaves_a_whole_slot() {
        let folder = TestFolder::new();
        let file = TwoSlot::new(folder.path(), "key", BYTES);
        // Zero stands for a torn slot.
        for (start, proven) in
            [([1, 1], Slot::A), ([1, 0], Slot::A), ([0, 1], Slot::B), ([1, 2], Slot::B), ([2, 1], Slot::A)]
        {
            for step in 0..2 {
                for cut in 0..=BYTES {
                    for (slot, generation) in Slot::BOTH.into_iter().zip(start) {
                        let mut bytes = content(generation);
                        bytes[0] |= u8::from(generation == 0);
                        std::fs::write(file.path(slot), bytes).expect("the folder can be written");
                    }
                    let order = [proven.other(), proven];
                    if step == 1 {
                        file.write(order[0], &content(3), accept).expect("it can be written");
                    }
                    let mut torn = std::fs::read(file.path(order[step])).expect("it is there");
                    torn[..cut].copy_from_slice(&content(3)[..cut]);
                    std::fs::write(file.path(order[step]), torn).expect("the folder can be written");
                    let newest = both(&file).into_iter().flatten().max();
                    assert!(newest == Some(3) || step == 0 && newest == Some(start[0].max(start[1])), "{newest:?}");
                    // Doing it again repairs whatever the cut left.
                    let proven = if whole(&file, Slot::A) == newest { Slot::A } else { Slot::B };
                    file.replace(proven, &content(4), accept).expect("it can be written");
                    assert_eq!(both(&file), [Some(4); 2]);
                }
            }
        }
    }

    #[test]
    fn the_second_slot_is_touched_only_when_the_first_opens() {
        let folder = TestFolder::new();
        let file = TwoSlot::new(folder.path(), "key", BYTES);
        file.create(&content(1), accept).expect("nothing is there");
        let refused = file.replace(Slot::A, &content(2), |slot, kept| {
            assert_eq!((slot, kept), (Slot::B, &content(2)[..]));
            Err("unusable")
        });
        assert!(matches!(refused, Err(TwoSlotError::Refused("unusable"))));
        assert_eq!(both(&file), [Some(1), Some(2)]);
    }

    #[test]
    fn lengths_and_missing_slots_are_put_right() {
        let folder = TestFolder::new();
        let file = TwoSlot::new(folder.path(), "key", BYTES);
        for length in [0, 1, BYTES - 1, BYTES + 1, 10 * BYTES] {
            std::fs::write(file.path(Slot::A), vec![7; length]).expect("the folder can be written");
            std::fs::remove_file(file.path(Slot::B)).ok();
            file.replace(Slot::B, &content(9), accept).expect("it can be written");
            assert_eq!(both(&file), [Some(9); 2]);
        }
    }

    #[test]
    fn creating_never_overwrites() {
        let folder = TestFolder::new();
        let file = TwoSlot::new(folder.path(), "key", BYTES);
        std::fs::write(file.path(Slot::B), b"damaged").expect("the folder can be written");
        let error = file.create(&content(1), accept).expect_err("something is there");
        assert!(matches!(error, TwoSlotError::Disk(DiskError::Exists { .. })), "{error}");
        assert!(file.read(Slot::A, 1).expect("it can be asked").is_none());
        assert!(matches!(file.read(Slot::B, 3), Err(DiskError::TooLarge { bytes: 7, .. })));
    }

    #[test]
    fn what_does_not_open_is_not_left_behind() {
        let folder = TestFolder::new();
        let file = TwoSlot::new(folder.path(), "key", BYTES);
        let refused = file.create(&content(1), |_, _| Err("unusable"));
        assert!(matches!(refused, Err(TwoSlotError::Refused("unusable"))));
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
    }
}
