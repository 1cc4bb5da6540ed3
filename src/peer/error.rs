//! Why two drives didn't find, or didn't trust, each other.

use std::fmt;

use crate::hint::Hint;
use crate::store::StoreError;

/// Why the other side ended an exchange, as it says on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The code isn't the one that it shows.
    WrongCode,
    /// Its person said no.
    Declined,
    /// Its code was used, or its time is over.
    Over,
    /// It talks with as many as it can at once.
    Busy,
    /// It carries the same identity.
    SameIdentity,
}

impl Refusal {
    pub(super) const ALL: [Self; 5] = [Self::WrongCode, Self::Declined, Self::Over, Self::Busy, Self::SameIdentity];

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::WrongCode => 1,
            Self::Declined => 2,
            Self::Over => 3,
            Self::Busy => 4,
            Self::SameIdentity => 5,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.number() == number)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongCode => "the code isn't the one it shows",
            Self::Declined => "its person said no",
            Self::Over => "its code was used already, or its time is over",
            Self::Busy => "it is talking with others",
            Self::SameIdentity => "it has the same identity",
        })
    }
}

/// Why two drives weren't linked, or can't talk.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The operating system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// What was typed is no code.
    #[error("a code has 8 letters and digits, such as `4K-7QM-2XD`")]
    Code,
    /// What was pasted is no ticket.
    #[error("this isn't a whole ticket: {why}")]
    Ticket {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The ticket's time is over.
    #[error("this ticket's time is over")]
    Expired,
    /// The address of the relay can't be used.
    #[error("`{url}` isn't the address of a relay")]
    Relay {
        /// What was set.
        url: String,
    },
    /// No socket could be had.
    #[error("can't use the network: {why}")]
    Network {
        /// What the system said.
        why: String,
    },
    /// The network refuses to carry announcements.
    #[error("this machine may not look for other drives on the local network")]
    LocalNetwork,
    /// Nobody was found, or nobody answered.
    #[error("{what} didn't answer in {seconds} s")]
    NoAnswer {
        /// Who was looked for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// Nobody came while the code was valid.
    #[error("nobody came before the code's time was over")]
    NobodyCame,
    /// The other side said no.
    #[error("the other drive refused: {0}")]
    Refused(Refusal),
    /// The person said no.
    #[error("nothing was linked: you said no")]
    Declined,
    /// The other side doesn't know the code, although it waits under its nameplate.
    #[error("what answered doesn't know the code")]
    Impostor,
    /// The other side's card isn't signed by the identity that it names.
    #[error("the other side doesn't hold the identity that it names")]
    Forged,
    /// The other side carries this drive's identity.
    #[error("the other drive has the same identity as this one: one is a copy of the other")]
    SameIdentity,
    /// The other side speaks a later version.
    #[error("the other drive speaks version {version} of linking, and this Tiles knows {ours}")]
    Newer {
        /// Its version.
        version: u8,
        /// Ours.
        ours: u8,
    },
    /// The other side sent what can't be.
    #[error("the other side doesn't keep to the protocol: {what}")]
    Malformed {
        /// What.
        what: &'static str,
    },
    /// The other side fell silent.
    #[error("the other side fell silent")]
    Silent,
    /// The connection ended.
    #[error("the connection ended: {why}")]
    Lost {
        /// What ended it.
        why: String,
    },
    /// The person pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// What the store keeps of linked drives can't be read.
    #[error("the list of linked drives isn't written as it should be")]
    List,
    /// There are as many as there can be.
    #[error("{} drives are linked already", super::LINKED_MAX)]
    TooMany,
    /// No linked drive is meant.
    #[error("no linked drive is called `{text}`")]
    NotLinked {
        /// What was typed.
        text: String,
    },
    /// Several are meant.
    #[error("several linked drives are called `{text}`")]
    Ambiguous {
        /// What was typed.
        text: String,
    },
    /// Reading or writing the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Hint for PeerError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Random | Self::Interrupted => return None,
            Self::Code => "type what the other drive shows after `tiles link enable`; O counts as 0, I and L as 1",
            Self::Ticket { .. } => "copy the whole ticket again; it begins with `TILES1:`",
            Self::Expired | Self::NobodyCame | Self::Refused(Refusal::Over) => {
                "run `tiles link enable` on the other drive again: a code is good for five minutes and for one link"
            }
            Self::Relay { .. } => {
                "set `https://…` of a relay of yours with `tiles config set relay URL`, or unset it; a relay without a public certificate has `#sha256=` and 64 digits after its address"
            }
            Self::Network { .. } | Self::Lost { .. } | Self::Silent => {
                "look at the network of both machines, and try again"
            }
            Self::LocalNetwork => {
                "on a Mac allow it: System Settings, Privacy & Security, Local Network, then switch on the terminal that \
                 started Tiles; or paste the ticket instead of the code"
            }
            Self::NoAnswer { .. } => {
                "both machines must be on the same network, and the other drive must be waiting; where the network keeps \
                 them apart, paste the ticket instead of the code"
            }
            Self::Refused(Refusal::WrongCode) => {
                "type the code as the other drive shows it now; after three wrong ones it is new"
            }
            Self::Refused(Refusal::Declined) => "ask the person at the other drive",
            Self::Refused(Refusal::Busy) => "try again in a minute",
            Self::Declined => "run `tiles link enable` again if it was the right one after all",
            Self::Impostor => {
                "look at the code; if it is right, something on this network pretends to be the other drive"
            }
            Self::Forged | Self::Malformed { .. } => {
                "something on this network interferes: use another one, or a cable"
            }
            Self::SameIdentity | Self::Refused(Refusal::SameIdentity) => {
                "link drives that were set up apart; make the second one with `tiles bundle create`, which leaves your data out"
            }
            Self::Newer { .. } => "update this Tiles",
            Self::List => "link the drives again; `tiles data recover` looks for other damage",
            Self::TooMany => "take one off with `tiles link disable`",
            Self::NotLinked { .. } | Self::Ambiguous { .. } => "give its DID, as `tiles link list-peers` shows it",
            Self::Store(error) => return error.hint(),
        };
        Some(hint.into())
    }
}
