//! A workload of this node as the proxy knows it, and what its connections hold of it.
//!
//! Invariant: what a connection takes of its workload's budget is given back when it ends, however it ends:
//! [`Admitted`] and [`Held`] do it as they drop, also while a panic unwinds.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use mesh_common::{addr, pick};
use parking_lot::Mutex;

use super::budget::{Budget, Usage};
use super::stats::one;
use super::worker::Shared;

/// The enrolled workloads, by id. Locked where one comes, goes, or is looked up that is not at hand: never for a
/// connection or a request that needs only its own.
pub type Members = Mutex<HashMap<u32, Arc<Member>>>;

/// An enrolled workload; shared by all workers.
#[derive(Debug)]
pub struct Member {
    /// Node-local workload id.
    pub workload: u32,
    /// Node-local identity id.
    pub identity: u32,
    /// Node-local id of its mesh namespace.
    pub namespace: u32,
    /// Its network namespace.
    pub netns: Arc<OwnedFd>,
    /// Own IPv4 address.
    pub addr4: Option<Ipv4Addr>,
    /// Own IPv6 address.
    pub addr6: Option<Ipv6Addr>,
    /// What it may use, as the agent was told.
    pub budget: Budget,
    /// Connections that it may have instead, as a policy says; 0: none says.
    pub ruled_connections: AtomicU32,
    /// Which of its requests are written to the access log (a `LogRule`, packed).
    pub log: AtomicU32,
    /// What it uses.
    pub usage: Usage,
}

impl Member {
    /// Is this one of its own addresses?
    pub fn is_at(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.addr4 == Some(v4),
            IpAddr::V6(v6) => self.addr6 == Some(v6),
        }
    }

    /// What it may use.
    pub fn budget(&self) -> Budget {
        match self.ruled_connections.load(Relaxed) {
            0 => self.budget,
            connections => Budget { connections, ..self.budget },
        }
    }

    /// What stands for it where its endpoint follows from who it is: the kernel's own number.
    pub fn number(&self) -> u32 {
        let own = self.addr4.map(IpAddr::V4).or(self.addr6.map(IpAddr::V6));
        own.map_or(0, |ip| pick::client(&addr::from_ip(ip)))
    }
}

#[cfg(test)]
impl Member {
    /// One that has nothing.
    pub fn for_tests() -> Arc<Self> {
        Arc::new(Self {
            workload: 7,
            identity: 0,
            namespace: 0,
            netns: Arc::new(std::fs::File::open("/proc/self/ns/net").unwrap().into()),
            addr4: None,
            addr6: None,
            budget: Budget::default(),
            ruled_connections: AtomicU32::new(0),
            log: AtomicU32::new(0),
            usage: Usage::default(),
        })
    }
}

/// The right to one connection.
pub struct Admitted {
    member: Arc<Member>,
    shared: Arc<Shared>,
}

impl Admitted {
    /// Takes one connection of the member's budget for a worker; `None`: there is none left.
    pub fn new(member: &Arc<Member>, shared: &Arc<Shared>) -> Option<Self> {
        if !member.usage.admit(&member.budget()) {
            return None;
        }
        one(&shared.counters.open);
        Some(Self { member: member.clone(), shared: shared.clone() })
    }

    /// Whose it is.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Moves it to another worker.
    pub fn move_to(&mut self, shared: &Arc<Shared>) {
        one(&shared.counters.open);
        self.shared.counters.open.fetch_sub(1, Relaxed);
        self.shared = shared.clone();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.member.usage.release();
        self.shared.counters.open.fetch_sub(1, Relaxed);
        if std::thread::panicking() {
            one(&self.shared.counters.panics);
        }
    }
}

/// The bytes that one connection holds back for slow readers.
pub struct Held {
    member: Arc<Member>,
    bytes: Cell<u64>,
}

impl Held {
    /// None yet.
    pub fn new(member: &Arc<Member>) -> Self {
        Self { member: member.clone(), bytes: Cell::new(0) }
    }

    /// It holds so many now; false: that is over the workload's budget.
    pub fn set(&self, bytes: usize) -> bool {
        let now = bytes as u64;
        let was = self.bytes.get();
        if now == was {
            return true;
        }
        if !self.member.usage.hold(&self.member.budget, was, now) {
            return false;
        }
        self.bytes.set(now);
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}
