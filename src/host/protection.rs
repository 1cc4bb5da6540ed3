//! What this machine and this process do to keep secrets from the disk: core dumps, locked memory, swap.

#[cfg(target_os = "linux")]
use std::path::Path;

use rustix::process::{Resource, getrlimit};

#[cfg(target_os = "linux")]
use crate::disk;

/// The longest list of swap areas that is read, in bytes.
#[cfg(target_os = "linux")]
const SWAPS_BYTES_MAX: u64 = 64 << 10;
/// How many layers of block devices are looked through below a swap area.
#[cfg(target_os = "linux")]
const LAYERS_MAX: usize = 8;

/// Where pages of memory may go when memory is short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// There is none.
    Off,
    /// It stays in memory (zram), or is encrypted with a key that the machine keeps.
    Protected {
        /// How.
        how: String,
    },
    /// It is on a disk, and nothing says that it is encrypted.
    Plain {
        /// Where.
        areas: Vec<String>,
    },
    /// The system doesn't say.
    Unknown,
}

/// What is enforced for this process, here and now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Whether a crash can leave the memory in a file.
    pub can_dump_core: bool,
    /// Whether other processes of the same user can look into this one; `None` where the system has no such switch.
    pub is_dumpable: Option<bool>,
    /// How many bytes may be kept from being swapped out; `None` for any number.
    pub lockable_bytes: Option<u64>,
    /// Where memory may be swapped to.
    pub swap: Swap,
}

impl Protection {
    /// Asks the system.
    pub fn probe() -> Self {
        Self {
            can_dump_core: getrlimit(Resource::Core).current != Some(0),
            is_dumpable: is_dumpable(),
            lockable_bytes: getrlimit(Resource::Memlock).current,
            swap: swap(),
        }
    }
}

#[cfg(target_os = "linux")]
fn is_dumpable() -> Option<bool> {
    let behavior = rustix::process::dumpable_behavior().ok()?;
    Some(behavior != rustix::process::DumpableBehavior::NotDumpable)
}

#[cfg(not(target_os = "linux"))]
fn is_dumpable() -> Option<bool> {
    None
}

/// macOS encrypts its swap files on every Mac with Apple silicon.
#[cfg(not(target_os = "linux"))]
fn swap() -> Swap {
    Swap::Protected { how: "macOS encrypts it".into() }
}

#[cfg(target_os = "linux")]
fn swap() -> Swap {
    match disk::read_stream(Path::new("/proc/swaps"), SWAPS_BYTES_MAX) {
        Ok(text) => areas(&String::from_utf8_lossy(&text), &|device| is_encrypted(device, 0)),
        Err(_) => Swap::Unknown,
    }
}

/// What `/proc/swaps` says: a heading, then a line for each area.
#[cfg(target_os = "linux")]
fn areas(text: &str, is_encrypted: &dyn Fn(&str) -> bool) -> Swap {
    let names: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let in_memory = |name: &str| name.rsplit('/').next().is_some_and(|device| device.starts_with("zram"));
    let plain: Vec<String> = names
        .iter()
        .filter(|name| !in_memory(name) && !name.rsplit('/').next().is_some_and(is_encrypted))
        .map(|name| (*name).to_owned())
        .collect();
    match (names.is_empty(), plain.is_empty()) {
        (true, _) => Swap::Off,
        (false, false) => Swap::Plain { areas: plain },
        (false, true) if names.iter().all(|name| in_memory(name)) => {
            Swap::Protected { how: "compressed in memory (zram)".into() }
        }
        (false, true) => Swap::Protected { how: "encrypted (dm-crypt)".into() },
    }
}

/// Whether a block device, or the one that it lies on, is made by dm-crypt.
#[cfg(target_os = "linux")]
fn is_encrypted(device: &str, layer: usize) -> bool {
    let folder = Path::new("/sys/class/block").join(device);
    let uuid = disk::read_stream(&folder.join("dm/uuid"), 256).unwrap_or_default();
    if uuid.starts_with(b"CRYPT-") {
        return true;
    }
    let below = disk::list(&folder.join("slaves")).unwrap_or_default();
    layer < LAYERS_MAX && !below.is_empty() && below.iter().all(|device| is_encrypted(device, layer + 1))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn swap_areas_are_judged_by_where_they_are() {
        const HEAD: &str = "Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n";
        let plain = |areas: &[&str]| Swap::Plain { areas: areas.iter().map(|area| (*area).into()).collect() };
        for (lines, expected) in [
            ("", Swap::Off),
            ("/dev/zram0 partition 1 0 5\n", Swap::Protected { how: "compressed in memory (zram)".into() }),
            ("/dev/dm-1 partition 1 0 -2\n", Swap::Protected { how: "encrypted (dm-crypt)".into() }),
            ("/dev/sda2 partition 1 0 -2\n/dev/zram0 partition 1 0 5\n", plain(&["/dev/sda2"])),
            ("/swapfile file 1 0 -2\n", plain(&["/swapfile"])),
        ] {
            assert_eq!(areas(&format!("{HEAD}{lines}"), &|device| device == "dm-1"), expected, "{lines}");
        }
    }

    #[test]
    fn this_process_is_looked_at() {
        let protection = Protection::probe();
        assert!(protection.is_dumpable.is_some());
    }
}
