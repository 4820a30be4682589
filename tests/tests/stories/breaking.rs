//! Limits and ejections in the kernel: what is too much is refused, who does not answer is left out.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    load::Load,
    node::Node,
    programs::{connect_lines, hold, line_server},
    resources::{Service, at, traffic, vip4, vip6},
    within,
};

use crate::words::{answered, lines, settled, web};

/// Established connections of `pod` to port 7000 of any endpoint, as `ss` sees them.
fn established(pod: &Pod) -> usize {
    let text = pod.run("ss", &["-H", "-t", "-n", "state", "established", "dport", "=", ":7000"]).expect("ss");
    text.lines().count()
}

fn one(errors: &str, count: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(errors.to_owned(), count)])
}

#[test]
fn a_service_takes_as_many_connections_as_it_may_and_one_more_when_one_has_ended() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    let (_a, _b) = (lines(&mesh, 1, "a", "lines"), lines(&mesh, 1, "b", "lines"));
    let client = mesh.pod(1, "client").up();
    let [v4, v6] = [at(vip4(1), 80), at(vip6(1), 80)];
    answered(&client, v4, &["a", "b"]);
    mesh.apply(&traffic("lines", &["limits: {maxConnections: 5}"]));
    eventually("the limit is in force", || {
        let held = hold_some(&client, v4, 6);
        held.lines.errors.len() == 1
    });
    eventually("all have ended", || established(&client) == 0 && mesh.node(1).live(16) == 0);
    let refused = mesh.node(1).verdict(Verdict::ServiceLimit);

    let mut held: Vec<_> = [v4, v6, v4, v6, v4].map(|to| hold_some(&client, to, 1)).into();
    assert_eq!(established(&client), 5);
    for to in [v4, v6] {
        assert_eq!(connect_lines(&client, to, 3).errors, one("ConnectionRefusedError", 3));
    }
    assert_eq!(mesh.node(1).verdict(Verdict::ServiceLimit), refused + 6);
    let labels = [("destination", "default/lines:80"), ("verdict", "service_limit")];
    assert!(mesh.node(1).metrics().count("mesh_flow_refused_total", &labels) >= 6);

    held.pop();
    eventually("there is room for one", || connect_lines(&client, v6, 1).errors.is_empty());
    held.push(hold_some(&client, v6, 1));
    assert_eq!(established(&client), 5);
    assert_eq!(connect_lines(&client, v4, 1).errors, one("ConnectionRefusedError", 1));
}

/// Held under a name of their own.
fn hold_some(client: &Pod, to: SocketAddr, count: u32) -> mesh_tests::programs::Held {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    hold(client, &format!("held-{}", NEXT.fetch_add(1, Relaxed)), to, count)
}

#[test]
fn each_endpoint_takes_its_share_and_no_more() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    let (_a, _b) = (lines(&mesh, 1, "a", "lines"), lines(&mesh, 1, "b", "lines"));
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    answered(&client, to, &["a", "b"]);
    mesh.apply(&traffic("lines", &["limits: {maxConnectionsPerEndpoint: 4}"]));
    let wanted = BTreeMap::from([("a".to_owned(), 4), ("b".to_owned(), 4)]);
    eventually("both are full and the ninth is refused", || {
        eventually("all have ended", || mesh.node(1).live(16) == 0);
        let held = hold_some(&client, to, 9);
        held.lines.servers == wanted && held.lines.errors == one("ConnectionRefusedError", 1)
    });
    assert!(mesh.node(1).verdict(Verdict::EndpointLimit) > 0);
}

const TO: [(&str, &str); 1] = [("destination", "default/lines:80")];

fn ejected(node: &Node) -> u64 {
    node.metrics().count("mesh_ejected_endpoints", &TO)
}

#[test]
fn an_endpoint_that_refuses_is_left_out_and_comes_back() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic(
        "lines",
        &["outlierEjection: {consecutiveConnectFailures: 3, baseEjectionTime: 3s, maxEjectedPercent: 50}"],
    ));
    let _a = lines(&mesh, 1, "a", "lines");
    let client = mesh.pod(1, "client").up();
    let [v4, v6] = [at(vip4(1), 80), at(vip6(1), 80)];
    answered(&client, v4, &["a"]);
    // On the other node, and nobody listens.
    let b = mesh.pod(2, "b").serves("lines", "tcp", 7000).up();

    for to in [v4, v6] {
        eventually("b is left out", || {
            connect_lines(&client, to, 5);
            ejected(mesh.node(1)) == 1
        });
        let seen = connect_lines(&client, to, 100);
        assert_eq!((seen.servers["a"], seen.errors), (100, BTreeMap::new()));
        within(Duration::from_secs(15), "its time is over", || ejected(mesh.node(1)) == 0);
    }
    assert!(mesh.node(1).metrics().count("mesh_ejections_total", &TO) >= 2);
    // It fails again, and is out for longer; then somebody listens.
    eventually("b is left out again", || {
        connect_lines(&client, v4, 5);
        ejected(mesh.node(1)) == 1
    });
    within(Duration::from_secs(10), "and meshctl says so", || {
        mesh.meshctl(&["status"], "").contains("left out for a while: default/b")
    });
    let _server = line_server(&b, 7000);
    within(Duration::from_secs(20), "b is back", || connect_lines(&client, v4, 20).servers.contains_key("b"));
    answered(&client, v6, &["a", "b"]);
}

