//! What the maps say of encryption: where the way is a tunnel, where one arrives, where plaintext is refused.

use mesh_api::proto::v1::{self, Protocol};
use mesh_common::record::{HBONE_PORT, flags};

use super::{Capacities, Node};
use crate::compile::Dirty;
use crate::compile::tests::{of, service, workload};
use crate::plan::LocalSlots;

fn mesh(mode: v1::MtlsMode) -> v1::Mesh {
    v1::Mesh { mtls: mode.into(), ..Default::default() }
}

fn behind_agent(name: &str, address: &str, node: &str) -> v1::Workload {
    v1::Workload { node: node.into(), hbone: true, ..workload(name, &[address], &[("s", 80, 1)]) }
}

#[test]
fn the_way_to_another_nodes_workload_is_a_tunnel_in_slots_and_entries() {
    let mut node = Node::new(Capacities::default());
    let away = behind_agent("w", "10.0.0.2", "n2");
    node.put(vec![of(service("s", &["240.0.0.1"], 80, Protocol::Tcp)), of(away)]);
    let slot = |node: &Node| node.maps.slots[node.entry("240.0.0.1", 80).table as usize].unwrap().flags;
    let lost = flags::TUNNEL | flags::BYPASS;
    assert_eq!(slot(&node), lost, "permissive: without its proxy the connection goes plain");
    assert_eq!((node.direct("10.0.0.2", 0).flags, node.direct("10.0.0.2", 8080).flags), (lost, lost));
    node.put(vec![of(mesh(v1::MtlsMode::Strict))]);
    assert_eq!(slot(&node), flags::TUNNEL, "strict: it would only be dropped");
    assert_eq!(node.direct("10.0.0.2", 8080).flags, flags::TUNNEL);
    node.put(vec![of(mesh(v1::MtlsMode::Off))]);
    assert_eq!((slot(&node), node.direct("10.0.0.2", 8080).flags), (0, 0));
    let stranger = v1::Workload { hbone: false, ..behind_agent("w", "10.0.0.2", "n2") };
    node.put(vec![of(mesh(v1::MtlsMode::Permissive)), of(stranger)]);
    assert_eq!((slot(&node), node.direct("10.0.0.2", 0).flags), (0, 0), "nobody takes tunnels for it");
}

#[test]
fn an_enrolled_workload_takes_tunnels_and_refuses_plaintext_where_it_is_strict() {
    let mut node = Node::new(Capacities::default());
    let mut policy = v1::TransportPolicy { namespace: "d".into(), name: "open".into(), ..Default::default() };
    policy.mtls_ports.push(v1::PortMtls { port: 9100, mode: v1::MtlsMode::Permissive.into() });
    let here = behind_agent("w", "10.0.0.1", "n1");
    node.locals.insert(1, LocalSlots { listener_slot: 8, heartbeat_slot: 1 });
    node.put(vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Tcp)),
        of(here.clone()),
        of(mesh(v1::MtlsMode::Strict)),
        of(policy),
    ]);
    let flags_at = |node: &Node, port| node.direct("10.0.0.1", port).flags;
    let strict = flags::LOCAL | flags::STRICT | flags::ASKS;
    assert_eq!((flags_at(&node, 0), flags_at(&node, 8080)), (strict, strict));
    assert_eq!(flags_at(&node, 9100), flags::LOCAL, "a port that serves nothing has a mode of its own");
    assert_eq!(flags_at(&node, HBONE_PORT), flags::LOCAL | flags::INBOUND_PROXY);
    let slot = node.maps.slots[node.entry("240.0.0.1", 80).table as usize].unwrap().flags;
    assert_eq!(slot, flags::LOCAL | flags::ASKS, "callers of this node prove who they are");

    node.locals.clear();
    node.plan(&Dirty { workloads: [1].into(), ..Dirty::default() });
    assert_eq!(flags_at(&node, HBONE_PORT), flags::LOCAL, "nobody hears there");
    let hbone_port =
        |node: &Node| node.maps.workloads.keys().filter(|key| key.port_be == HBONE_PORT.to_be()).count();
    node.put(vec![of(v1::Workload { host_network: true, ..here.clone() })]);
    assert_eq!(hbone_port(&node), 0, "a host's port is everybody's");
    node.put(vec![of(here)]);
    assert_eq!(hbone_port(&node), 1);
    node.put(vec![of(mesh(v1::MtlsMode::Off))]);
    assert_eq!(hbone_port(&node), 1, "one port still takes it");
}
