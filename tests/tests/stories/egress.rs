//! With an allow-list workloads open nothing to the outside but what an `ExternalService` names; who is no workload
//! of ours is refused by name.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod,
    dns::{dig, resolver},
    eventually,
    eventually::until,
    process::Process,
    programs::{connect_lines, curl, line_server, url},
    resources::{Service, at, external, mesh_egress, transport, vip4, vip6},
    tls::{Authority, reverser},
    udp::{Sockets, udp_server},
};

use crate::words::{REFUSED, lines, refused};

/// A pod outside of the mesh with line servers on 7000 and 7001, and a UDP server on 7000.
fn outside(mesh: &Mesh) -> (Pod, [Process; 3]) {
    let pod = mesh.pod(2, "outside").outside().up();
    let servers = [line_server(&pod, 7000), line_server(&pod, 7001), udp_server(&pod, 7000)];
    (pod, servers)
}

#[track_caller]
fn answered(pod: &Pod, to: SocketAddr) {
    eventually(&format!("{to} answers {}", pod.name()), || connect_lines(pod, to, 1).errors.is_empty());
}

/// What a socket of its own hears from there.
#[track_caller]
fn asks(pod: &Pod, to: SocketAddr) -> [Result<String, String>; 2] {
    let mut sockets = Sockets::of(pod);
    let unconnected = sockets.ask(1, to).map(|heard| heard.name);
    let connected = sockets.connect(2, to).and_then(|_| sockets.say(2)).map(|heard| heard.name);
    [unconnected, connected]
}

#[test]
fn an_allow_list_holds_for_all_that_is_not_named() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("db", 1).tcp("tcp", 80).yaml());
    let (db, _db) = lines(&mesh, 2, "db-0", "db");
    let _other = line_server(&db, 7009);
    let (outside, _servers) = outside(&mesh);
    let dns = mesh.pod(1, "dns").outside().up();
    let _dns = resolver(&dns, &["--host-record=www.example,192.0.2.7"]);
    let client = mesh.pod(1, "client").up();
    let own = line_server(&client, 7100);
    let [v4, v6] = [at(outside.ip(), 7000), at(outside.ip6(), 7000)];
    let beside = at(outside.ip(), 7001);
    let mapped = at(outside.ip().to_ipv6_mapped(), 7000);
    for to in [v4, v6, beside, mapped, at(vip4(1), 80)] {
        answered(&client, to);
    }
    assert_eq!(asks(&client, v4), [Ok("outside".to_owned()), Ok("outside".to_owned())]);
    let named = format!("{{name: lines, port: 80, targetPort: {}, protocol: tcp}}", v4.port());
    let addresses = format!("addresses: [{}]", v4.ip());
    mesh.apply(&external("named", &[&addresses, &format!("ports: [{named}]")]));
    mesh.apply(&mesh_egress("allowList"));
    for to in [v6, beside] {
        refused(&client, to);
    }
    // Its addresses at its ports, its name and its virtual address.
    answered(&client, v4);
    answered(&client, mapped);
    let known = until(
        Duration::from_secs(10),
        "the external service has a virtual address",
        || dig(&client, dns.ip(), &["named.default.mesh", "A"]).answers,
        |answers| !answers.is_empty(),
    );
    let vip: Ipv4Addr = known[0].trim_start_matches("A ").parse().unwrap();
    assert_eq!(connect_lines(&client, at(vip, 80), 20).servers["outside"], 20);
    // The mesh, itself, and names.
    for to in [at(vip4(1), 80), at(vip6(1), 80), at(db.ip(), 7000), at(db.ip(), 7009), at(db.ip6(), 7009)] {
        answered(&client, to);
    }
    for to in [at(Ipv4Addr::LOCALHOST, 7100), at(client.ip(), 7100), at(client.ip6(), 7100)] {
        answered(&client, to);
    }
    drop(own);
    assert_eq!(dig(&client, dns.ip(), &["www.example", "A"]).answers, ["A 192.0.2.7"]);
    assert_eq!(dig(&client, dns.ip(), &["+tcp", "www.example", "A"]).answers, ["A 192.0.2.7"]);
    for said in [asks(&client, v4), asks(&client, v6)].concat() {
        assert_eq!(said, Err("ECONNREFUSED".to_owned()));
    }
    let node = mesh.node(1);
    let before = node.verdict(Verdict::EgressDenied);
    assert_eq!(connect_lines(&client, beside, 10).errors[REFUSED], 10);
    assert_eq!(node.verdict(Verdict::EgressDenied), before + 10);
    let denied = [("destination", "outside"), ("verdict", "egress_denied")];
    eventually("it is shown", || node.metrics().count("mesh_flow_refused_total", &denied) >= 10);
    eventually("it is said", || {
        let log = node.log();
        log.contains("refused by egress") && log.contains(&beside.to_string())
    });
    // It does not take an agent.
    node.kill_agent();
    assert_eq!(connect_lines(&client, beside, 5).errors[REFUSED], 5);
    assert_eq!(connect_lines(&client, v4, 5).servers["outside"], 5);
    assert_eq!(connect_lines(&client, at(vip, 80), 5).servers["outside"], 5);
    let [sent, connected] = asks(&client, v4);
    assert!(sent.is_err() && connected.is_err());
    node.start_agent();
    node.wait_ready();
    refused(&client, beside);
    // Nobody outside of the mesh is concerned.
    let stranger = mesh.pod(1, "stranger").outside().up();
    answered(&stranger, beside);
    mesh.apply(&mesh_egress("allowAll"));
    for to in [beside, v6] {
        answered(&client, to);
    }
}

