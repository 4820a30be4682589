//! Connections between a workload and the agent do not run out of ports.

use std::{net::IpAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    load::Load,
    process::Process,
    programs::{curl, url},
    resources::{Service, at, vip4, vip6},
};

use crate::words::{settled, web};

/// Opens connections, asks something on each, looks at what it is told of its ends, says how many it holds, and
/// holds them until it is killed.
const HOLD: &str = "
import socket, sys, time
held = []
own, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for _ in range(count):
    s = socket.create_connection((host, port), 20)
    assert s.getpeername()[:2] == (host, port), s.getpeername()
    assert s.getsockname()[0] == own, s.getsockname()
    s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    assert s.recv(4096).startswith(b'HTTP/1.1 200')
    held.append(s)
print(len(held), flush=True)
time.sleep(1000)
";

/// Holds `count` connections to port 80 there.
#[track_caller]
fn hold(client: &Pod, to: IpAddr, count: usize) -> Process {
    let own = if to.is_ipv4() { client.ip().to_string() } else { client.ip6().to_string() };
    let name = format!("hold-{}", if to.is_ipv4() { 4 } else { 6 });
    let args = ["-c", HOLD, &own, &to.to_string(), "80", &count.to_string()];
    let mut holder = client.start(&name, "/usr/bin/python3", &args);
    until(
        Duration::from_mins(1),
        "all are held",
        || {
            assert!(holder.ended().is_none(), "{}", holder.log());
            holder.log()
        },
        |log| log.trim() == count.to_string(),
    );
    holder
}

/// Established connections of the namespace to loopback, as `ss` sees them.
fn to_loopback(client: &Pod, v6: bool) -> usize {
    let (family, net) = if v6 { ("-6", "[::1]") } else { ("-4", "127.0.0.0/8") };
    client.run("ss", &["-Htn", family, "state", "established", "dst", net]).unwrap().lines().count()
}

/// Leaves the pod this many ephemeral ports.
const FEW: &str = "40000 40499";

fn few_ports(pod: &Pod) {
    pod.netns().sysctl("net/ipv4/ip_local_port_range", FEW).unwrap();
}

#[test]
fn a_pod_with_500_ephemeral_ports_holds_5_000_captured_connections() {
    const HELD: usize = 5_000;
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&Service::vip("raw", 2).tcp("tcp", 80).yaml());
    let _servers = [web(&mesh, 1, "a", "site", "http", 1), web(&mesh, 1, "b", "raw", "tcp", 1)];
    let client = mesh.pod(1, "client").up();
    few_ports(&client);
    settled(&client, at(vip4(1), 80), &["a"]);
    for to in [IpAddr::from(vip4(1)), IpAddr::from(vip6(1))] {
        let captured = mesh.node(1).verdict(Verdict::Captured);
        let mut holder = hold(&client, to, HELD);
        assert_eq!(mesh.node(1).verdict(Verdict::Captured) - captured, HELD as u64);
        assert_eq!(to_loopback(&client, to.is_ipv6()), HELD, "{to}");
        // The kernel path has all of its ports still.
        settled(&client, at(vip4(2), 80), &["b"]);
        holder.kill();
    }
}

#[test]
fn an_agent_holds_8_000_captured_connections() {
    const HELD: usize = 8_000;
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let _server = web(&mesh, 1, "a", "site", "http", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip6(1), 80), &["a"]);
    for to in [IpAddr::from(vip4(1)), IpAddr::from(vip6(1))] {
        let mut holder = hold(&client, to, HELD);
        assert_eq!(to_loopback(&client, to.is_ipv6()), HELD, "{to}");
        holder.kill();
    }
}

/// That many connections, one after the other in each of eight threads; none fails.
#[track_caller]
fn short(client: &Pod, load: Load, count: u64) {
    let report = load.threads(8).count(count).run(client);
    assert_eq!((report.ok, report.failed()), (count, 0), "{}: {report:?}", client.name());
}

