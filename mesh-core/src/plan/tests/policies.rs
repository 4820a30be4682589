//! Policy sets in the maps: what the kernel reads there is what the policies say, and what does not fit is
//! closed for those whom it concerns.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::proto::v1::{self, Protocol};
use mesh_common::addr;
use mesh_common::policy::{CLOSED, Caller, OTHER_ADDRESSES, UNPROVED, allowed, asks_address};
use mesh_common::record::{PolicyCidr, PolicyKey, flags};
use proptest::prelude::*;

use super::{Capacities, MapOp, Node, View, problems};
use crate::authorise::{
    Action, Asked, HeaderTerm, HeaderValue, Network, Policy, PolicySet, Request, Rule, Seen, Target, Term,
    Terms,
};
use crate::check::Sample;
use crate::compile::tests::{of, service, workload};
use crate::model::{Kind, Resource};
use crate::plan::policies::{Entries, entries};
use crate::plan::{Adopted, LocalSlots};
use crate::snapshot::Workload;

const NETWORKS: [(&str, u8); 8] = [
    ("0.0.0.0", 0),
    ("10.0.0.0", 8),
    ("10.1.0.0", 16),
    ("10.1.2.3", 32),
    ("::", 0),
    ("fd00::", 8),
    ("fd91::", 16),
    ("fd91::1", 128),
];
const ADDRESSES: [&str; 8] =
    ["10.1.2.3", "10.1.2.4", "10.2.0.1", "11.0.0.1", "fd91::1", "fd91::2", "fd00::1", "2001:db8::1"];

/// Identities 1 to 6, of namespaces 1 to 3.
fn callers() -> impl Iterator<Item = Caller> {
    (1..=6).map(|identity| Caller { identity, namespace: identity.div_ceil(2) }).chain([UNPROVED])
}

fn terms() -> impl Strategy<Value = Terms> {
    let identities = prop::collection::vec(1u32..=4, 0..3);
    let namespaces = prop::collection::vec(1u32..=3, 0..2);
    let networks = prop::collection::vec(prop::sample::select(NETWORKS.to_vec()), 0..3);
    (identities, namespaces, networks).prop_map(|(identities, namespaces, networks)| Terms {
        identities: identities
            .into_iter()
            .map(|identity| Caller { identity, namespace: identity.div_ceil(2) })
            .collect(),
        namespaces: namespaces.into(),
        networks: networks
            .into_iter()
            .map(|(address, length)| Network::new(address.parse().unwrap(), length))
            .collect(),
        jwt: None,
    })
}

fn set() -> impl Strategy<Value = PolicySet> {
    let methods = prop::collection::vec(prop::sample::select(METHODS.to_vec()), 0..2);
    let target = (prop::collection::vec(1u16..=3, 0..3), methods).prop_map(|(ports, methods)| Target {
        ports: ports.into(),
        methods: methods.into_iter().map(Box::from).collect(),
        ..Target::default()
    });
    let header = |name: &str| HeaderTerm { name: name.into(), is: HeaderValue::Present };
    let when = prop::option::weighted(0.2, prop::sample::select(HEADERS.to_vec()))
        .prop_map(move |name| name.map(|name| Term::Header(header(name))).into_iter().collect());
    let rule = (prop::collection::vec(terms(), 0..3), prop::collection::vec(target, 0..3), when)
        .prop_map(|(from, to, when)| Rule { from: from.into(), to: to.into(), when });
    let action =
        prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit, Action::Custom("opa".into())]);
    let policy = (action, prop::collection::vec(rule, 0..4))
        .prop_map(|(action, rules)| Arc::new(Policy { name: "d/p".into(), action, rules: rules.into() }));
    prop::collection::vec(policy, 1..4).prop_map(|policies| PolicySet::new(policies.into()))
}

const METHODS: [&str; 2] = ["GET", "PUT"];
const HEADERS: [&str; 2] = ["x-a", "x-b"];

/// Every request that the terms tell apart.
fn requests() -> impl Iterator<Item = Sample> {
    let headers = [vec![], vec![HEADERS[0]], vec![HEADERS[1]], HEADERS.to_vec()];
    headers.into_iter().flat_map(|headers| {
        METHODS.into_iter().chain(["POST"]).map(move |method| Sample {
            method: method.into(),
            path: "/".into(),
            host: String::new(),
            headers: headers.iter().map(|name| ((*name).to_owned(), String::new())).collect(),
        })
    })
}

