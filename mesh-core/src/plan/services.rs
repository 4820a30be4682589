//! The entries of `SERVICES` and their tables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use mesh_common::addr;
use mesh_common::pick::MAGLEV_SLOTS;
use mesh_common::record::ServiceKey;

use super::claims::Claimant;
use super::table::{Content, Fallback, proto};
use super::view::Full;
use super::{Condition, MapOp, Ops, Scope, View, condition, note};
use crate::model::Kind;
use crate::snapshot::{Balancing, Service, ServiceId, Snapshot};

pub(super) fn plan(
    view: &mut View,
    snapshot: &Snapshot,
    dirty: &BTreeSet<ServiceId>,
    scope: Scope,
    now: Duration,
    ops: &mut Ops,
) {
    // Every waiting key is tried again; what still does not fit comes back.
    let mut touched: Vec<ServiceKey> = std::mem::take(&mut view.waiting_services).into_keys().collect();
    let mut ids = dirty.clone();
    if scope.sweep {
        ids.extend(view.service_claims.ids());
        ids.extend(snapshot.services.keys());
        touched.extend(view.services.keys());
    }
    for id in ids {
        view.service_claims.set(id, snapshot.services.get(&id), &mut touched);
        view.ramps.set(id, snapshot.services.get(&id).map(|service| &**service), now);
    }
    touched.sort_unstable();
    touched.dedup();
    let (wanted, unwanted): (Vec<_>, Vec<_>) =
        touched.into_iter().partition(|key| view.service_claims.of(*key).0.is_some());
    for key in wanted {
        let mut troubles = Vec::new();
        if let Some(service) = view.service_claims.of(key).0.and_then(|id| snapshot.services.get(&id)) {
            put(view, snapshot, key, service, scope, now, ops, &mut troubles);
        }
        note(&mut view.service_troubles, key, troubles);
    }
    // Last, as in the map: an entry has its room until it is deleted.
    for key in unwanted {
        view.service_troubles.remove(&key);
        if scope.full && view.del_service(key, now) {
            ops.deletions.push(MapOp::DelService { key });
        }
    }
}

impl Claimant for Service {
    type Key = ServiceKey;
    /// The view knows more of its entries.
    type Held = ();

    /// One a virtual address.
    fn keys(&self) -> Vec<ServiceKey> {
        let key = |&vip| ServiceKey {
            addr: addr::from_ip(vip),
            scope: 0,
            port_be: self.port.to_be(),
            proto: proto(self.udp()),
            network: 0,
        };
        let mut keys: Vec<ServiceKey> = self.vips.iter().map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, of what `plan` was given")]
fn put(
    view: &mut View,
    snapshot: &Snapshot,
    key: ServiceKey,
    service: &Service,
    scope: Scope,
    now: Duration,
    ops: &mut Ops,
    troubles: &mut Vec<Condition>,
) {
    let vip = addr::to_ip(&key.addr);
    for rival in view.service_claims.rivals(key).filter_map(|id| snapshot.services.get(&id)) {
        troubles.push(of(rival, format!(
            "{vip} port {} is also a virtual address of service {}/{}, which keeps it: give one of them another address",
            service.port, service.namespace, service.name
        )));
    }
    let steps = |service, endpoint| view.ramps.steps(service, endpoint, now);
    let content = Content::of(service, vip.is_ipv6(), snapshot, view, &steps);
    if service.why.is_some() && service.traffic.affinity.is_some() {
        troubles.push(of(
            service,
            format!(
                "port {} needs the proxy, which knows no affinity yet: each request is balanced for itself",
                service.port
            ),
        ));
    }
    let slots = content.table_len();
    if service.traffic.balancing == Balancing::Maglev && slots > MAGLEV_SLOTS {
        troubles.push(of(
            service,
            format!(
                "{vip}: {slots} endpoints are too many for maglev (at most {MAGLEV_SLOTS}): drawn by weight"
            ),
        ));
    }
    if let Some(problem) = unreachable_family(service, snapshot, vip, &content) {
        troubles.push(of(service, problem));
    }
    let shorter = view.services.get(&key).is_some_and(|held| {
        content.table_len() < held.value.table_len || content.fallback_len() < held.value.fallback_len
    });
    if shorter && !scope.full {
        return;
    }
    match view.put_service(key, &content, now, &mut ops.slots, &mut ops.services) {
        Ok(()) => {}
        Err(full) => {
            view.waiting_services.insert(key, full);
            troubles.push(of(service, explain(full, view, vip, service.port)));
        }
    }
}

/// A virtual address whose service has endpoints, but none that a client of this family can reach. Where the
/// service has an address of the other family too, clients have a way: addresses come in pairs from the pool,
/// also to services whose workloads have IPv4 alone.
fn unreachable_family(
    service: &Service,
    snapshot: &Snapshot,
    vip: IpAddr,
    content: &Content,
) -> Option<String> {
    let bypass = match &content.fallback {
        Fallback::Absent | Fallback::Table => &content.table,
        Fallback::Own(choices) => choices,
    };
    let of_other_family = |service: &Service| {
        service.serving().iter().any(|e| if vip.is_ipv6() { e.v4.is_some() } else { e.v6.is_some() })
    };
    let others = if service.split {
        service.backends.iter().filter_map(|id| snapshot.services.get(id)).any(|s| of_other_family(s))
    } else {
        of_other_family(service)
    };
    let other_way = service.vips.iter().any(|other| other.is_ipv6() != vip.is_ipv6());
    let none =
        content.table.is_empty() && others && !other_way && (service.routes.is_none() || bypass.is_empty());
    let family = if vip.is_ipv6() { "IPv6" } else { "IPv4" };
    let effect = if content.fallback == Fallback::Absent { "" } else { " while the proxy is gone" };
    none.then(|| {
        format!(
            "virtual address {vip} port {}: no endpoint has an {family} address, connections are refused{effect}: \
             give the workloads one, or the service no {family} address",
            service.port
        )
    })
}

fn explain(full: Full, view: &View, vip: IpAddr, port: u16) -> String {
    let what = format!("virtual address {vip} port {port} stays as it was");
    match full {
        Full::Services => format!(
            "{what}: map SERVICES is full ({} entries): raise --map-services",
            view.capacities.services
        ),
        Full::Slots(len, room) if room.free >= len => format!(
            "{what}: map ENDPOINTS ({} slots) is fragmented: {len} slots in a row are needed, {} are free, the \
             longest range has {}: raise --map-endpoints",
            view.slots.capacity(),
            room.free,
            room.longest
        ),
        Full::Slots(len, room) => format!(
            "{what}: map ENDPOINTS is full ({} slots): {len} are needed, {} are free, {} soon: raise --map-endpoints",
            view.slots.capacity(),
            room.free,
            room.resting
        ),
    }
}

fn of(service: &Service, problem: String) -> Condition {
    condition(Kind::Service, &service.namespace, &service.name, problem)
}
