//! Keys and certificates outlive the agent that made them: a successor has them, and so has whoever is started after
//! a crash, with the control plane away. What nobody may use any more is not used.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Node, Pod, eventually,
    eventually::until,
    load::Load,
    process::{Process, own_program},
    programs::{connect_lines, line_server},
    resources::{Service, at, transport, vip4, vip6},
    shell, within,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::words::{settled, web};

const DEFAULT: &str = "spiffe://mesh.local/ns/default/sa/default";

/// A strict service on each node and a client beside each: numbers 1 and 2.
struct Both {
    mesh: Mesh,
    pods: [(Pod, Process); 2],
}

impl Both {
    fn up(control: &[&str]) -> Self {
        let mesh = Mesh::builder().nodes(2).mtls().control_args(control).up();
        let pods = [1u8, 2].map(|node| {
            let name = format!("s{node}");
            mesh.apply(&Service::vip(&name, node).tcp("tcp", 7000).yaml());
            let mut pod = mesh.pod(node, &name).serves(&name, "tcp", 7000).outside().up();
            let server = line_server(&pod, 7000);
            pod.enrol();
            (pod, server)
        });
        mesh.apply(&transport("keys-strict", &["mtls: {mode: strict}"]));
        let both = Self { mesh, pods };
        both.answers();
        for node in both.mesh.nodes() {
            eventually("the newest policy is on disk", || node.has_on_disk("keys-strict"));
        }
        both
    }

    /// Each way, by both address families: from the pod of a node to the service of the other one.
    fn ways(&self) -> [(&Pod, SocketAddr); 4] {
        let [(one, _), (two, _)] = &self.pods;
        [
            (one, at(vip4(2), 7000)),
            (two, at(vip4(1), 7000)),
            (one, at(vip6(2), 7000)),
            (two, at(vip6(1), 7000)),
        ]
    }

    #[track_caller]
    fn answers(&self) {
        for (from, to) in self.ways() {
            eventually(&format!("{to} answers {}", from.name()), || {
                connect_lines(from, to, 1).errors.is_empty()
            });
        }
    }
}

fn serial(node: &Node) -> Option<Value> {
    let all = node.identities();
    let of = all["identities"].as_array()?.iter().find(|one| one["identity"] == DEFAULT)?;
    (!of["notAfter"].is_null()).then(|| of["serial"].clone())
}

fn adopted(node: &Node) -> u64 {
    node.metrics().count("mesh_identity_adopted_total", &[])
}

#[test]
fn an_agent_that_was_killed_has_its_keys_again_without_a_control_plane() {
    /// From its start to a connection each way. The agent that is tested is not optimised.
    const WITHIN: Duration = Duration::from_secs(2);
    let both = Both::up(&[]);
    let mesh = &both.mesh;
    mesh.kill_control();
    for node in mesh.nodes() {
        let before = serial(node).unwrap();
        node.kill_agent();
        let begun = Instant::now();
        node.start_agent();
        both.answers();
        let took = begun.elapsed();
        println!("{}: tunnels both ways {} ms after its start", node.name(), took.as_millis());
        assert!(took < WITHIN, "{took:?}\n{}", node.log());
        assert_eq!(serial(node), Some(before), "another certificate");
        assert_eq!(adopted(node), 1);
    }
    // It is a certificate as any other: renewed by a control plane that is back, and revoked.
    mesh.start_control();
    let before = serial(mesh.node(1)).unwrap();
    mesh.meshctl(&["ca", "revoke", "--identity", DEFAULT], "");
    within(Duration::from_secs(20), "it has another one", || {
        serial(mesh.node(1)).is_some_and(|now| now != before)
    });
    within(Duration::from_secs(20), "and so has the other node", || {
        both.ways().iter().all(|(from, to)| connect_lines(from, *to, 1).errors.is_empty())
    });
}

