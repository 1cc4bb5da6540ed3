//! Where the database lies: in a folder with nothing else in it.
//!
//! exFAT describes a file in a row of 32-byte entries with a checksum over them. SQLite's files grow, so theirs change all
//! the time; where such a row crosses the end of a sector, a power cut can leave half of the change, and a file system
//! check then removes the file. In a folder with only a handful of names all rows lie within the first sector.

use std::path::{Path, PathBuf};

use super::moving::{MoveError, copy_file, hash};
use super::{Bundle, BundleError};
use crate::disk::{self, Kind};

/// The folder within `data`.
pub(super) const FOLDER: &str = "db";
/// The database within it.
pub(super) const FILE: &str = "tiles.db";
/// SQLite's write-ahead log beside a database.
pub(super) const WAL: &str = "tiles.db-wal";

impl<State> Bundle<State> {
    /// The database: `data/db/tiles.db`, or where it was in earlier versions while it is only there.
    pub fn database(&self) -> PathBuf {
        let (before, now) = (self.data().join(FILE), self.data().join(FOLDER).join(FILE));
        if is_file(&before) && !disk::exists(&now) { before } else { now }
    }

    /// Makes the folder of the database, and moves a database of an earlier version into it. To be called with the
    /// bundle's lock.
    ///
    /// Both files are copied, the database last; each gets its name when it is complete and was read back. Only then are
    /// they removed where they were. A database that was put beside the one in use later, and is another, is left alone.
    ///
    /// # Errors
    /// What reading and writing can meet; a database that was there is then used as before.
    pub fn settle_database(&self) -> Result<(), MoveError> {
        let (data, folder) = (self.data(), self.data().join(FOLDER));
        match disk::kind(&folder)? {
            Some(Kind::Folder) => {}
            // A link would have the conversations written elsewhere.
            Some(_) => return Err(BundleError::WrongKind { path: folder }.into()),
            None => {
                disk::create_folder(&folder)?;
                disk::sync_folder(&data)?;
            }
        }
        let (before, now) = (data.join(FILE), folder.join(FILE));
        if is_file(&before) && !disk::exists(&now) {
            for name in [WAL, FILE] {
                disk::remove(&folder.join(name))?;
                if is_file(&data.join(name)) {
                    copy_file(&data.join(name), &folder.join(name))?;
                }
            }
            disk::sync_folder(&folder)?;
        }
        if is_file(&before) {
            if hash(&before)? != hash(&now)? {
                return Ok(());
            }
            disk::remove(&before)?;
            disk::sync_folder(&data)?;
        }
        // Without its database it says nothing.
        Ok(disk::remove(&data.join(WAL))?)
    }
}

/// Whether a file is there, and not a link to one.
fn is_file(path: &Path) -> bool {
    matches!(disk::kind(path), Ok(Some(Kind::File)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::bundle::tests::bundle;
    use crate::bundle::{Bundle, Found};
    use crate::test_folder::TestFolder;

    #[test]
    fn a_database_of_an_earlier_version_is_moved_and_used_until_then() {
        let place = TestFolder::new();
        bundle(place.path());
        let bundle = Bundle::<Found>::find(Some(place.path()), place.path()).expect("it is one");
        let data = bundle.data();
        assert_eq!(bundle.database(), data.join("db/tiles.db"), "a new one");
        fs::create_dir_all(data.join("db")).expect("it can be made");
        fs::write(data.join("tiles.db"), b"said").expect("it can be written");
        fs::write(data.join("tiles.db-wal"), b"and said").expect("it can be written");
        // As after a cut on the way.
        fs::write(data.join("db/tiles.db-wal"), b"an").expect("it can be written");
        fs::write(data.join("db/tiles.db.partial"), b"sa").expect("it can be written");
        assert_eq!(bundle.database(), data.join("tiles.db"));
        bundle.settle_database().expect("the folder can be written");
        assert_eq!(bundle.database(), data.join("db/tiles.db"));
        assert_eq!(fs::read(bundle.database()).expect("it is there"), b"said");
        assert_eq!(fs::read(data.join("db/tiles.db-wal")).expect("it is there"), b"and said");
        assert!(!data.join("tiles.db-wal").exists() && !data.join("tiles.db").exists());
        bundle.settle_database().expect("the folder can be written");
        assert_eq!(fs::read(bundle.database()).expect("it is there"), b"said", "once is enough");
        assert!(!data.join("db/tiles.db.partial").exists());

        // As after a cut before the last step; and as where somebody put another one there.
        for (put, stays) in [(&b"said"[..], false), (b"said long ago", true)] {
            fs::write(data.join("tiles.db"), put).expect("it can be written");
            assert_eq!(bundle.database(), data.join("db/tiles.db"));
            bundle.settle_database().expect("the folder can be written");
            assert_eq!(fs::read(bundle.database()).expect("it is there"), b"said");
            assert_eq!(data.join("tiles.db").exists(), stays);
        }
    }

    #[test]
    fn links_are_never_followed_to_what_is_elsewhere() {
        let (place, elsewhere) = (TestFolder::new(), TestFolder::new());
        bundle(place.path());
        let bundle = Bundle::<Found>::find(Some(place.path()), place.path()).expect("it is one");
        let data = bundle.data();
        fs::create_dir_all(&data).expect("it can be made");
        fs::write(elsewhere.path().join("secret"), b"of the host").expect("it can be written");
        std::os::unix::fs::symlink(elsewhere.path().join("secret"), data.join("tiles.db")).expect("it can be made");
        assert_eq!(bundle.database(), data.join("db/tiles.db"));
        bundle.settle_database().expect("the folder can be written");
        assert!(!bundle.database().exists(), "it was copied");
        fs::remove_dir(data.join("db")).expect("it is empty");
        std::os::unix::fs::symlink(elsewhere.path(), data.join("db")).expect("it can be made");
        assert!(bundle.settle_database().is_err(), "it leads elsewhere");
    }

    /// What the folder of the database can hold, with what other systems add, fits one sector.
    #[test]
    fn all_entries_fit_one_sector() {
        // A file entry, a stream entry, and a name entry for each 15 characters; 32 bytes each.
        let bytes = |name: &str| 32 * (2 + name.len().div_ceil(15));
        let names = [super::FILE, super::WAL, "._tiles.db", "tiles.db.recovered.partial"];
        assert!(names.iter().map(|name| bytes(name)).sum::<usize>() <= 512);
    }
}
