//! One workload floods, stalls, drips: its neighbour is served as before, and the agent's memory stays where it was.

use std::{fs, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    load::Load,
    node::Node,
    process::Process,
    programs::{Nginx, body_server, curl, url},
    resources::{Service, at, vip4},
};

use crate::{
    http2::{called, cart},
    words::{settled, web},
};

const PYTHON: &str = "/usr/bin/python3";

/// So many connections with half a head, so many with a body that drips, and a connection of HTTP/2 after another until so
/// many streams were opened that never end; to three addresses. Says `up` when all stand, then drips.
const FLOOD: &str = r"
import h2.config, h2.connection, h2.exceptions, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
heads, bodies, streams = map(int, sys.argv[1:4])
slow = []
def begin(to, text):
    s = socket.create_connection((to, 80), 20)
    s.sendall(text)
    slow.append(s)
for _ in range(heads):
    begin(sys.argv[4], b'GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ')
for _ in range(bodies):
    begin(sys.argv[5], b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n')
open_streams, kept = 0, []
while open_streams < streams:
    s = socket.create_connection((sys.argv[6], 80), 20)
    c = h2.connection.H2Connection(config=h2.config.H2Configuration(client_side=True, header_encoding='utf-8'))
    c.initiate_connection()
    s.sendall(c.data_to_send())
    for _ in range(250):
        head = [(':method', 'POST'), (':path', '/shop.Cart/Total'), (':scheme', 'http'), (':authority', 'x'),
                ('content-type', 'application/grpc'), ('te', 'trailers')]
        c.send_headers(c.get_next_available_stream_id(), head)
        open_streams += 1
    s.sendall(c.data_to_send())
    kept.append(s)
print('up', len(slow), open_streams, flush=True)
while True:
    time.sleep(1)
    for s in slow:
        try:
            s.send(b'x')
        except OSError:
            pass
";

/// The flood's arguments.
fn flood(greedy: &Pod, name: &str, [heads, bodies, streams]: [u32; 3]) -> Process {
    let [heads, bodies, streams] = [heads, bodies, streams].map(|n| n.to_string());
    let to = [1, 2, 3].map(|number| vip4(number).to_string());
    greedy.start(name, PYTHON, &["-c", FLOOD, &heads, &bodies, &streams, &to[0], &to[1], &to[2]])
}

/// Two clients of one service on one node.
fn ground(agent_args: &[&str]) -> (Mesh, (Pod, Nginx), Pod, Pod) {
    let mesh = Mesh::builder().agent_args(agent_args).up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let server = web(&mesh, 1, "a", "site", "http", 1);
    let [greedy, modest] = ["greedy", "modest"].map(|name| mesh.pod(1, name).up());
    settled(&greedy, at(vip4(1), 80), &["a"]);
    settled(&modest, at(vip4(1), 80), &["a"]);
    (mesh, server, greedy, modest)
}

/// The 99th percentile of the modest client's requests, microseconds.
fn p99(modest: &Pod) -> u64 {
    let load = Load::to(at(vip4(1), 80)).keep_alive().threads(2).rate(300).time(Duration::from_secs(2));
    let report = load.run(modest);
    assert_eq!(report.failed(), 0, "{report:?}");
    report.total_ns[1] / 1000
}

#[test]
fn a_workload_that_floods_at_most_doubles_its_neighbours_p99() {
    let (mesh, _server, greedy, modest) = ground(&[]);
    mesh.apply(&Service::vip("bodies", 2).http("http", 80).yaml());
    mesh.apply(&Service::vip("cart", 3).http("http", 80).yaml());
    let mut reads = mesh.pod(1, "reads").serves("bodies", "http", 8080).outside().up();
    let _reads = body_server(&reads, 8080);
    reads.enrol();
    let _cart = cart(&mesh, 1, "cart-a");
    eventually("bodies are read", || curl(&greedy, &["-d", "x", &url(vip4(2), 80, "/")]).status == 200);
    eventually("calls are answered", || called(&greedy, at(vip4(3), 80)).starts_with("fine"));
    let mut seen = Vec::new();
    for round in 0..3 {
        let before = p99(&modest);
        let mut flood = flood(&greedy, &format!("flood-{round}"), [1500, 300, 10_000]);
        until(
            Duration::from_secs(40),
            "the flood stands",
            || flood.log(),
            |log| log.contains("up 1800 10000"),
        );
        let during = p99(&modest);
        flood.kill();
        let open = || mesh.node(1).metrics().count("mesh_proxy_open", &[]);
        until(Duration::from_secs(20), "it has gone", open, |open| *open < 50);
        seen.push((before, during));
    }
    println!("p99 before and during, microseconds: {seen:?}");
    // A machine that does something else makes it worse for a while, never better.
    let fine = |(before, during): &(u64, u64)| *during <= 2 * before;
    assert!(seen.iter().any(fine), "{seen:?}");
    assert_eq!(mesh.node(1).metrics().count("mesh_proxy_panics_total", &[]), 0);
}

#[test]
fn heads_that_drip_are_given_up_and_nobody_else_notices() {
    const HEADS: u64 = 400;
    let (mesh, _server, greedy, modest) = ground(&[]);
    let load = Load::to(at(vip4(1), 80)).keep_alive().threads(2).rate(100).start(&modest);
    let _drips = flood(&greedy, "loris", [HEADS as u32, 0, 0]);
    let labels = [("source", "default/greedy"), ("status", "408"), ("reason", "header_timeout")];
    let given_up = || mesh.node(1).metrics().count("mesh_requests_total", &labels);
    until(Duration::from_secs(30), "all are given up", given_up, |count| *count == HEADS);
    let open = || mesh.node(1).metrics().count("mesh_proxy_open", &[]);
    // Each is read for up to half a minute more, so that its client gets the answer.
    until(Duration::from_secs(50), "and closed", open, |open| *open <= 4);
    assert_eq!(load.stop().failed(), 0);
}

/// Asks for `/` on so many connections, one request each, and keeps them; says `up`.
const IDLE: &str = r"
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
kept = []
for _ in range(int(sys.argv[2])):
    s = socket.create_connection((sys.argv[1], 80), 20)
    s.sendall(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert s.recv(4096).startswith(b'HTTP/1.1 200')
    kept.append(s)
print('up', flush=True)
time.sleep(1000)
";

/// Asks for `/files/big` on so many connections, reads the heads and no more; says `up`.
const STALLED: &str = r"
import socket, sys, time
kept = []
for _ in range(int(sys.argv[2])):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(20)
    s.connect((sys.argv[1], 80))
    s.sendall(b'GET /files/big HTTP/1.1\r\nHost: x\r\n\r\n')
    assert s.recv(256).startswith(b'HTTP/1.1 200')
    kept.append(s)
print('up', flush=True)
time.sleep(1000)
";

/// What the agent has of its own, bytes.
fn memory(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.agent_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What so many connections cost the agent, a piece; and who holds them.
fn cost(mesh: &Mesh, client: &Pod, script: &str, count: u64) -> (u64, Process) {
    let node = mesh.node(1);
    let open = || node.metrics().count("mesh_proxy_open", &[]);
    eventually("nothing is open", || open() == 0);
    let before = memory(node);
    let mut held = client.start(
        &format!("held-{count}"),
        PYTHON,
        &["-c", script, &vip4(1).to_string(), &count.to_string()],
    );
    until(
        Duration::from_mins(1),
        "they stand",
        || held.log(),
        |log| log.contains("up") || log.contains("Error"),
    );
    if let Some(status) = held.ended() {
        panic!("{status}: {}", held.log());
    }
    assert_eq!(open(), count);
    (memory(node).saturating_sub(before) / count, held)
}

#[test]
fn eight_thousand_idle_connections_are_held_for_some_kilobytes_each() {
    const HELD: u64 = 8000;
    let (mesh, _server, greedy, modest) = ground(&["--budget-connections", "10000"]);
    let (each, _held) = cost(&mesh, &greedy, IDLE, HELD);
    println!("an idle connection costs {each} bytes");
    assert!(each <= 4 * 1024, "{each} bytes");
    let report = Load::to(at(vip4(1), 80)).keep_alive().threads(2).count(200).run(&modest);
    assert_eq!((report.ok, report.failed()), (200, 0), "{report:?}");
}

#[test]
fn a_reader_that_stalls_costs_a_quarter_of_a_megabyte_at_most() {
    const READERS: u64 = 64;
    let (mesh, (server, _nginx), greedy, modest) = ground(&[]);
    // A gigabyte, of which the disk holds nothing.
    fs::File::create(server.work().join("files/big")).unwrap().set_len(1 << 30).unwrap();
    let (_, first) = cost(&mesh, &greedy, STALLED, 1);
    drop(first);
    let (each, _held) = cost(&mesh, &greedy, STALLED, READERS);
    println!("a stalled reader costs {each} bytes");
    assert!(each <= 256 * 1024, "{each} bytes");
    let report = Load::to(at(vip4(1), 80)).keep_alive().threads(2).count(200).run(&modest);
    assert_eq!((report.ok, report.failed()), (200, 0), "{report:?}");
}
