//! What strict mTLS refuses: an address proves nobody, on whatever node; who is proved by the kernel passes.

use std::{net::SocketAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    load::Load,
    process::{self, Process},
    programs::{connect_lines, curl, line_server, nginx, talk, url},
    resources::{Service, at, authorization, mesh_mtls, transport, vip4, vip6},
};
use rustix::process::Signal;

use crate::words::{REFUSED, connect_from, refused};

/// A pod labelled `app: db` with line servers on 7000 (served) and 7001, behind the service `db` (number 1).
fn db(mesh: &Mesh) -> (Pod, [Process; 2]) {
    mesh.apply(&Service::vip("db", 1).tcp("one", 7000).yaml());
    let mut pod = mesh.pod(1, "db-0").label("app", "db").serves("db", "one", 7000).outside().up();
    let servers = [line_server(&pod, 7000), line_server(&pod, 7001)];
    pod.enrol();
    (pod, servers)
}

fn ways(db: &Pod) -> [SocketAddr; 5] {
    let own = [at(db.ip(), 7000), at(db.ip6(), 7000), at(db.ip(), 7001)];
    [at(vip4(1), 7000), at(vip6(1), 7000), own[0], own[1], own[2]]
}

#[track_caller]
fn answered(pod: &Pod, to: SocketAddr) {
    eventually(&format!("{to} answers {}", pod.name()), || connect_lines(pod, to, 1).errors.is_empty());
}

#[test]
fn strict_takes_plaintext_from_proved_workloads_of_its_node_alone() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh);
    let near = mesh.pod(1, "near").up();
    let far = mesh.pod(2, "far").outside().up();
    let stranger = mesh.pod(1, "stranger").outside().up();
    let own = &ways(&db)[2..];
    for to in own {
        answered(&far, *to);
        answered(&stranger, *to);
    }
    mesh.apply(&transport("strict", &["selector: {matchLabels: {app: db}}", "mtls: {mode: strict}"]));
    for to in own {
        refused(&far, *to);
        refused(&stranger, *to);
    }
    for to in ways(&db) {
        answered(&near, to);
    }
    let node = mesh.node(1);
    let before = node.verdict(Verdict::PlaintextDenied);
    assert_eq!(connect_lines(&far, own[0], 10).errors[REFUSED], 10);
    assert_eq!(node.verdict(Verdict::PlaintextDenied), before + 10);
    // An address is not an identity, whoever has it.
    for (source, length, to) in [(near.ip().to_string(), 32, own[0]), (near.ip6().to_string(), 128, own[1])] {
        stranger.netns().ip(&[format!("addr add {source}/{length} dev eth0 nodad")]).unwrap();
        let before = node.verdict(Verdict::PlaintextDenied);
        let said = connect_from(&stranger, &source, to);
        assert!(!said.contains("answered"), "as {source}: {said}");
        eventually("it is counted", || node.verdict(Verdict::PlaintextDenied) > before);
        stranger.netns().ip(&[format!("addr del {source}/{length} dev eth0")]).unwrap();
    }
    // It does not take an agent.
    node.kill_agent();
    assert_eq!(connect_lines(&far, own[0], 5).errors[REFUSED], 5);
    assert_eq!(connect_lines(&near, own[0], 5).servers["db-0"], 5);
    node.start_agent();
    node.wait_ready();
    mesh.apply(&transport("strict", &["selector: {matchLabels: {app: db}}", "mtls: {mode: permissive}"]));
    for to in own {
        answered(&far, *to);
    }
}

#[test]
fn a_port_has_a_mode_of_its_own_and_what_is_excluded_is_not_asked() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh);
    let far = mesh.pod(2, "far").outside().up();
    let (served, other) = (at(db.ip(), 7000), at(db.ip6(), 7001));
    let strict = "mtls: {mode: strict, ports: [{port: 7001, mode: permissive}]}";
    mesh.apply(&transport("strict", &["selector: {matchLabels: {app: db}}", strict]));
    refused(&far, served);
    answered(&far, other);
    let turned = "mtls: {mode: permissive, ports: [{port: 7001, mode: strict}]}";
    mesh.apply(&transport("strict", &["selector: {matchLabels: {app: db}}", turned]));
    refused(&far, other);
    answered(&far, served);
    let excluded = ["mtls: {mode: strict}", "exclude: {inbound: {ports: [7001]}}"];
    mesh.apply(&transport("strict", &["selector: {matchLabels: {app: db}}", excluded[0], excluded[1]]));
    refused(&far, served);
    answered(&far, other);
}

#[test]
fn the_mesh_says_what_holds_where_no_policy_does() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh);
    let far = mesh.pod(2, "far").outside().up();
    let to = at(db.ip(), 7000);
    mesh.apply(&mesh_mtls("strict"));
    refused(&far, to);
    mesh.apply(&mesh_mtls("off"));
    answered(&far, to);
}

