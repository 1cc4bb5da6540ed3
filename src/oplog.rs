//! The operation log: what a device did, one operation after the other, so that other devices can do the same.
//!
//! Each device appends to a log of its own, which nobody else can continue: operations are chained by hashes, and the
//! device's key signs the chain at some of its places. An operation commits to its body by a salted digest. So a body can be
//! deleted for good, salt and all, while the chain stays checkable, and nobody can find out what it was by guessing.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::did::Did;
use crate::digest::Sha256Digest;
use crate::time::Timestamp;

pub mod body;
pub mod run;
pub mod vector;

pub use body::{Body, BodyError, Unlinked};
pub use run::{CheckedRun, Run, RunError, RunOp};
pub use vector::{Head, Vector, VectorError};

/// The most operations of one log. At a message a second that is more than a hundred years.
pub const LOG_OPS_MAX: u64 = 1 << 32;
/// How far ahead of the own clock an operation may be, in milliseconds: a day. What is further ahead would win every
/// dispute with later operations, so it is refused.
pub const AHEAD_MS_MAX: i64 = 24 * 60 * 60 * 1_000;

/// Which log: a device has one an epoch, and begins a new epoch where its log would fork, as after a backup was put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId {
    /// The device that writes it.
    pub device: Did,
    /// 16 random bytes.
    pub epoch: [u8; 16],
}

impl fmt::Display for LogId {
    /// Writes the short form of the device's DID, and the first digits of the epoch.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.epoch;
        write!(f, "{}/{a:02x}{b:02x}{c:02x}{d:02x}", self.device.short())
    }
}

/// When an operation happened, by a hybrid logical clock: 48 bits of milliseconds since the epoch, 16 bits of counter.
///
/// It is later than that of every operation its device knew, whatever the device's clock said (Kulkarni and others,
/// Logical Physical Clocks, 2014).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hlc(u64);

impl Hlc {
    /// The most milliseconds that are written: so that the whole fits into 63 bits.
    const MS_MAX: i64 = (1 << 47) - 1;

    /// The hybrid time of these bits; `None` for more than 63.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits > i64::MAX as u64 { None } else { Some(Self(bits)) }
    }

    /// Its bits, at most 63.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The time of what happens next: the clock's, or the one after `last` where the clock isn't past it. `None` where there
    /// is none after it.
    pub fn next(now: Timestamp, last: Option<Self>) -> Option<Self> {
        let clock = Self((now.as_ms().clamp(0, Self::MS_MAX) as u64) << 16);
        match last {
            None => Some(clock),
            Some(last) => Self::from_bits(last.0 + 1).map(|next| next.max(clock)),
        }
    }

    /// The milliseconds of it.
    pub fn as_timestamp(self) -> Timestamp {
        Timestamp::from_ms((self.0 >> 16) as i64)
    }

    /// Whether it is further ahead of `now` than a clock that goes wrong a little explains.
    pub fn is_too_far_ahead(self, now: Timestamp) -> bool {
        self.as_timestamp().as_ms() > now.as_ms().saturating_add(AHEAD_MS_MAX)
    }
}

/// What an operation commits to: everything but the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpHead {
    /// When it happened.
    pub hlc: Hlc,
    /// What kind its body is of; see [`Body::kind`].
    pub kind: u8,
    /// The salted digest of its body.
    pub digest: Sha256Digest,
}

/// What an empty log's chain begins with.
pub fn chain_start(log: &LogId) -> Sha256Digest {
    let mut hasher = Sha256::new();
    hasher.update(b"tiles/v1/log\0");
    hasher.update(log.device.public_key());
    hasher.update(log.epoch);
    Sha256Digest(hasher.finalize().into())
}

/// The chain after the operation `number` of a log, from 0, whose chain before it was `before`. The first link names the
/// log, so an operation belongs to one log and to one place in it.
pub fn chain(before: &Sha256Digest, number: u64, op: &OpHead) -> Sha256Digest {
    let mut hasher = Sha256::new();
    hasher.update(b"tiles/v1/op\0");
    hasher.update(before.0);
    hasher.update(number.to_be_bytes());
    hasher.update(op.hlc.to_bits().to_be_bytes());
    hasher.update([op.kind]);
    hasher.update(op.digest.0);
    Sha256Digest(hasher.finalize().into())
}

/// The salted digest of a body.
pub fn body_digest(salt: &[u8; 16], body: &[u8]) -> Sha256Digest {
    let mut hasher = Sha256::new();
    hasher.update(b"tiles/v1/op-body\0");
    hasher.update(salt);
    hasher.update(body);
    Sha256Digest(hasher.finalize().into())
}

/// What a device signs to vouch for its log up to the operation before `next`.
pub fn signed_text(log: &LogId, next: u64, chain: &Sha256Digest) -> Vec<u8> {
    let mut text = b"tiles/v1/log-head\0".to_vec();
    text.extend(log.device.public_key());
    text.extend(log.epoch);
    text.extend(next.to_be_bytes());
    text.extend(chain.0);
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    /// The key of a device in tests.
    pub(crate) fn key(byte: u8) -> SigningKey {
        SigningKey::from_bytes(&[byte; 32])
    }

    /// A log of that device.
    pub(crate) fn log(byte: u8) -> LogId {
        let device = Did::from_public_key(key(byte).verifying_key().to_bytes()).expect("a real key");
        LogId { device, epoch: [byte; 16] }
    }

    /// A signed run of these bodies, from the beginning of the log.
    pub(crate) fn run_of(byte: u8, bodies: &[Body]) -> Run {
        let log = log(byte);
        let ops = bodies.iter().zip(1..).map(|(body, ms)| {
            let (salt, bytes) = ([ms as u8; 16], body.to_bytes());
            let hlc = Hlc::next(Timestamp::from_ms(ms), None).expect("it is early");
            let head = OpHead { hlc, kind: body.kind(), digest: body_digest(&salt, &bytes) };
            RunOp { head, body: Some((salt, bytes)) }
        });
        let mut run = Run { log, first: 0, before: chain_start(&log), ops: ops.collect(), signature: [0; 64] };
        run.signature = key(byte).sign(&signed_text(&log, run.next(), &run.chain())).to_bytes();
        run
    }

    #[test]
    fn hybrid_times_follow_the_clock_and_never_go_back() {
        let at = |ms| Timestamp::from_ms(ms);
        for (now, last, expected) in [
            (0, None, Some(0)),
            (-5, None, Some(0)),
            (1, Some(0), Some(1 << 16)),
            (1, Some(1 << 16), Some((1 << 16) + 1)),
            (1, Some(9 << 16), Some((9 << 16) + 1)),
            (i64::MAX, None, Some(((1 << 47) - 1) << 16)),
            (i64::MAX, Some(i64::MAX as u64), None),
        ] {
            let last = last.map(|bits| Hlc::from_bits(bits).expect("63 bits"));
            assert_eq!(Hlc::next(at(now), last).map(Hlc::to_bits), expected, "{now} {last:?}");
        }
        assert_eq!(Hlc::from_bits(1 << 63), None);
        let now = Hlc::next(at(AHEAD_MS_MAX + 5), None).expect("it is early");
        assert!(now.is_too_far_ahead(at(4)) && !now.is_too_far_ahead(at(5)));
    }
}
