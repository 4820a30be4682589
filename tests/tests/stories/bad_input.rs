//! What is wrong is said in one sentence with the remedy, and leaves nothing behind.

use std::{fs, process::Command, time::Duration};

use mesh_tests::{
    Mesh,
    cgroup::Cgroup,
    netns::NetNs,
    process::{Process, own_program},
};

/// Runs one of our programs, which must give up; its last words.
#[track_caller]
fn gives_up(netns: &NetNs, cgroup: &Cgroup, program: &str, args: &[String], log: &std::path::Path) -> String {
    let mut command = mesh_tests::process::command(cgroup, own_program(program));
    command.args(args);
    let mut process = Process::start(netns, command, log).unwrap();
    let status = process.wait(Duration::from_secs(15));
    assert!(!status.success(), "{program} {args:?} ended well:\n{}", process.log());
    let words = process.log();
    assert!(!words.contains("panicked"), "{words}");
    words
}

#[test]
fn a_malformed_resource_is_refused_with_path_value_and_range() {
    let mesh = Mesh::builder().up();
    let service = |spec: &str| {
        format!(
            "apiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\nspec: {spec}\n"
        )
    };
    for (spec, words) in [
        ("{ports: [{name: http, port: 70000}]}", &["spec.ports[0].port", "70000", "65535"][..]),
        ("{ports: [{name: http, port: 80, protocol: grpc}]}", &["spec.ports[0].protocol", "not built yet"]),
        ("{ports: [{port: 53, protocol: udp, inbound: proxy}]}", &["spec.ports[0].inbound", "kernel"]),
        ("{ports: [{name: http, port: 80}], colour: red}", &["colour"]),
        ("{vips: [10.0.0.300], ports: [{name: http, port: 80}]}", &["spec.vips[0]", "10.0.0.300"]),
    ] {
        let error = format!("{:#}", mesh.try_meshctl(&["apply", "-f", "-"], &service(spec)).unwrap_err());
        for word in words {
            assert!(error.contains(word), "{spec}: no {word:?} in: {error}");
        }
    }
    let listed = mesh.meshctl(&["get", "services"], "");
    assert!(!listed.contains("web"), "nothing is stored: {listed}");
}

#[test]
fn a_second_control_plane_says_what_is_in_its_way() {
    let mesh = Mesh::builder().up();
    let log = mesh.place().work.join("second.log");
    let mut args = mesh.fabric().args();
    let words = gives_up(&mesh.fabric().netns, mesh.fabric().cgroup(), "mesh-control", &args, &log);
    assert!(words.contains("store.redb") && words.contains("in use"), "{words}");

    // Its own store, the same port.
    args[2] = mesh.place().work.join("other").to_string_lossy().into_owned();
    fs::remove_file(&log).unwrap();
    let words = gives_up(&mesh.fabric().netns, mesh.fabric().cgroup(), "mesh-control", &args, &log);
    assert!(words.contains("15080") || words.contains("15012"), "{words}");
}

#[test]
fn a_corrupt_store_is_named_and_left_alone() {
    let mesh = Mesh::builder().up();
    mesh.kill_control();
    let store = mesh.fabric().data().join("store.redb");
    let junk = b"this is no store".repeat(1000);
    fs::write(&store, &junk).unwrap();
    let log = mesh.place().work.join("corrupt.log");
    let words =
        gives_up(&mesh.fabric().netns, mesh.fabric().cgroup(), "mesh-control", &mesh.fabric().args(), &log);
    assert!(words.contains("store.redb"), "{words}");
    assert!(fs::read(&store).unwrap() == junk, "the store was changed");
}

#[test]
fn meshctl_says_when_nobody_answers() {
    let mesh = Mesh::builder().up();
    mesh.kill_control();
    let error = format!("{:#}", mesh.try_meshctl(&["status"], "").unwrap_err());
    assert!(error.contains("10.90.0.1:15080"), "{error}");
}

