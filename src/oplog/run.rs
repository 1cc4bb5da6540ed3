//! A run: operations of one log that follow each other, up to a place that its device has signed.

use serde::{Deserialize, Serialize};

use super::body::BODY_BYTES_MAX;
use super::{Body, BodyError, Hlc, LOG_OPS_MAX, LogId, OpHead, body_digest, chain, chain_start, signed_text};
use crate::did::Did;
use crate::digest::Sha256Digest;
use crate::hint::Hint;
use crate::time::Timestamp;

/// The most operations of a run. A device signs its log at least so often.
pub const RUN_OPS_MAX: usize = 512;
/// How many bytes of bodies a run has before it ends; the last body may go beyond.
pub const RUN_BYTES: usize = 256 * 1024;
/// The most bytes that a run has in its form on the wire.
pub const RUN_BYTES_MAX: usize = RUN_BYTES + BODY_BYTES_MAX + 128 * RUN_OPS_MAX;

/// An operation in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOp {
    /// What it commits to.
    pub head: OpHead,
    /// The salt and the body; nothing where the body was deleted.
    pub body: Option<([u8; 16], Vec<u8>)>,
}

/// Operations that follow each other, and the device's signature after the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose they are.
    pub log: LogId,
    /// The number of the first one, from 0.
    pub first: u64,
    /// The chain before it.
    pub before: Sha256Digest,
    /// The operations.
    pub ops: Vec<RunOp>,
    /// The Ed25519 signature of [`signed_text`] after the last.
    pub signature: [u8; 64],
}

/// Why a run isn't believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The bytes aren't in the form of one.
    #[error("a run of operations isn't in the form that Tiles writes")]
    Form,
    /// It is larger than any that is written.
    #[error("a run of operations is longer than any that Tiles writes")]
    TooLong,
    /// It has no operations.
    #[error("a run has no operations")]
    Empty,
    /// The device didn't sign this.
    #[error("operations aren't signed by the device they are said to be of")]
    Signature,
    /// A body isn't what its operation commits to.
    #[error("an operation's body isn't the one that was signed")]
    Digest,
    /// A body can't be read.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Time goes backwards in it.
    #[error("the operations of a log go back in time")]
    Backwards,
    /// It lies in the future.
    #[error("operations are more than a day ahead of this device's clock")]
    Ahead,
}

impl Hint for RunError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Ahead => "set the clocks of both devices right; nothing was taken over".into(),
            Self::Body(error) => return error.hint(),
            _ => "update Tiles on both devices; if that doesn't help, unlink the one that sent this".into(),
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    device: [u8; 32],
    epoch: [u8; 16],
    first: u64,
    before: [u8; 32],
    #[serde(borrow)]
    ops: Vec<WireOp<'a>>,
    signature: ([u8; 32], [u8; 32]),
}

#[derive(Serialize, Deserialize)]
struct WireOp<'a> {
    hlc: u64,
    kind: u8,
    #[serde(borrow)]
    content: WireContent<'a>,
}

#[derive(Serialize, Deserialize)]
enum WireContent<'a> {
    Body { salt: [u8; 16], bytes: &'a [u8] },
    Deleted { digest: [u8; 32] },
}

impl Run {
    /// The number of the operation after the last.
    pub fn next(&self) -> u64 {
        self.first + self.ops.len() as u64
    }

    /// The chain after the last operation.
    pub fn chain(&self) -> Sha256Digest {
        let numbered = self.ops.iter().zip(self.first..);
        numbered.fold(self.before, |before, (op, number)| chain(&before, number, &op.head))
    }

