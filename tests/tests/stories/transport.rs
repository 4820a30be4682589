//! Transport policies: what is excluded is left alone in both directions, datagrams that nobody asked for are
//! dropped, and budgets are a policy's.

use std::{net::SocketAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    load::Load,
    process::Process,
    programs::{connect_lines, curl, line_server, nginx, url},
    resources::{Service, at, authorization, on_proxy_loss, transport, vip4, vip6},
    udp::{Sockets, dig, dnsmasq, udp_server, udp_settled},
    within,
};

use crate::words::{answered, lines, settled, web};

/// A selector of the pods labelled `app: <app>`.
fn of_app(app: &str) -> String {
    format!("selector: {{matchLabels: {{app: {app}}}}}")
}

/// A pod outside the mesh that really has the virtual addresses of service 1: who goes straight there is answered
/// by it.
#[track_caller]
fn real(mesh: &Mesh) -> Pod {
    let pod = mesh.pod(1, "real").outside().up();
    let own = [format!("{}/32", vip4(1)), format!("{}/128", vip6(1))];
    pod.netns().ip(&own.map(|own| format!("addr add {own} dev eth0"))).unwrap();
    let routes = [
        format!("route add {}/32 via {} dev pods", vip4(1), pod.ip()),
        format!("route add {}/128 via {} dev pods", vip6(1), pod.ip6()),
    ];
    mesh.node(1).netns().ip(&routes).unwrap();
    pod
}

/// Service 1, `name: tcp`, on port 7000, with the endpoint `a`; `real`; a client labelled `app: client`.
#[track_caller]
fn astray(mesh: &Mesh) -> (Vec<(Pod, Process)>, Pod) {
    mesh.apply(&Service::vip("shop", 1).tcp("tcp", 7000).yaml());
    let a = lines(mesh, 1, "a", "shop");
    let real = real(mesh);
    let server = line_server(&real, 7000);
    let client = mesh.pod(1, "client").label("app", "client").up();
    goes(&client, "a");
    (vec![a, (real, server)], client)
}

/// Waits until `pod` is answered by `name` alone at service 1's port 7000.
#[track_caller]
fn goes(pod: &Pod, name: &str) {
    for to in vips(7000) {
        answered(pod, to, &[name]);
    }
}

fn vips(port: u16) -> [SocketAddr; 2] {
    [at(vip4(1), port), at(vip6(1), port)]
}

#[test]
fn an_excluded_port_or_network_goes_straight_to_the_address_asked() {
    let mesh = Mesh::builder().up();
    let (servers, client) = astray(&mesh);
    let node = mesh.node(1);
    let networks = format!("exclude: {{outbound: {{cidrs: [{}/32, '{}/128']}}}}", vip4(1), vip6(1));
    let port = "exclude: {outbound: {ports: [7000]}}".to_owned();
    for excluded in [port, networks] {
        mesh.apply(&transport("leave", &[&of_app("client"), &excluded]));
        within(Duration::from_secs(2), "it is in force", || {
            vips(7000).iter().all(|to| connect_lines(&client, *to, 1).servers.contains_key("real"))
        });
        let before = (node.verdict(Verdict::Excluded), node.verdict(Verdict::Balanced));
        for to in vips(7000) {
            let lines = connect_lines(&client, to, 20);
            assert_eq!(lines.servers.get("real"), Some(&20), "{to}: {lines:?}");
        }
        let after = (node.verdict(Verdict::Excluded), node.verdict(Verdict::Balanced));
        assert_eq!(after, (before.0 + 40, before.1));
        // Nobody else is concerned, nor is another port of the same address.
        let other = mesh.pod(1, &format!("other-{}", excluded.len())).up();
        goes(&other, "a");
        mesh.meshctl(&["delete", "transportpolicy", "leave"], "");
        goes(&client, "a");
    }
    let labels = [("source", "default/client"), ("verdict", "excluded"), ("destination", "outside")];
    eventually("the metrics count them", || node.metrics().count("mesh_flow_opened_total", &labels) >= 80);
    drop(servers);
}

/// Connects by the interface `argv[3]`, if there is one, and prints the server's name.
const BOUND: &str = r"
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
if sys.argv[3]:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[3].encode())
s.settimeout(5)
s.connect((sys.argv[1], int(sys.argv[2])))
print(s.makefile().readline().split()[0].removeprefix('name='))
";

