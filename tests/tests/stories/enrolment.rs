//! Who is in the mesh, who is not, and how one becomes the other.

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, eventually,
    load::Load,
    process::own_program,
    programs::{curl, nginx, url},
    resources::{Service, at, vip4, vip6},
};
use serde_json::json;
use std::os::fd::AsFd;

use crate::words::{flows, settled, web};

#[test]
fn a_process_outside_the_mesh_is_untouched() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let (server, _) = web(&mesh, 1, "a", "raw", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    let stranger = mesh.pod(1, "stranger").outside().up();
    settled(&client, at(vip4(1), 80), &["a"]);

    let before = mesh.node(1).metrics();
    let report = Load::to(at(server.ip(), 8080)).count(100).run(&stranger);
    assert_eq!((report.ok, report.failed()), (100, 0), "{report:?}");
    // A VIP means nothing to it.
    assert_ne!(curl(&stranger, &["--max-time", "1", &url(vip4(1), 80, "/")]).status, 200);
    let after = mesh.node(1).metrics();
    for name in ["mesh_flow_opened_total", "mesh_flow_refused_total", "mesh_flow_failed_total"] {
        assert_eq!(after.count(name, &[]), before.count(name, &[]), "{name}");
    }
}

#[test]
fn a_workload_enrols_leaves_and_enrols_again() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    let _servers = [web(&mesh, 1, "a", "raw", "tcp", 1), web(&mesh, 1, "b", "site", "http", 1)];
    let mut client = mesh.pod(1, "client").outside().up();
    for _ in 0..3 {
        client.enrol();
        // Confirmed means in force: the first connection is balanced.
        assert_eq!(curl(&client, &[&url(vip4(1), 80, "/")]).name(), "a");
        settled(&client, at(vip4(2), 80), &["b"]);
        client.leave();
        assert_ne!(curl(&client, &["--max-time", "1", &url(vip4(1), 80, "/")]).status, 200);
    }
    // No listener of ours stays in its namespace.
    eventually("the agent's listeners are gone", || client.run("ss", &["-Hltn"]).unwrap().is_empty());
}

#[test]
fn a_workload_whose_processes_end_leaves_nothing_in_its_namespace() {
    let mesh = Mesh::builder().up();
    let client = mesh.pod(1, "client").up();
    client.kill();
    eventually("the agent forgets it", || {
        let status = mesh.node(1).ask("status", json!({}), &[]).unwrap();
        status["status"]["enrolled"].as_array().is_some_and(Vec::is_empty)
    });
    let listeners = client.netns().with(|| std::process::Command::new("ss").arg("-Hltn").output().unwrap());
    assert!(listeners.stdout.is_empty(), "{}", String::from_utf8_lossy(&listeners.stdout));
}

#[test]
fn a_pod_that_holds_most_of_its_ports_is_served_all_the_same() {
    const HOLD: &str = "import socket,sys,time\nheld=[]\n\
        for port in range(40000,40200):\n s=socket.socket();s.bind(('',port));s.listen();held.append(s)\n\
        print('held',flush=True)\ntime.sleep(600)";
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    let _servers = [web(&mesh, 1, "a", "raw", "tcp", 1), web(&mesh, 1, "b", "site", "http", 1)];
    let mut client = mesh.pod(1, "client").outside().up();
    // 256 ports, 200 of them taken.
    client.netns().sysctl("net/ipv4/ip_local_port_range", "40000 40255").unwrap();
    let holder = client.start("holder", "/usr/bin/python3", &["-c", HOLD]);
    eventually("the ports are held", || holder.log().contains("held"));
    client.enrol();
    settled(&client, at(vip4(1), 80), &["a"]);
    settled(&client, at(vip4(2), 80), &["b"]);
    for number in [1, 2] {
        let report = Load::to(at(vip4(number), 80)).threads(4).count(400).run(&client);
        assert_eq!((report.ok, report.failed()), (400, 0), "{report:?}");
    }
}

#[test]
fn what_is_no_cgroup_or_namespace_is_refused_and_others_go_on() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _a = web(&mesh, 1, "a", "raw", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);

    let file = std::fs::File::open("/dev/null").unwrap();
    let cgroup = client.cgroup().open().unwrap();
    let fields = json!({"namespace": "default", "name": "odd"});
    for descriptors in [[client.netns().file().as_fd(), file.as_fd()], [file.as_fd(), cgroup.as_fd()]] {
        let error = mesh.node(1).ask("enrol", fields.clone(), &descriptors).unwrap_err();
        assert!(error.to_string().contains("refused"), "{error:#}");
    }
    assert!(mesh.node(1).ask("enrol", fields, &[]).is_err());
    settled(&client, at(vip4(1), 80), &["a"]);
}

