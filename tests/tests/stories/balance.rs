//! The kernel spreads connections by weights: IPv4, IPv6, and IPv4 asked for by an IPv6 socket.

use mesh_tests::{
    Mesh, eventually,
    load::Load,
    programs::{curl, url},
    resources::{Service, at, mapped, vip4, vip6},
};

use crate::words::{flows, flows_become, settled, share, web};

#[test]
fn connections_follow_the_weights_over_v4_v6_and_mapped() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", 80).yaml());
    let (_a, _) = web(&mesh, 1, "a", "web", "tcp", 3);
    let (_b, _) = web(&mesh, 2, "b", "web", "tcp", 1);
    let client = mesh.pod(1, "client").up();

    for to in [at(vip4(1), 80), at(vip6(1), 80), mapped(1, 80)] {
        settled(&client, to, &["a", "b"]);
        let before = flows(mesh.node(1), "opened", "web:80", "kernel");
        let report = Load::to(to).threads(2).count(800).run(&client);
        assert_eq!((report.ok, report.failed()), (800, 0), "{to}: {report:?}");
        share(report.servers["a"], 800, 75.0);
        flows_become(mesh.node(1), "opened", "web:80", "kernel", before + 800);
        flows_become(mesh.node(1), "closed", "web:80", "kernel", before + 800);
    }
    assert_eq!(flows(mesh.node(1), "opened", "web:80", "proxy"), 0);
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("nobody", 2).tcp("tcp", 80).http("http", 81).yaml());
    let client = mesh.pod(1, "client").up();

    for port in [80, 81] {
        eventually("connect() says refused", || {
            let report = Load::to(at(vip4(2), port)).count(5).run(&client);
            report.errors.get("connect ConnectionRefused") == Some(&5)
        });
    }
    assert!(flows(mesh.node(1), "refused", "nobody:80", "none") >= 5);
}

#[test]
fn ports_of_one_service_are_told_apart() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("many", 3).tcp("one", 1001).tcp("two", 1002).yaml());
    let (_a, _) = web(&mesh, 1, "a", "many", "one", 1);
    let (_b, _) = web(&mesh, 1, "b", "many", "two", 1);
    let client = mesh.pod(1, "client").up();

    settled(&client, at(vip4(3), 1001), &["a"]);
    settled(&client, at(vip4(3), 1002), &["b"]);
}

#[test]
fn bytes_and_durations_of_connections_are_counted() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", 80).yaml());
    let (server, _nginx) = web(&mesh, 2, "a", "web", "tcp", 1);
    std::fs::write(server.work().join("files/some"), vec![b's'; 1_234_567]).unwrap();
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let counted = |name: &str, labels: &[(&str, &str)]| {
        let labels =
            [&[("destination", "default/web:80"), ("source", "default/client")][..], labels].concat();
        mesh.node(1).metrics().count(name, &labels)
    };
    let closed = counted("mesh_flow_closed_total", &[]);
    let received = counted("mesh_flow_received_bytes_total", &[]);

    let reply = curl(&client, &["-D", "head", "-o", "got", &url(vip4(1), 80, "/files/some")]);
    assert_eq!(reply.status, 200, "{reply:?}");
    let head = std::fs::read(client.work().join("head")).unwrap().len() as u64;
    eventually("the end is counted", || counted("mesh_flow_closed_total", &[]) == closed + 1);
    assert_eq!(counted("mesh_flow_received_bytes_total", &[]) - received, head + 1_234_567);
    // Records may be lost, but not in this calm.
    let durations = || counted("mesh_flow_duration_seconds_count", &[("path", "kernel")]);
    eventually("its duration is in the histogram", || durations() == closed + 1);
}
