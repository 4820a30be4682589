//! The registry: who claims which object, and the wire resources that follow.
//!
//! sources ─[`Event`]─▶ **registry** ─[`Delta`]─▶ delta xDS; conditions ─▶ REST, status
//!
//! A change costs what depends on it: a Service's change recomputes the workloads that name it or that its
//! selector matches (before or after), nothing else.
//! Invariants: the first owner that claims a name has it, and the next takes over when it lets go; the wire
//! resources are those that a registry which was told only the present claims would hold; what does not change
//! in content keeps its version and revision.
//! Not here: which membership is meant ([`resolve`]), who is found how ([`index`]), deadlines ([`crate::lease`]).

mod conflict;
mod health;
mod index;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use mesh_api::resource::{Condition, Key, Kind, Resource};
use mesh_api::wire::wire;
use sha2::{Digest, Sha256};

use crate::lease::Leases;
use crate::source::{Batch, Change, Event, LeaseRef, Owner, What};
use index::Index;

/// A resource as agents are sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireResource {
    /// Kind, namespace and name; [`Key::wire_name`] is its xDS name, [`Kind::type_url`] its type.
    pub key: Key,
    /// Hash of the content: equal contents have equal versions.
    pub version: String,
    /// Revision at which the content became this.
    pub revision: u64,
    /// The encoded message.
    pub body: Vec<u8>,
}

/// What a batch changed on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Revision since which it is so.
    pub revision: u64,
    /// New or changed.
    pub changed: Vec<Arc<WireResource>>,
    /// Gone.
    pub removed: Vec<Key>,
}

impl Delta {
    /// Whether agents have nothing to be told.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Intent or observation: one owner may have both under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Intent,
    Observed,
}

/// Somebody's version of an object.
#[derive(Clone, Debug)]
struct Claim {
    owner: Owner,
    class: Class,
    resource: Arc<Resource>,
    lease: Option<LeaseRef>,
}

/// All that is known, and what follows from it.
#[derive(Debug, Default)]
pub struct Registry {
    revision: u64,
    awaited: BTreeSet<Owner>,
    /// First come, first; never empty.
    claims: BTreeMap<Key, Vec<Claim>>,
    index: Index,
    wire: BTreeMap<Key, Arc<WireResource>>,
    leases: Leases,
}

impl Registry {
    /// An empty one that is synced when all of `sources` have said so.
    pub fn new(sources: impl IntoIterator<Item = Owner>) -> Self {
        Self { awaited: sources.into_iter().collect(), ..Self::default() }
    }

    /// Takes what a source told, and says what changes for agents.
    pub fn apply(&mut self, batch: Batch, now: Instant) -> Delta {
        self.revision = self.revision.max(batch.revision);
        let mut dirty = BTreeSet::new();
        for event in batch.events {
            self.take(event, now, &mut dirty);
        }
        self.settle(dirty)
    }

    /// Highest revision that was taken.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether every source has told all that it had: nothing may be removed from agents before.
    pub fn synced(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Wire resources of a kind, by name.
    pub fn wire(&self, kind: Kind) -> impl Iterator<Item = &Arc<WireResource>> {
        let first = Key { kind, namespace: String::new(), name: String::new() };
        self.wire.range(first..).take_while(move |(key, _)| key.kind == kind).map(|(_, resource)| resource)
    }

    /// One wire resource.
    pub fn wire_of(&self, key: &Key) -> Option<&Arc<WireResource>> {
        self.wire.get(key)
    }

    /// The object that holds a name.
    pub fn get(&self, key: &Key) -> Option<&Arc<Resource>> {
        self.holder(key).map(|claim| &claim.resource)
    }

    /// Who holds a name.
    pub fn owner(&self, key: &Key) -> Option<&Owner> {
        self.holder(key).map(|claim| &claim.owner)
    }

    /// Objects of a kind with their owners, by namespace and name.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = (&Owner, &Arc<Resource>)> {
        let first = Key { kind, namespace: String::new(), name: String::new() };
        let of_kind = self.claims.range(first..).take_while(move |(key, _)| key.kind == kind);
        of_kind.filter_map(|(_, claims)| claims.first()).map(|claim| (&claim.owner, &claim.resource))
    }

    /// The lease that a name's holder goes with.
    pub fn lease_of(&self, key: &Key) -> Option<&LeaseRef> {
        self.holder(key)?.lease.as_ref()
    }

