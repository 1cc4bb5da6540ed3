//! Weights from one linked drive to another: one offers a model, the other takes it.
//!
//! Bytes travel by iroh-blobs: each piece is checked against its BLAKE3 tree as it comes, and what came is kept, so a transfer
//! goes on after a cut. That isn't what vouches for the model: its SHA-256 digests come with the offer, over the connection of
//! a linked drive, and the library compares them with what it reads back from the medium before the model counts.
//!
//! The store of iroh-blobs lies in the folder of the unfinished model, and goes with it. Weights are no secret; sessions and
//! memory never come near it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use iroh::endpoint::{Connection, VarInt};
use iroh::protocol::ProtocolHandler as _;
use iroh_blobs::api::blobs::{AddPathOptions, AddProgressItem, ExportMode, ExportOptions, ImportMode};
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::{BlobFormat, BlobsProtocol, Hash};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::error::SyncError;
use crate::did::Did;
use crate::digest::Sha256Digest;
use crate::library::HandedModel;
use crate::library::description::FILES_MAX;

/// The protocol of offering.
pub(super) const MODEL_ALPN: &[u8] = b"tiles/model/1";
/// The protocol that the weights travel by.
pub(super) const BLOBS_ALPN: &[u8] = iroh_blobs::ALPN;
/// The longest offer, in bytes.
const OFFER_BYTES_MAX: usize = 512 << 10;
/// The longest text in an offer, in bytes.
const TEXT_BYTES_MAX: usize = 512;
/// The version of what is said.
const VERSION: u8 = 1;
/// How long the other side may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the other side may take to read back what it got, and to make it a model.
const ADOPT_PATIENCE: Duration = Duration::from_secs(60 * 60);
/// The folder of iroh-blobs' store in that of an unfinished model.
const STORE_NAME: &str = "blobs";
/// What is said when a model was taken, and when it wasn't.
const TAKEN: u8 = 1;
const NOT_TAKEN: u8 = 0;

/// A model that is offered, with what its files are called on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOffer {
    /// The model.
    pub model: HandedModel,
    /// The BLAKE3 digest of each of its files, in their order.
    pub blake3: Vec<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    version: u8,
    name: &'a str,
    source: &'a str,
    revision: Option<&'a str>,
    licence: Option<&'a str>,
    #[serde(borrow)]
    files: Vec<WireFile<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WireFile<'a> {
    path: &'a str,
    size: u64,
    sha256: [u8; 32],
    blake3: [u8; 32],
}

impl ModelOffer {
    /// Prints it in the form that [`ModelOffer::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let HandedModel { name, source, revision, licence, files } = &self.model;
        let files = files.iter().zip(&self.blake3).map(|((path, size, sha256), blake3)| WireFile {
            path,
            size: *size,
            sha256: sha256.0,
            blake3: *blake3,
        });
        let (revision, licence) = (revision.as_deref(), licence.as_deref());
        let wire = Wire { version: VERSION, name, source, revision, licence, files: files.collect() };
        postcard::to_allocvec(&wire).expect("memory takes what has a form")
    }

    /// Reads an offer; the bytes may come from anyone. Whether its files make a model is for the library to say.
    ///
    /// # Errors
    /// [`SyncError::Malformed`] and [`SyncError::Newer`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SyncError> {
        let malformed = || SyncError::Malformed { what: "an offer of a model isn't in the form that Tiles writes" };
        if let Some(&version) = bytes.first().filter(|version| **version != VERSION) {
            return Err(SyncError::Newer { version, ours: VERSION });
        }
        let (Wire { name, source, revision, licence, files, .. }, []) =
            postcard::take_from_bytes(bytes).map_err(|_| malformed())?
        else {
            return Err(malformed());
        };
        let texts = [Some(name), Some(source), revision, licence].into_iter().flatten();
        let too_long = |text: &str| text.len() > TEXT_BYTES_MAX;
        if texts.chain(files.iter().map(|file| file.path)).any(too_long) || files.len() > FILES_MAX {
            return Err(malformed());
        }
        let blake3 = files.iter().map(|file| file.blake3).collect();
        let file = |file: WireFile<'_>| (file.path.to_owned(), file.size, Sha256Digest(file.sha256));
        let model = HandedModel {
            name: name.into(),
            source: source.into(),
            revision: revision.map(Into::into),
            licence: licence.map(Into::into),
            files: files.into_iter().map(file).collect(),
        };
        Ok(Self { model, blake3 })
    }
}

