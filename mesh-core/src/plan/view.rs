//! What the maps hold, as far as the planner knows: the entries, whose they are, which slots they point to.
//!
//! Invariant: every slot is free, resting, or in the range of exactly one entry here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use mesh_common::{maps, policy, record};

use super::alloc::{Allocator, NoRoom, Range};
use super::claims::Claims;
use super::policies::HeldSet;
use super::ramps::Ramps;
use super::table::{Content, first_len};
use super::{Condition, MapOp};
use crate::snapshot::{PolicySetId, Service, ServiceId, Workload};

/// How long a freed range of slots rests before it is written again. A program runs for microseconds.
pub const GRACE: Duration = Duration::from_secs(1);

/// Entries that the maps have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Of `SERVICES`.
    pub services: u32,
    /// Of `WORKLOADS`.
    pub workloads: u32,
    /// Of `ENDPOINTS`.
    pub endpoints: u32,
    /// Of `POLICY`.
    pub policy: u32,
    /// Of `POLICY_CIDRS`.
    pub policy_cidrs: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            services: maps::SERVICES.capacity,
            workloads: maps::WORKLOADS.capacity,
            endpoints: maps::ENDPOINTS.capacity,
            policy: maps::POLICY.capacity,
            policy_cidrs: maps::POLICY_CIDRS.capacity,
        }
    }
}

/// What the maps of an agent before this one hold.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// Of `SERVICES`.
    pub services: Vec<(record::ServiceKey, record::Service)>,
    /// Of `WORKLOADS`.
    pub workloads: Vec<(record::WorkloadKey, record::Workload)>,
    /// Keys of `POLICY`.
    pub policy: Vec<record::PolicyKey>,
    /// Keys of `POLICY_CIDRS`: length in bits and prefix.
    pub policy_cidrs: Vec<(u32, record::PolicyCidr)>,
}

/// Stands for what was written: to see whether it has to be written anew, nobody needs all of it.
pub(super) type Print = u64;

/// The print of an entry of `WORKLOADS`, in words: it stands beside its key, a hundred thousand times. All zero: there
/// is no entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written([u32; 2]);

/// An entry of `SERVICES` with the slots that it owns.
#[derive(Debug)]
pub(super) struct Held {
    pub value: record::Service,
    /// Of what its tables say; unknown for an adopted entry.
    pub tables: Option<Print>,
    /// One range; an adopted entry may have two.
    pub ranges: Vec<Range>,
}

/// What the maps hold.
#[derive(Debug)]
pub struct View {
    pub(super) capacities: Capacities,
    pub(super) services: HashMap<record::ServiceKey, Held>,
    pub(super) service_claims: Claims<Service>,
    /// And the entries of `WORKLOADS`.
    pub(super) workload_claims: Claims<Workload>,
    /// For prints. Its keys are random, so that no configuration can be made whose prints are the same.
    hasher: RandomState,
    pub(super) slots: Allocator,
    generation: u32,
    /// Rules by service id, those that are not all zero; of an adopted map unknown until written.
    rules: HashMap<ServiceId, record::Rules>,
    pub(super) ramps: Ramps,
    /// What `rules` does not name is all zero.
    fresh: bool,
    pub(super) epoch: Option<u64>,
    /// The first full plan has looked at every entry.
    pub(super) swept: bool,
    /// To be planned again: there was no room.
    pub(super) waiting_services: BTreeMap<record::ServiceKey, Full>,
    pub(super) waiting_workloads: BTreeSet<record::WorkloadKey>,
    /// What is wrong, by the key that it is wrong with.
    pub(super) service_troubles: BTreeMap<record::ServiceKey, Vec<Condition>>,
    pub(super) workload_troubles: BTreeMap<record::WorkloadKey, Vec<Condition>>,
    /// Policy sets that the maps hold.
    pub(super) sets: HashMap<PolicySetId, HeldSet>,
    /// Entries of them.
    pub(super) verdicts_held: usize,
    pub(super) cidrs_held: usize,
    /// Policy sets that do not fit.
    pub(super) closed: BTreeMap<PolicySetId, Condition>,
    /// The plan under way deletes a policy set.
    pub(super) policy_room: bool,
}