#[test]
fn an_agent_that_cannot_start_leaves_nothing_attached() {
    let mesh = Mesh::builder().up();
    let node = mesh.node(1);
    let log = node.work().join("second.log");
    // Another agent holds the port of the metrics (and the run directory).
    let mut args = node.agent_args();
    for name in ["run", "state", "bpf"] {
        let from = node.work().join(name).to_string_lossy().into_owned();
        let to = mesh.place().work.join("second").join(name).to_string_lossy().into_owned();
        for arg in &mut args {
            *arg = arg.replace(&from, &to);
        }
    }
    let attached = |mesh: &Mesh| {
        let mut command = Command::new("bpftool");
        command.args(["cgroup", "tree"]).arg(mesh.node(1).cgroup().path());
        mesh_tests::shell::run(&mut command, "").unwrap().lines().count()
    };
    let before = attached(&mesh);
    let words = gives_up(node.netns(), node.agent_cgroup(), "mesh-agent", &args, &log);
    assert!(words.contains("15090"), "{words}");
    assert_eq!(attached(&mesh), before);
}

#[test]
fn an_agent_without_root_says_so() {
    let mesh = Mesh::builder().lay();
    let log = mesh.place().work.join("no-root.log");
    let node = mesh.node(1);
    fs::write(node.token_file(), format!("nm1.a.b.{}", "0".repeat(64))).unwrap();
    let agent = own_program("mesh-agent").to_string_lossy().into_owned();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--clear-groups", "--bounding-set", "-all", "--", &agent]);
    command.args(node.agent_args());
    let mut process = Process::start(node.netns(), command, &log).unwrap();
    let status = process.wait(Duration::from_secs(15));
    assert!(!status.success());
    let words = process.log();
    assert!(words.contains("root") && !words.contains("panicked"), "{words}");
}

#[test]
fn a_foreign_program_that_admits_no_other_is_named() {
    let mesh = Mesh::builder().nodes(2).lay();
    mesh.start_control();
    let (one, two) = (mesh.node(1), mesh.node(2));
    mesh.issue_token(one);
    mesh.issue_token(two);
    one.start_agent();
    one.wait_ready();
    // A program of node 1 takes the part of the foreign one: attached to node 2's root the old, exclusive way.
    let bpftool = |args: &[&str]| {
        mesh_tests::shell::run(Command::new("bpftool").args(args), "").unwrap_or_else(|e| panic!("{e:#}"))
    };
    let attached: serde_json::Value =
        serde_json::from_str(&bpftool(&["-j", "cgroup", "show", &one.cgroup().path().to_string_lossy()]))
            .unwrap();
    let connect4 = attached.as_array().unwrap().iter().find(|p| p["attach_type"] == "cgroup_inet4_connect");
    let id = connect4.expect("connect4 is attached")["id"].to_string();
    bpftool(&["cgroup", "attach", &two.cgroup().path().to_string_lossy(), "cgroup_inet4_connect", "id", &id]);

    let log = two.work().join("foreign.log");
    let words = gives_up(two.netns(), two.agent_cgroup(), "mesh-agent", &two.agent_args(), &log);
    assert!(words.contains("another program") || words.contains("foreign"), "{words}");
    // The kernel lets go of a dead process' links a moment later.
    mesh_tests::eventually("only the foreign program is attached", || two.programs().len() == 1);
}

#[test]
fn cleanup_leaves_no_trace() {
    let mesh = Mesh::builder().up();
    let client = mesh.pod(1, "client").up();
    let node = mesh.node(1);
    node.kill_agent();
    assert!(fs::read_dir(node.bpffs()).unwrap().next().is_some(), "pins outlive the agent");
    let mut command = Command::new(own_program("mesh-agent"));
    command.arg("cleanup").arg("--bpffs").arg(node.bpffs());
    command.arg("--run-dir").arg(node.work().join("run")).arg("--state-dir").arg(node.work().join("state"));
    mesh_tests::shell::run(&mut command, "").unwrap();
    assert!(!node.work().join("state").exists(), "its files are gone");
    assert!(!node.bpffs().exists() || fs::read_dir(node.bpffs()).unwrap().next().is_none());
    let mut tree = Command::new("bpftool");
    tree.args(["cgroup", "tree"]).arg(node.cgroup().path());
    let tree = mesh_tests::shell::run(&mut tree, "").unwrap();
    assert!(!tree.contains("connect4"), "{tree}");
    drop(client);
}
