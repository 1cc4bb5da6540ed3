//! One run of `tiles sync`: it listens and looks at once, and exchanges with every linked drive that it meets.
//!
//! Of two drives that see each other, the one with the smaller DID goes to the other. The other one goes itself when nobody
//! came for a while: announcements may get through in one direction only.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iroh::endpoint::{Connection, Incoming, VarInt};
use iroh::{EndpointAddr, EndpointId, TransportAddr};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::Watcher;
use super::error::SyncError;
use super::exchange::{ROUND_BYTES, Side, exchange};
use super::hint::{HINT_ALPN, Hint, Hints, stand_in};
use super::report::Report;
use super::store_handle::store_handle;
use crate::did::Did;
use crate::identity::Identity;
use crate::peer::lan::{Lan, Sighting};
use crate::peer::mesh::MeshKey;
use crate::peer::{CONNECT_TIMEOUT, Endpoint, FORBIDDEN, Gate, LinkedDrives, Network, PeerError, Relay, mesh_keys};
use crate::store::{Store, StoreError};
use crate::time::{Clock, Timestamp};

/// The protocol of syncing.
pub const SYNC_ALPN: &[u8] = b"tiles/sync/1";
/// The threads that serve the network: one reads while the other computes.
const THREADS: usize = 2;
/// How long the drive with the larger DID waits for the other one to come.
const COURTESY: Duration = Duration::from_secs(2);
/// How long it waits after a failure, before it goes again.
const PAUSE: Duration = Duration::from_secs(4);
/// How long it waits for further drives after it has synced with one.
const LINGER: Duration = Duration::from_secs(10);
/// How often drives that are there are synced with again, where it stays.
const WATCH_EVERY: Duration = Duration::from_secs(30);
/// How soon after one hint another one is followed.
const HINT_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked at what is due.
const TICK: Duration = Duration::from_millis(100);
/// The most exchanges with one drive at once: both may have gone to each other, and one that was killed is noticed late.
const EXCHANGES_MAX: usize = 8;
/// The most exchanges, and connections that may become one, at once.
const EXCHANGES_ALL_MAX: usize = 32;

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Only with this drive.
    pub only: Option<Did>,
    /// Where that one is: for networks that carry no announcements.
    pub at: Option<SocketAddr>,
    /// Stays until it is interrupted.
    pub watch: bool,
    /// How long it waits for drives, from its beginning or from the last exchange on; less for further ones once one was met.
    pub patience: Duration,
    /// What it may use of the network.
    pub network: Network,
}

/// What came of the exchanges with one drive.
#[derive(Debug)]
pub struct Outcome {
    /// Which drive.
    pub peer: Did,
    /// All that was exchanged.
    pub report: Report,
    /// Whether everything was exchanged.
    pub is_synced: bool,
    /// Why the last exchange was cut.
    pub error: Option<SyncError>,
}

