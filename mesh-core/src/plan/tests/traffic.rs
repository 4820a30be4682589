//! What policies on traffic become in the maps.

use std::time::Duration;

use mesh_api::proto::v1::{self, Balancing, Protocol};
use mesh_common::pick;
use mesh_common::record::{self, Endpoint, MAGLEV_ROW, MaglevRow, Rules, flags};

use super::{Capacities, MapOp, Node, View, problems};
use crate::compile::Dirty;
use crate::compile::tests::{of, service, workload};
use crate::model::{Kind, Resource};
use crate::plan::{Adopted, GRACE};

fn policy(change: impl FnOnce(&mut v1::TrafficPolicy)) -> Resource {
    let target = v1::PolicyTarget { service: "s".into(), section_name: String::new() };
    let mut policy = v1::TrafficPolicy {
        namespace: "d".into(),
        name: "p".into(),
        targets: vec![target],
        ..Default::default()
    };
    change(&mut policy);
    of(policy)
}

fn breaker(policy: &mut v1::TrafficPolicy) {
    policy.set_balancing(Balancing::LeastConnections);
    policy.affinity_timeout_ms = 2000;
    policy.connect_timeout_ms = 600;
    policy.limits = Some(v1::ConnectionLimits {
        max_connections: 10,
        max_connections_per_endpoint: 4,
        ..Default::default()
    });
    policy.outlier_ejection = Some(v1::OutlierEjection {
        consecutive_connect_failures: 3,
        base_ejection_ms: 1000,
        max_ejected_percent: 40,
        ..Default::default()
    });
}

fn world() -> Vec<Resource> {
    vec![
        of(service("s", &["240.0.0.1", "fd00::1"], 80, Protocol::Tcp)),
        of(workload("w1", &["10.0.0.1", "fd00::a"], &[("s", 80, 3)])),
        of(workload("w2", &["10.0.0.2"], &[("s", 80, 1)])),
        of(workload("w3", &["10.0.0.3"], &[("s", 80, 0)])),
    ]
}

#[test]
fn rules_come_before_the_entry_that_asks_and_go_after_it() {
    let mut node = Node::new(Capacities::default());
    let plan = node.put(world());
    assert!(!plan.ops.iter().any(|op| matches!(op, MapOp::PutRules { .. })), "{plan:?}");

    let plan = node.put(vec![policy(breaker)]);
    let wanted = Rules {
        flags: flags::LEAST | flags::AFFINE | flags::LIMITED | flags::EJECTS | flags::HASTY,
        endpoints: 2,
        max_connections: 10,
        max_per_endpoint: 4,
        failures: 3,
        max_ejected_percent: 40,
        ejection_ns: 1_000_000_000,
        affinity_ns: 2_000_000_000,
        connect_timeout_ms: 600,
        ..Rules::default()
    };
    assert_eq!(plan.ops[0], MapOp::PutRules { service: 1, rules: wanted });
    let entry = node.entry("240.0.0.1", 80);
    assert_eq!(entry.flags, wanted.flags);
    // Only the rules know how many endpoints there are, and only the entry that there are rules.
    assert!(matches!(
        plan.ops[1..],
        [MapOp::PutService { .. }, MapOp::PutService { .. }, MapOp::SetEpoch(_)]
    ));
    let plan = node.put(vec![of(workload("w3", &["10.0.0.3"], &[("s", 80, 1)]))]);
    let more = Rules { endpoints: 3, ..wanted };
    assert_eq!(plan.ops[0], MapOp::PutRules { service: 1, rules: more });

    let plan = node.change(vec![], &[(Kind::TrafficPolicy, "d/p")]);
    let [.., MapOp::PutService { value, .. }, MapOp::PutRules { service: 1, rules }, MapOp::SetEpoch(_)] =
        &plan.ops[..]
    else {
        panic!("{plan:?}")
    };
    assert_eq!((value.flags, *rules), (0, Rules::default()));
}

#[test]
fn the_rules_of_a_service_that_goes_are_emptied() {
    let mut node = Node::new(Capacities::default());
    node.put(world());
    node.put(vec![policy(breaker)]);
    node.change(vec![], &[(Kind::Service, "d/s")]);
    assert_eq!(node.maps.rules[&1], Rules::default());
}

