//! Syncing with linked drives: finding those that are there, and exchanging operations with each until all have the same. And
//! handing models from one to another.
//!
//! Nothing here is touched unless the person runs `tiles sync`, `tiles model send`, `tiles model receive` or
//! `tiles model list --peers`. [`sync_drives`] is the way in from what isn't async: the thread that calls it keeps the store,
//! and serves the exchanges.

mod chunk;
mod error;
mod exchange;
mod frame;
mod handover;
mod hint;
mod models;
mod report;
mod run;
mod store_handle;

pub use chunk::{CHUNK_BYTES_MAX, CHUNK_CONTENT_BYTES_MAX, read as read_chunk};
pub use error::SyncError;
pub use exchange::{ROUND_BYTES, ROUNDS_MAX};
pub use frame::{FRAME_TIMEOUT, Frame, SYNC_VERSION, Wants};
pub use handover::{Handover, give_model, model_offers, take_model};
pub use hint::Hint;
pub use models::{ModelOffer, Offered, read_offer, store_folder};
pub use report::{Amount, Progress, Report};
pub use run::{Outcome, Plan, SYNC_ALPN, sync_drives};

use crate::did::Did;

/// Who is told how a sync goes. It is called from other threads, often, and must not block.
pub trait Watcher: Send + Sync + 'static {
    /// It is waiting at a port of this machine for drives, so many of which weren't met yet.
    fn waiting(&self, port: Option<u16>, drives: usize);

    /// An exchange with `peer` begins.
    fn met(&self, peer: Did);

    /// How far an exchange is.
    fn progress(&self, progress: &Progress);

    /// An exchange is over, or was cut; the report says what was exchanged either way.
    fn ended(&self, peer: Did, report: &Report, error: Option<&SyncError>);

    /// So many messages that came aren't searchable yet; that is being done after the last exchange.
    fn indexing(&self, waiting: u64);

    /// Whether the person wants to stop.
    fn is_interrupted(&self) -> bool;
}
