//! Workloads that share the host's network: known by cgroup and declared port; the rest of the host is untouched.
//! The node's own namespace, where its agent runs, is the host.

use std::{net::SocketAddr, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    load::Load,
    node::Node,
    process::{Process, own_program},
    programs::{connect_lines, curl, hold, line_server, nginx, url},
    resources::{Service, at, authorization, on_proxy_loss, vip4, vip6},
    udp::{Sockets, udp_server, udp_settled},
    within,
};
use serde_json::json;

use crate::words::{answered, flows, lines, settled, web};

const REFUSED: &str = "ConnectionRefusedError";

/// A unit of the host with an account of its own.
fn unit(mesh: &Mesh, name: &str) -> Pod {
    mesh.pod(1, name).account(name).on_host().up()
}

/// raw (1): TCP, site (2): HTTP; each with a server in a pod of node 1.
fn services(mesh: &Mesh) -> Vec<(Pod, mesh_tests::programs::Nginx)> {
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    vec![web(mesh, 1, "a", "raw", "tcp", 1), web(mesh, 1, "b", "site", "http", 1)]
}

fn counted(node: &Node, source: &str) -> u64 {
    node.metrics().count("mesh_flow_opened_total", &[("source", &format!("default/{source}"))])
}

/// The agent's listeners in the host's namespace, but for its own `/metrics`; and the links there.
fn left_on_host(node: &Node) -> (Vec<String>, usize) {
    let output = node.netns().with(|| std::process::Command::new("ss").arg("-Hltnp").output().unwrap());
    let agent = format!("pid={},", node.agent_pid());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ours = text.lines().filter(|line| line.contains(&agent) && !line.contains(":15090"));
    let pins =
        std::process::Command::new("find").arg(node.bpffs()).args(["-path", "*/inbound/host"]).output();
    (ours.map(str::to_owned).collect(), String::from_utf8_lossy(&pins.unwrap().stdout).lines().count())
}

#[test]
fn units_of_the_host_are_balanced_captured_and_told_apart() {
    let mesh = Mesh::builder().up();
    let _servers = services(&mesh);
    let (one, two) = (unit(&mesh, "one"), unit(&mesh, "two"));
    let node = mesh.node(1);
    for unit in [&one, &two] {
        for to in [at(vip4(1), 80), at(vip6(1), 80)] {
            settled(unit, to, &["a"]);
        }
        for to in [at(vip4(2), 80), at(vip6(2), 80)] {
            settled(unit, to, &["b"]);
        }
    }
    // The application sees what it asked for, and the host's own address.
    for (vip, to) in
        [(vip4(2).to_string(), url(vip4(2), 80, "/")), (vip6(2).to_string(), url(vip6(2), 80, "/"))]
    {
        let reply = curl(&one, &[&to]);
        assert_eq!((reply.status, reply.remote), (200, vip), "{}", reply.error);
        assert!([one.ip().to_string(), one.ip6().to_string()].contains(&reply.local), "{}", reply.local);
    }
    let before = (counted(node, "one"), counted(node, "two"));
    let report = Load::to(at(vip4(1), 80)).count(70).run(&one);
    assert_eq!(report.failed(), 0, "{report:?}");
    eventually("each is counted under its own name", || {
        (counted(node, "one"), counted(node, "two")) == (before.0 + 70, before.1)
    });
    let requests = |source: &str| {
        node.metrics().count("mesh_requests_total", &[("source", &format!("default/{source}"))])
    };
    let before = (requests("one"), requests("two"));
    let report = Load::to(at(vip6(2), 80)).count(30).run(&two);
    assert_eq!(report.failed(), 0, "{report:?}");
    eventually("so are its requests", || (requests("one"), requests("two")) == (before.0, before.1 + 30));
    assert!(node.verdict(Verdict::Captured) > 0);
}

