//! One thread owns the engine. It loads at once; requests are answered one after another over a bounded queue.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::models::LoadProgress;
use super::prefix::PrefixState;
use super::reasoning::Piece;
use super::{Completion, Engine, EngineError, Fit, Request};
use crate::digest::Sha256Digest;

/// How many pieces wait at most for a slow reader; then generation waits too.
const PIECES_MAX: usize = 256;

/// What a reply consists of: pieces, then one of the others.
#[derive(Debug)]
pub enum Event {
    /// Some text.
    Piece(Piece),
    /// The whole answer; after a cancellation, what there is of it.
    Done(Completion),
    /// There is no answer.
    Failed(EngineError),
}

/// What waiting for a while for the next event came to.
#[derive(Debug)]
pub enum Next {
    /// An event came.
    Event(Event),
    /// Nothing came in time.
    Waiting,
    /// The reply is over.
    End,
}

/// Where loading stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadState {
    /// Under way.
    Loading,
    /// Done.
    Ready,
    /// Over without success, or the thread is gone; the next request says why.
    Failed,
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadStatus {
    /// Bytes read and verified so far.
    pub bytes_read: u64,
    /// Bytes to read; 0 while that isn't known.
    pub bytes_total: u64,
    /// Where it stands.
    pub state: LoadState,
}

/// The engine's thread. Dropping it ends loading or generation within one step and joins the thread.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Whose tokens they are, and the tokens that conversations open with.
type Opening = (Sha256Digest, Vec<u32>);

#[derive(Debug)]
enum Job {
    Generate(Box<Request>, Ended),
    Fit(Box<Request>, Sender<Result<Fit, EngineError>>),
    CountTokens(String, Sender<Result<usize, EngineError>>),
    State(Box<Request>, Sender<Result<Option<PrefixState>, EngineError>>),
    TakeUp(Box<PrefixState>),
    Opening(Box<Request>, Sender<Result<Option<Opening>, EngineError>>),
}

#[derive(Debug, Default)]
struct Shared {
    is_stopping: AtomicBool,
    bytes_read: AtomicU64,
    bytes_total: AtomicU64,
    state: AtomicU8,
    /// The queue that the thread may be waiting on.
    current: Mutex<Option<Arc<Queue>>>,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    fn set_state(&self, state: LoadState) {
        self.state.store(state as u8, Ordering::Release);
    }
}