/// The maps as the kernel reads them.
struct Read {
    verdicts: HashMap<PolicyKey, u32>,
    cidrs: Vec<(u32, PolicyCidr, u32)>,
}

impl Read {
    fn new(entries: Entries) -> Self {
        let count = entries.verdicts.len();
        let verdicts: HashMap<PolicyKey, u32> = entries.verdicts.into_iter().collect();
        assert_eq!(verdicts.len(), count, "every key once");
        Self { verdicts, cidrs: entries.cidrs }
    }

    /// The longest prefix that matches, as an LPM trie finds it.
    fn range_of(&self, set: u32, address: IpAddr) -> u32 {
        let bits = |addr: addr::Addr| {
            addr.iter().fold(0u128, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
        };
        let address = bits(addr::from_ip(address));
        let matches = |(length, prefix, _): &&(u32, PolicyCidr, u32)| {
            let differ = address ^ bits(prefix.addr);
            prefix.set == set && differ.checked_shr(128 - (length - 32)).unwrap_or(0) == 0
        };
        let longest = self.cidrs.iter().filter(matches).max_by_key(|(length, ..)| *length);
        longest.map_or(OTHER_ADDRESSES, |(.., number)| *number)
    }
}

proptest! {
    #[test]
    fn the_kernels_look_ups_say_what_the_policies_say(set in set()) {
        let id = 4 | u32::from(set.asks_address()) | u32::from(set.asks_any_requests()) << 1;
        let read = Read::new(entries(id, &set).unwrap());
        for caller in callers() {
            for address in ADDRESSES {
                let address: IpAddr = address.parse().unwrap();
                for port in 1..=4u16 {
                    let range = if asks_address(id) { read.range_of(id, address) } else { OTHER_ADDRESSES };
                    let kernel = |datagram| {
                        allowed(id, range, port.to_be(), datagram, caller, |key| read.verdicts.get(key).copied())
                    };
                    let at = crate::authorise::at(address);
                    let asked = Asked::connection(caller, port).from(&at);
                    let lets_in = |seen: Seen<'_>| set.refuses(&asked.seeing(seen)).is_none();
                    prop_assert_eq!(kernel(true), lets_in(Seen::Opaque), "{:?} {} {}", caller, address, port);
                    let all: Vec<bool> = requests()
                        .map(|s| {
                            let (method, path) = (&*s.method, &*s.path);
                            let request = Request { method, path, authority: "", headers: &s, claims: None };
                            lets_in(Seen::Request(&request))
                        })
                        .collect();
                    // Nobody is refused who might bring something that is allowed; where nobody looks at requests, the
                    // kernel's word is the whole of it.
                    prop_assert!(kernel(false) || !all.contains(&true), "{:?} {} {}", caller, address, port);
                    if !set.asks_requests(Some(port)) {
                        let agree = all.iter().all(|one| *one == kernel(false)) && kernel(true) == kernel(false);
                        prop_assert!(agree, "{:?} {} {}", caller, address, port);
                    }
                    // Who may send what is no request may send every request.
                    prop_assert!(!kernel(true) || !all.contains(&false), "{:?} {} {}", caller, address, port);
                }
            }
        }
    }
}

#[test]
fn what_follows_from_the_rest_takes_no_entry() {
    let cart = Caller { identity: 1, namespace: 1 };
    let terms = Terms { identities: [cart].into(), ..Terms::default() };
    let to = Target { ports: [80, 81].into(), ..Target::default() };
    let rule = Rule { from: [terms].into(), to: [to].into(), ..Rule::default() };
    let policy = Policy { name: "d/p".into(), action: Action::Allow, rules: [rule].into() };
    let set = PolicySet::new([Arc::new(policy)].into());
    // Anybody and the unproved: no. This identity: two ports, and no other.
    assert_eq!(entries(4, &set).unwrap().verdicts.len(), 2 + 3);
}

#[test]
fn a_set_that_tells_too_much_apart_is_refused() {
    let identities: Box<[Caller]> = (1..=400).map(|identity| Caller { identity, namespace: 1 }).collect();
    let networks: Box<[Network]> = (0..=255).map(|i| Network::new(IpAddr::from([10, i, 0, 0]), 16)).collect();
    let terms = Terms { identities, networks, ..Terms::default() };
    let policy = Policy {
        name: "d/p".into(),
        action: Action::Allow,
        rules: [Rule { from: [terms].into(), ..Rule::default() }].into(),
    };
    let set = PolicySet::new([Arc::new(policy)].into());
    assert!(entries(4, &set).unwrap_err().contains("103314 combinations"));
}

/// Policy `d/<name>` that allows service accounts of `d` to what it selects.
fn allow(name: &str, app: &str, accounts: &[&str]) -> Resource {
    let identities = accounts.iter().map(|account| v1::Principal {
        trust_domain: String::new(),
        namespace: "d".into(),
        service_account: (*account).into(),
    });
    of(v1::AuthorizationPolicy {
        namespace: "d".into(),
        name: name.into(),
        selector: [("app".to_owned(), app.to_owned())].into(),
        action: v1::AuthorizationAction::Allow.into(),
        provider: String::new(),
        rules: vec![v1::AuthorizationRule {
            from: vec![v1::SourceTerms { identities: identities.collect(), ..Default::default() }],
            ..Default::default()
        }],
    })
}

fn labelled(name: &str, address: &str, app: &str) -> Resource {
    let mut workload = workload(name, &[address], &[("s", 80, 1)]);
    workload.labels.insert("app".into(), app.into());
    of(workload)
}

fn world() -> Vec<Resource> {
    vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Tcp)),
        labelled("db", "10.0.0.1", "db"),
        labelled("web", "10.0.0.2", "web"),
    ]
}