#[test]
fn the_rest_of_the_host_is_untouched() {
    /// A server on one address alone.
    const SERVER: &str = "import socket,sys\ns=socket.create_server((sys.argv[1],int(sys.argv[2])),\
        family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n\
        while True:\n c,p=s.accept()\n c.sendall(f'name={sys.argv[3]} peer={p[0]}:{p[1]}\\n'.encode())\n c.close()";
    let mesh = Mesh::builder().nodes(2).up();
    let _servers = services(&mesh);
    mesh.apply(&Service::vip("db", 3).port("in", 7000, "tcp", "proxy").yaml());
    mesh.apply(&authorization("db", "db", "allow", "[{from: [{serviceAccounts: [cart]}]}]"));
    let db = mesh.pod(1, "db").label("app", "db").serves("db", "in", 7000).on_host().outside();
    let mut db = db.up();
    let host = mesh.pod(1, "sshd").on_host().outside().up();
    let start = |pod: &Pod, address: String, port: u16| {
        let args = ["-c", SERVER, &address, &port.to_string(), pod.name()];
        pod.start(&format!("server-{}-{port}", address.replace(':', "-")), "/usr/bin/python3", &args)
    };
    let _db: Vec<Process> = [db.ip().to_string(), db.ip6().to_string()].map(|ip| start(&db, ip, 7000)).into();
    // The same number on other addresses, another number on the same address.
    let others: [SocketAddr; 4] = [
        at([10, 91, 1, 1], 7000),
        at([0xfd91, 0, 0, 1, 0, 0, 0, 1], 7000),
        at(db.ip(), 22),
        at(db.ip6(), 22),
    ];
    let _others: Vec<Process> =
        others.iter().map(|to| start(&host, to.ip().to_string(), to.port())).collect();
    db.enrol();
    let (stranger, far) = (mesh.pod(1, "stranger").outside().up(), mesh.pod(2, "far").up());
    let thief = mesh.pod(1, "thief").account("thief").up();
    for to in [at(db.ip(), 7000), at(db.ip6(), 7000)] {
        for who in [&stranger, &far, &thief, &host] {
            eventually("the policy holds for the declared port", || {
                connect_lines(who, to, 1).errors.get(REFUSED) == Some(&1)
            });
        }
    }
    let node = mesh.node(1);
    let before = (node.verdict(Verdict::DeniedByPolicy), node.verdict(Verdict::InboundCaptured));
    for to in others {
        for who in [&stranger, &far, &thief, &host] {
            eventually("the server is there", || connect_lines(who, to, 1).errors.is_empty());
            assert_eq!(connect_lines(who, to, 10).servers.get("sshd"), Some(&10), "{to} from {}", who.name());
        }
    }
    assert_eq!((node.verdict(Verdict::DeniedByPolicy), node.verdict(Verdict::InboundCaptured)), before);
    // What it opens is neither balanced nor counted.
    let opened = |node: &Node| node.metrics().count("mesh_flow_opened_total", &[]);
    let before = opened(node);
    assert_ne!(curl(&host, &["--max-time", "1", &url(vip4(1), 80, "/")]).status, 200);
    assert_ne!(curl(&host, &["--max-time", "1", &url(vip6(2), 80, "/")]).status, 200);
    let lines = connect_lines(&host, others[2], 20);
    assert_eq!((lines.servers["sshd"], opened(node)), (20, before));
}

