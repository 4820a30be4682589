//! The ground that the other stories stand on: without a mesh, programs in pods reach each other.

use std::{net::SocketAddr, time::Duration};

use mesh_tests::{
    Mesh,
    load::Load,
    programs::{curl, line_server, nginx, url},
};

#[test]
fn pods_of_two_nodes_reach_each_other_without_a_mesh() {
    let mesh = Mesh::builder().nodes(2).lay();
    let near = mesh.pod(1, "near").outside().up();
    let far = mesh.pod(2, "far").outside().up();
    let web = nginx(&far, &[8080]);
    let _lines = line_server(&far, 7000);

    let reply = curl(&near, &[&url(far.ip(), 8080, "/hello")]);
    assert_eq!((reply.status, reply.name()), (200, "far"), "{reply:?}");
    assert!(reply.field("peer").starts_with(&near.ip().to_string()), "{reply:?}");
    let reply = curl(&near, &[&url(far.ip6(), 8080, "/")]);
    assert_eq!(reply.name(), "far", "{reply:?}");
    mesh_tests::eventually("nginx has logged both", || web.hits("/") == 2);

    let report = Load::to(SocketAddr::from((far.ip(), 8080))).threads(2).rate(500).count(200).run(&near);
    assert_eq!((report.ok, report.failed()), (200, 0), "{report:?}");
    let report = Load::to(SocketAddr::from((far.ip(), 8080))).keep_alive().count(200).run(&near);
    assert_eq!(report.servers["far"], 200, "{report:?}");

    far.kill();
    mesh_tests::within(Duration::from_secs(5), "the pod's cgroup is empty", || !far.cgroup().populated());
    assert_eq!(curl(&near, &[&url(far.ip(), 8080, "/")]).exit, 7);
}
