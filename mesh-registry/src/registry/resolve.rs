//! Resolves references: which service ports a workload serves, whether routes and policies lead somewhere.
//!
//! Nothing here refuses: what leads nowhere is a condition, and resolves itself when the other side appears, in
//! whatever order they come.
//! Invariant: a membership that a workload names wins over the same service port by selector.
//! Not here: indices.

use std::borrow::Cow;
use std::net::IpAddr;

use mesh_api::proto::v1::{Health, WorkloadService};
use mesh_api::resource::{
    BackendRef, Condition, EnvoyResourcesSpec, ExternalServiceSpec, GatewayService, Key, Kind, Membership,
    ParentRef, Protocol, Resource, ServicePort, ServiceSpec, Spec, TrafficPolicySpec, WorkloadSpec,
};

use super::Registry;

/// Longest list of problems in one condition.
const PROBLEMS_MAX: usize = 8;

impl Registry {
    /// The service ports that a Workload serves, and what of it leads nowhere.
    pub(super) fn memberships(&self, workload: &Resource) -> (Vec<WorkloadService>, Vec<String>) {
        let Spec::Workload(spec) = &workload.spec else { return (Vec::new(), Vec::new()) };
        let namespace = &workload.metadata.namespace;
        let (mut out, mut problems) = (Vec::new(), Vec::new());
        for one in &spec.services {
            match self.membership(namespace, one, spec) {
                Ok(resolved) => out.push(resolved),
                Err(problem) => problems.push(problem),
            }
        }
        let named = out.len();
        for service in self.index.selecting(workload) {
            let Some(selected) = self.service(namespace, service) else { continue };
            let matches = |(key, value)| workload.metadata.labels.get(key) == Some(value);
            if selected.selector.is_empty() || !selected.selector.iter().all(matches) {
                continue;
            }
            for port in &selected.ports {
                let here = |one: &WorkloadService| {
                    let number = u32::from(port.port);
                    (&one.service, one.service_port, one.udp) == (service, number, port.protocol.is_udp())
                };
                if !out[..named].iter().any(here) {
                    out.push(serves(namespace, service, port, port.target_port, spec.weight));
                }
            }
        }
        out.sort_by(|a, b| place(a).cmp(&place(b)));
        out.dedup_by(|a, b| place(a) == place(b));
        self.judge(workload, &mut out);
        (out, problems)
    }

    /// Workloads that serve a Service, and what of it.
    pub fn endpoints(&self, service: &Key) -> Vec<(Key, WorkloadService)> {
        let Some(resource) = self.get(service) else { return Vec::new() };
        let mut out = Vec::new();
        for key in self.index.dependents(resource) {
            let Some(workload) = self.get(&key) else { continue };
            let served = self.memberships(workload).0.into_iter().filter(|one| one.service == service.name);
            out.extend(served.map(|one| (key.clone(), one)));
        }
        out
    }

    /// What holds of an object, whether the registry has it already or not.
    pub fn conditions_of(&self, resource: &Resource) -> Vec<Condition> {
        match &resource.spec {
            Spec::Service(spec) => self.healthy(resource, spec).into_iter().collect(),
            Spec::AuthorizationPolicy(_) | Spec::TransportPolicy(_) | Spec::Mesh(_) => Vec::new(),
            Spec::ExternalService(spec) => self.external_conditions(resource, spec),
            Spec::EnvoyResources(spec) => vec![refs(
                "ResolvedRefs",
                "ServiceNotFound",
                self.gateway_problems(&resource.metadata.namespace, spec),
            )],
            Spec::Workload(spec) => {
                let problems = self.memberships(resource).1;
                let mut out = vec![refs("ResolvedRefs", "UnknownService", problems)];
                out.extend(self.shared_address(resource, spec));
                out
            }
            Spec::HttpRoute(spec) => self.route_conditions(resource, &spec.parent_refs, spec.backends()),
            Spec::GrpcRoute(spec) => self.route_conditions(resource, &spec.parent_refs, spec.backends()),
            Spec::TlsRoute(spec) => self.route_conditions(resource, &spec.parent_refs, spec.backends()),
            Spec::TcpRoute(spec) | Spec::UdpRoute(spec) => {
                self.route_conditions(resource, &spec.parent_refs, spec.backends())
            }
            Spec::TrafficPolicy(spec) => {
                vec![refs("Accepted", "TargetNotFound", self.policy_problems(resource, spec))]
            }
        }
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&ServiceSpec> {
        match &self.get(&Key::new(Kind::Service, namespace, name))?.spec {
            Spec::Service(spec) => Some(spec),
            _ => None,
        }
    }

    /// What routes and policies may refer to: a Service, or an external one in its form.
    pub(super) fn called(&self, namespace: &str, name: &str) -> Option<Cow<'_, ServiceSpec>> {
        if let Some(service) = self.service(namespace, name) {
            return Some(Cow::Borrowed(service));
        }
        match &self.get(&Key::new(Kind::ExternalService, namespace, name))?.spec {
            Spec::ExternalService(spec) => Some(Cow::Owned(spec.service())),
            _ => None,
        }
    }

