//! What two drives say to each other while they sync, and its form on the wire.
//!
//! A frame is its length (4 bytes, big-endian, of what follows), its kind (1 byte), and its content. Each kind has a limit,
//! which is checked before anything is read. What a frame holds may come from a hostile drive that is linked.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Duration, timeout};
use zeroize::Zeroizing;

use super::chunk::CHUNK_BYTES_MAX;
use super::error::SyncError;
use crate::did::Did;
use crate::oplog::vector::{LOGS_MAX, VECTOR_BYTES_MAX};
use crate::oplog::{LogId, Vector};
use crate::peer::mesh::{MESH_KEYS_MAX, MeshKey};

/// The version of what is said.
pub const SYNC_VERSION: u8 = 1;
/// How long the other side may say nothing, or take nothing. A slow drive acknowledges each chunk, and says so with that.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest list of logs, in bytes.
const LOGS_BYTES_MAX: usize = LOGS_MAX * 48 + 16;
const SMALL_BYTES_MAX: usize = 1_024;

/// What is said.
#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    /// How one speaks, and the keys of the mesh, by which linked drives find each other. The first, once.
    Hello {
        /// [`SYNC_VERSION`].
        version: u8,
        /// The keys.
        mesh_keys: Vec<MeshKey>,
    },
    /// How much one has of each log. A round begins with it.
    Vector(Vector),
    /// What one asks for beyond what the vector says, and not for.
    Wants(Wants),
    /// How many operations are about to come in this round.
    Offer {
        /// How many.
        ops: u64,
    },
    /// Runs of operations one after the other, compressed.
    Chunk(Vec<u8>),
    /// How many operations of this round were taken in, or refused, until now.
    Ack {
        /// How many.
        ops: u64,
    },
    /// No more operations come in this round.
    Done,
    /// A round is over: all that came is stored.
    Outcome {
        /// Whether one more round is needed.
        again: bool,
    },
}

/// What is asked for beyond a vector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Logs that seem to go another way there: from their beginning, to prove it.
    pub from_start: Vec<LogId>,
    /// Logs that are known to go another way: not at all.
    pub unwanted: Vec<LogId>,
}

const HELLO: u8 = 1;
const VECTOR: u8 = 2;
const WANTS: u8 = 3;
const OFFER: u8 = 4;
const CHUNK: u8 = 5;
const ACK: u8 = 6;
const DONE: u8 = 7;
const OUTCOME: u8 = 8;

#[derive(Serialize, Deserialize)]
struct WireHello {
    version: u8,
    mesh_keys: Vec<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct WireWants {
    from_start: Vec<WireLog>,
    unwanted: Vec<WireLog>,
}

#[derive(Serialize, Deserialize)]
struct WireLog {
    device: [u8; 32],
    epoch: [u8; 16],
}

fn form<T: for<'a> Deserialize<'a>>(content: &[u8]) -> Result<T, SyncError> {
    match postcard::take_from_bytes(content) {
        Ok((value, [])) => Ok(value),
        _ => Err(SyncError::Malformed { what: "a frame isn't in the form that Tiles writes" }),
    }
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("memory takes what has a form")
}

fn wire_logs(logs: &[LogId]) -> Vec<WireLog> {
    logs.iter().map(|log| WireLog { device: *log.device.public_key(), epoch: log.epoch }).collect()
}

fn read_logs(logs: Vec<WireLog>) -> Result<Vec<LogId>, SyncError> {
    if logs.len() > LOGS_MAX {
        return Err(SyncError::Malformed { what: "more logs are named than there can be" });
    }
    let log = |WireLog { device, epoch }| {
        let device = Did::from_public_key(device);
        let device = device.map_err(|_| SyncError::Malformed { what: "a log is of a device without a usable key" })?;
        Ok(LogId { device, epoch })
    };
    logs.into_iter().map(log).collect()
}

/// The most bytes that a frame of this kind has, without its kind; `None` for a kind that nobody sends.
fn bytes_max(kind: u8) -> Option<usize> {
    match kind {
        HELLO | OFFER | ACK | DONE | OUTCOME => Some(SMALL_BYTES_MAX),
        VECTOR => Some(VECTOR_BYTES_MAX),
        WANTS => Some(2 * LOGS_BYTES_MAX),
        CHUNK => Some(CHUNK_BYTES_MAX),
        _ => None,
    }
}

impl Frame {
    fn into_wire(self) -> (u8, Zeroizing<Vec<u8>>) {
        let (kind, content) = match self {
            Self::Hello { version, mesh_keys } => {
                let mesh_keys = mesh_keys.iter().map(|key| *key.as_bytes()).collect();
                (HELLO, bytes(&WireHello { version, mesh_keys }))
            }
            Self::Vector(vector) => (VECTOR, vector.to_bytes()),
            Self::Wants(Wants { from_start, unwanted }) => {
                (WANTS, bytes(&WireWants { from_start: wire_logs(&from_start), unwanted: wire_logs(&unwanted) }))
            }
            Self::Offer { ops } => (OFFER, bytes(&ops)),
            Self::Chunk(compressed) => (CHUNK, compressed),
            Self::Ack { ops } => (ACK, bytes(&ops)),
            Self::Done => (DONE, Vec::new()),
            Self::Outcome { again } => (OUTCOME, bytes(&again)),
        };
        (kind, Zeroizing::new(content))
    }

