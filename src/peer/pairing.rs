//! Pairing: one drive shows a code and waits, the other comes with it; a person at the first says yes.
//!
//! The listener's code is for one link. Three wrong confirmations end it and a new one is drawn, whereas junk and silence
//! don't count: else anybody on the network could burn codes. At most four who haven't confirmed are talked with at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use iroh::EndpointAddr;
use iroh::endpoint::{Connection, Incoming, RecvStream, SendStream};
use tokio::io::Join;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::code::LinkCode;
use super::endpoint::{Endpoint, LINK_ALPN};
use super::error::{PeerError, Refusal};
use super::lan::{self, Lan};
use super::link::{self, Card, Channel, Confirmed, Digits, FRAME_TIMEOUT};
use super::mesh::{self, MeshKey};
use super::ticket::Ticket;
use crate::identity::Identity;
use crate::time::Clock;

/// How long a code is valid.
pub const CODE_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How many wrong confirmations end a code.
pub const FAILURES_MAX: u32 = 3;
/// How many are talked with at once before they have confirmed.
pub const HANDSHAKES_MAX: usize = 4;
/// How long all of a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one looks for a drive that waits.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one goes on looking after somebody said that the code is wrong: it may be somebody else under that nameplate.
const GRACE: Duration = Duration::from_secs(3);
/// The most that one tries under one nameplate.
const CANDIDATES_MAX: usize = 64;
/// How long one waits before somebody who is busy is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// How often it is asked whether the person wants to stop.
const INTERRUPT_TICK: Duration = Duration::from_millis(100);

/// The person at this drive.
pub trait Approver: Send + Sync + 'static {
    /// Shows the code, and the ticket for other networks; called again when a new one replaces it.
    fn show_offer(&self, ticket: &Ticket, is_new: bool);

    /// Shows who comes, and asks. Blocks until there is an answer.
    ///
    /// # Errors
    /// [`PeerError::Interrupted`] and others where there is none.
    fn approve(&self, card: &Card, digits: Digits) -> Result<bool, PeerError>;

    /// Shows whom one came to, while its person is asked.
    fn show_digits(&self, card: &Card, digits: Digits);

    /// Whether the person wants to stop.
    fn is_interrupted(&self) -> bool;
}

/// This drive, as it shows itself.
pub struct Myself<'a> {
    /// Whose link it is.
    pub identity: &'a Identity,
    /// What the person is called.
    pub nickname: &'a str,
    /// The keys of the meshes that it belongs to.
    pub mesh_keys: Vec<MeshKey>,
}

/// Stores a link, with the mesh keys that this drive has from then on.
pub type Keep<'a> = &'a mut dyn FnMut(&Card, &[MeshKey]) -> Result<(), PeerError>;

/// Where to go to be linked.
#[derive(Clone, Debug)]
pub enum Target {
    /// Whoever waits under the code's nameplate on this network.
    Code(LinkCode),
    /// Whom the ticket names.
    Ticket(Ticket),
}

type Stream = Join<RecvStream, SendStream>;

/// An exchange whose code was confirmed, and the connection that it runs over.
struct Exchange {
    confirmed: Confirmed<Stream>,
    connection: Connection,
}

/// A code while it waits.
struct Window {
    code: LinkCode,
    /// Which code it is, counted from 0.
    generation: u32,
    failures: u32,
}

impl Window {
    fn open(generation: u32) -> Result<Self, PeerError> {
        Ok(Self { code: LinkCode::draw()?, generation, failures: 0 })
    }

    /// Counts a handshake that failed under the code `generation`, and says whether a new code is due.
    fn count(&mut self, generation: u32, error: &PeerError) -> bool {
        if generation == self.generation && matches!(error, PeerError::Impostor) {
            self.failures += 1;
        }
        self.failures >= FAILURES_MAX
    }
}

/// Shows a code and waits until a drive is linked, at most for `lifetime`.
///
/// # Errors
/// [`PeerError::NobodyCame`], [`PeerError::Declined`], [`PeerError::Interrupted`], and others.
pub async fn listen(
    endpoint: &Endpoint,
    myself: &Myself<'_>,
    approver: &Arc<impl Approver>,
    clock: &dyn Clock,
    lifetime: Duration,
    keep: Keep<'_>,
) -> Result<Card, PeerError> {
    let deadline = Instant::now() + lifetime;
    let expires_at = crate::time::Timestamp::from_ms(clock.now().as_ms() + lifetime.as_millis() as i64);
    let mut generation = 0;
    loop {
        let mut window = Window::open(generation)?;
        let announced = link_announcement(endpoint, &window.code);
        // Without announcements the ticket still works, which is told where the code alone would have been enough.
        let _lan = announced?;
        approver.show_offer(&Ticket::new(&endpoint.address(), window.code.clone(), expires_at), generation > 0);
        if let Some(exchange) = await_confirmed(endpoint, &mut window, deadline, &**approver).await? {
            match finish_listening(exchange, myself, approver, deadline, keep).await {
                // The code was used, so there is a new one for the next.
                Err(PeerError::Lost { .. } | PeerError::Silent | PeerError::Malformed { .. } | PeerError::Forged) => {}
                ended => return ended,
            }
        }
        generation += 1;
    }
}

