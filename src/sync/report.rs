//! What a sync came to.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::did::Did;
use crate::oplog::LogId;

/// How much came, or went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Operations.
    pub ops: u64,
    /// Messages among them.
    pub messages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

/// What an exchange with one drive came to; also of one that was cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was new here.
    pub received: Amount,
    /// How many sessions that was about.
    pub sessions: u64,
    /// What was sent, and acknowledged or not.
    pub sent: Amount,
    /// How many runs were refused, by why.
    pub refused: BTreeMap<String, u64>,
    /// Logs that were written in two ways, by copies of one drive.
    pub forked: Vec<LogId>,
    /// Whether this drive's own log goes on under a new epoch, since a copy of this drive went another way.
    pub has_new_epoch: bool,
    /// How many rounds it took.
    pub rounds: u32,
    /// How long it took.
    pub took: Duration,
}

impl Amount {
    const fn add(&mut self, more: &Self) {
        self.ops += more.ops;
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

impl Report {
    /// Adds what another exchange with the same drive came to.
    pub(super) fn add(&mut self, more: &Self) {
        self.received.add(&more.received);
        self.sent.add(&more.sent);
        self.sessions += more.sessions;
        for (why, count) in &more.refused {
            *self.refused.entry(why.clone()).or_default() += count;
        }
        self.forked.extend(more.forked.iter().filter(|log| !self.forked.contains(log)).collect::<Vec<_>>());
        self.has_new_epoch |= more.has_new_epoch;
        self.rounds += more.rounds;
        self.took += more.took;
    }
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// With whom.
    pub peer: Did,
    /// How many operations of this round have come.
    pub received: u64,
    /// How many come in it, as the other side says.
    pub to_receive: u64,
    /// How many operations of this round have arrived there.
    pub sent: u64,
    /// How many go in it.
    pub to_send: u64,
}