#[test]
fn policies_tell_units_of_one_host_apart() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("db", 1).tcp("tcp", 7000).yaml());
    mesh.apply(&Service::vip("disk", 2).tcp("tcp", 7001).yaml());
    let mut pod = mesh.pod(1, "db-0").label("app", "db").serves("db", "tcp", 7000).outside().up();
    let mut disk =
        mesh.pod(1, "disk-0").label("app", "db").serves("disk", "tcp", 7001).on_host().outside().up();
    let _servers = [line_server(&pod, 7000), line_server(&disk, 7001)];
    pod.enrol();
    disk.enrol();
    let (cart, thief) = (unit(&mesh, "cart"), unit(&mesh, "thief"));
    let host = mesh.pod(1, "host").on_host().outside().up();
    let ways = [
        (at(vip4(1), 7000), "db-0"),
        (at(vip6(1), 7000), "db-0"),
        (at(pod.ip(), 7000), "db-0"),
        (at(pod.ip6(), 7000), "db-0"),
        (at(vip4(2), 7001), "disk-0"),
        (at(vip6(2), 7001), "disk-0"),
        (at(disk.ip(), 7001), "disk-0"),
        (at(disk.ip6(), 7001), "disk-0"),
    ];
    for (to, name) in ways {
        answered(&cart, to, &[name]);
        answered(&thief, to, &[name]);
    }
    let held = [hold(&cart, "held", at(vip4(2), 7001), 3), hold(&thief, "held", at(vip4(2), 7001), 3)];
    let established = || {
        let show = ["-Htn", "state", "established", "sport", "=", ":7001"];
        disk.run("ss", &show).unwrap().lines().count()
    };
    assert!(held.iter().all(|held| held.lines.servers["disk-0"] == 3) && established() == 6);
    mesh.apply(&authorization("db", "db", "allow", "[{from: [{serviceAccounts: [cart]}]}]"));
    for (to, name) in ways {
        eventually(&format!("{to} refuses"), || connect_lines(&thief, to, 1).errors.get(REFUSED) == Some(&1));
        assert_eq!(connect_lines(&thief, to, 5).errors.get(REFUSED), Some(&5), "{to}");
        assert_eq!(connect_lines(&cart, to, 5).servers.get(name), Some(&5), "{to}");
    }
    // Another process of the host has no account; the workload may call itself.
    for to in [at(disk.ip(), 7001), at(disk.ip6(), 7001), at(pod.ip(), 7000)] {
        assert_eq!(connect_lines(&host, to, 5).errors.get(REFUSED), Some(&5), "{to}");
    }
    assert_eq!(connect_lines(&disk, at(vip4(2), 7001), 5).servers.get("disk-0"), Some(&5));
    within(Duration::from_secs(5), "what was open and is not allowed is ended, and nothing else", || {
        established() == 3
    });
}

#[test]
fn an_inbound_port_of_a_unit_shows_the_real_client() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("in", 1).port("http", 80, "http", "proxy").yaml());
    let mut server = mesh.pod(1, "a").serves("in", "http", 8080).on_host().outside().up();
    let _nginx = nginx(&server, &[8080]);
    server.enrol();
    let (far, near, unit) = (mesh.pod(2, "far").up(), mesh.pod(1, "near").up(), unit(&mesh, "unit"));
    let stranger = mesh.pod(2, "stranger").outside().up();
    let host = mesh.pod(1, "host").on_host().outside().up();
    for who in [&far, &near, &unit] {
        settled(who, at(vip4(1), 80), &["a"]);
        settled(who, at(vip6(1), 80), &["a"]);
    }
    let before = mesh.node(1).verdict(Verdict::InboundCaptured);
    for who in [&far, &stranger, &host] {
        for (to, own) in [
            (url(server.ip(), 8080, "/"), who.ip().to_string()),
            (url(server.ip6(), 8080, "/"), who.ip6().to_string()),
        ] {
            eventually("the port answers", || curl(who, &[&to]).status == 200);
            let reply = curl(who, &[&to]);
            assert!(reply.field("peer").starts_with(&format!("{own}:")), "{} {reply:?}", who.name());
        }
    }
    // The agent of the other node keeps the connections that it has made.
    let captured = mesh.node(1).verdict(Verdict::InboundCaptured) - before;
    assert!(captured >= 8, "{captured} captured");
}

#[test]
fn units_come_and_go_without_a_trace_and_without_disturbing_each_other() {
    let mesh = Mesh::builder().up();
    let _servers = services(&mesh);
    let one = unit(&mesh, "one");
    let node = mesh.node(1);
    settled(&one, at(vip4(1), 80), &["a"]);
    settled(&one, at(vip4(2), 80), &["b"]);
    let kernel = Load::to(at(vip4(1), 80)).rate(200).start(&one);
    let proxy = Load::to(at(vip4(2), 80)).keep_alive().rate(100).start(&one);
    for round in 0..3 {
        let mut two = mesh.pod(1, &format!("two-{round}")).on_host().outside().up();
        two.enrol();
        settled(&two, at(vip4(2), 80), &["b"]);
        two.leave();
        assert_ne!(curl(&two, &["--max-time", "1", &url(vip4(1), 80, "/")]).status, 200);
    }
    for load in [&kernel, &proxy] {
        let report = load.go_on(50);
        assert_eq!(report.failed(), 0, "{report:?}");
    }
    drop((kernel, proxy));
    assert!(!left_on_host(node).0.is_empty() && left_on_host(node).1 == 1);
    one.kill();
    eventually("the agent forgets it", || {
        let status = node.ask("status", json!({}), &[]).unwrap();
        status["status"]["enrolled"].as_array().is_some_and(|all| all.len() == 2)
    });
    eventually("nothing is left in the host's namespace", || left_on_host(node) == (Vec::new(), 0));
}

