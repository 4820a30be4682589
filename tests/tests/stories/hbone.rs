//! Connections between nodes go through tunnels of mutual TLS: nothing changes for who talks, everything for who
//! listens on the way, and each end knows who the other one is.

use std::net::SocketAddr;

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Node, Pod, eventually,
    load::Load,
    process::Process,
    programs::{connect_lines, curl, line_server, talk, url},
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

/// Opens a connection for each of many ways to begin TLS wrongly, and waits for its end. Prints a line for each.
const WRONG: &str = r"
import os, socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(['h2'])
coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
try:
    context.wrap_bio(coming, going).do_handshake()
except ssl.SSLWantReadError:
    pass
hello = going.read()
record = lambda kind, body: bytes([kind, 3, 3]) + len(body).to_bytes(2, 'big') + body
wrong = {
    'nothing': b'', 'a byte': b'\x16', 'half a head': hello[:3], 'half a hello': hello[:len(hello) // 2],
    'plain HTTP': b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', 'HTTP/2': b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes(64),
    'an unknown record': bytes([99]) + hello[1:], 'an old version': bytes([hello[0], 0, 9]) + hello[3:],
    'too long a record': b'\x16\x03\x01\xff\xff' + bytes(70000), 'an empty record': b'\x16\x03\x01\x00\x00' * 50,
    'an absurd hello': record(22, b'\x01\xff\xff\xff' + bytes(16000)) * 8,
    'a hello of zeros': record(22, b'\x01\x00\x01\x00' + bytes(256)),
    'data at once': record(23, os.urandom(1000)), 'an alert': record(21, b'\x02\x28'),
    'many alerts': record(21, b'\x01\x5a') * 5000, 'a finish': record(22, b'\x14\x00\x00\x20' + bytes(32)),
    'zeros': bytes(1 << 20), 'noise': os.urandom(1 << 20), 'noise after a hello': hello + os.urandom(1 << 16),
    'two hellos': hello + hello, 'a hello byte by byte': [hello[i:i + 1] for i in range(0, len(hello) - 1)],
}
for name, data in wrong.items():
    with socket.create_connection((sys.argv[1], 15008), 10) as s:
        try:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in data if isinstance(data, list) else [data]:
                s.sendall(part)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
            print(name + ': closed')
        except OSError as error:
            print(name + ':', type(error).__name__)
";

#[test]
fn whoever_begins_tls_wrongly_is_refused_counted_and_disturbs_nobody() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let (db, _servers) = db(&mesh);
    let pay = mesh.pod(2, "pay").account("pay").up();
    let stranger = mesh.pod(2, "stranger").outside().up();
    let to = at(vip4(1), 7000);
    answered(&pay, to);
    let node = mesh.node(1);
    let talks = talk(&pay, "talk", &[to]);
    let failed = || {
        let all = node.metrics().count("mesh_hbone_handshakes_total", &[("role", "server")]);
        all - handshakes(node, "server", "ok")
    };
    let (before, pid) = (failed(), node.agent_pid());
    let mut cases = 0;
    for address in [db.ip().to_string(), db.ip6().to_string()] {
        let said = stranger.run("/usr/bin/python3", &["-c", WRONG, &address]).unwrap();
        assert!(!said.contains("timed out") && !said.contains("TimeoutError"), "{said}");
        cases += said.lines().count() as u64;
    }
    assert!(cases >= 40, "{cases}");
    eventually("each is counted", || failed() == before + cases);
    let lines = node.log().lines().filter(|line| line.contains("a peer's handshake failed")).count() as u64;
    assert!((1..=cases).contains(&lines), "{lines} lines of {cases}");
    talks.goes_on(&[to]);
    answered(&pay, to);
    assert_eq!((node.metrics().count("mesh_proxy_panics_total", &[]), node.agent_pid()), (0, pid));
}