    /// Reads a frame's content; the bytes may come from anyone.
    ///
    /// # Errors
    /// [`SyncError::Malformed`].
    pub fn from_wire(kind: u8, content: Vec<u8>) -> Result<Self, SyncError> {
        if bytes_max(kind).is_none_or(|most| content.len() > most) {
            return Err(SyncError::Malformed { what: "a frame is of no known kind, or too long for its kind" });
        }
        Ok(match kind {
            HELLO => {
                let content = Zeroizing::new(content);
                let WireHello { version, mesh_keys } = form(&content)?;
                let mesh_keys = mesh_keys.into_iter().take(MESH_KEYS_MAX).map(MeshKey::from_bytes).collect();
                Self::Hello { version, mesh_keys }
            }
            VECTOR => Self::Vector(Vector::from_bytes(&content)?),
            WANTS => {
                let WireWants { from_start, unwanted } = form(&content)?;
                Self::Wants(Wants { from_start: read_logs(from_start)?, unwanted: read_logs(unwanted)? })
            }
            OFFER => Self::Offer { ops: form(&content)? },
            CHUNK => Self::Chunk(content),
            ACK => Self::Ack { ops: form(&content)? },
            DONE if content.is_empty() => Self::Done,
            OUTCOME => Self::Outcome { again: form(&content)? },
            _ => return Err(SyncError::Malformed { what: "a frame isn't in the form that Tiles writes" }),
        })
    }
}

/// Writes a frame. Gives how many bytes that were.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: Frame) -> Result<u64, SyncError> {
    let (kind, content) = frame.into_wire();
    let length = u32::try_from(content.len() + 1).expect("the kinds have limits");
    let mut head = [0; 5];
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4] = kind;
    let written = async {
        stream.write_all(&head).await?;
        stream.write_all(&content).await?;
        stream.flush().await
    };
    timeout(FRAME_TIMEOUT, written).await.map_err(|_| SyncError::Silent)??;
    Ok(u64::from(length) + 4)
}

/// Reads a frame. Gives how many bytes that were, too.
///
/// # Errors
/// [`SyncError::Malformed`], [`SyncError::Silent`], [`SyncError::Lost`].
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Frame, u64), SyncError> {
    let read = async {
        let mut head = [0; 5];
        stream.read_exact(&mut head).await?;
        let [a, b, c, d, kind] = head;
        let length = u32::from_be_bytes([a, b, c, d]);
        let content = usize::try_from(length).ok().and_then(|length| length.checked_sub(1));
        let length_max = bytes_max(kind).unwrap_or(0);
        let content = content.filter(|content| *content <= length_max);
        let content =
            content.ok_or(SyncError::Malformed { what: "a frame is of no known kind, or too long for its kind" })?;
        let mut bytes = vec![0; content];
        stream.read_exact(&mut bytes).await?;
        Ok((Frame::from_wire(kind, bytes)?, u64::from(length) + 4))
    };
    timeout(FRAME_TIMEOUT, read).await.map_err(|_| SyncError::Silent)?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Sha256Digest;
    use crate::oplog::Head;
    use crate::oplog::tests::log;

    fn each() -> Vec<Frame> {
        let head = Head { next: 5, chain: Sha256Digest([3; 32]) };
        vec![
            Frame::Hello { version: SYNC_VERSION, mesh_keys: vec![MeshKey::from_bytes([4; 32])] },
            Frame::Vector(Vector([(log(1), head), (log(2), head)].into())),
            Frame::Wants(Wants { from_start: vec![log(1)], unwanted: vec![log(2), log(3)] }),
            Frame::Offer { ops: 1 << 40 },
            Frame::Chunk(vec![1, 2, 3]),
            Frame::Ack { ops: 9 },
            Frame::Done,
            Frame::Outcome { again: true },
        ]
    }

    async fn written(frame: &Frame) -> Vec<u8> {
        let mut wire = Vec::new();
        let length = write(&mut wire, frame.clone()).await.expect("memory takes it");
        assert_eq!(wire.len() as u64, length);
        wire
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_written_and_no_cut_of_them_is() {
        for frame in each() {
            let wire = written(&frame).await;
            let (read_back, length) = read(&mut &wire[..]).await.expect("it was written by us");
            assert!(read_back == frame && length == wire.len() as u64);
            for end in 0..wire.len() {
                assert!(matches!(read(&mut &wire[..end]).await, Err(SyncError::Lost { .. })), "cut at {end}");
                // The same with a length that is right for what is left.
                if let Some(content) = end.checked_sub(5).filter(|_| !matches!(frame, Frame::Chunk(_))) {
                    assert!(Frame::from_wire(wire[4], wire[5..][..content].to_vec()).is_err(), "cut at {end}");
                }
            }
            if !matches!(frame, Frame::Chunk(_)) {
                let longer = [&wire[5..], &[0]].concat();
                assert!(Frame::from_wire(wire[4], longer).is_err(), "something follows");
            }
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused_before_memory_is_taken_for_it() {
        for (length, kind) in [
            (u32::MAX, CHUNK),
            (CHUNK_BYTES_MAX as u32 + 2, CHUNK),
            (SMALL_BYTES_MAX as u32 + 2, HELLO),
            (2, 0),
            (2, 99),
            (0, DONE),
        ] {
            let wire = [&length.to_be_bytes()[..], &[kind, 0, 0]].concat();
            let refused = read(&mut &wire[..]).await;
            assert!(matches!(refused, Err(SyncError::Malformed { .. })), "{length} {kind}");
        }
        // Many in few bytes: what is said to come isn't believed.
        for kind in [HELLO, VECTOR, WANTS] {
            assert!(Frame::from_wire(kind, vec![1, 255, 255, 255, 255, 15]).is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_falls_silent_is_left() {
        let (mut here, _there) = tokio::io::duplex(16);
        assert!(matches!(read(&mut here).await, Err(SyncError::Silent)));
        let (mut here, _there) = tokio::io::duplex(16);
        assert!(matches!(write(&mut here, Frame::Chunk(vec![0; 64])).await, Err(SyncError::Silent)), "nobody reads");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0_u8..10, content in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::from_wire(kind, content);
        }
    }
}
