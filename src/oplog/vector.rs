//! The version vector: how much of which log a device has. Two of them say what is to be sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{LOG_OPS_MAX, LogId};
use crate::did::Did;
use crate::digest::Sha256Digest;
use crate::hint::Hint;

/// The most logs that a device knows of.
pub const LOGS_MAX: usize = 10_000;
/// The longest form of a vector, in bytes.
pub const VECTOR_BYTES_MAX: usize = LOGS_MAX * 96 + 16;

/// How much of a log there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How many operations; more than none.
    pub next: u64,
    /// The chain after the last of them.
    pub chain: Sha256Digest,
}

/// How much there is of each log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vector(pub BTreeMap<LogId, Head>);

/// Why bytes are no vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VectorError {
    /// They aren't in the form of one.
    #[error("the other device's list of logs isn't in the form that Tiles writes")]
    Form,
    /// It names more logs than there can be.
    #[error("the other device's list of logs is longer than any that Tiles writes")]
    TooLong,
}

impl Hint for VectorError {
    fn hint(&self) -> Option<String> {
        Some("update Tiles on both devices".into())
    }
}

#[derive(Serialize, Deserialize)]
struct WireHead {
    device: [u8; 32],
    epoch: [u8; 16],
    next: u64,
    chain: [u8; 32],
}

impl Vector {
    /// How much there is of a log.
    pub fn next(&self, log: &LogId) -> u64 {
        self.0.get(log).map_or(0, |head| head.next)
    }

    /// Prints it in the form that [`Vector::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let heads = self.0.iter().map(|(log, head)| WireHead {
            device: *log.device.public_key(),
            epoch: log.epoch,
            next: head.next,
            chain: head.chain.0,
        });
        postcard::to_allocvec(&heads.collect::<Vec<_>>()).expect("memory takes what has a form")
    }

    /// Reads a vector; the bytes may come from anyone.
    ///
    /// # Errors
    /// [`VectorError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VectorError> {
        if bytes.len() > VECTOR_BYTES_MAX {
            return Err(VectorError::TooLong);
        }
        let (heads, rest): (Vec<WireHead>, _) = postcard::take_from_bytes(bytes).map_err(|_| VectorError::Form)?;
        if !rest.is_empty() {
            return Err(VectorError::Form);
        }
        if heads.len() > LOGS_MAX {
            return Err(VectorError::TooLong);
        }
        let mut vector = Self::default();
        for WireHead { device, epoch, next, chain } in heads {
            let log = LogId { device: Did::from_public_key(device).map_err(|_| VectorError::Form)?, epoch };
            let head = Head { next, chain: Sha256Digest(chain) };
            if next == 0 || next > LOG_OPS_MAX || vector.0.insert(log, head).is_some() {
                return Err(VectorError::Form);
            }
        }
        Ok(vector)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oplog::tests::log;

    #[test]
    fn vectors_print_and_parse() {
        let head = |next| Head { next, chain: Sha256Digest([3; 32]) };
        let vector = Vector([(log(1), head(1)), (log(2), head(1 << 32))].into());
        let bytes = vector.to_bytes();
        assert_eq!(Vector::from_bytes(&bytes), Ok(vector.clone()));
        assert_eq!((vector.next(&log(2)), vector.next(&log(3))), (1 << 32, 0));
        for end in 0..bytes.len() {
            assert!(Vector::from_bytes(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(Vector::from_bytes(&[&bytes[..], &[0]].concat()), Err(VectorError::Form));
        for next in [0, (1 << 32) + 1] {
            assert_eq!(Vector::from_bytes(&Vector([(log(1), head(next))].into()).to_bytes()), Err(VectorError::Form));
        }
        let twice = [&[2], &Vector([(log(1), head(1))].into()).to_bytes()[1..]].concat();
        let twice = [&twice[..], &twice[1..]].concat();
        assert_eq!(Vector::from_bytes(&twice), Err(VectorError::Form), "a log comes once");
        assert_eq!(Vector::from_bytes(&vec![0; VECTOR_BYTES_MAX + 1]), Err(VectorError::TooLong));
        assert_eq!(
            Vector::from_bytes(&[255, 255, 255, 255, 15]),
            Err(VectorError::Form),
            "memory isn't reserved for it"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Vector::from_bytes(&bytes);
        }
    }
}
