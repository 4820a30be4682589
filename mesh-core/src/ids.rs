//! Numbers for names. Names travel on the wire; the kernel and the agent count by dense u32.
//!
//! Invariants: ids start at 1 and stay below the capacity of the map that they index; a name keeps its
//! number as long as it lives, over restarts of the agent too (the table is written to disk with the
//! resources); a number gets a new name only once the counters on it are zero, and not at once: the
//! numbers freed first are used first, behind at least [`REST`] others where there are fresh ones.
//! Not here: when a name ends (compile), the counters (the caller knows them).

use std::borrow::Borrow;
use std::collections::{HashSet, VecDeque};

use imbl::OrdMap;
use mesh_common::maps;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::Name;

/// So many freed numbers wait for each other while fresh ones are left.
pub const REST: usize = 64;

/// What a number is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdKind {
    /// `<namespace>/<name>`.
    Workload,
    /// `<namespace>/<name>:<port>`.
    Service,
    /// [`EndpointKey`].
    Endpoint,
    /// A mesh namespace.
    Namespace,
    /// `<namespace>/<service account>`.
    Identity,
}

impl IdKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Workload, Self::Service, Self::Endpoint, Self::Namespace, Self::Identity];
}

/// All numbers are taken, or their counters are not zero yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {limit} {what} ids are taken: raise {remedy}")]
pub struct OutOfIds {
    what: &'static str,
    limit: u32,
    remedy: &'static str,
}

/// How many numbers of each kind there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdLimits {
    /// Workloads.
    pub workloads: u32,
    /// Service ports: below the capacity of `SERVICE_LOAD`.
    pub services: u32,
    /// Endpoints: below the capacity of `LOAD`.
    pub endpoints: u32,
    /// Mesh namespaces.
    pub namespaces: u32,
    /// Identities.
    pub identities: u32,
}

impl Default for IdLimits {
    fn default() -> Self {
        Self {
            workloads: maps::WORKLOADS.capacity - 1,
            services: maps::SERVICE_LOAD.capacity - 1,
            endpoints: maps::LOAD.capacity - 1,
            namespaces: 65_535,
            identities: maps::WORKLOADS.capacity - 1,
        }
    }
}

/// What an endpoint goes by: the numbers of its service port and of its workload, and its target port. Neither number
/// is freed before the endpoint's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointKey {
    /// Number of the service port.
    pub service: u32,
    /// Number of the workload.
    pub workload: u32,
    /// Target port.
    pub port: u16,
}

/// What numbers are given to, and how it stands on disk.
trait Key: Clone + Ord {
    type Stored: Serialize + DeserializeOwned;
    fn store(&self) -> Self::Stored;
    fn load(stored: Self::Stored) -> Self;
}

impl Key for Name {
    type Stored = String;
    fn store(&self) -> String {
        (**self).to_owned()
    }
    fn load(stored: String) -> Self {
        stored.into()
    }
}

impl Key for EndpointKey {
    type Stored = (u32, u32, u16);
    fn store(&self) -> Self::Stored {
        (self.service, self.workload, self.port)
    }
    fn load((service, workload, port): Self::Stored) -> Self {
        Self { service, workload, port }
    }
}

/// The numbers of one kind. Cloned for the disk without copying the names.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
struct Ids<K: Key> {
    #[serde(with = "stored::numbers")]
    names: OrdMap<K, Number>,
    /// Names that have ended and whose counters may not be zero yet.
    #[serde(with = "stored::keys")]
    ended: VecDeque<K>,
    /// In the order in which they became free.
    free: VecDeque<u32>,
    /// Highest number given so far.
    last: u32,
}

impl<K: Key> Default for Ids<K> {
    fn default() -> Self {
        Self { names: OrdMap::new(), ended: VecDeque::new(), free: VecDeque::new(), last: 0 }
    }
}

/// Keys on disk, one at a time: a list of keys with their numbers, and one of keys.
mod stored {
    pub mod numbers {
        use imbl::OrdMap;
        use serde::{Deserialize, Deserializer, Serializer};

        use super::super::{Key, Number};

        pub fn serialize<K: Key, S: Serializer>(names: &OrdMap<K, Number>, to: S) -> Result<S::Ok, S::Error> {
            to.collect_seq(names.iter().map(|(key, number)| (key.store(), number)))
        }

