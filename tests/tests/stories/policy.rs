//! Who may connect is decided in the kernel: by account on one node, by address between nodes; a change ends
//! what it no longer allows; what does not fit is closed.

use std::{net::SocketAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    load::Load,
    process::Process,
    programs::{connect_lines, curl, line_server, nginx, url},
    resources::{Service, at, authorization, vip4, vip6},
    within,
};

use crate::words::{REFUSED, connect_from, refused, settled};

/// A pod labelled `app: db` with line servers on 7000 and 7001, behind the service `db` (number 1).
fn db(mesh: &Mesh, node: u8) -> (Pod, [Process; 2]) {
    mesh.apply(&Service::vip("db", 1).tcp("one", 7000).tcp("two", 7001).yaml());
    let pod = mesh.pod(node, "db-0").label("app", "db").account("db");
    let mut pod = pod.serves("db", "one", 7000).serves("db", "two", 7001).outside().up();
    let servers = [line_server(&pod, 7000), line_server(&pod, 7001)];
    pod.enrol();
    (pod, servers)
}

/// A pod of its own service account.
fn caller(mesh: &Mesh, node: u8, name: &str) -> Pod {
    mesh.pod(node, name).account(name).up()
}

fn from(account: &str) -> String {
    format!("[{{from: [{{serviceAccounts: [{account}]}}]}}]")
}

/// Every way to a port of the database: virtual and own addresses of both families.
fn ways(db: &Pod, port: u16) -> [SocketAddr; 4] {
    [at(vip4(1), port), at(vip6(1), port), at(db.ip(), port), at(db.ip6(), port)]
}

#[track_caller]
fn answered(pod: &Pod, to: SocketAddr) {
    eventually(&format!("{to} answers {}", pod.name()), || connect_lines(pod, to, 1).errors.is_empty());
    let lines = connect_lines(pod, to, 5);
    assert_eq!(lines.servers.values().sum::<u64>(), 5, "{to} from {}: {lines:?}", pod.name());
}

/// What `meshctl authz check` says is what has just been seen.
fn said_of_them(mesh: &Mesh, thief: &Pod, cart: &Pod) {
    let check = |who: &str| mesh.meshctl(&["authz", "check", who, "db", "-p", "7000"], "");
    let (thief, cart) = (check(thief.name()), check(cart.name()));
    assert!(
        thief.contains("refused") && thief.contains("no rule of AuthorizationPolicy default/db"),
        "{thief}"
    );
    assert!(
        cart.contains("allowed") && cart.contains("rules[0] of AuthorizationPolicy default/db"),
        "{cart}"
    );
    assert!(cart.contains("default/db-0") && cart.contains("the kernel of their node"), "{cart}");
    let other =
        mesh.meshctl(&["authz", "check", "spiffe://mesh.local/ns/default/sa/cart", "db-0", "-p", "1"], "");
    assert!(other.contains("allowed"), "{other}");
    let error = mesh.try_meshctl(&["authz", "check", "cart", "nobody"], "").expect_err("nobody is there");
    assert!(format!("{error:#}").contains("there is no workload nobody"), "{error:#}");
}

#[test]
fn an_allowed_account_connects_and_others_are_refused_counted_and_named() {
    let mesh = Mesh::builder().up();
    let (db, _servers) = db(&mesh, 1);
    let (cart, thief) = (caller(&mesh, 1, "cart"), caller(&mesh, 1, "thief"));
    for to in ways(&db, 7000) {
        answered(&thief, to);
    }
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    for to in ways(&db, 7000) {
        refused(&thief, to);
        answered(&cart, to);
    }
    said_of_them(&mesh, &thief, &cart);
    let node = mesh.node(1);
    let before = node.verdict(Verdict::DeniedByPolicy);
    for to in ways(&db, 7001) {
        assert_eq!(connect_lines(&thief, to, 10).errors[REFUSED], 10);
    }
    assert_eq!(node.verdict(Verdict::DeniedByPolicy), before + 40);
    let counted = || {
        let labels = [("source", "default/thief"), ("verdict", "denied_by_policy")];
        node.metrics().count("mesh_flow_refused_total", &labels)
    };
    assert!(counted() >= 40);
    eventually("the log says who, whom and why", || {
        node.log().lines().any(|line| {
            line.contains("default/thief")
                && line.contains("default/db-0")
                && line.contains("allowed by no rule of AuthorizationPolicy default/db")
        })
    });
    // It does not take an agent.
    node.kill_agent();
    assert_eq!(connect_lines(&thief, at(db.ip(), 7000), 5).errors[REFUSED], 5);
    assert_eq!(connect_lines(&cart, at(db.ip6(), 7000), 5).servers["db-0"], 5);
    node.start_agent();
    node.wait_ready();
    for to in ways(&db, 7000) {
        refused(&thief, to);
        answered(&cart, to);
    }
    // A workload may always call itself, and what no policy selects is everybody's.
    answered(&db, at(vip4(1), 7000));
    let _other = line_server(&cart, 7002);
    answered(&thief, at(cart.ip(), 7002));
}

