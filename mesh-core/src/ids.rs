//! Numbers for names. Names travel on the wire; the kernel and the agent count by dense u32.
//!
//! Invariants: ids start at 1 and stay below the capacity of the map that they index; a name keeps its
//! number as long as it lives, over restarts of the agent too (the table is written to disk with the
//! resources); a number gets a new name only once the counters on it are zero, and not at once: the
//! numbers freed first are used first, behind at least [`REST`] others where there are fresh ones.
//! Not here: when a name ends (compile), the counters (the caller knows them).

use std::collections::VecDeque;

use imbl::OrdMap;
use mesh_common::maps;
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
    /// `<namespace>/<service>:<port>@<namespace>/<workload>:<target port>`.
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

/// The numbers of one kind. Cloned for the disk without copying the names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ids {
    #[serde(with = "names")]
    names: OrdMap<Name, Number>,
    /// Names that have ended and whose counters may not be zero yet.
    ended: VecDeque<String>,
    /// In the order in which they became free.
    free: VecDeque<u32>,
    /// Highest number given so far.
    last: u32,
}

/// Names on disk: serde knows no shared strings.
mod names {
    use std::collections::BTreeMap;

    use imbl::OrdMap;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Name, Number};

    pub fn serialize<S: Serializer>(names: &OrdMap<Name, Number>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(names.iter().map(|(name, number)| (&**name, number)))
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<OrdMap<Name, Number>, D::Error> {
        let names: BTreeMap<String, Number> = BTreeMap::deserialize(from)?;
        Ok(names.into_iter().map(|(name, number)| (Name::from(name), number)).collect())
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

impl Ids {
    /// The number of a name that lives.
    pub fn get(&self, name: &str) -> Option<u32> {
        self.names.get(name).filter(|n| !n.ended).map(|n| n.id)
    }

    /// The number of a name, a new one if it has none; `None`: more than `limit` are needed.
    fn assign(&mut self, name: &Name, limit: u32) -> Option<u32> {
        if let Some(mut number) = self.names.remove(name) {
            number.ended = false;
            // From now on it shares the caller's copy of the name.
            self.names.insert(Name::clone(name), number);
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
        self.names.insert(Name::clone(name), Number { id, ended: false, queued: false });
        Some(id)
    }

    fn end(&mut self, name: &str) {
        if let Some(number) = self.names.get_mut(name) {
            number.ended = true;
            if !std::mem::replace(&mut number.queued, true) {
                self.ended.push_back(name.to_owned());
            }
        }
    }

    /// Frees the numbers of ended names on which `live` counts nothing.
    fn release(&mut self, live: impl Fn(u32) -> u64) {
        for _ in 0..self.ended.len() {
            let Some(name) = self.ended.pop_front() else { break };
            let Some(number) = self.names.get_mut(&*name) else { continue };
            if !number.ended {
                number.queued = false;
            } else if live(number.id) > 0 {
                self.ended.push_back(name);
            } else {
                self.free.push_back(number.id);
                self.names.remove(&*name);
            }
        }
    }

    /// Living names and their numbers, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.names.iter().filter(|(_, n)| !n.ended).map(|(name, n)| (&**name, n.id))
    }
}

/// The numbers of every kind, as they are written to disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct IdTable {
    workloads: Ids,
    services: Ids,
    endpoints: Ids,
    namespaces: Ids,
    identities: Ids,
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

    /// The numbers of one kind.
    pub fn of(&self, kind: IdKind) -> &Ids {
        match kind {
            IdKind::Workload => &self.workloads,
            IdKind::Service => &self.services,
            IdKind::Endpoint => &self.endpoints,
            IdKind::Namespace => &self.namespaces,
            IdKind::Identity => &self.identities,
        }
    }

    fn of_mut(&mut self, kind: IdKind) -> &mut Ids {
        match kind {
            IdKind::Workload => &mut self.workloads,
            IdKind::Service => &mut self.services,
            IdKind::Endpoint => &mut self.endpoints,
            IdKind::Namespace => &mut self.namespaces,
            IdKind::Identity => &mut self.identities,
        }
    }

    /// The number of a name that lives.
    pub fn get(&self, kind: IdKind, name: &str) -> Option<u32> {
        self.of(kind).get(name)
    }

    /// The number of a name: the one it has, had until a moment ago, or a new one.
    pub fn assign(&mut self, kind: IdKind, name: &Name) -> Result<u32, OutOfIds> {
        let (limit, what, remedy) = match kind {
            IdKind::Workload => (self.limits.workloads, "workload", "--map-workloads"),
            IdKind::Service => (self.limits.services, "service", "--map-services"),
            IdKind::Endpoint => (self.limits.endpoints, "endpoint", "--map-endpoints"),
            IdKind::Namespace => (self.limits.namespaces, "namespace", "the number of nodes, or use fewer"),
            IdKind::Identity => (self.limits.identities, "identity", "--map-workloads"),
        };
        self.of_mut(kind).assign(name, limit).ok_or(OutOfIds { what, limit, remedy })
    }

    /// The name has ended. Its number stays its own until [`IdTable::release`] finds its counters at zero.
    pub fn end(&mut self, kind: IdKind, name: &str) {
        self.of_mut(kind).end(name);
    }

    /// Frees the numbers of ended names on which `live` counts nothing. For now and then: it looks at every
    /// ended name.
    pub fn release(&mut self, live: impl Fn(IdKind, u32) -> u64) {
        for kind in IdKind::ALL {
            self.of_mut(kind).release(|id| live(kind, id));
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
        assert_eq!(ids.get(IdKind::Endpoint, "a/c:80"), None);
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