    /// Checks everything that can be checked of it alone, and reads its bodies: the signature over the chain, each body's
    /// digest and content, and that time goes on and doesn't lie in the future.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn check(&self, now: Timestamp) -> Result<Vec<Option<Body>>, RunError> {
        let last = self.ops.last().ok_or(RunError::Empty)?;
        if self.first == 0 && self.before != chain_start(&self.log) {
            return Err(RunError::Signature);
        }
        if !self.log.device.verifies(&signed_text(&self.log, self.next(), &self.chain()), &self.signature) {
            return Err(RunError::Signature);
        }
        if !self.ops.is_sorted_by_key(|op| op.head.hlc) {
            return Err(RunError::Backwards);
        }
        if last.head.hlc.is_too_far_ahead(now) {
            return Err(RunError::Ahead);
        }
        self.ops.iter().map(RunOp::check).collect()
    }

    /// Prints it in the form that [`Run::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let ops = self.ops.iter().map(|op| WireOp {
            hlc: op.head.hlc.to_bits(),
            kind: op.head.kind,
            content: match &op.body {
                Some((salt, bytes)) => WireContent::Body { salt: *salt, bytes },
                None => WireContent::Deleted { digest: op.head.digest.0 },
            },
        });
        let (r, s) = self.signature.split_at(32);
        let halves = (r.try_into().expect("half of 64"), s.try_into().expect("half of 64"));
        let wire = Wire {
            device: *self.log.device.public_key(),
            epoch: self.log.epoch,
            first: self.first,
            before: self.before.0,
            ops: ops.collect(),
            signature: halves,
        };
        postcard::to_allocvec(&wire).expect("memory takes what has a form")
    }

    /// Reads a run and what follows it; the bytes may come from anyone, and nothing of it is believed before
    /// [`Run::check`].
    ///
    /// # Errors
    /// [`RunError::Form`] and [`RunError::TooLong`].
    pub fn take_from_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), RunError> {
        let (wire, rest): (Wire<'_>, _) = postcard::take_from_bytes(bytes).map_err(|_| RunError::Form)?;
        if wire.ops.len() > RUN_OPS_MAX || bytes.len() - rest.len() > RUN_BYTES_MAX {
            return Err(RunError::TooLong);
        }
        let device = Did::from_public_key(wire.device).map_err(|_| RunError::Form)?;
        if wire.first.checked_add(wire.ops.len() as u64).is_none_or(|next| next > LOG_OPS_MAX) {
            return Err(RunError::TooLong);
        }
        let ops = wire.ops.into_iter().map(|op| {
            let (digest, body) = match op.content {
                WireContent::Body { salt, bytes } => (body_digest(&salt, bytes), Some((salt, bytes.to_vec()))),
                WireContent::Deleted { digest } => (Sha256Digest(digest), None),
            };
            let hlc = Hlc::from_bits(op.hlc).ok_or(RunError::Form)?;
            Ok(RunOp { head: OpHead { hlc, kind: op.kind, digest }, body })
        });
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&wire.signature.0);
        signature[32..].copy_from_slice(&wire.signature.1);
        let log = LogId { device, epoch: wire.epoch };
        let ops = ops.collect::<Result<_, RunError>>()?;
        Ok((Self { log, first: wire.first, before: Sha256Digest(wire.before), ops, signature }, rest))
    }

    /// As [`Run::take_from_bytes`], where nothing may follow.
    ///
    /// # Errors
    /// As there.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RunError> {
        match Self::take_from_bytes(bytes)? {
            (run, []) => Ok(run),
            _ => Err(RunError::Form),
        }
    }
}

/// A run that was checked, and what its operations say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedRun {
    run: Run,
    bodies: Vec<Option<Body>>,
}

impl CheckedRun {
    /// Checks a run as [`Run::check`] does.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn new(run: Run, now: Timestamp) -> Result<Self, RunError> {
        let bodies = run.check(now)?;
        Ok(Self { run, bodies })
    }

    /// The run.
    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// What each of its operations says; nothing where the body was deleted.
    pub fn bodies(&self) -> &[Option<Body>] {
        &self.bodies
    }
}

