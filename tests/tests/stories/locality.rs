//! Clients prefer who is near and who has priority, go further when those can't take them, and come back.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration, time::Instant};

use mesh_tests::{
    Mesh, Pod, eventually,
    load::Load,
    process::Process,
    programs::{connect_lines, line_server, nginx},
    resources::{Service, at, traffic, vip4, vip6},
    udp::{udp_server, udp_settled},
    within,
};

use rustix::process::Signal;

use crate::words::{answered, lines, settled, share, web};

const EJECTION: &str =
    "outlierEjection: {consecutiveConnectFailures: 3, baseEjectionTime: 3s, maxEjectedPercent: 50}";

/// Both virtual addresses of service 1.
fn both() -> [SocketAddr; 2] {
    [at(vip4(1), 80), at(vip6(1), 80)]
}

/// Two nodes in two zones of one region.
fn two_zones() -> Mesh {
    Mesh::builder().nodes(2).places(&[("eu", "a"), ("eu", "b")]).up()
}

/// How long it takes until `pod` is answered by `names` alone, without an error.
#[track_caller]
fn takes(pod: &Pod, to: SocketAddr, names: &[&str]) -> Duration {
    let begin = Instant::now();
    within(Duration::from_secs(20), &format!("{to} is answered by {names:?} alone"), || {
        let seen = connect_lines(pod, to, 20);
        seen.errors.is_empty() && seen.servers.keys().map(String::as_str).eq(names.iter().copied())
    });
    begin.elapsed()
}

/// Waits until `pod` is answered by exactly `names`, whichever address it asks for.
#[track_caller]
fn all_go(pod: &Pod, names: &[&str]) {
    for to in both() {
        takes(pod, to, names);
    }
}

#[test]
fn clients_of_two_zones_have_tables_of_their_own_and_go_further_where_nobody_is_left() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    let (mut a, _a) = lines(&mesh, 1, "a", "lines");
    let (_b, _b_server) = lines(&mesh, 2, "b", "lines");
    let clients = [mesh.pod(1, "client-1").up(), mesh.pod(2, "client-2").up()];
    for client in &clients {
        all_go(client, &["a", "b"]);
    }
    mesh.apply(&traffic("lines", &["locality: {prefer: [zone]}"]));
    for to in both() {
        answered(&clients[0], to, &["a"]);
        answered(&clients[1], to, &["b"]);
        let seen = connect_lines(&clients[0], to, 200);
        assert_eq!((seen.servers["a"], seen.errors), (200, BTreeMap::new()));
    }
    let listed = mesh.meshctl(&["get", "workloads"], "");
    assert!(listed.lines().any(|line| line.contains("client-2") && line.contains("eu/b")), "{listed}");

    a.leave();
    all_go(&clients[0], &["b"]);
    a.enrol();
    all_go(&clients[0], &["a"]);
    all_go(&clients[1], &["b"]);

    // Without the policy all are alike again.
    mesh.meshctl(&["delete", "trafficpolicy", "lines"], "");
    for client in &clients {
        all_go(client, &["a", "b"]);
    }
}

#[test]
fn a_strict_locality_refuses_what_its_zone_has_nobody_for() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &["locality: {prefer: [zone], mode: strict}"]));
    let (_a, _server) = lines(&mesh, 1, "a", "lines");
    let clients = [mesh.pod(1, "client-1").up(), mesh.pod(2, "client-2").up()];
    for to in both() {
        answered(&clients[0], to, &["a"]);
        eventually("the other zone is refused", || {
            connect_lines(&clients[1], to, 5).errors
                == BTreeMap::from([("ConnectionRefusedError".to_owned(), 5)])
        });
    }
    within(Duration::from_secs(10), "meshctl says why", || {
        mesh.meshctl(&["status"], "")
            .contains("none of its 1 endpoints is where connections of this node may go")
    });
    mesh.apply(&traffic("lines", &["locality: {prefer: [zone]}"]));
    all_go(&clients[1], &["a"]);
}