    /// Who is still there.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Heartbeats and sessions.
    pub fn leases_mut(&mut self) -> &mut Leases {
        &mut self.leases
    }

    /// What holds of an object: references that lead nowhere, owners that disagree.
    pub fn conditions(&self, key: &Key) -> Vec<Condition> {
        let Some([holder, others @ ..]) = self.claims.get(key).map(Vec::as_slice) else { return Vec::new() };
        let mut out = self.conditions_of(&holder.resource);
        if !others.is_empty() {
            let others: Vec<&str> = others.iter().map(|claim| claim.owner.as_str()).collect();
            out.push(Condition::new(
                "Conflicted",
                true,
                "ClaimedTwice",
                format!(
                    "{key} of {} came first and stays; also claimed by {}: rename one, or remove it",
                    holder.owner,
                    others.join(", ")
                ),
            ));
        }
        out
    }

    fn holder(&self, key: &Key) -> Option<&Claim> {
        self.claims.get(key)?.first()
    }

    fn take(&mut self, event: Event, now: Instant, dirty: &mut BTreeSet<Key>) {
        let (class, change) = match event.what {
            What::Synced => {
                self.awaited.remove(&event.owner);
                return;
            }
            What::Intent(change) => (Class::Intent, change),
            What::Observed(change) => (Class::Observed, change),
        };
        let (key, upsert) = match change {
            Change::Upsert { resource, lease } => (resource.key(), Some((Arc::from(resource), lease))),
            Change::Remove(key) => (key, None),
        };
        let before = self.get(&key).cloned();
        let claims = self.claims.entry(key.clone()).or_default();
        let place = claims.iter().position(|claim| claim.owner == event.owner && claim.class == class);
        let had = place.and_then(|place| claims[place].lease.clone());
        let has = upsert.as_ref().and_then(|(_, lease)| lease.clone());
        match (upsert, place) {
            (Some((resource, lease)), place) => {
                let claim = Claim { owner: event.owner.clone(), class, resource, lease };
                match place {
                    Some(place) => claims[place] = claim,
                    None => claims.push(claim),
                }
            }
            (None, Some(place)) => {
                claims.remove(place);
            }
            (None, None) => {}
        }
        if claims.is_empty() {
            self.claims.remove(&key);
        }
        self.renew(&key, had, has, now);
        let after = self.get(&key).cloned();
        if before != after {
            self.replaced(&key, before.as_deref(), after.as_deref(), dirty);
        }
    }

    /// A registration's lease as it is now. A name may be registered by two owners: a lease is left only by the
    /// one that was in it.
    fn renew(&mut self, key: &Key, had: Option<LeaseRef>, has: Option<LeaseRef>, now: Instant) {
        if let Some(had) = had
            && has.as_ref().is_none_or(|has| has.name != had.name)
        {
            self.leases.leave(&had.name, key);
        }
        if let Some(has) = has {
            self.leases.join(&has, key, now);
        }
    }

    /// Another object holds the name: finds all that depends on it, before and after.
    fn replaced(
        &mut self,
        key: &Key,
        before: Option<&Resource>,
        after: Option<&Resource>,
        dirty: &mut BTreeSet<Key>,
    ) {
        dirty.insert(key.clone());
        for resource in [before, after].into_iter().flatten() {
            dirty.extend(self.index.dependents(resource));
        }
        if let Some(before) = before {
            self.index.remove(before);
        }
        if let Some(after) = after {
            self.index.insert(after);
        }
    }

    /// Recomputes what may have changed and keeps what has.
    fn settle(&mut self, dirty: BTreeSet<Key>) -> Delta {
        let mut delta = Delta { revision: self.revision, ..Delta::default() };
        for key in dirty {
            let Some(resource) = self.get(&key) else {
                if self.wire.remove(&key).is_some() {
                    delta.removed.push(key);
                }
                continue;
            };
            let body = wire(resource, self.memberships(resource).0).encode();
            let version = version_of(&body);
            if self.wire.get(&key).is_some_and(|old| old.version == version) {
                continue;
            }
            let new = WireResource { key: key.clone(), version, revision: self.revision, body };
            let new = Arc::new(new);
            self.wire.insert(key, Arc::clone(&new));
            delta.changed.push(new);
        }
        delta
    }
}

/// 128 bits: versions of one name are compared, nobody gains by a collision.
fn version_of(body: &[u8]) -> String {
    Sha256::digest(body).iter().take(16).fold(String::with_capacity(32), |mut out, byte| {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
        out
    })
}

#[cfg(test)]
mod tests;