fn failed(error: &dyn std::fmt::Display) -> SyncError {
    SyncError::Lost(error.to_string())
}

/// Where iroh-blobs keeps what it has of an unfinished model.
pub fn store_folder(model_folder: &Path) -> PathBuf {
    model_folder.join(STORE_NAME)
}

/// A model that is ready to be given.
pub(super) struct Given {
    offer: ModelOffer,
    store: FsStore,
    protocol: BlobsProtocol,
}

impl Given {
    /// Computes the BLAKE3 trees of the files in `folder`, which stay where they are. `store` is a folder for those trees.
    pub(super) async fn prepare(
        model: HandedModel,
        folder: &Path,
        store: &Path,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<Self, SyncError> {
        let store = FsStore::load(store).await.map_err(|error| failed(&error))?;
        let mut blake3 = Vec::new();
        let mut before = 0;
        for (path, size, _) in &model.files {
            let options =
                AddPathOptions { path: folder.join(path), format: BlobFormat::Raw, mode: ImportMode::TryReference };
            let mut adding = std::pin::pin!(store.blobs().add_path_with_opts(options).stream().await);
            let mut hash = None;
            while let Some(item) = futures_util::StreamExt::next(&mut adding).await {
                match item {
                    AddProgressItem::OutboardProgress(bytes) => on_bytes(before + bytes),
                    AddProgressItem::Done(tag) => hash = Some(tag),
                    AddProgressItem::Error(error) => return Err(failed(&error)),
                    _ => {}
                }
            }
            let tag = hash.ok_or_else(|| SyncError::Lost("the model's files can't be read".into()))?;
            blake3.push(*tag.hash().as_bytes());
            // Nothing is collected while this runs, so the tag needn't be kept.
            before += size;
            on_bytes(before);
        }
        let protocol = BlobsProtocol::new(&store, None);
        Ok(Self { offer: ModelOffer { model, blake3 }, store, protocol })
    }

    /// Gives weights over a connection of [`BLOBS_ALPN`].
    pub(super) async fn serve(&self, connection: Connection) {
        let _ = self.protocol.accept(connection).await;
    }

    /// Offers the model over a connection of [`MODEL_ALPN`], and says whether it was taken.
    pub(super) async fn offer(&self, connection: &Connection) -> Result<bool, SyncError> {
        let streams = timeout(PATIENCE, connection.accept_bi()).await.map_err(|_| SyncError::Silent)?;
        let (mut send, mut receive) = streams.map_err(|error| failed(&error))?;
        let mut version = [0];
        timeout(PATIENCE, receive.read_exact(&mut version))
            .await
            .map_err(|_| SyncError::Silent)?
            .map_err(|e| failed(&e))?;
        let offer = self.offer.to_bytes();
        let length = u32::try_from(offer.len()).expect("an offer is short");
        send.write_all(&length.to_be_bytes()).await.map_err(|error| failed(&error))?;
        send.write_all(&offer).await.map_err(|error| failed(&error))?;
        let mut answer = [NOT_TAKEN];
        let answered = timeout(ADOPT_PATIENCE, receive.read_exact(&mut answer)).await.map_err(|_| SyncError::Silent)?;
        answered.map_err(|error| failed(&error))?;
        connection.close(VarInt::from_u32(0), b"");
        Ok(answer == [TAKEN])
    }

    /// Closes its store.
    pub(super) async fn close(self) {
        let _ = self.store.shutdown().await;
    }
}

/// Reads an offer from a stream.
///
/// # Errors
/// As [`ModelOffer::from_bytes`], [`SyncError::Silent`] and [`SyncError::Lost`].
pub async fn read_offer(stream: &mut (impl AsyncRead + Unpin)) -> Result<ModelOffer, SyncError> {
    let read = async {
        let length = stream.read_u32().await? as usize;
        if length > OFFER_BYTES_MAX {
            return Err(SyncError::Malformed { what: "an offer of a model is longer than any that Tiles writes" });
        }
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await?;
        ModelOffer::from_bytes(&bytes)
    };
    timeout(PATIENCE, read).await.map_err(|_| SyncError::Silent)?
}

/// An offer of a linked drive, which waits for an answer.
pub struct Offered {
    /// Who offers it.
    pub peer: Did,
    /// What.
    pub offer: ModelOffer,
    pub(super) answers: iroh::endpoint::SendStream,
    pub(super) connection: Connection,
}

impl Offered {
    /// Asks over a connection of [`MODEL_ALPN`] what is offered.
    pub(super) async fn ask(peer: Did, connection: Connection) -> Result<Self, SyncError> {
        let opened = timeout(PATIENCE, connection.open_bi()).await.map_err(|_| SyncError::Silent)?;
        let (mut answers, mut receive) = opened.map_err(|error| failed(&error))?;
        answers.write_all(&[VERSION]).await.map_err(|error| failed(&error))?;
        let offer = read_offer(&mut receive).await?;
        Ok(Self { peer, offer, answers, connection })
    }