#[test]
fn a_policy_says_whose_list_it_is_and_what_is_excluded_is_not_asked() {
    let mesh = Mesh::builder().nodes(2).up();
    let (outside, _servers) = outside(&mesh);
    let free = mesh.pod(1, "free").up();
    let kept = mesh.pod(1, "kept").label("app", "kept").up();
    let unit = mesh.pod(1, "unit").label("app", "kept").on_host().up();
    let host = mesh.pod(1, "host").on_host().outside().up();
    let to = at(outside.ip(), 7000);
    let selector = "selector: {matchLabels: {app: kept}}";
    mesh.apply(&transport("kept", &[selector, "egress: {mode: allowList}"]));
    for pod in [&kept, &unit] {
        refused(pod, to);
    }
    for pod in [&free, &host] {
        answered(pod, to);
    }
    let excluded = format!("exclude: {{outbound: {{cidrs: [{}/32]}}}}", outside.ip());
    mesh.apply(&transport("kept", &[selector, "egress: {mode: allowList}", &excluded]));
    answered(&kept, to);
    answered(&unit, to);
    refused(&kept, at(outside.ip6(), 7000));
    // The nearer one counts.
    mesh.apply(&mesh_egress("allowList"));
    refused(&free, to);
    mesh.apply(&transport("kept", &[selector, "egress: {mode: allowAll}"]));
    answered(&kept, at(outside.ip6(), 7000));
    refused(&free, to);
}

/// Says what came of a TLS handshake on port 15008 with a certificate of one's own.
fn calls(pod: &Pod, to: Ipv4Addr, cert: &str, key: &str) -> String {
    let args = ["s_client", "-connect", &format!("{to}:15008"), "-alpn", "h2", "-cert", cert, "-key", key];
    match pod.run("openssl", &args) {
        Ok(said) => said,
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn who_is_of_another_trust_domain_is_refused_in_both_directions() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("db", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("far", 2).http("http", 80).yaml());
    let (db, _db) = lines(&mesh, 1, "db-0", "db");
    let client = mesh.pod(1, "client").up();
    let foreign = mesh.pod(2, "foreign").outside().up();
    let theirs = Authority::new(foreign.work(), "theirs");
    let own = theirs.issue("leaf", "URI:spiffe://other.example/ns/default/sa/default", 1);
    // They call.
    let node = mesh.node(1);
    let handshakes = |role: &str, outcome: &str| {
        node.metrics().count("mesh_hbone_handshakes_total", &[("role", role), ("outcome", outcome)])
    };
    eventually("a stranger is refused by name", || {
        calls(&foreign, db.ip(), &own.cert, &own.key);
        handshakes("server", "unknown_ca") > 0
    });
    assert_eq!(handshakes("server", "ok"), 0);
    // They are called: a workload that is said to be of this mesh, and is not.
    let _server = reverser(&foreign, 15008, &own, &["-alpn", "h2"]);
    mesh.apply(&format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {{name: far, namespace: default}}\n\
         spec: {{addresses: [{}], hbone: true, services: [{{service: far, targetPort: 80}}]}}\n",
        foreign.ip()
    ));
    let reply = until(
        Duration::from_secs(15),
        "who is called is refused",
        || curl(&client, &["-i", &url(vip4(2), 80, "/")]),
        |reply| reply.body.contains("tls_peer_untrusted"),
    );
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(handshakes("client", "unknown_ca") > 0);
    assert_eq!(handshakes("client", "ok"), 0);
}
