//! How the two slots of a key file are: as types, and in the words that a person is told.

use std::fmt;
use std::path::PathBuf;

use super::argon2id::WorkFactor;
use super::slot::SlotHeader;
use crate::disk::two_slot::Slot;

/// How a slot is, apart from whole. Shown as the end of a sentence: "`key.b` …".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// There is no file.
    Missing,
    /// It is torn or rotten, and why.
    Damaged(&'static str),
    /// A later Tiles wrote it.
    Newer(u64),
    /// It is whole and older: a change was cut before it was complete.
    Behind,
    /// It is whole, newer, and another passphrase opens it: a change was cut, and this is the passphrase before it.
    Ahead,
    /// It is whole, as new, and from another copy of the drive that was changed on its own.
    Foreign,
}

impl SlotState {
    /// One word for it, for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged(_) => "damaged",
            Self::Newer(_) => "newer",
            Self::Behind => "behind",
            Self::Ahead => "ahead",
            Self::Foreign => "foreign",
        }
    }

    /// Whether the good slot may be written over it without losing anything.
    pub const fn can_be_mended(self) -> bool {
        matches!(self, Self::Missing | Self::Damaged(_) | Self::Behind)
    }
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Damaged(reason) => write!(f, "is damaged: {reason}"),
            Self::Newer(version) => write!(f, "was written by a later Tiles, in format {version}"),
            Self::Behind => f.write_str("is older than the other: a change was cut before it was complete"),
            Self::Ahead => {
                f.write_str("is newer and opens with another passphrase: a change of the passphrase was cut")
            }
            Self::Foreign => f.write_str("comes from another copy of what is here, which was changed on its own"),
        }
    }
}

/// Which slot isn't as it should be although the keys were opened, and how it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFlaw {
    /// Which.
    pub slot: Slot,
    /// How it is.
    pub state: SlotState,
}

/// What a slot says about itself without a passphrase, compared with the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotReport {
    /// Where it is.
    pub path: PathBuf,
    /// Its header, where it is whole.
    pub header: Option<SlotHeader>,
    /// What is wrong with it, or `None` where it is as good as any.
    pub state: Option<SlotState>,
}

/// What a key file says about itself without a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFileReport {
    /// Both slots.
    pub slots: [SlotReport; 2],
    /// How much work opening the newest whole slot is; `None` where there is none, or none of ours.
    pub work: Option<WorkFactor>,
    /// Whether the newest whole slot opens with recovery words; `None` where there is none.
    pub has_recovery: Option<bool>,
}

impl KeyFileReport {
    /// The header of the newest whole slot.
    pub fn newest(&self) -> Option<SlotHeader> {
        self.slots.iter().filter_map(|slot| slot.header).max_by_key(|header| header.generation)
    }
}
