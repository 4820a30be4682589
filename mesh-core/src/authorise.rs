//! Who may connect to a workload: what all the policies that select it come to.
//!
//! compile ──[`PolicySet`]──▶ { **authorise**: the proxy asks before it dials, the agent before it cuts;
//!                             plan: spelt out for the kernel, class by class }
//!
//! A policy that denies comes before one that allows. Where any policy allows, what none of them matches is
//! refused; where no policy selects a workload, everybody may connect (there is no set then).
//!
//! A caller is proved by the kernel of its own node, by the certificate of a tunnel from another node, or not at all:
//! what comes from there in plaintext has an address and nothing else. Terms on identities and namespaces fail closed for it: they
//! do not match where the policy allows, and match where it denies. A term on addresses matches as it says.
//!
//! Invariants: decides from numbers and bits, allocates nothing; an IPv6 network never holds an IPv4 address.
//! Not here: the kernel's form of it (plan/policy), who selects whom (compile).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::policy::Caller;

use crate::model::Name;

/// An identity that no workload of this node can have.
pub const NOBODY: Caller = Caller { identity: (1 << 30) - 1, namespace: 0 };

/// A set of addresses with one prefix; IPv4 as v4-mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    first: u128,
    /// Bits that count, of 128.
    length: u8,
}

/// `::ffff:0:0/96`: all of IPv4.
pub const IPV4: Network = Network { first: 0xffff << 32, length: 96 };

impl Network {
    /// The addresses that have the first `length` bits of `address`.
    pub fn new(address: IpAddr, length: u8) -> Self {
        let (first, length) = match address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().into(), length.saturating_add(96)),
            IpAddr::V6(v6) => (v6.into(), length),
        };
        Self { first, length: length.min(128) }
    }

    /// Its first address.
    pub fn first(&self) -> IpAddr {
        std::net::Ipv6Addr::from(self.first).to_canonical()
    }

    /// Bits that count, of 128.
    pub fn length(&self) -> u8 {
        self.length
    }

    fn is_v4(&self) -> bool {
        IPV4.has(self.first, self.length)
    }

    fn has(&self, first: u128, length: u8) -> bool {
        let beyond = u32::from(128 - self.length);
        length >= self.length && (self.first ^ first).checked_shr(beyond).unwrap_or(0) == 0
    }

    /// Is every address of `other` one of this network's?
    pub fn covers(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4() && self.has(other.first, other.length)
    }

    /// Do its bits take in all of IPv4, which is not its own?
    pub fn spans_v4(&self) -> bool {
        !self.is_v4() && self.has(IPV4.first, IPV4.length)
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self::new(address, 128)
    }
}

/// All policies that select a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicySet {
    /// In order of their names.
    pub policies: Box<[Arc<Policy>]>,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// `<namespace>/<name>`.
    pub name: Name,
    /// It denies what it matches, else it allows that.
    pub deny: bool,
    /// One of them must match.
    pub rules: Box<[Rule]>,
}

/// Matches where one of `from` does, and the port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// None: anybody.
    pub from: Box<[Terms]>,
    /// None: every port.
    pub ports: Box<[u16]>,
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
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// A rule denies it.
    Denied {
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
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied { policy, rule } => {
                write!(f, "denied by rules[{rule}] of AuthorizationPolicy {}", policy.name)
            }
            Self::NotAllowed { set } => {
                let allow: Vec<&str> = set.policies.iter().filter(|p| !p.deny).map(|p| &*p.name).collect();
                write!(f, "allowed by no rule of AuthorizationPolicy {}", allow.join(", "))
            }
        }
    }
}

