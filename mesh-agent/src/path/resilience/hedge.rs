//! Second requests: when one is sent, whether one more may be, and what answers have taken.
//!
//! A request whose service's policy hedges carries a [`Seed`] from its admission on. Its exchange waits as long as that
//! says, [`Seed::sow`]s a second account at another endpoint that has room, and lets the first answer count.
//!
//! Invariants: no second request waits in a line or goes where the first went; its place among the second ones is given
//! back when it ends, however it ends; an answer's time is counted once a request, from its first sending on.
//! Not here: the two exchanges (http1, http2), the numbers (mesh-core's hedge).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_core::resilience::answer::Answer;
use mesh_core::resilience::hedge::{BUCKETS, Hedge, MANY, When, admits, bucket, percentile};
use mesh_core::resilience::sticky::Wanted;
use mesh_core::snapshot::Service;

use super::super::intercept::Hop;
use super::super::routing::{Account, Caller};
use super::super::stats::one;
use super::Ticket;
use super::state::{ServiceState, Table};
use crate::sys::monotonic_ns;

/// What a service's answers took, and its second requests that are under way.
#[derive(Debug, Default)]
pub struct Hedging {
    second: AtomicU32,
    counted: AtomicU32,
    times: OnceLock<Box<[AtomicU32]>>,
}

impl Hedging {
    /// An answer has taken so long.
    pub fn note(&self, took: Duration) {
        let times = self.times.get_or_init(|| (0..BUCKETS).map(|_| AtomicU32::new(0)).collect());
        times[bucket(took)].fetch_add(1, Relaxed);
        if self.counted.fetch_add(1, Relaxed) + 1 < MANY {
            return;
        }
        // Workers that do this at the same time forget more than half: no harm.
        self.counted.store(MANY / 2, Relaxed);
        for time in times {
            time.store(time.load(Relaxed) / 2, Relaxed);
        }
    }

    /// How long a request waits for its answer before another is sent; `None`: nothing is known yet.
    pub fn after(&self, hedge: &Hedge) -> Option<Duration> {
        match hedge.when {
            When::After(time) => Some(time),
            When::Percentile(percent) => {
                percentile(self.times.get()?.iter().map(|time| time.load(Relaxed)), percent)
            }
        }
    }
}

/// A place among the second requests of a service.
pub struct Second(Arc<ServiceState>);

impl Second {
    fn enter(state: &Arc<ServiceState>, hedge: &Hedge) -> Option<Self> {
        let active = state.gate.active();
        let more = |second: u32| admits(hedge, active, second).then_some(second + 1);
        state.hedging.second.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Self(state.clone()))
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.0.hedging.second.fetch_sub(1, Relaxed);
    }
}

/// What a second request comes from.
pub struct Seed {
    /// When it is sent.
    pub after: Duration,
    hedge: Hedge,
    table: Rc<Table>,
    service: Arc<Service>,
    first: u32,
    begun: Instant,
    route: u32,
    wanted: Wanted,
    sown: Cell<bool>,
}

impl Seed {
    /// Has a second request been sent?
    pub fn is_sown(&self) -> bool {
        self.sown.get()
    }

    /// The second request's account, where it goes, and its place; `None`: it may not be sent, or there is nowhere to.
    pub fn sow(&self, caller: &Caller<'_>) -> Option<(Account, Hop, Second)> {
        let place = Second::enter(&self.table.shared, &self.hedge)?;
        let mut hop = caller.other(&self.service, &[self.first])?;
        let asked = self.service.resilience.as_ref()?;
        let mut ticket = Box::new(Ticket::second(caller.worker, &self.service, asked));
        if hop.endpoint == self.first {
            return None;
        }
        let taken = ticket.take(caller, &self.service, &mut hop, false);
        // It may be another one that had room.
        if !taken.is_ok_and(|taken| taken) || hop.endpoint == self.first {
            return None;
        }
        one(&caller.worker.shared.counters.hedged);
        self.sown.set(true);
        let (begun, route, wanted, service) = (self.begun, self.route, self.wanted, self.service.id);
        let account = Account { begun, route, wanted, service, ticket: Some(ticket), ..Account::begun_now() };
        Some((account, hop, place))
    }
}

impl Account {
    /// What a second request comes from, where the service's policy hedges.
    pub fn seed(&self, service: &Arc<Service>, first: &Hop) -> Option<Seed> {
        let ticket = self.ticket.as_ref()?;
        let hedge = ticket.hedge()?;
        let table = ticket.table().clone();
        Some(Seed {
            after: table.shared.hedging.after(&hedge)?,
            hedge,
            table,
            service: service.clone(),
            first: first.endpoint,
            begun: self.begun,
            route: self.route,
            wanted: self.wanted,
            sown: Cell::new(false),
        })
    }

    /// The second request's answer came first: it is this one's.
    pub fn overtaken(&mut self, caller: &Caller<'_>, second: Account) {
        one(&caller.worker.shared.counters.hedges_won);
        self.answered(monotonic_ns());
        self.settle(|| Answer::Nothing);
        self.ticket = second.ticket;
        (self.endpoint, self.address) = (second.endpoint, second.address);
        (self.status, self.reason, self.grpc_status) = (second.status, second.reason, second.grpc_status);
        (self.received, self.sent) = (second.received, second.sent);
        self.tries = self.tries.saturating_add(second.tries);
    }
}
