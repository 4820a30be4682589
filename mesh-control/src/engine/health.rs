//! How workloads and services are: taken from agents, shown to people.
//!
//! Active checks are the workload's own state, in the store; what single nodes leave out for what they saw is theirs,
//! and is put beside it here.

use std::sync::Arc;

use mesh_api::resource::{Key, Kind, RecoveryAction, Spec, WorkloadHealth};
use mesh_registry::intent::{Intents, WriteError};
use mesh_registry::registry::Registry;
use mesh_registry::source::Owner;
use serde_json::{Value, json};

use super::Engine;

impl Engine {
    /// Notes how a registered workload is; `None`: nothing has changed.
    pub async fn report(
        self: &Arc<Self>,
        owner: Owner,
        key: Key,
        health: WorkloadHealth,
    ) -> Result<Option<u64>, WriteError> {
        self.blocking(move |engine| {
            engine.commit(|| Intents::new(&**engine.store()).report(&owner, &key, &health))
        })
        .await
    }

    /// Does this service ask for this URL to be told? What agents say is not enough to call anybody.
    pub fn has_webhook(&self, namespace: &str, service: &str, url: &str) -> bool {
        let Some(Spec::Service(spec)) = self.spec_of(&Key::new(Kind::Service, namespace, service)) else {
            return false;
        };
        let steps = spec.recovery.map(|recovery| recovery.steps).unwrap_or_default();
        steps.iter().any(|step| matches!(&step.action, RecoveryAction::Webhook(hook) if hook.url == url))
    }

    /// The page of `GET /v1/health/{namespace}/{service}`; `None`: there is no such service.
    pub fn health_of(&self, service: &Key) -> Option<Value> {
        let name = service.wire_name();
        let nodes = self.nodes.list();
        let registry = self.registry.lock();
        let Spec::Service(spec) = &registry.get(service)?.spec else { return None };
        let endpoints: Vec<Value> = registry
            .endpoints(service)
            .iter()
            .map(|(workload, one)| {
                let (health, reason) = registry.of_endpoint(workload, one);
                let check = registry.check_of(workload, one);
                let on = match registry.get(workload).map(|object| &object.spec) {
                    Some(Spec::Workload(spec)) => {
                        (spec.node.clone(), spec.addresses.first().map(ToString::to_string))
                    }
                    _ => Default::default(),
                };
                let at = (&*name, one.service_port, workload.wire_name());
                let out = nodes.iter().filter(|(_, node)| {
                    node.ejections.iter().any(|e| (&*e.service, e.port, &e.workload) == (at.0, at.1, &at.2))
                });
                json!({
                    "workload": at.2,
                    "node": on.0,
                    "address": on.1,
                    "port": one.service_port,
                    "udp": one.udp,
                    "targetPort": one.target_port,
                    "weight": one.weight,
                    "health": health,
                    "reason": reason,
                    "sinceMs": check.map(|check| check.since_ms),
                    "ejectedBy": out.map(|(node, _)| node).collect::<Vec<_>>(),
                })
            })
            .collect();
        let asked = spec.health_check.is_some() || spec.ports.iter().any(|port| port.health_check.is_some());
        let conditions = registry.conditions(service);
        drop(registry);
        Some(json!({
            "service": name,
            "checked": asked,
            "endpoints": endpoints,
            "recoveries": self.hooks.of(&name),
            "conditions": conditions,
        }))
    }
}

/// How a workload is, in one line: each check that is not well, or in a word.
pub fn line(registry: &Registry, workload: &Key) -> String {
    let health = registry.get(workload).and_then(|object| object.status.health.as_ref());
    let Some(health) = health else { return String::new() };
    if !health.drained.is_empty() {
        return format!("draining: {}", health.drained);
    }
    if health.starting {
        return "starting".to_owned();
    }
    let ill = health.checks.iter().filter(|check| check.health != mesh_api::resource::Health::Healthy);
    let told: Vec<String> = ill
        .map(|check| {
            let port = if check.port == 0 { String::new() } else { format!(":{}", check.port) };
            format!("{} ({}{port}: {})", check.health.name(), check.service, check.reason)
        })
        .collect();
    match (told.is_empty(), health.checks.is_empty()) {
        (false, _) => told.join(", "),
        (true, true) => String::new(),
        (true, false) => "healthy".to_owned(),
    }
}
