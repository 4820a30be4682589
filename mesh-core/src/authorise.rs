//! Who may connect to a workload, and which requests it gets: what all the policies that select it come to.
//!
//! compile ──[`PolicySet`]──▶ { **authorise**: the proxy asks before it dials and before each request, the agent
//!                             before it cuts; plan: spelt out for the kernel, class by class }
//!
//! A policy that denies comes before one that allows. Where any policy allows, what none of them matches is
//! refused; where no policy selects a workload, everybody may connect (there is no set then). One that audits decides
//! nothing: what it matches is counted.
//!
//! A caller is proved by the kernel of its own node, by the certificate of a tunnel from another node, or not at all:
//! what comes from there in plaintext has an address and nothing else. Terms on identities and namespaces fail closed for it: they
//! do not match where the policy allows, and match where it denies. A term on addresses matches as it says.
//!
//! Terms on requests ([`request`]) need a request. How much is known says [`Seen`]; of bytes that are none they fail
//! closed in the same way. Before the first byte there is [`Seen::Unknown`]: refused is then only who would be refused
//! whatever came, which is what the kernel can decide. So of any caller: what `Unknown` refuses every request is
//! refused, and what `Opaque` allows every request is allowed (tested).
//!
//! A policy of action `custom` decides last: what it matches and nobody refuses is asked about outside
//! ([`PolicySet::questions`]). It needs a request: of bytes that are none it refuses what it matches.
//!
//! Invariants: decides from numbers, bits and the request's own bytes; allocates nothing but for paths with escapes.
//! Not here: the kernel's form of it (plan/policy), who selects whom (compile).

mod network;
pub mod request;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::http_path::{self, Unclear};
use mesh_common::policy::Caller;

pub use crate::jwt::Claims;
use crate::jwt::TokenTerm;
use crate::model::Name;
pub use network::{IPV4, Network};
pub use request::{HeaderTerm, HeaderValue, Headers, HostPattern, Request, Target, Term};

/// An identity that no workload of this node can have.
pub const NOBODY: Caller = Caller { identity: (1 << 30) - 1, namespace: 0 };

/// All policies that select a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicySet {
    /// In order of their names.
    policies: Box<[Arc<Policy>]>,
    /// Where requests decide.
    requests: Ports,
    /// Where something is counted.
    audited: Ports,
}

/// Some ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Ports {
    every: bool,
    /// In order.
    some: Box<[u16]>,
}

/// What becomes of what a policy matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is let in, unless another one denies it; what no such policy matches is not.
    Allow,
    /// It is refused.
    Deny,
    /// It is counted.
    Audit,
    /// A provider of this name is asked about it.
    Custom(Name),
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// `<namespace>/<name>`.
    pub name: Name,
    /// What becomes of what it matches.
    pub action: Action,
    /// One of them must match.
    pub rules: Box<[Rule]>,
}

/// Matches where one of `from`, one of `to` and all of `when` do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Who calls; none: anybody.
    pub from: Box<[Terms]>,
    /// What is called; none: whatever is.
    pub to: Box<[Target]>,
    /// What else the request has.
    pub when: Box<[Term]>,
}

/// Matches where every kind of term that is there has a value that does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Exact identities (and the namespaces that they are of).
    pub identities: Box<[Caller]>,
    /// Namespaces, by number.
    pub namespaces: Box<[u32]>,
    /// Addresses.
    pub networks: Box<[Network]>,
    /// A token that the request carries.
    pub jwt: Option<TokenTerm>,
}

/// What is known of what a connection carries.
#[derive(Clone, Copy)]
pub enum Seen<'a> {
    /// Nothing yet: whatever may come.
    Unknown,
    /// Bytes or a datagram, but no request.
    Opaque,
    /// This request.
    Request(&'a Request<'a>),
}

