//! One thread writes: it takes what queued up and commits it together, so that many writers share one fsync.
//!
//! `RedbStore::transact` ─bounded queue─▶ **writer** ─commit─▶ hooks, then answers
//!
//! Invariants: nobody is answered before the commit that holds (or read) its transaction is durable; hooks have
//! run when a writer is answered; a batch that can't be committed fails whole.
//! Not here: what a transaction does ([`super::tables`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use mesh_registry::store::{Hook, StoreError, Txn};
use parking_lot::Mutex;
use redb::{Database, Durability};

use super::tables::{Tables, failed};

/// Most requests that one commit takes.
const BATCH_MAX: usize = 256;
/// Commits whose duration is remembered.
const TIMINGS_KEPT: usize = 4096;

/// What is asked of the writer.
pub(super) enum Ask {
    /// Do this.
    Transact(Txn),
    /// Forget history up to this.
    Compact(u64),
}

/// A request and where its answer goes.
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) answer: SyncSender<Result<u64, StoreError>>,
}

/// How long commits took: the time from the last change to its being durable.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// Commits so far.
    pub commits: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Sum over all commits.
    pub total: Duration,
    /// The last of them, oldest first.
    pub recent: VecDeque<Duration>,
}

impl Timings {
    pub(super) fn add(&mut self, took: Duration, transactions: usize) {
        self.commits += 1;
        self.transactions += transactions as u64;
        self.total += took;
        if self.recent.len() == TIMINGS_KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
    }

    /// The duration that this share (0.0..=1.0) of the recent commits stayed within.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted: Vec<Duration> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
    }
}

/// What the writer shares with the store.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) hooks: Mutex<Vec<Hook>>,
    pub(super) timings: Mutex<Timings>,
}

/// The writer thread's state.
pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) shared: Arc<Shared>,
    pub(super) durable: bool,
    /// Revisions of history that are kept.
    pub(super) history: u64,
    /// Bytes of history that are kept.
    pub(super) history_bytes: u64,
}

impl Writer {
    /// Serves until every sender is gone.
    pub(super) fn run(self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut asks = vec![first.ask];
            let mut waiting = vec![first.answer];
            while asks.len() < BATCH_MAX
                && let Ok(next) = requests.try_recv()
            {
                asks.push(next.ask);
                waiting.push(next.answer);
            }
            let count = asks.len();
            let answers = self.commit(asks).unwrap_or_else(|error| vec![Err(error); count]);
            for (to, answer) in waiting.into_iter().zip(answers) {
                // Whoever asked may be gone; what was written stays written.
                let _ = to.send(answer);
            }
        }
    }

    fn commit(&self, asks: Vec<Ask>) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        let begin = |cause: &dyn std::fmt::Display| failed("begin a write", cause);
        let mut txn = self.database.begin_write().map_err(|cause| begin(&cause))?;
        if !self.durable {
            txn.set_durability(Durability::None).map_err(|cause| begin(&cause))?;
        }
        let mut tables = Tables::open(&txn).map_err(|cause| begin(&cause))?;
        let before = tables.revision;
        let transactions = asks.len();
        let mut answers = Vec::with_capacity(transactions);
        for ask in asks {
            let answer = match ask {
                Ask::Transact(txn) => tables.transact(txn).map_err(|cause| failed("write", cause))?,
                Ask::Compact(upto) if upto > tables.revision => {
                    Err(StoreError::Future { asked: upto, newest: tables.revision })
                }
                Ask::Compact(upto) => {
                    tables.forget(upto).map_err(|cause| failed("forget history", cause))?;
                    Ok(tables.revision)
                }
            };
            answers.push(answer);
        }
        let revision = tables.revision;
        let forgotten = tables.forget_beyond(self.history, self.history_bytes);
        forgotten.map_err(|cause| failed("forget history", cause))?;
        drop(tables);
        let started = Instant::now();
        txn.commit().map_err(|cause| failed("commit a write; is the disk full?", cause))?;
        self.shared.timings.lock().add(started.elapsed(), transactions);
        if revision > before {
            self.shared.hooks.lock().iter().for_each(|hook| hook(revision));
        }
        Ok(answers)
    }
}
