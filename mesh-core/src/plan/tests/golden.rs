//! Whole plans, and what entries say.

use mesh_api::proto::v1::{self, Protocol};
use mesh_common::addr::from_ip;
use mesh_common::record::{self, PROTO_TCP, PROTO_UDP, ServiceKey, WorkloadKey, app, flags};

use super::{Capacities, LocalSlots, MapOp, Node, problems};
use crate::compile::Dirty;
use crate::compile::tests::{of, route, service, workload};
use crate::model::Kind;

fn service_key(vip: &str) -> ServiceKey {
    let port_be = 80u16.to_be();
    ServiceKey { addr: from_ip(vip.parse().unwrap()), scope: 0, port_be, proto: PROTO_TCP, network: 0 }
}

fn workload_key(address: &str, port: u16) -> WorkloadKey {
    let addr = from_ip(address.parse().unwrap());
    WorkloadKey { addr, port_be: port.to_be(), proto: PROTO_TCP, network: 0 }
}

fn slot(address: &str, generation: u32, endpoint: u32, threshold: u32, alias: u32) -> record::Endpoint {
    record::Endpoint {
        addr: from_ip(address.parse().unwrap()),
        service: 1,
        generation,
        endpoint,
        workload: endpoint,
        flags: flags::LOCAL,
        threshold,
        alias,
        port_be: 8080u16.to_be(),
        pad: 0,
        policy_set: 0,
        weight: 1,
        reserved: [0; 2],
    }
}

fn put_workload(address: &str, port: u16, id: u32) -> MapOp {
    let served = u32::from(port != 0);
    let value = record::Workload {
        workload: id,
        identity: 1,
        policy_set: 0,
        endpoint: id * served,
        service: served,
        flags: flags::LOCAL,
        inbound_slot: 0,
        heartbeat_slot: 0,
        protocol: app::TCP,
    };
    MapOp::PutWorkload { key: workload_key(address, port), value }
}

fn tcp_entry(generation: u32, table: u32, table_len: u32) -> record::Service {
    record::Service {
        service: 1,
        generation,
        table,
        table_len,
        fallback: 0,
        fallback_len: 0,
        flags: 0,
        protocol: app::TCP,
    }
}

#[test]
fn a_service_comes_changes_and_goes() {
    let mut node = Node::new(Capacities::default());
    let plan = node.put(vec![
        of(service("s", &["240.0.0.1", "fd00::1"], 80, Protocol::Tcp)),
        of(workload("w1", &["10.0.0.1"], &[("s", 80, 3)])),
        of(workload("w2", &["10.0.0.2", "fd00::2"], &[("s", 80, 1)])),
    ]);
    let half = (1 << 31) - 1;
    assert_eq!(
        plan.ops,
        [
            MapOp::PutSlots {
                first: 0,
                slots: vec![
                    record::Endpoint { weight: 3, ..slot("10.0.0.1", 1, 1, u32::MAX, 0) },
                    slot("10.0.0.2", 1, 2, half, 0)
                ]
            },
            MapOp::PutSlots { first: 2, slots: vec![slot("fd00::2", 2, 2, u32::MAX, 0)] },
            put_workload("10.0.0.1", 0, 1),
            put_workload("10.0.0.1", 8080, 1),
            put_workload("10.0.0.2", 0, 2),
            put_workload("10.0.0.2", 8080, 2),
            put_workload("fd00::2", 0, 2),
            put_workload("fd00::2", 8080, 2),
            MapOp::PutService { key: service_key("240.0.0.1"), value: tcp_entry(1, 0, 2) },
            MapOp::PutService { key: service_key("fd00::1"), value: tcp_entry(2, 2, 1) },
            MapOp::SetEpoch(1),
        ]
    );
    assert!(plan.conditions.is_empty());

    // The table of IPv6 stays as it was.
    let plan = node.put(vec![of(workload("w1", &["10.0.0.1"], &[("s", 80, 1)]))]);
    assert_eq!(
        plan.ops,
        [
            MapOp::PutSlots {
                first: 3,
                slots: vec![slot("10.0.0.1", 3, 1, u32::MAX, 0), slot("10.0.0.2", 3, 2, u32::MAX, 1)]
            },
            MapOp::PutService { key: service_key("240.0.0.1"), value: tcp_entry(3, 3, 2) },
            MapOp::SetEpoch(2),
        ]
    );
    assert_eq!(node.plan(&Dirty::all(&node.compiler.snapshot())).ops, []);

    let plan = node.change(vec![], &[(Kind::Service, "d/s"), (Kind::Workload, "d/w2")]);
    let direct = |port, service| {
        let MapOp::PutWorkload { key, mut value } = put_workload("10.0.0.1", port, 1) else { panic!() };
        (value.service, value.endpoint) = (service, service);
        MapOp::PutWorkload { key, value }
    };
    assert_eq!(
        plan.ops,
        [
            MapOp::DelService { key: service_key("240.0.0.1") },
            MapOp::DelService { key: service_key("fd00::1") },
            MapOp::DelWorkload { key: workload_key("10.0.0.1", 8080) },
            MapOp::DelWorkload { key: workload_key("10.0.0.2", 0) },
            MapOp::DelWorkload { key: workload_key("10.0.0.2", 8080) },
            MapOp::DelWorkload { key: workload_key("fd00::2", 0) },
            MapOp::DelWorkload { key: workload_key("fd00::2", 8080) },
            MapOp::SetEpoch(3),
        ]
    );
    assert_eq!(node.maps.workloads.len(), 1);
    assert_eq!(direct(0, 0), put_workload("10.0.0.1", 0, 1));
}

