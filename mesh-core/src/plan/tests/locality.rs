//! What preferences and priorities become in the tables.

use std::collections::BTreeSet;

use mesh_api::proto::v1::{self, Protocol};
use proptest::prelude::*;

use super::{Capacities, Node, problems};
use crate::compile::Ejected;
use crate::compile::tests::{compiler, of, service, tcp_route, workload};
use crate::locality::Locality;
use crate::model::{Kind, Resource};

/// The tables of node n1, in zone a of eu.
fn node() -> Node {
    let mut node = Node::new(Capacities::default());
    node.compiler = compiler().at(Locality { region: "eu".into(), zone: "a".into() });
    node
}

/// A workload on a node and in a zone of eu, of service s.
fn placed(name: &str, addresses: &[&str], node: &str, zone: &str) -> v1::Workload {
    let mut workload = workload(name, addresses, &[("s", 80, 1)]);
    workload.node = node.into();
    workload.locality = Some(v1::Locality { region: "eu".into(), zone: zone.into() });
    workload
}

fn prefer(change: impl FnOnce(&mut v1::LocalityPolicy)) -> Resource {
    let mut locality = v1::LocalityPolicy::default();
    change(&mut locality);
    of(v1::TrafficPolicy {
        namespace: "d".into(),
        name: "p".into(),
        targets: vec![v1::PolicyTarget { service: "s".into(), section_name: String::new() }],
        locality: Some(locality),
        ..Default::default()
    })
}

/// Percent of the endpoints at these addresses in the table of a virtual address; -1: no slot.
#[track_caller]
fn percents(node: &Node, vip: &str, addresses: &[&str]) -> Vec<i32> {
    let shares = node.tables(&node.entry(vip, 80)).0;
    let of = |address: &&str| {
        let share = shares.get(&node.direct(address, 8080).endpoint);
        share.map_or(-1, |share| (share * 100.0).round() as i32)
    };
    addresses.iter().map(of).collect()
}

const ALL: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

/// Two in zone a, one of them here; one in zone b.
fn world() -> Vec<Resource> {
    vec![
        of(service("s", &["240.0.0.1", "fd00::1"], 80, Protocol::Tcp)),
        of(placed("w1", &[ALL[0], "fd00::a1"], "n1", "a")),
        of(placed("w2", &[ALL[1], "fd00::a2"], "n2", "a")),
        of(placed("w3", &[ALL[2], "fd00::a3"], "n3", "b")),
    ]
}

#[test]
fn the_nearest_take_all_and_the_others_are_spares() {
    let mut node = node();
    node.put(world());
    assert_eq!(percents(&node, "240.0.0.1", &ALL), [33, 33, 33]);
    let before = node.entry("240.0.0.1", 80);
    node.put(vec![prefer(|p| p.zone = true)]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL), [50, 50, 0]);
    assert_eq!(percents(&node, "fd00::1", &["fd00::a1", "fd00::a2", "fd00::a3"]), [50, 50, 0]);
    let entry = node.entry("240.0.0.1", 80);
    assert_eq!((entry.table_len, entry.flags), (before.table_len, before.flags));
    let spare = node.maps.slots[entry.table as usize..][..3].iter().flatten().find(|slot| slot.weight == 0);
    assert_eq!(spare.unwrap().threshold, 0, "one draw in 2³²");

    node.put(vec![prefer(|p| (p.node, p.zone) = (true, true))]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL), [100, 0, 0]);
    node.change(vec![], &[(Kind::Workload, "d/w1")]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL[1..]), [100, 0]);
    node.change(vec![], &[(Kind::Workload, "d/w2")]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL[2..]), [100]);
}

#[test]
fn without_a_policy_nothing_is_kept_and_the_tables_are_what_they_were() {
    let (mut plain, mut changed) = (node(), node());
    let first = plain.put(world());
    assert_eq!(changed.put(world()).ops, first.ops);
    changed.put(vec![prefer(|p| p.zone = true)]);
    assert_eq!(changed.compiler.snapshot().spreads.len(), 1);
    changed.change(vec![], &[(Kind::TrafficPolicy, "d/p")]);
    assert!(changed.compiler.snapshot().spreads.is_empty());
    let (one, other) = (plain.compiler.snapshot(), changed.compiler.snapshot());
    assert_eq!(one.services, other.services);
    assert_eq!(percents(&changed, "240.0.0.1", &ALL), percents(&plain, "240.0.0.1", &ALL));
    changed.put(vec![prefer(|p| p.zone = true)]);
    changed.change(vec![], &[(Kind::Service, "d/s")]);
    assert!(changed.compiler.snapshot().spreads.is_empty());
}

#[test]
fn each_family_is_split_among_those_who_have_it() {
    let mut node = node();
    node.put(world());
    node.put(vec![
        of(placed("w1", &[ALL[0]], "n1", "a")),
        of(placed("w2", &[ALL[1]], "n2", "a")),
        prefer(|p| p.zone = true),
    ]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL), [50, 50, 0]);
    assert_eq!(percents(&node, "fd00::1", &["fd00::a3"]), [100]);
}