fn compiled(node: &Node, name: &str) -> Arc<Workload> {
    let snapshot = node.compiler.snapshot();
    Arc::clone(snapshot.workloads.values().find(|w| w.name() == name).expect("compiled"))
}

/// What the maps hold for a workload's address: its set, and whether it asks.
fn asked(node: &Node, address: &str) -> (u32, bool) {
    let entry = node.direct(address, 8080);
    (entry.policy_set, entry.flags & flags::ASKS != 0)
}

#[test]
fn a_policy_reaches_the_entries_of_what_it_selects_and_changes_under_a_new_number() {
    let mut node = Node::new(Capacities::default());
    node.locals.insert(1, LocalSlots { listener_slot: 0, heartbeat_slot: 0 });
    let mut all = world();
    all.push(allow("p", "db", &["cart"]));
    node.put(all);
    let first = compiled(&node, "db").policy_set;
    assert_ne!(first, 0);
    assert_eq!((asked(&node, "10.0.0.1"), asked(&node, "10.0.0.2")), ((first, true), (0, false)));
    let slots: Vec<_> = node.maps.slots.iter().flatten().map(|s| (s.policy_set, s.flags)).collect();
    assert_eq!(slots, [(first, flags::LOCAL | flags::ASKS), (0, flags::LOCAL)]);
    assert!(node.maps.policy.keys().all(|key| key.set == first) && !node.maps.policy.is_empty());

    // A workload that comes later has the identity that the policy has named.
    let mut cart = workload("cart", &["10.0.0.3"], &[]);
    cart.service_account = "cart".into();
    node.put(vec![of(cart)]);
    let set = &node.compiler.snapshot().policies[&first];
    let cart = compiled(&node, "cart");
    let cart = Caller { identity: cart.identity, namespace: cart.mesh_ns };
    assert!(set.refuses(&Asked::connection(cart, 80)).is_none());

    let plan = node.put(vec![allow("p", "db", &["cart", "pay"])]);
    let second = compiled(&node, "db").policy_set;
    assert_ne!(second, first);
    assert_eq!(asked(&node, "10.0.0.1").0, second);
    assert!(node.maps.policy.keys().all(|key| key.set == second), "the old set is gone");
    let place = |what: fn(&MapOp) -> bool| plan.ops.iter().position(what).unwrap();
    let put = place(|op| matches!(op, MapOp::PutPolicy { .. }));
    let used = place(|op| matches!(op, MapOp::PutWorkload { .. }));
    let gone = place(|op| matches!(op, MapOp::DelPolicy { .. }));
    assert!(put < used && used < gone);

    node.change(vec![], &[(Kind::AuthorizationPolicy, "d/p")]);
    assert_eq!(asked(&node, "10.0.0.1"), (0, false));
    assert!(node.maps.policy.is_empty() && node.compiler.snapshot().policies.is_empty());
}