#[test]
fn a_workload_that_is_written_down_says_where_it_is_and_is_drained_by_its_weight() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &["locality: {prefer: [zone, region]}"]));
    let pods: Vec<(Pod, Process)> = ["near", "mid", "far"]
        .iter()
        .map(|name| {
            let pod = mesh.pod(2, name).outside().up();
            let server = line_server(&pod, 7000);
            (pod, server)
        })
        .collect();
    let write = |i: usize, region: &str, zone: &str, weight: u32| {
        let pod = &pods[i].0;
        mesh.apply(&format!(
            "---\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {{name: {}, namespace: default}}\nspec:\n  \
             addresses: [{}, '{}']\n  locality: {{region: {region}, zone: {zone}}}\n  \
             services: [{{service: lines, targetPort: 7000, weight: {weight}}}]\n",
            pod.name(),
            pod.ip(),
            pod.ip6()
        ));
    };
    write(0, "eu", "a", 1);
    write(1, "eu", "c", 1);
    write(2, "us", "a", 1);
    let client = mesh.pod(1, "client").up();
    all_go(&client, &["near"]);
    write(0, "eu", "a", 0);
    all_go(&client, &["mid"]);
    write(1, "eu", "c", 0);
    all_go(&client, &["far"]);
    write(0, "eu", "a", 1);
    all_go(&client, &["near"]);
}

#[test]
fn the_ejected_give_their_part_to_the_next_zone_and_have_it_back() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &[EJECTION, "locality: {prefer: [zone]}"]));
    let (a, server) = lines(&mesh, 1, "a", "lines");
    let (_b, _b_server) = lines(&mesh, 2, "b", "lines");
    let client = mesh.pod(1, "client").up();
    let other = mesh.pod(2, "other").up();
    all_go(&client, &["a"]);
    all_go(&other, &["b"]);
    let mut server = Some(server);
    for to in both() {
        drop(server.take());
        let begin = Instant::now();
        let mut failed = 0;
        eventually("b takes them", || {
            let seen = connect_lines(&client, to, 1);
            failed += seen.errors.values().sum::<u64>();
            seen.servers.contains_key("b")
        });
        println!("{to}: another zone within {:?}", begin.elapsed());
        assert_eq!(failed, 3, "as many as eject it, and none after");
        server = Some(line_server(&a, 7000));
        println!("{to}: home again within {:?}", takes(&client, to, &["a"]));
    }
    all_go(&other, &["b"]);
}

#[test]
fn half_of_a_zone_takes_seven_tenths_and_the_next_the_rest() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    let policy = |balancing: &str| {
        let long =
            "outlierEjection: {consecutiveConnectFailures: 3, baseEjectionTime: 5m, maxEjectedPercent: 50}";
        let balancing = format!("balancing: {balancing}");
        mesh.apply(&traffic("lines", &[long, "locality: {prefer: [zone]}", &balancing]));
    };
    policy("random");
    let (_a1, _s1) = lines(&mesh, 1, "a1", "lines");
    let (_a2, s2) = lines(&mesh, 1, "a2", "lines");
    let (_b, _sb) = lines(&mesh, 2, "b", "lines");
    let client = mesh.pod(1, "client").up();
    all_go(&client, &["a1", "a2"]);
    drop(s2);
    eventually("a2 is left out", || {
        connect_lines(&client, both()[0], 10);
        mesh.node(1).metrics().count("mesh_ejected_endpoints", &[("destination", "default/lines:80")]) == 1
    });
    for to in both() {
        takes(&client, to, &["a1", "b"]);
        let seen = connect_lines(&client, to, 600);
        assert_eq!(seen.errors, BTreeMap::new());
        share(seen.servers["a1"], 600, 70.0);
    }
    // The rows of a Maglev table hold the same parts: of many clients seven tenths stay.
    policy("maglev");
    for to in both() {
        eventually("each client has one", || connect_lines(&client, to, 20).servers.len() == 1);
    }
    let clients: Vec<Pod> = (0..20).map(|i| mesh.pod(1, &format!("c{i}")).up()).collect();
    let near =
        clients.iter().filter(|pod| connect_lines(pod, both()[0], 1).servers.contains_key("a1")).count();
    assert!((8..20).contains(&near), "{near} of 20");
}

