//! What policies mean, and the ways in which requests try to be taken for others.

mod tricks;

use super::*;
use mesh_api::http_path::PathPattern;
use mesh_common::policy::UNPROVED;

pub const CART: Caller = Caller { identity: 1, namespace: 10 };
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
        jwt: None,
    }
}

fn to(ports: &[u16]) -> Box<[Target]> {
    if ports.is_empty() {
        Box::default()
    } else {
        [Target { ports: ports.into(), ..Target::default() }].into()
    }
}

fn policy(action: Action, rules: &[(&[Terms], &[u16])]) -> Arc<Policy> {
    let rules =
        rules.iter().map(|(from, ports)| Rule { from: (*from).into(), to: to(ports), ..Rule::default() });
    Arc::new(Policy { name: "d/p".into(), action, rules: rules.collect() })
}

/// A policy of one rule for anybody.
pub fn about(action: Action, to: Target, when: &[Term]) -> Arc<Policy> {
    let rule = Rule { to: [to].into(), when: when.into(), ..Rule::default() };
    Arc::new(Policy { name: "d/p".into(), action, rules: [rule].into() })
}

pub fn set(policies: &[&Arc<Policy>]) -> PolicySet {
    PolicySet::new(policies.iter().map(|p| Arc::clone(p)).collect())
}

#[track_caller]
fn check(set: &PolicySet, caller: Caller, address: &str, port: u16, allowed: bool) {
    let at = at(address.parse().unwrap());
    let refusal = set.refuses(&Asked::connection(caller, port).from(&at));
    assert_eq!(refusal.is_none(), allowed, "{caller:?} {address} {port}: {refusal:?}");
}

#[test]
fn deny_comes_before_allow_and_any_allow_refuses_the_rest() {
    use Action::{Allow, Audit, Deny};
    let allow = policy(Allow, &[(&[terms(&[CART], &[], &[]), terms(&[], &[11], &[])], &[80])]);
    let deny = policy(Deny, &[(&[terms(&[CART], &[], &[])], &[])]);
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
    check(&set(&[&policy(Allow, &[])]), PAY, "10.0.0.1", 80, false);
    check(&set(&[&policy(Deny, &[])]), PAY, "10.0.0.1", 80, true);
    check(&set(&[&policy(Allow, &[(&[], &[])])]), UNPROVED, "10.0.0.1", 80, true);
    check(&set(&[&policy(Audit, &[(&[], &[])])]), UNPROVED, "10.0.0.1", 80, true);
}

#[test]
fn who_is_not_proved_matches_no_identity_that_is_allowed_and_every_one_that_is_denied() {
    use Action::{Allow, Deny};
    let cart = [terms(&[CART], &[], &[])];
    check(&set(&[&policy(Allow, &[(&cart, &[])])]), UNPROVED, "10.0.0.1", 80, false);
    check(&set(&[&policy(Deny, &[(&cart, &[])])]), UNPROVED, "10.0.0.1", 80, false);
    let near = [terms(&[], &[10], &["10.0.0.0/8"])];
    check(&set(&[&policy(Deny, &[(&near, &[])])]), UNPROVED, "10.0.0.1", 80, false);
    check(&set(&[&policy(Deny, &[(&near, &[])])]), UNPROVED, "11.0.0.1", 80, true);
    let from = [terms(&[], &[], &["10.1.0.0/16", "fd00::/8"])];
    let by_address = set(&[&policy(Allow, &[(&from, &[])])]);
    check(&by_address, UNPROVED, "10.1.2.3", 80, true);
    check(&by_address, CART, "10.2.2.3", 80, false);
    check(&by_address, UNPROVED, "fd91::1", 80, true);
}

#[test]
fn a_refusal_names_the_policy() {
    let text = |set: &PolicySet| set.refuses(&Asked::connection(CART, 1)).map(|r| r.to_string());
    let allow = set(&[&policy(Action::Allow, &[])]);
    assert_eq!(text(&allow).as_deref(), Some("allowed by no rule of AuthorizationPolicy d/p"));
    let deny = set(&[&policy(Action::Deny, &[(&[], &[2]), (&[], &[])])]);
    assert_eq!(text(&deny).as_deref(), Some("denied by rules[1] of AuthorizationPolicy d/p"));
}

