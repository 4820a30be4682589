//! UDP on the kernel path: connected and unconnected sockets, both families; replies come from where was asked.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    load::Load,
    process::Process,
    resources::{Service, at, l4_route, mapped, vip4, vip6},
    udp::{Sockets, dig, dnsmasq, quic, quic_server, udp_server, udp_settled},
    within,
};

use crate::words::{flows, flows_become, settled, share, web};

/// A pod that answers datagrams on 9000 and serves `port_name` of `service` with `weight`.
#[track_caller]
fn answerer(mesh: &Mesh, node: u8, name: &str, service: &str, weight: u32) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).serves(service, "udp", 9000).weight(weight).outside().up();
    let server = udp_server(&pod, 9000);
    pod.enrol();
    (pod, server)
}

/// Asks from `count` new sockets, each once; by the name of who answered. Every answer comes from `to`.
#[track_caller]
fn ask(pod: &Pod, to: SocketAddr, connected: bool, count: u32) -> BTreeMap<String, u64> {
    let mut sockets = Sockets::of(pod);
    let mut names = BTreeMap::new();
    for socket in 0..count {
        let heard = if connected {
            assert_eq!(sockets.connect(socket, to), Ok(to), "getpeername()");
            sockets.say(socket)
        } else {
            sockets.ask(socket, to)
        };
        let heard = heard.unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(heard.from, to, "recvfrom()");
        sockets.close(socket);
        *names.entry(heard.name).or_default() += 1;
    }
    names
}

#[test]
fn sockets_follow_the_weights_over_v4_v6_and_mapped() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let _a = answerer(&mesh, 1, "a", "time", 3);
    let _b = answerer(&mesh, 2, "b", "time", 1);
    let client = mesh.pod(1, "client").up();
    let node = mesh.node(1);

    for to in [at(vip4(1), 80), at(vip6(1), 80), mapped(1, 80)] {
        udp_settled(&client, to, &["a", "b"]);
        for connected in [false, true] {
            let before = (flows(node, "opened", "time:80", "kernel"), node.verdict(Verdict::Balanced));
            let names = ask(&client, to, connected, 400);
            share(names["a"], 400, 75.0);
            flows_become(node, "opened", "time:80", "kernel", before.0 + 400);
            assert_eq!(node.verdict(Verdict::Balanced), before.1 + 400);
        }
    }
    let labels = [("destination", "default/time:80"), ("source", "default/client"), ("protocol", "udp")];
    assert_eq!(
        node.metrics().count("mesh_flow_opened_total", &labels),
        flows(node, "opened", "time:80", "kernel"),
    );
    assert_eq!(flows(node, "closed", "time:80", "kernel"), 0, "nothing ends a conversation");
}

#[test]
fn the_server_sees_the_client_and_its_replies_are_not_counted() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let _a = answerer(&mesh, 1, "a", "time", 1);
    let client = mesh.pod(1, "client").up();
    udp_settled(&client, at(vip4(1), 80), &["a"]);
    let mut sockets = Sockets::of(&client);
    let direct = mesh.node(1).verdict(Verdict::Direct);
    for (to, own) in [(at(vip4(1), 80), client.ip().to_string()), (at(vip6(1), 80), client.ip6().to_string())]
    {
        let socket = u32::from(to.is_ipv6());
        let heard = sockets.ask(socket, to).expect("an answer");
        assert!(heard.peer.starts_with(&format!("{own}:")), "{heard:?}");
    }
    let totals = mesh.node(1).metrics();
    assert_eq!(totals.count("mesh_flow_opened_total", &[("source", "default/a")]), 0);
    assert_eq!(mesh.node(1).verdict(Verdict::Direct), direct);
}

#[test]
fn a_socket_stays_with_its_endpoint_until_that_is_withdrawn() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let mut pods = vec![answerer(&mesh, 1, "a", "time", 1), answerer(&mesh, 2, "b", "time", 1)];
    let client = mesh.pod(1, "client").up();
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        udp_settled(&client, to, &["a", "b"]);
    }
    let mut sockets = Sockets::of(&client);
    // One socket a family, and as many as it takes to have one on each of two endpoints.
    let held: Vec<(u32, SocketAddr)> =
        (0..16).map(|i| (i, if i % 2 == 0 { at(vip4(1), 80) } else { at(vip6(1), 80) })).collect();
    let named = |sockets: &mut Sockets| -> Vec<String> {
        held.iter().map(|(socket, to)| sockets.ask(*socket, *to).expect("an answer").name).collect()
    };
    let first = named(&mut sockets);
    assert!(first.iter().any(|name| name == "a") && first.iter().any(|name| name == "b"), "{first:?}");
    for _ in 0..10 {
        assert_eq!(named(&mut sockets), first);
    }

    // The tables change, their endpoints stay.
    pods.push(answerer(&mesh, 1, "c", "time", 5));
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        udp_settled(&client, to, &["a", "b", "c"]);
    }
    assert_eq!(named(&mut sockets), first);

    // Withdrawn: it would still answer, and is not asked any more.
    pods[1].0.leave();
    eventually("no socket is with b", || named(&mut sockets).iter().all(|name| name != "b"));
    let second = named(&mut sockets);
    for (before, after) in first.iter().zip(&second) {
        assert!(before == after || before == "b", "{first:?} became {second:?}");
    }
    assert_eq!(named(&mut sockets), second);
}