impl PolicySet {
    /// Why this caller may not connect to this port from this address; `None`: it may.
    pub fn refuses(&self, caller: Caller, address: IpAddr, port: u16) -> Option<Refusal<'_>> {
        self.refuses_where(caller, Some(&Network::from(address)), Some(port))
    }

    /// The same for every address of a network that no term splits (`None`: for those that no term holds), and
    /// for a port (`None`: any that no term names).
    pub fn refuses_where(
        &self,
        caller: Caller,
        addresses: Option<&Network>,
        port: Option<u16>,
    ) -> Option<Refusal<'_>> {
        let found = |policy: &Policy| {
            policy.rules.iter().position(|rule| rule.matches(policy.deny, caller, addresses, port))
        };
        for policy in self.policies.iter().filter(|policy| policy.deny) {
            if let Some(rule) = found(policy) {
                return Some(Refusal::Denied { policy, rule });
            }
        }
        let mut allowing = self.policies.iter().filter(|policy| !policy.deny).peekable();
        allowing.peek()?;
        let allowed = allowing.any(|policy| found(policy).is_some());
        (!allowed).then_some(Refusal::NotAllowed { set: self })
    }

    /// The first rule that lets in whom [`PolicySet::refuses_where`] lets in; `None`: nothing has to.
    pub fn allows_where(
        &self,
        caller: Caller,
        addresses: Option<&Network>,
        port: Option<u16>,
    ) -> Option<(&Policy, usize)> {
        self.policies.iter().filter(|policy| !policy.deny).find_map(|policy| {
            let rule = policy.rules.iter().position(|rule| rule.matches(false, caller, addresses, port))?;
            Some((&**policy, rule))
        })
    }

    /// All terms on sources.
    pub fn terms(&self) -> impl Iterator<Item = &Terms> {
        self.policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.from)
    }

    /// All ports that it names.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.ports).copied()
    }

    /// Does it ask where a connection comes from?
    pub fn asks_address(&self) -> bool {
        self.terms().any(|terms| !terms.networks.is_empty())
    }
}

impl Rule {
    fn matches(&self, deny: bool, caller: Caller, addresses: Option<&Network>, port: Option<u16>) -> bool {
        let port = self.ports.is_empty() || port.is_some_and(|port| self.ports.contains(&port));
        port && (self.from.is_empty()
            || self.from.iter().any(|terms| terms.match_all(deny, caller, addresses)))
    }
}

