//! The link exchange: two sides that know one code prove it to each other over a channel that is theirs alone.
//!
//! SPAKE2 (RFC 9382, over Ed25519's group) turns the code into a strong key, and gives who doesn't know it one guess an
//! exchange. Its identities are the keys of the two endpoints. What confirms the key is salted with the TLS exporter
//! (RFC 9266) of the connection, so a relay in the middle, which has two connections, can't pass confirmations on. The joiner
//! confirms first: who waits answers nothing that depends on the code before it knows that the joiner has it.
//!
//! Only then each side says who it is: nickname, DID, and that DID's signature over this exchange. The secrets of the
//! mesh follow after the listener's person said yes.
//!
//! A frame is its length (2 bytes, big-endian, of what follows), its kind (1 byte), and its content.

use std::time::Duration;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use spake2::{Ed25519Group, Identity as SpakeIdentity, Password, Spake2};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use zeroize::{Zeroize as _, Zeroizing};

use super::code::LinkCode;
use super::error::{PeerError, Refusal};
use super::mesh::{MESH_KEYS_MAX, MeshKey};
use crate::did::Did;
use crate::identity::Identity;
use crate::oplog::body::NICKNAME_BYTES_MAX;

/// The version of the exchange.
pub const LINK_VERSION: u8 = 1;
/// The longest frame, in bytes, with its kind.
pub const FRAME_BYTES_MAX: usize = 1_024;
/// How long a frame may take to come.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// The label of the TLS exporter.
pub(super) const EXPORTER_LABEL: &[u8] = b"EXPORTER-tiles-link-v1";

const SPAKE_BYTES: usize = 33;
const MAC_BYTES: usize = 32;

/// The kinds of frames.
pub mod kind {
    /// The joiner's version and part of the key exchange.
    pub const HELLO: u8 = 1;
    /// The listener's part of the key exchange.
    pub const ANSWER: u8 = 2;
    /// The proof of knowing the code.
    pub const CONFIRM: u8 = 3;
    /// Who one is.
    pub const CARD: u8 = 4;
    /// The keys of the mesh.
    pub const SHARE: u8 = 5;
    /// Why it ends.
    pub const REFUSED: u8 = 6;
}

/// What is bound to the connection that the exchange runs over.
#[derive(Clone)]
pub struct Channel {
    /// The TLS exporter; the same on both ends of one connection, and of no other.
    pub exporter: [u8; 32],
    /// The key of the endpoint that waits.
    pub listener: [u8; 32],
    /// The key of the endpoint that comes.
    pub joiner: [u8; 32],
}

/// Which side of the exchange one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Shows the code and waits.
    Listener,
    /// Has been told the code.
    Joiner,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Listener => Self::Joiner,
            Self::Joiner => Self::Listener,
        }
    }

    const fn name(self) -> &'static [u8] {
        match self {
            Self::Listener => b"listener",
            Self::Joiner => b"joiner",
        }
    }
}

/// Who the other side proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What its person calls it: untrusted text.
    pub nickname: String,
    /// Its identity, which signed this exchange.
    pub did: Did,
}

/// One side of an exchange, after both have confirmed the code.
pub struct Confirmed<S> {
    frames: Frames<S>,
    channel: Channel,
    side: Side,
    keys: Keys,
}

/// What both screens show: six digits that are the same for the two ends of one connection that know one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits(u32);

impl std::fmt::Display for Digits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:03} {:03}", self.0 / 1_000, self.0 % 1_000)
    }
}

/// The keys of one exchange.
struct Keys {
    joiner: Zeroizing<[u8; 32]>,
    listener: Zeroizing<[u8; 32]>,
    digits: Digits,
    /// The SHA-256 of all that was said before the confirmations.
    transcript: [u8; 32],
}