/// Few connections come by the agent: those while the whole machine has stood still for longer than a heartbeat may
/// be old, until the agent's threads run again.
#[track_caller]
fn assert_few(bypassed: u64, all: u64) {
    assert!(bypassed <= all / 50, "{bypassed} of {all} were bypassed");
}

#[test]
fn short_connections_leave_their_ports_to_the_next() {
    const OUT: u64 = 5_000;
    const IN: u64 = 12_500;
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&Service::vip("in", 2).port("tcp", 80, "tcp", "proxy").yaml());
    let _site = web(&mesh, 1, "a", "site", "http", 1);
    let (server, nginx) = web(&mesh, 1, "b", "in", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    let far = [1, 2, 3].map(|n| mesh.pod(2, &format!("far-{n}")).up());
    settled(&client, at(vip4(1), 80), &["a"]);
    for far in &far {
        settled(far, at(vip4(2), 80), &["b"]);
    }
    few_ports(&client);
    few_ports(&server);

    let count = |verdict| mesh.node(1).verdict(verdict);
    let went = || (count(Verdict::Captured), count(Verdict::Bypassed));
    let before = went();
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        short(&client, Load::to(to), OUT);
        short(&client, Load::to(to).hang_up(), OUT);
    }
    let (captured, bypassed) = went();
    let bypassed = bypassed - before.1;
    assert_eq!(captured - before.0 + bypassed, 4 * OUT);
    assert_few(bypassed, 4 * OUT);

    let came = || (count(Verdict::InboundCaptured), count(Verdict::InboundBypassed));
    let (before, asked) = (came(), nginx.hits("/"));
    short(&far[0], Load::to(at(vip4(2), 80)), OUT);
    // More than there are source ports of one address, within the minute for which each is remembered.
    for far in &far {
        short(far, Load::to(at(vip6(2), 80)).hang_up(), IN);
    }
    eventually("the server counts as many", || nginx.hits("/") - asked == OUT + 3 * IN);
    // A SYN that is sent again counts again.
    let (captured, bypassed) = came();
    let bypassed = bypassed - before.1;
    assert!(captured - before.0 + bypassed >= OUT + 3 * IN, "{captured} and {bypassed}, before {before:?}");
    assert_few(bypassed, OUT + 3 * IN);
}

/// What a program inside the pod that holds to its own address, and not the mesh's business, finds on loopback.
const OWN: &str = "
import socket, sys
for family, own, loop in ((socket.AF_INET, sys.argv[1], '127.0.0.1'), (socket.AF_INET6, sys.argv[2], '::1')):
    listener = socket.socket(family)
    listener.bind((loop, 0))
    listener.listen()
    for source in (own, loop):
        client = socket.create_connection(listener.getsockname()[:2], 5, (source, 0))
        server, peer = listener.accept()
        assert peer[:2] == client.getsockname()[:2] and peer[0] == source, peer
        client.sendall(b'x')
        assert server.recv(1) == b'x'
print('well')
";

#[test]
fn a_pods_own_loopback_is_left_alone_and_a_bound_client_is_captured() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let _server = web(&mesh, 1, "a", "site", "http", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip6(1), 80), &["a"]);
    let (own4, own6) = (client.ip().to_string(), client.ip6().to_string());
    assert_eq!(client.run("/usr/bin/python3", &["-c", OWN, &own4, &own6]).unwrap().trim(), "well");
    // An address, or an address and port, that the program has chosen is kept.
    for (own, to) in [(own4, IpAddr::from(vip4(1))), (own6, IpAddr::from(vip6(1)))] {
        for source in [&["--interface", &own][..], &["--interface", &own, "--local-port", "33333"]] {
            let captured = mesh.node(1).verdict(Verdict::Captured);
            let page = url(to, 80, "/");
            let reply = curl(&client, &[source, &[&page]].concat());
            assert_eq!((reply.status, reply.name(), &reply.local), (200, "a", &own), "{source:?} {reply:?}");
            assert_eq!(mesh.node(1).verdict(Verdict::Captured) - captured, 1);
        }
    }
}