#[test]
fn a_socket_bound_to_an_excluded_interface_is_left_alone() {
    let mesh = Mesh::builder().up();
    let (_servers, client) = astray(&mesh);
    let by = |to: SocketAddr, interface: &str| {
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        client.run("/usr/bin/python3", &["-c", BOUND, &host, &port, interface]).unwrap_or_default()
    };
    for to in vips(7000) {
        assert_eq!(by(to, "eth0").trim(), "a", "nothing is excluded yet");
    }
    let interfaces = "exclude: {outbound: {interfaces: [eth0, net7]}}";
    mesh.apply(&transport("leave", &[&of_app("client"), interfaces]));
    for to in vips(7000) {
        eventually("a bound socket goes straight", || by(to, "eth0").trim() == "real");
        assert_eq!(by(to, "").trim(), "a", "{to}: not bound");
    }
    // An interface that comes later.
    client
        .netns()
        .ip(&["link add net7 link eth0 type macvlan mode bridge".to_owned(), "link set net7 up".to_owned()])
        .unwrap();
    let refused = mesh.node(1).verdict(Verdict::Excluded);
    eventually("the index of the new interface is known", || {
        by(vips(7000)[0], "net7");
        mesh.node(1).verdict(Verdict::Excluded) > refused
    });
}

#[test]
fn exclusions_hold_without_an_agent_and_through_its_successors() {
    let mesh = Mesh::builder().up();
    let (_servers, client) = astray(&mesh);
    let node = mesh.node(1);
    mesh.apply(&transport("leave", &["exclude: {outbound: {ports: [7000]}}"]));
    let straight = || {
        vips(7000).iter().all(|to| {
            let lines = connect_lines(&client, *to, 5);
            lines.servers.get("real") == Some(&5)
        })
    };
    eventually("it is in force", straight);
    node.kill_agent();
    assert!(straight(), "no agent");
    node.start_agent();
    for _ in 0..10 {
        assert!(straight(), "an agent starts");
    }
    node.wait_ready();
    assert!(straight(), "a new agent serves");
    node.hand_over();
    assert!(straight(), "it was taken over");
    node.wait_ready();
    mesh.meshctl(&["delete", "transportpolicy", "leave"], "");
    goes(&client, "a");
}

#[test]
fn a_port_that_is_captured_goes_straight_when_it_is_excluded() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let _a = web(&mesh, 1, "a", "site", "http", 1);
    let real = real(&mesh);
    let _nginx = nginx(&real, &[80]);
    let client = mesh.pod(1, "client").up();
    let asked = |to: SocketAddr| curl(&client, &[&url(to.ip(), to.port(), "/")]).name().to_owned();
    let answers = |name: &str| vips(80).iter().all(|to| asked(*to) == name);
    eventually("captured", || answers("a"));
    mesh.apply(&transport("leave", &["exclude: {outbound: {ports: [80]}}"]));
    eventually("straight", || answers("real"));
    let captured = mesh.node(1).verdict(Verdict::Captured);
    assert!(answers("real"));
    assert_eq!(mesh.node(1).verdict(Verdict::Captured), captured);
}

#[test]
fn the_nearest_policy_holds_and_of_two_the_older() {
    let mesh = Mesh::builder().up();
    let (_servers, client) = astray(&mesh);
    let everybody = transport("all", &["scope: mesh", "exclude: {outbound: {ports: [7000]}}"]);
    mesh.apply(&everybody.replace("namespace: default", "namespace: nodemesh"));
    goes(&client, "real");
    mesh.apply(&transport("here", &["exclude: {outbound: {}}"]));
    goes(&client, "a");
    mesh.apply(&transport("client", &[&of_app("client"), "exclude: {outbound: {ports: [1, 7000]}}"]));
    goes(&client, "real");
    let late = transport("also", &[&of_app("client"), "exclude: {outbound: {}}"]);
    mesh.apply(&late);
    let said = "spec.exclude.outbound is ruled by the older policy default/client";
    within(Duration::from_secs(10), "the younger policy says so", || {
        mesh.meshctl(&["status"], "").contains(said)
    });
    goes(&client, "real");
    let shown = mesh.meshctl(&["get", "transportpolicies"], "");
    assert!(shown.contains("app=client") && shown.contains("1,7000"), "{shown}");
    mesh.meshctl(&["delete", "transportpolicy", "client"], "");
    goes(&client, "a");
}

