//! Nothing is unbounded: a full map and a spent budget refuse, count and say so, and others go on.

use std::time::Duration;

use mesh_common::{maps, verdict::Verdict};
use mesh_tests::{
    Mesh, Pod,
    eventually::until,
    load::Load,
    process::Process,
    programs::Nginx,
    resources::{Service, at, transport, vip4, vip6},
    within,
};
use serde_json::json;

use crate::words::{settled, web};

#[test]
fn a_full_map_is_refused_and_named_and_what_fits_goes_on() {
    // Two entries a service port: one an address family.
    let mesh = Mesh::builder().agent_args(&["--map-services", "8"]).up();
    mesh.apply(&Service::vip("first", 1).tcp("tcp", 80).yaml());
    let _a = web(&mesh, 1, "a", "first", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);

    for number in 2..10 {
        mesh.apply(&Service::vip(&format!("more-{number}"), number).tcp("tcp", 80).yaml());
    }
    let status = || mesh.node(1).ask("status", json!({}), &[]).unwrap().to_string();
    until(Duration::from_secs(10), "the status names the map", status, |text| {
        text.contains(maps::SERVICES.name)
    });
    within(Duration::from_secs(10), "meshctl names the map", || {
        mesh.meshctl(&["status"], "").contains(maps::SERVICES.name)
    });
    let report = Load::to(at(vip4(1), 80)).count(100).run(&client);
    assert_eq!((report.ok, report.failed()), (100, 0), "{report:?}");

    for number in 2..10 {
        mesh.meshctl(&["delete", "service", &format!("more-{number}")], "");
    }
    until(Duration::from_secs(20), "the map is no longer full", status, |text| {
        !text.contains(maps::SERVICES.name)
    });
}

/// Opens connections, says how many it holds, and holds them until its input ends.
const HOLD: &str = "
import socket, sys
held = []
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(count):
    s = socket.create_connection((host, port), 20)
    s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    if not s.recv(4096).startswith(b'HTTP/1.1 200'):
        break
    held.append(s)
print(len(held), flush=True)
import time
time.sleep(1000)
";