#[test]
fn a_route_sends_what_bypasses_the_proxy_where_its_weights_say() {
    let mut node = Node::new(Capacities::default());
    node.put(vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Http)),
        of(service("v1", &[], 80, Protocol::Http)),
        of(service("v2", &[], 80, Protocol::Http)),
        of(workload("w0", &["10.0.0.1"], &[("s", 80, 1)])),
        of(workload("w1", &["10.0.0.2"], &[("v1", 80, 1)])),
        of(workload("w2", &["10.0.0.3"], &[("v1", 80, 2)])),
        of(workload("w3", &["10.0.0.4"], &[("v2", 80, 7)])),
    ]);
    let plain = node.entry("240.0.0.1", 80);
    assert_eq!(plain.flags, flags::PROXY | flags::BYPASS);
    assert_eq!((plain.table, plain.table_len), (plain.fallback, plain.fallback_len), "one table is both");

    node.put(vec![of(route("r", "s", &[("/", &[("v1", 80, 90), ("v2", 80, 10)])]))]);
    let entry = node.entry("240.0.0.1", 80);
    let (own, bypass) = node.tables(&entry);
    assert_eq!(own.into_iter().collect::<Vec<_>>(), [(1, 1.0)]);
    for (endpoint, want) in [(2, 0.3), (3, 0.6), (4, 0.1)] {
        assert!((bypass[&endpoint] - want).abs() < 1e-9, "{bypass:?}");
    }

    // The parent's table follows its backends' endpoints.
    node.change(vec![], &[(Kind::Workload, "d/w2")]);
    let entry = node.entry("240.0.0.1", 80);
    let bypass = node.tables(&entry).1;
    assert!((bypass[&2] - 0.9).abs() < 1e-9 && (bypass[&4] - 0.1).abs() < 1e-9, "{bypass:?}");

    // Only flags differ: the tables stay.
    let mut policy = v1::TrafficPolicy {
        namespace: "d".into(),
        name: "p".into(),
        targets: vec![v1::PolicyTarget { service: "s".into(), section_name: String::new() }],
        ..Default::default()
    };
    policy.set_on_proxy_loss(v1::OnProxyLoss::Refuse);
    let plan = node.put(vec![of(policy)]);
    assert!(plan.ops.iter().all(|op| !matches!(op, MapOp::PutSlots { .. })), "{:?}", plan.ops);
    let refusing = node.entry("240.0.0.1", 80);
    assert_eq!(refusing, record::Service { flags: flags::PROXY, ..entry });
    assert_eq!(node.direct("10.0.0.1", 8080).flags, flags::LOCAL | flags::PROXY);
    assert_eq!(node.direct("10.0.0.2", 8080).flags, flags::LOCAL | flags::PROXY | flags::BYPASS);
}