#[test]
fn ports_whose_requests_are_looked_at_go_through_the_proxy_or_nowhere() {
    let mut node = Node::new(Capacities::default());
    node.locals.insert(1, LocalSlots { listener_slot: 8, heartbeat_slot: 0 });
    let with = |ports: &[u32]| {
        let get =
            v1::TargetTerms { ports: ports.to_vec(), methods: vec!["GET".into()], ..Default::default() };
        let rule = v1::AuthorizationRule { ports: vec![0], to: vec![get], ..Default::default() };
        let name = ("d".to_owned(), "p".to_owned());
        of(v1::AuthorizationPolicy {
            namespace: name.0,
            name: name.1,
            rules: vec![rule],
            ..Default::default()
        })
    };
    let mut all = world();
    all.push(with(&[9090]));
    node.put(all);
    let wants = |node: &Node, port: u16| {
        let entry = node.direct("10.0.0.1", port).flags;
        let judged = entry & flags::REQUESTS != 0;
        assert_eq!(
            (entry & flags::INBOUND_PROXY != 0, entry & flags::BYPASS != 0 && judged),
            (judged, false)
        );
        judged
    };
    // 9090 serves nothing, and has an entry of its own.
    assert_eq!([9090, 8080, 0].map(|port| wants(&node, port)), [true, false, false]);
    let set = compiled(&node, "db").policy_set;
    assert!(mesh_common::policy::tells_datagrams(set) && set & 1 == 0);
    assert!(node.maps.policy.keys().any(|key| key.datagrams == 1));
    node.put(vec![with(&[])]);
    assert_eq!([8080, 0].map(|port| wants(&node, port)), [true, true]);
    node.change(vec![], &[(Kind::AuthorizationPolicy, "d/p")]);
    assert_eq!([8080, 0].map(|port| wants(&node, port)), [false, false]);
    assert!(compiled(&node, "db").looks.is_none());
}

#[test]
fn a_set_without_room_is_closed_and_opens_when_there_is_room() {
    let mut node = Node::new(Capacities { policy: 5, ..Capacities::default() });
    let mut all = world();
    all.push(allow("db", "db", &["a", "b", "c"]));
    let plan = node.put(all);
    assert_eq!(plan.conditions, []);
    let plan = node.put(vec![allow("web", "web", &["a"])]);
    assert_eq!(
        problems(&plan),
        [
            "AuthorizationPolicy d/web: connections to the workloads that it selects are refused: map POLICY is full \
          (5 entries): 3 are needed, 0 are free: raise --map-policy"
        ]
    );
    assert_eq!(asked(&node, "10.0.0.2"), (CLOSED, true));
    assert_eq!(asked(&node, "10.0.0.1").0, compiled(&node, "db").policy_set, "the other goes on");
    assert!(node.maps.slots.iter().flatten().any(|slot| slot.policy_set == CLOSED));

    // Room comes with the plan after the one that deletes.
    let plan = node.change(vec![], &[(Kind::AuthorizationPolicy, "d/db")]);
    assert_eq!((plan.conditions.len(), plan.retry_at), (1, Some(node.now)));
    let plan = node.plan(&crate::compile::Dirty::default());
    assert_eq!((plan.conditions.len(), plan.retry_at), (0, None));
    assert_eq!(asked(&node, "10.0.0.2").0, compiled(&node, "web").policy_set);
}

#[test]
fn sets_of_an_agent_before_this_one_go_with_the_first_full_plan() {
    let mut old = Node::new(Capacities::default());
    let mut all = world();
    all.push(allow("p", "db", &["cart"]));
    old.put(all.clone());
    let mut node = Node::new(Capacities::default());
    let adopted = Adopted {
        services: old.maps.services.clone().into_iter().collect(),
        workloads: old.maps.workloads.clone().into_iter().collect(),
        policy: old.maps.policy.keys().copied().collect(),
        policy_cidrs: vec![],
    };
    node.view = View::adopt(adopted, Capacities::default());
    let last = node.view.last_policy_set();
    node.compiler = crate::compile::tests::compiler().after_policy_set(last);
    (node.maps, node.full) = (old.maps, false);
    node.put(all);
    let set = compiled(&node, "db").policy_set;
    assert!(set > last);
    assert!(node.maps.policy.keys().any(|key| key.set == last), "not before everything has come");
    node.full = true;
    node.plan(&crate::compile::Dirty::default());
    assert!(node.maps.policy.keys().all(|key| key.set == set));
}