/// Syncs with linked drives as planned. Gives those that were met, and those that weren't, of all that are linked.
///
/// # Errors
/// [`SyncError::NotLinked`] where no drive is linked, or not the planned one; what opening the endpoint can meet.
pub fn sync_drives(
    store: &Store,
    identity: &Identity,
    plan: Plan,
    clock: Arc<dyn Clock>,
    watcher: Arc<dyn Watcher>,
) -> Result<Vec<Outcome>, SyncError> {
    let me = identity.did();
    let drives = LinkedDrives::read(store, me)?;
    let linked: Vec<Did> = drives.iter().map(|drive| drive.did).collect();
    let planned: Vec<Did> = linked.iter().copied().filter(|did| plan.only.is_none_or(|only| only == *did)).collect();
    if planned.is_empty() {
        return Err(SyncError::NotLinked);
    }
    // What was done since the last time is signed now, and not while another drive waits for it. Where that fails, as on a
    // drive that is full, the network isn't touched.
    store.seal_log(identity)?;
    store.prepare_exchange()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let runtime = runtime.map_err(|error| PeerError::Network { why: error.to_string() })?;
    let gate = Gate::of(linked);
    // Hints are for those who stay: nobody else speaks their protocol.
    let protocols: &[&[u8]] = if plan.watch { &[SYNC_ALPN, HINT_ALPN] } else { &[SYNC_ALPN] };
    let endpoint = runtime.block_on(Endpoint::of(identity, protocols, plan.network.clone(), gate.clone()))?;
    let keys = mesh_keys(store)?;
    let (handle, jobs) = store_handle();
    let side = Side { me, store: handle, gate, clock, watcher: Arc::clone(&watcher), round_bytes: ROUND_BYTES };
    let running = runtime.spawn(async move {
        let mut run = Run::new(side, plan, keys, &planned);
        if run.plan.watch {
            run.hints = Some(Hints::start(&endpoint.iroh, &run.keys).await?);
        }
        let outcome = run.run(&endpoint).await;
        run.exchanges.shutdown().await;
        run.hints = None;
        endpoint.close().await;
        outcome.map(|()| run.outcomes())
    });
    jobs.serve(store, identity);
    let outcome = runtime.block_on(running);
    runtime.shutdown_background();
    make_searchable(store, &*watcher);
    outcome.map_err(|error| SyncError::Lost(error.to_string()))?
}

/// Puts what came into the text index, unless somebody is in a hurry or it fails: whoever searches first waits for it then, or
/// hears why it can't be done. What was exchanged is safe either way.
fn make_searchable(store: &Store, watcher: &dyn Watcher) {
    while let Ok(waiting) = store.unindexed() {
        if waiting == 0 || watcher.is_interrupted() {
            return;
        }
        watcher.indexing(waiting);
        if store.index_some().is_err() {
            return;
        }
    }
}

/// The exchanges that are under way, by whom they are with.
#[derive(Clone, Default)]
struct Active(Arc<Mutex<HashMap<Did, usize>>>);

/// One of them, until it is dropped.
struct Talking {
    active: Active,
    peer: Did,
}

impl Active {
    /// Begins one, unless there are as many with that drive as there may be.
    fn begin(&self, peer: Did) -> Option<Talking> {
        let mut counts = self.counts();
        let count = counts.entry(peer).or_default();
        (*count < EXCHANGES_MAX).then(|| {
            *count += 1;
            Talking { active: self.clone(), peer }
        })
    }

    fn has(&self, peer: &Did) -> bool {
        self.counts().contains_key(peer)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Did, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        let mut counts = self.active.counts();
        match counts.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.peer)),
        }
    }
}

/// A drive that is to be met.
struct Peer {
    /// Where it was seen last.
    address: Option<EndpointAddr>,
    /// When to go there.
    due: Option<Instant>,
    is_synced: bool,
    /// Whether it said that this drive isn't linked there.
    refuses: bool,
    /// Whether the run ends only after it was met.
    is_planned: bool,
    report: Report,
    error: Option<SyncError>,
}

/// What came of a connection.
enum Came {
    Ended(Ended),
    ForHints(Connection),
    /// It never became one.
    Gone,
}

/// How an exchange ended.
struct Ended {
    peer: Did,
    report: Report,
    error: Option<SyncError>,
}

struct Run {
    side: Side,
    plan: Plan,
    keys: Vec<MeshKey>,
    peers: HashMap<Did, Peer>,
    /// What the drives announce themselves as.
    labels: HashMap<String, Did>,
    exchanges: JoinSet<Came>,
    active: Active,
    hints: Option<Hints>,
    /// When something last happened.
    since: Instant,
}

impl Run {
    fn new(side: Side, plan: Plan, keys: Vec<MeshKey>, planned: &[Did]) -> Self {
        let (peers, labels, exchanges, active) = Default::default();
        let mut run = Self { side, plan, keys, peers, labels, exchanges, active, hints: None, since: Instant::now() };
        planned.iter().for_each(|did| run.add(*did, true));
        run.renew_labels();
        run
    }

