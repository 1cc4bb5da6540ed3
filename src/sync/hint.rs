//! Hints among drives that watch: one that has something new says so, and the others sync with it at once.
//!
//! They travel by gossip (iroh-gossip: HyParView and Plumtree) on a topic that only drives of one mesh know, between drives
//! that are linked, so a drive hears of what is new at one that it doesn't see itself. A hint is signed, and says nothing but
//! that its drive has other operations than who hears it; it may be lost, and then the timer finds out.

use futures_util::StreamExt as _;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::Connection;
use iroh::{EndpointAddr, EndpointId};
use iroh_gossip::TopicId;
use iroh_gossip::api::{Event, GossipSender};
use iroh_gossip::net::{GOSSIP_ALPN, Gossip};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::error::SyncError;
use crate::did::Did;
use crate::digest::Sha256Digest;
use crate::identity::Identity;
use crate::oplog::Vector;
use crate::peer::mesh::MeshKey;
use crate::time::Timestamp;

/// The protocol that hints travel by.
pub(super) const HINT_ALPN: &[u8] = GOSSIP_ALPN;
/// The longest hint, in bytes.
const HINT_BYTES_MAX: usize = 256;
/// The most hints that wait to be looked at; more are dropped.
const HEARD_MAX: usize = 64;
/// How old a hint may be, and how far ahead: clocks differ.
const AGE_MS_MAX: i64 = 24 * 60 * 60 * 1_000;

/// Somebody has other operations than it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Who says so.
    pub author: Did,
    /// When it said so.
    pub at: Timestamp,
    /// The digest of its version vector, which stands for all it has.
    pub has: Sha256Digest,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    device: [u8; 32],
    at_ms: i64,
    has: [u8; 32],
    signature: ([u8; 32], [u8; 32]),
}

/// A digest that is the same on drives that have the same operations.
pub(super) fn stand_in(vector: &Vector) -> Sha256Digest {
    Sha256Digest::of(&vector.to_bytes())
}

impl Hint {
    fn signed_text(&self, topic: &[u8; 32]) -> Vec<u8> {
        let mut text = b"tiles/v1/sync-hint\0".to_vec();
        text.extend(topic);
        text.extend(self.author.public_key());
        text.extend(self.at.as_ms().to_be_bytes());
        text.extend(self.has.0);
        text
    }

    /// Prints it, signed for a topic, in the form that [`Hint::from_bytes`] reads.
    pub fn to_bytes(&self, topic: &[u8; 32], identity: &Identity) -> Vec<u8> {
        let signature = identity.sign(&self.signed_text(topic));
        let (r, s) = signature.split_at(32);
        let signature = (r.try_into().expect("half of 64"), s.try_into().expect("half of 64"));
        let wire = Wire { device: *self.author.public_key(), at_ms: self.at.as_ms(), has: self.has.0, signature };
        postcard::to_allocvec(&wire).expect("memory takes what has a form")
    }

    /// Reads a hint of a topic; the bytes may come from anyone. `None` for what isn't signed by whom it names, is too old, or
    /// lies in the future.
    pub fn from_bytes(bytes: &[u8], topic: &[u8; 32], now: Timestamp) -> Option<Self> {
        if bytes.len() > HINT_BYTES_MAX {
            return None;
        }
        let (Wire { device, at_ms, has, signature }, []) = postcard::take_from_bytes(bytes).ok()? else { return None };
        let hint =
            Self { author: Did::from_public_key(device).ok()?, at: Timestamp::from_ms(at_ms), has: Sha256Digest(has) };
        let mut whole = [0; 64];
        whole[..32].copy_from_slice(&signature.0);
        whole[32..].copy_from_slice(&signature.1);
        let is_near = at_ms.abs_diff(now.as_ms()) <= AGE_MS_MAX as u64;
        (is_near && hint.author.verifies(&hint.signed_text(topic), &whole)).then_some(hint)
    }
}

/// The topic of a mesh: who hasn't its key can't name it.
fn topic_of(key: &MeshKey) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"tiles/v1/sync-topic\0");
    hasher.update(key.as_bytes());
    hasher.finalize().into()
}

