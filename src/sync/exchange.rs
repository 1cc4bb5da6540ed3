//! The exchange: two linked drives tell each other what they have, and each sends what the other lacks.
//!
//! It goes in rounds. In a round both say how much they have of each log, ask for proof where logs seem to go different ways,
//! and then send and take in at the same time, all chunks that wait in one transaction. What is stored is in the next vector:
//! a cut anywhere loses nothing and repeats nothing but the transaction under way. One more round follows where the first
//! was full, where the own log had to go on under a new epoch, or where somebody was linked by what came.
//!
//! The other side is linked, and may be hostile all the same: everything has a limit, only what is signed counts, and a
//! round that brings nothing is the last.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::Watcher;
use super::chunk;
use super::error::SyncError;
use super::frame::{self, FRAME_TIMEOUT, Frame, SYNC_VERSION, Wants};
use super::report::{Progress, Report};
use super::store_handle::StoreHandle;
use crate::did::Did;
use crate::identity::Identity;
use crate::message::SessionId;
use crate::oplog::{Body, CheckedRun, RunError, Vector};
use crate::peer::{Gate, LinkedDrives, keep_mesh_keys, mesh, mesh_keys};
use crate::store::{Import, Lacking, Refusal, Store, StoreError};
use crate::time::Clock;

/// How many bytes of chunks go in a round before it ends.
pub const ROUND_BYTES: u64 = 64 << 20;
/// How many chunks that were read and checked wait for the store. They go into its next transaction together: what a drive
/// takes longest for is to say that a transaction is on it.
const CHUNKS_WAITING_MAX: usize = 4;
/// Up to so many bytes a chunk is made or read at once: another thread would take longer to wake up.
const AT_ONCE_BYTES_MAX: usize = 32 << 10;
/// The most rounds of an exchange.
pub const ROUNDS_MAX: u32 = 64;

/// This drive, as the exchanges of one run share it.
#[derive(Clone)]
pub(super) struct Side {
    pub(super) me: Did,
    pub(super) store: StoreHandle,
    pub(super) gate: Gate,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) watcher: Arc<dyn Watcher>,
    /// Ends a round early: for tests, [`ROUND_BYTES`] else.
    pub(super) round_bytes: u64,
}

/// Exchanges everything with `peer` over a stream. What was exchanged before an error is in the report all the same.
pub(super) async fn exchange(
    side: &Side,
    peer: Did,
    reader: &mut (impl AsyncRead + Unpin + Send),
    writer: &mut (impl AsyncWrite + Unpin + Send),
    report: &mut Report,
) -> Result<(), SyncError> {
    let began = Instant::now();
    let outcome = rounds(side, peer, reader, writer, report).await;
    if outcome.is_err() && report.received.bytes > 0 {
        let now = side.clock.now();
        // The error of the exchange is the one to report.
        let _ = side.store.call(move |store, _| store.note_seen(peer, now)).await;
    }
    report.took = began.elapsed();
    outcome
}

async fn rounds(
    side: &Side,
    peer: Did,
    reader: &mut (impl AsyncRead + Unpin + Send),
    writer: &mut (impl AsyncWrite + Unpin + Send),
    report: &mut Report,
) -> Result<(), SyncError> {
    greet(side, reader, writer, report).await?;
    let mut sessions = BTreeSet::new();
    let mut goes_on = true;
    while goes_on && report.rounds < ROUNDS_MAX {
        report.rounds += 1;
        let mut round = Round { side, peer, report: &mut *report, sessions: &mut sessions };
        goes_on = round.run(reader, writer).await?;
    }
    let now = side.clock.now();
    writer.shutdown().await?;
    let noting = side.store.call(move |store, _| store.note_synced(peer, now));
    // Until both have seen the other's end, the last words may still be under way.
    let mut rest = [0];
    let (noted, ended) = tokio::join!(noting, timeout(FRAME_TIMEOUT, reader.read(&mut rest)));
    noted??;
    match ended {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(_)) => Err(SyncError::Malformed { what: "something follows the end" }),
        // It has said that all is stored, so how it goes is its own.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Says hello and, without waiting for the answer, how much there is here for the first round; takes over the keys by which the
/// other side's drives find each other.
async fn greet(
    side: &Side,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    report: &mut Report,
) -> Result<(), SyncError> {
    let here = side.store.call(|store, identity| Ok::<_, SyncError>((mesh_keys(store)?, sealed(store, identity)?)));
    let (mut mesh_keys, vector) = here.await??;
    let hello = Frame::Hello { version: SYNC_VERSION, mesh_keys: mesh_keys.clone() };
    report.sent.bytes += frame::write(writer, hello).await?;
    report.sent.bytes += frame::write(writer, Frame::Vector(vector)).await?;
    let (hello, length) = frame::read(reader).await?;
    report.received.bytes += length;
    let Frame::Hello { version, mesh_keys: theirs } = hello else { return Err(unexpected()) };
    if version != SYNC_VERSION {
        return Err(SyncError::Newer { version, ours: SYNC_VERSION });
    }
    let known = mesh_keys.len();
    mesh::merge(&mut mesh_keys, &theirs);
    if mesh_keys.len() > known {
        side.store.call(move |store, _| keep_mesh_keys(store, &mesh_keys)).await??;
    }
    Ok(())
}

/// How much there is here that can be shared.
fn sealed(store: &Store, identity: &Identity) -> Result<Vector, StoreError> {
    store.seal_log(identity)?;
    store.vector()
}

const fn unexpected() -> SyncError {
    SyncError::Malformed { what: "a frame came that isn't due" }
}

/// One round.
struct Round<'a> {
    side: &'a Side,
    peer: Did,
    report: &'a mut Report,
    sessions: &'a mut BTreeSet<SessionId>,
}

