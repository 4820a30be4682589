//! An agent takes over from another: no connection is refused, none that is open is cut.

use std::time::Duration;

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh,
    eventually::until,
    load::Load,
    programs::{curl, url},
    resources::{Service, at, vip4},
    within,
};
use rustix::process::Signal;

use crate::words::{flows, settled, web};

const TIMES: usize = 5;

#[test]
fn no_connection_is_refused_while_one_agent_takes_over_from_another() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    mesh.apply(&Service::vip("in", 3).port("http", 80, "http", "proxy").yaml());
    let servers = [
        web(&mesh, 2, "raw-a", "raw", "tcp", 1),
        web(&mesh, 2, "site-a", "site", "http", 1),
        web(&mesh, 1, "in-a", "in", "http", 1),
    ];
    std::fs::write(servers[1].0.work().join("files/long"), vec![b'l'; 4 << 20]).unwrap();
    let client = mesh.pod(1, "client").up();
    let stranger = mesh.pod(2, "stranger").outside().up();
    settled(&client, at(vip4(1), 80), &["raw-a"]);
    settled(&client, at(vip4(2), 80), &["site-a"]);
    settled(&client, at(vip4(3), 80), &["in-a"]);
    let node = mesh.node(1);

    let loads = [
        Load::to(at(vip4(1), 80)).threads(2).rate(800).start(&client),
        Load::to(at(vip4(2), 80)).threads(4).rate(400).start(&client),
        Load::to(at(servers[2].0.ip(), 8080)).threads(2).rate(200).start(&stranger),
    ];
    for _ in 0..TIMES {
        for load in &loads {
            load.go_on(100);
        }
        let (captured, pid) = (node.verdict(Verdict::Captured), node.agent_pid());
        let long = url(vip4(2), 80, "/files/long");
        let mut download = client.start("long", "curl", &["-sS", "--limit-rate", "2M", "-o", "long", &long]);
        within(Duration::from_secs(5), "the download is under way", || {
            std::fs::metadata(client.work().join("long")).is_ok_and(|file| file.len() > 0)
        });
        let ended = node.hand_over();
        assert!(ended.success(), "the predecessor ended with {ended}:\n{}", node.log());
        assert_ne!(node.agent_pid(), pid);
        let curl = download.wait(Duration::from_secs(20));
        assert!(curl.success(), "the download was cut: {}", download.log());
        assert_eq!(std::fs::read(client.work().join("long")).unwrap().len(), 4 << 20);
        std::fs::remove_file(client.work().join("long")).unwrap();
        node.wait_ready();
        let seen =
            || (node.verdict(Verdict::Captured), node.verdict(Verdict::Bypassed), loads[1].now().failed());
        until(Duration::from_secs(5), "the successor captures (captured, bypassed, failed)", seen, |seen| {
            seen.0 > captured + 50
        });
        assert!(flows(node, "opened", "site:80", "proxy") > 0, "the successor serves /metrics");
    }
    for load in loads {
        let report = load.stop();
        assert_eq!(report.failed(), 0, "{report:?}\n{}", node.log());
    }
    assert_eq!(node.verdict(Verdict::Bypassed), 0, "the proxy was never thought lost");
    assert_eq!(node.verdict(Verdict::InboundBypassed), 0);
}

#[test]
fn a_successor_that_fails_says_why_and_a_second_agent_is_refused() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let _server = web(&mesh, 1, "a", "site", "http", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let node = mesh.node(1);

    let mut second = node.new_agent(&[]);
    assert!(!second.wait(Duration::from_secs(10)).success());
    assert!(node.log().contains("--take-over"), "{}", node.log());

    // What fails before it asks does no harm.
    let mut blind = node.new_agent(&["--take-over", "--cgroup-root", "/nonexistent"]);
    assert!(!blind.wait(Duration::from_secs(10)).success());
    assert_eq!(curl(&client, &[&url(vip4(1), 80, "/")]).status, 200);
    let ended = node.hand_over();
    assert!(ended.success(), "{}", node.log());
    node.wait_ready();
    node.signal_agent(Signal::TERM);
    node.wait_agent();
    // Where nobody runs it is a plain start.
    let _first = node.new_agent(&["--take-over"]);
    within(Duration::from_secs(20), "it serves", || node.get("/readyz").is_ok());
    assert_eq!(curl(&client, &[&url(vip4(1), 80, "/")]).status, 200);
}
