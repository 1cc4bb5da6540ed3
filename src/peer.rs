//! Other drives of the same person: the endpoint, finding each other on a local network, and linking by code.
//!
//! Nothing here is touched unless the person runs `tiles link` or `tiles sync`. With [`crate::sync`] it is the only async
//! part of the library; [`link_drive`] is the way in from what isn't.

use std::sync::Arc;

use crate::time::Clock;

mod code;
mod endpoint;
mod error;
pub(crate) mod lan;
mod linked;
pub mod link;
pub mod mesh;
mod pairing;
mod relay;
mod ticket;

pub use code::{CODE_SYMBOLS, CODE_TEXT_BYTES_MAX, LinkCode, NAMEPLATE_SYMBOLS};
pub use endpoint::{CONNECT_TIMEOUT, Endpoint, FORBIDDEN, Gate, LINK_ALPN, Network};
pub use error::{PeerError, Refusal};
pub use linked::{LINKED_MAX, LinkedDrive, LinkedDrives, keep, keep_mesh_keys, mesh_keys, rename, unlink};
pub use pairing::{Approver, CODE_LIFETIME, FAILURES_MAX, HANDSHAKES_MAX, Keep, Myself, Target, join, listen};
pub use relay::Relay;
pub use ticket::{RELAY_BYTES_MAX, TICKET_ADDRESSES_MAX, TICKET_TEXT_BYTES_MAX, Ticket};

/// The threads that serve the network: one reads while the other computes.
const THREADS: usize = 2;

/// Links this drive over an endpoint made for that: comes to the `target`, or shows a code and waits where there is none.
///
/// # Errors
/// As [`join`] and [`listen`].
pub fn link_drive(
    target: Option<&Target>,
    network: Network,
    myself: &Myself<'_>,
    approver: &Arc<impl Approver>,
    clock: &dyn Clock,
    keep: Keep<'_>,
) -> Result<link::Card, PeerError> {
    block_on(async {
        let endpoint = Endpoint::ephemeral(network).await?;
        let linked = match target {
            Some(target) => join(&endpoint, target, myself, &**approver, clock, keep).await,
            None => listen(&endpoint, myself, approver, clock, CODE_LIFETIME, keep).await,
        };
        endpoint.close().await;
        linked
    })
}

/// Runs `future` to its end. What it left running is dropped, and not waited for.
fn block_on<T>(future: impl Future<Output = Result<T, PeerError>>) -> Result<T, PeerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let runtime = runtime.map_err(|error| PeerError::Network { why: error.to_string() })?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_background();
    outcome
}
