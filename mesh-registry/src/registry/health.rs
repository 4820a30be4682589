//! What a workload's health comes to for the services that it serves.
//!
//! Where nobody asks a workload, it is taken for well; where nobody has said anything of it yet, too, but while it has
//! just come and its agent is about to say.
//! Not here: who asks (agents), what unhealthy endpoints are sent (nothing; mesh-core's compile).

use mesh_api::proto::v1::{self, WorkloadService};
use mesh_api::resource::{CheckState, Condition, Health, Key, Resource, ServiceSpec, WorkloadHealth};

use super::Registry;

/// Endpoints that a condition names.
const NAMED: usize = 3;

/// Does anybody ask the workloads behind this port?
fn asks(spec: &ServiceSpec, port: u16, udp: bool) -> bool {
    let own = |p: &&mesh_api::resource::ServicePort| (p.port, p.protocol.is_udp()) == (port, udp);
    spec.health_check.is_some() || spec.ports.iter().find(own).is_some_and(|p| p.health_check.is_some())
}

impl Registry {
    /// Says of each membership how its endpoint is.
    pub(super) fn judge(&self, workload: &Resource, memberships: &mut [WorkloadService]) {
        let Some(health) = &workload.status.health else { return };
        for one in memberships {
            let port = one.service_port as u16;
            let Some(spec) = self.service(&workload.metadata.namespace, &one.service) else { continue };
            let found = if !health.drained.is_empty() {
                v1::Health::Draining
            } else if asks(spec, port, one.udp) && state(health, one).0 != Health::Healthy {
                v1::Health::Unhealthy
            } else {
                v1::Health::Healthy
            };
            one.health = found.into();
        }
    }

    /// Whether a Service has anybody who is well; `None`: nobody asks, or nobody serves it.
    pub(super) fn healthy(&self, service: &Resource, spec: &ServiceSpec) -> Option<Condition> {
        if spec.health_check.is_none() && spec.ports.iter().all(|port| port.health_check.is_none()) {
            return None;
        }
        let endpoints = self.endpoints(&service.key());
        let (ill, all) =
            (endpoints.iter().filter(|(_, one)| one.health() != v1::Health::Healthy), endpoints.len());
        let ill: Vec<_> = ill.collect();
        if all == 0 || ill.len() < all {
            let message = match ill.len() {
                0 => String::new(),
                some => format!("{some} of its {all} endpoints are not healthy"),
            };
            return (all > 0).then(|| Condition::new("Healthy", true, "Healthy", message));
        }
        let named = ill.iter().take(NAMED).map(|(workload, one)| {
            let (_, why) = self.of_endpoint(workload, one);
            format!("{}: {why}", workload.wire_name())
        });
        let named = named.collect::<Vec<_>>().join("; ");
        let more = if all > NAMED { format!("; and {} more", all - NAMED) } else { String::new() };
        let message = format!("none of its {all} endpoints is healthy: {named}{more}");
        Some(Condition::new("Healthy", false, "NoHealthyEndpoints", message))
    }

    /// How an endpoint is, and why, for people.
    pub fn of_endpoint(&self, workload: &Key, one: &WorkloadService) -> (&'static str, String) {
        let health = self.get(workload).and_then(|resource| resource.status.health.as_ref());
        let Some(health) = health else { return ("healthy", String::new()) };
        if !health.drained.is_empty() {
            return ("draining", health.drained.clone());
        }
        if one.health() == v1::Health::Healthy {
            return ("healthy", String::new());
        }
        let (state, why) = state(health, one);
        (state.name(), why)
    }

    /// What the check that decides for an endpoint says; `None`: there is none, or it has said nothing.
    pub fn check_of(&self, workload: &Key, one: &WorkloadService) -> Option<CheckState> {
        let health = self.get(workload)?.status.health.as_ref()?;
        health.of(&one.service, one.service_port as u16, one.udp).cloned()
    }
}

/// What the workload's check says of a membership that is asked.
fn state(health: &WorkloadHealth, one: &WorkloadService) -> (Health, String) {
    match health.of(&one.service, one.service_port as u16, one.udp) {
        Some(check) => (check.health, check.reason.clone()),
        None if health.starting => {
            (Health::Starting, "it has just come, and no check has passed yet".to_owned())
        }
        None => (Health::Healthy, String::new()),
    }
}