    /// Host names that an older one has, addresses that are virtual ones, and a name that a Service has.
    fn external_conditions(&self, resource: &Resource, spec: &ExternalServiceSpec) -> Vec<Condition> {
        let (own, age) = (resource.key(), |r: &Resource| (r.metadata.created_ms, r.key()));
        let mut problems = Vec::new();
        if self.service(&own.namespace, &own.name).is_some() {
            problems.push("a Service has its name, and counts: give one of them another".to_owned());
        }
        for (_, other) in self.list(Kind::ExternalService).filter(|(_, other)| age(other) < age(resource)) {
            let Spec::ExternalService(older) = &other.spec else { continue };
            problems.extend(spec.hosts.iter().filter(|host| older.hosts.contains(host)).map(|host| {
                let key = other.key();
                format!("spec.hosts: {host} is a name of the older {key}, which keeps it: remove it from one of them")
            }));
        }
        let vips = |r: &Resource, given: &[IpAddr]| [given, &r.status.vips].concat();
        let services = self.list(Kind::Service).filter_map(|(_, service)| match &service.spec {
            Spec::Service(spec) => Some((service.key(), vips(service, &spec.vips))),
            _ => None,
        });
        let externals = self.list(Kind::ExternalService).map(|(_, r)| (r.key(), vips(r, &[])));
        for (key, vips) in services.chain(externals).filter(|_| !spec.addresses.is_empty()) {
            problems.extend(spec.addresses.iter().filter(|address| vips.contains(address)).map(|address| {
                format!("spec.addresses: {address} is a virtual address of {key}, and left out: give its own address")
            }));
        }
        vec![refs("Accepted", "Conflicted", problems)]
    }

    /// What a gateway shows and is not there, or speaks no HTTP.
    fn gateway_problems(&self, own: &str, spec: &EnvoyResourcesSpec) -> Vec<String> {
        let shown = spec.gateway.iter().flat_map(|gateway| &gateway.services);
        let problem = |one: &GatewayService| {
            let namespace = one.namespace.as_deref().unwrap_or(own);
            let name = format!("{namespace}/{}", one.name);
            let Some(service) = self.service(namespace, &one.name) else {
                return Some(format!("Service {name} does not exist: what asks for it is answered 503"));
            };
            let http = |port: &ServicePort| port.port == one.port && routes(Kind::HttpRoute, port.protocol);
            (!service.ports.iter().any(http))
                .then(|| format!("Service {name} has no port {} of protocol http or auto", one.port))
        };
        shown.filter_map(problem).collect()
    }

    fn membership(
        &self,
        namespace: &str,
        one: &Membership,
        workload: &WorkloadSpec,
    ) -> Result<WorkloadService, String> {
        let Membership { service, port_name, target_port, weight } = one;
        let Some(spec) = self.service(namespace, service) else {
            return Err(format!("Service {namespace}/{service} does not exist"));
        };
        let Some(port) = spec.port_by_name(port_name) else {
            let names: Vec<&str> = spec.ports.iter().map(|port| port.name.as_str()).take(16).collect();
            let names = names.join(", ");
            return Err(match port_name.as_str() {
                "" => format!("Service {namespace}/{service} has several ports: name one of {names}"),
                name => format!("Service {namespace}/{service} has no port {name}; it has {names}"),
            });
        };
        let target = target_port.unwrap_or(port.target_port);
        Ok(serves(namespace, service, port, target, weight.unwrap_or(workload.weight)))
    }

    /// An address stands for one workload: where two have it, connections to it may reach either.
    fn shared_address(&self, resource: &Resource, spec: &WorkloadSpec) -> Option<Condition> {
        let own = resource.key();
        let (address, other) = spec
            .addresses
            .iter()
            .find_map(|address| Some((address, self.index.at(*address).find(|key| **key != own)?)))?;
        let message = format!("{address} is also the address of {other}: remove the one that is gone");
        Some(Condition::new("Conflicted", true, "AddressShared", message))
    }