impl Terms {
    fn match_all(&self, deny: bool, caller: Caller, addresses: Option<&Network>) -> bool {
        let Self { identities, namespaces, networks } = self;
        let proved = caller.identity != 0;
        let identity = || if proved { identities.contains(&caller) } else { deny };
        let namespace = || if proved { namespaces.contains(&caller.namespace) } else { deny };
        let network = || addresses.is_some_and(|some| networks.iter().any(|network| network.covers(some)));
        (identities.is_empty() || identity())
            && (namespaces.is_empty() || namespace())
            && (networks.is_empty() || network())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mesh_common::policy::UNPROVED;

    const CART: Caller = Caller { identity: 1, namespace: 10 };
    const PAY: Caller = Caller { identity: 2, namespace: 10 };
    const OPS: Caller = Caller { identity: 3, namespace: 11 };

    fn network(text: &str) -> Network {
        let (address, length) = text.split_once('/').unwrap();
        Network::new(address.parse().unwrap(), length.parse().unwrap())
    }

    fn terms(identities: &[Caller], namespaces: &[u32], networks: &[&str]) -> Terms {
        Terms {
            identities: identities.into(),
            namespaces: namespaces.into(),
            networks: networks.iter().map(|text| network(text)).collect(),
        }
    }

    fn policy(deny: bool, rules: &[(&[Terms], &[u16])]) -> Arc<Policy> {
        let rules = rules.iter().map(|(from, ports)| Rule { from: (*from).into(), ports: (*ports).into() });
        Arc::new(Policy { name: "d/p".into(), deny, rules: rules.collect() })
    }

    fn set(policies: &[&Arc<Policy>]) -> PolicySet {
        PolicySet { policies: policies.iter().map(|p| Arc::clone(p)).collect() }
    }

    #[track_caller]
    fn check(set: &PolicySet, caller: Caller, address: &str, port: u16, allowed: bool) {
        let refusal = set.refuses(caller, address.parse().unwrap(), port);
        assert_eq!(refusal.is_none(), allowed, "{caller:?} {address} {port}: {refusal:?}");
    }

    #[test]
    fn deny_comes_before_allow_and_any_allow_refuses_the_rest() {
        let allow = policy(false, &[(&[terms(&[CART], &[], &[]), terms(&[], &[11], &[])], &[80])]);
        let deny = policy(true, &[(&[terms(&[CART], &[], &[])], &[])]);
        let only = set(&[&allow]);
        check(&only, CART, "10.0.0.1", 80, true);
        check(&only, CART, "10.0.0.1", 81, false);
        check(&only, PAY, "10.0.0.1", 80, false);
        check(&only, OPS, "10.0.0.1", 80, true);
        let both = set(&[&allow, &deny]);
        check(&both, CART, "10.0.0.1", 80, false);
        check(&both, OPS, "10.0.0.1", 80, true);
        let deny_only = set(&[&deny]);
        check(&deny_only, CART, "10.0.0.1", 80, false);
        check(&deny_only, PAY, "10.0.0.1", 80, true);
        check(&set(&[&policy(false, &[])]), PAY, "10.0.0.1", 80, false);
        check(&set(&[&policy(true, &[])]), PAY, "10.0.0.1", 80, true);
        check(&set(&[&policy(false, &[(&[], &[])])]), UNPROVED, "10.0.0.1", 80, true);
    }

    #[test]
    fn who_is_not_proved_matches_no_identity_that_is_allowed_and_every_one_that_is_denied() {
        let cart = [terms(&[CART], &[], &[])];
        check(&set(&[&policy(false, &[(&cart, &[])])]), UNPROVED, "10.0.0.1", 80, false);
        check(&set(&[&policy(true, &[(&cart, &[])])]), UNPROVED, "10.0.0.1", 80, false);
        let near = [terms(&[], &[10], &["10.0.0.0/8"])];
        check(&set(&[&policy(true, &[(&near, &[])])]), UNPROVED, "10.0.0.1", 80, false);
        check(&set(&[&policy(true, &[(&near, &[])])]), UNPROVED, "11.0.0.1", 80, true);
        let from = [terms(&[], &[], &["10.1.0.0/16", "fd00::/8"])];
        let by_address = set(&[&policy(false, &[(&from, &[])])]);
        check(&by_address, UNPROVED, "10.1.2.3", 80, true);
        check(&by_address, CART, "10.2.2.3", 80, false);
        check(&by_address, UNPROVED, "fd91::1", 80, true);
    }

    #[test]
    fn an_ipv6_network_holds_no_ipv4_address() {
        let all6 = network("::/0");
        assert!(all6.spans_v4() && !network("fd00::/8").spans_v4() && !IPV4.spans_v4());
        assert!(!all6.covers(&network("10.0.0.0/8")) && all6.covers(&network("fd00::/8")));
        assert!(network("0.0.0.0/0").covers(&network("10.0.0.0/8")));
        assert!(!network("10.0.0.0/8").covers(&network("0.0.0.0/0")));
        assert!(all6.covers(&all6));
    }

    #[test]
    fn a_refusal_names_the_policy() {
        let allow = set(&[&policy(false, &[])]);
        let text = |set: &PolicySet| set.refuses(CART, "10.0.0.1".parse().unwrap(), 1).map(|r| r.to_string());
        assert_eq!(text(&allow).as_deref(), Some("allowed by no rule of AuthorizationPolicy d/p"));
        let deny = set(&[&policy(true, &[(&[], &[2]), (&[], &[])])]);
        assert_eq!(text(&deny).as_deref(), Some("denied by rules[1] of AuthorizationPolicy d/p"));
    }
}