#[test]
fn a_silent_socket_is_given_an_endpoint_anew() {
    let mesh = Mesh::builder().agent_args(&["--udp-idle-seconds", "3"]).up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let _a = answerer(&mesh, 1, "a", "time", 1);
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    udp_settled(&client, to, &["a"]);
    let before = flows(mesh.node(1), "opened", "time:80", "kernel");
    let mut sockets = Sockets::of(&client);
    for _ in 0..12 {
        sockets.ask(0, to).expect("an answer");
        sockets.rest(Duration::from_millis(300));
    }
    flows_become(mesh.node(1), "opened", "time:80", "kernel", before + 1);
    sockets.rest(Duration::from_millis(3200));
    assert_eq!(sockets.ask(0, to).expect("an answer").from, to);
    flows_become(mesh.node(1), "opened", "time:80", "kernel", before + 2);
}

#[test]
fn one_socket_speaks_with_many_services() {
    let mesh = Mesh::builder().nodes(2).up();
    // The last three share the first one's endpoint.
    let (ports, numbers) = (9001..=9009, 1..=12);
    let port = |number: u8| if number > 9 { 9001 } else { 9000 + u16::from(number) };
    let mut server = mesh.pod(2, "many");
    for number in numbers.clone() {
        mesh.apply(&Service::vip(&format!("s{number}"), number).udp("udp", 80).yaml());
        server = server.serves(&format!("s{number}"), "udp", port(number));
    }
    let mut server = server.outside().up();
    let _programs: Vec<_> = ports.map(|port| udp_server(&server, port)).collect();
    server.enrol();
    let client = mesh.pod(1, "client").up();
    for number in numbers.clone() {
        udp_settled(&client, at(vip4(number), 80), &["many"]);
    }
    let mut sockets = Sockets::of(&client);
    for _ in 0..20 {
        for number in numbers.clone() {
            for (socket, to) in
                [(0, at(vip4(number), 80)), (1, at(vip6(number), 80)), (1, mapped(number, 80))]
            {
                assert_eq!(sockets.ask(socket, to).map(|heard| heard.from), Ok(to));
            }
        }
    }
    // Connected to one, it asks others, and is heard by none but the one; disconnected again by a new connect.
    let (one, two) = (at(vip4(1), 80), at(vip4(2), 80));
    assert_eq!(sockets.connect(2, one), Ok(one));
    assert_eq!(sockets.ask(2, one).map(|heard| heard.from), Ok(one));
    assert_eq!(sockets.connect(2, two), Ok(two));
    assert_eq!(sockets.say(2).map(|heard| heard.from), Ok(two));
    let own = at(server.ip(), 9001);
    assert_eq!(sockets.connect(2, own), Ok(own), "not a virtual address");
    assert_eq!(sockets.say(2).map(|heard| heard.from), Ok(own));
}

#[test]
fn a_flood_of_sockets_misleads_nobody() {
    let mesh = Mesh::builder().agent_args(&["--map-udp-sticky", "256"]).up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let _a = answerer(&mesh, 1, "a", "time", 1);
    let _b = answerer(&mesh, 1, "b", "time", 1);
    let (greedy, modest) = (mesh.pod(1, "greedy").up(), mesh.pod(1, "modest").up());
    let to = at(vip4(1), 80);
    udp_settled(&greedy, to, &["a", "b"]);
    udp_settled(&modest, to, &["a", "b"]);
    let (mut flood, mut sockets) = (Sockets::of(&greedy), Sockets::of(&modest));
    let first = sockets.ask(0, to).expect("an answer").name;
    for round in 0..50 {
        for socket in 0..20 {
            assert_eq!(flood.ask(round * 20 + socket, to).map(|heard| heard.from), Ok(to));
        }
        // Used all the time, so never the one that is forgotten.
        let heard = sockets.ask(0, to).expect("an answer");
        assert_eq!((heard.from, heard.name), (to, first.clone()));
    }
}

