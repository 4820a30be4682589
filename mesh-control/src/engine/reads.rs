//! What the API shows: objects with what was observed of them, and the state of the mesh.
//!
//! Reads come from the registry (memory), which is at most the pump's latency behind the store; a single
//! object that people wrote is read from the store.
//!
//! `observed` beside `spec` and `status`: endpoints of a service and why it takes the proxy path, the
//! services and the owner of a workload.

use std::time::Instant;

use mesh_api::proto::v1::Health;
use mesh_api::resource::{Condition, Key, Kind, Resource, Spec};
use mesh_api::selector::LabelSelector;
use mesh_registry::registry::Registry;
use mesh_registry::source::Owner;
use mesh_registry::store::StoreError;
use serde_json::{Value, json};

use super::Engine;
use super::why::Whys;
use super::writes::is_problem;

/// Which objects of a kind are listed.
pub struct Page<'a> {
    /// Of one namespace; `None`: of all.
    pub namespace: Option<&'a str>,
    /// With these labels.
    pub selector: &'a LabelSelector,
    /// After this namespace and name.
    pub after: Option<(String, String)>,
    /// So many at most.
    pub limit: Option<usize>,
}

impl Engine {
    /// A page of the objects of a kind, the revision that they are of, and where the next page begins if there is
    /// one.
    pub fn list(&self, kind: Kind, page: &Page<'_>) -> (u64, Vec<Value>, Option<String>) {
        let registry = self.registry.lock();
        let place = |object: &Resource| (object.metadata.namespace.clone(), object.metadata.name.clone());
        let mut objects = registry.list(kind).map(|(_, object)| object).filter(|object| {
            page.namespace.is_none_or(|namespace| object.metadata.namespace == namespace)
                && page.after.as_ref().is_none_or(|after| place(object) > *after)
                && page.selector.matches(&object.metadata.labels)
        });
        let whys = Whys::of(&registry, kind);
        let (mut items, mut last) = (Vec::new(), None);
        for object in objects.by_ref().take(page.limit.unwrap_or(usize::MAX)) {
            items.push(self.shown(&registry, &whys, object));
            last = page.limit.map(|_| place(object));
        }
        let more = objects.next().and(last).map(|(namespace, name)| format!("{namespace}/{name}"));
        (registry.revision(), items, more)
    }

    /// What an owner holds of intent.
    pub fn owned_by(&self, owner: &Owner) -> Vec<Key> {
        let registry = self.registry.lock();
        let of_kind = |kind| registry.list(kind).filter(|(holder, _)| *holder == owner);
        let keys = Kind::ALL.into_iter().flat_map(of_kind).map(|(_, object)| object.key());
        keys.collect()
    }

    /// One object, whoever owns it.
    pub fn get(&self, key: &Key) -> Option<(u64, Value)> {
        let registry = self.registry.lock();
        let object = registry.get(key)?;
        let whys = Whys::of(&registry, key.kind);
        Some((object.metadata.revision, self.shown(&registry, &whys, object)))
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
        for (lease, replica) in self.replicas.heard_elsewhere() {
            if let Some(node) = lease.strip_prefix("node:") {
                nodes[node]["replica"] = replica.into();
            }
        }
        let revision = registry.revision();
        drop(registry);
        let mut conditions: Vec<_> = self.held.lock().iter().map(|held| held.condition()).collect();
        conditions.extend(self.store.trouble().map(|cause| {
            Condition::new("StoreWritable", false, "NoQuorum", StoreError::Unavailable { cause }.to_string())
        }));
        conditions.extend(self.jwks.conditions().into_iter().filter(is_problem));
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
            "replicas": self.replicas.show(),
            "conditions": conditions,
            "files": self.files.status(),
        })
    }

    fn shown(&self, registry: &Registry, whys: &Whys, object: &Resource) -> Value {
        let key = object.key();
        let mut out = object.clone();
        out.status.conditions = self.conditions(registry, &key);
        let mut out = out.to_json();
        match &object.spec {
            Spec::Service(spec) => {
                let endpoints = registry.endpoints(&key);
                let healthy = endpoints.iter().filter(|(_, one)| one.health() == Health::Healthy).count();
                out["observed"] = json!({
                    "endpoints": endpoints.len(),
                    "healthy": healthy,
                    "proxy": whys.of_service(&key, &spec.ports),
                });
            }
            Spec::Workload(_) => {
                let owner = registry.owner(&key).map(ToString::to_string);
                let lease = registry.lease_of(&key).map(|lease| lease.name.clone());
                out["observed"] = json!({
                    "services": services(registry, &key),
                    "owner": owner,
                    "lease": lease,
                    "health": super::health::line(registry, &key),
                });
            }
            _ => {}
        }
        out
    }
}

/// `name:port[/udp]->targetPort` of what a workload serves.
fn services(registry: &Registry, workload: &Key) -> Vec<String> {
    use prost::Message;
    let Some(wire) = registry.wire_of(workload) else { return Vec::new() };
    let Ok(message) = mesh_api::proto::v1::Workload::decode(&*wire.body) else { return Vec::new() };
    let shown = message.services.iter().map(|s| {
        let udp = if s.udp { "/udp" } else { "" };
        format!("{}:{}{udp}->{}", s.service, s.service_port, s.target_port)
    });
    shown.collect()
}
