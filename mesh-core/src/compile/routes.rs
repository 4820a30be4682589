//! Routes of HTTP, gRPC and TLS: their backends resolved to ids, and what they mean for a service port.
//!
//! All three are one form, and one table. Where kinds meet on a port the more specific has it: `GRPCRoute` before
//! `HTTPRoute`, `TLSRoute` before `TCPRoute`. A route of another namespace than its parent's is for that namespace's
//! clients alone, and for them in place of the parent's own routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::proto::v1::{self, Protocol};

use super::{Compiler, route_wire};
use crate::model::{Kind, Name, RouteName, join};
use crate::route::{Action, Backend, MatchSpec, PathMatch, RouteSpec, RouteTable, RuleSpec};
use crate::snapshot::{Consumers, ServiceId};

/// A weight above this is not the Gateway API's; keeps sums within 64 bits.
const WEIGHT_MAX: u32 = 1_000_000;

/// What the routes of one service port say.
pub(super) struct Routed {
    pub table: Option<Arc<RouteTable>>,
    /// Tables of namespaces whose clients have routes of their own.
    pub consumers: Option<Arc<Consumers>>,
    pub fallback: Vec<(ServiceId, u32)>,
    /// `fallback` holds for all connections, not only where a proxy is gone.
    pub split: bool,
    pub backends: Vec<ServiceId>,
}

/// Where problems of a route stand that are another route's doing.
const RIVALS: u32 = 1;

/// Is a route of this kind for ports of this protocol?
fn is_for(kind: Kind, protocol: Protocol) -> bool {
    match kind {
        Kind::HttpRoute | Kind::GrpcRoute => matches!(protocol, Protocol::Http | Protocol::Auto),
        Kind::TlsRoute => protocol == Protocol::Tls,
        _ => false,
    }
}

/// `http`, `tls`.
fn spoken(kind: Kind) -> &'static str {
    if kind == Kind::TlsRoute { "tls" } else { "http" }
}

/// The namespace whose clients a route is for; `None`: everybody.
fn side<'r>(route: &'r RouteName, parent: &v1::ServiceRef) -> Option<&'r str> {
    let own = route.1.split_once('/').map_or("", |(namespace, _)| namespace);
    (own != parent.namespace).then_some(own)
}

impl Compiler {
    /// Resolves a route anew and names what is wrong with it.
    pub(super) fn compile_route(&mut self, name: &RouteName) {
        let kind = name.0;
        let Some(route) = self.model.route(name) else {
            self.specs.remove(name);
            self.problems.set(kind, &name.1, 0, Vec::new());
            self.problems.set(kind, &name.1, RIVALS, Vec::new());
            return;
        };
        let parents = route.parents.iter();
        let mut problems: Vec<String> = parents.filter_map(|p| self.parent_problem(kind, p)).collect();
        let rules = route.rules.iter().enumerate().map(|(i, rule)| self.compile_rule(i, rule, &mut problems));
        let spec = RouteSpec {
            name: Name::clone(&name.1),
            created_ms: route.created_ms,
            hostnames: route.hostnames,
            rules: rules.collect(),
        };
        self.specs.insert(name.clone(), Arc::new(spec));
        self.problems.set(kind, &name.1, 0, problems);
    }

    fn compile_rule(&self, i: usize, rule: &v1::HttpRule, problems: &mut Vec<String>) -> RuleSpec {
        let filters = rule.filters.as_ref();
        let mirrors = filters.map_or(&[][..], |filters| &filters.mirrors);
        let mirrors = mirrors.iter().enumerate().map(|(j, mirror)| {
            let place = || format!("rules[{i}].filters.requestMirror[{j}]");
            route_wire::mirror(mirror, self.backend(mirror.backend.as_ref(), place, problems))
        });
        let action = route_wire::action(rule, mirrors.collect());
        let backends = self.resolve_backends(i, rule, problems);
        if !action.answers() && backends.iter().all(|b| b.weight == 0) {
            let cause = if backends.is_empty() { "there is no backend" } else { "all weights are 0" };
            problems.push(format!("rules[{i}].backendRefs: {cause}: requests that match it fail"));
        }
        let mut matches = Vec::new();
        for (j, wire) in rule.matches.iter().enumerate() {
            match route_wire::matches(wire) {
                Some(m) => matches.push(m),
                None => {
                    problems.push(format!("rules[{i}].matches[{j}]: its regular expression is too large"));
                }
            }
        }
        // Of a rule whose matches are all unusable nothing matches, rather than everything.
        let lost = matches.is_empty() && !rule.matches.is_empty();
        if lost {
            matches.push(MatchSpec::from(PathMatch::Exact(String::new())));
        }
        RuleSpec {
            matches,
            backends,
            edits: filters.map(route_wire::edits).unwrap_or_default(),
            action: (action != Action::default()).then(|| Arc::new(action)),
        }
    }

