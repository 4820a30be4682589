//! Traffic does not wait for the control plane; a control plane that has forgotten something is not believed.

use std::{fs, process::Command, time::Duration};

use mesh_tests::{
    Mesh, eventually,
    load::Load,
    resources::{Service, at, vip4},
    shell, within,
};

use crate::words::{settled, web};

#[test]
fn traffic_goes_on_without_a_control_plane_also_for_a_restarted_agent() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    let _servers = [web(&mesh, 2, "a", "raw", "tcp", 1), web(&mesh, 2, "b", "site", "http", 1)];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    settled(&client, at(vip4(2), 80), &["b"]);

    let kernel = Load::to(at(vip4(1), 80)).rate(200).start(&client);
    let proxy = Load::to(at(vip4(2), 80)).rate(100).start(&client);
    mesh.kill_control();
    kernel.go_on(400);
    proxy.go_on(100);
    // The snapshot on disk serves an agent that starts now.
    proxy.stop();
    mesh.node(1).kill_agent();
    mesh.node(1).start_agent();
    settled(&client, at(vip4(2), 80), &["b"]);
    mesh.start_control();
    kernel.go_on(200);
    let report = kernel.stop();
    assert_eq!(report.failed(), 0, "{report:?}");

    // Back in step: a change arrives.
    mesh.apply(&Service::vip("new", 3).tcp("tcp", 80).yaml());
    let _c = web(&mesh, 2, "c", "new", "tcp", 1);
    settled(&client, at(vip4(3), 80), &["c"]);
    settled(&client, at(vip4(1), 80), &["a"]);
}

#[test]
fn a_control_plane_behind_by_a_revision_is_not_believed() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _a = web(&mesh, 1, "a", "raw", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);

    // Today's store, put aside.
    mesh.kill_control();
    let data = mesh.fabric().data();
    let aside = data.with_extension("aside");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = fs::remove_dir_all(to);
        shell::run(Command::new("cp").arg("-a").arg(from).arg(to), "").unwrap();
    };
    copy(&data, &aside);
    mesh.start_control();
    // Tomorrow's change reaches the agent.
    mesh.apply(&Service::vip("later", 2).tcp("tcp", 80).yaml());
    let _b = web(&mesh, 1, "b", "later", "tcp", 1);
    settled(&client, at(vip4(2), 80), &["b"]);
    // The store of today comes back.
    mesh.kill_control();
    copy(&aside, &data);
    mesh.start_control();
    eventually("the agent says that the control plane is behind", || {
        let status = mesh.node(1).ask("status", serde_json::json!({}), &[]).unwrap();
        status.to_string().contains("behind")
    });
    let report = Load::to(at(vip4(2), 80)).count(50).run(&client);
    assert_eq!((report.ok, report.failed()), (50, 0), "{report:?}");

    // Once it has caught up, it is believed again.
    for number in 3..9 {
        mesh.apply(&Service::vip(&format!("more-{number}"), number).tcp("tcp", 80).yaml());
    }
    within(Duration::from_secs(20), "the agent follows again", || {
        let status = mesh.node(1).ask("status", serde_json::json!({}), &[]).unwrap();
        !status.to_string().contains("behind")
    });
}
