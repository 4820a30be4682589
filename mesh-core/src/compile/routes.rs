//! HTTP routes: their backends resolved to ids, and what they mean for a service port.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::proto::v1::{self, Protocol, http_match};

use super::Compiler;
use crate::model::{Kind, Name, join};
use crate::route::{Backend, PathMatch, RouteSpec, RouteTable, RuleSpec};
use crate::snapshot::ServiceId;

/// A weight above this is not the Gateway API's; keeps sums within 64 bits.
const WEIGHT_MAX: u32 = 1_000_000;

/// What the routes of one service port say.
pub(super) struct Routed {
    pub table: Option<Arc<RouteTable>>,
    pub fallback: Vec<(ServiceId, u32)>,
    /// `fallback` holds for all connections, not only where a proxy is gone.
    pub split: bool,
    pub backends: Vec<ServiceId>,
}

impl Compiler {
    /// Resolves a route anew and names what is wrong with it.
    pub(super) fn compile_route(&mut self, name: &Name) {
        let Some(route) = self.model.route(name) else {
            self.specs.remove(name);
            self.problems.set(Kind::HttpRoute, name, 0, Vec::new());
            return;
        };
        let mut problems: Vec<String> = route.parents.iter().filter_map(|p| self.parent_problem(p)).collect();
        let rules = route.rules.iter().enumerate().map(|(i, rule)| RuleSpec {
            matches: rule.matches.iter().map(path).collect(),
            backends: self.resolve_backends(i, rule, &mut problems),
        });
        let spec = RouteSpec {
            name: Name::clone(name),
            created_ms: route.created_ms,
            hostnames: route.hostnames,
            rules: rules.collect(),
        };
        self.specs.insert(Name::clone(name), Arc::new(spec));
        self.problems.set(Kind::HttpRoute, name, 0, problems);
    }

    fn resolve_backends(&self, i: usize, rule: &v1::HttpRule, problems: &mut Vec<String>) -> Vec<Backend> {
        let backends: Vec<Backend> = rule
            .backends
            .iter()
            .enumerate()
            .map(|(j, weighted)| {
                let service = weighted.backend.as_ref().and_then(|b| {
                    let found = self.port_id(&join(&b.namespace, &b.service), b.port, false);
                    found.map_err(|why| problems.push(format!("rules[{i}].backendRefs[{j}]: {why}"))).ok()
                });
                Backend { service, weight: weighted.weight.min(WEIGHT_MAX) }
            })
            .collect();
        if backends.iter().all(|b| b.weight == 0) {
            let cause = if backends.is_empty() { "there is no backend" } else { "all weights are 0" };
            problems.push(format!("rules[{i}].backendRefs: {cause}: requests that match it fail"));
        }
        backends
    }

    fn parent_problem(&self, parent: &v1::ServiceRef) -> Option<String> {
        let name = join(&parent.namespace, &parent.service);
        let Some(service) = self.model.service(&name) else {
            return Some(format!("parent service {name} does not exist"));
        };
        let port = |p: &&v1::ServicePort| parent.port == 0 || p.port == parent.port;
        if service.ports.iter().filter(port).any(|p| p.protocol() == Protocol::Http) {
            return None;
        }
        Some(match service.ports.iter().find(port) {
            Some(_) if parent.port == 0 => format!("parent service {name} has no port of protocol http"),
            Some(found) => format!(
                "port {} of parent service {name} is of protocol {}, not http",
                parent.port,
                found.protocol().as_str_name().to_lowercase()
            ),
            None => format!("parent service {name} has no port {}", parent.port),
        })
    }

    /// The routes attached to a port, resolved.
    pub(super) fn routed(&self, service: &Name, id: ServiceId, port: &v1::ServicePort) -> Routed {
        let mut specs: Vec<RouteSpec> = Vec::new();
        if port.protocol() == Protocol::Http {
            let attached = self.model.children(service).filter(|route| {
                let parents = self.model.route(route).map_or_else(Vec::new, |r| r.parents);
                parents.iter().any(|p| {
                    (p.port == 0 || p.port == port.port) && *join(&p.namespace, &p.service) == **service
                })
            });
            specs.extend(attached.filter_map(|route| self.specs.get(route)).map(|spec| (**spec).clone()));
        }
        if specs.is_empty() {
            return self.l4_routed(service, id, port);
        }
        specs.sort_by(|a, b| (a.created_ms, &a.name).cmp(&(b.created_ms, &b.name)));
        let all = specs.iter().flat_map(|s| &s.rules).flat_map(|r| &r.backends).filter(|b| b.weight > 0);
        let backends: BTreeSet<ServiceId> = all.filter_map(|b| b.service).collect();
        Routed {
            fallback: fallback(&specs, id),
            split: false,
            backends: backends.into_iter().collect(),
            table: Some(Arc::new(RouteTable::new(&specs))),
        }
    }
}

/// The backends of the rule that takes every path: of a route for every host if there is one, else of the
/// first for some hosts (a connection names no host). Without such a rule, the service itself. Empty where
/// that rule leads nowhere.
fn fallback(specs: &[RouteSpec], own: ServiceId) -> Vec<(ServiceId, u32)> {
    let catch_all = |rule: &&RuleSpec| {
        let slash = |m: &PathMatch| matches!(m, PathMatch::Prefix(p) if p.is_empty() || p == "/");
        rule.matches.is_empty() || rule.matches.iter().any(slash)
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

fn path(m: &v1::HttpMatch) -> PathMatch {
    match &m.path {
        Some(http_match::Path::Exact(path)) => PathMatch::Exact(path.clone()),
        Some(http_match::Path::Prefix(path)) => PathMatch::Prefix(path.clone()),
        None => PathMatch::Prefix("/".to_owned()),
    }
}