/// Saying and hearing hints; ends when dropped.
pub(super) struct Hints {
    gossip: Gossip,
    lookup: MemoryLookup,
    topics: Vec<([u8; 32], GossipSender)>,
    pub(super) heard: mpsc::Receiver<([u8; 32], Vec<u8>)>,
    _listening: JoinSet<()>,
}

impl Hints {
    /// Listens on the topics of these keys.
    pub(super) async fn start(endpoint: &iroh::Endpoint, keys: &[MeshKey]) -> Result<Self, SyncError> {
        let lost = |error: &dyn std::fmt::Display| SyncError::Lost(error.to_string());
        // Gossip connects by keys alone, so it must be told where they are.
        let lookup = MemoryLookup::new();
        endpoint.address_lookup().map_err(|error| lost(&error))?.add(lookup.clone());
        let gossip = Gossip::builder().max_message_size(4 * HINT_BYTES_MAX).spawn(endpoint.clone());
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        let (mut topics, mut listening) = (Vec::new(), JoinSet::new());
        for topic in keys.iter().map(topic_of) {
            let subscribed = gossip.subscribe(TopicId::from_bytes(topic), Vec::new()).await;
            let (sender, mut receiver) = subscribed.map_err(|error| lost(&error))?.split();
            topics.push((topic, sender));
            let tell = tell.clone();
            listening.spawn(async move {
                while let Some(Ok(event)) = receiver.next().await {
                    if let Event::Received(message) = event {
                        // Full: somebody floods the topic, and the timer finds out what is new.
                        let _ = tell.try_send((topic, message.content.to_vec()));
                    }
                }
            });
        }
        Ok(Self { gossip, lookup, topics, heard, _listening: listening })
    }

    /// Talks with a linked drive that is there, too.
    pub(super) async fn meet(&self, address: EndpointAddr) {
        let id: EndpointId = address.id;
        self.lookup.add_endpoint_info(address);
        for (_, sender) in &self.topics {
            let _ = sender.join_peers(vec![id]).await;
        }
    }

    /// Takes a connection that the gate let in.
    pub(super) async fn receive(&self, connection: Connection) {
        let _ = self.gossip.handle_connection(connection).await;
    }

    /// The topics that a hint is to be signed for.
    pub(super) fn topics(&self) -> Vec<[u8; 32]> {
        self.topics.iter().map(|(topic, _)| *topic).collect()
    }

    /// Tells all that are there; `signed` has a hint for each topic.
    pub(super) async fn tell(&self, signed: Vec<Vec<u8>>) {
        for ((_, sender), hint) in self.topics.iter().zip(signed) {
            let _ = sender.broadcast(hint.into()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_795_688_340_000);

    #[test]
    fn a_hint_is_of_one_drive_one_topic_and_one_day() {
        let identity = Identity::generate(NOW).expect("there is chance");
        let hint = Hint { author: identity.did(), at: NOW, has: Sha256Digest([3; 32]) };
        let bytes = hint.to_bytes(&[1; 32], &identity);
        assert!(bytes.len() <= HINT_BYTES_MAX);
        assert_eq!(Hint::from_bytes(&bytes, &[1; 32], NOW), Some(hint));
        assert_eq!(Hint::from_bytes(&bytes, &[2; 32], NOW), None, "it is of another topic");
        for (at_ms, is_heard) in
            [(-AGE_MS_MAX - 1, false), (-AGE_MS_MAX, true), (AGE_MS_MAX, true), (AGE_MS_MAX + 1, false)]
        {
            let now = Timestamp::from_ms(NOW.as_ms() + at_ms);
            assert_eq!(Hint::from_bytes(&bytes, &[1; 32], now).is_some(), is_heard, "{at_ms}");
        }
        for place in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[place / 8] ^= 1 << (place % 8);
            assert_eq!(Hint::from_bytes(&other, &[1; 32], NOW), None, "bit {place}");
        }
        for end in 0..bytes.len() {
            assert_eq!(Hint::from_bytes(&bytes[..end], &[1; 32], NOW), None, "cut at {end}");
        }
        assert_eq!(Hint::from_bytes(&[&bytes[..], &[0]].concat(), &[1; 32], NOW), None);
        let other = MeshKey::from_bytes([2; 32]);
        assert_ne!(topic_of(&MeshKey::from_bytes([1; 32])), topic_of(&other));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Hint::from_bytes(&bytes, &[0; 32], NOW), None);
        }
    }
}
