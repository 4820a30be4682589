//! The entries of `WORKLOADS`: a workload's own addresses, one entry for each port that it serves, of TCP and of
//! UDP, and one for any other port, unless it shares them with its host.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;

use mesh_common::record::{self, HBONE_PORT, PROTO_TCP, PROTO_UDP, WorkloadKey, flags, listener};
use mesh_common::{addr, policy};

use super::claims::Claimant;
use super::table::{proto, protocol};
use super::view::Written;
use super::{Condition, LocalSlots, MapOp, Ops, Scope, View, condition, note};
use crate::model::Kind;
use crate::mtls::MtlsMode;
use crate::outside::Outside;
use crate::snapshot::{OnProxyLoss, PolicySetId, Snapshot, Workload, WorkloadId, WorkloadPort};

pub(super) fn plan(
    view: &mut View,
    snapshot: &Snapshot,
    dirty: &BTreeSet<WorkloadId>,
    locals: &HashMap<WorkloadId, LocalSlots, impl BuildHasher>,
    scope: Scope,
    ops: &mut Ops,
) {
    let mut touched: Vec<WorkloadKey> = std::mem::take(&mut view.waiting_workloads).into_iter().collect();
    let mut ids: Vec<WorkloadId> = dirty.iter().copied().collect();
    if scope.sweep {
        ids.extend(view.workload_claims.ids());
        ids.extend(snapshot.workloads.keys());
        ids.sort_unstable();
        ids.dedup();
        touched.extend(view.workload_claims.held_keys());
    }
    let several = |id| snapshot.workloads.get(id).map_or(0, |w| w.addresses.len() * (1 + w.ports.len()));
    let keys = ids.iter().map(several).sum();
    touched.reserve(keys);
    if scope.sweep {
        // At once: to grow by and by would be to move them several times.
        view.workload_claims.reserve(keys.saturating_sub(view.workload_claims.held()));
        ops.workloads.reserve_exact(keys);
    }
    for id in ids {
        view.workload_claims.set(id, snapshot.workloads.get(&id), &mut touched);
    }
    touched.sort_unstable();
    touched.dedup();
    let mut unwanted = Vec::new();
    for key in touched {
        let (owner, held) = view.workload_claims.of(key);
        let Some(owner) = owner else {
            unwanted.push(key);
            continue;
        };
        let mut troubles = Vec::new();
        if let Some(workload) = snapshot.workloads.get(&owner) {
            name_rivals(view, snapshot, key, workload, &mut troubles);
            let set = view.asked(workload.policy_set);
            let value =
                looked_at(workload, key, value(workload, key, set, locals.get(&workload.id).copied()));
            put(view, key, held, value, workload, ops, &mut troubles);
        }
        note(&mut view.workload_troubles, key, troubles);
    }
    // Last, as in the map: an entry has its room until it is deleted.
    for key in unwanted {
        view.workload_troubles.remove(&key);
        if scope.full && view.workload_claims.hold(key, Written::default()) != Written::default() {
            ops.deletions.push(MapOp::DelWorkload { key });
        }
    }
}

impl Claimant for Workload {
    type Key = WorkloadKey;
    type Held = Written;