    fn route_conditions<'a>(
        &self,
        route: &Resource,
        parent_refs: &[ParentRef],
        backend_refs: impl Iterator<Item = &'a BackendRef>,
    ) -> Vec<Condition> {
        let (kind, namespace) = (route.kind(), &route.metadata.namespace);
        let mut parents = Vec::new();
        for parent in parent_refs {
            let theirs = parent.namespace.as_ref().unwrap_or(namespace);
            let name = format!("{theirs}/{}", parent.name);
            let Some(service) = self.called(theirs, &parent.name) else {
                parents.push(format!("parent Service {name} does not exist"));
                continue;
            };
            let speaks = |port: &&ServicePort| {
                routes(kind, port.protocol) && parent.port.is_none_or(|wanted| wanted == port.port)
            };
            if !service.ports.iter().any(|port| speaks(&port)) {
                let which = parent.port.map_or_else(|| "port".to_owned(), |port| format!("port {port}"));
                let protocol = match kind {
                    Kind::TcpRoute => "tcp or tls",
                    Kind::UdpRoute => "udp",
                    Kind::TlsRoute => "tls",
                    _ => "http or auto",
                };
                parents.push(format!("parent Service {name} has no {which} of protocol {protocol}"));
            }
        }
        let mut backends = Vec::new();
        for backend in backend_refs {
            let namespace = backend.namespace.as_ref().unwrap_or(namespace);
            let udp = kind == Kind::UdpRoute;
            let goes = |port: &ServicePort| port.port == backend.port && port.protocol.is_udp() == udp;
            match self.called(namespace, &backend.name) {
                None => backends.push(format!("backend Service {namespace}/{} does not exist", backend.name)),
                Some(service) if !service.ports.iter().any(goes) => {
                    let speaks = if udp { " of protocol udp" } else { "" };
                    backends.push(format!(
                        "backend Service {namespace}/{} has no port {}{speaks}",
                        backend.name, backend.port
                    ));
                }
                Some(_) => {}
            }
        }
        let conflicts = if parents.is_empty() { self.conflicts(route, parent_refs) } else { Vec::new() };
        let accepted = if conflicts.is_empty() {
            refs("Accepted", "NoMatchingParent", parents)
        } else {
            refs("Accepted", "Conflicted", conflicts)
        };
        vec![accepted, refs("ResolvedRefs", "BackendNotFound", backends)]
    }

    fn policy_problems(&self, policy: &Resource, spec: &TrafficPolicySpec) -> Vec<String> {
        let namespace = &policy.metadata.namespace;
        let problem = |target: &mesh_api::resource::TargetRef| {
            let name = format!("{namespace}/{}", target.name);
            let Some(service) = self.called(namespace, &target.name) else {
                return Some(format!("target Service {name} does not exist"));
            };
            let section = target.section_name.as_ref();
            let ports = || service.ports.iter().filter(|port| section.is_none_or(|name| port.name == *name));
            if let Some(section) = section.filter(|_| ports().next().is_none()) {
                return Some(format!("target Service {name} has no port named {section}"));
            }
            let http = ports().any(|port| port.protocol == Protocol::Http);
            (spec.asks_requests() && !http).then(|| {
                format!("target Service {name} has no such port of protocol http: what is said of requests holds for none")
            })
        };
        spec.target_refs.iter().filter_map(problem).collect()
    }
}

/// Is this kind of route for ports of this protocol?
pub(super) fn routes(kind: Kind, protocol: Protocol) -> bool {
    match kind {
        Kind::HttpRoute | Kind::GrpcRoute => matches!(protocol, Protocol::Http | Protocol::Auto),
        Kind::TlsRoute => protocol == Protocol::Tls,
        Kind::TcpRoute => matches!(protocol, Protocol::Tcp | Protocol::Tls),
        Kind::UdpRoute => protocol == Protocol::Udp,
        _ => false,
    }
}

fn serves(namespace: &str, service: &str, port: &ServicePort, target: u16, weight: u16) -> WorkloadService {
    WorkloadService {
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        service_port: port.port.into(),
        target_port: target.into(),
        weight: weight.into(),
        health: Health::Healthy.into(),
        udp: port.protocol.is_udp(),
    }
}

/// What one membership is told apart by.
fn place(one: &WorkloadService) -> (&str, u32, bool, u32) {
    (&one.service, one.service_port, one.udp, one.target_port)
}

/// A condition that holds where nothing is wrong.
fn refs(kind: &str, reason: &str, mut problems: Vec<String>) -> Condition {
    if problems.is_empty() {
        return Condition::new(kind, true, kind, String::new());
    }
    let left_off = problems.len().saturating_sub(PROBLEMS_MAX);
    problems.truncate(PROBLEMS_MAX);
    if left_off > 0 {
        problems.push(format!("and {left_off} more"));
    }
    Condition::new(kind, false, reason, problems.join("; "))
}