#[test]
fn an_agent_that_is_gone_is_not_missed() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let _a = answerer(&mesh, 1, "a", "time", 1);
    let _b = answerer(&mesh, 2, "b", "time", 1);
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    udp_settled(&client, to, &["a", "b"]);
    let mut sockets = Sockets::of(&client);
    let first = sockets.ask(0, to).expect("an answer").name;
    let before = flows(mesh.node(1), "opened", "time:80", "kernel");

    mesh.node(1).kill_agent();
    assert_eq!(sockets.ask(0, to).map(|heard| (heard.from, heard.name)), Ok((to, first.clone())));
    let names = ask(&client, to, false, 100);
    assert_eq!(names.keys().collect::<Vec<_>>(), ["a", "b"]);
    mesh.node(1).start_agent();
    mesh.node(1).wait_ready();
    assert_eq!(sockets.ask(0, to).map(|heard| (heard.from, heard.name)), Ok((to, first)));
    flows_become(mesh.node(1), "opened", "time:80", "kernel", before + 100);
}

#[test]
fn a_service_without_endpoints_refuses_each_datagram() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("nobody", 2).udp("udp", 80).yaml());
    let client = mesh.pod(1, "client").up();
    let mut sockets = Sockets::of(&client);
    for (socket, to) in [(0, at(vip4(2), 80)), (1, at(vip6(2), 80)), (2, mapped(2, 80))] {
        eventually("sendto() says refused", || sockets.ask(socket, to) == Err("ECONNREFUSED".to_owned()));
        assert_eq!(sockets.connect(socket, to), Err("ECONNREFUSED".to_owned()));
    }
    let refused = flows(mesh.node(1), "refused", "nobody:80", "none");
    assert!(refused >= 6, "{refused}");
    assert_eq!(mesh.node(1).verdict(Verdict::NoEndpoint), refused);
}

#[test]
fn own_addresses_are_counted_and_the_rest_is_left_alone() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::headless("log").udp("udp", 9000).yaml());
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let (log, _log) = answerer(&mesh, 2, "log-0", "log", 1);
    let _a = answerer(&mesh, 1, "a", "time", 1);
    let client = mesh.pod(1, "client").up();
    let outside = mesh.pod(1, "outside").outside().up();
    let _other = udp_server(&outside, 9000);
    udp_settled(&client, at(vip4(1), 80), &["a"]);

    for to in [at(log.ip(), 9000), at(log.ip6(), 9000)] {
        for connected in [false, true] {
            udp_settled(&client, to, &["log-0"]);
            let before = flows(mesh.node(1), "opened", "log:9000", "kernel");
            assert_eq!(ask(&client, to, connected, 20)["log-0"], 20);
            flows_become(mesh.node(1), "opened", "log:9000", "kernel", before + 20);
        }
    }
    // Not of the mesh: neither a destination, nor a process.
    let verdicts = || mesh.node(1).metrics().sum("mesh_verdicts_total", &[]) as u64;
    let before = verdicts();
    assert_eq!(ask(&client, at(outside.ip(), 9000), false, 10)["outside"], 10);
    assert_eq!(ask(&client, at(outside.ip(), 9000), true, 10)["outside"], 10);
    assert_eq!(ask(&outside, at(log.ip(), 9000), false, 10)["log-0"], 10);
    let mut sockets = Sockets::of(&outside);
    assert!(sockets.ask(0, at(vip4(1), 80)).is_err(), "there is nothing at a virtual address");
    assert_eq!(verdicts(), before);
}

#[test]
fn routes_spread_udp_and_tcp_over_services_by_weight() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("front", 1).udp("udp", 80).tcp("tcp", 80).yaml());
    for name in ["v1", "v2"] {
        mesh.apply(&Service::headless(name).udp("udp", 80).tcp("tcp", 80).yaml());
    }
    let both = |node, name: &str, service: &str| {
        let mut pod =
            mesh.pod(node, name).serves(service, "udp", 9000).serves(service, "tcp", 8080).outside().up();
        let programs = (udp_server(&pod, 9000), mesh_tests::programs::nginx(&pod, &[8080]));
        pod.enrol();
        (pod, programs)
    };
    let _own = both(1, "own", "front");
    let (_a, _b) = (both(1, "a", "v1"), both(2, "b", "v2"));
    let client = mesh.pod(1, "client").up();
    udp_settled(&client, at(vip4(1), 80), &["own"]);
    settled(&client, at(vip4(1), 80), &["own"]);

    for kind in ["UDPRoute", "TCPRoute"] {
        mesh.apply(&l4_route(kind, "front", &[("v1", 9), ("v2", 1)]));
    }
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        udp_settled(&client, to, &["a", "b"]);
        share(ask(&client, to, false, 400)["a"], 400, 90.0);
        settled(&client, to, &["a", "b"]);
        let report = Load::to(to).threads(2).count(400).run(&client);
        assert_eq!((report.ok, report.failed()), (400, 0), "{report:?}");
        share(report.servers["a"], 400, 90.0);
    }
    // A socket that speaks follows the route, once what it speaks with is no part of it.
    let mut sockets = Sockets::of(&client);
    sockets.ask(0, at(vip4(1), 80)).expect("an answer");
    mesh.apply(&l4_route("UDPRoute", "front", &[("v1", 0), ("v2", 1)]));
    eventually("the socket is with b", || {
        sockets.ask(0, at(vip4(1), 80)).is_ok_and(|heard| heard.name == "b")
    });
    settled(&client, at(vip4(1), 80), &["a", "b"]);
    let shown = mesh.meshctl(&["get", "udproutes"], "");
    assert!(shown.contains("v1:80=0,v2:80=1"), "{shown}");

    for kind in ["udproute", "tcproute"] {
        mesh.meshctl(&["delete", kind, "front"], "");
    }
    udp_settled(&client, at(vip4(1), 80), &["own"]);
    settled(&client, at(vip4(1), 80), &["own"]);
}

