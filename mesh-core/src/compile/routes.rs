//! HTTP routes: their backends resolved to ids, and what they mean for a service port.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::proto::v1::{self, Protocol};

use super::{Compiler, route_wire};
use crate::model::{Kind, Name, join};
use crate::route::{Action, Backend, MatchSpec, PathMatch, RouteSpec, RouteTable, RuleSpec};
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
        let rules = route.rules.iter().enumerate().map(|(i, rule)| self.compile_rule(i, rule, &mut problems));
        let spec = RouteSpec {
            name: Name::clone(name),
            created_ms: route.created_ms,
            hostnames: route.hostnames,
            rules: rules.collect(),
        };
        self.specs.insert(Name::clone(name), Arc::new(spec));
        self.problems.set(Kind::HttpRoute, name, 0, problems);
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
        if action.redirect.is_none() && backends.iter().all(|b| b.weight == 0) {
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
        let rules = || specs.iter().flat_map(|spec| &spec.rules);
        let weighted = rules().flat_map(|rule| &rule.backends).filter(|b| b.weight > 0);
        let mirrors = rules().filter_map(|rule| rule.action.as_ref()).flat_map(|action| &action.mirrors);
        let all = weighted.filter_map(|b| b.service).chain(mirrors.filter_map(|m| m.service));
        let backends: BTreeSet<ServiceId> = all.collect();
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
        let slash = |m: &MatchSpec| {
            m.condition.is_empty() && matches!(&m.path, PathMatch::Prefix(p) if p.is_empty() || p == "/")
        };
        let redirects = rule.action.as_ref().is_some_and(|action| action.redirect.is_some());
        !redirects && (rule.matches.is_empty() || rule.matches.iter().any(slash))
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