#[test]
fn where_the_catch_all_leads_nowhere_the_proxy_still_gets_what_another_rule_may_answer() {
    let mut node = Node::new(Capacities::default());
    node.put(vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Http)),
        of(service("v1", &[], 80, Protocol::Http)),
        of(service("v2", &[], 80, Protocol::Http)),
        of(workload("w1", &["10.0.0.2"], &[("v1", 80, 1)])),
        of(route("r", "s", &[("/a", &[("v1", 80, 1)]), ("/", &[("v2", 80, 1)])])),
    ]);
    let entry = node.entry("240.0.0.1", 80);
    assert_eq!((entry.flags, entry.table_len, entry.fallback_len), (flags::PROXY, 0, 1));
    node.change(vec![], &[(Kind::Workload, "d/w1")]);
    assert_eq!(node.entry("240.0.0.1", 80).fallback_len, 0, "now there is nobody");
}

#[test]
fn inbound_goes_to_the_listener_of_an_enrolled_workload() {
    let mut node = Node::new(Capacities::default());
    let mut inbound = service("s", &["240.0.0.1"], 80, Protocol::Tcp);
    inbound.ports[0].inbound_proxy = true;
    let mut away = workload("w2", &["10.0.0.2"], &[("s", 80, 1)]);
    away.node = "n2".into();
    node.put(vec![of(inbound), of(workload("w1", &["10.0.0.1"], &[("s", 80, 1)])), of(away)]);
    assert_eq!(node.direct("10.0.0.1", 8080).flags, flags::LOCAL | flags::BYPASS, "not enrolled");
    assert_eq!(node.direct("10.0.0.2", 8080).flags, flags::BYPASS);

    node.locals.insert(1, LocalSlots { listener_slot: 8, heartbeat_slot: 1 });
    let plan = node.plan(&Dirty { workloads: [1].into(), ..Dirty::default() });
    assert_eq!(plan.ops.len(), 2);
    let entry = node.direct("10.0.0.1", 8080);
    assert_eq!(entry.flags, flags::LOCAL | flags::BYPASS | flags::INBOUND_PROXY | flags::ASKS);
    assert_eq!((entry.inbound_slot, entry.heartbeat_slot), (10, 1));
    let any = node.direct("10.0.0.1", 0);
    assert_eq!((any.flags, any.inbound_slot), (flags::LOCAL, 10), "found by its address alone");
}

#[test]
fn a_port_that_serves_two_services_counts_as_the_first() {
    let mut node = Node::new(Capacities::default());
    let mut w = workload("w", &["10.0.0.1"], &[("b", 80, 1), ("a", 80, 1)]);
    w.services[1].target_port = w.services[0].target_port;
    node.put(vec![
        of(service("a", &[], 80, Protocol::Tcp)),
        of(service("b", &[], 80, Protocol::Http)),
        of(w),
    ]);
    let entry = node.direct("10.0.0.1", 8080);
    assert_eq!((entry.service, entry.flags, entry.protocol), (1, flags::LOCAL, app::TCP));
}

#[test]
fn an_address_that_two_want_is_the_firsts_until_it_goes() {
    let mut node = Node::new(Capacities::default());
    let plan = node.put(vec![
        of(service("a", &["240.0.0.1"], 80, Protocol::Tcp)),
        of(service("b", &["240.0.0.1"], 80, Protocol::Tcp)),
        of(workload("w1", &["10.0.0.1"], &[("a", 80, 1)])),
        of(workload("w2", &["10.0.0.1"], &[("b", 80, 1)])),
    ]);
    assert_eq!(
        problems(&plan),
        [
            "Service d/b: 240.0.0.1 port 80 is also a virtual address of service d/a, which keeps it: give one \
             of them another address",
            "Workload d/w2: address 10.0.0.1 is also that of workload d/w1: connections to it count as ones to \
             that workload",
            "Workload d/w2: address 10.0.0.1 port 8080 is also that of workload d/w1: connections to it count \
             as ones to that workload",
        ]
    );
    assert_eq!(node.entry("240.0.0.1", 80).service, 1);
    let plan = node.change(vec![], &[(Kind::Service, "d/a"), (Kind::Workload, "d/w1")]);
    assert!(plan.conditions.is_empty());
    assert_eq!(node.entry("240.0.0.1", 80).service, 2);
    assert_eq!(node.direct("10.0.0.1", 8080).workload, 2);
}

