//! The machine that the drive is plugged into: processor, memory, operating system, and what it can run.

#[cfg(not(target_os = "macos"))]
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(not(target_os = "macos"))]
use crate::disk;
use crate::hint::Hint;
use crate::time::{Clock, Timestamp};

pub mod protection;

pub use protection::{Protection, Swap};

/// The hosts that a drive can have a program for, as the folders below `bin/` are named.
pub const HOST_FOLDERS: [&str; 3] = ["linux-arm64", "linux-x86_64", "macos-arm64"];

/// What is left to the system beside a model, in bytes: 256 MiB.
pub const MEMORY_RESERVE_BYTES: u64 = 256 * 1024 * 1024;

/// The longest name of a machine that is kept, in bytes.
pub const HOST_NAME_BYTES_MAX: usize = 64;

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A clock before 1970 or after the year 292 million is as good as the epoch.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_ms(i64::try_from(since.as_millis()).unwrap_or_default())
    }
}

/// Why this machine can't do what is asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HostError {
    /// There is no program for such machines.
    #[error("Tiles doesn't run on {os} on {arch} processors")]
    Unsupported {
        /// The operating system.
        os: &'static str,
        /// The processor architecture.
        arch: &'static str,
    },
    /// The system doesn't say how much memory there is.
    #[error("the system doesn't say how much memory it has: {what}")]
    Silent {
        /// What it said instead.
        what: String,
    },
    /// The machine hasn't enough memory, whatever else runs.
    #[error("the model needs {} of memory, and this machine has {} in all", mib(*needed_bytes), mib(*total_bytes))]
    TooSmall {
        /// What the model and the system need.
        needed_bytes: u64,
        /// What there is.
        total_bytes: u64,
    },
    /// The machine hasn't enough free memory now.
    #[error("the model needs {} of memory, and {} are free on this machine", mib(*needed_bytes), mib(*available_bytes))]
    Busy {
        /// What the model and the system need.
        needed_bytes: u64,
        /// What is free.
        available_bytes: u64,
    },
}

impl Hint for HostError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unsupported { .. } => "use a Mac with Apple silicon, or Linux on an x86-64 or arm64 processor".into(),
            Self::Silent { .. } => "make `/proc` visible to Tiles".into(),
            Self::TooSmall { .. } => {
                "choose a smaller model with `tiles run MODEL`; `tiles model list` shows them".into()
            }
            Self::Busy { .. } => "close other programs, or choose a smaller model with `tiles run MODEL`".into(),
        })
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}

/// The facts about a machine that decide what runs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The operating system: `linux` or `macos`.
    pub os: &'static str,
    /// The processor architecture: `x86_64` or `aarch64`.
    pub arch: &'static str,
    /// The processor's extensions that the engine has kernels for, by their usual names.
    pub cpu_features: Vec<&'static str>,
    /// How many cores there are, not counting threads that share one.
    pub physical_cores: usize,
    /// All memory that this process may use, in bytes.
    pub memory_total_bytes: u64,
    /// The memory that is free or can be freed at once, in bytes.
    pub memory_available_bytes: u64,
    /// Differs after each start of the machine.
    pub boot_id: String,
    /// What the machine calls itself.
    pub name: String,
}

impl Host {
    /// Asks the system; takes a millisecond.
    ///
    /// # Errors
    /// [`HostError::Silent`].
    pub fn probe() -> Result<Self, HostError> {
        let memory_only = sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram());
        let system =
            sysinfo::System::new_with_specifics(memory_only).map_err(|e| HostError::Silent { what: e.to_string() })?;
        let (mut total, mut available) = (system.total_memory(), system.available_memory());
        // In a container the group's limit counts, not what the machine has.
        if let Some(limits) = system.cgroup_limits()
            && limits.total_memory > 0
        {
            total = total.min(limits.total_memory);
            available = available.min(limits.free_memory);
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cpu_features: cpu_features(),
            physical_cores: sysinfo::System::physical_core_count().map_or(threads, |cores| cores.clamp(1, threads)),
            memory_total_bytes: total,
            memory_available_bytes: available,
            boot_id: boot_id(),
            name: plain_name(&rustix::system::uname().nodename().to_string_lossy()),
        })
    }

    /// The folder below `bin/` with the program for this machine.
    ///
    /// # Errors
    /// [`HostError::Unsupported`].
    pub fn folder(&self) -> Result<&'static str, HostError> {
        match (self.os, self.arch) {
            ("linux", "x86_64") => Ok("linux-x86_64"),
            ("linux", "aarch64") => Ok("linux-arm64"),
            ("macos", "aarch64") => Ok("macos-arm64"),
            (os, arch) => Err(HostError::Unsupported { os, arch }),
        }
    }

    /// Whether a model that needs `model_bytes` of memory, weights and cache together, runs here.
    ///
    /// # Errors
    /// [`HostError::TooSmall`] where it never will, [`HostError::Busy`] where it would if less else ran.
    pub fn fits(&self, model_bytes: u64) -> Result<(), HostError> {
        let needed_bytes = model_bytes.saturating_add(MEMORY_RESERVE_BYTES);
        if needed_bytes > self.memory_total_bytes {
            return Err(HostError::TooSmall { needed_bytes, total_bytes: self.memory_total_bytes });
        }
        // What is free already leaves out what the system needs.
        if model_bytes > self.memory_available_bytes {
            let available_bytes = self.memory_available_bytes;
            return Err(HostError::Busy { needed_bytes: model_bytes, available_bytes });
        }
        Ok(())
    }
}