#[test]
fn an_excluded_port_is_not_handed_to_the_proxy_and_is_authorised_all_the_same() {
    let mesh = Mesh::builder().nodes(2).up();
    let service = Service::vip("in", 1).port("one", 7000, "tcp", "proxy").port("two", 7001, "tcp", "proxy");
    mesh.apply(&service.yaml());
    mesh.apply(&on_proxy_loss("in", "refuse"));
    let pod = mesh.pod(1, "db-0").label("app", "db");
    let mut db = pod.serves("in", "one", 7000).serves("in", "two", 7001).outside().up();
    let _servers = [line_server(&db, 7000), line_server(&db, 7001)];
    db.enrol();
    let clients = [mesh.pod(1, "near").account("near").up(), mesh.pod(2, "far").up()];
    let node = mesh.node(1);
    let ways = |port| [at(db.ip(), port), at(db.ip6(), port), at(vip4(1), port), at(vip6(1), port)];
    for client in &clients {
        for port in [7000, 7001] {
            for to in ways(port) {
                answered(client, to, &["db-0"]);
            }
        }
    }
    mesh.apply(&transport("in", &[&of_app("db"), "exclude: {inbound: {ports: [7000]}}"]));
    eventually("it is in force", || {
        let before = node.verdict(Verdict::InboundCaptured);
        connect_lines(&clients[1], at(db.ip(), 7000), 2);
        node.verdict(Verdict::InboundCaptured) == before
    });
    let before = (node.verdict(Verdict::InboundExcluded), node.verdict(Verdict::InboundCaptured));
    for client in &clients {
        for to in ways(7000) {
            assert_eq!(connect_lines(client, to, 5).servers.get("db-0"), Some(&5), "{to}");
        }
    }
    // A late segment of a connection that has ended is looked up as well.
    let after = (node.verdict(Verdict::InboundExcluded), node.verdict(Verdict::InboundCaptured));
    assert!((before.0 + 40..before.0 + 60).contains(&after.0) && after.1 == before.1, "{before:?} {after:?}");
    // Without a proxy the port that needs it is closed, and the excluded one is not.
    node.kill_agent();
    for to in ways(7000) {
        assert_eq!(connect_lines(&clients[1], to, 3).servers.get("db-0"), Some(&3), "{to}");
        let refused = connect_lines(&clients[1], at(to.ip(), 7001), 3);
        assert_eq!(refused.errors.get("ConnectionRefusedError"), Some(&3), "{to}: {refused:?}");
    }
    node.start_agent();
    node.wait_ready();
    // By the caller's address.
    let far = format!("exclude: {{inbound: {{cidrs: [{}/32, '{}']}}}}", clients[1].ip(), clients[1].ip6());
    mesh.apply(&transport("in", &[&of_app("db"), &far]));
    let counted = |client: &Pod, to| {
        let before = node.verdict(Verdict::InboundExcluded);
        answered(client, to, &["db-0"]);
        node.verdict(Verdict::InboundExcluded) > before
    };
    for to in ways(7001) {
        eventually("the far caller is left alone", || counted(&clients[1], to));
        assert!(!counted(&clients[0], to), "{to}: the near one is not");
    }
    // It is no way around an authorisation.
    mesh.apply(&transport("in", &[&of_app("db"), "exclude: {inbound: {ports: [7000, 7001]}}"]));
    mesh.apply(&authorization("db", "db", "allow", "[{from: [{serviceAccounts: [near]}]}]"));
    for to in ways(7000) {
        eventually("the far caller is refused", || {
            connect_lines(&clients[1], to, 3).errors.get("ConnectionRefusedError") == Some(&3)
        });
        answered(&clients[0], to, &["db-0"]);
    }
    // Nor does a caller whose connections are left alone lose its proof.
    mesh.apply(&transport("near", &["exclude: {outbound: {ports: [7000]}}"]));
    let direct = [at(db.ip(), 7000), at(db.ip6(), 7000)];
    eventually("the caller is left alone", || {
        let before = node.verdict(Verdict::Excluded);
        for to in &direct {
            answered(&clients[0], *to, &["db-0"]);
        }
        node.verdict(Verdict::Excluded) > before
    });
}

