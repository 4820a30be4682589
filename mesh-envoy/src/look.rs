//! What a service port is to Envoy: found in the registry, with the routes and policies that are for it.
//!
//! Made once for a round of generating: its index of routes and policies costs what there is of these, a look-up then
//! only what is for its service.
//! Not here: JSON.

use std::collections::BTreeMap;
use std::fmt;

use mesh_api::resource::{
    Condition, Key, Kind, ParentRef, Protocol, Resource, ServicePort, ServiceSpec, Spec, TrafficPolicySpec,
};
use mesh_registry::registry::Registry;

/// What ends the names of services.
const DOMAIN: &str = ".mesh";

/// One port of a service: what Envoy has a cluster of. Its name is that of cluster, endpoints, and, for gRPC, of
/// listener and routes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Namespace of the service.
    pub namespace: String,
    /// The service.
    pub service: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{DOMAIN}:{}", self.service, self.namespace, self.port)
    }
}

impl Target {
    /// From its parts.
    pub fn new(namespace: &str, service: &str, port: u16) -> Self {
        Self { namespace: namespace.to_owned(), service: service.to_owned(), port }
    }

    /// `<service>.<namespace>.mesh:<port>`
    pub fn parse(name: &str) -> Option<Self> {
        let (host, port) = name.rsplit_once(':')?;
        let (service, namespace) = host.strip_suffix(DOMAIN)?.split_once('.')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let target = Self::new(namespace, service, port);
        // What is written in another way (`:080`) is another name.
        (target.to_string() == name).then_some(target)
    }

    /// Its name without the port.
    pub fn host(&self) -> String {
        format!("{}.{}{DOMAIN}", self.service, self.namespace)
    }
}

type Name = (String, String);

/// The registry, with what is attached to services.
pub struct Look<'a> {
    /// All of it.
    pub registry: &'a Registry,
    routes: BTreeMap<Name, Vec<&'a Resource>>,
    policies: BTreeMap<Name, Vec<&'a Resource>>,
}

impl<'a> Look<'a> {
    /// Indexes what is there.
    pub fn new(registry: &'a Registry) -> Self {
        let (mut routes, mut policies) = (BTreeMap::<Name, Vec<_>>::new(), BTreeMap::<Name, Vec<_>>::new());
        for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
            for (_, route) in registry.list(kind) {
                let namespace = &route.metadata.namespace;
                // A route of another namespace than its parent's is for the clients of that one alone.
                for parent in parents(route).iter().filter(|parent| parent.namespace.is_none()) {
                    let all = routes.entry((namespace.clone(), parent.name.clone())).or_default();
                    if all.last().is_none_or(|last: &&Resource| last.key() != route.key()) {
                        all.push(&**route);
                    }
                }
            }
        }
        for (_, policy) in registry.list(Kind::TrafficPolicy) {
            let Spec::TrafficPolicy(spec) = &policy.spec else { continue };
            for target in &spec.target_refs {
                let name = (policy.metadata.namespace.clone(), target.name.clone());
                policies.entry(name).or_default().push(&**policy);
            }
        }
        let age = |one: &&Resource| (one.metadata.created_ms, one.metadata.name.clone());
        for all in routes.values_mut().chain(policies.values_mut()) {
            all.sort_by_key(age);
        }
        Self { registry, routes, policies }
    }

    /// The service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&'a ServiceSpec> {
        match &self.registry.get(&Key::new(Kind::Service, namespace, name))?.spec {
            Spec::Service(spec) => Some(spec),
            _ => None,
        }
    }

    /// The port, if there is one of streams of that number.
    pub fn port(&self, target: &Target) -> Option<&'a ServicePort> {
        let service = self.service(&target.namespace, &target.service)?;
        service.ports.iter().find(|port| port.port == target.port && !port.protocol.is_udp())
    }

    /// The same, where it speaks HTTP.
    pub fn http_port(&self, target: &Target) -> Option<&'a ServicePort> {
        self.port(target).filter(|port| matches!(port.protocol, Protocol::Http | Protocol::Auto))
    }

    /// Routes that rule a port, the oldest first.
    pub fn routes(&self, target: &Target) -> impl Iterator<Item = &'a Resource> {
        let all = self.routes.get(&(target.namespace.clone(), target.service.clone()));
        let of_port = |route: &&&'a Resource| {
            let here = |parent: &&ParentRef| parent.namespace.is_none() && parent.name == target.service;
            parents(route)
                .iter()
                .filter(here)
                .any(|parent| parent.port.is_none_or(|port| port == target.port))
        };
        let lost = |condition: &Condition| condition.kind == "Accepted" && condition.reason == "Conflicted";
        let holds = |route: &&&'a Resource| !self.registry.conditions_of(route).iter().any(lost);
        let all = all.into_iter().flatten().filter(of_port).filter(holds);
        all.copied().collect::<Vec<_>>().into_iter()
    }

    /// What policies say of a port: one for its section comes before one for the service, the older before the newer.
    /// Fields are looked for in this order.
    pub fn policies(&self, target: &Target, port: &ServicePort) -> Vec<&'a TrafficPolicySpec> {
        let all = self.policies.get(&(target.namespace.clone(), target.service.clone()));
        let specs = all.into_iter().flatten().filter_map(|policy| match &policy.spec {
            Spec::TrafficPolicy(spec) => Some(spec),
            _ => None,
        });
        let specs: Vec<_> = specs.collect();
        let oldest = |section: Option<&str>| {
            let mut specs = specs.iter().copied();
            let here = |target_ref: &mesh_api::resource::TargetRef| {
                target_ref.name == target.service && target_ref.section_name.as_deref() == section
            };
            specs.find(|spec| spec.target_refs.iter().any(here))
        };
        let section = if port.name.is_empty() { None } else { oldest(Some(&port.name)) };
        section.into_iter().chain(oldest(None)).collect()
    }
}

fn parents(route: &Resource) -> &[ParentRef] {
    match &route.spec {
        Spec::HttpRoute(spec) => &spec.parent_refs,
        Spec::GrpcRoute(spec) => &spec.parent_refs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_one_name() {
        let target = Target::new("shop", "web", 80);
        assert_eq!(target.to_string(), "web.shop.mesh:80");
        assert_eq!(Target::parse("web.shop.mesh:80"), Some(target));
        for other in ["web.shop.mesh", "web.shop.mesh:0", "web.shop.mesh:080", "web.shop:80", "shop:80", ""] {
            assert_eq!(Target::parse(other), None, "{other}");
        }
    }
}
