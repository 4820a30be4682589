//! What the API shows: objects with what was observed of them, and the state of the mesh.
//!
//! Reads come from the registry (memory), which is at most the pump's latency behind the store; a single
//! object that people wrote is read from the store.
//!
//! `observed` beside `spec` and `status`: endpoints of a service and why it takes the proxy path, the
//! services and the owner of a workload.

use std::time::Instant;

use mesh_api::resource::{HttpMode, Inbound, Key, Kind, Protocol, Resource, ServicePort, Spec};
use mesh_registry::registry::Registry;
use serde_json::{Value, json};

use super::Engine;

impl Engine {
    /// Objects of a kind, of one namespace or of all, and the revision that they are of.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> (u64, Vec<Value>) {
        let registry = self.registry.lock();
        let objects =
            registry.list(kind).filter(|(_, o)| namespace.is_none_or(|ns| o.metadata.namespace == ns));
        let items = objects.map(|(_, object)| shown(&registry, object)).collect();
        (registry.revision(), items)
    }

    /// One object, whoever owns it.
    pub fn get(&self, key: &Key) -> Option<(u64, Value)> {
        let registry = self.registry.lock();
        let object = registry.get(key)?;
        Some((object.metadata.revision, shown(&registry, object)))
    }

    /// The page of `GET /v1/status`.
    pub fn status(&self) -> Value {
        let now = Instant::now();
        let registry = self.registry.lock();
        let leases: Vec<Value> = registry
            .leases()
            .iter()
            .map(|lease| {
                let left = lease.deadline.saturating_duration_since(now);
                json!({
                    "name": lease.name,
                    "ttlSeconds": lease.ttl.as_secs_f64(),
                    "leftSeconds": left.as_secs_f64(),
                    "workloads": lease.registrations,
                })
            })
            .collect();
        let mut nodes = json!(self.nodes.list());
        for lease in registry.leases().iter() {
            if let Some(node) = lease.name.strip_prefix("node:") {
                nodes[node]["workloads"] = lease.registrations.into();
            }
        }
        let revision = registry.revision();
        drop(registry);
        let conditions: Vec<_> = self.held.lock().iter().map(|held| held.condition()).collect();
        let counts: Value = Kind::ALL
            .into_iter()
            .zip(self.hub.counts())
            .map(|(kind, count)| (kind.plural().to_owned(), Value::from(count)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        json!({
            "storeId": self.store.id(),
            "revision": revision,
            "ready": self.ready(),
            "resources": counts,
            "nodes": nodes,
            "leases": leases,
            "conditions": conditions,
        })
    }
}

fn shown(registry: &Registry, object: &Resource) -> Value {
    let key = object.key();
    let mut out = object.clone();
    out.status.conditions = registry.conditions(&key);
    let mut out = out.to_json();
    match &object.spec {
        Spec::Service(spec) => {
            let endpoints = registry.endpoints(&key).len();
            let routed = routed_ports(registry, &key);
            let proxy: Vec<String> =
                spec.ports.iter().filter_map(|port| why_proxy(registry, &key, port, &routed)).collect();
            out["observed"] = json!({ "endpoints": endpoints, "proxy": proxy });
        }
        Spec::Workload(_) => {
            let owner = registry.owner(&key).map(ToString::to_string);
            let lease = registry.lease_of(&key).map(|lease| lease.name.clone());
            out["observed"] = json!({ "services": services(registry, &key), "owner": owner, "lease": lease });
        }
        _ => {}
    }
    out
}

/// `name:port->targetPort` of what a workload serves.
fn services(registry: &Registry, workload: &Key) -> Vec<String> {
    use prost::Message;
    let Some(wire) = registry.wire_of(workload) else { return Vec::new() };
    let Ok(message) = mesh_api::proto::v1::Workload::decode(&*wire.body) else { return Vec::new() };
    message.services.iter().map(|s| format!("{}:{}->{}", s.service, s.service_port, s.target_port)).collect()
}

/// Ports of a service that HTTP routes attach to; `None`: all.
fn routed_ports(registry: &Registry, service: &Key) -> Vec<Option<u16>> {
    let routes = registry.list(Kind::HttpRoute).filter(|(_, r)| r.metadata.namespace == service.namespace);
    routes
        .filter_map(|(_, route)| match &route.spec {
            Spec::HttpRoute(spec) => Some(spec),
            _ => None,
        })
        .flat_map(|spec| &spec.parent_refs)
        .filter(|parent| parent.name == service.name)
        .map(|parent| parent.port)
        .collect()
}

/// Why connections to a port go through the proxy: the same rule that agents compile into their maps.
fn why_proxy(
    registry: &Registry,
    service: &Key,
    port: &ServicePort,
    routed: &[Option<u16>],
) -> Option<String> {
    let label = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
    let why = if port.protocol == Protocol::Http {
        let route = routed.iter().any(|at| at.is_none_or(|at| at == port.port));
        if route {
            "route"
        } else if http_mode(registry, service, &port.name) == HttpMode::Proxy {
            "http"
        } else {
            ""
        }
    } else {
        ""
    };
    let inbound = if port.inbound == Inbound::Proxy { "inbound" } else { "" };
    let whys: Vec<_> = [why, inbound].into_iter().filter(|why| !why.is_empty()).collect();
    (!whys.is_empty()).then(|| format!("{label}:{}", whys.join("+")))
}

/// The oldest policy of the port, then of the service, then the mesh's default.
fn http_mode(registry: &Registry, service: &Key, port_name: &str) -> HttpMode {
    let mut policies: Vec<_> = registry
        .list(Kind::TrafficPolicy)
        .map(|(_, policy)| policy)
        .filter(|policy| policy.metadata.namespace == service.namespace)
        .collect();
    policies.sort_by_key(|policy| (policy.metadata.created_ms, policy.metadata.name.clone()));
    let find = |section: Option<&str>| {
        policies.iter().find_map(|policy| {
            let Spec::TrafficPolicy(spec) = &policy.spec else { return None };
            let targets = spec
                .target_refs
                .iter()
                .any(|target| target.name == service.name && target.section_name.as_deref() == section);
            spec.http.filter(|_| targets)
        })
    };
    let mesh = || match registry.get(&Key::mesh()).map(|mesh| &mesh.spec) {
        Some(Spec::Mesh(spec)) => spec.http,
        _ => HttpMode::Proxy,
    };
    find(Some(port_name)).or_else(|| find(None)).unwrap_or_else(mesh)
}