    fn add(&mut self, did: Did, is_planned: bool) {
        let id = EndpointId::from_bytes(did.public_key()).ok();
        let direct = self.plan.at.map(TransportAddr::Ip);
        let relay = self.plan.network.relay.as_ref().map(Relay::address);
        let known: Vec<_> = direct.into_iter().chain(relay).collect();
        let address = id.filter(|_| !known.is_empty()).map(|id| EndpointAddr::from_parts(id, known));
        let due = address.as_ref().map(|_| self.first_due(&did));
        self.peers.entry(did).or_insert_with(|| Peer {
            address,
            due,
            is_synced: false,
            refuses: false,
            is_planned,
            report: Report::default(),
            error: None,
        });
    }

    fn first_due(&self, did: &Did) -> Instant {
        let goes_first = self.plan.at.is_some() || self.side.me < *did;
        Instant::now() + if goes_first { Duration::ZERO } else { COURTESY }
    }

    fn renew_labels(&mut self) {
        let now = self.side.clock.now();
        self.labels.clear();
        for did in self.peers.keys() {
            for label in self.keys.iter().flat_map(|key| key.labels_around(did, now)) {
                self.labels.insert(label, *did);
            }
        }
    }

    fn announce(&self, endpoint: &Endpoint) -> Result<Option<Lan>, SyncError> {
        let Some(port) = endpoint.port().filter(|_| !endpoint.is_loopback_only()) else { return Ok(None) };
        let now = self.side.clock.now();
        let labels: Vec<String> = self.keys.iter().map(|key| key.label(&self.side.me, now)).collect();
        if labels.is_empty() { Ok(None) } else { Ok(Lan::start(&labels, port)?) }
    }

