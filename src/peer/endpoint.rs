//! The endpoint: QUIC between public keys, with one gate in front of every protocol, and nothing of its own on the network.
//!
//! No relay, no DNS, no publishing and no port mapping unless the person set a relay of their own: an endpoint that nobody
//! uses sends no packet.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iroh::dns::DnsResolver;
use iroh::endpoint::{
    AfterHandshakeOutcome, BeforeConnectOutcome, ConnectError, ConnectingError, Connection, ConnectionError,
    EndpointHooks, QuicTransportConfig, TransportErrorCode, VarInt, WeakConnectionHandle, presets,
};
use iroh::{EndpointAddr, EndpointId, RelayConfig, RelayMap, RelayMode, SecretKey, TransportAddr};
use tokio::time::timeout;

use super::error::{PeerError, Refusal};
use super::lan;
use super::relay::Relay;
use crate::did::Did;
use crate::identity::Identity;

/// The protocol of linking: the only one that is open to strangers.
pub const LINK_ALPN: &[u8] = b"tiles/link/1";
/// How long connecting may take. The library's own limit is 30 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long closing may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a silent connection lives, and how often it is kept alive.
const IDLE_TIMEOUT_MS: u32 = 20_000;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The most streams that the other side may open at once.
const STREAMS_MAX: u32 = 16;
/// The most connections of linked drives that are remembered for being cut.
const CONNECTIONS_MAX: usize = 256;

/// What a connection is closed with that may not be: as HTTP's status.
pub const FORBIDDEN: u32 = 403;

/// Which identities may use more than the protocol of linking. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<Linked>>);

#[derive(Debug, Default)]
struct Linked {
    /// Each linked identity with its open connections.
    peers: HashMap<[u8; 32], Vec<WeakConnectionHandle>>,
}

impl Gate {
    /// A gate that only `peers` pass.
    pub fn of(peers: impl IntoIterator<Item = Did>) -> Self {
        let gate = Self::default();
        peers.into_iter().for_each(|did| gate.open_for(&did));
        gate
    }

    /// Lets `did` pass from now on.
    pub fn open_for(&self, did: &Did) {
        self.linked().peers.entry(*did.public_key()).or_default();
    }

    /// Lets `did` pass no more, and ends its connections at once.
    pub fn close_for(&self, did: &Did) {
        let connections = self.linked().peers.remove(did.public_key()).unwrap_or_default();
        for connection in connections.iter().filter_map(WeakConnectionHandle::upgrade) {
            connection.close(VarInt::from_u32(FORBIDDEN), b"not linked");
        }
    }

    /// Lets `dids` pass from now on, and nobody else.
    pub fn set(&self, dids: &[Did]) {
        let closed: Vec<[u8; 32]> = {
            let linked = self.linked();
            let stays = |key: &&[u8; 32]| dids.iter().any(|did| did.public_key() == *key);
            linked.peers.keys().filter(|key| !stays(key)).copied().collect()
        };
        closed.iter().filter_map(|key| Did::from_public_key(*key).ok()).for_each(|did| self.close_for(&did));
        dids.iter().for_each(|did| self.open_for(did));
    }

    /// Whether `did` may pass.
    pub fn is_open_for(&self, did: &Did) -> bool {
        self.linked().peers.contains_key(did.public_key())
    }

    /// Whether a connection to `id` may speak `alpn`.
    fn passes(&self, id: &EndpointId, alpn: &[u8]) -> bool {
        alpn == LINK_ALPN || self.linked().peers.contains_key(id.as_bytes())
    }

    fn linked(&self) -> std::sync::MutexGuard<'_, Linked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EndpointHooks for Gate {
    async fn before_connect<'a>(&'a self, remote: &'a EndpointAddr, alpn: &'a [u8]) -> BeforeConnectOutcome {
        if self.passes(&remote.id, alpn) { BeforeConnectOutcome::Accept } else { BeforeConnectOutcome::Reject }
    }

    async fn after_handshake<'a>(&'a self, connection: &'a Connection) -> AfterHandshakeOutcome {
        if connection.alpn() == LINK_ALPN {
            return AfterHandshakeOutcome::Accept;
        }
        // Asked and noted under one lock: who is unlinked in between would be noted nowhere, and stay.
        let mut linked = self.linked();
        match linked.peers.get_mut(connection.remote_id().as_bytes()) {
            Some(connections) => {
                connections.retain(|known| known.upgrade().is_some_and(|known| known.close_reason().is_none()));
                connections.truncate(CONNECTIONS_MAX - 1);
                connections.push(connection.weak_handle());
                AfterHandshakeOutcome::Accept
            }
            None => {
                AfterHandshakeOutcome::Reject { error_code: VarInt::from_u32(FORBIDDEN), reason: b"not linked".into() }
            }
        }
    }
}

/// Whether the other side took no connection at that moment.
fn is_refusal(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED)
}

