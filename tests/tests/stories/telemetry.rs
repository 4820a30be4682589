//! What is told of flows is what happened: totals, open connections, histograms, `meshctl flows`.

use std::{fs, net::SocketAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    load::Load,
    node::Node,
    process::Process,
    programs::line_server,
    resources::{Service, at, vip4, vip6},
};
use rustix::process::Signal;
use serde_json::Value;

use crate::words::{settled, web};

const TEN: Duration = Duration::from_secs(10);

/// Connects as often as asked to a line server, has a different number of bytes sent back each time, and says
/// what it sent and received itself.
const COUNTING: &str = r"
import socket, sys
sent = received = 0
for i in range(int(sys.argv[3])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
        head = s.makefile('rb', 0).readline()
        text = b'x' * (i * 997 % 20000)
        s.sendall(text)
        sent += len(text)
        received += len(head)
        back = 0
        while back < len(text):
            back += len(s.recv(65536))
        received += back
print(sent, received)
";

/// Connects once, has bytes sent back, says what it carried, and holds on. A line on the file `go` in its
/// directory: the same again; then it says what its socket has sent again.
const HOLDING: &str = r"
import os, socket, struct, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
s.settimeout(30)
sent, received = 0, len(s.makefile('rb', 0).readline())
rounds = 0
while True:
    text = b'y' * 300001
    s.sendall(text)
    sent += len(text)
    back = 0
    while back < len(text):
        back += len(s.recv(65536))
    received += back
    rounds += 1
    info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    print('held', sent, received, struct.unpack_from('I', info, 100)[0], flush=True)
    while not os.path.exists(f'go-{rounds}'):
        time.sleep(0.02)
";

/// Downloads a file of 2 MB: a half, with little in its socket's buffer, and the rest when the file `go-on` is
/// in its directory. Then it says how much it has read.
const HALVES: &str = r"
import os, socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
s.connect((sys.argv[1], 80))
s.sendall(b'GET /files/some HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n')
read = 0
while read < 1000000:
    read += len(s.recv(65536))
while not os.path.exists('go-on'):
    time.sleep(0.02)
while more := len(s.recv(65536)):
    read += more
s.close()
print(read, flush=True)
";

/// A mesh of one node whose service `web` has one line server behind it, and a client.
struct Ground {
    mesh: Mesh,
    server: Pod,
    client: Pod,
    _line: Process,
}

const PORT: u16 = 80;

fn ground(agent_args: &[&str]) -> Ground {
    let mesh = Mesh::builder().agent_args(agent_args).up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", PORT).yaml());
    let mut server = mesh.pod(1, "web-1").serves("web", "tcp", 8080).outside().up();
    let line = line_server(&server, 8080);
    server.enrol();
    let client = mesh.pod(1, "client").up();
    eventually("the service answers", || count(&client, at(vip4(1), PORT), 1).is_some());
    eventually("the service answers over IPv6", || count(&client, at(vip6(1), PORT), 1).is_some());
    // What an agent learnt in its last two seconds it learns again after a crash, under other numbers.
    eventually("the numbers are on disk", || {
        ["web-1", "client"].iter().all(|name| mesh.node(1).has_on_disk(name))
    });
    Ground { mesh, server, client, _line: line }
}

/// Bytes that the client itself has counted, sent and received.
fn count(client: &Pod, to: SocketAddr, connections: u32) -> Option<[u64; 2]> {
    let (address, port, n) = (to.ip().to_string(), to.port().to_string(), connections.to_string());
    let said = client.run("/usr/bin/python3", &["-c", COUNTING, &address, &port, &n]).ok()?;
    numbers(said.lines().next_back()?)
}

fn numbers<const N: usize>(line: &str) -> Option<[u64; N]> {
    let words: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    words.try_into().ok()
}

/// Opened, closed, sent, received of the client's flows to the service.
fn totals(node: &Node) -> [u64; 4] {
    let metrics = node.metrics();
    let labels = [("source", "default/client"), ("destination", "default/web:80")];
    ["opened", "closed", "sent_bytes", "received_bytes"]
        .map(|what| metrics.count(&format!("mesh_flow_{what}_total"), &labels))
}

fn sum(a: [u64; 4], connections: u64, [sent, received]: [u64; 2]) -> [u64; 4] {
    [a[0] + connections, a[1] + connections, a[2] + sent, a[3] + received]
}

#[track_caller]
fn totals_become(node: &Node, wanted: [u64; 4]) {
    until(
        TEN,
        &format!("opened, closed, sent, received: {wanted:?}"),
        || totals(node),
        |seen| *seen == wanted,
    );
}

/// Starts a holder in the client; returns when it has carried something.
fn hold(client: &Pod, name: &str, to: SocketAddr) -> Process {
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let holder = client.start(name, "/usr/bin/python3", &["-c", HOLDING, &address, &port]);
    held(&holder, 1);
    holder
}

/// What a holder says after so many rounds: sent, received, segments sent again.
fn held(holder: &Process, rounds: usize) -> [u64; 3] {
    let said = || holder.log().lines().filter(|line| line.starts_with("held")).map(str::to_owned).collect();
    let lines = until(TEN, "the holder carries", said, |lines: &Vec<String>| lines.len() >= rounds);
    numbers(&lines[rounds - 1]).expect("three numbers")
}

#[test]
fn totals_are_the_clients_own_after_an_overflow_and_a_kill() {
    // Room for 39 records.
    let Ground { mesh, client, .. } = &ground(&["--map-flow-events", "4096"]);
    let node = mesh.node(1);
    let ends = [at(vip4(1), PORT), at(vip6(1), PORT)];
    eventually("what was settled with has ended", || {
        let [opened, closed, ..] = totals(node);
        opened > 0 && opened == closed
    });
    let before = totals(node);
    let lost = node.verdict(Verdict::EventLost);

    node.signal_agent(Signal::STOP);
    let stopped =
        ends.map(|to| count(client, to, 100).expect("the kernel path works beside a stopped agent"));
    assert!(node.verdict(Verdict::EventLost) >= lost + 150, "the ring ran over");
    node.kill_agent();
    let killed = ends.map(|to| count(client, to, 50).expect("the kernel path works without an agent"));
    node.start_agent();
    node.wait_ready();
    let after = ends.map(|to| count(client, to, 20).expect("the kernel path works"));

    let mut wanted = before;
    for (own, connections) in [(stopped, 100), (killed, 50), (after, 20)] {
        wanted = own.iter().fold(wanted, |sum_of, own| sum(sum_of, connections, *own));
    }
    totals_become(node, wanted);
    let told = node.metrics().count("mesh_flow_events_lost_total", &[]);
    assert_eq!(told, node.verdict(Verdict::EventLost), "what the ring lost is told");
}

#[test]
fn an_open_connection_shows_what_it_carries_and_ends_with_the_same() {
    let Ground { mesh, client, .. } = &ground(&[]);
    let node = mesh.node(1);
    for (number, to) in [at(vip4(1), PORT), at(vip6(1), PORT)].into_iter().enumerate() {
        eventually("nothing is open", || totals(node)[0] == totals(node)[1]);
        let before = totals(node);
        let holder = hold(client, &format!("hold-{number}"), to);
        let [sent, received, _] = held(&holder, 1);
        let open = [before[0] + 1, before[1], before[2] + sent, before[3] + received];
        totals_become(node, open);
        // An agent that comes later reads the same, and what comes later is added.
        node.kill_agent();
        node.start_agent();
        node.wait_ready();
        totals_become(node, open);
        fs::write(client.work().join("go-1"), "").unwrap();
        let [sent, received, _] = held(&holder, 2);
        totals_become(node, [open[0], open[1], before[2] + sent, before[3] + received]);
        drop(holder);
        fs::remove_file(client.work().join("go-1")).unwrap();
        let wanted = sum(before, 1, [sent, received]);
        // Never more, and at last exactly that.
        until(
            TEN,
            "it has ended",
            || totals(node),
            |seen| {
                assert!(seen[2] <= wanted[2] && seen[3] <= wanted[3], "{seen:?} is more than {wanted:?}");
                *seen == wanted
            },
        );
    }
}

#[test]
fn a_proxied_download_shows_how_far_it_is() {
    const BODY: usize = 2_000_000;
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", PORT).yaml());
    let (server, _nginx) = web(&mesh, 1, "a", "site", "http", 1);
    fs::write(server.work().join("files/some"), vec![b's'; BODY]).unwrap();
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), PORT), &["a"]);
    let node = mesh.node(1);
    let counts = || {
        let labels = [("source", "default/client"), ("destination", "default/site:80"), ("path", "proxy")];
        let metrics = node.metrics();
        ["opened", "closed", "received_bytes"]
            .map(|what| metrics.count(&format!("mesh_flow_{what}_total"), &labels))
    };
    let [opened, _, received] = until(TEN, "nothing is open", counts, |[opened, closed, _]| opened == closed);
    let reader = client.start("reader", "/usr/bin/python3", &["-c", HALVES, &vip4(1).to_string()]);
    let half = [opened + 1, opened, received + BODY as u64 / 2];
    let under_way =
        until(TEN, "it shows the half", counts, |seen| seen[..2] == half[..2] && seen[2] >= half[2]);
    assert!(under_way[2] < received + BODY as u64, "{under_way:?} is all of it already");
    fs::write(client.work().join("go-on"), "").unwrap();
    let read = until(TEN, "the reader has all", || reader.log(), |said| said.ends_with('\n'));
    let [all] = numbers(&read).expect("a number");
    let wanted = [opened + 1, opened + 1, received + all];
    until(TEN, "it has ended with what the reader has", counts, |seen| *seen == wanted);
}