#[test]
fn deny_comes_before_allow_and_a_port_is_a_term() {
    let mesh = Mesh::builder().up();
    let (db, _servers) = db(&mesh, 1);
    let (cart, pay) = (caller(&mesh, 1, "cart"), caller(&mesh, 1, "pay"));
    let ports = "[{from: [{serviceAccounts: [cart, pay]}]}]";
    mesh.apply(&authorization("allow", "db", "allow", ports));
    mesh.apply(&authorization(
        "deny",
        "db",
        "deny",
        "[{from: [{serviceAccounts: [pay]}], to: [{ports: [7001]}]}]",
    ));
    for port in [7000, 7001] {
        for to in ways(&db, port) {
            answered(&cart, to);
            if port == 7001 { refused(&pay, to) } else { answered(&pay, to) }
        }
    }
    mesh.meshctl(&["delete", "authorizationpolicy", "deny"], "");
    answered(&pay, at(vip4(1), 7001));
}

#[test]
fn an_empty_policy_closes_the_namespace() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh, 1);
    let (near, far) = (caller(&mesh, 1, "near"), caller(&mesh, 2, "far"));
    mesh.apply(&authorization("nobody", "", "allow", "[]"));
    for to in ways(&db, 7000) {
        refused(&near, to);
        refused(&far, to);
    }
    let shown = mesh.meshctl(&["get", "authorizationpolicies"], "");
    assert!(shown.contains("nobody") && shown.contains("allow"), "{shown}");
    mesh.apply(&authorization("near", "db", "allow", &from("near")));
    for to in ways(&db, 7000) {
        answered(&near, to);
        refused(&far, to);
    }
}

#[test]
fn a_caller_of_another_node_is_known_by_its_address_alone() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh, 1);
    let (one, other) = (caller(&mesh, 2, "one"), caller(&mesh, 2, "other"));
    let near = caller(&mesh, 1, "near");
    let cidrs = format!("[{{from: [{{cidrs: [{}/32, '{}/128']}}]}}]", one.ip(), one.ip6());
    mesh.apply(&authorization("db", "db", "allow", &cidrs));
    let node = mesh.node(1);
    for to in ways(&db, 7000) {
        answered(&one, to);
        refused(&other, to);
        refused(&near, to);
    }
    assert!(node.verdict(Verdict::DeniedByPolicy) > 0);
    eventually("the log names the address", || {
        node.log()
            .lines()
            .any(|line| line.contains("refused by policy") && line.contains(&other.ip().to_string()))
    });
    // Nobody has proved the account of a caller of another node: allowed it is not, denied it is.
    mesh.apply(&authorization("db", "db", "allow", &from("one")));
    for to in ways(&db, 7000) {
        refused(&one, to);
    }
    mesh.apply(&authorization("db", "db", "deny", &from("somebody")));
    for to in ways(&db, 7000) {
        refused(&one, to);
        answered(&near, to);
    }
}

#[test]
fn a_change_ends_what_it_no_longer_allows_and_nothing_else() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("web", 2).tcp("tcp", 80).yaml());
    let mut server = mesh.pod(1, "web-0").label("app", "web").serves("web", "tcp", 8080).outside().up();
    let _nginx = nginx(&server, &[8080]);
    server.enrol();
    let pods = [caller(&mesh, 1, "cart"), caller(&mesh, 1, "thief"), caller(&mesh, 2, "far")];
    let to = at(vip4(2), 80);
    for pod in &pods {
        settled(pod, to, &["web-0"]);
    }
    // They begin before there is any policy: nobody has asked them for a proof then.
    let load = |pod: &Pod, to| Load::to(to).keep_alive().rate(50).start(pod);
    let loads: Vec<_> = pods.iter().flat_map(|pod| [load(pod, to), load(pod, at(vip6(2), 80))]).collect();
    for load in &loads {
        load.go_on(5);
    }
    mesh.apply(&authorization("web", "web", "allow", &from("cart")));
    for load in &loads[2..] {
        within(Duration::from_secs(5), "the others' connections are cut", || load.now().failed() > 0);
    }
    for load in &loads[..2] {
        let report = load.go_on(50);
        assert_eq!(report.failed(), 0, "{report:?}");
    }
    eventually("their ends are counted", || {
        mesh.node(1).metrics().count("mesh_policy_ended_total", &[]) >= 4
    });
}

#[test]
fn an_address_that_was_taken_proves_nothing() {
    let mesh = Mesh::builder().up();
    let (db, _servers) = db(&mesh, 1);
    let cart = caller(&mesh, 1, "cart");
    let (thief, stranger) = (caller(&mesh, 1, "thief"), mesh.pod(1, "stranger").outside().up());
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    refused(&thief, at(db.ip(), 7000));
    for (source, to) in
        [(cart.ip().to_string(), at(db.ip(), 7000)), (cart.ip6().to_string(), at(db.ip6(), 7000))]
    {
        answered(&cart, to);
        let length = if to.is_ipv6() { 128 } else { 32 };
        for pod in [&thief, &stranger] {
            pod.netns().ip(&[format!("addr add {source}/{length} dev eth0 nodad")]).unwrap();
            let before = mesh.node(1).verdict(Verdict::DeniedByPolicy);
            let said = connect_from(pod, &source, to);
            assert!(!said.contains("answered"), "{} as {source}: {said}", pod.name());
            eventually("it is counted", || mesh.node(1).verdict(Verdict::DeniedByPolicy) > before);
            pod.netns().ip(&[format!("addr del {source}/{length} dev eth0")]).unwrap();
        }
        answered(&cart, to);
    }
}