#[test]
fn a_unit_of_the_host_may_probe_a_strict_workload_and_the_rest_of_the_host_may_not() {
    let mesh = Mesh::builder().up();
    let (db, _servers) = db(&mesh);
    let kubelet = mesh.pod(1, "kubelet").account("kubelet").on_host().up();
    let host = mesh.pod(1, "sshd").on_host().outside().up();
    mesh.apply(&transport("strict", &["selector: {matchLabels: {app: db}}", "mtls: {mode: strict}"]));
    for to in [at(db.ip(), 7000), at(db.ip6(), 7000)] {
        refused(&host, to);
        answered(&kubelet, to);
    }
    // To the port that is to be probed, and to no other.
    let rule = "[{from: [{serviceAccounts: [kubelet]}], to: [{ports: [7000]}]}]";
    mesh.apply(&authorization("probes", "db", "allow", rule));
    refused(&kubelet, at(db.ip(), 7001));
    for to in [at(db.ip(), 7000), at(db.ip6(), 7000)] {
        answered(&kubelet, to);
        refused(&host, to);
    }
}

#[test]
fn a_change_to_strict_ends_the_plaintext_that_is_open_and_nothing_else() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let (db, _servers) = db(&mesh);
    let (near, pay) = (mesh.pod(1, "near").up(), mesh.pod(2, "pay").account("pay").up());
    let far = mesh.pod(2, "far").outside().up();
    let kubelet = mesh.pod(1, "kubelet").account("kubelet").on_host().up();
    let [vip, _, own, own6, other] = ways(&db);
    let (all, outside) = ([vip, own, own6, other], [own, own6, other]);
    for pod in [&near, &pay] {
        for to in all {
            answered(pod, to);
        }
    }
    let talks = [talk(&near, "talk", &all), talk(&pay, "talk", &all), talk(&kubelet, "talk", &outside)];
    let plain = talk(&far, "talk", &outside);
    let ended = || mesh.node(1).metrics().count("mesh_plaintext_ended_total", &[]);
    let app = "selector: {matchLabels: {app: db}}";
    let excluded = "exclude: {inbound: {ports: [7001]}}";
    mesh.apply(&transport("strict", &[app, "mtls: {mode: strict}", excluded]));
    eventually("plaintext ends", || plain.now(own).1 && plain.now(own6).1);
    plain.goes_on(&[other]);
    assert_eq!(ended(), 2);
    // What was left alone is not any more.
    mesh.apply(&transport("strict", &[app, "mtls: {mode: strict}"]));
    eventually("the rest of it ends", || plain.now(other).1);
    assert_eq!(ended(), 3);
    // Once more: an agent that starts looks at what is open.
    mesh.apply(&transport("strict", &[app, "mtls: {mode: permissive}"]));
    talks[0].goes_on(&all);
    talks[1].goes_on(&all);
    talks[2].goes_on(&outside);
    assert!(mesh.node(1).log().contains("plaintext ended"), "{}", mesh.node(1).log());
    // One port alone.
    answered(&far, own);
    let plain = talk(&far, "talk-again", &outside);
    mesh.apply(&transport("strict", &[app, "mtls: {ports: [{port: 7001, mode: strict}]}"]));
    eventually("plaintext to the port ends", || plain.now(other).1);
    plain.goes_on(&[own, own6]);
    talks[0].goes_on(&all);
    talks[1].goes_on(&all);
    talks[2].goes_on(&outside);
    assert_eq!(ended(), 4);
}

#[test]
fn requests_do_not_stay_on_plain_connections_of_a_caller_that_was_off() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let (server, _nginx) = crate::words::web(&mesh, 1, "site-a", "site", "http", 1);
    let client = mesh.pod(2, "client").label("app", "client").up();
    let app = "selector: {matchLabels: {app: client}}";
    mesh.apply(&transport("caller", &[app, "mtls: {mode: 'off'}"]));
    // As the server's namespace sees them: connections from the client's address.
    let plain = || {
        let filter = format!("src = {}:8080 and dst = {}", server.ip(), client.ip());
        let shown = server.run("ss", &["-Htn", "state", "established", &filter]).unwrap();
        shown.lines().count()
    };
    eventually("it answers plainly", || {
        curl(&client, &[&url(vip4(1), 80, "/")]).status == 200 && plain() > 0
    });
    let load = Load::to(at(vip4(1), 80)).keep_alive().threads(2).rate(100).start(&client);
    load.go_on(50);
    assert!(plain() > 0);
    mesh.apply(&transport("caller", &[app, "mtls: {mode: permissive}"]));
    eventually("no plain connection is left", || plain() == 0);
    load.go_on(50);
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
    assert_eq!(plain(), 0);
}

