//! The mark that each run which changes the database leaves beside it, so that a database from another copy of the drive
//! is noticed.
//!
//! A copied drive is the same drive until both copies are used. The database lists its runs, each with an id drawn by
//! lot, and the mark holds the ids of the last ones. Whoever puts a database beside another drive's mark, or an older one
//! beside its own, makes the two disagree. Nothing in it is secret: it says when and how often the drive was written.

use std::path::Path;

use serde::Deserialize;

use super::BundleError;
use crate::digest::Sha256Digest;
use crate::disk::two_slot::{Slot, TwoSlot};
use crate::time::Timestamp;

/// How many runs a mark names. An older database than that counts as another copy's.
pub const RUNS_MARKED_MAX: usize = 160;
/// The size of a slot, in bytes.
const SLOT_BYTES: usize = 4096;
/// The length of the digest line that ends the content.
const DIGEST_KEY: &str = "sha256 = ";

/// The beginning of a run's id: enough to tell runs apart, and short enough that many fit.
pub type RunTag = [u8; 8];

/// The last runs that changed the database, as the drive remembers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMark {
    /// Counts the writes of the mark.
    pub count: u64,
    /// When the last run began.
    pub last_at: Timestamp,
    /// The runs, the last one last.
    pub runs: Vec<RunTag>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    count: u64,
    last_ms: i64,
    runs: Vec<String>,
}

impl RunMark {
    /// The mark after one more run.
    pub fn after(previous: Option<&Self>, run: RunTag, at: Timestamp) -> Self {
        let mut runs = previous.map(|mark| mark.runs.clone()).unwrap_or_default();
        runs.push(run);
        let surplus = runs.len().saturating_sub(RUNS_MARKED_MAX);
        runs.drain(..surplus);
        Self { count: previous.map_or(0, |mark| mark.count).saturating_add(1), last_at: at, runs }
    }

    fn to_content(&self) -> Vec<u8> {
        let runs: Vec<String> = self.runs.iter().map(|run| format!("\"{:016x}\"", u64::from_be_bytes(*run))).collect();
        let text = format!("count = {}\nlast_ms = {}\nruns = [{}]\n", self.count, self.last_at.as_ms(), runs.join(","));
        let digest = Sha256Digest::of(text.as_bytes());
        let mut content = format!("{text}{DIGEST_KEY}\"{digest}\"\n").into_bytes();
        content.resize(SLOT_BYTES, b'\n');
        content
    }

    fn from_content(content: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(content).ok()?;
        let (text, digest) = text.split_at(text.rfind(DIGEST_KEY)?);
        let digest = digest.strip_prefix(DIGEST_KEY)?.trim().trim_matches('"');
        if Sha256Digest::of(text.as_bytes()).to_string() != digest {
            return None;
        }
        let wire: Wire = toml::from_str(text).ok()?;
        let tag = |text: &String| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
        let runs: Option<Vec<RunTag>> = wire.runs.iter().map(|text| tag(text).map(u64::to_be_bytes)).collect();
        let runs = runs.filter(|runs| (1..=RUNS_MARKED_MAX).contains(&runs.len()))?;
        Some(Self { count: wire.count, last_at: Timestamp::from_ms(wire.last_ms), runs })
    }
}

/// The file of the mark: `run.a` and `run.b` in the data folder, of which the older is overwritten in place.
#[derive(Clone, Debug)]
pub struct RunMarkFile(TwoSlot);

impl RunMarkFile {
    /// The mark in `data_folder`. Touches nothing.
    pub fn new(data_folder: &Path) -> Self {
        Self(TwoSlot::new(data_folder, "run", SLOT_BYTES))
    }

