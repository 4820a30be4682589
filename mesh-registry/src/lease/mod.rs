//! Leases: who is still there. Deadlines live here, in memory; the store only knows which lease a registration
//! goes with.
//!
//! registry (what goes with which lease) ─▶ **Leases** ◀─ heartbeats; due leases ─▶ mesh-control revokes them
//!
//! Invariants: a lease that was just learnt of, for whatever reason, has its whole time (so a restart restarts
//! every lease); where more than 15 % of the registrations (and more than [`FEW`]) would end at once, none
//! does and [`Expiry::held`] says so: a control plane that heard of nobody is more likely cut off than everybody
//! is gone.
//! Not here: durable records, clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_api::resource::{Condition, Key};

use crate::source::LeaseRef;

/// As many registrations may always end at once.
pub const FEW: usize = 3;
/// Above this share of all leased registrations, expiry stops.
const SHARE_PERCENT: usize = 15;

/// All leases and what goes with them.
#[derive(Debug, Default)]
pub struct Leases {
    by_name: BTreeMap<String, Lease>,
    registrations: usize,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    /// With each whether its node said it again since its session began.
    members: BTreeMap<Key, Standing>,
    /// A session began and has not sent its first heartbeat.
    greeting: bool,
    /// When it was renewed here last; `None`: never, it is known from the store.
    heard: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Confirmed,
    /// Left over from before the session.
    Stale,
}

/// What ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Leases to revoke.
    pub due: Vec<String>,
    /// Why nothing is revoked although leases are due.
    pub held: Option<Held>,
}

/// Expiry stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Registrations whose lease is over.
    pub due: usize,
    /// All leased registrations.
    pub total: usize,
}

impl Held {
    /// As status shows it.
    pub fn condition(self) -> Condition {
        let Self { due, total } = self;
        Condition::new(
            "LeaseExpiry",
            false,
            "TooManyAtOnce",
            format!(
                "the leases of {due} of {total} registrations are over at once (more than {SHARE_PERCENT} %): they \
                 are kept; check the network between nodes and control plane, or delete the workloads"
            ),
        )
    }
}

/// How one lease stands, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand<'a> {
    /// Its name.
    pub name: &'a str,
    /// How long it lasts between heartbeats.
    pub ttl: Duration,
    /// When it ends without a heartbeat.
    pub deadline: Instant,
    /// How many registrations go with it.
    pub registrations: usize,
}

impl Leases {
    /// A registration goes with a lease. A lease that is new here gets its whole time.
    pub(crate) fn join(&mut self, lease: &LeaseRef, key: &Key, now: Instant) {
        let entry = self.by_name.entry(lease.name.clone()).or_insert_with(|| Lease {
            ttl: lease.ttl,
            deadline: now + lease.ttl,
            members: BTreeMap::new(),
            greeting: false,
            heard: None,
        });
        if entry.ttl != lease.ttl {
            entry.ttl = lease.ttl;
            entry.deadline = now + lease.ttl;
        }
        if entry.members.insert(key.clone(), Standing::Confirmed).is_none() {
            self.registrations += 1;
        }
    }

    /// A registration ended.
    pub(crate) fn leave(&mut self, lease: &str, key: &Key) {
        let Some(entry) = self.by_name.get_mut(lease) else { return };
        if entry.members.remove(key).is_some() {
            self.registrations -= 1;
        }
        if entry.members.is_empty() && !entry.greeting {
            self.by_name.remove(lease);
        }
    }

    /// A node's session began: what it registered before and does not say again until its first heartbeat
    /// is withdrawn then. Renews the lease.
    pub fn hello(&mut self, lease: &LeaseRef, now: Instant) {
        let (ttl, members) = (lease.ttl, BTreeMap::new());
        let fresh = || Lease { ttl, deadline: now, members, greeting: true, heard: None };
        let entry = self.by_name.entry(lease.name.clone()).or_insert_with(fresh);
        entry.ttl = lease.ttl;
        entry.deadline = now + lease.ttl;
        entry.heard = Some(now);
        entry.greeting = true;
        entry.members.values_mut().for_each(|standing| *standing = Standing::Stale);
    }

    /// A node said again what it registered (also when that changes nothing in the store).
    pub fn confirm(&mut self, lease: &str, key: &Key) {
        if let Some(standing) = self.by_name.get_mut(lease).and_then(|entry| entry.members.get_mut(key)) {
            *standing = Standing::Confirmed;
        }
    }

    /// Renews a lease. `None`: there is no such lease (register again); else what the session's node no longer
    /// has: withdraw it.
    pub fn heartbeat(&mut self, lease: &str, now: Instant) -> Option<Vec<Key>> {
        let entry = self.by_name.get_mut(lease)?;
        entry.deadline = now + entry.ttl;
        entry.heard = Some(now);
        let mut withdrawn = Vec::new();
        if std::mem::take(&mut entry.greeting) {
            let stale = entry.members.iter().filter(|(_, standing)| **standing == Standing::Stale);
            withdrawn.extend(stale.map(|(key, _)| key.clone()));
        }
        if entry.members.is_empty() {
            self.by_name.remove(lease);
        }
        Some(withdrawn)
    }

    /// Leases that are over. Asking does not end them: revoke them in the store.
    pub fn expire(&self, now: Instant) -> Expiry {
        let over: Vec<(&String, &Lease)> = self.by_name.iter().filter(|(_, l)| l.deadline <= now).collect();
        let due: usize = over.iter().map(|(_, lease)| lease.members.len()).sum();
        if due > FEW && due * 100 > self.registrations * SHARE_PERCENT {
            return Expiry { due: Vec::new(), held: Some(Held { due, total: self.registrations }) };
        }
        Expiry { due: over.into_iter().map(|(name, _)| name.clone()).collect(), held: None }
    }

    /// When the next lease ends without a heartbeat.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_name.values().map(|lease| lease.deadline).min()
    }

    /// All of them, for status.
    pub fn iter(&self) -> impl Iterator<Item = Stand<'_>> {
        self.by_name.iter().map(|(name, lease)| Stand {
            name,
            ttl: lease.ttl,
            deadline: lease.deadline,
            registrations: lease.members.len(),
        })
    }

    /// Every lease begins anew: after a change of leader, or when this process was stopped for a while.
    pub fn restart(&mut self, now: Instant) {
        self.by_name.values_mut().for_each(|lease| lease.deadline = now + lease.ttl);
    }

    /// Leases that were renewed here within their time, and not by [`Self::hold`].
    pub fn heard(&self, now: Instant) -> BTreeSet<String> {
        let here = |lease: &Lease| lease.heard.is_some_and(|heard| now < heard + lease.ttl);
        self.by_name.iter().filter(|(_, lease)| here(lease)).map(|(name, _)| name.clone()).collect()
    }

    /// Another replica hears of these leases: each has its whole time from now on.
    pub fn hold<'a>(&mut self, leases: impl IntoIterator<Item = &'a String>, now: Instant) {
        for name in leases {
            if let Some(lease) = self.by_name.get_mut(name) {
                lease.deadline = now + lease.ttl;
            }
        }
    }

    /// What goes with a lease.
    pub fn members(&self, lease: &str) -> BTreeSet<&Key> {
        self.by_name.get(lease).map(|entry| entry.members.keys().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