impl RunOp {
    fn check(&self) -> Result<Option<Body>, RunError> {
        let Some((salt, bytes)) = &self.body else { return Ok(None) };
        if body_digest(salt, bytes) != self.head.digest {
            return Err(RunError::Digest);
        }
        let body = Body::from_bytes(bytes)?;
        if body.kind() == self.head.kind { Ok(Some(body)) } else { Err(BodyError::Kind.into()) }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signer as _;
    use proptest::prelude::*;

    use super::*;
    use crate::oplog::body::tests::each;
    use crate::oplog::tests::{key, log, run_of};

    const NOW: Timestamp = Timestamp::from_ms(1_000_000);

    #[test]
    fn runs_print_parse_and_hold() {
        let run = run_of(1, &each());
        let bytes = run.to_bytes();
        let read = Run::from_bytes(&bytes).expect("it was written by us");
        assert_eq!(read, run);
        let bodies = read.check(NOW).expect("it is signed");
        assert_eq!(bodies, each().into_iter().map(Some).collect::<Vec<_>>());
        for end in 0..bytes.len() {
            assert!(Run::from_bytes(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(Run::from_bytes(&[&bytes[..], &[0]].concat()), Err(RunError::Form));
    }

    #[test]
    fn a_deleted_body_leaves_the_chain_checkable() {
        let mut run = run_of(1, &each());
        run.ops[3].body = None;
        let read = Run::from_bytes(&run.to_bytes()).expect("it has the form");
        assert_eq!(read.check(NOW).expect("it is signed")[3], None);
    }

    #[test]
    fn every_forgery_is_refused() {
        let sign = |run: &mut Run, by: u8| {
            run.signature = key(by).sign(&signed_text(&run.log, run.next(), &run.chain())).to_bytes();
        };
        type Forgery<'a> = (&'a str, &'a dyn Fn(&mut Run), RunError);
        let changes: [Forgery<'_>; 12] = [
            ("another's signature", &|run| sign(run, 2), RunError::Signature),
            ("a flipped signature", &|run| run.signature[5] ^= 1, RunError::Signature),
            ("another's log", &|run| run.log = log(2), RunError::Signature),
            ("another epoch", &|run| run.log.epoch = [9; 16], RunError::Signature),
            ("another place", &|run| run.first = 1, RunError::Signature),
            ("another beginning", &|run| run.before.0[0] ^= 1, RunError::Signature),
            ("one less", &|run| drop(run.ops.pop()), RunError::Signature),
            ("one left out", &|run| drop(run.ops.remove(2)), RunError::Signature),
            ("two swapped", &|run| run.ops.swap(0, 1), RunError::Signature),
            ("another body", &|run| run.ops[5].body.as_mut().expect("it has one").1[1] ^= 1, RunError::Digest),
            (
                "back in time, signed",
                &|run| {
                    run.ops.swap(0, 1);
                    sign(run, 1);
                },
                RunError::Backwards,
            ),
            (
                "another kind, signed",
                &|run| {
                    run.ops[0].head.kind = 1;
                    sign(run, 1);
                },
                RunError::Body(BodyError::Kind),
            ),
        ];
        for (what, change, expected) in changes {
            let mut run = run_of(1, &each());
            change(&mut run);
            assert_eq!(run.check(NOW), Err(expected), "{what}");
        }
        let mut empty = run_of(1, &[]);
        assert_eq!(empty.check(NOW), Err(RunError::Empty));
        sign(&mut empty, 1);
        assert_eq!(empty.check(NOW), Err(RunError::Empty));
        let ten_years = Timestamp::from_ms(10 * 365 * 86_400_000);
        let mut ahead = run_of(1, &each());
        ahead.ops.last_mut().expect("it has some").head.hlc = Hlc::next(ten_years, None).expect("it is early");
        sign(&mut ahead, 1);
        assert_eq!(ahead.check(NOW), Err(RunError::Ahead));
        assert!(ahead.check(ten_years).is_ok(), "what is long past is no reason to refuse");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(run) = Run::from_bytes(&bytes) {
                let _ = run.check(NOW);
            }
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(place in 0_usize..8 * 600) {
            let run = run_of(1, &each());
            let mut bytes = run.to_bytes();
            let place = place % (bytes.len() * 8);
            bytes[place / 8] ^= 1 << (place % 8);
            let read = Run::from_bytes(&bytes);
            prop_assert!(read.and_then(|run| run.check(NOW).map(|_| ())).is_err());
        }
    }
}