#[test]
fn an_address_that_it_was_not_enrolled_with_is_no_way_around() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh, 1);
    let (cart, far) = (caller(&mesh, 1, "cart"), caller(&mesh, 2, "far"));
    let ways = [at([10, 91, 1, 250], 7000), at([0xfd91, 0, 0, 1, 0, 0, 0, 0xfa], 7000)];
    let lines = ["addr add 10.91.1.250/24 dev eth0", "addr add fd91:0:0:1::fa/64 dev eth0 nodad"];
    db.netns().ip(&lines.map(str::to_owned)).unwrap();
    for to in ways {
        answered(&cart, to);
        answered(&far, to);
    }
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    for to in ways {
        refused(&cart, to);
        refused(&far, to);
    }
    answered(&cart, at(db.ip(), 7000));
    mesh.meshctl(&["delete", "authorizationpolicy", "db"], "");
    for to in ways {
        answered(&far, to);
    }
}

#[test]
fn a_policy_that_does_not_fit_closes_its_own_workloads_and_says_so() {
    let mesh = Mesh::builder().agent_args(&["--map-policy", "1"]).up();
    let (db, _servers) = db(&mesh, 1);
    let cart = caller(&mesh, 1, "cart");
    let _other = line_server(&cart, 7002);
    answered(&cart, at(vip4(1), 7000));
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    for to in ways(&db, 7000) {
        refused(&cart, to);
    }
    assert!(mesh.node(1).verdict(Verdict::PolicyFull) > 0);
    answered(&db, at(cart.ip(), 7002));
    within(Duration::from_secs(10), "meshctl names policy and map", || {
        let status = mesh.meshctl(&["status"], "");
        status.contains("AuthorizationPolicy default/db") && status.contains("--map-policy")
    });
    mesh.meshctl(&["delete", "authorizationpolicy", "db"], "");
    for to in ways(&db, 7000) {
        answered(&cart, to);
    }
    within(Duration::from_secs(10), "the condition ends", || {
        !mesh.meshctl(&["status"], "").contains("--map-policy")
    });
}

#[test]
fn the_proxy_asks_the_same_policies() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 3).http("http", 80).port("in", 81, "tcp", "proxy").yaml());
    let pod =
        mesh.pod(1, "site-0").label("app", "site").serves("site", "http", 8080).serves("site", "in", 8081);
    let mut pod = pod.outside().up();
    let _nginx = nginx(&pod, &[8080, 8081]);
    pod.enrol();
    let (cart, thief) = (caller(&mesh, 1, "cart"), caller(&mesh, 1, "thief"));
    settled(&thief, at(vip4(3), 80), &["site-0"]);
    mesh.apply(&authorization("site", "site", "allow", &from("cart")));
    for vip in [url(vip4(3), 80, "/"), url(vip6(3), 80, "/")] {
        eventually("the proxy refuses", || curl(&thief, &[&vip]).status == 403);
        let reply = curl(&thief, &["-i", &vip]);
        assert!(reply.body.contains("denied_by_policy"), "{reply:?}");
        assert_eq!(curl(&cart, &[&vip]).status, 200);
    }
    for vip in [url(vip4(3), 81, "/"), url(vip6(3), 81, "/")] {
        assert_eq!(curl(&thief, &[&vip]).exit, 7, "could not connect");
        assert_eq!(curl(&cart, &[&vip]).status, 200);
    }
}

#[test]
fn a_workload_that_comes_while_the_control_plane_is_away_has_its_policies() {
    let mesh = Mesh::builder().up();
    let thief = caller(&mesh, 1, "thief");
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    eventually("the policy is on the node's disk", || mesh.node(1).has_on_disk("AuthorizationPolicy"));
    mesh.kill_control();
    let mut db = mesh.pod(1, "db-0").label("app", "db").outside().up();
    let _server = line_server(&db, 7000);
    let _ = db.try_enrol();
    for to in [at(db.ip(), 7000), at(db.ip6(), 7000)] {
        assert_eq!(connect_lines(&thief, to, 5).errors.get(REFUSED), Some(&5), "{to}");
    }
    // Nor do they go when it is back and knows better.
    mesh.start_control();
    eventually("the control plane knows it", || mesh.meshctl(&["get", "workloads"], "").contains("db-0"));
    assert_eq!(connect_lines(&thief, at(db.ip(), 7000), 5).errors.get(REFUSED), Some(&5));
}
