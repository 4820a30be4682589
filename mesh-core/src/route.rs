//! Finds the rule for a request among a service port's HTTP routes.
//!
//! compile ──`RouteSpec`s──▶ **RouteTable** ──`Rule`──▶ balance
//!
//! Precedence is the Gateway API's: exact host, then longest wildcard, then any host; within a host exact path, then
//! expressions (longest first: where they stand is left to implementations), then longest prefix (of whole
//! segments); for one path a method, then more headers, then more parameters of the query; then the older route, the
//! name, the rule's order. What matches in part only, a host without a path or a path without its headers, leaves the
//! request to what is less specific.
//!
//! Of gRPC's calls the Gateway API says: a service, then more of its method. So a service by name is a prefix, service and
//! method are an exact path, and what is said by expression, or of a method alone, stands behind them ([`call`]).
//!
//! Invariant: the table is resolved when it is built, so equal inputs in any order give equal tables, and a
//! look-up never compares routes. Cost of a look-up: per host candidate one search for the exact path, one match of
//! each expression, and one search for each distinct length of prefix; no allocation.
//! Not here: which endpoint of the backend (balance).

mod action;
mod call;
mod condition;
mod explain;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use action::{
    Action, DirectResponse, Edits, HeaderEdits, Line, Mirror, PathEdit, Redirect, Retry, Rewrite,
};
pub use call::CallPattern;
pub use condition::{Condition, FieldMatch, Pattern, ValueMatch};
pub use explain::{Considered, Why};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSpec {
    /// Any of these; none: every request.
    pub matches: Vec<MatchSpec>,
    /// Where to, by weight.
    pub backends: Vec<Backend>,
    /// What changes on the way, whatever the backend.
    pub edits: Edits,
    /// What else is done; `None`: nothing.
    pub action: Option<Arc<Action>>,
}

/// A condition on the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchSpec {
    /// On its path.
    pub path: PathMatch,
    /// On the rest.
    pub condition: Condition,
}

impl From<PathMatch> for MatchSpec {
    fn from(path: PathMatch) -> Self {
        Self { path, condition: Condition::default() }
    }
}

/// A condition on the path, without the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path, byte by byte.
    Exact(String),
    /// The path begins with these segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// The expression matches the whole path.
    Regex(Pattern),
    /// What gRPC calls matches.
    Call(CallPattern),
}

/// A weighted destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Service port; `None`: the route names one that does not exist. Its share of the requests fails.
    pub service: Option<ServiceId>,
    /// Share.
    pub weight: u32,
    /// What changes on the way to it and back; `None`: nothing. In a table the rule's are among them.
    pub edits: Option<Arc<Edits>>,
}

/// What a request is matched to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// "namespace/name/index" of route and rule, for logs and labels.
    pub name: Arc<str>,
    /// Where to, by weight.
    pub backends: Vec<Backend>,
    /// What else is done; `None`: nothing.
    pub action: Option<Arc<Action>>,
    total: u64,
}

/// The rule of a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'t> {
    /// It.
    pub rule: &'t Rule,
    /// Bytes of the path that are the prefix by which it was found, without a slash at its end.
    pub matched: usize,
}

impl Rule {
    fn new(route: &RouteSpec, number: usize, rule: &RuleSpec) -> Self {
        let backends = rule.backends.iter().map(|backend| {
            let edits = match &backend.edits {
                Some(own) => rule.edits.then(own),
                None => rule.edits.clone(),
            };
            Backend { edits: (!edits.is_empty()).then(|| Arc::new(edits)), ..backend.clone() }
        });
        Self {
            name: format!("{}/{number}", route.name).into(),
            backends: backends.collect(),
            action: rule.action.clone(),
            total: rule.backends.iter().map(|b| u64::from(b.weight)).sum(),
        }
    }

    /// Backend for one request. `random` is uniform over all values.
    pub fn pick(&self, random: u64) -> Result<(ServiceId, &Backend), ProxyError> {
        let mut point = ((u128::from(random) * u128::from(self.total)) >> 64) as u64;
        for backend in &self.backends {
            let weight = u64::from(backend.weight);
            if point < weight {
                return backend.service.map(|id| (id, backend)).ok_or(ProxyError::NoBackend);
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
                table.rules.push(Rule::new(route, number, rule));
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
    pub fn find(&self, head: &impl Head) -> Option<Found<'_>> {
        let (index, matched) = self.find_named(head).or_else(|| self.any.find(head))?;
        Some(Found { rule: self.rules.get(index)?, matched })
    }

    fn find_named(&self, head: &impl Head) -> Option<(usize, usize)> {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return None;
        }
        let mut lower = [0; HOST_BYTES];
        let host = host_of(head.authority());
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        let host = str::from_utf8(lower).ok()?;
        if let Some(found) = self.exact.get(host).and_then(|paths| paths.find(head)) {
            return Some(found);
        }
        if self.wildcard.is_empty() {
            return None;
        }
        // Suffixes from the longest on. Something must stand where the `*` is.
        host.match_indices('.')
            .filter(|(dot, _)| *dot > 0)
            .find_map(|(dot, _)| self.wildcard.get(&host[dot..]).and_then(|paths| paths.find(head)))
    }

    /// All rules, best claim first within a host and path.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
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

/// A rule's claim on a path, on a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    condition: Condition,
    rule: usize,
}

/// Claims on one path, in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Claims(Vec<Claim>);

impl Claims {
    fn add(&mut self, condition: &Condition, rule: usize) {
        self.0.push(Claim { condition: condition.clone(), rule });
    }