/// The endpoint that a number leads to, as the programs find it.
fn maglev(node: &Node, entry: &record::Service, number: u32) -> u32 {
    let place = pick::maglev_entry(number, entry.table_len);
    let index = entry.table + entry.table_len + place / MAGLEV_ROW as u32;
    let row: Endpoint = node.maps.read(entry, index, 1)[0].expect("a row of this table");
    // Both are plain words: written and read back in the order of their fields.
    let words = [
        row.flags,
        row.threshold,
        row.alias,
        u32::from(row.port_be) | u32::from(row.pad) << 16,
        row.policy_set,
        row.weight,
        row.reserved[0],
        row.reserved[1],
    ];
    let halves: Vec<u16> = words.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]).collect();
    let slot = u32::from(halves[place as usize % MAGLEV_ROW]);
    node.maps.read(entry, entry.table + slot, 1)[0].expect("a slot of this table").endpoint
}

#[test]
fn a_maglev_table_lies_behind_its_slots_and_follows_the_weights() {
    let mut node = Node::new(Capacities::default());
    node.put(world());
    node.put(vec![policy(|p| p.set_balancing(Balancing::Maglev))]);
    let entry = node.entry("240.0.0.1", 80);
    assert_eq!((entry.flags, entry.table_len), (flags::MAGLEV, 2));
    let draws = 4000u32;
    let first = (0..draws).filter(|i| maglev(&node, &entry, (u32::MAX / draws) * i) == 1).count();
    assert!((2900..3100).contains(&first), "{first} of {draws} are not three quarters");
    let free = node.view.slots.unused();
    let taken = Capacities::default().endpoints - free.0 - free.1;
    assert_eq!(taken, 2 + pick::maglev_rows(2) + 1 + pick::maglev_rows(1), "IPv6 reaches one of them");

    // An agent that takes over knows what lies there.
    let held = Adopted {
        services: node.maps.services.clone().into_iter().collect(),
        workloads: node.maps.workloads.clone().into_iter().collect(),
        ..Adopted::default()
    };
    let mut adopted = View::adopt(held, Capacities::default());
    assert_eq!(adopted.slots.unused().0, Capacities::default().endpoints - taken);
    std::mem::swap(&mut adopted, &mut node.view);
    node.pass(GRACE);
    let plan = node.put(world());
    assert_eq!(problems(&plan), [""; 0]);
}

#[test]
fn an_endpoint_that_comes_gets_its_weight_by_tenths() {
    let mut node = Node::new(Capacities::default());
    node.put(world());
    let plan = node.put(vec![policy(|p| p.slow_start_ms = 10_000)]);
    let share = |node: &Node, endpoint| node.tables(&node.entry("240.0.0.1", 80)).0[&endpoint];
    assert!((share(&node, 1) - 0.75).abs() < 1e-6 && plan.retry_at.is_none(), "those that were there");

    let plan = node.put(vec![of(workload("w3", &["10.0.0.3"], &[("s", 80, 4)]))]);
    assert_eq!(plan.retry_at, Some(node.now + Duration::from_secs(1)));
    assert!((share(&node, 3) - 4.0 / 44.0).abs() < 1e-6, "a tenth of four, beside four");
    let mut last = share(&node, 3);
    for step in 1..=10 {
        node.pass(Duration::from_secs(1));
        let plan = node.plan(&Dirty::default());
        let now = share(&node, 3);
        assert!(now > last || step == 1, "{step}: {now}");
        last = now;
        assert_eq!(plan.retry_at.is_some(), step < 10, "{step}");
        let others = node.maps.services.len();
        assert!(plan.ops.len() <= 2 * others + 1, "{plan:?}");
    }
    assert!((last - 0.5).abs() < 1e-6, "all of it");
    node.pass(Duration::from_secs(5));
    assert_eq!(node.plan(&Dirty::default()).ops, []);
}

#[test]
fn a_row_has_the_bytes_of_a_slot() {
    let slots: [u16; MAGLEV_ROW] = std::array::from_fn(|i| 0x0100 + i as u16);
    let row = MaglevRow { pad: [9; 4], service: 7, generation: 8, pad2: [1, 2], slots };
    let slot = row.into_slot();
    assert_eq!((slot.addr, slot.service, slot.generation), ([9; 4], 7, 8));
    assert_eq!((slot.endpoint, slot.workload), (1, 2));
    assert_eq!(slot.flags.to_ne_bytes()[..2], slots[0].to_ne_bytes());
    assert_eq!((slot.port_be, slot.pad), (slots[6], slots[7]));
    assert_eq!(slot.reserved[1].to_ne_bytes()[2..], slots[15].to_ne_bytes());
}