    /// Says whether it was taken.
    pub(super) async fn answer(mut self, is_taken: bool) {
        let answer = async {
            self.answers.write_all(&[if is_taken { TAKEN } else { NOT_TAKEN }]).await.ok()?;
            self.answers.finish().ok()?;
            // The other side closes once it has heard.
            let _ = self.connection.closed().await;
            Some(())
        };
        let _ = timeout(Duration::from_secs(3), answer).await;
    }
}

/// Fetches what is missing of the files `wanted`, by path, over a connection of [`BLOBS_ALPN`], into `folder`.
pub(super) async fn fetch(
    connection: Connection,
    offer: &ModelOffer,
    wanted: &[String],
    folder: &Path,
    progress: mpsc::Sender<u64>,
) -> Result<(), SyncError> {
    let root = store_folder(folder);
    let store = match FsStore::load(&root).await {
        Ok(store) => store,
        // A cut may have left what can't be read. Then everything comes again.
        Err(_) => {
            crate::disk::remove_folder(&root).map_err(|error| failed(&error))?;
            FsStore::load(&root).await.map_err(|error| failed(&error))?
        }
    };
    let mut before = 0;
    for ((path, size, _), blake3) in offer.model.files.iter().zip(&offer.blake3) {
        if !wanted.contains(path) {
            continue;
        }
        let (hash, target) = (Hash::from_bytes(*blake3), folder.join(path));
        if crate::disk::size_unopened(&target).map_err(|error| failed(&error))? == Some(*size) {
            before += size;
            continue;
        }
        let local = store.remote().local(hash).await.map_err(|error| failed(&error))?.local_bytes();
        let mut getting = std::pin::pin!(store.remote().fetch(connection.clone(), hash).stream());
        while let Some(item) = futures_util::StreamExt::next(&mut getting).await {
            match item {
                GetProgressItem::Progress(bytes) => {
                    // More than was offered: the digest would be wrong at the end, after the drive was filled.
                    if local + bytes > *size {
                        return Err(SyncError::Malformed { what: "a file of a model is longer than it was offered" });
                    }
                    // Who doesn't look misses a number, and sees the next.
                    let _ = progress.try_send(before + local + bytes);
                }
                GetProgressItem::Done(_) => {}
                GetProgressItem::Error(error) => return Err(failed(&error)),
            }
        }
        let options = ExportOptions { hash, mode: ExportMode::TryReference, target };
        store.blobs().export_with_opts(options).finish().await.map_err(|error| failed(&error))?;
        before += size;
        let _ = progress.try_send(before);
    }
    store.shutdown().await.map_err(|error| failed(&error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer() -> ModelOffer {
        let model = HandedModel {
            name: "small".into(),
            source: "org/small".into(),
            revision: None,
            licence: Some("MIT".into()),
            files: vec![
                ("config.json".into(), 5, Sha256Digest([1; 32])),
                ("model.safetensors".into(), 9, Sha256Digest([2; 32])),
            ],
        };
        ModelOffer { model, blake3: vec![[3; 32], [4; 32]] }
    }

    #[tokio::test]
    async fn offers_are_read_as_they_were_written_and_no_cut_of_them_is() {
        let bytes = offer().to_bytes();
        assert_eq!(ModelOffer::from_bytes(&bytes).expect("it was written by us"), offer());
        for end in 0..bytes.len() {
            assert!(ModelOffer::from_bytes(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert!(ModelOffer::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        assert!(matches!(ModelOffer::from_bytes(&[2, 0, 0]), Err(SyncError::Newer { version: 2, .. })));
        let mut long = offer();
        long.model.name = "x".repeat(TEXT_BYTES_MAX + 1);
        assert!(ModelOffer::from_bytes(&long.to_bytes()).is_err());
        let framed = [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
        assert_eq!(read_offer(&mut &framed[..]).await.expect("it is one"), offer());
        let refused = read_offer(&mut &[255_u8; 8][..]).await;
        assert!(matches!(refused, Err(SyncError::Malformed { .. })), "memory isn't reserved for it");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = ModelOffer::from_bytes(&bytes);
        }
    }
}