    async fn run(&mut self, endpoint: &Endpoint) -> Result<(), SyncError> {
        let mut day = day_of(self.side.clock.now());
        let mut lan = self.announce(endpoint)?;
        let waits = self.peers.values().filter(|peer| peer.is_planned).count();
        self.side.watcher.waiting(endpoint.port(), waits);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                incoming = endpoint.iroh.accept() => match incoming {
                    Some(incoming) if self.exchanges.len() < EXCHANGES_ALL_MAX => self.receive(incoming),
                    Some(incoming) => incoming.refuse(),
                    None => return Err(SyncError::Lost("the endpoint was closed".into())),
                },
                Some(sighting) = next_sighting(&mut lan) => self.see(&sighting),
                Some(came) = self.exchanges.join_next(), if !self.exchanges.is_empty() => match came {
                    Ok(Came::Ended(ended)) => self.end(ended).await?,
                    Ok(Came::ForHints(connection)) => {
                        if let Some(hints) = &self.hints {
                            hints.receive(connection).await;
                        }
                    }
                    Ok(Came::Gone) | Err(_) => {}
                },
                Some((topic, bytes)) = next_hint(&mut self.hints) => self.hear(topic, &bytes).await?,
                _ = tick.tick() => {
                    if self.side.watcher.is_interrupted() {
                        return if self.plan.watch { Ok(()) } else { Err(SyncError::Interrupted) };
                    }
                    if self.is_over() {
                        return Ok(());
                    }
                    if day != day_of(self.side.clock.now()) {
                        day = day_of(self.side.clock.now());
                        self.renew_labels();
                        lan = self.announce(endpoint)?;
                    }
                    self.go(endpoint);
                }
            }
        }
    }

    /// Whether everybody was met, or nobody came for long enough.
    fn is_over(&self) -> bool {
        if self.plan.watch || !self.exchanges.is_empty() {
            return false;
        }
        let all_met = self.peers.values().all(|peer| peer.is_synced || peer.refuses || !peer.is_planned);
        let any_met = self.peers.values().any(|peer| peer.is_synced);
        let patience = if any_met { self.plan.patience.min(LINGER) } else { self.plan.patience };
        all_met || self.since.elapsed() >= patience
    }

    fn see(&mut self, sighting: &Sighting) {
        let Some(did) = self.labels.get(&sighting.label).copied() else { return };
        let due = self.first_due(&did);
        let (Some(peer), Ok(id)) = (self.peers.get_mut(&did), EndpointId::from_bytes(did.public_key())) else { return };
        let seen = sighting.addresses.iter().copied().map(TransportAddr::Ip);
        let relay =
            peer.address.iter().flat_map(|address| address.addrs.iter().filter(|addr| addr.is_relay())).cloned();
        peer.address = Some(EndpointAddr::from_parts(id, seen.chain(relay).collect::<Vec<_>>()));
        if peer.due.is_none() && !peer.refuses && (self.plan.watch || !peer.is_synced) {
            peer.due = Some(due);
        }
    }

    /// Goes to all that are due.
    fn go(&mut self, endpoint: &Endpoint) {
        let now = Instant::now();
        for (did, peer) in &mut self.peers {
            let is_due = peer.due.is_some_and(|due| due <= now) && !self.active.has(did);
            let Some(address) = peer.address.clone().filter(|_| is_due) else { continue };
            let Some(talking) = self.active.begin(*did) else { continue };
            peer.due = None;
            let (side, did, iroh) = (self.side.clone(), *did, endpoint.iroh.clone());
            self.exchanges.spawn(async move {
                let _talking = talking;
                let connecting = timeout(CONNECT_TIMEOUT, iroh.connect(address, SYNC_ALPN)).await;
                let mut report = Report::default();
                let error = match connecting {
                    Ok(Ok(connection)) => talk(&side, did, &connection, &mut report, true).await.err(),
                    Ok(Err(error)) => Some(SyncError::Lost(error.to_string())),
                    Err(_) => Some(SyncError::Silent),
                };
                Came::Ended(Ended { peer: did, report, error })
            });
        }
    }

    /// Lets somebody in, of whom the gate has made sure that it is linked.
    fn receive(&mut self, incoming: Incoming) {
        let (side, active, only) = (self.side.clone(), self.active.clone(), self.plan.only);
        self.exchanges.spawn(async move {
            let Ok(Ok(connection)) = timeout(CONNECT_TIMEOUT, incoming).await else { return Came::Gone };
            if connection.alpn() == HINT_ALPN {
                return Came::ForHints(connection);
            }
            let peer = Did::from_public_key(*connection.remote_id().as_bytes()).ok();
            let peer = peer.filter(|peer| only.is_none_or(|only| only == *peer));
            let Some((peer, _talking)) = peer.and_then(|peer| Some((peer, active.begin(peer)?))) else {
                return Came::Gone;
            };
            let mut report = Report::default();
            let error = talk(&side, peer, &connection, &mut report, false).await.err();
            Came::Ended(Ended { peer, report, error })
        });
    }

    /// Looks at a hint: a linked drive that has something else than this one is synced with at once.
    async fn hear(&mut self, topic: [u8; 32], bytes: &[u8]) -> Result<(), SyncError> {
        let Some(hint) = Hint::from_bytes(bytes, &topic, self.side.clock.now()) else { return Ok(()) };
        let has = self.side.store.call(|store, _| store.vector()).await??;
        if let Some(peer) = self.peers.get_mut(&hint.author)
            && stand_in(&has) != hint.has
        {
            // Many hints in a row are one.
            peer.due = Some(peer.due.map_or_else(Instant::now, |due| due.min(Instant::now() + HINT_PAUSE)));
        }
        Ok(())
    }

    /// Tells others that there is something new here.
    async fn tell(&self) -> Result<(), SyncError> {
        let Some(hints) = &self.hints else { return Ok(()) };
        let (topics, author, at) = (hints.topics(), self.side.me, self.side.clock.now());
        let signed = self.side.store.call(move |store, identity| {
            let hint = Hint { author, at, has: stand_in(&store.vector()?) };
            Ok::<_, StoreError>(topics.iter().map(|topic| hint.to_bytes(topic, identity)).collect())
        });
        hints.tell(signed.await??).await;
        Ok(())
    }

    async fn end(&mut self, ended: Ended) -> Result<(), SyncError> {
        let Ended { peer: did, report, error } = ended;
        // Who fails again and again doesn't keep it waiting.
        if error.is_none() || report.received.ops + report.sent.ops > 0 {
            self.since = Instant::now();
        }
        self.side.watcher.ended(did, &report, error.as_ref());
        // What this drive itself can't do it can't do with another one either.
        if let Some(SyncError::Store(error)) = error {
            return Err(error.into());
        }
        let watch = self.plan.watch;
        if let Some(peer) = self.peers.get_mut(&did) {
            peer.is_synced |= error.is_none();
            peer.refuses = matches!(error, Some(SyncError::NotLinked));
            peer.report.add(&report);
            peer.due = match &error {
                // It says so itself, and will say so again.
                Some(SyncError::NotLinked) => None,
                // It may have gone; where it is still there, it is seen again.
                Some(_) if watch && self.plan.at.is_none() && self.plan.network.relay.is_none() => None,
                Some(_) if watch => Some(Instant::now() + WATCH_EVERY),
                Some(_) => Some(Instant::now() + PAUSE),
                None => watch.then(|| Instant::now() + WATCH_EVERY),
            };
            peer.error = error;
        }
        // Who was linked by what came is met too, but nobody waits for them.
        let me = self.side.me;
        let (drives, keys) =
            self.side.store.call(move |store, _| (LinkedDrives::read(store, me), mesh_keys(store))).await?;
        let linked: Vec<Did> = drives?.iter().map(|drive| drive.did).collect();
        self.keys = keys?;
        if self.plan.only.is_none() {
            linked.iter().for_each(|did| self.add(*did, false));
        }
        self.peers.retain(|did, _| linked.contains(did));
        self.renew_labels();
        if report.received.ops > 0 {
            self.tell().await?;
        }
        if let (Some(hints), Some(address)) = (&self.hints, self.peers.get(&did).and_then(|peer| peer.address.clone()))
        {
            hints.meet(address).await;
        }
        Ok(())
    }

    fn outcomes(&mut self) -> Vec<Outcome> {
        let outcome = |(peer, state): (Did, Peer)| {
            let Peer { report, is_synced, error, .. } = state;
            Outcome { peer, report, is_synced, error }
        };
        let mut all: Vec<Outcome> = self.peers.drain().map(outcome).collect();
        all.sort_by_key(|outcome| outcome.peer);
        all
    }
}