    /// The newest mark that is whole; `None` where there is none. A torn slot is a write that was cut, and not believed.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn read(&self) -> Result<Option<RunMark>, BundleError> {
        Ok(self.slots()?.into_iter().flatten().max_by_key(|mark| mark.count))
    }

    /// Writes a mark over the older slot, and reads it back.
    ///
    /// # Errors
    /// What writing can meet; the mark that was there before is then still there.
    pub fn write(&self, mark: &RunMark) -> Result<(), BundleError> {
        let counts = self.slots()?.map(|slot| slot.map(|mark| mark.count));
        // `None` is less than any count: a torn or missing slot goes first.
        let slot = if counts[0] <= counts[1] { Slot::A } else { Slot::B };
        let unread = |_: Slot, kept: &[u8]| match RunMark::from_content(kept) {
            Some(kept) if kept == *mark => Ok(()),
            _ => Err(BundleError::Damaged { path: self.0.path(slot).into() }),
        };
        self.0.write(slot, &mark.to_content(), unread).map_err(|error| match error {
            crate::disk::two_slot::TwoSlotError::Disk(error) => error.into(),
            crate::disk::two_slot::TwoSlotError::NotKept { path } => BundleError::Damaged { path },
            crate::disk::two_slot::TwoSlotError::Refused(error) => error,
        })
    }

    fn slots(&self) -> Result<[Option<RunMark>; 2], BundleError> {
        let [a, b] = Slot::BOTH.map(|slot| match self.0.read(slot, SLOT_BYTES as u64) {
            Ok(content) => Ok(content.as_deref().and_then(RunMark::from_content)),
            Err(crate::disk::DiskError::TooLarge { .. }) => Ok(None),
            Err(error) => Err(BundleError::from(error)),
        });
        Ok([a?, b?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    fn mark(runs: u64) -> RunMark {
        let run = |n: u64| n.to_be_bytes();
        (1..=runs).fold(RunMark::after(None, run(0), Timestamp::from_ms(5)), |mark, n| {
            RunMark::after(Some(&mark), run(n), Timestamp::from_ms(5 + n as i64))
        })
    }

    #[test]
    fn the_largest_mark_fits_and_is_read_back() {
        for runs in [0, 1, 159, 160, 1000] {
            let mark = mark(runs);
            assert_eq!(mark.runs.len(), RUNS_MARKED_MAX.min(runs as usize + 1));
            assert_eq!(mark.to_content().len(), SLOT_BYTES);
            assert_eq!(RunMark::from_content(&mark.to_content()), Some(mark));
        }
        let largest = RunMark { count: u64::MAX, last_at: Timestamp::from_ms(i64::MIN), ..mark(1000) };
        assert_eq!(largest.to_content().len(), SLOT_BYTES);
    }

    #[test]
    fn a_cut_at_any_byte_leaves_the_mark_before_or_the_new_one() {
        let folder = TestFolder::new();
        let file = RunMarkFile::new(folder.path());
        assert_eq!(file.read().expect("it can be asked"), None);
        for runs in 1..4 {
            file.write(&mark(runs)).expect("it can be written");
            assert_eq!(file.read().expect("it is there"), Some(mark(runs)));
        }
        // The fourth goes to the older slot, `b`, which has the second.
        let path = folder.path().join("run.b");
        let before = std::fs::read(&path).expect("it is there");
        assert_eq!(RunMark::from_content(&before), Some(mark(2)));
        let new = mark(4).to_content();
        for cut in (0..=SLOT_BYTES).step_by(7).chain([SLOT_BYTES]) {
            let torn = [&new[..cut], &before[cut..]].concat();
            std::fs::write(&path, torn).expect("it can be written");
            let found = file.read().expect("it is there");
            assert!(found == Some(mark(3)) || found == Some(mark(4)), "cut at {cut}: {found:?}");
        }
    }

    #[test]
    fn hostile_content_is_no_mark() {
        let good = mark(3).to_content();
        assert!((0..400).all(|at| {
            let mut bad = good.clone();
            bad[at] ^= 0x21;
            RunMark::from_content(&bad).is_none_or(|found| found == mark(3))
        }));
        for text in ["", "count = 1\nlast_ms = 0\nruns = []\n", "count = 1\nlast_ms = 0\nruns = [\"0\"]\n", "\u{0}"] {
            let sealed = format!("{text}{DIGEST_KEY}\"{}\"\n", Sha256Digest::of(text.as_bytes()));
            assert_eq!(RunMark::from_content(sealed.as_bytes()), None, "{text:?}");
        }
    }
}