#[test]
fn a_workload_of_a_lower_priority_is_there_for_when_the_first_are_gone() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &[EJECTION]));
    let mut spare = mesh.pod(1, "spare").serves("lines", "tcp", 7000).priority(1).outside().up();
    let _spare = line_server(&spare, 7000);
    spare.enrol();
    let (first, _server) = lines(&mesh, 2, "first", "lines");
    let client = mesh.pod(1, "client").up();
    all_go(&client, &["first"]);
    first.leave();
    all_go(&client, &["spare"]);
    let (_again, server) = lines(&mesh, 2, "again", "lines");
    all_go(&client, &["again"]);
    drop(server);
    all_go(&client, &["spare"]);
}

#[test]
fn datagrams_go_to_who_is_near_and_further_where_nobody_is_left() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("words", 1).udp("udp", 80).yaml());
    mesh.apply(&traffic("words", &["locality: {prefer: [zone]}"]));
    let serve = |node: u8, name: &str| {
        let mut pod = mesh.pod(node, name).serves("words", "udp", 7000).outside().up();
        let server = udp_server(&pod, 7000);
        pod.enrol();
        (pod, server)
    };
    let (mut a, _a) = serve(1, "a");
    let _b = serve(2, "b");
    let client = mesh.pod(1, "client").up();
    let all_say = |name: &str| both().into_iter().for_each(|to| udp_settled(&client, to, &[name]));
    all_say("a");
    a.leave();
    all_say("b");
    a.enrol();
    all_say("a");
}

#[test]
fn a_client_comes_home_although_it_was_kept_elsewhere() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 80).yaml());
    mesh.apply(&traffic("lines", &["affinity: {timeout: 10m}", "locality: {prefer: [zone]}"]));
    let (_b, _b_server) = lines(&mesh, 2, "b", "lines");
    let client = mesh.pod(1, "client").up();
    all_go(&client, &["b"]);
    let _a = lines(&mesh, 1, "a", "lines");
    all_go(&client, &["a"]);
}

#[test]
fn the_proxy_prefers_who_is_near_and_comes_back_to_them() {
    let mesh = two_zones();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&traffic("site", &[EJECTION, "locality: {prefer: [node, zone]}"]));
    let (a, server) = web(&mesh, 1, "a", "site", "http", 1);
    let (_b, _b_server) = web(&mesh, 2, "b", "site", "http", 1);
    let clients = [mesh.pod(1, "client-1").up(), mesh.pod(2, "client-2").up()];
    for to in both() {
        settled(&clients[0], to, &["a"]);
        settled(&clients[1], to, &["b"]);
    }
    let mut server = server;
    for to in both() {
        // Its workers end with it.
        server.process().signal(Signal::TERM);
        server.process().wait(Duration::from_secs(10));
        // A failed connect is tried elsewhere: no request fails.
        let seen = Load::to(to).count(60).run(&clients[0]);
        assert_eq!((seen.failed(), seen.servers.get("b")), (0, Some(&60)), "{seen:?}");
        eventually("a is left out", || {
            Load::to(to).count(20).run(&clients[0]);
            mesh.node(1).metrics().count("mesh_ejected_endpoints", &[("destination", "default/site:80")]) == 1
        });
        server = nginx(&a, &[8080]);
        settled(&clients[0], to, &["a"]);
    }
    settled(&clients[1], both()[0], &["b"]);
}