    /// The id of a service port that a route names.
    fn backend(
        &self,
        backend: Option<&v1::ServiceRef>,
        place: impl FnOnce() -> String,
        problems: &mut Vec<String>,
    ) -> Option<ServiceId> {
        let backend = backend?;
        let found = self.port_id(&join(&backend.namespace, &backend.service), backend.port, false);
        found.map_err(|why| problems.push(format!("{}: {why}", place()))).ok()
    }

    fn resolve_backends(&self, i: usize, rule: &v1::HttpRule, problems: &mut Vec<String>) -> Vec<Backend> {
        let resolve = |(j, weighted): (usize, &v1::WeightedBackend)| Backend {
            service: self.backend(
                weighted.backend.as_ref(),
                || format!("rules[{i}].backendRefs[{j}]"),
                problems,
            ),
            weight: weighted.weight.min(WEIGHT_MAX),
            edits: weighted.filters.as_ref().map(|filters| Arc::new(route_wire::edits(filters))),
        };
        rule.backends.iter().enumerate().map(resolve).collect()
    }

    fn parent_problem(&self, kind: Kind, parent: &v1::ServiceRef) -> Option<String> {
        let name = join(&parent.namespace, &parent.service);
        let Some(service) = self.model.service(&name) else {
            return Some(format!("parent service {name} does not exist"));
        };
        let port = |p: &&v1::ServicePort| parent.port == 0 || p.port == parent.port;
        if service.ports.iter().filter(port).any(|p| is_for(kind, p.protocol())) {
            return None;
        }
        Some(match service.ports.iter().find(port) {
            Some(_) if parent.port == 0 => {
                format!("parent service {name} has no port of protocol {}", spoken(kind))
            }
            Some(found) => format!(
                "port {} of parent service {name} is of protocol {}, not {}",
                parent.port,
                found.protocol().as_str_name().to_lowercase(),
                spoken(kind)
            ),
            None => format!("parent service {name} has no port {}", parent.port),
        })
    }

    /// The routes attached to a port that hold there, by whose requests they are for (`None`: everybody's).
    fn attached(&self, service: &Name, port: &v1::ServicePort) -> BTreeMap<Option<Box<str>>, Vec<RouteName>> {
        let mut sides: BTreeMap<Option<Box<str>>, Vec<RouteName>> = BTreeMap::new();
        for name in self.model.children(service).filter(|name| is_for(name.0, port.protocol())) {
            let parents = self.model.route(name).map_or_else(Vec::new, |route| route.parents);
            let here = |p: &&v1::ServiceRef| {
                (p.port == 0 || p.port == port.port) && *join(&p.namespace, &p.service) == **service
            };
            if let Some(parent) = parents.iter().find(here) {
                sides.entry(side(name, parent).map(Into::into)).or_default().push(name.clone());
            }
        }
        for names in sides.values_mut() {
            let grpc = names.iter().any(|(kind, _)| *kind == Kind::GrpcRoute);
            names.retain(|(kind, _)| !grpc || *kind == Kind::GrpcRoute);
        }
        sides
    }

    /// Does a `TLSRoute` have this port?
    pub(super) fn has_tls_route(&self, service: &Name, port: &v1::ServicePort) -> Option<RouteName> {
        self.attached(service, port).remove(&None)?.into_iter().find(|(kind, _)| *kind == Kind::TlsRoute)
    }

    /// Names the HTTP routes of a service that give way to others on a port.
    pub(super) fn check_rivals(&mut self, service: &Name) {
        let routes: Vec<RouteName> =
            self.model.children(service).filter(|(kind, _)| *kind == Kind::HttpRoute).cloned().collect();
        for route in routes {
            let problems = self.rivals(&route);
            self.problems.set(Kind::HttpRoute, &route.1, RIVALS, problems);
        }
    }

