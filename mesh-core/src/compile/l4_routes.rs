//! TCP and UDP routes: the weights by which the connections of a service port are spread over other services.
//!
//! Resolved where the parent is compiled; nothing of them is kept. A backend that does not exist, or has no
//! endpoint, leaves its share to the others and is named.
//!
//! Invariant: of several routes on one port the oldest rules it, then the first by name.

use std::collections::BTreeMap;

use mesh_api::proto::v1::{self, Protocol};

use super::Compiler;
use super::routes::Routed;
use super::services::is_udp;
use crate::model::{Kind, Name, RouteName, join};
use crate::snapshot::ServiceId;

/// As for HTTP routes.
const WEIGHT_MAX: u32 = 1_000_000;

impl Compiler {
    /// Where the connections of a port that no HTTP route is attached to go.
    pub(super) fn l4_routed(&self, service: &Name, id: ServiceId, port: &v1::ServicePort) -> Routed {
        let Some((_, route)) = self.ruling(service, port) else {
            return Routed {
                table: None,
                consumers: None,
                fallback: vec![(id, 1)],
                split: false,
                backends: vec![id],
            };
        };
        let mut weights: BTreeMap<ServiceId, u32> = BTreeMap::new();
        for backend in route.backends.iter().filter(|b| b.weight > 0) {
            if let Ok(id) = self.l4_backend(backend, is_udp(port)) {
                let sum = weights.entry(id).or_default();
                *sum = sum.saturating_add(backend.weight.min(WEIGHT_MAX));
            }
        }
        let backends = weights.keys().copied().collect();
        Routed {
            table: None,
            consumers: None,
            fallback: weights.into_iter().collect(),
            split: true,
            backends,
        }
    }

    /// The route that rules a port.
    fn ruling(&self, service: &Name, port: &v1::ServicePort) -> Option<(RouteName, v1::TcpRoute)> {
        let kind = kind_of(port.protocol())?;
        let on_port = |route: &v1::TcpRoute| {
            route.parents.iter().any(|p| covers(p, port) && *join(&p.namespace, &p.service) == **service)
        };
        let of_kind = self.model.l4_children(service).filter(|name| name.0 == kind);
        let attached = of_kind.filter_map(|name| Some((name.clone(), self.model.l4_route(name)?)));
        let attached = attached.filter(|(_, route)| on_port(route));
        attached.min_by(|(a, old), (b, new)| (old.created_ms, a).cmp(&(new.created_ms, b)))
    }

    fn l4_backend(&self, backend: &v1::WeightedBackend, udp: bool) -> Result<ServiceId, String> {
        let to = backend.backend.clone().unwrap_or_default();
        self.port_id(&join(&to.namespace, &to.service), to.port, udp)
    }

    /// Names what is wrong with a route.
    pub(super) fn check_l4_route(&mut self, name: &RouteName) {
        let mut problems = Vec::new();
        if let Some(route) = self.model.l4_route(name) {
            for parent in &route.parents {
                problems.extend(self.l4_parent_problems(name, parent));
            }
            let backends = route.backends.iter().enumerate();
            problems.extend(backends.filter_map(|(i, backend)| {
                let found = self.l4_backend(backend, name.0 == Kind::UdpRoute);
                found
                    .err()
                    .map(|why| format!("rules[0].backendRefs[{i}]: {why}: its share goes to the others"))
            }));
            if route.backends.iter().all(|b| b.weight == 0) {
                problems.push("rules[0].backendRefs: all weights are 0: what is sent is refused".to_owned());
            }
        }
        self.problems.set(name.0, &name.1, 0, problems);
    }

    fn l4_parent_problems(&self, name: &RouteName, parent: &v1::ServiceRef) -> Vec<String> {
        let service_name = join(&parent.namespace, &parent.service);
        let Some(service) = self.model.service(&service_name) else {
            return vec![format!("parent service {service_name} does not exist")];
        };
        let ports: Vec<_> = service
            .ports
            .iter()
            .filter(|port| kind_of(port.protocol()) == Some(name.0) && covers(parent, port))
            .collect();
        if ports.is_empty() {
            let which = if parent.port == 0 { "port".to_owned() } else { format!("port {}", parent.port) };
            let protocol = if name.0 == Kind::UdpRoute { "udp" } else { "tcp or tls" };
            return vec![format!("parent service {service_name} has no {which} of protocol {protocol}")];
        }
        let ruled = ports.into_iter().filter_map(|port| {
            let number = port.port;
            if let Some((kind, route)) = self.has_tls_route(&service_name, port) {
                return Some(format!(
                    "port {number} of service {service_name} has {kind} {route}, which comes first"
                ));
            }
            let (ruling, _) = self.ruling(&service_name, port)?;
            (ruling != *name).then(|| {
                format!(
                    "port {number} of service {service_name} is ruled by the older {} {}",
                    ruling.0, ruling.1
                )
            })
        });
        ruled.collect()
    }
}

/// Does this parent name the port?
fn covers(parent: &v1::ServiceRef, port: &v1::ServicePort) -> bool {
    parent.port == 0 || parent.port == port.port
}

/// The kind of route that is for ports of a protocol.
fn kind_of(protocol: Protocol) -> Option<Kind> {
    match protocol {
        Protocol::Udp => Some(Kind::UdpRoute),
        Protocol::Tcp | Protocol::Tls => Some(Kind::TcpRoute),
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Auto => None,
    }
}
