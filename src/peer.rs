//! Other drives of the same person: the endpoint, finding each other on a local network, and linking by code.
//!
//! Nothing here is touched unless the person runs `tiles link` or `tiles sync`. With `sync` it is the only async part of the
//! library; [`block_on`] is the way in from what isn't.

mod code;
mod endpoint;
mod error;
mod lan;
pub mod link;
pub mod mesh;
mod pairing;
mod ticket;

pub use code::{CODE_SYMBOLS, CODE_TEXT_BYTES_MAX, LinkCode, NAMEPLATE_SYMBOLS};
pub use endpoint::{CONNECT_TIMEOUT, Endpoint, FORBIDDEN, Gate, LINK_ALPN, Network};
pub use error::{PeerError, Refusal};
pub use pairing::{Approver, CODE_LIFETIME, FAILURES_MAX, HANDSHAKES_MAX, Keep, Myself, Target, join, listen};
pub use ticket::{RELAY_BYTES_MAX, TICKET_ADDRESSES_MAX, TICKET_TEXT_BYTES_MAX, Ticket};

/// The threads that serve the network: one reads while the other computes.
const THREADS: usize = 2;

/// Runs `future` to its end. What it left running is dropped, and not waited for.
///
/// # Errors
/// [`PeerError::Network`] where the system gives no threads or timers, and what the future meets.
pub fn block_on<T>(future: impl Future<Output = Result<T, PeerError>>) -> Result<T, PeerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let runtime = runtime.map_err(|error| PeerError::Network { why: error.to_string() })?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_background();
    outcome
}