#[test]
fn what_finds_no_room_in_the_totals_is_counted_as_overflow() {
    let Ground { mesh, client, .. } = &ground(&["--map-flow-totals", "1"]);
    let node = mesh.node(1);
    let overflow = || {
        let metrics = node.metrics();
        ["opened", "closed", "sent_bytes", "received_bytes"]
            .map(|what| metrics.count(&format!("mesh_flow_{what}_total"), &[("source", "overflow")]))
    };
    let before = until(TEN, "nothing is open", overflow, |[opened, closed, ..]| opened == closed);
    let [sent, received] = count(client, at(vip4(1), PORT), 20).unwrap();
    until(TEN, "all is there", overflow, |seen| *seen == sum(before, 20, [sent, received]));
    assert_eq!(totals(node), [0; 4]);
    assert!(node.verdict(Verdict::TotalsFull) >= 40, "and it is told");
}

#[test]
fn round_trip_times_and_segments_sent_again_are_told() {
    let Ground { mesh, server, client, .. } = &ground(&[]);
    let node = mesh.node(1);
    let labels = [("source", "default/client"), ("destination", "default/web:80"), ("path", "kernel")];
    let timed = || node.metrics().count("mesh_flow_rtt_seconds_count", &labels);
    let lasted = || node.metrics().count("mesh_flow_duration_seconds_count", &labels);
    until(
        TEN,
        "what was settled with is timed",
        || [timed(), totals(node)[1]],
        |[timed, closed]| timed == closed,
    );
    let (times, durations) = (timed(), lasted());
    count(client, at(vip4(1), PORT), 30).unwrap();
    until(TEN, "each has a round-trip time", timed, |seen| *seen == times + 30);
    assert_eq!(lasted(), durations + 30);
    let spent = node.metrics().sum("mesh_flow_rtt_seconds_sum", &labels);
    assert!(spent > 0.0 && spent < 1.0 * timed() as f64, "{spent} s of round trips");

    // Without its link the server hears nothing: the client sends again, and says how often.
    let again = || node.metrics().count("mesh_flow_retransmits_total", &labels);
    let before = again();
    let holder = hold(client, "hold", at(vip4(1), PORT));
    let port = format!("p{}", server.ip().octets()[3]);
    node.netns().ip(&[format!("link set {port} down")]).unwrap();
    fs::write(client.work().join("go-1"), "").unwrap();
    let sends_again =
        || client.run("ss", &["-Htin", "dport", "=", ":8080"]).is_ok_and(|t| t.contains("retrans:"));
    eventually("the client sends again", sends_again);
    node.netns().ip(&[format!("link set {port} up")]).unwrap();
    let [.., own] = held(&holder, 2);
    assert!(own > 0, "the client has sent nothing again");
    drop(holder);
    until(TEN, "what was sent again is counted", again, |seen| *seen >= before + own);
    // The end itself may be sent again as well, on a machine that is busy.
    assert!(again() <= before + own + 2, "{} for {own}", again() - before);
}