async fn next_hint(hints: &mut Option<Hints>) -> Option<([u8; 32], Vec<u8>)> {
    match hints {
        Some(hints) => hints.heard.recv().await,
        None => std::future::pending().await,
    }
}

const fn day_of(now: Timestamp) -> i64 {
    now.as_ms().div_euclid(DAY_MS)
}

pub(super) async fn next_sighting(lan: &mut Option<Lan>) -> Option<Sighting> {
    match lan {
        Some(lan) => lan.sightings.recv().await,
        None => std::future::pending().await,
    }
}

/// Exchanges everything over a connection, and ends it.
async fn talk(
    side: &Side,
    peer: Did,
    connection: &Connection,
    report: &mut Report,
    goes: bool,
) -> Result<(), SyncError> {
    side.watcher.met(peer);
    let exchanged = async {
        let streams = async { if goes { connection.open_bi().await } else { connection.accept_bi().await } };
        let (mut send, mut receive) = timeout(CONNECT_TIMEOUT, streams)
            .await
            .map_err(|_| SyncError::Silent)?
            .map_err(|error| SyncError::Lost(error.to_string()))?;
        exchange(side, peer, &mut receive, &mut send, report).await
    };
    let outcome = exchanged.await;
    let outcome = match (outcome, connection.close_reason()) {
        (Err(_), Some(iroh::endpoint::ConnectionError::ApplicationClosed(close)))
            if close.error_code == VarInt::from_u32(FORBIDDEN) =>
        {
            Err(SyncError::NotLinked)
        }
        (outcome, _) => outcome,
    };
    let code = if outcome.is_ok() { 0 } else { 1 };
    connection.close(VarInt::from_u32(code), b"");
    outcome
}
