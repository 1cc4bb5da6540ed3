//! Handing a model over: one drive waits with it, the other comes and takes it.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iroh::{EndpointAddr, EndpointId, TransportAddr};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};

use super::error::SyncError;
use super::models::{BLOBS_ALPN, Given, MODEL_ALPN, ModelOffer, Offered, fetch};
use super::run::Plan;
use crate::did::Did;
use crate::disk;
use crate::identity::Identity;
use crate::library::HandedModel;
use crate::peer::lan::Lan;
use crate::peer::mesh::MeshKey;
use crate::peer::{CONNECT_TIMEOUT, Endpoint, Gate, LinkedDrives, PeerError, Relay, mesh_keys};
use crate::store::Store;
use crate::time::Clock;

/// How often it is looked at what is due.
const TICK: Duration = Duration::from_millis(100);
/// How long after a failure the same drive is tried again.
const PAUSE: Duration = Duration::from_secs(3);
/// The most connections at once.
const CONNECTIONS_MAX: usize = 16;
/// The threads that serve the network.
const THREADS: usize = 2;

/// Who is told how handing over goes.
pub trait Handover: Send + Sync + 'static {
    /// It waits at this port of the machine.
    fn waiting(&self, port: Option<u16>);

    /// How many bytes are read, or have come.
    fn bytes(&self, bytes: u64);

    /// A linked drive has been offered the model, and is thinking about it or fetching it.
    fn asked(&self, peer: Did);

    /// Whether the person wants to stop.
    fn is_interrupted(&self) -> bool;
}

/// The network of one hand-over.
struct Net {
    endpoint: Endpoint,
    me: Did,
    keys: Vec<MeshKey>,
    linked: Vec<Did>,
    clock: Arc<dyn Clock>,
}

fn runtime() -> Result<tokio::runtime::Runtime, SyncError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    Ok(runtime.map_err(|error| PeerError::Network { why: error.to_string() })?)
}