#[test]
fn an_endpoint_that_is_silent_costs_a_short_wait_and_is_left_out() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic(
        "lines",
        &["outlierEjection: {consecutiveConnectFailures: 2, baseEjectionTime: 1m}", "connectTimeout: 600ms"],
    ));
    let _a = lines(&mesh, 1, "a", "lines");
    let (b, _b) = lines(&mesh, 2, "b", "lines");
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    answered(&client, to, &["a", "b"]);
    // A connection that is there knows nothing of the timeout.
    b.netns().ip(&[format!("route add blackhole {}/32", client.ip())]).expect("a black hole");

    let begin = std::time::Instant::now();
    let mut errors = 0;
    eventually("b is left out", || {
        let seen = connect_lines(&client, to, 1);
        assert!(seen.errors.keys().all(|cause| cause == "TimeoutError"), "{seen:?}");
        errors += seen.errors.values().sum::<u64>();
        ejected(mesh.node(1)) == 1
    });
    assert_eq!(errors, 2, "as many as it takes");
    println!("left out within {:?}", begin.elapsed());
    let seen = connect_lines(&client, to, 100);
    assert_eq!((seen.servers["a"], seen.errors), (100, BTreeMap::new()));
}

#[test]
fn no_more_are_left_out_than_may_be_and_with_too_few_left_all_are_used() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    let policy = |percent: u32| {
        let ejection = format!(
            "outlierEjection: {{consecutiveConnectFailures: 2, baseEjectionTime: 1m, maxEjectedPercent: {percent}}}"
        );
        mesh.apply(&traffic("lines", &[&ejection]));
    };
    policy(50);
    let _a = lines(&mesh, 1, "a", "lines");
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    answered(&client, to, &["a"]);
    let _dead: Vec<_> =
        ["b", "c", "d"].map(|name| mesh.pod(1, name).serves("lines", "tcp", 7000).up()).into();
    let gauge = |name| mesh.node(1).metrics().count(name, &TO);
    eventually("two of four are left out", || {
        connect_lines(&client, to, 10);
        ejected(mesh.node(1)) == 2
    });
    let seen = connect_lines(&client, to, 100);
    assert!(seen.servers["a"] > 20 && seen.errors["ConnectionRefusedError"] > 20, "{seen:?}");
    assert_eq!((ejected(mesh.node(1)), gauge("mesh_lb_panic")), (2, 0));

    policy(100);
    eventually("three of four are left out: less than half is left", || {
        connect_lines(&client, to, 10);
        ejected(mesh.node(1)) == 3 && gauge("mesh_lb_panic") == 1
    });
    let seen = connect_lines(&client, to, 200);
    assert!(seen.errors["ConnectionRefusedError"] > 100, "all four are used: {seen:?}");
}

#[test]
fn the_proxy_leaves_out_whom_the_kernel_has_ejected() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&traffic("site", &["outlierEjection: {consecutiveConnectFailures: 3, baseEjectionTime: 1m}"]));
    let _a = web(&mesh, 1, "a", "site", "http", 1);
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    settled(&client, to, &["a"]);
    let _dead = mesh.pod(1, "b").serves("site", "http", 8080).up();
    let labels = [("destination", "default/site:80")];
    let count = |name| mesh.node(1).metrics().count(name, &labels);
    // A failed connect is tried elsewhere: no request fails meanwhile.
    let requests = || Load::to(to).count(60).run(&client);
    eventually("b is left out", || {
        assert_eq!(requests().failed(), 0);
        count("mesh_ejected_endpoints") == 1
    });
    let failed = || mesh.node(1).metrics().count("mesh_upstream_failed_total", &[]);
    let before = until(Duration::from_secs(5), "the connects that failed", failed, |&n| n >= 3);
    assert_eq!(requests().failed(), 0);
    assert_eq!(failed(), before, "nobody is sent there");
}