    fn keys(&self) -> Vec<WorkloadKey> {
        if self.outside == Some(Outside::Resolved) {
            return Vec::new();
        }
        // The other ports of a host's address are the host's.
        let any = (!self.host_network).then_some((0, false));
        let tunnels = self.takes_tunnels().then_some((HBONE_PORT, false));
        let ruled = || self.mtls.ports().iter().map(|(port, _)| (*port, false)).filter(|_| any.is_some());
        let looked = || self.looks.iter().flat_map(|set| set.looked_at()).filter(|_| any.is_some());
        let looked = || looked().map(|port| (port, false));
        let served = || self.ports.iter().map(|p| (p.port, p.udp()));
        let ports = || any.into_iter().chain(tunnels).chain(ruled()).chain(looked()).chain(served());
        let key = |ip, (port, udp): (u16, bool)| WorkloadKey {
            addr: addr::from_ip(ip),
            port_be: port.to_be(),
            proto: proto(udp),
            network: 0,
        };
        let mut keys: Vec<WorkloadKey> =
            self.addresses.iter().flat_map(|&ip| ports().map(move |port| key(ip, port))).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// What is served on a port. The first of several services counts.
fn served(workload: &Workload, key: WorkloadKey) -> Option<&WorkloadPort> {
    let udp = key.proto == PROTO_UDP;
    workload.ports.iter().find(|p| p.port == u16::from_be(key.port_be) && p.udp() == udp)
}

fn value(
    workload: &Workload,
    key: WorkloadKey,
    set: PolicySetId,
    slots: Option<LocalSlots>,
) -> record::Workload {
    let mut value = record::Workload {
        workload: workload.id,
        identity: workload.identity,
        policy_set: set,
        endpoint: 0,
        service: 0,
        flags: if workload.local || slots.is_some() { flags::LOCAL } else { 0 },
        inbound_slot: 0,
        heartbeat_slot: 0,
        protocol: record::app::TCP,
    };
    if let Some(slots) = slots {
        value.inbound_slot = slots.listener_slot + listener::IN;
        value.heartbeat_slot = slots.heartbeat_slot;
    }
    let port = u16::from_be(key.port_be);
    if slots.is_some() && workload.takes_tunnels() && port == HBONE_PORT && key.proto == PROTO_TCP {
        // Whoever comes there is asked by the proxy, which knows who it is.
        value.policy_set = 0;
        value.flags |= flags::INBOUND_PROXY;
        return value;
    }
    let mode = if key.proto == PROTO_UDP { MtlsMode::Off } else { workload.mtls.at(port) };
    if set != 0 {
        value.flags |= flags::ASKS;
    }
    if slots.is_some() && mode == MtlsMode::Strict {
        value.flags |= flags::STRICT | flags::ASKS;
    }
    if mode != MtlsMode::Off && workload.tunnels(port) {
        value.flags |= flags::TUNNEL;
    }
    if workload.transport.as_ref().is_some_and(|transport| !transport.inbound.is_empty()) {
        value.flags |= flags::EXCLUDES;
    }
    let Some(served) = served(workload, key) else {
        if value.flags & flags::TUNNEL != 0 && mode == MtlsMode::Permissive {
            value.flags |= flags::BYPASS;
        }
        return value;
    };
    value.endpoint = served.endpoint;
    value.service = served.service;
    value.protocol = protocol(served.protocol);
    if served.proxy {
        value.flags |= flags::PROXY;
    }
    let proxied = served.proxy || served.inbound_proxy || value.flags & flags::TUNNEL != 0;
    // Plaintext that a strict workload would only drop helps nobody.
    let refuses = value.flags & flags::TUNNEL != 0 && mode == MtlsMode::Strict;
    if served.on_proxy_loss == OnProxyLoss::Bypass && proxied && !refuses {
        value.flags |= flags::BYPASS;
    }
    if slots.is_some() && served.inbound_proxy {
        value.flags |= flags::INBOUND_PROXY | flags::ASKS;
    }
    value
}

/// Where policies look at what comes, it goes through the proxy: where requests decide, or nowhere.
fn looked_at(workload: &Workload, key: WorkloadKey, mut value: record::Workload) -> record::Workload {
    let port = u16::from_be(key.port_be);
    let Some(set) = &workload.looks else { return value };
    let tunnels = workload.takes_tunnels() && port == HBONE_PORT;
    if key.proto != PROTO_TCP || tunnels || value.inbound_slot == 0 || value.policy_set == policy::CLOSED {
        return value;
    }
    let port = (port != 0).then_some(port);
    if set.looks(port) {
        value.flags |= flags::INBOUND_PROXY | flags::ASKS;
        let refuses =
            served(workload, key).is_some_and(|p| p.proxy && p.on_proxy_loss == OnProxyLoss::Refuse);
        if !refuses {
            value.flags |= flags::BYPASS;
        }
    }
    if set.asks_requests(port) {
        value.flags |= flags::REQUESTS;
        value.flags &= !flags::BYPASS;
    }
    value
}

fn put(
    view: &mut View,
    key: WorkloadKey,
    held: Written,
    value: record::Workload,
    workload: &Workload,
    ops: &mut Ops,
    troubles: &mut Vec<Condition>,
) {
    let written = view.written(value);
    if held == written {
        return;
    }
    if held == Written::default() && view.workloads_len() >= view.capacities.workloads as usize {
        view.waiting_workloads.insert(key);
        troubles.push(of(
            workload,
            format!(
                "{} is left out: map WORKLOADS is full ({} entries): raise --map-workloads",
                place(key),
                view.capacities.workloads
            ),
        ));
        return;
    }
    view.workload_claims.hold(key, written);
    ops.workloads.push(MapOp::PutWorkload { key, value });
}

fn name_rivals(
    view: &View,
    snapshot: &Snapshot,
    key: WorkloadKey,
    owner: &Workload,
    troubles: &mut Vec<Condition>,
) {
    for rival in view.workload_claims.rivals(key).filter_map(|id| snapshot.workloads.get(&id)) {
        troubles.push(of(
            rival,
            format!(
                "{} is also that of workload {}/{}: connections to it count as ones to that workload",
                place(key),
                owner.namespace(),
                owner.name()
            ),
        ));
    }
}

fn place(key: WorkloadKey) -> String {
    let ip = addr::to_ip(&key.addr);
    match u16::from_be(key.port_be) {
        0 => format!("address {ip}"),
        port => format!("address {ip} port {port}"),
    }
}

fn of(workload: &Workload, problem: String) -> Condition {
    condition(Kind::Workload, workload.namespace(), workload.name(), problem)
}
