//! Threads that run the same closure over parts of one piece of work, started once a model.
//!
//! A layer has about five such pieces and each takes microseconds, so a worker spins briefly for the next one before it
//! sleeps. Spinning for long would take the core from the thread that prepares the work when the machine is busy.
//!
//! Where the machine is busy a worker may come late: the calling thread then does the work alone and shuts the gate, and
//! waits only for workers that are inside. Waiting for all of them costs a time slice a piece, a hundred times a token.

#![expect(unsafe_code, reason = "kernels need raw vectors, and threads that share them")]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

use super::simd::prefetch;

/// How many times a thread looks before it sleeps: some 20 µs.
const SPINS: u32 = 6_000;

/// The bit of the gate that lets workers in; the bits below count them.
const OPEN: usize = 1 << 16;

/// The most threads a pool has, whatever is asked for.
pub(super) const THREADS_MAX: usize = 64;

/// One piece of work: the closure's address with its lifetime erased, and how it is divided.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(Range<usize>) + Sync),
    items: usize,
    chunk: usize,
}

// SAFETY: the closure is Sync, and `run` keeps it alive until every worker is done with it.
unsafe impl Send for Job {}

/// On a cache line of its own: threads that count in the same line wait for each other.
#[derive(Default)]
#[repr(align(64))]
struct Cursor(AtomicUsize);

/// Parts of memory, address and length, that the next job reads from the first to the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead(pub(super) [(usize, usize); 4]);

/// How much of its span a worker asks for while it waits: what it gets done between two jobs, and its cache has room for.
const AHEAD_BYTES_MAX: usize = 256 * 1024;

struct Shared {
    job: Mutex<Option<Job>>,
    /// Counts the jobs; a worker waits for it to change.
    epoch: AtomicU64,
    /// For each thread the first chunk of its span that nobody has taken.
    next: Vec<Cursor>,
    /// What the next job will read.
    ahead: Mutex<Ahead>,
    /// [`OPEN`] while workers may begin with the job, plus how many are inside.
    gate: AtomicUsize,
    /// A worker panicked: the job's result is worthless.
    failed: AtomicBool,
    stop: AtomicBool,
}

/// A pool of threads; the calling thread works too.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            epoch: AtomicU64::new(0),
            next: (0..threads.clamp(1, THREADS_MAX)).map(|_| Cursor::default()).collect(),
            ahead: Mutex::new(Ahead::default()),
            gate: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads.clamp(1, THREADS_MAX)).map_while(|worker_idx| {
            let shared = Arc::clone(&shared);
            // Where a thread can't be started, the pool is smaller and slower, not wrong.
            thread::Builder::new().name(format!("kernel-{worker_idx}")).spawn(move || shared.serve(worker_idx)).ok()
        });
        Self { workers: workers.collect(), shared }
    }

    /// How many threads work.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Says what the job after the next one reads: waiting workers ask for it. Wrong, it costs a little time.
    pub(super) fn look_ahead(&self, ahead: Ahead) {
        *self.shared.ahead.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = ahead;
    }

    /// Calls `work` with ranges of at most `chunk` items that together are `0..items`, on all threads, and waits.
    pub(super) fn run(&mut self, items: usize, chunk: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        let chunk = chunk.max(1);
        if self.workers.is_empty() || items <= chunk {
            (0..items).step_by(chunk).for_each(|start| work(start..(start + chunk).min(items)));
            return;
        }
        let work: *const (dyn Fn(Range<usize>) + Sync + '_) = work;
        // SAFETY: only the lifetime changes; no worker uses the closure once the gate is 0, which is waited for below.
        let work: *const (dyn Fn(Range<usize>) + Sync) = unsafe { std::mem::transmute(work) };
        let job = Job { work, items, chunk };
        *self.shared.job.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(job);
        for (span, next) in self.shared.next.iter().enumerate() {
            next.0.store(self.shared.span(job, span).start, Ordering::Relaxed);
        }
        self.shared.gate.store(OPEN, Ordering::Release);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.workers.iter().for_each(|worker| worker.thread().unpark());
        // A panic here must not leave while workers use the closure.
        let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.shared.take(job, 0)));
        self.shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.shared.gate.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!self.shared.failed.load(Ordering::Relaxed), "a kernel thread panicked");
    }
}

impl Shared {
    /// The chunks that the thread `thread_idx` begins with.
    fn span(&self, job: Job, thread_idx: usize) -> Range<usize> {
        let (chunks, threads) = (job.items.div_ceil(job.chunk), self.next.len());
        chunks * thread_idx / threads..chunks * (thread_idx + 1) / threads
    }

    /// Takes chunks of the job until none is left, those of the thread's own span first: what it asked for while it waited.
    fn take(&self, job: Job, thread_idx: usize) {
        for span_idx in (thread_idx..self.next.len()).chain(0..thread_idx) {
            let end = self.span(job, span_idx).end;
            loop {
                let chunk = self.next[span_idx].0.fetch_add(1, Ordering::Relaxed);
                if chunk >= end {
                    break;
                }
                let start = chunk * job.chunk;
                // SAFETY: this thread is `run` itself or inside the gate, so `run` waits for it before the closure ends.
                unsafe { (*job.work)(start..(start + job.chunk).min(job.items)) };
            }
        }
    }

    /// Asks for the beginning of what the thread will read in the next job, until that has begun.
    fn look_ahead(&self, thread_idx: usize, seen: u64) {
        let ahead = *self.ahead.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let total: usize = ahead.0.iter().map(|(_, len)| len).sum();
        let mut skipped = total * thread_idx / self.next.len();
        let mut left = (total / self.next.len()).min(AHEAD_BYTES_MAX);
        for (address, len) in ahead.0 {
            let from = skipped.min(len);
            let to = (from + left).min(len);
            for at in (address + from..address + to).step_by(64) {
                if self.epoch.load(Ordering::Acquire) != seen {
                    return;
                }
                prefetch(at);
            }
            skipped -= from;
            left -= to - from;
        }
    }

    fn serve(&self, thread_idx: usize) {
        let mut seen = 0;
        loop {
            self.look_ahead(thread_idx, seen);
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen && !self.stop.load(Ordering::Relaxed) {
                spins += 1;
                if spins < SPINS { std::hint::spin_loop() } else { thread::park() }
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            seen = self.epoch.load(Ordering::Acquire);
            let enter = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
            if self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter).is_err() {
                continue;
            }
            // Inside, the job stays: a late worker finds the one of now, whichever woke it.
            let job = *self.job.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some(job) = job
                && std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take(job, thread_idx))).is_err()
            {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.workers.iter().map(JoinHandle::thread).for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads);
            // Asking for memory that isn't there does nothing.
            pool.look_ahead(Ahead([(64, 1 << 16), (usize::MAX >> 1, 1 << 16), (0, 0), (1, 7)]));
            for (items, chunk) in [(0, 1), (1, 1), (7, 2), (1000, 3), (5, 100)] {
                let done: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..200 {
                    pool.run(items, chunk, &|range| {
                        range.for_each(|item| {
                            done[item].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
                assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 200), "{threads} {items} {chunk}");
            }
        }
    }
}