#[test]
fn workloads_of_a_host_have_the_ports_that_they_serve_and_no_others() {
    let mut node = Node::new(Capacities::default());
    let shares = |name, port| {
        let mut shares = workload(name, &["10.0.0.1"], &[("s", 80, 1)]);
        shares.host_network = true;
        shares.services[0].target_port = port;
        of(shares)
    };
    let first = node.put(vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Tcp)),
        shares("a", 8080),
        shares("b", 8081),
    ]);
    assert!(problems(&first).is_empty(), "{:?}", problems(&first));
    let mut keys: Vec<WorkloadKey> = node.maps.workloads.keys().copied().collect();
    keys.sort_unstable();
    assert_eq!(keys, [workload_key("10.0.0.1", 8080), workload_key("10.0.0.1", 8081)]);
}

#[test]
fn an_address_whose_family_no_endpoint_has_is_named_where_there_is_no_other() {
    let mut node = Node::new(Capacities::default());
    let plan = node.put(vec![
        of(service("s", &["fd00::1"], 80, Protocol::Tcp)),
        of(workload("w1", &["10.0.0.1"], &[("s", 80, 3)])),
    ]);
    assert_eq!(
        problems(&plan),
        ["Service d/s: virtual address fd00::1 port 80: no endpoint has an IPv6 address, connections are \
          refused: give the workloads one, or the service no IPv6 address"]
    );
    assert_eq!(node.entry("fd00::1", 80).table_len, 0);
    // With an IPv4 address beside it clients have a way.
    let plan = node.put(vec![of(service("s", &["240.0.0.1", "fd00::1"], 80, Protocol::Tcp))]);
    assert!(plan.conditions.is_empty(), "{plan:?}");
    // The proxy dials either family.
    let plan = node.put(vec![of(service("s", &["fd00::1"], 80, Protocol::Http))]);
    assert!(problems(&plan)[0].contains("refused while the proxy is gone"), "{plan:?}");
    let entry = node.entry("fd00::1", 80);
    assert_eq!((entry.flags, entry.table_len, entry.fallback_len), (flags::PROXY, 0, 1));
    let plan = node.put(vec![of(workload("w1", &["10.0.0.1", "fd00::9"], &[("s", 80, 3)]))]);
    assert!(plan.conditions.is_empty());
    assert_eq!(node.entry("fd00::1", 80).flags, flags::PROXY | flags::BYPASS);
}

#[test]
fn a_udp_port_has_entries_of_its_own() {
    let mut node = Node::new(Capacities::default());
    let mut dns = service("dns", &["240.0.0.1"], 80, Protocol::Udp);
    dns.ports.push(v1::ServicePort { name: "tcp".into(), port: 80, ..Default::default() });
    let mut both = workload("w", &["10.0.0.1"], &[("dns", 80, 1), ("dns", 80, 1)]);
    both.services[0].udp = true;
    both.services[1].target_port = 8080;
    node.put(vec![of(dns), of(both)]);

    let tcp = service_key("240.0.0.1");
    let udp = ServiceKey { proto: PROTO_UDP, ..tcp };
    let (tcp, udp) = (node.maps.services[&tcp], node.maps.services[&udp]);
    assert_ne!(tcp.service, udp.service);
    assert_eq!((tcp.protocol, udp.protocol, udp.flags), (app::TCP, app::UDP, 0));
    let tcp = node.maps.workloads[&workload_key("10.0.0.1", 8080)];
    let key = WorkloadKey { proto: PROTO_UDP, ..workload_key("10.0.0.1", 8080) };
    let udp_workload = node.maps.workloads[&key];
    assert_eq!((udp_workload.service, udp_workload.protocol), (udp.service, app::UDP));
    assert_ne!(tcp.endpoint, udp_workload.endpoint);
    assert_eq!(node.maps.workloads.len(), 3, "any port is one entry for both");
}