impl Keys {
    fn derive(pake: &[u8], channel: &Channel, hello: &[u8], answer: &[u8]) -> Self {
        let mut hash = Sha256::new();
        for part in [&b"tiles/v1/link"[..], &channel.listener, &channel.joiner, hello, answer] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hkdf = Hkdf::<Sha256>::new(Some(&channel.exporter), pake);
        let derived = |purpose: &[u8]| {
            let mut key = Zeroizing::new([0; 32]);
            let outcome = hkdf.expand_multi_info(&[b"tiles/v1/link/", purpose], &mut key[..]);
            outcome.expect("32 bytes are within what HKDF-SHA256 gives");
            key
        };
        let digits = derived(b"digits");
        let digits = digits.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) % 1_000_000;
        Self {
            joiner: derived(b"confirm-joiner"),
            listener: derived(b"confirm-listener"),
            digits: Digits(digits as u32),
            transcript: hash.finalize().into(),
        }
    }

    fn mac(&self, side: Side) -> Hmac<Sha256> {
        let key = match side {
            Side::Joiner => &self.joiner,
            Side::Listener => &self.listener,
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(&key[..]).expect("HMAC takes a key of any length");
        mac.update(&self.transcript);
        mac
    }
}

/// Begins as the side that has been told the code, and ends when both have confirmed it.
///
/// # Errors
/// [`PeerError::Refused`] where the listener doesn't take the confirmation, [`PeerError::Impostor`] where what answered
/// doesn't know the code, and what a hostile other side can do.
pub async fn join<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    channel: Channel,
    code: &LinkCode,
) -> Result<Confirmed<S>, PeerError> {
    let mut frames = Frames::new(stream);
    let (spake, message) = start(Side::Joiner, &channel, code);
    let hello = [&[LINK_VERSION][..], &message].concat();
    frames.send(kind::HELLO, &hello).await?;
    let answer = frames.receive(kind::ANSWER).await?;
    if answer.len() != SPAKE_BYTES {
        return Err(PeerError::Malformed { what: "its key exchange has another length" });
    }
    let pake = finish(spake, &answer)?;
    let keys = Keys::derive(&pake, &channel, &hello, &answer);
    frames.send(kind::CONFIRM, &keys.mac(Side::Joiner).finalize().into_bytes()).await?;
    let confirmation = frames.receive(kind::CONFIRM).await?;
    if keys.mac(Side::Listener).verify_slice(&confirmation).is_err() {
        return Err(PeerError::Impostor);
    }
    Ok(Confirmed { frames, channel, side: Side::Joiner, keys })
}

