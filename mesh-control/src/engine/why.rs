//! Why connections to a service's port go through the proxy, for people: the rule that agents compile into
//! their maps, told from the same objects.
//!
//! Read once a listing: a service then costs its own routes and policies, not everybody's.

use std::collections::BTreeMap;

use mesh_api::resource::{HttpMode, Inbound, Key, Kind, Protocol, ServicePort, Spec};
use mesh_registry::registry::Registry;

/// Namespace and service.
type Name = (String, String);

/// Everything that attaches to services.
pub struct Whys {
    /// Ports that routes attach to which the proxy carries out; `None`: all.
    routed: BTreeMap<Name, Vec<Option<u16>>>,
    /// What policies say, oldest first: port name (`None`: all) and mode.
    modes: BTreeMap<Name, Vec<(Option<String>, HttpMode)>>,
    default: HttpMode,
}

impl Whys {
    /// What attaches to services; empty when other kinds are shown.
    pub fn of(registry: &Registry, kind: Kind) -> Self {
        let default = match registry.get(&Key::mesh()).map(|mesh| &mesh.spec) {
            Some(Spec::Mesh(spec)) => spec.http,
            _ => HttpMode::default(),
        };
        let mut whys = Self { routed: BTreeMap::new(), modes: BTreeMap::new(), default };
        if kind == Kind::Service {
            whys.read(registry);
        }
        whys
    }

    fn read(&mut self, registry: &Registry) {
        let kinds = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute];
        for (_, route) in kinds.into_iter().flat_map(|kind| registry.list(kind)) {
            let parents = match &route.spec {
                Spec::HttpRoute(spec) => &spec.parent_refs,
                Spec::GrpcRoute(spec) => &spec.parent_refs,
                Spec::TlsRoute(spec) => &spec.parent_refs,
                _ => continue,
            };
            for parent in parents {
                let own = &route.metadata.namespace;
                let name = (parent.namespace.clone().unwrap_or_else(|| own.clone()), parent.name.clone());
                self.routed.entry(name).or_default().push(parent.port);
            }
        }
        let mut policies: Vec<_> = registry.list(Kind::TrafficPolicy).map(|(_, policy)| policy).collect();
        policies.sort_by_key(|policy| (policy.metadata.created_ms, &policy.metadata.name));
        for policy in policies {
            let Spec::TrafficPolicy(spec) = &policy.spec else { continue };
            let Some(mode) = spec.http else { continue };
            for target in &spec.target_refs {
                let name = (policy.metadata.namespace.clone(), target.name.clone());
                self.modes.entry(name).or_default().push((target.section_name.clone(), mode));
            }
        }
    }

    /// `port:why` of every port that takes the proxy path.
    pub fn of_service(&self, service: &Key, ports: &[ServicePort]) -> Vec<String> {
        let name = (service.namespace.clone(), service.name.clone());
        ports.iter().filter_map(|port| self.of_port(&name, port)).collect()
    }

    fn of_port(&self, service: &Name, port: &ServicePort) -> Option<String> {
        let mut whys = Vec::new();
        if matches!(port.protocol, Protocol::Http | Protocol::Auto | Protocol::Tls) {
            let attached = |at: &Option<u16>| at.is_none_or(|at| at == port.port);
            if self.routed.get(service).is_some_and(|ports| ports.iter().any(attached)) {
                whys.push("route");
            } else if port.protocol != Protocol::Tls && self.mode(service, &port.name) == HttpMode::Proxy {
                whys.push(if port.protocol == Protocol::Auto { "detect" } else { "http" });
            }
        }
        if port.inbound == Inbound::Proxy {
            whys.push("inbound");
        }
        let label = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
        (!whys.is_empty()).then(|| format!("{label}:{}", whys.join("+")))
    }

    /// The oldest policy of the port, then of the service, then the mesh's default.
    fn mode(&self, service: &Name, port_name: &str) -> HttpMode {
        let said = self.modes.get(service).map_or(&[][..], Vec::as_slice);
        let find = |section: Option<&str>| {
            said.iter().find(|(name, _)| name.as_deref() == section).map(|(_, mode)| *mode)
        };
        find(Some(port_name)).or_else(|| find(None)).unwrap_or(self.default)
    }
}