#[test]
fn what_the_ejected_cannot_carry_goes_further_until_they_are_back() {
    let mut node = node();
    node.put(world());
    node.put(vec![prefer(|p| p.zone = true)]);
    let endpoint = |address: &str| node.direct(address, 8080).endpoint;
    let (one, two) = (endpoint(ALL[0]), endpoint(ALL[1]));
    let out = |ids: &[u32]| Ejected::from([(1, ids.iter().copied().collect())]);
    let eject = |node: &mut Node, ids: Ejected| {
        let outcome = node.compiler.eject(ids).expect("something changes");
        node.plan(&outcome.dirty);
        percents(node, "240.0.0.1", &ALL)
    };
    assert_eq!(eject(&mut node, out(&[one])), [0, 70, 30]);
    assert!(node.compiler.eject(out(&[one])).is_none(), "as before");
    assert_eq!(eject(&mut node, out(&[one, two])), [0, 0, 100]);
    assert_eq!(eject(&mut node, Ejected::new()), [50, 50, 0]);
}

#[test]
fn a_strict_policy_knows_nobody_outside() {
    let mut node = node();
    node.put(world());
    let strict = || prefer(|p| (p.zone, p.strict) = (true, true));
    node.put(vec![strict()]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL), [50, 50, -1]);
    assert_eq!(node.compiler.snapshot().services[&1].serving, 2);
    node.change(vec![], &[(Kind::Workload, "d/w1"), (Kind::Workload, "d/w2")]);
    assert_eq!(node.entry("240.0.0.1", 80).table_len, 0);
    let out = crate::compile::tests::apply(&mut node.compiler, vec![], &[]);
    assert!(out.conditions[0].problem.contains("mode failover"), "{:?}", out.conditions);
}

#[test]
fn priorities_need_no_policy_and_come_before_nearness() {
    let mut node = node();
    node.put(world());
    let mut near = placed("w1", &[ALL[0]], "n1", "a");
    near.priority = 1;
    node.put(vec![of(near)]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL), [0, 50, 50]);
    node.put(vec![prefer(|p| p.zone = true)]);
    assert_eq!(percents(&node, "240.0.0.1", &ALL), [0, 100, 0]);
}

#[test]
fn routes_to_several_services_hold_no_spares() {
    let mut node = node();
    node.put(world());
    node.put(vec![
        prefer(|p| p.zone = true),
        of(service("front", &["240.0.0.9"], 80, Protocol::Tcp)),
        of(service("other", &["240.0.0.8"], 80, Protocol::Tcp)),
        of(workload("o", &["10.0.0.9"], &[("other", 80, 1)])),
        of(tcp_route("r", "front", &[("s", 80, 1), ("other", 80, 1)])),
    ]);
    assert_eq!(percents(&node, "240.0.0.9", &[ALL[0], ALL[1], ALL[2], "10.0.0.9"]), [25, 25, -1, 50]);
    let plan = node.plan(&crate::compile::Dirty::default());
    assert!(problems(&plan).is_empty(), "{plan:?}");
}

proptest! {
    #[test]
    fn kernel_and_proxy_have_the_same_parts(
        placements in prop::collection::vec((0u8..3, 0u8..3, 1u32..5, 0u32..3, any::<bool>()), 1..8),
        scopes in 0u8..8,
    ) {
        let mut node = node();
        let address = |i: usize| format!("10.0.1.{}", i + 1);
        let mut all = vec![of(service("s", &["240.0.0.1"], 80, Protocol::Tcp))];
        for (i, (host, zone, weight, priority, _)) in placements.iter().enumerate() {
            let (host, zone) = (format!("n{host}"), ["a", "b", "c"][usize::from(*zone)]);
            let mut workload = placed(&format!("w{i}"), &[&address(i)], &host, zone);
            workload.services[0].weight = *weight;
            workload.priority = *priority;
            all.push(of(workload));
        }
        all.push(prefer(|p| (p.node, p.zone, p.region) = (scopes & 1 != 0, scopes & 2 != 0, scopes & 4 != 0)));
        node.put(all);
        let ids: BTreeSet<u32> = placements
            .iter()
            .enumerate()
            .filter(|(_, placement)| placement.4)
            .map(|(i, _)| node.direct(&address(i), 8080).endpoint)
            .collect();
        if let Some(outcome) = node.compiler.eject(Ejected::from([(1, ids)])) {
            node.plan(&outcome.dirty);
        }
        let shares = node.tables(&node.entry("240.0.0.1", 80)).0;
        let service = &node.compiler.snapshot().services[&1];
        let total: u64 = service.serving().iter().map(|e| u64::from(e.weight)).sum();
        for endpoint in service.serving() {
            let proxy = f64::from(endpoint.weight) / total as f64;
            prop_assert!((shares[&endpoint.id] - proxy).abs() < 1e-6, "{shares:?}, {service:?}");
        }
    }
}