impl Worker {
    /// Starts the thread, which begins with `load`, such as
    /// `move |progress| Engine::load(&folder, &options, progress)`. Returns at once.
    pub fn spawn<L>(load: L) -> Self
    where
        L: FnOnce(&mut dyn FnMut(LoadProgress) -> ControlFlow<()>) -> Result<Engine, EngineError> + Send + 'static,
    {
        let (jobs, queue) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let in_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || run(load, &queue, &in_thread));
        if thread.is_err() {
            // Without a thread nobody has the queue's other end: each request says that the engine has stopped.
            shared.set_state(LoadState::Failed);
        }
        Self { jobs: Some(jobs), shared, thread: thread.ok() }
    }

    /// How far loading is.
    pub fn load_progress(&self) -> LoadStatus {
        LoadStatus {
            state: match self.shared.state.load(Ordering::Acquire) {
                state if state == LoadState::Loading as u8 => LoadState::Loading,
                state if state == LoadState::Ready as u8 => LoadState::Ready,
                _ => LoadState::Failed,
            },
            bytes_read: self.shared.bytes_read.load(Ordering::Acquire),
            bytes_total: self.shared.bytes_total.load(Ordering::Acquire),
        }
    }

    /// Asks for an answer, which begins once the model is loaded and earlier requests are answered.
    pub fn generate(&self, request: Request) -> Reply {
        let queue = Arc::new(Queue::default());
        // Where the thread is gone, the job is dropped, and with it `Ended` closes the reply.
        self.send(Job::Generate(Box::new(request), Ended(Arc::clone(&queue))));
        Reply { queue }
    }

    /// Says what of a request's messages would be in the context. Waits for the engine.
    ///
    /// # Errors
    /// As [`Engine::fit`]; a load that failed.
    pub fn fit(&self, request: Request) -> Result<Fit, EngineError> {
        let (answer, answered) = mpsc::channel();
        self.send(Job::Fit(Box::new(request), answer));
        answered.recv().unwrap_or(Err(EngineError::Stopped))
    }

    /// Counts the tokens of a text on its own. Waits for the engine.
    ///
    /// # Errors
    /// As [`Engine::count_tokens`]; a load that failed.
    pub fn count_tokens(&self, text: &str) -> Result<usize, EngineError> {
        let (answer, answered) = mpsc::channel();
        self.send(Job::CountTokens(text.to_owned(), answer));
        answered.recv().unwrap_or(Err(EngineError::Stopped))
    }

    /// As [`Engine::state`]. Waits for the engine.
    ///
    /// # Errors
    /// As [`Engine::state`]; a load that failed.
    pub fn state(&self, conversation: Request) -> Result<Option<PrefixState>, EngineError> {
        let (answer, answered) = mpsc::channel();
        self.send(Job::State(Box::new(conversation), answer));
        answered.recv().unwrap_or(Err(EngineError::Stopped))
    }

    /// As [`Engine::take_up`], before the next request. Returns at once.
    pub fn take_up(&self, state: PrefixState) {
        self.send(Job::TakeUp(Box::new(state)));
    }

    /// As [`Engine::opening`], with [`Engine::origin`]; `None` where nothing vouches for the weights. Waits for the engine.
    ///
    /// # Errors
    /// As [`Engine::opening`]; a load that failed.
    pub fn opening(&self, request: Request) -> Result<Option<Opening>, EngineError> {
        let (answer, answered) = mpsc::channel();
        self.send(Job::Opening(Box::new(request), answer));
        answered.recv().unwrap_or(Err(EngineError::Stopped))
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A job that can't be sent is dropped: whoever waits for its answer sees that.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.jobs = None;
        if let Some(queue) = &*locked(&self.shared.current) {
            queue.cancel();
        }
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was told to whoever waited for an answer.
            let _ = thread.join();
        }
    }
}

/// An answer while it is made. An iterator over its events. Dropping it ends generation within one token.
#[derive(Debug)]
pub struct Reply {
    queue: Arc<Queue>,
}

impl Reply {
    /// Ends generation within one token. What there is comes as [`Event::Done`].
    pub fn cancel(&self) {
        self.queue.cancel();
    }

    /// Makes something that another thread can cancel this reply with.
    pub fn canceller(&self) -> Canceller {
        Canceller { queue: Arc::clone(&self.queue) }
    }

    /// Waits at most `timeout` for the next event.
    pub fn next_within(&mut self, timeout: Duration) -> Next {
        self.queue.next(Instant::now().checked_add(timeout))
    }
}

impl Iterator for Reply {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        match self.queue.next(None) {
            Next::Event(event) => Some(event),
            Next::Waiting | Next::End => None,
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.queue.cancel();
    }
}

/// Cancels a reply from anywhere.
#[derive(Clone, Debug)]
pub struct Canceller {
    queue: Arc<Queue>,
}

impl Canceller {
    /// Ends generation within one token.
    pub fn cancel(&self) {
        self.queue.cancel();
    }
}

/// The events between the thread and the reader of one reply.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    is_cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct QueueState {
    events: VecDeque<Event>,
    has_ended: bool,
}

