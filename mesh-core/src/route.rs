//! Finds the rule for a request among a service port's HTTP routes.
//!
//! compile ──`RouteSpec`s──▶ **RouteTable** ──`Rule`──▶ balance
//!
//! Precedence is the Gateway API's: exact host, then longest wildcard, then any host; within a host exact path,
//! then longest prefix (of whole segments); then the older route, the name, the rule's order. A host that
//! matches but has no path that does leaves the request to a less specific host.
//!
//! Invariant: the table is resolved when it is built, so equal inputs in any order give equal tables, and a
//! look-up never compares routes. Cost of a look-up: per host candidate one search for the exact path and one
//! for each distinct length of prefix; no allocation.
//! Not here: which endpoint of the backend (balance); header, method and query matches (refused as not built
//! when a route is stored).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::ProxyError;
use crate::head::Head;
use crate::snapshot::ServiceId;

/// Longest host name that DNS allows, hence the longest that a table holds.
const HOST_BYTES: usize = 253;

/// One HTTPRoute, as far as it concerns one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// "namespace/name".
    pub name: Arc<str>,
    /// When it was created, in milliseconds since 1970: older routes win.
    pub created_ms: u64,
    /// `shop.example.com` or `*.example.com`; none: every host.
    pub hostnames: Vec<String>,
    /// In the route's order.
    pub rules: Vec<RuleSpec>,
}

/// One rule of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// Any of these; none: every path.
    pub matches: Vec<PathMatch>,
    /// Where to, by weight.
    pub backends: Vec<Backend>,
}

/// A condition on the path, without the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path, byte by byte.
    Exact(String),
    /// The path begins with these segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

/// A weighted destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Service port; `None`: the route names one that does not exist. Its share of the requests fails.
    pub service: Option<ServiceId>,
    /// Share.
    pub weight: u32,
}

/// What a request is matched to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// "namespace/name/index" of route and rule, for logs and labels.
    pub name: Arc<str>,
    /// Where to, by weight.
    pub backends: Vec<Backend>,
    total: u64,
}

impl Rule {
    /// Backend for one request. `random` is uniform over all values.
    pub fn pick(&self, random: u64) -> Result<ServiceId, ProxyError> {
        let mut point = ((u128::from(random) * u128::from(self.total)) >> 64) as u64;
        for backend in &self.backends {
            let weight = u64::from(backend.weight);
            if point < weight {
                return backend.service.ok_or(ProxyError::NoBackend);
            }
            point -= weight;
        }
        Err(ProxyError::NoBackend)
    }
}

/// A service port's routes, resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    rules: Vec<Rule>,
    exact: BTreeMap<Box<str>, Paths>,
    /// Keyed by what follows the `*`: `.example.com`.
    wildcard: BTreeMap<Box<str>, Paths>,
    any: Paths,
}

impl RouteTable {
    /// Resolves routes into a table.
    pub fn new(routes: &[RouteSpec]) -> Self {
        let mut order: Vec<&RouteSpec> = routes.iter().collect();
        order.sort_by_key(|route| (route.created_ms, route.name.clone()));
        let mut table = Self::default();
        // The first to claim a host and path keeps it.
        for route in order {
            for (number, rule) in route.rules.iter().enumerate() {
                let index = table.rules.len();
                table.rules.push(Rule {
                    name: format!("{}/{number}", route.name).into(),
                    backends: rule.backends.clone(),
                    total: rule.backends.iter().map(|b| u64::from(b.weight)).sum(),
                });
                table.claim(route, rule, index);
            }
        }
        for paths in table.exact.values_mut().chain(table.wildcard.values_mut()).chain([&mut table.any]) {
            paths.finish();
        }
        table
    }

    fn claim(&mut self, route: &RouteSpec, rule: &RuleSpec, index: usize) {
        if route.hostnames.is_empty() {
            self.any.claim(rule, index);
        }
        for host in &route.hostnames {
            let host = host.to_ascii_lowercase();
            let paths = match host.strip_prefix('*') {
                Some("") => &mut self.any,
                Some(suffix) => self.wildcard.entry(suffix.into()).or_default(),
                None => self.exact.entry(host.into()).or_default(),
            };
            paths.claim(rule, index);
        }
    }

    /// The rule for a request; `None`: 404, [`ProxyError::NoRoute`].
    pub fn find(&self, head: &impl Head) -> Option<&Rule> {
        self.find_by(head.authority(), head.path())
    }

    /// The rule for `host[:port]` and a path without its query.
    pub fn find_by(&self, authority: &str, path: &str) -> Option<&Rule> {
        let index = self.find_named(authority, path).or_else(|| self.any.find(path))?;
        self.rules.get(index)
    }

    fn find_named(&self, authority: &str, path: &str) -> Option<usize> {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return None;
        }
        let mut lower = [0; HOST_BYTES];
        let host = host_of(authority);
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        let host = str::from_utf8(lower).ok()?;
        if let Some(index) = self.exact.get(host).and_then(|paths| paths.find(path)) {
            return Some(index);
        }
        if self.wildcard.is_empty() {
            return None;
        }
        // Suffixes from the longest on. Something must stand where the `*` is.
        host.match_indices('.')
            .filter(|(dot, _)| *dot > 0)
            .find_map(|(dot, _)| self.wildcard.get(&host[dot..]).and_then(|paths| paths.find(path)))
    }

    /// All rules, best claim first within a host and path.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule that takes every request no other rule takes: any host, every path.
    pub fn catch_all(&self) -> Option<&Rule> {
        self.rules.get(*self.any.prefixes.get("")?)
    }
}

/// Host name of `host[:port]`, without a final dot.
fn host_of(authority: &str) -> &str {
    let host = match authority.rfind(']') {
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// Rules of one host by path, as indices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Paths {
    exact: BTreeMap<Box<str>, usize>,
    /// Without the final slash, so that `/` is empty.
    prefixes: BTreeMap<Box<str>, usize>,
    /// Distinct lengths of `prefixes`, longest first.
    lengths: Vec<usize>,
}

impl Paths {
    fn claim(&mut self, rule: &RuleSpec, index: usize) {
        if rule.matches.is_empty() {
            self.prefixes.entry("".into()).or_insert(index);
        }
        for path in &rule.matches {
            match path {
                PathMatch::Exact(path) => self.exact.entry(path.as_str().into()).or_insert(index),
                PathMatch::Prefix(path) => {
                    let segments = path.strip_suffix('/').unwrap_or(path);
                    self.prefixes.entry(segments.into()).or_insert(index)
                }
            };
        }
    }

    fn finish(&mut self) {
        self.lengths = self.prefixes.keys().map(|prefix| prefix.len()).collect();
        self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.lengths.dedup();
    }

    fn find(&self, path: &str) -> Option<usize> {
        if let Some(index) = self.exact.get(path) {
            return Some(*index);
        }
        self.lengths.iter().find_map(|&length| {
            let whole = length == 0 || matches!(path.as_bytes().get(length), None | Some(b'/'));
            let prefix = path.get(..length).filter(|_| whole)?;
            self.prefixes.get(prefix).copied()
        })
    }
}

#[cfg(test)]
mod tests;