/// A connection, or a request on it, of which it is asked whether it is allowed.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Who calls.
    pub caller: Caller,
    /// From where: an address, or all of a network that no term splits; `None`: from where no term names.
    pub addresses: Option<&'a Network>,
    /// At which port; `None`: one that no term names.
    pub port: Option<u16>,
    /// What is known of the rest.
    pub seen: Seen<'a>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It is let in; by this rule of this policy, where one has to.
    Allowed(Option<(&'a Policy, usize)>),
    /// It is not.
    Refused(Refusal<'a>),
}

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// A rule denies it.
    Denied {
        /// Whose.
        policy: &'a Policy,
        /// Which.
        rule: usize,
    },
    /// A rule has it asked about outside, and it is no request.
    NotAsked {
        /// Whose.
        policy: &'a Policy,
        /// Which.
        rule: usize,
    },
    /// There are policies that allow, and no rule of them matches.
    NotAllowed {
        /// Among them those that allow.
        set: &'a PolicySet,
    },
    /// The policies name paths, and servers may read the request's differently.
    Unclear {
        /// In what.
        why: Unclear,
        /// Among them those that name paths.
        set: &'a PolicySet,
    },
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |set: &PolicySet, which: &dyn Fn(&Policy) -> bool| {
            let names: Vec<&str> = set.policies.iter().filter(|p| which(p)).map(|p| &*p.name).collect();
            names.join(", ")
        };
        match self {
            Self::Denied { policy, rule } => {
                write!(f, "denied by rules[{rule}] of AuthorizationPolicy {}", policy.name)
            }
            Self::NotAsked { policy, rule } => {
                let name = &policy.name;
                write!(
                    f,
                    "no request, which rules[{rule}] of AuthorizationPolicy {name} would have asked about"
                )
            }
            Self::NotAllowed { set } => {
                let allow = names(set, &|policy| policy.action == Action::Allow);
                write!(f, "allowed by no rule of AuthorizationPolicy {allow}")
            }
            Self::Unclear { why, set } => {
                let paths = names(set, &|policy| policy.targets().any(|to| !to.paths.is_empty()));
                write!(f, "{why}, and AuthorizationPolicy {paths} names paths")
            }
        }
    }
}

impl Policy {
    /// The provider that is asked about what it matches.
    fn asks(&self) -> Option<&Name> {
        match &self.action {
            Action::Custom(provider) => Some(provider),
            _ => None,
        }
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.rules.iter().flat_map(|rule| &rule.to)
    }
}

/// What rules are asked about: the request's path in its normal form, where it has one.
#[derive(Clone, Copy)]
struct Case<'a> {
    asked: Asked<'a>,
    path: Option<&'a str>,
}

impl Ports {
    /// Those of the targets that are meant, of all policies that are.
    fn of(policies: &[Arc<Policy>], audits: bool) -> Self {
        let (mut every, mut some) = (false, BTreeSet::new());
        let meant = policies.iter().filter(|policy| (policy.action == Action::Audit) == audits);
        let rules = meant.flat_map(|policy| policy.rules.iter().map(|rule| (policy.asks().is_some(), rule)));
        for (custom, rule) in rules {
            let all = [Target::default()];
            let token = rule.from.iter().any(|terms| terms.jwt.is_some());
            for target in if rule.to.is_empty() { &all } else { &rule.to[..] } {
                if audits || custom || token || !rule.when.is_empty() || target.asks_requests() {
                    every |= target.ports.is_empty();
                    some.extend(&target.ports);
                }
            }
        }
        Self { every, some: some.into_iter().collect() }
    }

    /// `None`: one that no term names.
    fn has(&self, port: Option<u16>) -> bool {
        self.every || port.is_some_and(|port| self.some.binary_search(&port).is_ok())
    }

    fn is_empty(&self) -> bool {
        !self.every && self.some.is_empty()
    }
}

impl PolicySet {
    /// These policies, in order of their names.
    pub fn new(policies: Box<[Arc<Policy>]>) -> Self {
        let (requests, audited) = (Ports::of(&policies, false), Ports::of(&policies, true));
        Self { policies, requests, audited }
    }

    /// Its policies, in order of their names.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// Do requests at this port decide? `None`: at one that no term names.
    pub fn asks_requests(&self, port: Option<u16>) -> bool {
        self.requests.has(port)
    }

