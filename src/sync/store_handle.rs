//! The store from async code: it belongs to one thread, which does one job after the other for all exchanges.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::SyncError;
use crate::identity::Identity;
use crate::store::Store;

/// For how long there is nothing to do before something is done that can wait: longer than an exchange waits for the other side.
const IDLE: Duration = Duration::from_millis(50);

type Job = Box<dyn FnOnce(&Store, &Identity) + Send>;

/// Gives jobs to the thread that has the store. It serves until all handles are dropped.
#[derive(Clone)]
pub(super) struct StoreHandle(mpsc::Sender<Job>);

/// The jobs of a store.
pub(super) struct Jobs(mpsc::Receiver<Job>);

pub(super) fn store_handle() -> (StoreHandle, Jobs) {
    let (sender, receiver) = mpsc::channel();
    (StoreHandle(sender), Jobs(receiver))
}

impl StoreHandle {
    /// Has `job` done, and gives what came of it.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Store, &Identity) -> T + Send + 'static,
    ) -> Result<T, SyncError> {
        let gone = || SyncError::Lost("the store was closed".into());
        let (done, outcome) = oneshot::channel();
        // Who asked may have given up meanwhile.
        let job: Job = Box::new(move |store, identity| drop(done.send(job(store, identity))));
        self.0.send(job).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())
    }
}

impl Jobs {
    /// Does the jobs that are there, and waits a moment for one: for tests, in which one thread has several stores.
    #[cfg(test)]
    pub(super) fn serve_waiting(&self, store: &Store, identity: &Identity) {
        while let Ok(job) = self.0.recv_timeout(Duration::from_micros(50)) {
            job(store, identity);
        }
    }

    /// Does all jobs until nobody can give one any more. Where there is none for a while, what came is made searchable.
    pub(super) fn serve(&self, store: &Store, identity: &Identity) {
        let mut waits = false;
        loop {
            let job = match waits {
                true => self.0.recv_timeout(IDLE),
                false => self.0.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match job {
                Ok(job) => {
                    job(store, identity);
                    waits = true;
                }
                // Whoever searches tries it again, and hears of what is wrong.
                Err(RecvTimeoutError::Timeout) => waits = store.index_some().unwrap_or(false),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