#[test]
fn a_killed_agent_is_to_units_what_it_is_to_pods() {
    let mesh = Mesh::builder().up();
    let _servers = services(&mesh);
    mesh.apply(&on_proxy_loss("site", "bypass"));
    let (one, gone) = (unit(&mesh, "one"), unit(&mesh, "gone"));
    let host = mesh.pod(1, "host").on_host().outside().up();
    let node = mesh.node(1);
    settled(&one, at(vip4(1), 80), &["a"]);
    settled(&one, at(vip4(2), 80), &["b"]);
    settled(&gone, at(vip4(1), 80), &["a"]);
    // What an agent learnt in its last two seconds it learns again after a crash.
    within(Duration::from_secs(10), "the snapshot on disk knows every server", || {
        ["default/a", "default/b"].iter().all(|name| node.has_on_disk(name))
    });
    let kernel = Load::to(at(vip4(1), 80)).rate(300).start(&one);
    kernel.go_on(30);
    for round in 0..2 {
        node.kill_agent();
        let report = Load::to(at(vip4(2), 80)).count(100).run(&one);
        assert_eq!(report.failed(), 0, "bypass: {report:?}");
        if round == 1 {
            gone.kill();
        }
        node.start_agent();
        node.wait_ready();
        let captured = node.verdict(Verdict::Captured);
        eventually("it captures again", || {
            assert_eq!(curl(&one, &[&url(vip4(2), 80, "/")]).status, 200);
            node.verdict(Verdict::Captured) > captured
        });
    }
    let report = kernel.go_on(30);
    assert_eq!(report.failed(), 0, "{report:?}");
    drop(kernel);
    assert!(node.hand_over().success());
    node.wait_ready();
    settled(&one, at(vip6(2), 80), &["b"]);
    assert_ne!(curl(&host, &["--max-time", "1", &url(vip4(1), 80, "/")]).status, 200);
    // A unit that ended while no agent ran is forgotten by the next one.
    let status = node.ask("status", json!({}), &[]).unwrap();
    let enrolled = status["status"]["enrolled"].as_array().unwrap();
    assert!(enrolled.iter().all(|workload| workload["name"] != "gone"), "{enrolled:?}");
    one.leave();
    eventually("nothing is left in the host's namespace", || left_on_host(node) == (Vec::new(), 0));
}

#[test]
fn datagrams_of_units_are_balanced_and_those_of_the_host_are_not() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("time", 1).udp("udp", 80).yaml());
    let mut pod = mesh.pod(1, "a").serves("time", "udp", 9000).outside().up();
    let _server = udp_server(&pod, 9000);
    pod.enrol();
    let (one, host) = (unit(&mesh, "one"), mesh.pod(1, "host").on_host().outside().up());
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        udp_settled(&one, to, &["a"]);
        let mut sockets = Sockets::of(&one);
        assert_eq!(sockets.ask(1, to).expect("an answer").from, to);
        assert_eq!(sockets.connect(2, to), Ok(to));
        assert_eq!(sockets.say(2).expect("an answer").from, to);
        assert!(Sockets::of(&host).ask(1, to).is_err());
    }
}

#[test]
fn open_connections_of_units_are_told_apart() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 7000).yaml());
    let _server = lines(&mesh, 1, "a", "raw");
    let (one, two) = (unit(&mesh, "one"), unit(&mesh, "two"));
    for unit in [&one, &two] {
        answered(unit, at(vip4(1), 7000), &["a"]);
    }
    let _held = [hold(&one, "held", at(vip4(1), 7000), 3), hold(&two, "held", at(vip6(1), 7000), 5)];
    let open = |name: &str| {
        let shown = mesh.node(1).meshctl(&["flows", "--workload", name]).unwrap();
        shown.lines().filter(|line| line.contains(&format!("default/{name} "))).count()
    };
    eventually("each shows its own", || (open("one"), open("two")) == (3, 5));
    let sent = mesh.node(1).meshctl(&["flows", "--workload", "two"]).unwrap();
    assert!(!sent.contains("default/one"), "{sent}");
}