#[test]
fn udp_deny_drops_questions_and_lets_answers_in() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    mesh.apply(&Service::vip("names", 2).udp("dns", 53).tcp("dns-tcp", 53).yaml());
    let pod = mesh.pod(1, "quiet").label("app", "quiet").account("quiet");
    let mut quiet = pod.serves("time", "udp", 9000).outside().up();
    // A port that is declared, and one that is not.
    let _servers = [udp_server(&quiet, 9000), udp_server(&quiet, 9001)];
    quiet.enrol();
    let mut dns = mesh.pod(2, "dns").serves("names", "dns", 53).serves("names", "dns-tcp", 53).outside().up();
    let _dns = (dnsmasq(&dns, 53), udp_server(&dns, 9002));
    dns.enrol();
    let callers = [mesh.pod(1, "near").up(), mesh.pod(2, "far").up(), mesh.pod(2, "stranger").outside().up()];
    let own = |port| [at(quiet.ip(), port), at(quiet.ip6(), port)];
    for caller in &callers {
        for to in own(9000).into_iter().chain(own(9001)) {
            udp_settled(caller, to, &["quiet"]);
        }
    }
    let tcp = line_server(&quiet, 7000);

    mesh.apply(&transport("quiet", &[&of_app("quiet"), "udp: deny"]));
    let node = mesh.node(1);
    // A connected socket hears that the port is unreachable, and need not wait.
    let silent = |caller: &Pod, to| {
        let mut sockets = Sockets::of(caller);
        sockets.connect(0, to).is_ok() && sockets.say(0) == Err("ECONNREFUSED".to_owned())
    };
    for caller in &callers {
        let vips = [at(vip4(1), 80), at(vip6(1), 80)];
        let to_vips = if caller.name() == "stranger" { &[][..] } else { &vips[..] };
        for to in own(9000).iter().chain(&own(9001)).chain(to_vips) {
            eventually(&format!("{to} does not answer {}", caller.name()), || silent(caller, *to));
        }
        answered(caller, at(quiet.ip(), 7000), &["quiet"]);
        answered(caller, at(quiet.ip6(), 7000), &["quiet"]);
    }
    let denied = node.verdict(Verdict::UdpDenied);
    assert!(Sockets::of(&callers[1]).ask(0, own(9000)[0]).is_err());
    assert!(node.verdict(Verdict::UdpDenied) > denied);

    // Its own questions are answered: by name, connected or not, service or not.
    let mut sockets = Sockets::of(&quiet);
    for (number, to) in [at(dns.ip(), 9002), at(dns.ip6(), 9002)].into_iter().enumerate() {
        let number = u32::try_from(number).unwrap();
        let heard = sockets.ask(number, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!((heard.name.as_str(), heard.from), ("dns", to));
        // From where it asked nobody else is heard.
        let port: SocketAddr = heard.peer.parse().unwrap_or_else(|_| {
            let (address, port) = heard.peer.rsplit_once(':').unwrap();
            at(address.parse::<std::net::IpAddr>().unwrap(), port.parse().unwrap())
        });
        assert!(silent(&callers[1], port), "{port} answers somebody else");
        sockets.connect(10 + number, to).unwrap();
        assert_eq!(sockets.say(10 + number).map(|heard| heard.name), Ok("dns".to_owned()), "{to}");
    }
    for to in [at(vip4(2), 53), at(vip6(2), 53)] {
        eventually("dig is answered", || dig(&quiet, to, &[]).is_ok_and(|name| name == "dns"));
    }
    // It takes no agent, and one that comes does not open anything.
    node.kill_agent();
    assert!(silent(&callers[0], own(9000)[0]) && sockets.ask(0, at(dns.ip(), 9002)).is_ok());
    node.start_agent();
    for to in own(9001) {
        assert!(silent(&callers[2], to), "an agent starts");
    }
    node.wait_ready();
    assert!(silent(&callers[2], own(9001)[1]));
    // With policies for TCP beside it both hold.
    mesh.apply(&authorization("quiet", "quiet", "allow", "[{from: [{serviceAccounts: [nobody]}]}]"));
    eventually("TCP is closed, too", || {
        !connect_lines(&callers[0], at(quiet.ip(), 7000), 1).errors.is_empty()
    });
    assert!(silent(&callers[1], own(9000)[1]) && sockets.ask(1, at(dns.ip6(), 9002)).is_ok());

    // What is excluded comes through, unless a policy refuses it; the rest follows when the policy goes.
    let exclude = "exclude: {inbound: {ports: [9000]}}";
    mesh.apply(&transport("quiet", &[&of_app("quiet"), "udp: deny", exclude]));
    for to in own(9000) {
        eventually("the policy refuses what is excluded", || {
            let before = node.verdict(Verdict::DeniedByPolicy);
            Sockets::of(&callers[1]).ask(0, to).is_err() && node.verdict(Verdict::DeniedByPolicy) > before
        });
    }
    mesh.meshctl(&["delete", "authorizationpolicy", "quiet"], "");
    for caller in &callers {
        for to in own(9000) {
            udp_settled(caller, to, &["quiet"]);
        }
        for to in own(9001) {
            assert!(silent(caller, to), "{to}");
        }
    }
    mesh.meshctl(&["delete", "transportpolicy", "quiet"], "");
    for to in own(9001) {
        udp_settled(&callers[1], to, &["quiet"]);
    }
    drop(tcp);
}