#[test]
fn a_route_that_leads_nowhere_is_named_and_refuses() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("front", 1).udp("udp", 80).tcp("tcp", 81).yaml());
    let _own = answerer(&mesh, 1, "own", "front", 1);
    let (_web, _) = web(&mesh, 1, "web", "front", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    udp_settled(&client, at(vip4(1), 80), &["own"]);
    mesh.apply(&l4_route("UDPRoute", "front", &[("gone", 1)]));
    let mut sockets = Sockets::of(&client);
    eventually("sendto() says refused", || sockets.ask(0, at(vip4(1), 80)) == Err("ECONNREFUSED".to_owned()));
    let shown = mesh.meshctl(&["get", "udproutes"], "");
    assert!(shown.contains("default/gone does not exist"), "{shown}");
    within(Duration::from_secs(10), "meshctl status names it", || {
        mesh.meshctl(&["status"], "").contains("UDPRoute default/front")
    });
    // The other port is not its business.
    settled(&client, at(vip4(1), 81), &["web"]);
}

#[test]
fn dns_clients_and_servers_do_not_notice() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("dns", 1).udp("dns", 53).tcp("dns-tcp", 53).yaml());
    let mut servers = Vec::new();
    for (node, name) in [(1, "a"), (2, "b")] {
        let mut pod =
            mesh.pod(node, name).serves("dns", "dns", 53).serves("dns", "dns-tcp", 53).outside().up();
        let server = dnsmasq(&pod, 53);
        pod.enrol();
        servers.push((pod, server));
    }
    let client = mesh.pod(1, "client").up();
    for to in [at(vip4(1), 53), at(vip6(1), 53)] {
        for more in [&[][..], &["+tcp"]] {
            let mut seen = BTreeMap::<String, u32>::new();
            within(Duration::from_secs(20), "both answer, and none else", || {
                if let Ok(name) = dig(&client, to, more) {
                    *seen.entry(name).or_default() += 1;
                }
                seen.contains_key("a") && seen.contains_key("b")
            });
            for _ in 0..20 {
                let name = dig(&client, to, more).unwrap_or_else(|error| panic!("{to} {more:?}: {error:#}"));
                assert!(name == "a" || name == "b", "{name}");
            }
        }
    }
    let metrics = mesh.node(1).metrics();
    for protocol in ["udp", "tcp"] {
        let labels = [("destination", "default/dns:53"), ("protocol", protocol)];
        assert!(metrics.count("mesh_flow_opened_total", &labels) >= 40, "{protocol}");
    }
}

#[test]
fn a_quic_connection_is_with_one_server() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("quic", 1).udp("udp", 443).yaml());
    let mut servers = Vec::new();
    for (node, name) in [(1, "a"), (2, "b")] {
        let mut pod = mesh.pod(node, name).serves("quic", "udp", 9443).outside().up();
        let server = quic_server(&pod, 9443);
        pod.enrol();
        servers.push((pod, server));
    }
    let client = mesh.pod(1, "client").up();
    let mut seen = BTreeMap::<String, u32>::new();
    for to in [at(vip4(1), 443), at(vip6(1), 443)] {
        within(Duration::from_secs(20), "the service answers", || quic(&client, to).is_ok());
        for _ in 0..8 {
            let name = quic(&client, to).unwrap_or_else(|error| panic!("{to}: {error:#}"));
            *seen.entry(name).or_default() += 1;
        }
    }
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["a", "b"], "{seen:?}");
}