    fn rivals(&self, route: &RouteName) -> Vec<String> {
        let mut problems = Vec::new();
        for parent in self.model.route(route).map_or_else(Vec::new, |route| route.parents) {
            let name = join(&parent.namespace, &parent.service);
            let service = self.model.service(&name);
            let ports = service.iter().flat_map(|service| &service.ports);
            for port in ports.filter(|port| parent.port == 0 || parent.port == port.port) {
                let side = side(route, &parent).map(Into::into);
                let names = self.attached(&name, port).remove(&side).unwrap_or_default();
                if let Some((kind, stronger)) = names.first().filter(|(kind, _)| *kind != Kind::HttpRoute) {
                    let number = port.port;
                    problems.push(format!(
                        "port {number} of service {name} has {kind} {stronger}, which comes first"
                    ));
                }
            }
        }
        problems
    }

    fn specs_of(&self, names: &[RouteName]) -> Vec<RouteSpec> {
        let specs = names.iter().filter_map(|name| self.specs.get(name));
        let mut specs: Vec<RouteSpec> = specs.map(|spec| (**spec).clone()).collect();
        specs.sort_by(|a, b| (a.created_ms, &a.name).cmp(&(b.created_ms, &b.name)));
        specs
    }

    /// The routes attached to a port, resolved.
    pub(super) fn routed(&self, service: &Name, id: ServiceId, port: &v1::ServicePort) -> Routed {
        let mut sides = self.attached(service, port);
        let own = self.specs_of(&sides.remove(&None).unwrap_or_default());
        let mut routed = if own.is_empty() {
            self.l4_routed(service, id, port)
        } else {
            Routed {
                fallback: fallback(&own, id),
                split: false,
                backends: backends(&own).into_iter().collect(),
                table: Some(Arc::new(RouteTable::new(&own))),
                consumers: None,
            }
        };
        let mut consumers = Consumers::new();
        let mut all: BTreeSet<ServiceId> = routed.backends.iter().copied().collect();
        for (namespace, names) in sides {
            let specs = self.specs_of(&names);
            let Some(namespace) = namespace.filter(|_| !specs.is_empty()) else { continue };
            all.extend(backends(&specs));
            consumers.insert(namespace.into(), Arc::new(RouteTable::new(&specs)));
        }
        if !consumers.is_empty() {
            routed.backends = all.into_iter().collect();
            routed.consumers = Some(Arc::new(consumers));
        }
        routed
    }
}

/// Every service that requests, or copies of them, go to.
fn backends(specs: &[RouteSpec]) -> BTreeSet<ServiceId> {
    let rules = || specs.iter().flat_map(|spec| &spec.rules);
    let weighted = rules().flat_map(|rule| &rule.backends).filter(|b| b.weight > 0);
    let mirrors = rules().filter_map(|rule| rule.action.as_ref()).flat_map(|action| &action.mirrors);
    weighted.filter_map(|b| b.service).chain(mirrors.filter_map(|m| m.service)).collect()
}

/// The backends of the rule that takes every path: of a route for every host if there is one, else of the
/// first for some hosts (a connection names no host). Without such a rule, the service itself. Empty where
/// that rule leads nowhere.
fn fallback(specs: &[RouteSpec], own: ServiceId) -> Vec<(ServiceId, u32)> {
    let catch_all = |rule: &&RuleSpec| {
        let slash = |m: &MatchSpec| {
            m.condition.is_empty() && matches!(&m.path, PathMatch::Prefix(p) if p.is_empty() || p == "/")
        };
        let answers = rule.action.as_ref().is_some_and(|action| action.answers());
        !answers && (rule.matches.is_empty() || rule.matches.iter().any(slash))
    };
    let (any_host, some_hosts): (Vec<_>, Vec<_>) = specs.iter().partition(|s| s.hostnames.is_empty());
    let mut rules = any_host.into_iter().chain(some_hosts).flat_map(|s| &s.rules);
    let Some(rule) = rules.find(catch_all) else { return vec![(own, 1)] };
    let mut weights: BTreeMap<ServiceId, u32> = BTreeMap::new();
    for backend in rule.backends.iter().filter(|b| b.weight > 0) {
        if let Some(id) = backend.service {
            let sum = weights.entry(id).or_default();
            *sum = sum.saturating_add(backend.weight);
        }
    }
    weights.into_iter().collect()
}