fn link_announcement(endpoint: &Endpoint, code: &LinkCode) -> Result<Option<Lan>, PeerError> {
    match endpoint.port() {
        Some(port) if !endpoint.is_loopback_only() => {
            Lan::start(&[lan::link_label(&code.nameplate(), &endpoint.iroh.id())], port)
        }
        _ => Ok(None),
    }
}

/// Talks with who comes until one has confirmed the code; `None` where the code is spent.
async fn await_confirmed(
    endpoint: &Endpoint,
    window: &mut Window,
    deadline: Instant,
    approver: &dyn Approver,
) -> Result<Option<Exchange>, PeerError> {
    let mut handshakes = FuturesUnordered::new();
    let listener = endpoint.id();
    loop {
        tokio::select! {
            () = sleep_until(deadline) => return Err(PeerError::NobodyCame),
            () = interruption(approver) => return Err(PeerError::Interrupted),
            Some(outcome) = handshakes.next(), if !handshakes.is_empty() => match outcome {
                Ok(exchange) => return Ok(Some(exchange)),
                Err(error) if window.count(window.generation, &error) => return Ok(None),
                Err(_) => {}
            },
            incoming = endpoint.iroh.accept() => {
                let incoming = incoming.ok_or_else(|| PeerError::Network { why: "the endpoint was closed".into() })?;
                if handshakes.len() < HANDSHAKES_MAX {
                    handshakes.push(handshake(incoming, listener, window.code.clone()));
                } else {
                    incoming.refuse();
                }
            }
        }
    }
}

async fn handshake(incoming: Incoming, listener: [u8; 32], code: LinkCode) -> Result<Exchange, PeerError> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let within = |_| PeerError::Silent;
    let connection = timeout_at(deadline, incoming).await.map_err(within)?.map_err(|error| lost(&error))?;
    let (send, receive) =
        timeout(FRAME_TIMEOUT, connection.accept_bi()).await.map_err(within)?.map_err(|e| lost(&e))?;
    let channel = channel(&connection, listener, *connection.remote_id().as_bytes())?;
    let confirmed = timeout_at(deadline, link::receive(tokio::io::join(receive, send), channel, &code));
    Ok(Exchange { confirmed: confirmed.await.map_err(within)??, connection })
}

/// Learns who came, has the person asked, and stores the link.
async fn finish_listening(
    mut exchange: Exchange,
    myself: &Myself<'_>,
    approver: &Arc<impl Approver>,
    deadline: Instant,
    keep: Keep<'_>,
) -> Result<Card, PeerError> {
    let confirmed = &mut exchange.confirmed;
    let card = confirmed.exchange_cards(myself.identity, myself.nickname).await?;
    let (asked, of, digits) = (Arc::clone(approver), card.clone(), confirmed.digits());
    let answer = tokio::task::spawn_blocking(move || asked.approve(&of, digits));
    let answer = match timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(PeerError::Interrupted),
        Err(_) => Err(PeerError::NobodyCame),
    };
    match answer {
        Ok(true) => {}
        Ok(false) => {
            confirmed.refuse(Refusal::Declined).await;
            return Err(PeerError::Declined);
        }
        Err(error) => {
            confirmed.refuse(Refusal::Over).await;
            return Err(error);
        }
    }
    let mut keys = myself.mesh_keys.clone();
    if keys.is_empty() {
        keys.push(MeshKey::draw()?);
    }
    // Who approved is linked whatever happens to the connection from here on.
    keep(&card, &keys)?;
    let theirs = confirmed.share(&keys).await?;
    let known = keys.len();
    mesh::merge(&mut keys, &theirs);
    if keys.len() > known {
        keep(&card, &keys)?;
    }
    exchange.confirmed.linger().await;
    exchange.connection.close(0_u32.into(), b"linked");
    Ok(card)
}