/// A name without characters that could do something to a terminal or a file.
fn plain_name(name: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let name: String = name.chars().filter(plain).take(HOST_NAME_BYTES_MAX).collect();
    if name.is_empty() { "unnamed".into() } else { name }
}

/// An id of this run of the machine. Where the system has none, the second it was started stands for it.
fn boot_id() -> String {
    match session_id() {
        Some(id) if !id.is_empty() => plain_name(&id),
        _ => format!("started-{}", sysinfo::System::boot_time().unwrap_or_default()),
    }
}

#[cfg(not(target_os = "macos"))]
fn session_id() -> Option<String> {
    let id = disk::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 64).ok()?;
    Some(id.trim().to_owned())
}

/// macOS has the id as a kernel variable. The second of the start won't do there: it moves when the clock is set. The
/// system's own program is asked, for the call behind it is an unsafe one.
#[cfg(target_os = "macos")]
fn session_id() -> Option<String> {
    let asked = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "kern.bootsessionuuid"]).output().ok()?;
    Some(String::from_utf8(asked.stdout).ok()?.trim().to_owned())
}

/// Keeps the names of features that this processor has.
macro_rules! detected {
    ($detect:ident: $($name:tt),*) => {
        [$(($name, std::arch::$detect!($name))),*].into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    };
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    detected!(is_x86_feature_detected: "sse4.1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avx512bf16", "avxvnni")
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<&'static str> {
    detected!(is_aarch64_feature_detected: "neon", "fp16", "dotprod", "i8mm", "bf16", "sve")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(os: &'static str, arch: &'static str, total: u64, available: u64) -> Host {
        Host {
            os,
            arch,
            cpu_features: Vec::new(),
            physical_cores: 4,
            memory_total_bytes: total,
            memory_available_bytes: available,
            boot_id: "b".into(),
            name: "n".into(),
        }
    }

    #[test]
    fn each_supported_machine_has_its_folder() {
        for (os, arch, expected) in [
            ("linux", "x86_64", Some("linux-x86_64")),
            ("linux", "aarch64", Some("linux-arm64")),
            ("macos", "aarch64", Some("macos-arm64")),
            ("macos", "x86_64", None),
            ("windows", "x86_64", None),
            ("linux", "riscv64", None),
        ] {
            let folder = host(os, arch, 0, 0).folder();
            assert_eq!(folder.ok(), expected, "{os} {arch}");
            assert!(expected.is_none_or(|folder| HOST_FOLDERS.contains(&folder)));
        }
        let error = host("macos", "x86_64", 0, 0).folder().expect_err("no program");
        assert_eq!(error.to_string(), "Tiles doesn't run on macos on x86_64 processors");
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_numbers() {
        const MIB: u64 = 1024 * 1024;
        for (total, available, model, expected) in [
            (8192, 4096, 300, Ok(())),
            (8192, 300, 300, Ok(())),
            (8192, 299, 300, Err("the model needs 300 MiB of memory, and 299 MiB are free on this machine")),
            (512, 512, 256, Ok(())),
            (512, 512, 257, Err("the model needs 513 MiB of memory, and this machine has 512 MiB in all")),
        ] {
            let fits = host("linux", "x86_64", total * MIB, available * MIB).fits(model * MIB);
            assert_eq!(fits.map_err(|e| e.to_string()), expected.map_err(str::to_owned));
        }
        assert!(matches!(host("linux", "x86_64", 1, 1).fits(u64::MAX), Err(HostError::TooSmall { .. })));
    }

    #[test]
    fn this_machine_is_probed() {
        let host = Host::probe().expect("this machine answers");
        assert!(host.folder().is_ok(), "{host:?}");
        assert!(host.memory_total_bytes > 64 << 20, "{host:?}");
        assert!((1..=host.memory_total_bytes).contains(&host.memory_available_bytes), "{host:?}");
        assert!(host.physical_cores >= 1 && !host.name.is_empty() && host.boot_id.len() > 8, "{host:?}");
        assert_eq!(Ok(host.boot_id), Host::probe().map(|again| again.boot_id));
        // 2026-01-01: an unset clock, or one in seconds, is before.
        assert!(SystemClock.now() > Timestamp::from_ms(1_767_225_600_000));
    }

    #[test]
    fn names_of_machines_are_plain() {
        for (name, expected) in [("my-mac.local", "my-mac.local"), ("\u{1b}[2Jx y/z", "2Jxyz"), ("é", "unnamed")] {
            assert_eq!(plain_name(name), expected);
        }
    }
}