    /// Do they anywhere?
    pub fn asks_any_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Is what comes to this port to be looked at, be it only to count it? `None`: as above.
    pub fn looks(&self, port: Option<u16>) -> bool {
        self.requests.has(port) || self.audited.has(port)
    }

    /// Is anything?
    pub fn looks_anywhere(&self) -> bool {
        !(self.requests.is_empty() && self.audited.is_empty())
    }

    /// Ports that are named where something is looked at.
    pub fn looked_at(&self) -> impl Iterator<Item = u16> {
        self.requests.some.iter().chain(&self.audited.some).copied()
    }

    /// Is it let in?
    pub fn decide(&self, asked: &Asked<'_>) -> Decision<'_> {
        let Seen::Request(request) = asked.seen else {
            return self.decided(&Case { asked: *asked, path: None });
        };
        if !self.asks_paths(asked.port) || !request.has_path() {
            return self.decided(&Case { asked: *asked, path: None });
        }
        match http_path::normal(request.path) {
            Ok(path) => self.decided(&Case { asked: *asked, path: Some(&path) }),
            // Who may send whatever it likes may send that.
            Err(why) => {
                match self.decided(&Case { asked: Asked { seen: Seen::Opaque, ..*asked }, path: None }) {
                    Decision::Allowed(by) => Decision::Allowed(by),
                    Decision::Refused(_) => Decision::Refused(Refusal::Unclear { why, set: self }),
                }
            }
        }
    }

    fn decided(&self, case: &Case<'_>) -> Decision<'_> {
        let of = |action| self.policies.iter().filter(move |policy| policy.action == action);
        for policy in of(Action::Deny) {
            if let Some(rule) = policy.matches(case) {
                return Decision::Refused(Refusal::Denied { policy, rule });
            }
        }
        let mut allowing = of(Action::Allow).peekable();
        if allowing.peek().is_none() {
            return self.unless_asked(None, case);
        }
        let by = allowing.find_map(|policy| Some((&**policy, policy.matches(case)?)));
        if by.is_some() {
            self.unless_asked(by, case)
        } else {
            Decision::Refused(Refusal::NotAllowed { set: self })
        }
    }

    /// Allowed by those, but where somebody is to be asked and there is nothing to ask about.
    fn unless_asked<'s>(&'s self, by: Option<(&'s Policy, usize)>, case: &Case<'_>) -> Decision<'s> {
        if !matches!(case.asked.seen, Seen::Opaque) {
            return Decision::Allowed(by);
        }
        match self.custom().find_map(|policy| Some((policy, policy.matches(case)?))) {
            Some((policy, rule)) => Decision::Refused(Refusal::NotAsked { policy, rule }),
            None => Decision::Allowed(by),
        }
    }

    fn custom(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().filter(|policy| policy.asks().is_some()).map(|policy| &**policy)
    }

    /// Whom to ask about a request that is let in otherwise: policy, rule, and the provider's name. Rules match as
    /// those that deny.
    pub fn questions(&self, asked: &Asked<'_>) -> impl Iterator<Item = (&Policy, usize, &Name)> {
        self.matching(asked, |policy| policy.asks().is_some())
            .filter_map(|(policy, rule)| Some((policy, rule, policy.asks()?)))
    }

    /// Why it is refused; `None`: it is let in.
    pub fn refuses(&self, asked: &Asked<'_>) -> Option<Refusal<'_>> {
        match self.decide(asked) {
            Decision::Allowed(_) => None,
            Decision::Refused(refusal) => Some(refusal),
        }
    }

    /// Would it be let in with tokens that it does not carry?
    pub fn lacks_token(&self, asked: &Asked<'_>) -> bool {
        let Seen::Request(request) = asked.seen else { return false };
        let request = Request { claims: Some(&Claims::Best), ..*request };
        self.refuses(&asked.seeing(Seen::Request(&request))).is_none()
    }

    /// Whose tokens decide at this port; one may come several times.
    pub fn providers(&self, port: u16) -> impl Iterator<Item = &Name> {
        let deciding = self.policies.iter().filter(|policy| policy.action != Action::Audit);
        let here = deciding
            .flat_map(|policy| &policy.rules)
            .filter(move |rule| rule.to.is_empty() || rule.to.iter().any(|to| to.is_at(Some(port))));
        here.flat_map(|rule| &rule.from).filter_map(|terms| Some(&terms.jwt.as_ref()?.provider))
    }

    /// The policies that audit it, and their rules. They match what they would deny.
    pub fn audits(&self, asked: &Asked<'_>) -> impl Iterator<Item = (&Policy, usize)> {
        self.matching(asked, |policy| policy.action == Action::Audit)
    }

    /// Of some policies those that match, and by which rule.
    fn matching(
        &self,
        asked: &Asked<'_>,
        meant: impl Fn(&Policy) -> bool,
    ) -> impl Iterator<Item = (&Policy, usize)> {
        let path = match asked.seen {
            Seen::Request(request) if request.has_path() => http_path::normal(request.path).ok(),
            _ => None,
        };
        let asked = *asked;
        let meant = self.policies.iter().filter(move |policy| meant(policy));
        meant.filter_map(move |policy| {
            Some((&**policy, policy.matches(&Case { asked, path: path.as_deref() })?))
        })
    }

    /// All terms on sources.
    pub fn terms(&self) -> impl Iterator<Item = &Terms> {
        self.policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.from)
    }

    /// All ports that it names.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.policies.iter().flat_map(|policy| policy.targets()).flat_map(|to| &to.ports).copied()
    }

