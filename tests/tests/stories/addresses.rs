//! Addresses are what applications expect: own and peer's at the client, the real client's at the server;
//! a workload's own address and headless services work without a VIP.

use mesh_tests::{
    Mesh,
    programs::{connect_lines, curl, line_server, url},
    resources::{Service, at, vip4, vip6},
};

use crate::words::{flows, flows_become, settled, web};

#[test]
fn client_and_server_see_each_other_as_without_a_mesh() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("web", 2).http("http", 80).yaml());
    mesh.apply(&Service::vip("in", 3).port("tcp", 80, "tcp", "proxy").yaml());
    let (_a, _) = web(&mesh, 1, "a", "raw", "tcp", 1);
    let (_b, _) = web(&mesh, 2, "b", "web", "http", 1);
    let (_c, _) = web(&mesh, 2, "c", "in", "tcp", 1);
    let client = mesh.pod(1, "client").up();

    for (number, server) in [(1, "a"), (2, "b"), (3, "c")] {
        settled(&client, at(vip4(number), 80), &[server]);
        // The client: the address that it asked for, and its own.
        let reply = curl(&client, &[&url(vip4(number), 80, "/")]);
        assert_eq!(reply.remote, vip4(number).to_string(), "{reply:?}");
        assert_eq!(reply.local, client.ip().to_string(), "{reply:?}");
        // The server: the real client.
        assert!(reply.field("peer").starts_with(&format!("{}:", client.ip())), "{reply:?}");
        let reply = curl(&client, &[&url(vip6(number), 80, "/")]);
        assert_eq!(reply.remote, vip6(number).to_string(), "{reply:?}");
        assert_eq!(reply.local, client.ip6().to_string(), "{reply:?}");
        assert!(reply.field("peer").starts_with(&client.ip6().to_string()), "{reply:?}");
    }
}

#[test]
fn a_headless_service_and_a_direct_address_are_left_alone_and_counted() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::headless("db").tcp("tcp", 7000).yaml());
    let mut db = mesh.pod(2, "db-0").serves("db", "tcp", 7000).outside().up();
    let _server = line_server(&db, 7000);
    // A second program that belongs to no service.
    let _other = line_server(&db, 7001);
    db.enrol();
    let client = mesh.pod(1, "client").up();

    for address in [at(db.ip(), 7000), at(db.ip6(), 7000), at(db.ip(), 7001)] {
        mesh_tests::eventually("the address answers", || {
            connect_lines(&client, address, 1).errors.is_empty()
        });
    }
    mesh_tests::eventually("the workload is known to the client's node", || {
        let before = flows(mesh.node(1), "opened", "db:7000", "kernel");
        connect_lines(&client, at(db.ip(), 7000), 1);
        flows(mesh.node(1), "opened", "db:7000", "kernel") > before
    });
    let before = flows(mesh.node(1), "opened", "db:7000", "kernel");
    let lines = connect_lines(&client, at(db.ip(), 7000), 25);
    assert_eq!(lines.servers["db-0"], 25, "{lines:?}");
    flows_become(mesh.node(1), "opened", "db:7000", "kernel", before + 25);
}

#[test]
fn a_pod_reaches_itself() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("self", 1).tcp("tcp", 80).http("http", 81).yaml());
    let mut pod = mesh.pod(1, "a").serves("self", "tcp", 8080).serves("self", "http", 8080).outside().up();
    let _server = mesh_tests::programs::nginx(&pod, &[8080]);
    pod.enrol();

    for port in [80, 81] {
        settled(&pod, at(vip4(1), port), &["a"]);
    }
    // localhost and its own address are not the mesh's business.
    assert_eq!(
        curl(&pod, &[&url([127, 0, 0, 1], 8080, "/")]).field("peer").split(':').next(),
        Some("127.0.0.1")
    );
    assert_eq!(curl(&pod, &[&url(pod.ip(), 8080, "/")]).status, 200);
}