/// What an endpoint may use of the network.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// The person's own relay, for drives that don't share a network.
    pub relay: Option<Relay>,
    /// Only this machine: for tests, which must not depend on its network.
    pub loopback_only: bool,
}

/// An endpoint of this drive.
pub struct Endpoint {
    pub(crate) iroh: iroh::Endpoint,
    network: Network,
    gate: Gate,
}

impl Endpoint {
    /// Opens one under a key of its own, for linking: what a stranger sees of it says nothing about who this is.
    ///
    /// # Errors
    /// [`PeerError::Network`].
    pub async fn ephemeral(network: Network) -> Result<Self, PeerError> {
        Self::bind(SecretKey::generate(), vec![LINK_ALPN.to_vec()], network, Gate::default()).await
    }

    /// Opens one under the identity's key, for linked drives, which speak `protocols`.
    ///
    /// # Errors
    /// [`PeerError::Network`].
    pub async fn of(identity: &Identity, protocols: &[&[u8]], network: Network, gate: Gate) -> Result<Self, PeerError> {
        let secret = SecretKey::from_bytes(&identity.endpoint_secret());
        Self::bind(secret, protocols.iter().map(|alpn| alpn.to_vec()).collect(), network, gate).await
    }

    async fn bind(secret: SecretKey, alpns: Vec<Vec<u8>>, network: Network, gate: Gate) -> Result<Self, PeerError> {
        let failed = |error: &dyn std::fmt::Display| PeerError::Network { why: error.to_string() };
        let (relay, dns) = match &network.relay {
            Some(relay) => {
                let dns = DnsResolver::builder().with_system_defaults().disable_fallback().build();
                (RelayMode::Custom(RelayMap::from_iter([RelayConfig::new(relay.url(), None)])), dns)
            }
            None => (RelayMode::Disabled, DnsResolver::builder().disable_fallback().build()),
        };
        let transport = QuicTransportConfig::builder()
            .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
            .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
            .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
            .keep_alive_interval(KEEP_ALIVE)
            .build();
        let mut builder = iroh::Endpoint::builder(presets::Minimal)
            .secret_key(secret)
            .alpns(alpns)
            .relay_mode(relay)
            .dns_resolver(dns)
            .transport_config(transport)
            .hooks(gate.clone());
        if let Some(relay) = &network.relay {
            builder = builder.ca_tls_config(relay.tls());
        }
        if network.loopback_only {
            builder = builder.clear_ip_transports().bind_addr("127.0.0.1:0").map_err(|error| failed(&error))?;
        }
        let iroh = builder.bind().await.map_err(|error| failed(&error))?;
        Ok(Self { iroh, network, gate })
    }

    /// The gate in front of its protocols.
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) const fn is_loopback_only(&self) -> bool {
        self.network.loopback_only
    }

    /// Its key.
    pub fn id(&self) -> [u8; 32] {
        *self.iroh.id().as_bytes()
    }

    /// Where it may be reached: each address of this machine that another one can use, and the relay.
    pub(crate) fn address(&self) -> EndpointAddr {
        let ips = self.socket_addresses().into_iter().map(TransportAddr::Ip);
        let relay = self.network.relay.as_ref().map(Relay::address);
        EndpointAddr::from_parts(self.iroh.id(), ips.chain(relay))
    }

    /// The port of its IPv4 socket.
    pub(crate) fn port(&self) -> Option<u16> {
        self.iroh.bound_sockets().iter().find(|socket| socket.is_ipv4()).map(SocketAddr::port)
    }

    fn socket_addresses(&self) -> Vec<SocketAddr> {
        let sockets = self.iroh.bound_sockets();
        let port = |ip: &IpAddr| sockets.iter().find(|socket| socket.is_ipv4() == ip.is_ipv4()).map(SocketAddr::port);
        if self.network.loopback_only {
            return sockets;
        }
        lan::addresses().into_iter().filter_map(|ip| Some(SocketAddr::new(ip, port(&ip)?))).collect()
    }

    /// Connects within [`CONNECT_TIMEOUT`].
    pub(crate) async fn connect(&self, address: EndpointAddr, alpn: &[u8]) -> Result<Connection, PeerError> {
        let connecting = timeout(CONNECT_TIMEOUT, self.iroh.connect(address, alpn));
        let no_answer = |_| PeerError::NoAnswer { what: "the other drive".into(), seconds: CONNECT_TIMEOUT.as_secs() };
        connecting.await.map_err(no_answer)?.map_err(|error| match &error {
            ConnectError::Connection { source, .. }
            | ConnectError::Connecting { source: ConnectingError::ConnectionError { source, .. }, .. }
                if is_refusal(source) =>
            {
                PeerError::Refused(Refusal::Busy)
            }
            _ => PeerError::Lost { why: error.to_string() },
        })
    }

    /// Says goodbye to all that are connected, and gives the sockets back.
    pub async fn close(self) {
        // Who doesn't hear the goodbye sees the silence.
        let _ = timeout(CLOSE_TIMEOUT, self.iroh.close()).await;
    }
}

#[cfg(test)]
mod tests;