        pub fn deserialize<'a, K: Key, D: Deserializer<'a>>(from: D) -> Result<OrdMap<K, Number>, D::Error> {
            let all: Vec<(K::Stored, Number)> = Vec::deserialize(from)?;
            Ok(all.into_iter().map(|(key, number)| (K::load(key), number)).collect())
        }
    }

    pub mod keys {
        use std::collections::VecDeque;

        use serde::{Deserialize, Deserializer, Serializer};

        use super::super::Key;

        pub fn serialize<K: Key, S: Serializer>(keys: &VecDeque<K>, to: S) -> Result<S::Ok, S::Error> {
            to.collect_seq(keys.iter().map(Key::store))
        }

        pub fn deserialize<'a, K: Key, D: Deserializer<'a>>(from: D) -> Result<VecDeque<K>, D::Error> {
            let all: Vec<K::Stored> = Vec::deserialize(from)?;
            Ok(all.into_iter().map(K::load).collect())
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Number {
    id: u32,
    /// Its name has ended. It may still come back and have its number again.
    ended: bool,
    /// It stands in `Ids::ended`.
    queued: bool,
}

impl<K: Key> Ids<K> {
    /// The number of a name that lives.
    fn get<Q: Ord + ?Sized>(&self, name: &Q) -> Option<u32>
    where
        K: Borrow<Q>,
    {
        self.names.get(name).filter(|n| !n.ended).map(|n| n.id)
    }

    /// The number of a name, a new one if it has none; `None`: more than `limit` are needed. From now on the
    /// table shares the caller's copy of the name, where `same` says that it has another.
    fn assign(&mut self, name: &K, limit: u32, same: impl Fn(&K, &K) -> bool) -> Option<u32> {
        if let Some((held, &number)) = self.names.get_key_value(name) {
            let shared = same(held, name);
            if !shared {
                self.names.remove(name);
            }
            if number.ended || !shared {
                self.names.insert(name.clone(), Number { ended: false, ..number });
            }
            return Some(number.id);
        }
        let fresh = self.last < limit;
        let id = if fresh && self.free.len() <= REST {
            self.last += 1;
            self.last
        } else {
            // A table from disk may hold numbers beyond a limit that was lowered since.
            self.free.iter().position(|&id| id <= limit).and_then(|i| self.free.remove(i))?
        };
        self.names.insert(name.clone(), Number { id, ended: false, queued: false });
        Some(id)
    }

    fn end<Q: Ord + ?Sized>(&mut self, name: &Q)
    where
        K: Borrow<Q>,
    {
        let Some((key, number)) = self.names.get_key_value(name) else { return };
        if number.ended {
            return;
        }
        let key = key.clone();
        let queued = number.queued;
        self.names.insert(key.clone(), Number { ended: true, queued: true, ..*number });
        if !queued {
            self.ended.push_back(key);
        }
    }

    /// Frees the numbers of ended names on which `live` counts nothing.
    fn release(&mut self, live: impl Fn(u32) -> u64) {
        for _ in 0..self.ended.len() {
            let Some(name) = self.ended.pop_front() else { break };
            let Some(&number) = self.names.get(&name) else { continue };
            if !number.ended {
                self.names.insert(name, Number { queued: false, ..number });
            } else if live(number.id) > 0 {
                self.ended.push_back(name);
            } else {
                self.free.push_back(number.id);
                self.names.remove(&name);
            }
        }
    }

    /// Living names and their numbers, in order of the names.
    fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.names.iter().filter(|(_, n)| !n.ended).map(|(name, n)| (name, n.id))
    }
}

/// The numbers of every kind, as they are written to disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct IdTable {
    workloads: Ids<Name>,
    services: Ids<Name>,
    endpoints: Ids<EndpointKey>,
    namespaces: Ids<Name>,
    identities: Ids<Name>,
    #[serde(skip)]
    limits: IdLimits,
}

impl IdTable {
    /// Without a name.
    pub fn new(limits: IdLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A table from disk under the limits of this agent.
    #[must_use]
    pub fn with_limits(mut self, limits: IdLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The numbers of one kind; endpoints have no names.
    fn named(&self, kind: IdKind) -> Option<&Ids<Name>> {
        Some(match kind {
            IdKind::Workload => &self.workloads,
            IdKind::Service => &self.services,
            IdKind::Endpoint => return None,
            IdKind::Namespace => &self.namespaces,
            IdKind::Identity => &self.identities,
        })
    }

    fn named_mut(&mut self, kind: IdKind) -> Option<&mut Ids<Name>> {
        Some(match kind {
            IdKind::Workload => &mut self.workloads,
            IdKind::Service => &mut self.services,
            IdKind::Endpoint => return None,
            IdKind::Namespace => &mut self.namespaces,
            IdKind::Identity => &mut self.identities,
        })
    }

    /// The number of a name that lives.
    pub fn get(&self, kind: IdKind, name: &str) -> Option<u32> {
        self.named(kind)?.get(name)
    }

    /// The number of an endpoint that lives.
    pub fn endpoint(&self, key: EndpointKey) -> Option<u32> {
        self.endpoints.get(&key)
    }

    /// Living names of one kind and their numbers, in order of the names; none of endpoints.
    pub fn names(&self, kind: IdKind) -> impl Iterator<Item = (&Name, u32)> {
        self.named(kind).into_iter().flat_map(Ids::iter)
    }

    /// The number of a name: the one it has, had until a moment ago, or a new one. Endpoints have
    /// [`IdTable::assign_endpoint`].
    pub fn assign(&mut self, kind: IdKind, name: &Name) -> Result<u32, OutOfIds> {
        let (limit, full) = self.full(kind);
        self.named_mut(kind).and_then(|ids| ids.assign(name, limit, Name::ptr_eq)).ok_or(full)
    }

    /// The number of an endpoint: the one it has, had until a moment ago, or a new one.
    pub fn assign_endpoint(&mut self, key: EndpointKey) -> Result<u32, OutOfIds> {
        let (limit, full) = self.full(IdKind::Endpoint);
        self.endpoints.assign(&key, limit, |_, _| true).ok_or(full)
    }

    fn full(&self, kind: IdKind) -> (u32, OutOfIds) {
        let (limit, what, remedy) = match kind {
            IdKind::Workload => (self.limits.workloads, "workload", "--map-workloads"),
            IdKind::Service => (self.limits.services, "service", "--map-services"),
            IdKind::Endpoint => (self.limits.endpoints, "endpoint", "--map-endpoints"),
            IdKind::Namespace => (self.limits.namespaces, "namespace", "the number of nodes, or use fewer"),
            IdKind::Identity => (self.limits.identities, "identity", "--map-workloads"),
        };
        (limit, OutOfIds { what, limit, remedy })
    }

    /// The name has ended. Its number stays its own until [`IdTable::release`] finds its counters at zero.
    pub fn end(&mut self, kind: IdKind, name: &str) {
        if let Some(ids) = self.named_mut(kind) {
            ids.end(name);
        }
    }

    /// The same of an endpoint.
    pub fn end_endpoint(&mut self, key: EndpointKey) {
        self.endpoints.end(&key);
    }

    /// Ends the endpoints that `known` does not know.
    pub fn end_other_endpoints(&mut self, known: impl Fn(EndpointKey) -> bool) {
        let unknown: Vec<EndpointKey> =
            self.endpoints.iter().map(|(key, _)| *key).filter(|key| !known(*key)).collect();
        for key in unknown {
            self.end_endpoint(key);
        }
    }

    /// Frees the numbers of ended names on which `live` counts nothing. For now and then: it looks at every
    /// ended name.
    pub fn release(&mut self, live: impl Fn(IdKind, u32) -> u64) {
        self.endpoints.release(|id| live(IdKind::Endpoint, id));
        // A number in the key of an endpoint that is counted on must not become another's.
        let ended = &self.endpoints.ended;
        let keys: HashSet<(IdKind, u32)> = ended
            .iter()
            .flat_map(|key| [(IdKind::Service, key.service), (IdKind::Workload, key.workload)])
            .collect();
        for kind in IdKind::ALL {
            if let Some(ids) = self.named_mut(kind) {
                ids.release(|id| if keys.contains(&(kind, id)) { 1 } else { live(kind, id) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(services: u32) -> IdTable {
        IdTable::new(IdLimits { services, ..IdLimits::default() })
    }

    fn assign(ids: &mut IdTable, kind: IdKind, name: &str) -> Result<u32, OutOfIds> {
        ids.assign(kind, &name.into())
    }

    #[test]
    fn numbers_start_at_one_and_stay_with_their_names() {
        let mut ids = table(10);
        assert_eq!(assign(&mut ids, IdKind::Service, "a/b:80"), Ok(1));
        assert_eq!(assign(&mut ids, IdKind::Service, "a/c:80"), Ok(2));
        assert_eq!(assign(&mut ids, IdKind::Service, "a/b:80"), Ok(1));
        assert_eq!(assign(&mut ids, IdKind::Workload, "a/b"), Ok(1));
        assert_eq!(ids.get(IdKind::Service, "a/c:80"), Some(2));
        assert_eq!(ids.get(IdKind::Workload, "a/c:80"), None);
    }

    #[test]
    fn a_number_in_use_is_not_given_away_and_its_name_may_come_back_to_it() {
        let mut ids = table(1);
        assign(&mut ids, IdKind::Service, "old").unwrap();
        ids.end(IdKind::Service, "old");
        ids.release(|_, _| 3);
        assert_eq!(ids.get(IdKind::Service, "old"), None);
        let full = assign(&mut ids, IdKind::Service, "new").unwrap_err();
        assert_eq!(full.to_string(), "all 1 service ids are taken: raise --map-services");
        assert_eq!(assign(&mut ids, IdKind::Service, "old"), Ok(1));
        ids.release(|_, _| 0);
        assert_eq!(ids.get(IdKind::Service, "old"), Some(1), "it lives again");
        ids.end(IdKind::Service, "old");
        ids.release(|_, _| 0);
        assert_eq!(assign(&mut ids, IdKind::Service, "new"), Ok(1));
    }

    #[test]
    fn the_numbers_in_an_endpoints_key_are_not_given_away_before_its_own() {
        let mut ids = IdTable::new(IdLimits { services: 1, workloads: 1, ..IdLimits::default() });
        let service = assign(&mut ids, IdKind::Service, "a/s:80").unwrap();
        let workload = assign(&mut ids, IdKind::Workload, "a/w").unwrap();
        let key = EndpointKey { service, workload, port: 8080 };
        assert_eq!((ids.assign_endpoint(key), ids.endpoint(key)), (Ok(1), Some(1)));
        ids.end(IdKind::Service, "a/s:80");
        ids.end(IdKind::Workload, "a/w");
        ids.end_endpoint(key);
        ids.release(|kind, _| u64::from(kind == IdKind::Endpoint));
        assert!(assign(&mut ids, IdKind::Service, "a/t:80").is_err());
        assert!(assign(&mut ids, IdKind::Workload, "a/v").is_err());
        ids.release(|_, _| 0);
        assert_eq!(assign(&mut ids, IdKind::Service, "a/t:80"), Ok(1));
        assert_eq!(assign(&mut ids, IdKind::Workload, "a/v"), Ok(1));
        assert_eq!((ids.endpoint(key), ids.assign_endpoint(key)), (None, Ok(2)));
    }

    #[test]
    fn the_number_freed_first_is_used_first_and_not_while_fresh_ones_abound() {
        let mut ids = table(200);
        for i in 0..100 {
            assign(&mut ids, IdKind::Service, &format!("s{i}")).unwrap();
        }
        for i in (0..=REST).rev() {
            ids.end(IdKind::Service, &format!("s{i}"));
        }
        ids.release(|_, _| 0);
        assert_eq!(assign(&mut ids, IdKind::Service, "n0"), Ok(REST as u32 + 1));
        assert_eq!(assign(&mut ids, IdKind::Service, "n1"), Ok(101));
    }

    #[test]
    fn flapping_names_do_not_pile_up() {
        let mut ids = table(10);
        for _ in 0..1000 {
            assign(&mut ids, IdKind::Service, "flap").unwrap();
            ids.end(IdKind::Service, "flap");
            ids.release(|_, _| 1);
        }
        assert_eq!(ids.services.ended.len(), 1);
    }
}