#[test]
fn endpoints_have_series_of_their_own_where_that_is_asked_for() {
    let mesh = Mesh::builder().agent_args(&["--flow-endpoints"]).up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", PORT).yaml());
    let _a = web(&mesh, 1, "a", "web", "tcp", 3);
    let _b = web(&mesh, 1, "b", "web", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), PORT), &["a", "b"]);
    let opened = |name: &str| {
        let endpoint = format!("default/{name}");
        let labels = [("destination", "default/web:80"), ("endpoint", &*endpoint)];
        let metrics = mesh.node(1).metrics();
        [
            metrics.count("mesh_flow_opened_total", &labels),
            metrics.count("mesh_flow_duration_seconds_count", &labels),
        ]
    };
    let [a, b] = ["a", "b"].map(|name| opened(name)[0]);
    until(
        TEN,
        "what was settled with has a record",
        || [opened("a")[1], opened("b")[1]],
        |seen| *seen == [a, b],
    );
    let report = Load::to(at(vip4(1), PORT)).count(200).run(&client);
    assert_eq!((report.ok, report.failed()), (200, 0), "{report:?}");
    for (name, before) in [("a", a), ("b", b)] {
        let wanted = before + report.servers[name];
        until(TEN, &format!("{name} has {wanted}"), || opened(name), |seen| *seen == [wanted; 2]);
    }
}

