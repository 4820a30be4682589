//! Connections between nodes go through tunnels of mutual TLS: nothing changes for who talks, everything for who
//! listens on the way, and each end knows who the other one is.

use std::net::SocketAddr;

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Node, Pod, eventually,
    load::Load,
    process::Process,
    programs::{connect_lines, curl, line_server, url},
    resources::{Service, at, authorization, transport, vip4, vip6},
};

use crate::words::web;

/// A pod labelled `app: db` with line servers on 7000 (served) and 7001, behind the service `db` (number 1).
fn db(mesh: &Mesh) -> (Pod, [Process; 2]) {
    mesh.apply(&Service::vip("db", 1).tcp("one", 7000).yaml());
    let pod = mesh.pod(1, "db-0").label("app", "db").account("db");
    let mut pod = pod.serves("db", "one", 7000).outside().up();
    let servers = [line_server(&pod, 7000), line_server(&pod, 7001)];
    pod.enrol();
    (pod, servers)
}

/// Virtual and own addresses, and a port that serves nothing.
fn ways(db: &Pod) -> [SocketAddr; 6] {
    let (v4, v6) = (db.ip(), db.ip6());
    [at(vip4(1), 7000), at(vip6(1), 7000), at(v4, 7000), at(v6, 7000), at(v4, 7001), at(v6, 7001)]
}

#[track_caller]
fn answered(pod: &Pod, to: SocketAddr) {
    eventually(&format!("{to} answers {}", pod.name()), || connect_lines(pod, to, 1).errors.is_empty());
    let lines = connect_lines(pod, to, 5);
    assert_eq!(lines.servers.values().sum::<u64>(), 5, "{to} from {}: {lines:?}", pod.name());
}

#[track_caller]
fn refused(pod: &Pod, to: SocketAddr) {
    let errors = |count| connect_lines(pod, to, count).errors.values().sum::<u64>();
    eventually(&format!("{to} refuses {}", pod.name()), || errors(1) == 1);
    assert_eq!(errors(5), 5, "{to} from {}", pod.name());
}

/// Handshakes of a node that ended so.
fn handshakes(node: &Node, role: &str, outcome: &str) -> u64 {
    node.metrics().count("mesh_hbone_handshakes_total", &[("role", role), ("outcome", outcome)])
}

#[test]
fn a_strict_workload_is_called_from_another_node_through_a_tunnel() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let (db, _servers) = db(&mesh);
    let pay = mesh.pod(2, "pay").account("pay").up();
    let stranger = mesh.pod(2, "stranger").outside().up();
    mesh.apply(&transport("strict", &["selector: {matchLabels: {app: db}}", "mtls: {mode: strict}"]));
    for to in ways(&db) {
        answered(&pay, to);
    }
    // By address alone, in plaintext: nobody.
    refused(&stranger, at(db.ip(), 7000));
    let (here, there) = (mesh.node(2), mesh.node(1));
    assert!(handshakes(here, "client", "ok") > 0 && handshakes(there, "server", "ok") > 0);
    assert!(there.verdict(Verdict::PlaintextDenied) > 0);
    // The tunnels are kept: as many as there are ways of addresses and workers, however many connections.
    let before = handshakes(here, "client", "ok");
    connect_lines(&pay, at(vip4(1), 7000), 200);
    assert!(handshakes(here, "client", "ok") <= before + 4);
}

#[test]
fn policies_know_callers_of_other_nodes_by_who_they_are() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let (db, _servers) = db(&mesh);
    let pay = mesh.pod(2, "pay").account("pay").up();
    let thief = mesh.pod(2, "thief").account("thief").up();
    let to = at(vip4(1), 7000);
    answered(&thief, to);
    mesh.apply(&authorization("db", "db", "allow", "[{from: [{serviceAccounts: [pay]}]}]"));
    refused(&thief, to);
    answered(&pay, to);
    answered(&pay, at(db.ip(), 7001));
    let denied = [("reason", "denied_by_policy")];
    assert!(mesh.node(1).metrics().count("mesh_hbone_refused_total", &denied) > 0);
}

#[test]
fn requests_and_bodies_pass_through_tunnels_unchanged() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("web", 1).http("http", 80).tcp("tcp", 81).yaml());
    let (server, _nginx) = web(&mesh, 1, "a", "web", "http", 1);
    let client = mesh.pod(2, "client").up();
    let body: Vec<u8> = (0..3_000_017u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(server.work().join("files/big"), &body).unwrap();
    eventually("the service answers", || curl(&client, &[&url(vip4(1), 80, "/")]).status == 200);
    let reply = curl(&client, &["-o", "got", &url(vip4(1), 80, "/files/big")]);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(std::fs::read(client.work().join("got")).unwrap() == body, "the body came through changed");
    let report = Load::to(at(vip4(1), 80)).keep_alive().threads(4).count(2000).run(&client);
    assert_eq!((report.ok, report.failed()), (2000, 0), "{report:?}");
    // The application sees its client, not an agent.
    let seen = curl(&client, &[&url(vip4(1), 80, "/")]);
    assert!(seen.field("peer").starts_with(&format!("{}:", client.ip())), "{seen:?}");
}
