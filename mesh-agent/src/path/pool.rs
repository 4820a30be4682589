//! Upstream connections of one worker that wait for their next request.
//!
//! Key: source workload, endpoint, address. The source, because a connection is a socket of its namespace and
//! carries its identity; the endpoint, because the kernel counts the connection on it.
//!
//! Invariants: bounded per key and in all; nothing older than the idle limit; nothing to an endpoint that the
//! snapshot no longer serves, nothing of a workload that has left. An overflow drops the connection, which
//! costs a new one later. Inbound connections are not pooled at all: the application sees one client on each.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use mesh_core::snapshot::Snapshot;

use super::hash::Quick;
use super::link::Link;

/// Who is connected to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Source workload.
    pub source: u32,
    /// Service that was called; 0: none.
    pub service: u32,
    /// Endpoint; 0: an address outside the snapshot.
    pub endpoint: u32,
    /// Where it is connected.
    pub address: SocketAddr,
    /// The workload at the other end of its tunnel; 0: there is none. Its source may do without ([`is_plain`]).
    pub tunnel: u32,
    /// How TLS is spoken with it, by number; 0: not at all.
    pub origination: u32,
}

struct Idle {
    link: Rc<Link>,
    since: u64,
}

/// The idle connections of one worker.
pub struct Upstreams {
    waiting: RefCell<HashMap<PoolKey, Vec<Idle>, BuildHasherDefault<Quick>>>,
    total: Cell<usize>,
    per_key: usize,
    at_most: usize,
}

impl Upstreams {
    /// A pool that holds at most `per_key` connections of one key and `at_most` in all.
    pub fn new(per_key: usize, at_most: usize) -> Self {
        Self { waiting: RefCell::default(), total: Cell::new(0), per_key, at_most }
    }

    /// The connection used last that still works.
    pub fn take(&self, key: &PoolKey) -> Option<Rc<Link>> {
        let mut idle = self.waiting.borrow_mut();
        let list = idle.get_mut(key)?;
        while let Some(entry) = list.pop() {
            self.total.set(self.total.get() - 1);
            if entry.link.usable() {
                return Some(entry.link);
            }
        }
        None
    }

    /// Keeps a connection; over a bound it is closed instead.
    pub fn put(&self, key: PoolKey, link: Rc<Link>, now: u64) {
        link.own(None);
        if self.total.get() >= self.at_most {
            return;
        }
        let mut idle = self.waiting.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() < self.per_key {
            list.push(Idle { link, since: now });
            self.total.set(self.total.get() + 1);
        }
    }

    /// Drops what is too old, what its peer has closed, and what a changed snapshot no longer serves.
    pub fn sweep(&self, now: u64, limit: Duration, changed: Option<&Snapshot>) {
        let oldest = now.saturating_sub(limit.as_millis() as u64);
        self.retain(|key, entry| {
            entry.since >= oldest
                && entry.link.usable()
                && changed
                    .is_none_or(|snapshot| serves(snapshot, key) && is_as_wanted(snapshot, key, &entry.link))
        });
    }

    /// Drops the connections of a workload.
    pub fn forget(&self, workload: u32) {
        self.retain(|key, _| key.source != workload);
    }

    /// How many there are.
    pub fn idle(&self) -> usize {
        self.total.get()
    }

    fn retain(&self, mut keep: impl FnMut(&PoolKey, &Idle) -> bool) {
        let mut total = 0;
        self.waiting.borrow_mut().retain(|key, list| {
            list.retain(|entry| keep(key, entry));
            total += list.len();
            !list.is_empty()
        });
        self.total.set(total);
    }
}

/// Does a workload open none but plain connections?
pub fn is_plain(snapshot: &Snapshot, source: u32) -> bool {
    let caller = snapshot.workloads.get(&source);
    caller.and_then(|caller| caller.transport.as_ref()).is_some_and(|transport| transport.plain)
}

/// Is a connection plain, or in a tunnel, as its source wants it by now?
fn is_as_wanted(snapshot: &Snapshot, key: &PoolKey, link: &Link) -> bool {
    key.tunnel == 0 || link.stream().tcp().is_some() == is_plain(snapshot, key.source)
}

/// How TLS is spoken with the endpoints of a service, by number; 0: not at all.
pub fn number(snapshot: &Snapshot, service: u32) -> u32 {
    if snapshot.originations.is_empty() {
        return 0;
    }
    snapshot.originations.get(&service).map_or(0, |origination| origination.number)
}

/// Does the snapshot still send new requests there?
pub fn serves(snapshot: &Snapshot, key: &PoolKey) -> bool {
    if key.origination != number(snapshot, key.service) {
        return false;
    }
    if key.endpoint == 0 {
        return true;
    }
    snapshot.services.get(&key.service).is_some_and(|service| {
        service.serving().iter().any(|e| {
            e.id == key.endpoint
                && e.tunnel == (key.tunnel != 0)
                && [e.address(false), e.address(true)].contains(&Some(key.address))
        })
    })
}