/// Goes to the drive that waits, and stores the link when its person has said yes.
///
/// # Errors
/// [`PeerError::Refused`], [`PeerError::Impostor`], [`PeerError::NoAnswer`], [`PeerError::Expired`] and others.
pub async fn join(
    endpoint: &Endpoint,
    target: &Target,
    myself: &Myself<'_>,
    approver: &dyn Approver,
    clock: &dyn Clock,
    keep: Keep<'_>,
) -> Result<Card, PeerError> {
    if let Target::Ticket(ticket) = target
        && ticket.expires_at < clock.now()
    {
        return Err(PeerError::Expired);
    }
    let stopped = || async {
        interruption(approver).await;
        PeerError::Interrupted
    };
    let lan = match target {
        Target::Ticket(_) => None,
        Target::Code(_) => {
            let alone = || PeerError::Network { why: "this machine is on no network, so a code finds nobody".into() };
            Some(Lan::start(&[], 0)?.ok_or_else(alone)?)
        }
    };
    let mut exchange = tokio::select! {
        found = search(endpoint, target, lan) => found?,
        error = stopped() => return Err(error),
    };
    let card = exchange.confirmed.exchange_cards(myself.identity, myself.nickname).await?;
    approver.show_digits(&card, exchange.confirmed.digits());
    let theirs = tokio::select! {
        theirs = exchange.confirmed.await_share(CODE_LIFETIME + FRAME_TIMEOUT) => theirs?,
        error = stopped() => return Err(error),
    };
    let mut keys = myself.mesh_keys.clone();
    mesh::merge(&mut keys, &theirs);
    keep(&card, &keys)?;
    let own: Vec<_> = myself.mesh_keys.iter().filter(|key| !theirs.contains(key)).cloned().collect();
    // The other side has stored the link already: that this doesn't arrive costs it some announcements alone.
    if exchange.confirmed.send_keys(&own).await.is_ok() {
        exchange.confirmed.linger().await;
    }
    exchange.connection.close(0_u32.into(), b"linked");
    Ok(card)
}

/// Tries who waits under the nameplate, or whom the ticket names, until one has confirmed the code.
async fn search(endpoint: &Endpoint, target: &Target, mut lan: Option<Lan>) -> Result<Exchange, PeerError> {
    let (Target::Code(code) | Target::Ticket(Ticket { code, .. })) = target;
    let nameplate = code.nameplate();
    let mut tried = Vec::new();
    let mut attempts: FuturesUnordered<BoxFuture<'_, (EndpointAddr, Result<Exchange, PeerError>)>> =
        FuturesUnordered::new();
    if let Target::Ticket(ticket) = target {
        attempts.push(attempt(endpoint, ticket.endpoint.clone(), code, Duration::ZERO).boxed());
    }
    let mut deadline = Instant::now() + SEARCH_TIMEOUT;
    let mut told: Option<PeerError> = None;
    loop {
        tokio::select! {
            () = sleep_until(deadline) => return Err(told.unwrap_or_else(|| PeerError::NoAnswer {
                what: format!("no drive that shows a code of `{nameplate}`…"),
                seconds: SEARCH_TIMEOUT.as_secs(),
            })),
            Some((address, outcome)) = attempts.next(), if !attempts.is_empty() => match outcome {
                Ok(exchange) => return Ok(exchange),
                Err(PeerError::Refused(Refusal::Busy)) => {
                    told.get_or_insert(PeerError::Refused(Refusal::Busy));
                    attempts.push(attempt(endpoint, address, code, BUSY_PAUSE).boxed());
                }
                Err(error) if lan.is_none() => return Err(error),
                Err(error) => {
                    if matches!(error, PeerError::Refused(_) | PeerError::Impostor | PeerError::Newer { .. }) {
                        deadline = deadline.min(Instant::now() + GRACE);
                        told = Some(error);
                    } else {
                        told.get_or_insert(error);
                    }
                }
            },
            Some(sighting) = next_sighting(&mut lan) => {
                let found = lan::read_link_label(&nameplate, &sighting);
                if let Some(address) = found.filter(|found| !tried.contains(&found.id) && tried.len() < CANDIDATES_MAX) {
                    tried.push(address.id);
                    attempts.push(attempt(endpoint, address, code, Duration::ZERO).boxed());
                }
            }
        }
    }
}

async fn next_sighting(lan: &mut Option<Lan>) -> Option<lan::Sighting> {
    match lan {
        Some(lan) => lan.sightings.recv().await,
        None => std::future::pending().await,
    }
}

async fn attempt(
    endpoint: &Endpoint,
    address: EndpointAddr,
    code: &LinkCode,
    pause: Duration,
) -> (EndpointAddr, Result<Exchange, PeerError>) {
    sleep(pause).await;
    let outcome = async {
        let connection = endpoint.connect(address.clone(), LINK_ALPN).await?;
        let (send, receive) = connection.open_bi().await.map_err(|error| lost(&error))?;
        let channel = channel(&connection, *address.id.as_bytes(), endpoint.id())?;
        let confirmed = link::join(tokio::io::join(receive, send), channel, code).await?;
        Ok(Exchange { confirmed, connection })
    };
    let outcome = outcome.await;
    (address, outcome)
}

fn channel(connection: &Connection, listener: [u8; 32], joiner: [u8; 32]) -> Result<Channel, PeerError> {
    let mut exporter = [0; 32];
    let exported = connection.export_keying_material(&mut exporter, link::EXPORTER_LABEL, b"");
    exported.map_err(|_| PeerError::Lost { why: "the connection has no keys to bind to".into() })?;
    Ok(Channel { exporter, listener, joiner })
}

fn lost(error: &dyn std::fmt::Display) -> PeerError {
    PeerError::Lost { why: error.to_string() }
}

async fn interruption(approver: &dyn Approver) {
    while !approver.is_interrupted() {
        sleep(INTERRUPT_TICK).await;
    }
}

#[cfg(test)]
mod tests;