    /// Does it ask where a connection comes from?
    pub fn asks_address(&self) -> bool {
        self.terms().any(|terms| !terms.networks.is_empty())
    }

    /// Does it name paths at this port?
    fn asks_paths(&self, port: Option<u16>) -> bool {
        let mut targets = self.policies.iter().flat_map(|policy| policy.targets());
        targets.any(|to| !to.paths.is_empty() && to.is_at(port))
    }
}

impl Policy {
    /// The first rule that matches.
    fn matches(&self, case: &Case<'_>) -> Option<usize> {
        let closed = self.action != Action::Allow;
        self.rules.iter().position(|rule| rule.matches(closed, case))
    }
}

impl Rule {
    /// `closed`: what is not known matches.
    fn matches(&self, closed: bool, case: &Case<'_>) -> bool {
        let asked = &case.asked;
        (self.to.is_empty() || self.to.iter().any(|to| to.matches(closed, case)))
            && (self.from.is_empty() || self.from.iter().any(|terms| terms.match_all(closed, asked)))
            && self.when.iter().all(|term| term.matches(closed, asked.seen))
    }
}

impl Terms {
    fn match_all(&self, closed: bool, asked: &Asked<'_>) -> bool {
        let Self { identities, namespaces, networks, jwt } = self;
        let Asked { caller, addresses, seen, .. } = *asked;
        let proved = caller.identity != 0;
        let identity = || if proved { identities.contains(&caller) } else { closed };
        let namespace = || if proved { namespaces.contains(&caller.namespace) } else { closed };
        let network = || addresses.is_some_and(|some| networks.iter().any(|network| network.covers(some)));
        (identities.is_empty() || identity())
            && (namespaces.is_empty() || namespace())
            && (networks.is_empty() || network())
            && jwt.as_ref().is_none_or(|token| token.holds(closed, seen))
    }
}

impl Asked<'static> {
    /// A connection, of which nothing is known but its two ends. For one address see [`Asked::from`].
    pub fn connection(caller: Caller, port: u16) -> Self {
        Self { caller, addresses: None, port: Some(port), seen: Seen::Unknown }
    }
}

impl<'a> Asked<'a> {
    /// The same, from there.
    #[must_use]
    pub fn from(self, network: &'a Network) -> Self {
        Self { addresses: Some(network), ..self }
    }

    /// The same, of which this is known.
    #[must_use]
    pub fn seeing<'b>(self, seen: Seen<'b>) -> Asked<'b>
    where
        'a: 'b,
    {
        Asked { caller: self.caller, addresses: self.addresses, port: self.port, seen }
    }
}

/// The network of one address, for [`Asked::from`].
pub fn at(address: IpAddr) -> Network {
    Network::from(address)
}
