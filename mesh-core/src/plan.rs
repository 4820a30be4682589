//! Says what to change in the BPF maps so that they hold a snapshot.
//!
//! compile ──Snapshot, Dirty──▶ **plan** ──[`MapOp`]s──▶ executor (mesh-agent)
//!
//! The order of the operations is the safety: policy sets, rules and slots of new tables, then workloads, then
//! the service entries that point to the slots, then deletions, then the epoch. A reader in the kernel sees an
//! entry whose slots are there, or the one before.
//!
//! Invariants: the ranges of any two entries are disjoint, and a freed range is written again only after
//! [`GRACE`]; an entry and its slots carry the same service id and generation, and no generation is
//! used twice; what does not fit leaves its own service as it was, under a condition that names the map,
//! and stops nothing else; nothing is deleted before the first full sync.
//!
//! Not here: the writing (mesh-agent), who may be told what (control plane).

mod alloc;
mod claims;
mod policies;
mod ramps;
mod rules;
mod services;
mod table;
mod view;
mod workloads;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::time::Duration;

use mesh_common::record;

use crate::compile::{Condition, Dirty};
use crate::model::Kind;
use crate::snapshot::{ServiceId, Snapshot, WorkloadId};

pub use view::{Adopted, Capacities, GRACE, View};

/// One change of a map. Executed in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Insert into `POLICY`.
    PutPolicy {
        /// Its key.
        key: record::PolicyKey,
        /// [`mesh_common::policy::ALLOW`] or [`mesh_common::policy::DENY`].
        value: u32,
    },
    /// Insert into `POLICY_CIDRS`.
    PutPolicyCidr {
        /// Bits of the prefix.
        length: u32,
        /// The prefix.
        prefix: record::PolicyCidr,
        /// Number of the range.
        value: u32,
    },
    /// Fill `ENDPOINTS` from `first` on. Nobody points there yet.
    PutSlots {
        /// Index of the first slot.
        first: u32,
        /// The slots.
        slots: Vec<record::Endpoint>,
    },
    /// Replace the line of a service in `RULES`; the agent adds what only it knows of this kernel.
    PutRules {
        /// Its id.
        service: ServiceId,
        /// All zero: none.
        rules: record::Rules,
    },
    /// Insert or replace in `WORKLOADS`.
    PutWorkload {
        /// Its key.
        key: record::WorkloadKey,
        /// Its value.
        value: record::Workload,
    },
    /// Insert or replace in `SERVICES`.
    PutService {
        /// Its key.
        key: record::ServiceKey,
        /// Its value.
        value: record::Service,
    },
    /// Delete from `SERVICES`.
    DelService {
        /// Its key.
        key: record::ServiceKey,
    },
    /// Delete from `WORKLOADS`.
    DelWorkload {
        /// Its key.
        key: record::WorkloadKey,
    },
    /// Delete from `POLICY`.
    DelPolicy {
        /// Its key.
        key: record::PolicyKey,
    },
    /// Delete from `POLICY_CIDRS`.
    DelPolicyCidr {
        /// Bits of the prefix.
        length: u32,
        /// The prefix.
        prefix: record::PolicyCidr,
    },
    /// Word 0 of `EPOCH`: the maps hold the snapshot of this epoch.
    SetEpoch(u64),
}

/// Where the listeners of an enrolled workload of this node are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalSlots {
    /// Its first slot in `LISTENERS`; the inbound listener is [`record::listener::IN`] further on.
    pub listener_slot: u32,
    /// Word of its home worker in `HEARTBEAT`.
    pub heartbeat_slot: u32,
}

/// What [`plan`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be executed in this order. When one fails, read the maps again ([`View::adopt`]) and plan anew.
    pub ops: Vec<MapOp>,
    /// What does not fit or collides, as of now (not only what is new).
    pub conditions: Vec<Condition>,
    /// Something waits for room, or a weight is rising: plan again, even with nothing dirty, when `now` has reached this.
    pub retry_at: Option<Duration>,
}

/// The operations that bring the maps from what `view` says they hold to what `snapshot` says of all that
/// is in `dirty`; `view` is then as if they had been executed. `full`: all types of resources have come
/// since this agent started; until then nothing is deleted and no table gets shorter, and the first full
/// plan looks at everything. `now` is any monotonic time.
///
/// Cost: that of what is dirty.
pub fn plan(
    view: &mut View,
    snapshot: &Snapshot,
    dirty: &Dirty,
    locals: &HashMap<WorkloadId, LocalSlots, impl BuildHasher>,
    full: bool,
    now: Duration,
) -> Plan {
    view.slots.settle(now);
    let sweep = full && !view.swept;
    let mut ops = Ops::default();
    let scope = Scope { full, sweep };
    view.policy_room = false;
    // A set that is closed or opened stands in entries that are not dirty by themselves: rare, and then all.
    let all = policies::plan(view, snapshot, &dirty.policies, scope, &mut ops).then(|| {
        let mut all = Dirty::all(snapshot);
        all.merge(dirty);
        all
    });
    let dirty = all.as_ref().unwrap_or(dirty);
    let mut services = dirty.services.clone();
    services.extend(view.ramps.rising());
    rules::plan(view, snapshot, &services, scope, &mut ops);
    services::plan(view, snapshot, &services, scope, now, &mut ops);
    workloads::plan(view, snapshot, &dirty.workloads, locals, scope, &mut ops);
    view.swept |= full;
    let Ops { policies, slots, workloads, services, deletions } = ops;
    let mut stages = [policies, slots, workloads, services, deletions];
    let mut ops = Vec::with_capacity(stages.iter().map(Vec::len).sum::<usize>() + 1);
    for stage in &mut stages {
        ops.append(stage);
    }
    if view.epoch != Some(snapshot.epoch) {
        view.epoch = Some(snapshot.epoch);
        ops.push(MapOp::SetEpoch(snapshot.epoch));
    }
    let retry_at = view.retry_at(now).into_iter().chain(view.ramps.next(now)).min();
    Plan { ops, conditions: view.conditions(), retry_at }
}

/// How much a plan may do.
#[derive(Clone, Copy)]
struct Scope {
    /// Deletions and shorter tables, too.
    full: bool,
    /// All entries, dirty or not.
    sweep: bool,
}

/// Operations by the stage they are executed in.
#[derive(Default)]
struct Ops {
    policies: Vec<MapOp>,
    slots: Vec<MapOp>,
    workloads: Vec<MapOp>,
    services: Vec<MapOp>,
    deletions: Vec<MapOp>,
}

/// Replaces what is known to be wrong with a key.
fn note<K: Ord>(troubles: &mut BTreeMap<K, Vec<Condition>>, key: K, new: Vec<Condition>) {
    if new.is_empty() {
        troubles.remove(&key);
    } else {
        troubles.insert(key, new);
    }
}

/// The resource that a condition is about.
fn condition(kind: Kind, namespace: &str, name: &str, problem: String) -> Condition {
    Condition { subject: format!("{kind} {namespace}/{name}"), problem }
}
