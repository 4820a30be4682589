//! The agent is killed, stopped, restarted, held: the kernel path does not notice, the proxy path does what
//! its policy says.

use std::{
    fs,
    ops::Range,
    time::{Duration, Instant},
};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod,
    eventually::until,
    load::{Load, Running},
    node::Node,
    programs::{Nginx, curl, url},
    resources::{Service, at, on_proxy_loss, route, vip4},
    within,
};
use rustix::process::Signal;

use crate::words::{flows, only_what_was_open_is_lost, settled, web};

const KILLS: usize = 20;
const SWAPS: u32 = 5;
const THREADS: u32 = 2;
/// Many, so that some connect in the milliseconds in which a killed agent falls apart.
const PROXY_THREADS: u32 = 8;
/// More endpoint ids than the shop uses.
const ENDPOINTS: u32 = 40;

/// raw: kernel path; site: proxy path with bypass to the route's backend; strict: proxy path or nothing.
fn shop() -> (Mesh, Vec<(Pod, Nginx)>, Pod) {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    mesh.apply(&Service::vip("strict", 3).http("http", 80).yaml());
    mesh.apply(&Service::vip("canary", 4).http("http", 80).yaml());
    mesh.apply(&on_proxy_loss("site", "bypass"));
    mesh.apply(&on_proxy_loss("strict", "refuse"));
    mesh.apply(&route("site", &[("/", &[("canary", 1)])]));
    let servers = vec![
        web(&mesh, 1, "raw-a", "raw", "tcp", 1),
        web(&mesh, 2, "raw-b", "raw", "tcp", 1),
        web(&mesh, 1, "site-a", "site", "http", 1),
        web(&mesh, 2, "canary-a", "canary", "http", 1),
        web(&mesh, 2, "strict-a", "strict", "http", 1),
    ];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["raw-a", "raw-b"]);
    settled(&client, at(vip4(2), 80), &["canary-a"]);
    settled(&client, at(vip4(3), 80), &["strict-a"]);
    // What an agent learnt in its last two seconds it learns again after a crash.
    within(Duration::from_secs(10), "the snapshot on disk knows every server", || {
        ["raw-b", "canary-a", "strict-a"].iter().all(|name| mesh.node(1).has_on_disk(name))
    });
    (mesh, servers, client)
}

/// Kills the agent of node 1 a moment after `load` went on, and starts it again.
fn kill_and_restart(node: &Node) {
    node.kill_agent();
    node.start_agent();
    node.wait_ready();
}

#[test]
fn twenty_kills_under_load_cost_the_kernel_path_nothing() {
    let (mesh, _servers, client) = shop();
    let node = mesh.node(1);
    let kernel = Load::to(at(vip4(1), 80)).threads(THREADS).rate(1200).start(&client);
    let proxy = Load::to(at(vip4(2), 80)).threads(PROXY_THREADS).rate(1000).start(&client);
    let kept = Load::to(at(vip4(2), 80)).keep_alive().threads(THREADS).rate(100).start(&client);

    let mut seed = u64::from(std::process::id());
    let kills = [(); KILLS].map(|()| {
        // A moment that differs from kill to kill.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        kernel.go_on(50 + (seed >> 33) % 200);
        kill_under(node, &kernel, &proxy)
    });
    let (kernel, proxy, kept) = (kernel.stop(), proxy.stop(), kept.stop());
    assert_eq!(kernel.failed(), 0, "{kernel:?}");
    assert!(kernel.ok as f64 / kernel.seconds >= 1000.0, "{kernel:?}");
    only_what_was_open_is_lost(&proxy, &kills, PROXY_THREADS);
    only_what_was_open_is_lost(&kept, &kills, THREADS);
    // The bypass goes where the route sends, not to the parent's own endpoints.
    assert_eq!(proxy.servers.keys().collect::<Vec<_>>(), ["canary-a"], "{proxy:?}");

    for _ in 0..SWAPS {
        node.stop_agent();
        node.start_agent();
        node.wait_ready();
    }
    live_is_what_ss_shows(node, &client);
}

/// Kills the agent and starts it again; both paths are seen at work before, during and after. When it was
/// killed.
#[track_caller]
fn kill_under(node: &Node, kernel: &Running, proxy: &Running) -> Range<u64> {
    let opened = flows(node, "opened", "site:80", "proxy");
    assert!(opened > 0, "the proxy works before the kill");
    let killed = node.kill_agent();
    let counts = || [Verdict::Balanced, Verdict::Bypassed, Verdict::Captured].map(|v| node.verdict(v));
    let [balanced, bypassed, captured] = counts();
    kernel.go_on(100);
    proxy.go_on(50);
    let now = counts();
    assert!(now[0] > balanced, "the kernel path's counter rises without an agent");
    assert!(now[1] > bypassed, "the bypass counter rises without an agent");
    assert_eq!(now[2], captured, "nothing is given to an agent that is gone");
    node.start_agent();
    node.wait_ready();
    within(Duration::from_secs(5), "the proxy works again", || {
        flows(node, "opened", "site:80", "proxy") > opened
    });
    killed
}