#[test]
fn a_workload_with_a_namespace_inside_is_refused_and_told_why() {
    let mesh = Mesh::builder().up();
    let mut pod = mesh.pod(1, "nested").outside().up();
    let mut inner = pod.start("inner", "unshare", &["-n", "sleep", "1000"]);
    eventually("the inner namespace is there", || {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        std::fs::read_to_string(format!("/proc/{}/comm", inner.pid())).is_ok_and(|name| name == "sleep\n")
            && namespace(&inner.pid().to_string()) != namespace("self")
    });
    let error = pod.try_enrol().unwrap_err().to_string();
    assert!(error.contains("(sleep)") && error.contains("another network namespace"), "{error}");
    inner.kill();
    pod.enrol();
}

#[test]
fn an_inbound_port_of_the_proxy_shows_the_real_client() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("in", 1).port("http", 80, "http", "proxy").yaml());
    let mut server = mesh.pod(2, "a").serves("in", "http", 8080).outside().up();
    let _nginx = nginx(&server, &[8080]);
    server.enrol();
    let client = mesh.pod(1, "client").up();
    let stranger = mesh.pod(1, "stranger").outside().up();
    settled(&client, at(vip4(1), 80), &["a"]);

    for (who, to) in [(&client, url(vip4(1), 80, "/")), (&stranger, url(server.ip(), 8080, "/"))] {
        let reply = curl(who, &[&to]);
        assert!(reply.field("peer").starts_with(&format!("{}:", who.ip())), "{reply:?}");
    }
    let reply = curl(&client, &[&url(vip6(1), 80, "/")]);
    assert!(reply.field("peer").starts_with(&client.ip6().to_string()), "{reply:?}");
    // The agent's own port is no way in.
    for listener in server.run("ss", &["-Hltn"]).unwrap().lines().filter(|line| !line.contains(":8080")) {
        let port = listener.split_whitespace().nth(3).unwrap().rsplit(':').next().unwrap();
        let reply = curl(&stranger, &[&url(server.ip(), port.parse().unwrap(), "/")]);
        assert_eq!(reply.status, 0, "{listener}: {reply:?}");
    }
    let captured = mesh.node(2).verdict(Verdict::InboundCaptured);
    let accepted = mesh.node(2).metrics().count("mesh_proxy_accepted_total", &[("direction", "in")]);
    assert!(captured >= 2 && accepted >= 2, "{captured} captured, {accepted} accepted");
    assert_eq!(flows(mesh.node(2), "opened", "in:80", "kernel"), 0);
}

#[test]
fn a_program_started_by_meshctl_run_is_a_workload_until_it_ends() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("files", 1).tcp("tcp", 80).yaml());
    let client = mesh.pod(1, "client").up();
    let server = mesh.pod(1, "server").outside().up();
    let run_dir = mesh.node(1).work().join("run").to_string_lossy().into_owned();
    let meshctl = own_program("meshctl");
    let args =
        ["run", "--run-dir", &run_dir, "--service", "files", "--port", "8000", "--name", "files-0", "--"];
    let python = ["/usr/bin/python3", "-m", "http.server", "8000", "--bind", "::"];
    let mut program = server.start("files", meshctl, &[&args[..], &python[..]].concat());
    eventually("the service answers", || {
        let reply = curl(&client, &[&url(vip4(1), 80, "/")]);
        reply.status == 200 && reply.body.contains("Directory listing")
    });
    // It runs in a cgroup that the agent made, and sees the real client.
    assert!(mesh.node(1).cgroup().path().join("nodemesh/default/files-0").exists());
    assert!(program.log().contains(&client.ip().to_string()), "{}", program.log());
    program.kill();
    eventually("it is withdrawn", || curl(&client, &[&url(vip4(1), 80, "/")]).exit == 7);
    eventually("its cgroup is removed", || {
        !mesh.node(1).cgroup().path().join("nodemesh/default/files-0").exists()
    });
}

#[test]
fn a_pod_without_ipv6_is_served_over_ipv4() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    mesh.apply(&Service::vip("in", 3).port("http", 80, "http", "proxy").yaml());
    let _servers = [web(&mesh, 1, "a", "raw", "tcp", 1), web(&mesh, 1, "b", "site", "http", 1)];
    let mut server = mesh.pod(2, "c").serves("in", "http", 8080).outside().up();
    let _nginx = nginx(&server, &[8080]);
    let mut client = mesh.pod(1, "client").outside().up();
    for pod in [&client, &server] {
        pod.netns().sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    }
    client.enrol();
    server.enrol();
    for (number, name) in [(1, "a"), (2, "b"), (3, "c")] {
        settled(&client, at(vip4(number), 80), &[name]);
    }
    // On another node: what the agent brings to its own node it does not capture again.
    assert!(mesh.node(2).verdict(Verdict::InboundCaptured) > 0);
}