#[test]
fn a_policy_sets_the_budget_of_those_that_it_is_for() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let _a = web(&mesh, 1, "a", "site", "http", 1);
    let greedy = mesh.pod(1, "greedy").label("app", "greedy").up();
    let modest = mesh.pod(1, "modest").up();
    for pod in [&greedy, &modest] {
        settled(pod, at(vip4(1), 80), &["a"]);
    }
    mesh.apply(&transport("greedy", &[&of_app("greedy"), "budget: {connections: 10, pending: 16}"]));
    let dropped = || mesh.node(1).metrics().count("mesh_proxy_dropped_total", &[]);
    let flood = Load::to(at(vip4(1), 80)).keep_alive().threads(30).rate(300).start(&greedy);
    until(Duration::from_secs(10), "the flood is refused", dropped, |count| *count > 0);
    let report = Load::to(at(vip6(1), 80)).keep_alive().threads(20).rate(200).count(400).run(&modest);
    assert_eq!((report.ok, report.failed()), (400, 0), "{report:?}");
    let report = flood.stop();
    assert!(report.ok > 0 && report.failed() > 0, "{report:?}");

    mesh.meshctl(&["delete", "transportpolicy", "greedy"], "");
    within(Duration::from_secs(5), "the agent's own budget holds again", || {
        Load::to(at(vip4(1), 80)).keep_alive().threads(20).count(100).run(&greedy).failed() == 0
    });
}

#[test]
fn exclusions_that_do_not_fit_are_named_and_exclude_nothing() {
    let mesh = Mesh::builder().agent_args(&["--map-exclude", "4", "--map-exclude-cidrs", "1"]).up();
    let (_servers, client) = astray(&mesh);
    let status = || mesh.meshctl(&["status"], "");
    let policy = |exclude: &str| {
        mesh.apply(&transport("leave", &[&of_app("client"), &format!("exclude: {{outbound: {exclude}}}")]));
    };
    policy("{ports: [1, 2, 3, 4, 7000]}");
    until(Duration::from_secs(10), "the condition names the map", status, |text| {
        text.contains("TransportPolicy default/leave for workload default/client")
            && text.contains("map EXCLUDE is full (4 entries): 5 are needed, 4 are free: raise --map-exclude")
    });
    goes(&client, "a");
    policy("{ports: [7000], cidrs: [10.0.0.0/8, 11.0.0.0/8]}");
    until(Duration::from_secs(10), "it names the other map", status, |text| {
        text.contains("map EXCLUDE_CIDRS is full")
    });
    goes(&client, "a");
    policy("{ports: [1, 2, 3, 7000]}");
    until(Duration::from_secs(10), "it fits", status, |text| !text.contains("TransportPolicy"));
    goes(&client, "real");
    // The room of a workload that has gone is another's.
    let other = mesh.pod(1, "other").label("app", "client").up();
    until(Duration::from_secs(10), "it does not fit twice", status, |text| {
        text.contains("for workload default/other")
    });
    client.leave();
    goes(&other, "real");
}

#[test]
fn what_is_wrong_is_refused_with_its_place() {
    let mesh = Mesh::builder().up();
    let wrong = [
        ("exclude: {outbound: {ports: [80, 0]}}", "spec.exclude.outbound.ports[1]", "1..=65535"),
        ("exclude: {inbound: {ports: [65536]}}", "spec.exclude.inbound.ports[0]", "1..=65535"),
        ("exclude: {outbound: {cidrs: [10.0.0.1/8]}}", "spec.exclude.outbound.cidrs[0]", "zeros behind"),
        ("exclude: {inbound: {interfaces: [a/b]}}", "spec.exclude.inbound.interfaces[0]", "1..=15"),
        ("exclude: {inbound: {users: [0]}}", "spec.exclude.inbound.users", "ports, cidrs, interfaces"),
        ("mtls: {mode: mutual}", "spec.mtls.mode", "permissive"),
        ("splice: sometimes", "spec.splice", "true or false"),
        ("udp: sometimes", "spec.udp", "allow, deny"),
        ("budget: {pending: 20000}", "spec.budget.pending", "1..=16384"),
        ("scope: mesh", "spec.scope", "nodemesh"),
    ];
    for (line, path, accepted) in wrong {
        let error = mesh.try_meshctl(&["apply", "-f", "-"], &transport("bad", &[line])).expect_err(line);
        let text = format!("{error:#}");
        assert!(text.contains(path) && text.contains(accepted), "{line}: {text}");
    }
    assert!(!mesh.meshctl(&["get", "transportpolicies"], "").contains("bad"));
}
