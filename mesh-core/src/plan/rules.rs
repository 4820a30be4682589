//! What a service's policy says to the programs: flags of its entries, and its line of `RULES`.
//!
//! Rules are written before the entries that ask for them, and those of a service that is gone are emptied:
//! its number may be another's one day, and the agent's own connections know no entry.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_common::pick::MAGLEV_SLOTS;
use mesh_common::record::{self, flags};

use super::{MapOp, Ops, Scope, View};
use crate::snapshot::{Balancing, Service, ServiceId, Snapshot, Traffic};

/// The flags of an entry whose table has this many slots. A table that is too long for Maglev is drawn from.
pub(super) fn flags(traffic: &Traffic, slots: usize) -> u32 {
    let maglev = traffic.balancing == Balancing::Maglev && slots <= MAGLEV_SLOTS as usize;
    let when = |asked: bool, flag: u32| if asked { flag } else { 0 };
    when(traffic.balancing.is_least(), flags::LEAST)
        | when(maglev, flags::MAGLEV)
        | when(traffic.affinity.is_some(), flags::AFFINE)
        | when(traffic.max_connections > 0 || traffic.max_per_endpoint > 0, flags::LIMITED)
        | when(traffic.ejection.is_some(), flags::EJECTS)
        | when(traffic.connect_timeout.is_some(), flags::HASTY)
}

/// The rules of a service; all zero where no entry of it will ask.
pub(super) fn of(service: &Service) -> record::Rules {
    let Traffic { affinity, ejection, connect_timeout, max_connections, max_per_endpoint, .. } =
        service.traffic;
    let asked = flags(&service.traffic, 0);
    if asked == 0 {
        return record::Rules::default();
    }
    record::Rules {
        flags: asked,
        endpoints: service.serving as u32,
        max_connections,
        max_per_endpoint,
        failures: ejection.map_or(0, |e| e.failures),
        max_ejected_percent: ejection.map_or(0, |e| e.max_percent),
        ejection_ns: ejection.map_or(0, |e| nanos(e.base)),
        affinity_ns: affinity.map_or(0, nanos),
        connect_timeout_ms: connect_timeout.map_or(0, |t| u32::try_from(t.as_millis()).unwrap_or(u32::MAX)),
        ..record::Rules::default()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn plan(
    view: &mut View,
    snapshot: &Snapshot,
    dirty: &BTreeSet<ServiceId>,
    scope: Scope,
    ops: &mut Ops,
) {
    let mut ids = dirty.clone();
    if scope.sweep {
        ids.extend(snapshot.services.keys());
    }
    for id in ids {
        let rules = match snapshot.services.get(&id) {
            Some(service) => of(service),
            None => record::Rules::default(),
        };
        // Its policy may yet come, and an entry that asks may be there.
        if rules.flags == 0 && !scope.full {
            continue;
        }
        if view.put_rules(id, rules) {
            let stage = if rules.flags == 0 { &mut ops.deletions } else { &mut ops.slots };
            stage.push(MapOp::PutRules { service: id, rules });
        }
    }
}
