//! Which endpoint a connection gets, as policies want it: the less loaded one, a client's own, the one before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, eventually,
    programs::{connect_lines, hold},
    resources::{Service, at, traffic, vip4, vip6},
    within,
};

use crate::words::{answered, lines, share};

#[test]
fn new_connections_turn_away_from_an_endpoint_that_holds_many() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &["balancing: leastConnections"]));
    let _a = lines(&mesh, 1, "a", "lines");
    let client = mesh.pod(1, "client").up();
    let [v4, v6] = [at(vip4(1), 80), at(vip6(1), 80)];
    answered(&client, v4, &["a"]);
    answered(&client, v6, &["a"]);
    let held = hold(&client, "held", v4, 10);
    assert_eq!(held.lines.servers["a"], 10, "{:?}", held.lines);

    let _b = lines(&mesh, 1, "b", "lines");
    for to in [v4, v6] {
        eventually("b takes connections", || connect_lines(&client, to, 10).servers.contains_key("b"));
        // Both draws are a's once in four times.
        let seen = connect_lines(&client, to, 400);
        assert_eq!(seen.errors, BTreeMap::new());
        share(seen.servers["b"], 400, 75.0);
    }
    drop(held);
    eventually("it is even again", || {
        let seen = connect_lines(&client, v4, 200);
        (60..140).contains(&seen.servers.get("a").copied().unwrap_or(0))
    });
}

/// The one server that answers `pod` at `to`; panics if there are two.
#[track_caller]
fn only(pod: &Pod, to: SocketAddr) -> String {
    let seen = connect_lines(pod, to, 12);
    assert!(seen.errors.is_empty() && seen.servers.len() == 1, "{}: {seen:?}", pod.name());
    seen.servers.into_keys().next().unwrap_or_default()
}

#[test]
fn maglev_keeps_a_client_at_its_endpoint_and_moves_few_when_one_goes() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &["balancing: maglev"]));
    let servers: Vec<_> =
        [(1, "a"), (2, "b"), (1, "c"), (2, "d")].map(|(node, name)| lines(&mesh, node, name, "lines")).into();
    let clients: Vec<Pod> = (0..8).map(|i| mesh.pod(1 + i % 2, &format!("client-{i}")).up()).collect();
    let targets = [at(vip4(1), 80), at(vip6(1), 80)];
    let all = || -> Vec<String> {
        targets.iter().flat_map(|&to| clients.iter().map(move |client| only(client, to))).collect()
    };
    let kept = |to| clients.iter().all(|client| connect_lines(client, to, 4).servers.len() == 1);
    within(Duration::from_secs(20), "every client has one of all endpoints", || {
        targets.into_iter().all(kept) && all().iter().collect::<BTreeSet<_>>().len() == 4
    });
    within(Duration::from_secs(10), "both nodes know all four", || all() == all());
    let before = all();

    servers[0].0.leave();
    within(Duration::from_secs(10), "nobody is at a", || {
        let seen = |to| clients.iter().any(|client| connect_lines(client, to, 4).servers.contains_key("a"));
        !targets.into_iter().any(seen)
    });
    let after = all();
    let moved = before.iter().zip(&after).filter(|(old, new)| *old != "a" && old != new).count();
    assert!(before.iter().any(|name| name == "a"), "{before:?}");
    assert!(moved <= 3, "{moved} moved without need: {before:?}, then {after:?}");
}

#[test]
fn affinity_keeps_a_client_until_its_time_is_over_and_while_others_come() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    let _servers: Vec<_> = ["a", "b", "c"].map(|name| lines(&mesh, 1, name, "lines")).into();
    let client = mesh.pod(1, "client").up();
    let [v4, v6] = [at(vip4(1), 80), at(vip6(1), 80)];
    answered(&client, v4, &["a", "b", "c"]);
    mesh.apply(&traffic("lines", &["affinity: {timeout: 1500ms}"]));
    let is_one = |to| connect_lines(&client, to, 12).servers.len() == 1;
    eventually("the client has one endpoint", || is_one(v4));
    let first = only(&client, v4);
    assert_eq!(only(&client, v6), first, "whichever address it asks for");

    // Another endpoint: the tables are new, the client stays.
    let _d = lines(&mesh, 1, "d", "lines");
    let begin = Instant::now();
    within(Duration::from_secs(10), "longer than its time, connection by connection", || {
        assert_eq!(only(&client, v4), first);
        begin.elapsed() > Duration::from_secs(2)
    });

    // Away for longer than its time, it is drawn anew: sooner or later elsewhere.
    within(Duration::from_secs(30), "the client moves", || {
        let away = Instant::now();
        within(Duration::from_secs(5), "its time is over", || away.elapsed() > Duration::from_millis(1700));
        only(&client, v4) != first
    });
}

#[test]
fn an_endpoint_that_has_just_come_gets_a_little_and_then_its_share() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &["slowStart: {window: 10s}"]));
    let _a = lines(&mesh, 1, "a", "lines");
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    answered(&client, to, &["a"]);
    let begin = Instant::now();
    let _b = lines(&mesh, 1, "b", "lines");

    let part = |count: u32| connect_lines(&client, to, count).servers.get("b").copied().unwrap_or(0);
    // In its first three seconds b has at most three tenths of its weight: at most 3 of 13.
    let (first, took) = (part(400), begin.elapsed());
    assert!(first > 0 || took > Duration::from_secs(3), "b gets something");
    assert!(first < 140 || took > Duration::from_secs(3), "{first} of 400 within {took:?}");
    within(Duration::from_secs(15), "b has its share", || {
        begin.elapsed() > Duration::from_secs(10) && (150..250).contains(&part(400))
    });
}
