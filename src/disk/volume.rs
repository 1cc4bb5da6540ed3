//! The volume that a folder lies on: its file system, its space, how fast it reads; and what changed below some folders.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{DiskError, forget_cached, open, read_at};

/// How much is read to measure the speed, in bytes: a slow stick takes 3 s for it.
const MEASURED_BYTES_MAX: u64 = 16 << 20;
/// How much is read at once.
const PIECE_BYTES: usize = 1 << 20;
/// The longest list of mounts that is read, in bytes.
#[cfg(target_os = "linux")]
const MOUNTS_BYTES_MAX: u64 = 4 << 20;

/// What is known of the volume that a folder lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The name of its file system, such as `exfat`; `None` where the system doesn't say.
    pub file_system: Option<String>,
    /// Whether it is mounted for reading only.
    pub is_read_only: bool,
    /// How much can still be written, in bytes.
    pub free_bytes: u64,
    /// Its size in bytes.
    pub total_bytes: u64,
}

impl Volume {
    /// Asks the system about the volume of the folder `path`.
    ///
    /// # Errors
    /// What measuring can meet.
    pub fn of(path: &Path) -> Result<Self, DiskError> {
        let stats = rustix::fs::statvfs(path).map_err(|e| DiskError::new("measure", path, e.into()))?;
        Ok(Self {
            file_system: file_system(path),
            is_read_only: stats.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            free_bytes: super::available_bytes(&stats),
            total_bytes: stats.f_blocks.saturating_mul(stats.f_frsize),
        })
    }
}

#[cfg(target_os = "linux")]
pub(super) fn file_system(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let mounts = super::read_stream(Path::new("/proc/self/mountinfo"), MOUNTS_BYTES_MAX).ok()?;
    longest_mount(&String::from_utf8_lossy(&mounts), &path)
}

/// The file system of the mount that `path` is below, by the lines of `mountinfo`: of the longest mount point, the last.
#[cfg(target_os = "linux")]
fn longest_mount(mounts: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else { continue };
        // The kernel writes a space as \040.
        let point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        if path.starts_with(&point) && best.is_none_or(|(length, _)| point.len() >= length) {
            best = Some((point.len(), kind));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

#[cfg(target_os = "macos")]
pub(super) fn file_system(path: &Path) -> Option<String> {
    let stats = rustix::fs::statfs(path).ok()?;
    let name: Vec<u8> = stats.f_fstypename.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    String::from_utf8(name).ok()
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(super) fn file_system(_: &Path) -> Option<String> {
    None
}

/// Reads the beginning of the file at `path` from the medium, and says how many bytes a second that was.
///
/// # Errors
/// What reading can meet. Where the system keeps what it holds (macOS), the speed is that of the memory.
pub fn read_speed(path: &Path) -> Result<f64, DiskError> {
    forget_cached(path)?;
    let (file, bytes) = open(path)?;
    let bytes = bytes.min(MEASURED_BYTES_MAX);
    let mut piece = vec![0; PIECE_BYTES];
    let began = Instant::now();
    let mut offset = 0;
    while offset < bytes {
        let length = PIECE_BYTES.min((bytes - offset) as usize);
        read_at(&file, path, offset, &mut piece[..length])?;
        offset += length as u64;
    }
    Ok(bytes as f64 / began.elapsed().as_secs_f64().max(1e-6))
}

/// What was below some folders at a moment: of each name its inode, size and times.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    names: BTreeMap<PathBuf, [i128; 4]>,
    /// Whether there was more than was looked at.
    pub is_cut: bool,
}

impl Listing {
    /// Looks at `folders` and all below them, links not followed, without what is below `but`; at most `names_max` names.
    pub fn of(folders: &[PathBuf], but: &Path, names_max: usize) -> Self {
        let mut listing = Self::default();
        let mut open: Vec<PathBuf> = folders.to_vec();
        while let Some(folder) = open.pop() {
            // What can't be listed by this user can't be written by this program either.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                let Ok(metadata) = entry.metadata() else { continue };
                if path == but {
                    continue;
                }
                if listing.names.len() >= names_max {
                    listing.is_cut = true;
                    return listing;
                }
                if metadata.is_dir() {
                    open.push(path.clone());
                }
                let time = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
                let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
                listing.names.insert(path, [metadata.ino().into(), metadata.size().into(), time, changed]);
            }
        }
        listing
    }

    /// How many names it has.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The names that are in only one of the two, or differ.
    pub fn differences<'a>(&'a self, later: &'a Self) -> Vec<&'a Path> {
        let gone = self.names.keys().filter(|path| !later.names.contains_key(*path));
        let changed =
            later.names.iter().filter(|(path, now)| self.names.get(*path) != Some(*now)).map(|(path, _)| path);
        gone.chain(changed).map(PathBuf::as_path).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_innermost_mount_counts() {
        let mounts =
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 8:17 / /media/My\\040Stick rw - exfat /dev/sdb1 rw\nbroken\n";
        for (path, expected) in
            [("/media/My Stick/Tiles", "exfat"), ("/media/My", "ext4"), ("/media/My Sticks", "ext4")]
        {
            assert_eq!(longest_mount(mounts, Path::new(path)).as_deref(), Some(expected), "{path}");
        }
    }

    #[test]
    fn this_volume_is_measured() {
        let folder = TestFolder::new();
        let volume = Volume::of(folder.path()).expect("it is there");
        assert!(volume.total_bytes >= volume.free_bytes && !volume.is_read_only, "{volume:?}");
        let path = folder.path().join("x");
        fs::write(&path, vec![1; 3 << 20]).expect("it can be written");
        assert!(read_speed(&path).expect("it can be read") > 1e6);
    }

    #[test]
    fn whatever_changes_is_named_and_nothing_else() {
        let folder = TestFolder::new();
        let place = |name: &str| folder.path().join(name);
        fs::create_dir_all(place("a/own")).expect("it can be made");
        for name in ["a/kept", "a/gone", "a/changed", "a/own/ignored"] {
            fs::write(place(name), b"x").expect("it can be written");
        }
        let look = || Listing::of(&[place("a")], &place("a/own"), 100);
        let before = look();
        assert_eq!((before.len(), look().differences(&before).len()), (3, 0));
        fs::remove_file(place("a/gone")).expect("it is there");
        fs::write(place("a/changed"), b"longer").expect("it can be written");
        fs::write(place("a/new"), b"").expect("it can be written");
        fs::write(place("a/own/ignored"), b"longer").expect("it can be written");
        let after = look();
        assert_eq!(before.differences(&after), [place("a/gone"), place("a/changed"), place("a/new")]);
        assert!(Listing::of(&[place("a")], &place("a/own"), 2).is_cut);
    }
}
