//! Stories that take minutes: `cargo xtask test --all`.

use std::{
    thread,
    time::{Duration, Instant},
};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh,
    eventually::until,
    load::{Load, Running},
    resources::{Service, at, vip4, vip6},
};

use crate::words::{settled, web};

/// The default lease.
const LEASE: Duration = Duration::from_secs(30);

#[test]
fn a_control_plane_away_for_ten_lease_times_deregisters_nobody() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _servers = [web(&mesh, 1, "a", "raw", "tcp", 1), web(&mesh, 2, "b", "raw", "tcp", 1)];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a", "b"]);
    let load = Load::to(at(vip4(1), 80)).rate(100).start(&client);
    mesh.kill_control();
    // The subject is the time that passes: no answer to wait for.
    thread::sleep(LEASE * 10);
    mesh.start_control();
    let begin = Instant::now();
    while begin.elapsed() < LEASE * 2 {
        let before = load.now().servers;
        let after = load.go_on(100).servers;
        assert!(["a", "b"].iter().all(|name| after[*name] > before[*name]), "{before:?} {after:?}");
    }
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
}

/// A second, over IPv4 and IPv6 together.
const RATE: u32 = 5_000;

#[test]
fn five_thousand_short_connections_a_second_for_two_minutes_each_way() {
    const TIME: Duration = Duration::from_mins(2);
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&Service::vip("in", 2).port("tcp", 80, "tcp", "proxy").yaml());
    let servers = [web(&mesh, 1, "a", "site", "http", 1), web(&mesh, 1, "b", "in", "tcp", 1)];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    settled(&client, at(vip4(2), 80), &["b"]);
    for (way, (_, server), number, verdict) in
        [("out", &servers[0], 1, Verdict::Captured), ("in", &servers[1], 2, Verdict::InboundCaptured)]
    {
        let (before, asked) = (mesh.node(1).verdict(verdict), server.hits("/"));
        let loads = [at(vip4(number), 80), at(vip6(number), 80)]
            .map(|to| Load::to(to).threads(8).rate(RATE / 2).time(TIME).start(&client));
        let reports = loads.map(Running::done);
        let ok: u64 = reports.iter().map(|report| report.ok).sum();
        println!("{way}: {:.0} connections a second", ok as f64 / TIME.as_secs_f64());
        assert!(reports.iter().all(|report| report.failed() == 0), "{way}: {reports:?}");
        until(
            Duration::from_secs(10),
            "the server counts as many",
            || server.hits("/") - asked,
            |n| *n == ok,
        );
        // Inbound a SYN that is sent again counts again.
        assert!(mesh.node(1).verdict(verdict) - before >= ok, "{way}: not all were captured");
        let wanted = u64::from(RATE) * TIME.as_secs();
        assert!(ok * 100 >= wanted * 95, "{way}: {ok} of {wanted} in {TIME:?}: {reports:?}");
    }
}