/// With seven connections held open, and with none, `LOAD` and `ss` agree.
#[track_caller]
fn live_is_what_ss_shows(node: &Node, client: &Pod) {
    const HOLD: &str = "import socket,sys,time\nheld=[socket.create_connection((sys.argv[1],80)) for _ in range(7)]\n\
        print('held',flush=True)\ntime.sleep(600)";
    // Connections to servers: not the loopback halves of what goes through the proxy.
    let shown = || {
        let args = ["-Htn", "state", "established", "dport", "=", ":8080", "or", "dport", "=", ":80"];
        let all = client.run("ss", &args).expect("run ss");
        all.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let both = || (node.live(ENDPOINTS), shown());
    let ten = Duration::from_secs(10);
    let idle = until(ten, "idle: live equals shown", both, |(live, shown)| *live == shown.len() as u64);
    let holder = client.start("hold", "/usr/bin/python3", &["-c", HOLD, &vip4(1).to_string()]);
    until(ten, "held: live equals shown", both, |(live, shown)| {
        *live == shown.len() as u64 && *live >= idle.0 + 7
    });
    drop(holder);
    until(ten, "let go: live equals shown", both, |(live, shown)| {
        *live == shown.len() as u64 && *live <= idle.0
    });
}

#[test]
fn a_restarted_agent_adopts_what_is_there() {
    let (mesh, _servers, client) = shop();
    let node = mesh.node(1);
    let kernel = Load::to(at(vip4(1), 80)).threads(THREADS).rate(1200).start(&client);
    let before = flows(node, "opened", "raw:80", "kernel");
    let programs = node.programs();
    for _ in 0..5 {
        node.stop_agent();
        node.start_agent();
        node.wait_ready();
        kernel.go_on(100);
    }
    let report = kernel.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
    // Every program was swapped for a new one.
    let swapped = node.programs();
    assert!(
        swapped.len() == programs.len() && swapped.iter().all(|id| !programs.contains(id)),
        "{swapped:?}"
    );
    // Counters go on where they were; enrolment is there without a word from outside.
    assert!(flows(node, "opened", "raw:80", "kernel") >= before + 500);
    assert_eq!(curl(&client, &[&url(vip4(2), 80, "/")]).status, 200);
}

#[test]
fn without_an_agent_a_strict_service_refuses_and_comes_back() {
    let (mesh, _servers, client) = shop();
    let node = mesh.node(1);
    node.kill_agent();
    let reply = curl(&client, &[&url(vip4(3), 80, "/")]);
    assert_eq!((reply.status, reply.exit), (0, 7), "{reply:?}");
    assert!(node.verdict(Verdict::ProxyLost) > 0);
    assert_eq!(curl(&client, &[&url(vip4(2), 80, "/")]).name(), "canary-a");
    kill_and_restart(node);
    settled(&client, at(vip4(3), 80), &["strict-a"]);
}

#[test]
fn a_stopped_agent_is_dead_after_half_a_second() {
    let (mesh, _servers, client) = shop();
    let node = mesh.node(1);
    node.signal_agent(Signal::STOP);
    within(Duration::from_secs(2), "new connections go past the stopped agent", || {
        curl(&client, &["--max-time", "0.3", &url(vip4(2), 80, "/")]).name() == "canary-a"
    });
    let report = Load::to(at(vip4(2), 80)).count(200).run(&client);
    assert_eq!((report.ok, report.failed()), (200, 0), "{report:?}");
    let report = Load::to(at(vip4(1), 80)).count(200).run(&client);
    assert_eq!((report.ok, report.failed()), (200, 0), "{report:?}");
    assert_eq!(curl(&client, &[&url(vip4(3), 80, "/")]).exit, 7);
    node.signal_agent(Signal::CONT);
    let captured = node.verdict(Verdict::Captured);
    within(Duration::from_secs(5), "the proxy works again", || {
        curl(&client, &[&url(vip4(2), 80, "/")]).status == 200 && node.verdict(Verdict::Captured) > captured
    });
}

#[test]
fn one_worker_held_does_not_hold_its_workloads() {
    let (mesh, _servers, client) = shop();
    let node = mesh.node(1);
    let workers = worker_threads(node);
    assert!(!workers.is_empty(), "the agent's workers are named");
    // Every worker in turn, so that the client's home is among them: held, each system call takes a minute.
    for worker in workers {
        let thread = worker.to_string();
        let args = ["-qq", "-o", "/dev/null", "-e", "inject=all:delay_enter=60000000", "-p", &thread];
        let mut holder = std::process::Command::new("strace").args(args).spawn().expect("start strace");
        within(Duration::from_secs(3), "the worker is held", || traced(node, worker));
        let held = Instant::now();
        within(
            Duration::from_secs(3),
            "new connections find a way past a worker held for longer than it may be",
            || {
                let status = curl(&client, &["--max-time", "0.5", &url(vip4(2), 80, "/")]).status;
                status == 200 && held.elapsed() > Duration::from_millis(600)
            },
        );
        let report = Load::to(at(vip4(2), 80)).count(100).run(&client);
        assert_eq!((report.ok, report.failed()), (100, 0), "{report:?}");
        holder.kill().unwrap();
        holder.wait().unwrap();
    }
    settled(&client, at(vip4(3), 80), &["strict-a"]);
}

/// Thread ids of the proxy's workers.
pub fn worker_threads(node: &Node) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.agent_pid())).unwrap();
    let threads = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    threads
        .filter(|thread| {
            let name = fs::read_to_string(format!("/proc/{}/task/{thread}/comm", node.agent_pid()));
            name.is_ok_and(|name| name.starts_with("worker") || name.starts_with("proxy"))
        })
        .collect()
}

fn traced(node: &Node, thread: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/task/{thread}/status", node.agent_pid()));
    status.is_ok_and(|text| text.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")))
}