/// Begins as the side that waits, and ends when both have confirmed the code.
///
/// # Errors
/// [`PeerError::Impostor`] for a confirmation that was made without the code: the only outcome that counts as a guess.
pub async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    channel: Channel,
    code: &LinkCode,
) -> Result<Confirmed<S>, PeerError> {
    let mut frames = Frames::new(stream);
    let hello = frames.receive(kind::HELLO).await?;
    match hello[..] {
        [LINK_VERSION, ref message @ ..] if message.len() == SPAKE_BYTES => {
            let (spake, answer) = start(Side::Listener, &channel, code);
            let pake = finish(spake, message)?;
            frames.send(kind::ANSWER, &answer).await?;
            let keys = Keys::derive(&pake, &channel, &hello, &answer);
            let confirmation = frames.receive(kind::CONFIRM).await?;
            if confirmation.len() != MAC_BYTES {
                return Err(PeerError::Malformed { what: "its confirmation has another length" });
            }
            if keys.mac(Side::Joiner).verify_slice(&confirmation).is_err() {
                frames.refuse(Refusal::WrongCode).await;
                return Err(PeerError::Impostor);
            }
            frames.send(kind::CONFIRM, &keys.mac(Side::Listener).finalize().into_bytes()).await?;
            Ok(Confirmed { frames, channel, side: Side::Listener, keys })
        }
        [version, ..] if version > LINK_VERSION => Err(PeerError::Newer { version, ours: LINK_VERSION }),
        _ => Err(PeerError::Malformed { what: "its greeting has another length" }),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Confirmed<S> {
    /// The digits that both screens show.
    pub const fn digits(&self) -> Digits {
        self.keys.digits
    }

    /// Says who this drive is, and learns who the other is. Whose turn it is keeps a stream of one frame each way.
    ///
    /// # Errors
    /// [`PeerError::Forged`] where the other side doesn't hold the identity that it names, [`PeerError::SameIdentity`].
    pub async fn exchange_cards(&mut self, identity: &Identity, nickname: &str) -> Result<Card, PeerError> {
        let own = Card { nickname: shorten(nickname), did: identity.did() };
        let signature = identity.sign(&self.signed(self.side, &own));
        let content = [&own.did.public_key()[..], &signature, own.nickname.as_bytes()].concat();
        let other = match self.side {
            Side::Joiner => {
                self.frames.send(kind::CARD, &content).await?;
                self.frames.receive(kind::CARD).await?
            }
            Side::Listener => {
                let other = self.frames.receive(kind::CARD).await?;
                self.frames.send(kind::CARD, &content).await?;
                other
            }
        };
        let card = self.read_card(&other)?;
        if card.did == own.did {
            self.frames.refuse(Refusal::SameIdentity).await;
            return Err(PeerError::SameIdentity);
        }
        Ok(card)
    }

    /// As the listener, after its person said yes: gives the keys of the mesh, and gets the joiner's.
    ///
    /// # Errors
    /// What a hostile or vanished other side can do.
    pub async fn share(&mut self, keys: &[MeshKey]) -> Result<Vec<MeshKey>, PeerError> {
        self.send_keys(keys).await?;
        let theirs = self.frames.receive(kind::SHARE).await?;
        read_keys(&theirs)
    }

    /// As the joiner: waits at most `patience` for the listener's person, and gets the keys of the mesh.
    ///
    /// # Errors
    /// [`PeerError::Refused`], and what a hostile or vanished other side can do.
    pub async fn await_share(&mut self, patience: Duration) -> Result<Vec<MeshKey>, PeerError> {
        let theirs = self.frames.receive_within(kind::SHARE, patience).await?;
        read_keys(&theirs)
    }

    /// As the joiner, once the link is stored: gives the keys of the mesh that this drive has beside.
    ///
    /// # Errors
    /// What writing to the other side can meet.
    pub async fn send_keys(&mut self, keys: &[MeshKey]) -> Result<(), PeerError> {
        let mut content = Zeroizing::new(Vec::with_capacity(MESH_KEYS_MAX * 32));
        keys.iter().take(MESH_KEYS_MAX).for_each(|key| content.extend_from_slice(key.as_bytes()));
        self.frames.send(kind::SHARE, &content).await
    }

    /// Says no.
    pub async fn refuse(&mut self, refusal: Refusal) {
        self.frames.refuse(refusal).await;
    }

    /// Waits, at most as long as a frame may take, until the other side has closed the stream.
    pub async fn linger(mut self) {
        let mut byte = [0];
        // What it does in the end is of no consequence: all was said.
        let _ = self.frames.stream.shutdown().await;
        let _ = timeout(FRAME_TIMEOUT, self.frames.stream.read(&mut byte)).await;
    }

    fn read_card(&self, content: &[u8]) -> Result<Card, PeerError> {
        let (card, signature) = parse_card(content)?;
        let is_its_own = card.did.verifies(&self.signed(self.side.other(), &card), &signature);
        if is_its_own { Ok(card) } else { Err(PeerError::Forged) }
    }

    /// What the identity of `side` signs: this exchange on this connection, which side it is, and its card.
    fn signed(&self, side: Side, card: &Card) -> Vec<u8> {
        let mut text = b"tiles/v1/link-card".to_vec();
        for part in [
            side.name(),
            &self.channel.exporter,
            &self.keys.transcript,
            card.did.public_key(),
            card.nickname.as_bytes(),
        ] {
            text.extend_from_slice(&(part.len() as u16).to_be_bytes());
            text.extend_from_slice(part);
        }
        text
    }
}

fn start(side: Side, channel: &Channel, code: &LinkCode) -> (Spake2<Ed25519Group>, Vec<u8>) {
    let mut bytes = code.to_bytes();
    let password = Password::new(bytes);
    bytes.zeroize();
    let [joiner, listener] = [&channel.joiner, &channel.listener].map(|id| SpakeIdentity::new(id));
    match side {
        Side::Joiner => Spake2::<Ed25519Group>::start_a(&password, &joiner, &listener),
        Side::Listener => Spake2::<Ed25519Group>::start_b(&password, &joiner, &listener),
    }
}

fn finish(spake: Spake2<Ed25519Group>, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, PeerError> {
    let finished = spake.finish(message).map_err(|_| PeerError::Malformed { what: "its key exchange is no point" })?;
    Ok(Zeroizing::new(finished))
}

/// Reads the content of a card: the key, its signature and the nickname. That the signature is right isn't said by that.
///
/// # Errors
/// [`PeerError::Malformed`], and [`PeerError::Forged`] for a key that is none.
pub fn parse_card(content: &[u8]) -> Result<(Card, [u8; 64]), PeerError> {
    let malformed = |what| PeerError::Malformed { what };
    let (key, rest) = content.split_first_chunk::<32>().ok_or(malformed("its card is cut"))?;
    let (signature, nickname) = rest.split_first_chunk::<64>().ok_or(malformed("its card is cut"))?;
    if nickname.len() > NICKNAME_BYTES_MAX {
        return Err(malformed("its nickname is too long"));
    }
    let nickname = str::from_utf8(nickname).map_err(|_| malformed("its nickname isn't text"))?.to_owned();
    let did = Did::from_public_key(*key).map_err(|_| PeerError::Forged)?;
    Ok((Card { nickname, did }, *signature))
}

/// Reads the keys of a mesh as they are sent.
///
/// # Errors
/// [`PeerError::Malformed`] for half a key and for more than [`MESH_KEYS_MAX`].
pub fn read_keys(content: &[u8]) -> Result<Vec<MeshKey>, PeerError> {
    let (keys, rest) = content.as_chunks::<32>();
    if !rest.is_empty() || keys.len() > MESH_KEYS_MAX {
        return Err(PeerError::Malformed { what: "its keys have another length" });
    }
    Ok(keys.iter().map(|key| MeshKey::from_bytes(*key)).collect())
}

/// The beginning of `nickname` that fits, whole characters.
fn shorten(nickname: &str) -> String {
    nickname[..nickname.floor_char_boundary(NICKNAME_BYTES_MAX)].to_owned()
}

/// Reads one frame: what the two sides of a link, and the fuzzer, do with foreign bytes. Gives its kind and content.
///
/// # Errors
/// [`PeerError::Malformed`] for a length that can't be, [`PeerError::Lost`] where the bytes end.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Zeroizing<Vec<u8>>), PeerError> {
    let length = usize::from(stream.read_u16().await.map_err(lost)?);
    if length == 0 || length > FRAME_BYTES_MAX {
        return Err(PeerError::Malformed { what: "a frame is empty or too long" });
    }
    let mut frame = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut frame).await.map_err(lost)?;
    let kind = frame.remove(0);
    Ok((kind, frame))
}

fn lost(error: std::io::Error) -> PeerError {
    PeerError::Lost { why: error.to_string() }
}

/// The frames of one exchange.
struct Frames<S> {
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    const fn new(stream: S) -> Self {
        Self { stream }
    }

    async fn send(&mut self, kind: u8, content: &[u8]) -> Result<(), PeerError> {
        let mut frame = Zeroizing::new(Vec::with_capacity(3 + content.len()));
        frame.extend_from_slice(&(content.len() as u16 + 1).to_be_bytes());
        frame.push(kind);
        frame.extend_from_slice(content);
        let written = timeout(FRAME_TIMEOUT, async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        });
        written.await.map_err(|_| PeerError::Silent)?.map_err(lost)
    }

    async fn receive(&mut self, kind: u8) -> Result<Zeroizing<Vec<u8>>, PeerError> {
        self.receive_within(kind, FRAME_TIMEOUT).await
    }

    async fn receive_within(&mut self, kind: u8, patience: Duration) -> Result<Zeroizing<Vec<u8>>, PeerError> {
        let read = timeout(patience, read_frame(&mut self.stream));
        let (received, content) = read.await.map_err(|_| PeerError::Silent)??;
        match (received, &content[..]) {
            (received, _) if received == kind => Ok(content),
            (kind::REFUSED, [number]) => Err(match Refusal::from_number(*number) {
                Some(Refusal::SameIdentity) => PeerError::SameIdentity,
                Some(refusal) => PeerError::Refused(refusal),
                None => PeerError::Malformed { what: "a refusal that nobody knows" },
            }),
            _ => Err(PeerError::Malformed { what: "a frame that isn't its turn" }),
        }
    }

    /// Says no, and waits until it has been heard. Where it can't be said the other side sees the end of the connection.
    async fn refuse(&mut self, refusal: Refusal) {
        if self.send(kind::REFUSED, &[refusal.number()]).await.is_ok() {
            let _ = self.stream.shutdown().await;
            let mut rest = [0; 64];
            let drained = async { while matches!(self.stream.read(&mut rest).await, Ok(1..)) {} };
            // It may be silent, or never stop; neither holds anything up for longer than a frame.
            let _ = timeout(FRAME_TIMEOUT, drained).await;
        }
    }
}

#[cfg(test)]
mod tests;