    /// The narrower come first; of two alike the one that came first. What comes behind one without a condition is
    /// never asked.
    fn finish(&mut self) {
        self.0.sort_by_key(|claim| claim.condition.rank());
        if let Some(end) = self.0.iter().position(|claim| claim.condition.is_empty()) {
            self.0.truncate(end + 1);
        }
    }

    fn find(&self, head: &impl Head) -> Option<usize> {
        self.0.iter().find(|claim| claim.condition.holds(head)).map(|claim| claim.rule)
    }
}

/// Rules of one host by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Paths {
    exact: BTreeMap<Box<str>, Claims>,
    /// Longest expression first.
    regexes: Vec<(Pattern, Claims)>,
    /// Best first.
    calls: Vec<(CallPattern, Claims)>,
    /// Without the final slash, so that `/` is empty.
    prefixes: BTreeMap<Box<str>, Claims>,
    /// Distinct lengths of `prefixes`, longest first.
    lengths: Vec<usize>,
}

impl Paths {
    fn claim(&mut self, rule: &RuleSpec, index: usize) {
        if rule.matches.is_empty() {
            self.prefixes.entry("".into()).or_default().add(&Condition::default(), index);
        }
        for MatchSpec { path, condition } in &rule.matches {
            let claims = match path {
                PathMatch::Exact(path) => self.exact.entry(path.as_str().into()).or_default(),
                PathMatch::Prefix(path) => {
                    let segments = path.strip_suffix('/').unwrap_or(path);
                    self.prefixes.entry(segments.into()).or_default()
                }
                PathMatch::Regex(pattern) => of_pattern(&mut self.regexes, pattern),
                PathMatch::Call(pattern) => of_pattern(&mut self.calls, pattern),
            };
            claims.add(condition, index);
        }
    }

    fn finish(&mut self) {
        self.regexes.sort_by_key(|(pattern, _)| usize::MAX - pattern.text().len());
        self.lengths = self.prefixes.keys().map(|prefix| prefix.len()).collect();
        self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.lengths.dedup();
        self.calls.sort_by_key(|(call, _)| call.rank());
        let paths = self.exact.values_mut().chain(self.prefixes.values_mut());
        let paths = paths.chain(self.calls.iter_mut().map(|(_, claims)| claims));
        for claims in paths.chain(self.regexes.iter_mut().map(|(_, claims)| claims)) {
            claims.finish();
        }
    }

    /// The rule, and how much of the path is the prefix that it matched.
    fn find(&self, head: &impl Head) -> Option<(usize, usize)> {
        let path = head.path();
        if let Some(index) = self.exact.get(path).and_then(|claims| claims.find(head)) {
            return Some((index, 0));
        }
        let expressed = |(pattern, claims): &(Pattern, Claims)| {
            if pattern.holds(path.as_bytes()) { claims.find(head) } else { None }
        };
        if let Some(index) = self.regexes.iter().find_map(expressed) {
            return Some((index, 0));
        }
        let within = |length: usize| {
            let whole = length == 0 || matches!(path.as_bytes().get(length), None | Some(b'/'));
            let prefix = path.get(..length).filter(|_| whole)?;
            self.prefixes.get(prefix)?.find(head).map(|index| (index, length))
        };
        if self.calls.is_empty() {
            return self.lengths.iter().find_map(|&length| within(length));
        }
        let called = |(call, claims): &(CallPattern, Claims)| {
            if call.holds(path.as_bytes()) { claims.find(head) } else { None }
        };
        let named = self.lengths.iter().filter(|length| **length > 0).find_map(|&length| within(length));
        named.or_else(|| self.calls.iter().find_map(called).map(|index| (index, 0))).or_else(|| within(0))
    }
}

/// The claims of an expression.
fn of_pattern<'c, P: Clone + PartialEq>(all: &'c mut Vec<(P, Claims)>, pattern: &P) -> &'c mut Claims {
    let at = all.iter().position(|(known, _)| known == pattern).unwrap_or_else(|| {
        all.push((pattern.clone(), Claims::default()));
        all.len() - 1
    });
    &mut all[at].1
}

#[cfg(test)]
mod tests;