#[test]
fn what_has_ended_is_not_used_again_and_cleanup_leaves_nothing_to_use() {
    let both = Both::up(&["--svid-ttl", "6s"]);
    let mesh = &both.mesh;
    let node = mesh.node(1);
    let seal = node.socket().with_file_name("seal");
    let pin = node.bpffs().join("KEYS");
    assert_eq!(fs::metadata(&seal).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::metadata(&pin).unwrap().permissions().mode() & 0o077,
        0,
        "the kernel's own are root's alone"
    );
    let held = || {
        let mut command = Command::new("bpftool");
        command.args(["-j", "map", "dump", "pinned"]).arg(&pin);
        let text = shell::run(&mut command, "").unwrap();
        serde_json::from_str::<Value>(&text).unwrap().as_array().map_or(0, Vec::len)
    };
    assert_eq!(held(), 1, "an entry an identity");
    mesh.kill_control();
    let left = || node.metrics().sum("mesh_identity_expires_seconds", &[("identity", DEFAULT)]);
    within(Duration::from_secs(20), "its certificate has ended", || left() < -1.0);
    node.kill_agent();
    node.start_agent();
    eventually("the agent answers", || node.get("/metrics").is_ok());
    eventually("it knows the identity", || node.metrics().sum("mesh_identity_missing", &[]) > 0.0);
    assert_eq!((serial(node), adopted(node), held()), (None, 0, 0));
    mesh.start_control();
    within(Duration::from_secs(20), "it has a new one", || serial(node).is_some() && held() == 1);

    // A seal that is another one opens nothing.
    node.kill_agent();
    fs::write(&seal, [7; 32]).unwrap();
    node.start_agent();
    node.wait_ready();
    assert_eq!(adopted(node), 0);
    within(Duration::from_secs(20), "it has asked for another one", || serial(node).is_some());

    node.stop_agent();
    let mut command = Command::new(own_program("mesh-agent"));
    command.arg("cleanup").arg("--bpffs").arg(node.bpffs());
    command.arg("--run-dir").arg(seal.parent().unwrap()).arg("--state-dir").arg(node.work().join("state"));
    shell::run(&mut command, "").unwrap();
    assert!(!seal.exists() && !pin.exists());
}

#[test]
fn a_successor_has_the_keys_at_once_without_a_control_plane() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    let servers = [web(&mesh, 1, "raw-a", "raw", "tcp", 1), web(&mesh, 1, "site-a", "site", "http", 1)];
    mesh.apply(&transport("keys-strict", &["mtls: {mode: strict}"]));
    fs::write(servers[0].0.work().join("files/long"), vec![b'l'; 4 << 20]).unwrap();
    let client = mesh.pod(2, "client").up();
    settled(&client, at(vip4(1), 80), &["raw-a"]);
    settled(&client, at(vip4(2), 80), &["site-a"]);
    let node = mesh.node(1);
    eventually("the newest policy is on disk", || node.has_on_disk("keys-strict"));
    let before = serial(node).unwrap();
    mesh.kill_control();
    let loads = [
        Load::to(at(vip4(1), 80)).threads(2).rate(200).start(&client),
        Load::to(at(vip4(2), 80)).threads(4).rate(200).start(&client),
    ];
    for _ in 0..3 {
        for load in &loads {
            load.go_on(50);
        }
        // What is open stays with the old agent, whose tunnels are served to their end.
        let long = mesh_tests::programs::url(vip4(1), 80, "/files/long");
        let mut download = client.start("long", "curl", &["-sS", "--limit-rate", "2M", "-o", "long", &long]);
        within(Duration::from_secs(5), "the download is under way", || {
            fs::metadata(client.work().join("long")).is_ok_and(|file| file.len() > 0)
        });
        let pid = node.agent_pid();
        let ended = node.hand_over();
        assert!(ended.success(), "the predecessor ended with {ended}:\n{}", node.log());
        assert_ne!(node.agent_pid(), pid);
        assert!(download.wait(Duration::from_secs(20)).success(), "the download was cut: {}", download.log());
        fs::remove_file(client.work().join("long")).unwrap();
        assert_eq!((serial(node), adopted(node)), (Some(before.clone()), 1));
        let dialled =
            || node.metrics().count("mesh_hbone_handshakes_total", &[("role", "server"), ("outcome", "ok")]);
        until(Duration::from_secs(10), "the successor takes tunnels", dialled, |seen| *seen > 0);
    }
    for load in loads {
        let report = load.stop();
        assert_eq!(report.failed(), 0, "{report:?}\n{}", node.log());
    }
    node.signal_agent(Signal::TERM);
    node.wait_agent();
}