impl View {
    /// Empty maps.
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            services: HashMap::new(),
            service_claims: Claims::default(),
            workload_claims: Claims::default(),
            hasher: RandomState::new(),
            slots: Allocator::new(capacities.endpoints),
            generation: 0,
            rules: HashMap::new(),
            ramps: Ramps::default(),
            fresh: true,
            epoch: None,
            swept: false,
            waiting_services: BTreeMap::new(),
            waiting_workloads: BTreeSet::new(),
            service_troubles: BTreeMap::new(),
            workload_troubles: BTreeMap::new(),
            sets: HashMap::new(),
            verdicts_held: 0,
            cidrs_held: 0,
            closed: BTreeMap::new(),
            policy_room: false,
        }
    }

    /// Maps that an agent before this one has filled. Their slots are not read: what is still wanted gets
    /// new tables. What is not wanted any more is deleted by the first full plan.
    pub fn adopt(adopted: Adopted, capacities: Capacities) -> Self {
        let Adopted { services, workloads, policy, policy_cidrs } = adopted;
        let mut view = Self::new(capacities);
        (view.verdicts_held, view.cidrs_held) = (policy.len(), policy_cidrs.len());
        for key in policy {
            view.sets.entry(key.set).or_default().verdicts.push(key);
        }
        for (length, prefix) in policy_cidrs {
            view.sets.entry(prefix.set).or_default().cidrs.push((length, prefix));
        }
        view.fresh = false;
        for (key, value) in services {
            view.generation = view.generation.max(value.generation);
            let mut ranges = Vec::new();
            let table_len = first_len(value.table_len, value.flags);
            for (first, len) in [(value.table, table_len), (value.fallback, value.fallback_len)] {
                let range = Range { first, len };
                if len > 0 && view.slots.reserve(range) {
                    ranges.push(range);
                }
            }
            view.services.insert(key, Held { value, tables: None, ranges });
        }
        for (key, value) in workloads {
            let written = view.written(value);
            view.workload_claims.hold(key, written);
        }
        view
    }

    /// The print of what is written.
    pub(super) fn print(&self, written: impl Hash) -> Print {
        self.hasher.hash_one(written)
    }

    /// The print of an entry of `WORKLOADS`; never that of none.
    pub(super) fn written(&self, value: record::Workload) -> Written {
        let print = self.print(value) | 1;
        Written([print as u32, (print >> 32) as u32])
    }

    /// What does not fit or collides, as of now.
    pub(super) fn conditions(&self) -> Vec<Condition> {
        let entries = self.service_troubles.values().chain(self.workload_troubles.values()).flatten();
        entries.chain(self.closed.values()).cloned().collect()
    }

    /// The number under which the kernel asks a policy set: its own, or that of none where it does not fit.
    pub(super) fn asked(&self, set: PolicySetId) -> PolicySetId {
        if self.closed.contains_key(&set) { policy::CLOSED } else { set }
    }

    /// The highest number of a policy set that the maps hold; 0: they hold none.
    pub fn last_policy_set(&self) -> PolicySetId {
        self.sets.keys().max().copied().unwrap_or(0)
    }

    /// When to plan again for what waits: at once where only entries lacked and this plan has deleted some,
    /// else when slots have rested. `None`: nothing waits, or only a change can help.
    pub(super) fn retry_at(&self, now: Duration) -> Option<Duration> {
        let for_entries = self.waiting_services.values().any(|full| *full == Full::Services)
            && self.services.len() < self.capacities.services as usize;
        let for_workloads =
            !self.waiting_workloads.is_empty() && self.workloads_len() < self.capacities.workloads as usize;
        let for_policies = self.policy_room && !self.closed.is_empty();
        if for_entries || for_workloads || for_policies {
            Some(now)
        } else if self.waiting_services.is_empty() {
            None
        } else {
            self.slots.next_free()
        }
    }

    /// Entries of `SERVICES`.
    pub fn services_len(&self) -> usize {
        self.services.len()
    }

    /// Entries of `WORKLOADS`.
    pub fn workloads_len(&self) -> usize {
        self.workload_claims.held()
    }

    /// Makes the entry say `content`: where its tables differ, in new slots with a new generation.
    /// Appends the operations to `slots` and `entries`.
    pub(super) fn put_service(
        &mut self,
        key: record::ServiceKey,
        content: &Content,
        now: Duration,
        slots: &mut Vec<MapOp>,
        entries: &mut Vec<MapOp>,
    ) -> Result<(), Full> {
        let tables = Some(self.print(content.tables()));
        let room = self.services.len() < self.capacities.services as usize;
        match self.services.get_mut(&key) {
            None if !room => return Err(Full::Services),
            Some(held) if held.tables == tables => {
                let first = held.ranges.first().map_or(0, |range| range.first);
                let new = content.value(first, held.value.generation);
                if new != held.value {
                    entries.push(MapOp::PutService { key, value: new });
                    held.value = new;
                }
                return Ok(());
            }
            _ => {}
        }
        let len = content.slots_len();
        let range =
            if len == 0 { None } else { Some(self.slots.take(len).map_err(|e| Full::Slots(len, e))?) };
        let generation = self.next_generation();
        let first = range.map_or(0, |range| range.first);
        if range.is_some() {
            slots.push(MapOp::PutSlots { first, slots: content.slots(generation) });
        }
        let value = content.value(first, generation);
        entries.push(MapOp::PutService { key, value });
        let new = Held { value, tables, ranges: range.into_iter().collect() };
        if let Some(before) = self.services.insert(key, new) {
            self.free(&before, now);
        }
        Ok(())
    }

    /// Notes the rules of a service; `false`: the map holds them.
    pub(super) fn put_rules(&mut self, service: ServiceId, rules: record::Rules) -> bool {
        let before = self.rules.insert(service, rules);
        let empty = rules == record::Rules::default();
        if empty && self.fresh {
            self.rules.remove(&service);
        }
        before != Some(rules) && !(before.is_none() && empty && self.fresh)
    }

    /// Forgets an entry; its slots rest.
    pub(super) fn del_service(&mut self, key: record::ServiceKey, now: Duration) -> bool {
        let Some(held) = self.services.remove(&key) else { return false };
        self.free(&held, now);
        true
    }

    fn free(&mut self, held: &Held, now: Duration) {
        for &range in &held.ranges {
            self.slots.give_back(range, now + GRACE);
        }
    }

    /// Never 0, and not used by any entry or slot that a reader could still compare it with.
    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.generation
    }
}

/// Which map has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// `SERVICES`.
    Services,
    /// `ENDPOINTS`, for a table of this many slots.
    Slots(u32, NoRoom),
}
