//! Who serves a port: `ClusterLoadAssignment`s.
//!
//! Endpoints of one priority and place are a group; priorities are made to follow on each other, as Envoy and gRPC want
//! them. An endpoint of weight 0, like one that is drained, takes nothing new and keeps what it has. Of a workload with
//! several addresses the first is told.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::proto::v1::Health;
use mesh_api::resource::{Key, Kind, Spec};
use serde_json::{Value, json};

use crate::look::{Look, Target};

/// Endpoints of a port, and which workloads they are.
#[derive(Debug, Default, PartialEq)]
pub struct Endpoints {
    /// `LocalityLbEndpoints`.
    pub groups: Vec<Value>,
    /// `<namespace>/<name>` of each workload.
    pub workloads: BTreeSet<String>,
}

/// The assignment of a port's cluster.
pub fn assignment(look: &Look<'_>, target: &Target) -> Option<(Value, BTreeSet<String>)> {
    let port = look.port(target)?;
    let found = endpoints(look, target);
    let locality = look.policies(target, port).into_iter().find_map(|policy| policy.locality.as_ref());
    let mut json = json!({ "cluster_name": target.to_string(), "endpoints": found.groups });
    if let Some(locality) = locality {
        json["policy"] = json!({ "overprovisioning_factor": locality.overprovisioning_percent });
    }
    Some((json, found.workloads))
}

/// Endpoints of a port by priority and place.
pub fn endpoints(look: &Look<'_>, target: &Target) -> Endpoints {
    let service = Key::new(Kind::Service, &target.namespace, &target.service);
    let mut found = Endpoints::default();
    let mut groups: BTreeMap<(u8, String, String), (u64, Vec<Value>)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (key, served) in look.registry.endpoints(&service) {
        if served.udp || served.service_port != u32::from(target.port) {
            continue;
        }
        let Some(workload) = look.registry.get(&key) else { continue };
        let Spec::Workload(spec) = &workload.spec else { continue };
        let Some(address) = spec.addresses.first() else { continue };
        found.workloads.insert(key.wire_name());
        // gRPC refuses an assignment that names an address twice.
        if !seen.insert((*address, served.target_port)) {
            continue;
        }
        let health = match (served.weight, served.health()) {
            (_, Health::Unhealthy) => "UNHEALTHY",
            (0, _) | (_, Health::Draining) => "DRAINING",
            (_, Health::Healthy) => "HEALTHY",
        };
        let weight = served.weight.max(1);
        let place = spec.locality.clone().unwrap_or_default();
        let (total, all) = groups.entry((spec.priority, place.region, place.zone)).or_default();
        *total += u64::from(weight);
        let socket = json!({ "address": address.to_string(), "port_value": served.target_port });
        all.push(json!({
            "endpoint": { "address": { "socket_address": socket } },
            "health_status": health,
            "load_balancing_weight": weight,
        }));
    }
    let priorities: Vec<u8> =
        groups.keys().map(|(priority, _, _)| *priority).collect::<BTreeSet<_>>().into_iter().collect();
    for ((priority, region, zone), (total, all)) in groups {
        let level = priorities.iter().position(|other| *other == priority).unwrap_or_default();
        found.groups.push(json!({
            "locality": { "region": region, "zone": zone },
            "priority": level,
            "load_balancing_weight": total.min(u64::from(u32::MAX / 2)),
            "lb_endpoints": all,
        }));
    }
    found
}