impl Net {
    async fn open(
        store: &Store,
        identity: &Identity,
        plan: &Plan,
        protocols: &[&[u8]],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SyncError> {
        let me = identity.did();
        let drives = LinkedDrives::read(store, me)?;
        let linked = drives.iter().map(|drive| drive.did).filter(|did| plan.only.is_none_or(|only| only == *did));
        let linked: Vec<Did> = linked.collect();
        if linked.is_empty() {
            return Err(SyncError::NotLinked);
        }
        // With whom one drive is named, no other gets in.
        let gate = Gate::of(linked.iter().copied());
        let endpoint = Endpoint::of(identity, protocols, plan.network.clone(), gate).await?;
        Ok(Self { endpoint, me, keys: mesh_keys(store)?, linked, clock })
    }

    /// Says that it is there.
    fn announce(&self) -> Result<Option<Lan>, SyncError> {
        let Some(port) = self.endpoint.port().filter(|_| !self.endpoint.is_loopback_only()) else { return Ok(None) };
        let labels: Vec<String> = self.keys.iter().map(|key| key.label(&self.me, self.clock.now())).collect();
        if labels.is_empty() { Ok(None) } else { Ok(Lan::start(&labels, port)?) }
    }

    /// What linked drives announce themselves as.
    fn labels(&self) -> HashMap<String, Did> {
        let now = self.clock.now();
        let of = |did: &Did| self.keys.iter().flat_map(|key| key.labels_around(did, now)).collect::<Vec<_>>();
        self.linked.iter().flat_map(|did| of(did).into_iter().map(|label| (label, *did))).collect()
    }
}

/// Waits for a linked drive that takes the model whose files are in `folder`, and gives it. `scratch` is a folder to work in,
/// which is gone afterwards.
///
/// # Errors
/// [`SyncError::NotLinked`], [`SyncError::NobodyCame`], [`SyncError::Declined`], [`SyncError::Interrupted`], and what reading
/// the model and the network can meet.
pub fn give_model(
    store: &Store,
    identity: &Identity,
    plan: &Plan,
    (model, folder, scratch): (HandedModel, &Path, &Path),
    clock: Arc<dyn Clock>,
    handover: &Arc<dyn Handover>,
) -> Result<Did, SyncError> {
    let runtime = runtime()?;
    let given = runtime.block_on(async {
        disk::remove_folder(scratch)?;
        disk::create_folder(scratch)?;
        let net = Net::open(store, identity, plan, &[MODEL_ALPN, BLOBS_ALPN], clock).await?;
        let counted = Arc::clone(handover);
        let given = Arc::new(Given::prepare(model, folder, scratch, move |bytes| counted.bytes(bytes)).await?);
        let outcome = give(&net, &given, plan, handover).await;
        if let Some(given) = Arc::into_inner(given) {
            given.close().await;
        }
        net.endpoint.close().await;
        outcome
    });
    runtime.shutdown_background();
    disk::remove_folder(scratch)?;
    given
}

/// What a connection was for, and came to.
enum Came {
    Offer(Did, Result<bool, SyncError>),
    Other,
}

async fn give(net: &Net, given: &Arc<Given>, plan: &Plan, handover: &Arc<dyn Handover>) -> Result<Did, SyncError> {
    let _lan = net.announce()?;
    handover.waiting(net.endpoint.port());
    let mut connections: JoinSet<Came> = JoinSet::new();
    let (mut since, mut tick) = (Instant::now(), interval(TICK));
    loop {
        tokio::select! {
            incoming = net.endpoint.iroh.accept() => {
                let incoming = incoming.ok_or_else(|| SyncError::Lost("the endpoint was closed".into()))?;
                if connections.len() >= CONNECTIONS_MAX {
                    incoming.refuse();
                    continue;
                }
                let (given, handover) = (Arc::clone(given), Arc::clone(handover));
                connections.spawn(async move {
                    let Ok(Ok(connection)) = timeout(CONNECT_TIMEOUT, incoming).await else { return Came::Other };
                    let Ok(peer) = Did::from_public_key(*connection.remote_id().as_bytes()) else { return Came::Other };
                    if connection.alpn() != MODEL_ALPN {
                        given.serve(connection).await;
                        return Came::Other;
                    }
                    handover.asked(peer);
                    Came::Offer(peer, given.offer(&connection).await)
                });
            }
            Some(came) = connections.join_next(), if !connections.is_empty() => {
                since = Instant::now();
                match came {
                    Ok(Came::Offer(peer, Ok(true))) => {
                        connections.shutdown().await;
                        return Ok(peer);
                    }
                    Ok(Came::Offer(_, Ok(false))) if plan.only.is_some() => return Err(SyncError::Declined),
                    // Who was cut off comes again, or somebody else does: they only looked, or said no.
                    Ok(Came::Offer(..)) => handover.waiting(net.endpoint.port()),
                    _ => {}
                }
            }
            _ = tick.tick() => {
                if handover.is_interrupted() {
                    return Err(SyncError::Interrupted);
                }
                if connections.is_empty() && since.elapsed() >= plan.patience {
                    return Err(SyncError::NobodyCame);
                }
            }
        }
    }
}

/// Comes to a linked drive that gives a model. `choose` says which of the files are wanted, and the folder that they come
/// into; none is no. `adopt` makes a model of them, and only what it is content with was taken.
///
/// # Errors
/// [`SyncError::NotLinked`], [`SyncError::NobodyCame`], [`SyncError::Declined`], [`SyncError::Interrupted`], what `choose` and
/// `adopt` give, and what the network can meet.
pub fn take_model<E: From<SyncError>>(
    store: &Store,
    identity: &Identity,
    plan: &Plan,
    clock: Arc<dyn Clock>,
    handover: &Arc<dyn Handover>,
    choose: impl FnOnce(&Offered) -> Result<Option<(Vec<String>, std::path::PathBuf)>, E>,
    adopt: impl FnOnce() -> Result<(), E>,
) -> Result<Did, E> {
    let runtime = runtime()?;
    let (net, offered, address) = runtime.block_on(async {
        let net = Net::open(store, identity, plan, &[], clock).await?;
        let (offered, address) = find(&net, plan, handover).await?;
        Ok::<_, SyncError>((net, offered, address))
    })?;
    let peer = offered.peer;
    let chosen = choose(&offered);
    let taken = match chosen {
        Ok(Some((wanted, folder))) => {
            let fetched = runtime.block_on(async {
                let connecting = timeout(CONNECT_TIMEOUT, net.endpoint.iroh.connect(address, BLOBS_ALPN)).await;
                let connection = connecting.map_err(|_| SyncError::Silent)?;
                let connection = connection.map_err(|error| SyncError::Lost(error.to_string()))?;
                let (progress, mut bytes) = mpsc::channel(8);
                let fetching = fetch(connection.clone(), &offered.offer, &wanted, &folder, progress);
                let mut fetching = std::pin::pin!(fetching);
                let mut tick = interval(TICK);
                let outcome = loop {
                    tokio::select! {
                        outcome = &mut fetching => break outcome,
                        Some(bytes) = bytes.recv() => handover.bytes(bytes),
                        _ = tick.tick() => if handover.is_interrupted() {
                            break Err(SyncError::Interrupted);
                        },
                    }
                };
                connection.close(0_u32.into(), b"");
                outcome
            });
            fetched.map_err(E::from).and_then(|()| adopt())
        }
        Ok(None) => Err(SyncError::Declined.into()),
        Err(error) => Err(error),
    };
    runtime.block_on(async {
        offered.answer(taken.is_ok()).await;
        net.endpoint.close().await;
    });
    runtime.shutdown_background();
    taken.map(|()| peer)
}

/// Asks the linked drives that give a model what they give, until `plan.patience` is over, and tells `each` once for each
/// of them. They go on waiting for somebody who takes it.
///
/// # Errors
/// [`SyncError::NotLinked`], [`SyncError::Interrupted`], and what the network can meet.
pub fn model_offers(
    store: &Store,
    identity: &Identity,
    plan: &Plan,
    clock: Arc<dyn Clock>,
    handover: &Arc<dyn Handover>,
    mut each: impl FnMut(Did, ModelOffer),
) -> Result<(), SyncError> {
    let runtime = runtime()?;
    let looked = runtime.block_on(async {
        let net = Net::open(store, identity, plan, &[], clock).await?;
        let looked = look(&net, plan, handover, |offered, _| {
            each(offered.peer, offered.offer);
            ControlFlow::Continue(())
        });
        let looked = looked.await;
        net.endpoint.close().await;
        looked
    });
    runtime.shutdown_background();
    match looked {
        Ok(()) | Err(SyncError::NobodyCame) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Looks for a linked drive that gives a model, until one does.
async fn find(net: &Net, plan: &Plan, handover: &Arc<dyn Handover>) -> Result<(Offered, EndpointAddr), SyncError> {
    let mut found = None;
    let looked = look(net, plan, handover, |offered, address| {
        found = Some((offered, address));
        ControlFlow::Break(())
    });
    looked.await?;
    found.ok_or(SyncError::NobodyCame)
}

/// Looks for linked drives that give a model, and asks each that is found until it has said what; `on_offer` ends it.
async fn look(
    net: &Net,
    plan: &Plan,
    handover: &Arc<dyn Handover>,
    mut on_offer: impl FnMut(Offered, EndpointAddr) -> ControlFlow<()>,
) -> Result<(), SyncError> {
    let mut lan = if net.endpoint.is_loopback_only() { None } else { Lan::start(&[], 0)? };
    let labels = net.labels();
    handover.waiting(None);
    let mut asking: JoinSet<Result<(Offered, EndpointAddr), Did>> = JoinSet::new();
    let mut due: HashMap<Did, (EndpointAddr, Instant)> = HashMap::new();
    let mut told = HashSet::new();
    let relay = plan.network.relay.as_ref().map(Relay::address);
    for did in &net.linked {
        let known: Vec<_> = plan.at.map(TransportAddr::Ip).into_iter().chain(relay.clone()).collect();
        if let (Ok(id), false) = (EndpointId::from_bytes(did.public_key()), known.is_empty()) {
            due.insert(*did, (EndpointAddr::from_parts(id, known), Instant::now()));
        }
    }
    let (began, mut tick) = (Instant::now(), interval(TICK));
    loop {
        tokio::select! {
            Some(sighting) = super::run::next_sighting(&mut lan) => {
                let did = labels.get(&sighting.label).filter(|did| !told.contains(*did));
                let Some((did, id)) = did.and_then(|did| Some((*did, EndpointId::from_bytes(did.public_key()).ok()?))) else {
                    continue;
                };
                let addresses: Vec<_> = sighting.addresses.into_iter().map(TransportAddr::Ip).collect();
                let at = due.get(&did).map_or_else(Instant::now, |(_, at)| *at);
                due.insert(did, (EndpointAddr::from_parts(id, addresses), at));
            }
            Some(asked) = asking.join_next(), if !asking.is_empty() => match asked {
                Ok(Ok((offered, address))) => {
                    due.remove(&offered.peer);
                    told.insert(offered.peer);
                    if on_offer(offered, address).is_break() || told.len() == net.linked.len() {
                        return Ok(());
                    }
                }
                // It may be syncing, and give a model later.
                Ok(Err(did)) => if let Some((_, at)) = due.get_mut(&did) {
                    *at = Instant::now() + PAUSE;
                },
                Err(_) => {}
            },
            _ = tick.tick() => {
                if handover.is_interrupted() {
                    return Err(SyncError::Interrupted);
                }
                if asking.is_empty() && began.elapsed() >= plan.patience {
                    return Err(SyncError::NobodyCame);
                }
                let now = Instant::now();
                for (did, (address, at)) in due.iter_mut().filter(|(_, (_, at))| *at <= now) {
                    // Until the answer is there.
                    *at = now + CONNECT_TIMEOUT * 5;
                    let (iroh, did, address) = (net.endpoint.iroh.clone(), *did, address.clone());
                    asking.spawn(async move {
                        let connecting = timeout(CONNECT_TIMEOUT, iroh.connect(address.clone(), MODEL_ALPN)).await;
                        let connection = connecting.map_err(|_| did)?.map_err(|_| did)?;
                        let offered = Offered::ask(did, connection).await.map_err(|_| did)?;
                        Ok((offered, address))
                    });
                }
            }
        }
    }
}