pub fn methods(all: &[&str]) -> Target {
    Target { methods: all.iter().map(|one| (*one).into()).collect(), ..Target::default() }
}

pub fn paths(all: &[&str]) -> Target {
    Target { paths: all.iter().map(|one| PathPattern::parse(one).unwrap()).collect(), ..Target::default() }
}

#[test]
fn what_is_no_request_fails_closed_and_what_is_not_known_is_open() {
    let asked = |set: &PolicySet, seen| set.refuses(&Asked::connection(CART, 80).seeing(seen)).is_none();
    let cases = [
        (Action::Allow, true, false),
        (Action::Deny, true, false),
        (Action::Audit, true, true),
        (Action::Custom("opa".into()), true, false),
    ];
    for (action, unknown, opaque) in cases {
        let header = Term::Header(HeaderTerm { name: "x".into(), is: HeaderValue::Present });
        for policy in [
            about(action.clone(), methods(&["GET"]), &[]),
            about(action.clone(), Target::default(), &[header]),
        ] {
            let set = set(&[&policy]);
            assert_eq!((asked(&set, Seen::Unknown), asked(&set, Seen::Opaque)), (unknown, opaque));
            let decides = action != Action::Audit;
            assert_eq!((set.asks_requests(Some(80)), set.asks_requests(None)), (decides, decides));
            assert!(set.looks(None) && set.asks_any_requests() == decides);
        }
    }
    let elsewhere = Target { ports: [81].into(), ..methods(&["GET"]) };
    let elsewhere = set(&[&about(Action::Deny, elsewhere, &[])]);
    assert!(asked(&elsewhere, Seen::Opaque) && !elsewhere.asks_requests(Some(80)));
    assert_eq!((elsewhere.asks_requests(Some(81)), elsewhere.asks_requests(None)), (true, false));
}

#[test]
fn who_is_asked_outside_is_asked_of_what_is_let_in() {
    let custom = about(Action::Custom("opa".into()), Target { ports: [80].into(), ..Target::default() }, &[]);
    let only = set(&[&custom]);
    let set = set(&[&custom, &about(Action::Deny, methods(&["DELETE"]), &[])]);
    let asked = |port, method: &str| {
        let headers = &crate::check::Sample::default();
        let request = Request { method, path: "/a", authority: "", headers, claims: None };
        let asked = Asked::connection(CART, port).seeing(Seen::Request(&request));
        let names: Vec<String> = set.questions(&asked).map(|(_, _, provider)| provider.to_string()).collect();
        (set.refuses(&asked).is_some(), names)
    };
    assert_eq!(asked(80, "GET"), (false, vec!["opa".to_owned()]));
    assert_eq!(asked(81, "GET"), (false, vec![]));
    assert!(asked(80, "DELETE").0, "it is denied, whoever would say yes");
    // There is nothing to ask about.
    let opaque = Asked::connection(CART, 80).seeing(Seen::Opaque);
    let refusal = only.refuses(&opaque).expect("refused");
    assert!(matches!(refusal, Refusal::NotAsked { .. }), "{refusal}");
    assert!(set.asks_requests(Some(80)));
}

#[test]
fn audits_match_and_decide_nothing() {
    let audit = about(Action::Audit, methods(&["DELETE"]), &[]);
    let set = set(&[&audit, &policy(Action::Allow, &[(&[], &[])])]);
    assert!(set.looks(Some(80)) && !set.asks_any_requests());
    for (method, count) in [("DELETE", 1), ("delete", 1), ("GET", 0)] {
        let request = Request {
            method,
            path: "/a/../b",
            authority: "",
            headers: &crate::check::Sample::default(),
            claims: None,
        };
        let asked = Asked::connection(CART, 80).seeing(Seen::Request(&request));
        assert_eq!(set.audits(&asked).count(), count, "{method}");
        assert!(set.refuses(&asked).is_none());
    }
}