/// What the taking in of a round came to.
#[derive(Default)]
struct Taken {
    ops: u64,
    has_new_epoch: bool,
    /// Whether something was refused that may be taken in now.
    has_strangers: bool,
}

impl Round<'_> {
    /// Runs it, and says whether another one is needed.
    async fn run(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin + Send),
        writer: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<bool, SyncError> {
        let plan = self.agree(reader, writer).await?;
        let to_send = plan.iter().map(|part| part.end - part.first).sum();
        self.write(writer, Frame::Offer { ops: to_send }).await?;
        let Frame::Offer { ops: to_receive } = self.read(reader).await? else { return Err(unexpected()) };
        let progress = Progress { peer: self.peer, received: 0, to_receive, sent: 0, to_send };
        let (progress, watched) = watch::channel(progress);

        let (frames, to_write) = mpsc::channel(2);
        let (acks, to_acknowledge) = watch::channel(0);
        let (chunks, to_take) = mpsc::channel(CHUNKS_WAITING_MAX);
        let work = async {
            let sending = send(self.side, plan, &frames);
            let taking = take(self.side, self.peer, to_take, &acks, self.report, self.sessions);
            let (sent, taken) = tokio::try_join!(sending, taking)?;
            let again = sent.is_cut || taken.has_new_epoch || taken.has_strangers && taken.ops > 0;
            frames.send(Frame::Outcome { again }).await.map_err(|_| closed())?;
            drop((frames, acks));
            Ok::<_, SyncError>((sent, taken, again))
        };
        let writing = write_all(writer, to_write, to_acknowledge);
        let reading = read_all(self.side, reader, chunks, &progress);
        let telling = tell(self.side, watched);
        let ((sent, taken, again), written, (read, theirs)) = tokio::select! {
            outcome = async { tokio::try_join!(work, writing, reading) } => outcome?,
            () = telling => return Err(closed()),
        };
        self.report.sent.ops += sent.ops;
        self.report.sent.messages += sent.messages;
        self.report.sent.bytes += written;
        self.report.received.bytes += read;
        // Who says that there is more, and brings nothing, would go on without end.
        let is_useful = taken.ops > 0 || taken.has_new_epoch || sent.ops > 0;
        Ok((again || theirs) && is_useful)
    }

    /// Says what there is here, hears what there is there, and gives what the other side lacks.
    async fn agree(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Vec<Lacking>, SyncError> {
        if self.report.rounds > 1 {
            // In the first round that was said with hello.
            let vector = self.side.store.call(sealed).await??;
            self.write(writer, Frame::Vector(vector)).await?;
        }
        let Frame::Vector(theirs) = self.read(reader).await? else { return Err(unexpected()) };
        let (wants, theirs) = self.wants(theirs).await?;
        self.write(writer, Frame::Wants(wants)).await?;
        let Frame::Wants(Wants { from_start, unwanted }) = self.read(reader).await? else { return Err(unexpected()) };
        let me = self.side.me;
        let lacking = self.side.store.call(move |store, _| store.lacking(&theirs, &from_start, &unwanted, me));
        Ok(lacking.await??)
    }

    async fn wants(&mut self, theirs: Vector) -> Result<(Wants, Vector), SyncError> {
        let asked = self.side.store.call(move |store, _| {
            let wants = Wants { from_start: store.disputed(&theirs)?, unwanted: store.forked_logs()? };
            Ok::<_, StoreError>((wants, theirs))
        });
        Ok(asked.await??)
    }

    async fn write(&mut self, writer: &mut (impl AsyncWrite + Unpin), frame: Frame) -> Result<(), SyncError> {
        self.report.sent.bytes += frame::write(writer, frame).await?;
        Ok(())
    }

    async fn read(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> Result<Frame, SyncError> {
        let (frame, length) = frame::read(reader).await?;
        self.report.received.bytes += length;
        Ok(frame)
    }
}

fn closed() -> SyncError {
    SyncError::Lost("the exchange was ended".into())
}

/// What was sent in a round.
#[derive(Default)]
struct Sent {
    ops: u64,
    messages: u64,
    /// Whether the round was full before everything was sent.
    is_cut: bool,
}

/// Reads what the other side lacks out of the store, and sends it in chunks until the round is full.
async fn send(side: &Side, plan: Vec<Lacking>, frames: &mpsc::Sender<Frame>) -> Result<Sent, SyncError> {
    let mut sent = Sent::default();
    let mut bytes = 0;
    let mut rest = plan;
    rest.reverse();
    while !rest.is_empty() {
        if bytes >= side.round_bytes {
            sent.is_cut = true;
            break;
        }
        let gathered = side.store.call(move |store, _| gather(store, rest)).await??;
        rest = gathered.rest;
        if gathered.runs.is_empty() {
            continue;
        }
        sent.ops += gathered.ops;
        sent.messages += gathered.messages;
        let runs = gathered.runs;
        let compressed = match runs.len() {
            0..=AT_ONCE_BYTES_MAX => chunk::compress(&runs)?,
            _ => tokio::task::spawn_blocking(move || chunk::compress(&runs)).await.map_err(|_| closed())??,
        };
        bytes += compressed.len() as u64;
        frames.send(Frame::Chunk(compressed)).await.map_err(|_| closed())?;
    }
    frames.send(Frame::Done).await.map_err(|_| closed())?;
    Ok(sent)
}

/// What goes into one chunk, and what is left.
struct Gathered {
    runs: Vec<u8>,
    ops: u64,
    messages: u64,
    /// The last is the next.
    rest: Vec<Lacking>,
}

fn gather(store: &Store, mut rest: Vec<Lacking>) -> Result<Gathered, StoreError> {
    let (mut runs, mut ops, mut messages) = (Vec::new(), 0, 0);
    while let Some(part) = rest.last_mut() {
        let run = store.run_after(part.log, part.first)?;
        // What doesn't end where it is allowed to can't be divided: its signature is at its end.
        let Some(run) = run.filter(|run| run.next() <= part.end) else {
            rest.pop();
            continue;
        };
        ops += run.ops.len() as u64;
        messages += run.ops.iter().filter(|op| op.head.kind == Body::MESSAGE_KIND && op.body.is_some()).count() as u64;
        part.first = run.next();
        if part.first >= part.end {
            rest.pop();
        }
        runs.extend(run.to_bytes());
        if runs.len() >= chunk::CHUNK_BYTES {
            break;
        }
    }
    Ok(Gathered { runs, ops, messages, rest })
}

type Runs = Vec<Result<CheckedRun, RunError>>;

/// Takes in what came, in one transaction all chunks that are there.
async fn take(
    side: &Side,
    peer: Did,
    mut chunks: mpsc::Receiver<Runs>,
    acks: &watch::Sender<u64>,
    report: &mut Report,
    sessions: &mut BTreeSet<SessionId>,
) -> Result<Taken, SyncError> {
    let mut taken = Taken::default();
    let mut seen = 0;
    while let Some(mut runs) = chunks.recv().await {
        for _ in 0..CHUNKS_WAITING_MAX {
            let Ok(more) = chunks.try_recv() else { break };
            runs.extend(more);
        }
        let mut good = Vec::with_capacity(runs.len());
        for run in runs {
            match run {
                Ok(run) => good.push(run),
                Err(error) => note_refusal(report, &Refusal::Run(error)),
            }
        }
        let (me, now) = (side.me, side.clock.now());
        let imported = side.store.call(move |store, _| {
            let taken = store.import_runs(&good, me, now)?;
            Ok::<_, StoreError>((good, taken))
        });
        let (runs, outcomes) = imported.await??;
        let mut has_devices = false;
        for (run, outcome) in runs.iter().zip(outcomes) {
            seen += run.run().ops.len() as u64;
            match outcome {
                Ok(import) => {
                    has_devices |= import.has_devices;
                    count(run, import, &mut taken, report, sessions);
                }
                Err(refusal) => {
                    taken.has_strangers |= refusal == Refusal::Stranger;
                    if refusal == Refusal::Forked && !report.forked.contains(&run.run().log) {
                        report.forked.push(run.run().log);
                    }
                    note_refusal(report, &refusal);
                }
            }
        }
        if has_devices {
            renew_gate(side, peer).await?;
        }
        acks.send_replace(seen);
    }
    Ok(taken)
}

fn count(run: &CheckedRun, import: Import, taken: &mut Taken, report: &mut Report, sessions: &mut BTreeSet<SessionId>) {
    taken.ops += import.ops as u64;
    taken.has_new_epoch |= import.has_new_epoch;
    report.has_new_epoch |= import.has_new_epoch;
    report.received.ops += import.ops as u64;
    report.received.messages += import.messages as u64;
    // What was known already comes first.
    let new = run.bodies().iter().rev().take(import.ops).flatten();
    sessions.extend(new.filter_map(Body::session));
    report.sessions = sessions.len() as u64;
}

fn note_refusal(report: &mut Report, refusal: &Refusal) {
    *report.refused.entry(refusal.to_string()).or_default() += 1;
}

/// Lets in who is linked now, and nobody else; whoever was unlinked is cut off, be it the other side of this exchange.
async fn renew_gate(side: &Side, peer: Did) -> Result<(), SyncError> {
    let me = side.me;
    let linked = side.store.call(move |store, _| LinkedDrives::read(store, me)).await?;
    let linked: Vec<Did> = linked.map_err(SyncError::Peer)?.iter().map(|drive| drive.did).collect();
    side.gate.set(&linked);
    if linked.contains(&peer) { Ok(()) } else { Err(SyncError::NotLinked) }
}

/// Writes what is to be sent, and between that what was taken in: the latter never waits for the former.
async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    mut frames: mpsc::Receiver<Frame>,
    mut acks: watch::Receiver<u64>,
) -> Result<u64, SyncError> {
    let mut bytes = 0;
    let mut has_acks = true;
    loop {
        let frame = tokio::select! {
            biased;
            changed = acks.changed(), if has_acks => {
                has_acks = changed.is_ok();
                if !has_acks {
                    continue;
                }
                Frame::Ack { ops: *acks.borrow_and_update() }
            }
            frame = frames.recv() => match frame {
                Some(frame) => frame,
                None => return Ok(bytes),
            },
        };
        bytes += frame::write(writer, frame).await?;
    }
}