impl Queue {
    fn cancel(&self) {
        // Under the lock, so that a writer that has just found it unset is not missed by the wake-up.
        let _state = locked(&self.state);
        self.is_cancelled.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    /// Adds a piece, after waiting for room.
    fn push(&self, piece: Piece) -> ControlFlow<()> {
        let is_full = |state: &mut QueueState| state.events.len() >= PIECES_MAX && !self.is_cancelled();
        let waited = self.changed.wait_while(locked(&self.state), is_full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            return ControlFlow::Break(());
        }
        state.events.push_back(Event::Piece(piece));
        self.changed.notify_all();
        ControlFlow::Continue(())
    }

    /// Adds the last event, for which there is always room. Only the first one counts.
    fn end(&self, event: Event) {
        let mut state = locked(&self.state);
        if !state.has_ended {
            state.has_ended = true;
            state.events.push_back(event);
            self.changed.notify_all();
        }
    }

    fn next(&self, deadline: Option<Instant>) -> Next {
        let mut state = locked(&self.state);
        loop {
            if let Some(event) = state.events.pop_front() {
                self.changed.notify_all();
                return Next::Event(event);
            }
            if state.has_ended {
                return Next::End;
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Next::Waiting,
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// The thread's hold on a queue: when it is dropped without a last event, the reader is told.
#[derive(Debug)]
struct Ended(Arc<Queue>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end(Event::Failed(EngineError::Stopped));
    }
}

/// Says, when the thread ends in whatever way, that there is no engine any more.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set_state(LoadState::Failed);
    }
}

/// Nothing that is locked here can be left half changed, so a poisoned lock is as good as another.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run<L>(load: L, jobs: &Receiver<Job>, shared: &Shared)
where
    L: FnOnce(&mut dyn FnMut(LoadProgress) -> ControlFlow<()>) -> Result<Engine, EngineError>,
{
    // Dropped before `jobs`, so that whoever learns that the thread is gone finds the state set.
    let _running = Running(shared);
    let mut progress = |progress: LoadProgress| {
        shared.bytes_total.store(progress.bytes_total, Ordering::Release);
        shared.bytes_read.store(progress.bytes_read, Ordering::Release);
        if shared.is_stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut engine = load(&mut progress).map_err(Arc::new);
    shared.set_state(if engine.is_ok() { LoadState::Ready } else { LoadState::Failed });
    while let Ok(job) = jobs.recv() {
        if shared.is_stopping() {
            return;
        }
        let engine = engine.as_mut().map_err(|error| EngineError::Load(Arc::clone(error)));
        match job {
            Job::Generate(request, ended) => {
                *locked(&shared.current) = Some(Arc::clone(&ended.0));
                ended.0.end(match engine.and_then(|engine| answer(engine, &request, &ended.0, shared)) {
                    Ok(completion) => Event::Done(completion),
                    Err(error) => Event::Failed(error),
                });
                *locked(&shared.current) = None;
            }
            // Where the asker is gone, the answer is of no use.
            Job::Fit(request, asker) => drop(asker.send(engine.and_then(|engine| engine.fit(&request)))),
            Job::CountTokens(text, asker) => {
                drop(asker.send(engine.and_then(|engine| engine.count_tokens(&text))));
            }
            Job::State(request, asker) => drop(asker.send(engine.and_then(|engine| engine.state(&request)))),
            Job::TakeUp(state) => {
                if let Ok(engine) = engine {
                    engine.take_up(&state);
                }
            }
            Job::Opening(request, asker) => drop(asker.send(engine.and_then(|engine| {
                let Some(origin) = engine.origin() else { return Ok(None) };
                Ok(Some((origin, engine.opening(&request)?)))
            }))),
        }
    }
}

fn answer(engine: &mut Engine, request: &Request, queue: &Queue, shared: &Shared) -> Result<Completion, EngineError> {
    let cancelled = || queue.is_cancelled() || shared.is_stopping();
    engine.generate_until(request, &cancelled, &mut |piece| {
        // Asked again after the queue is this thread's current one: the worker may have been dropped just before.
        if shared.is_stopping() { ControlFlow::Break(()) } else { queue.push(piece) }
    })
}

#[cfg(test)]
mod tests;
