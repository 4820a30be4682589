//! The routes of a service's port as Envoy writes them, in the order in which the mesh would try them.
//!
//! HTTPRoutes and GRPCRoutes ─▶ one entry a match ─sorted─▶ `Route`s ([`matching`]: what a request must be; [`action`]: what
//! becomes of it)
//!
//! Envoy asks one after the other, so the order is the mesh's precedence (mesh-core's `route`): host, path, then
//! conditions, then the older route. Without any route everything goes to the service itself; with one, what no rule
//! takes is 404.
//! gRPC knows less of `RouteMatch` and `RouteAction` than Envoy: what it can't do is left out for it ([`For::Grpc`]).

mod action;
mod matching;

use std::collections::BTreeSet;

use mesh_api::resource::{
    BackendRef, GrpcRule, HttpFilter, HttpRule, PathMatch, Resource, Retry, Spec, Timeouts,
};
use serde_json::{Value, json};

use crate::cluster::is_hashed;
use crate::look::{Look, Target};
use matching::{Host, Match};

/// Whom routes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// An Envoy.
    Envoy,
    /// A client of gRPC.
    Grpc,
}

/// Routes of a port, and where they lead.
#[derive(Debug, Default, PartialEq)]
pub struct Routes {
    /// `Route`s, in order.
    pub routes: Vec<Value>,
    /// Ports that they name, whether they exist or not.
    pub targets: BTreeSet<Target>,
}

/// A rule of either kind.
pub(crate) struct Rule<'a> {
    name: String,
    namespace: &'a str,
    filters: &'a [HttpFilter],
    backends: &'a [BackendRef],
    timeouts: Timeouts,
    retry: Option<&'a Retry>,
}

/// The routes of a port.
pub fn routes(look: &Look<'_>, target: &Target, whom: For) -> Routes {
    let hashed = look.port(target).is_some_and(|port| is_hashed(&look.policies(target, port)));
    let mut out = Routes::default();
    let all: Vec<&Resource> = look.routes(target).collect();
    if all.is_empty() {
        out.targets.insert(target.clone());
        let to = action::plain(target, whom, hashed);
        let name = format!("{}/{}", target.namespace, target.service);
        out.routes.push(json!({ "name": name, "match": { "prefix": "/" }, "route": to }));
        return out;
    }
    let mut entries = Vec::new();
    for (age, route) in all.into_iter().enumerate() {
        for (number, (rule, matches)) in rules(route).into_iter().enumerate() {
            for one in matches {
                for host in hosts(route, target, whom) {
                    let Some(json) = matching::json(&one, &host, whom) else { continue };
                    let place = (host.rank(), one.rank(), age, number);
                    entries.push((place, json, action::of(&rule, &one, whom, hashed)));
                }
            }
            let named = rule.backends.iter().chain(rule.filters.iter().filter_map(mirrored));
            out.targets.extend(named.map(|backend| target_of(backend, rule.namespace)));
        }
    }
    // Stable: of one rule the matches stay in order.
    entries.sort_by_key(|(place, _, _)| *place);
    for (_, matching, mut action) in entries {
        action["match"] = matching;
        out.routes.push(action);
    }
    out
}

/// The port that a backend names.
pub(crate) fn target_of(backend: &BackendRef, namespace: &str) -> Target {
    Target::new(backend.namespace.as_deref().unwrap_or(namespace), &backend.name, backend.port)
}

fn mirrored(filter: &HttpFilter) -> Option<&BackendRef> {
    match filter {
        HttpFilter::RequestMirror { to } => Some(&to.backend_ref),
        _ => None,
    }
}

/// Rules of a route with what a request must be for each.
fn rules(route: &Resource) -> Vec<(Rule<'_>, Vec<Match<'_>>)> {
    let namespace = route.metadata.namespace.as_str();
    let name = |number: usize| format!("{namespace}/{}/{number}", route.metadata.name);
    match &route.spec {
        Spec::HttpRoute(spec) => (spec.rules.iter().enumerate())
            .map(|(number, rule)| (of_http(name(number), namespace, rule), matches_of_http(rule)))
            .collect(),
        Spec::GrpcRoute(spec) => (spec.rules.iter().enumerate())
            .map(|(number, rule)| (of_grpc(name(number), namespace, rule), matches_of_grpc(rule)))
            .collect(),
        _ => Vec::new(),
    }
}

fn of_http<'a>(name: String, namespace: &'a str, rule: &'a HttpRule) -> Rule<'a> {
    Rule {
        name,
        namespace,
        filters: &rule.filters,
        backends: &rule.backend_refs,
        timeouts: rule.timeouts.unwrap_or_default(),
        retry: rule.retry.as_ref(),
    }
}

fn of_grpc<'a>(name: String, namespace: &'a str, rule: &'a GrpcRule) -> Rule<'a> {
    let timeouts = Timeouts::default();
    Rule { name, namespace, filters: &rule.filters, backends: &rule.backend_refs, timeouts, retry: None }
}

fn matches_of_http(rule: &HttpRule) -> Vec<Match<'_>> {
    if rule.matches.is_empty() {
        return vec![Match::everything()];
    }
    rule.matches.iter().map(Match::of_http).collect()
}

fn matches_of_grpc(rule: &GrpcRule) -> Vec<Match<'_>> {
    if rule.matches.is_empty() {
        return vec![Match::everything()];
    }
    rule.matches.iter().map(Match::of_grpc).collect()
}

/// Hosts that a route is for. gRPC's clients all ask for the service's own name.
fn hosts(route: &Resource, target: &Target, whom: For) -> Vec<Host> {
    let names = match &route.spec {
        Spec::HttpRoute(spec) => &spec.hostnames,
        Spec::GrpcRoute(spec) => &spec.hostnames,
        _ => return Vec::new(),
    };
    if names.is_empty() {
        return vec![Host::Any];
    }
    let hosts = names.iter().map(|name| Host::of(name));
    match whom {
        For::Envoy => hosts.collect(),
        For::Grpc => hosts.filter(|host| host.is(&target.host())).map(|_| Host::Any).take(1).collect(),
    }
}

/// Whether a path is a prefix, and which.
pub(crate) fn prefix_of<'a>(one: &Match<'a>) -> Option<&'a str> {
    match one.path {
        matching::Path::Of(PathMatch::PathPrefix(prefix)) => Some(prefix),
        matching::Path::All => Some("/"),
        _ => None,
    }
}