/// Reads a round to its end, and checks what came. Gives how many bytes that were, and whether the other side wants another.
async fn read_all(
    side: &Side,
    reader: &mut (impl AsyncRead + Unpin),
    chunks: mpsc::Sender<Runs>,
    progress: &watch::Sender<Progress>,
) -> Result<(u64, bool), SyncError> {
    let mut bytes = 0;
    let mut chunks = Some(chunks);
    loop {
        let (frame, length) = frame::read(reader).await?;
        bytes += length;
        if bytes > ROUND_BYTES + 2 * chunk::CHUNK_BYTES_MAX as u64 {
            return Err(SyncError::Malformed { what: "more comes in a round than there may be" });
        }
        match (frame, &chunks) {
            (Frame::Chunk(compressed), Some(to_take)) => {
                let now = side.clock.now();
                let runs = match compressed.len() {
                    0..=AT_ONCE_BYTES_MAX => chunk::read(&compressed, now)?,
                    _ => tokio::task::spawn_blocking(move || chunk::read(&compressed, now))
                        .await
                        .map_err(|_| closed())??,
                };
                if runs.is_empty() {
                    return Err(SyncError::Malformed { what: "a chunk is empty" });
                }
                let ops: usize = runs.iter().flatten().map(|run| run.run().ops.len()).sum();
                progress.send_modify(|progress| progress.received += ops as u64);
                to_take.send(runs).await.map_err(|_| closed())?;
            }
            (Frame::Done, Some(_)) => chunks = None,
            (Frame::Ack { ops }, _) => progress.send_modify(|progress| progress.sent = ops.min(progress.to_send)),
            (Frame::Outcome { again }, None) => return Ok((bytes, again)),
            _ => return Err(unexpected()),
        }
    }
}

/// Tells the watcher how far it is, until it is over.
async fn tell(side: &Side, mut progress: watch::Receiver<Progress>) {
    loop {
        let now = *progress.borrow_and_update();
        side.watcher.progress(&now);
        if progress.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests;