#[test]
fn a_program_that_listens_at_the_port_of_tunnels_is_named_and_tunnels_win() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("db", 1).tcp("one", 7000).yaml());
    let mut pod = mesh.pod(1, "db-0").serves("db", "one", 7000).outside().up();
    let _server = line_server(&pod, 7000);
    let mut squatter = line_server(&pod, 15_008);
    pod.enrol();
    let client = mesh.pod(2, "client").up();
    let stranger = mesh.pod(2, "stranger").outside().up();
    let named = || {
        let status = mesh.node(1).ask("status", serde_json::Value::Null, &[]).unwrap();
        status["status"]["conditions"].to_string().contains("workload default/db-0, port 15008")
    };
    eventually("it is named", named);
    assert!(mesh.node(1).log().contains("port 15008"), "{}", mesh.node(1).log());
    for to in [at(vip4(1), 7000), at(pod.ip6(), 7000)] {
        answered(&client, to);
    }
    let tunnels = [("role", "server"), ("outcome", "ok")];
    assert!(mesh.node(1).metrics().count("mesh_hbone_handshakes_total", &tunnels) > 0);
    // It hears nobody, and a change of policy that looks at the workload's connections spares tunnels.
    let ways = [
        (stranger.ip().to_string(), at(pod.ip(), 15_008)),
        (stranger.ip6().to_string(), at(pod.ip6(), 15_008)),
    ];
    let heard = || ways.iter().any(|(source, to)| connect_from(&stranger, source, *to).contains("name="));
    assert!(!heard());
    let talks = talk(&client, "talk", &[at(vip4(1), 7000)]);
    mesh.apply(&transport("strict", &["mtls: {mode: strict}"]));
    refused(&stranger, at(pod.ip(), 7000));
    talks.goes_on(&[at(vip4(1), 7000)]);
    mesh.node(1).kill_agent();
    assert!(!heard(), "also while no agent runs");
    assert_eq!(squatter.log(), "", "nobody has come to it");
    squatter.kill();
    mesh.node(1).start_agent();
    mesh.node(1).wait_ready();
    eventually("it is named no more", || !named());
}

/// Counts bytes and occurrences of a word on an interface, until it is told to end.
const SNIFFER: &str = r"
import signal, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)
s.bind((sys.argv[1], 0))
word, octets, seen = sys.argv[2].encode(), 0, 0
def stop(*_):
    print('octets', octets, 'seen', seen, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print('ready', flush=True)
while True:
    data = s.recv(1 << 17)
    octets += len(data)
    seen += data.count(word)
";
/// What the file that is fetched consists of.
const CANARY: &str = "a canary that nobody on the way may hear ";
/// Bytes of it.
const FILE: usize = 36 << 20;

/// Listens on the node's link while `work` is done: bytes and canaries.
fn heard(mesh: &Mesh, name: &str, work: impl FnOnce()) -> (u64, u64) {
    let node = mesh.node(1);
    let mut command = process::command(mesh.fabric().cgroup(), "/usr/bin/python3");
    command.args(["-c", SNIFFER, "eth0", CANARY.trim()]);
    let log = node.work().join(format!("sniffer-{name}.log"));
    let mut sniffer = Process::start(node.netns(), command, &log).unwrap();
    eventually("the sniffer listens", || sniffer.log().contains("ready"));
    work();
    sniffer.signal(Signal::TERM);
    sniffer.wait(Duration::from_secs(20));
    let words: Vec<u64> = sniffer.log().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(words.len(), 2, "{}", sniffer.log());
    (words[0], words[1])
}

#[test]
fn nobody_on_the_way_hears_what_workloads_of_two_nodes_say() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("web", 2).http("http", 80).tcp("tcp", 81).yaml());
    let web = mesh.pod(2, "web-0").serves("web", "http", 8080).serves("web", "tcp", 8080).outside();
    let mut web = web.up();
    let _nginx = nginx(&web, &[8080]);
    let file: Vec<u8> = CANARY.bytes().cycle().take(FILE).collect();
    std::fs::write(web.work().join("files/canary"), file).unwrap();
    web.enrol();
    let client = mesh.pod(1, "client").up();
    let fetch = |port: u16, path: &str| {
        let reply = curl(&client, &["-m", "60", &url(vip4(2), port, path)]);
        assert_eq!(reply.status, 200, "port {port}: {}", reply.error);
    };
    for port in [80, 81] {
        eventually("it answers through a tunnel", || {
            let answers = curl(&client, &["-m", "2", &url(vip4(2), port, "/")]).status == 200;
            answers && client.run("ss", &["-Htn", "dport = :15008"]).is_ok_and(|shown| !shown.is_empty())
        });
    }
    let (octets, seen) = heard(&mesh, "tunnel", || {
        fetch(80, "/files/canary");
        fetch(81, "/files/canary");
    });
    assert!(octets > 64 << 20, "only {octets} bytes were seen to pass");
    assert_eq!(seen, 0, "in {octets} bytes");
    // The same ears hear it where nothing is encrypted.
    mesh.apply(&mesh_mtls("off"));
    let mut plain = 0;
    for attempt in 0..20 {
        plain = heard(&mesh, &format!("plain-{attempt}"), || fetch(81, "/files/canary")).1;
        if plain > 0 {
            break;
        }
    }
    assert!(plain > 0, "the sniffer hears nothing at all");
}