#[test]
fn a_pod_with_few_ephemeral_ports_takes_more_inbound_connections_than_it_has_ports() {
    const HELD: usize = 1_500;
    let mesh = Mesh::builder().nodes(2).up();
    // Opaque: for each connection that is held one is held to the application.
    mesh.apply(&Service::vip("in", 1).port("tcp", 80, "tcp", "proxy").yaml());
    let (server, _nginx) = web(&mesh, 1, "a", "in", "tcp", 1);
    server.netns().sysctl("net/ipv4/ip_local_port_range", "40000 40499").unwrap();
    let client = mesh.pod(2, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    for (family, host) in [("-4", server.ip().to_string()), ("-6", server.ip6().to_string())] {
        let args = ["-c", HOLD, &host, "8080", &HELD.to_string()];
        let mut holder = client.start(&format!("hold{family}"), "/usr/bin/python3", &args);
        let held = || holder.log().lines().last().and_then(|line| line.parse().ok()).unwrap_or(0);
        until(Duration::from_secs(40), "all are held", held, |held: &usize| *held == HELD);
        let established = ["-Htn", family, "state", "established", "sport", "=", ":8080"];
        let seen = server.run("ss", &established).unwrap().lines().count();
        assert!(seen >= HELD, "{family}: ss sees {seen} at the server");
        holder.kill();
    }
}

/// Two clients of one HTTP service on one node, whose agent has these arguments: mesh, server, greedy, modest.
fn neighbours(agent_args: &[&str]) -> (Mesh, (Pod, Nginx), Pod, Pod) {
    let mesh = Mesh::builder().agent_args(agent_args).up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let server = web(&mesh, 1, "a", "site", "http", 1);
    let [greedy, modest] = ["greedy", "modest"].map(|name| mesh.pod(1, name).up());
    settled(&greedy, at(vip4(1), 80), &["a"]);
    settled(&modest, at(vip4(1), 80), &["a"]);
    (mesh, server, greedy, modest)
}

/// Sends SYNs as fast as it can and gives each up at once; prints how many were refused at connect().
const FLOOD: &str = "
import errno, socket, sys, time
end, refused, begun = time.time() + float(sys.argv[3]), 0, 0
while time.time() < end:
    s = socket.socket()
    s.setblocking(False)
    code = s.connect_ex((sys.argv[1], int(sys.argv[2])))
    begun += 1
    refused += code == errno.ECONNREFUSED
    s.close()
print(begun, refused)
";

#[test]
fn a_flood_of_one_pod_loses_nobody_elses_connections() {
    let (mesh, _server, greedy, modest) = neighbours(&["--budget-pending", "32"]);

    let to = vip4(1).to_string();
    let mut floods = [1, 2]
        .map(|n| greedy.start(&format!("flood{n}"), "/usr/bin/python3", &["-c", FLOOD, &to, "80", "4"]));
    let report = Load::to(at(vip4(1), 80)).threads(4).rate(200).time(Duration::from_secs(3)).run(&modest);
    let begun: u64 = floods
        .iter_mut()
        .map(|flood| {
            assert!(flood.wait(Duration::from_secs(20)).success(), "{}", flood.log());
            flood.log().split(' ').next().and_then(|begun| begun.parse::<u64>().ok()).unwrap_or(0)
        })
        .sum();
    assert!(begun > 5_000, "only {begun} SYNs: no flood");
    assert!(report.ok >= 300 && report.failed() == 0, "{begun} SYNs; {report:?}");
    let node = mesh.node(1);
    assert_eq!(node.verdict(Verdict::HandoverFull), 0);
    // And the greedy one is not shut out for good.
    settled(&greedy, at(vip4(1), 80), &["a"]);
}

#[test]
fn a_workload_that_spends_its_budget_is_refused_and_its_neighbour_is_not() {
    let (mesh, _server, greedy, modest) = neighbours(&["--budget-connections", "10"]);

    let flood = Load::to(at(vip4(1), 80)).keep_alive().threads(30).rate(300).start(&greedy);
    let dropped = || mesh.node(1).metrics().count("mesh_proxy_dropped_total", &[]);
    until(Duration::from_secs(10), "the flood is refused", dropped, |count| *count > 0);
    let report = Load::to(at(vip4(1), 80)).keep_alive().threads(4).rate(200).count(400).run(&modest);
    assert_eq!((report.ok, report.failed()), (400, 0), "{report:?}");
    let report = flood.stop();
    assert!(report.ok > 0 && report.failed() > 0, "{report:?}");
}

/// Begins that many connections, says how many of them wait and how many were refused at `connect()`; then, how
/// many of those that waited came through.
const WAIT: &str = "
import errno, select, socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
waiting, refused = [], 0
for _ in range(int(sys.argv[2])):
    s = socket.socket(family)
    s.setblocking(False)
    code = s.connect_ex((sys.argv[1], 80))
    if code == errno.EINPROGRESS:
        waiting.append(s)
    else:
        assert code == errno.ECONNREFUSED, errno.errorcode[code]
        refused += 1
print(len(waiting), 'wait,', refused, 'refused', flush=True)
for s in waiting:
    select.select([], [s], [], 20)
print(sum(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 for s in waiting), 'came through', flush=True)
";

#[test]
fn as_many_connections_wait_for_the_proxy_as_the_policy_says() {
    const BEGUN: u64 = 40;
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let _a = web(&mesh, 1, "a", "site", "http", 1);
    let greedy = mesh.pod(1, "greedy").label("app", "greedy").up();
    settled(&greedy, at(vip4(1), 80), &["a"]);
    mesh.apply(&transport("greedy", &["selector: {matchLabels: {app: greedy}}", "budget: {pending: 16}"]));
    let lo = |change: &str, queue: &[&str]| {
        greedy.run("tc", &[&["qdisc", change, "dev", "lo", "root"], queue].concat()).expect("tc");
    };
    let refused = || mesh.node(1).verdict(Verdict::BudgetPending);
    for vip in [vip4(1).to_string(), vip6(1).to_string()] {
        // Nothing fits into loopback's queue: whoever begins a connection waits.
        lo("add", &["bfifo", "limit", "1"]);
        let before = refused();
        let args = ["-c", WAIT, &vip, &BEGUN.to_string()];
        let (mut waiting, mut attempt) = (None, 0);
        // Those that are given up make room, so that the policy may take its time.
        let begin = || {
            attempt += 1;
            let name = format!("wait-{}-{attempt}", vip.len());
            let begun = waiting.insert(greedy.start(&name, "/usr/bin/python3", &args));
            until(Duration::from_secs(10), "all were begun", || begun.log(), |log| log.ends_with('\n'))
        };
        until(Duration::from_secs(10), "the policy holds", begin, |log| log == "16 wait, 24 refused\n");
        assert!(refused() - before >= BEGUN - 16);
        lo("del", &[]);
        let log = || waiting.as_ref().map_or_else(String::new, Process::log);
        until(Duration::from_secs(20), "they come through", log, |log| log.ends_with("16 came through\n"));
    }
}