/// Lines of `meshctl flows -o json` so far: open, ended and failed flows, and what is missing.
fn lines(text: &str) -> Vec<Value> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn flows_shows_what_is_open_and_what_ends_as_it_was_asked() {
    let Ground { mesh, client, .. } = &ground(&[]);
    let node = mesh.node(1);
    mesh.apply(&Service::vip("other", 2).tcp("tcp", PORT).yaml());
    let _other = web(mesh, 1, "other-1", "other", "tcp", 1);
    settled(client, at(vip4(2), PORT), &["other-1"]);

    let held_before = hold(client, "before", at(vip4(1), PORT));
    let args =
        ["flows", "-f", "-o", "json", "--service", "web", "--workload", "default/client", "--path", "kernel"];
    let reader = node.start_meshctl("flows", &args);
    let shown = |state: &'static str| {
        let reader = &reader;
        let of = move |line: &Value| line["state"] == state;
        move || lines(&reader.log()).into_iter().filter(of).collect::<Vec<_>>()
    };
    let before = until(TEN, "the open one is shown", shown("open"), |open| open.len() == 1);
    let [sent, received, _] = held(&held_before, 1);
    let open = &before[0];
    assert_eq!((&open["source"], &open["destination"]), (&"default/client".into(), &"default/web:80".into()));
    assert_eq!((&open["endpoint"], &open["verdict"]), (&"default/web-1".into(), &"balanced".into()));
    assert_eq!((open["sent"].as_u64(), open["received"].as_u64()), (Some(sent), Some(received)), "{open}");
    assert!(open["srttUs"].as_u64() > Some(0) && open["address"] == "240.240.0.1:80", "{open}");

    let held_after = hold(client, "after", at(vip6(1), PORT));
    until(TEN, "one that begins is shown", shown("open"), |open| open.len() == 2);
    assert_eq!(Load::to(at(vip4(2), PORT)).count(20).run(client).ok, 20);
    for holder in [held_before, held_after] {
        let [sent, received, _] = held(&holder, 1);
        let so_far = shown("ended")().len();
        drop(holder);
        let ended = until(TEN, "its end is shown", shown("ended"), |ended| ended.len() == so_far + 1);
        let end = &ended[so_far];
        assert_eq!((end["sent"].as_u64(), end["received"].as_u64()), (Some(sent), Some(received)), "{end}");
    }
    let all = lines(&reader.log());
    assert!(all.iter().all(|line| line["destination"] == "default/web:80"), "{all:?}");
    assert_eq!(all.len(), 4, "{all:?}");

    // As a table, once; and a word that nothing has.
    let table = node.meshctl(&["flows"]).unwrap();
    assert!(table.starts_with("STATE"), "{table}");
    let refused = format!("{:#}", node.meshctl(&["flows", "--verdict", "blanced"]).unwrap_err());
    assert!(refused.contains("balanced, direct, outside"), "{refused}");
}

#[test]
fn a_slow_reader_of_flows_is_told_what_it_missed() {
    const CONNECTIONS: u64 = 9000;
    let Ground { mesh, client, .. } = &ground(&[]);
    let node = mesh.node(1);
    mesh.apply(&Service::vip("busy", 2).tcp("tcp", PORT).yaml());
    let _busy = web(mesh, 1, "busy-1", "busy", "tcp", 1);
    settled(client, at(vip4(2), PORT), &["busy-1"]);
    let open = || {
        let count = |what: &str| node.metrics().count(&format!("mesh_flow_{what}_total"), &[]);
        let recorded = node.metrics().count("mesh_flow_duration_seconds_count", &[]);
        [count("opened"), count("closed") + count("failed"), recorded]
    };
    until(TEN, "all that was under way is recorded", open, |[a, b, c]| a == b && b == c);

    let reader = node.start_meshctl("slow", &["flows", "-f", "-o", "json"]);
    // It is there when it shows something.
    let _hold = hold(client, "hold", at(vip4(1), PORT));
    until(TEN, "the reader reads", || lines(&reader.log()).len(), |shown| *shown == 1);
    reader.signal(Signal::STOP);
    let report = Load::to(at(vip4(2), PORT)).threads(2).count(CONNECTIONS).run(client);
    assert_eq!((report.ok, report.failed()), (CONNECTIONS, 0), "{report:?}");
    reader.signal(Signal::CONT);

    let tally = || {
        let lines = lines(&reader.log());
        let number = |line: &Value, name: &str| line[name].as_u64().unwrap_or(0);
        let ended = lines.iter().filter(|line| line["state"] == "ended").count() as u64;
        let lost: u64 = lines.iter().map(|line| number(line, "lost")).sum();
        let unrecorded: u64 = lines.iter().map(|line| number(line, "unrecorded")).sum();
        [ended, lost, unrecorded]
    };
    let [ended, lost, _] =
        until(TEN, "all is shown or told to be missing", tally, |[ended, lost, unrecorded]| {
            ended + lost + unrecorded == CONNECTIONS
        });
    assert!(lost > 0 && ended > 0, "{ended} shown, {lost} missing");
}
