//! The snapshot as JSON, for people: what the node runs, by name, in order.

use mesh_core::snapshot::{Endpoint, OnProxyLoss, Service, Snapshot, Workload};
use serde_json::{Value, json};

/// All of it.
pub fn snapshot(snapshot: &Snapshot) -> Value {
    let mut services: Vec<&Service> = snapshot.services.values().map(|s| &**s).collect();
    services.sort_by_key(|s| (s.namespace.clone(), s.name.clone(), s.port));
    let mut workloads: Vec<&Workload> = snapshot.workloads.values().map(|w| &**w).collect();
    workloads.sort_by_key(|w| (w.namespace(), w.name()));
    json!({
        "epoch": snapshot.epoch,
        "revision": crate::config::resource::show_revision(&snapshot.revision),
        "trustDomain": &*snapshot.trust_domain,
        "services": services.into_iter().map(|s| service(snapshot, s)).collect::<Vec<_>>(),
        "workloads": workloads.into_iter().map(workload).collect::<Vec<_>>(),
    })
}

fn service(snapshot: &Snapshot, service: &Service) -> Value {
    let serving = service.serving().len();
    let endpoint = |(i, e): (usize, &Endpoint)| {
        json!({
            "id": e.id,
            "workload": snapshot.workloads.get(&e.workload).map(|w| &*w.full_name),
            "v4": e.v4,
            "v6": e.v6,
            "port": e.port,
            "weight": e.weight,
            "local": e.local,
            "serving": i < serving,
            "near": snapshot.workloads.get(&e.workload).map(|w| w.nearness.name()),
        })
    };
    let fallback = |(id, weight): &(u32, u32)| {
        let name = snapshot.services.get(id).map(|s| format!("{}/{}:{}", s.namespace, s.name, s.port));
        json!({ "service": name, "weight": weight })
    };
    json!({
        "id": service.id,
        "namespace": &*service.namespace,
        "name": &*service.name,
        "port": service.port,
        "portName": &*service.port_name,
        "vips": service.vips,
        "protocol": service.protocol.as_str_name().to_ascii_lowercase(),
        "path": if service.why.is_some() { "proxy" } else { "kernel" },
        "why": service.why.map(mesh_core::snapshot::Why::name),
        "onProxyLoss": if service.on_proxy_loss == OnProxyLoss::Bypass { "bypass" } else { "refuse" },
        "inbound": if service.inbound_proxy { "proxy" } else { "kernel" },
        "routed": service.routes.is_some() || service.consumers.is_some() || service.split,
        "endpoints": service.endpoints.iter().enumerate().map(endpoint).collect::<Vec<_>>(),
        "fallback": service.fallback.iter().map(fallback).collect::<Vec<_>>(),
    })
}

fn workload(workload: &Workload) -> Value {
    json!({
        "id": workload.id,
        "namespace": workload.namespace(),
        "name": workload.name(),
        "serviceAccount": &*workload.service_account,
        "node": &*workload.node,
        "local": workload.local,
        "hostNetwork": workload.host_network,
        "near": workload.nearness.name(),
        "priority": workload.priority,
        "addresses": workload.addresses,
        "ports": workload.ports.iter().map(|p| json!({
            "port": p.port, "service": p.service, "endpoint": p.endpoint, "proxy": p.proxy,
            "inbound": if p.inbound_proxy { "proxy" } else { "kernel" },
        })).collect::<Vec<_>>(),
    })
}