#[test]
fn what_cannot_be_told_apart_is_refused_and_told_why() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let server = |name: &str| mesh.pod(1, name).serves("raw", "tcp", 8080).on_host().outside().up();
    let (mut first, mut second) = (server("first"), server("second"));
    first.enrol();
    let refused = second.try_enrol().unwrap_err().to_string();
    assert!(refused.contains("8080") && refused.contains("default/first"), "{refused}");

    let (node, run_dir) = (mesh.node(1), mesh.node(1).work().join("run").to_string_lossy().into_owned());
    let cgroup = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let enrol = |args: &[&str]| {
        let all = [&["enrol", "--run-dir", &run_dir], args].concat();
        let output =
            node.netns().with(|| std::process::Command::new(own_program("meshctl")).args(all).output());
        let output = output.unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (first_path, second_path) = (cgroup(first.cgroup().path()), cgroup(second.cgroup().path()));
    let agent = cgroup(node.agent_cgroup().path());
    let outside = cgroup(mesh.fabric().cgroup().path());
    let host = ["--host-network", "--name", "odd", "--cgroup"];
    for (args, said) in [
        (&[&host[..], &[&first_path]].concat()[..], "default/first"),
        (&[&host[..], &[&agent]].concat()[..], "the agent itself lives in"),
        (&[&host[..], &[&outside]].concat()[..], "is not below"),
        (&["--name", "odd", "--cgroup", &second_path][..], "--host-network"),
        (&[&host[..], &[&second_path, "--service", "raw", "--port", "0"]].concat()[..], "0"),
        (&[&host[..], &[&second_path, "--service", "raw", "--port", "65536"]].concat()[..], "65536"),
        (&[&host[..], &[&second_path, "--address", "10.1.2.3"]].concat()[..], "10.1.2.3"),
    ] {
        let (done, text) = enrol(args);
        assert!(!done && text.contains(said), "{args:?}: {text}");
    }
    // By its cgroup, from the command line; and out again.
    let (done, text) = enrol(&[&host[..], &[&second_path]].concat());
    assert!(done, "{text}");
    assert!(node.meshctl(&["leave", "odd"]).is_ok() && node.meshctl(&["leave", "odd"]).is_err());
}

#[test]
fn meshctl_run_makes_units_in_a_cgroup_of_the_agents_or_in_place() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("files", 1).tcp("tcp", 80).yaml());
    let client = mesh.pod(1, "client").up();
    let node = mesh.node(1);
    let run_dir = node.work().join("run").to_string_lossy().into_owned();
    let python = ["/usr/bin/python3", "-m", "http.server", "8000", "--bind", "::"];
    let serve = ["--host-network", "--service", "files", "--port", "8000", "--name", "files-0"];
    for more in [&[][..], &["--in-place"]] {
        let shell = mesh.pod(1, if more.is_empty() { "shell" } else { "unit" }).on_host().outside().up();
        let args = [&["run", "--run-dir", &run_dir], &serve[..], more, &["--"], &python[..]].concat();
        let mut program = shell.start("files", own_program("meshctl"), &args);
        let answers = || {
            let reply = curl(&client, &[&url(vip4(1), 80, "/")]);
            reply.status == 200 && reply.body.contains("Directory listing")
        };
        eventually("the service answers", answers);
        if !more.is_empty() {
            // As systemd does it: back in the same cgroup.
            program.kill();
            program = shell.start("files", own_program("meshctl"), &args);
            eventually("the service answers again", answers);
        }
        let own = node.cgroup().path().join("nodemesh/default/files-0");
        assert_eq!(own.exists(), more.is_empty());
        program.kill();
        // In place: its cgroup is the unit's.
        shell.kill();
        eventually("it is withdrawn", || curl(&client, &[&url(vip4(1), 80, "/")]).exit == 7);
    }
    assert_eq!(flows(node, "refused", "files:80", "proxy"), 0);
}
