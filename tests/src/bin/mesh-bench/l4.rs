//! Kernel path against no mesh: requests, bulk, short connections, connect() itself; same node and across.
//!
//! Servers run on one CPU, clients on the other, all with reno. "No mesh" is a pair of pods whose cgroups
//! hang beside the nodes' subtrees: no program of ours sees them. "Kernel path" is an enrolled client that
//! dials a VIP, to an enrolled server. "Outside" is a client under our programs that is not enrolled. The
//! "Guarded" is a service with two draws, limits and ejection over two endpoints. The
//! proof of each case is how much the kernel's own counter of balanced connections grew during ours, and
//! during the peer's.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{CgroupAttachMode, Program};
use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod,
    load::Load,
    programs::{Nginx, nginx},
    resources::{Service, at, traffic as policy, vip4},
    shell, within,
};
use serde_json::Value;

use crate::{
    Options,
    report::{Case, Goal, Proof, Report},
    stats::abba,
};

pub const GROUP: &str = "l4";
pub const PEER: &str = "no-mesh";
/// The situations, and where the server is: 1 this node, 2 the other.
pub const PLACES: [(&str, u8); 2] = [("same-node", 1), ("across-nodes", 2)];
/// What wrk measures: path and arguments.
const TRAFFIC: [(&str, &str, &[&str]); 3] = [
    ("requests", "/", &["-t1", "-c16"]),
    ("bulk", "/files/bulk", &["-t1", "-c4"]),
    ("short", "/", &["-t1", "-c8", "-H", "Connection: close"]),
];
const FLOOR: &str = "empty programs, same-node";
/// A service that asks for everything at once, and the number of its VIP.
const GUARDED: (&str, u8) = ("same-node, guarded", 5);
const GUARDS: [&str; 3] = [
    "balancing: leastConnections",
    "limits: {maxConnections: 100000, maxConnectionsPerEndpoint: 100000}",
    "outlierEjection: {consecutiveConnectFailures: 5}",
];
const OUTSIDE: &str = "outside-the-mesh";
const PROGRAM: &str = "program";
const BULK: usize = 1 << 20;
/// Short legs and many rounds: what else the machine does falls on both sides alike.
const CONNECTS: u64 = 2_000;
const CONNECT_ROUNDS: usize = 5;
/// Rates of a second each vary by a twentieth: as many rounds as bring the interval within a hundredth.
const TRAFFIC_ROUNDS: usize = 3;
const LEG: &str = "1s";
pub const SERVER_CPU: usize = 1;
pub const CLIENT_CPU: usize = 0;

/// Clients and servers of all kinds.
struct Ground {
    mesh: Mesh,
    /// Enrolled, on node 1.
    client: Pod,
    /// Not enrolled, below our programs, on node 1.
    outside: Pod,
    /// Beside our programs, on node 1.
    bare: Pod,
    /// Beside our programs, on nodes 1 and 2.
    bare_servers: [Pod; 2],
    /// A client and a server on node 1 with empty programs where ours would be.
    floor: (Pod, Pod),
    _floor_programs: [aya::Ebpf; 2],
    _servers: Vec<(Pod, Nginx)>,
    _bare_nginx: Vec<Nginx>,
}

/// How many CPUs there are: asked once, before anything is pinned.
fn cpus() -> usize {
    static CPUS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Where what is started from now on runs. Servers on one CPU and clients on the other: what the scheduler
/// makes of two busy processes would be most of the spread.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu % cpus());
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// What is started from now on runs anywhere.
pub fn unpin() -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    (0..cpus()).for_each(|cpu| set.set(cpu));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// One congestion control for all, and none that paces: veth has nothing to pace for. Any namespace may have
/// reno; others must be allowed by the host.
pub fn reno(pod: &Pod) -> Result<()> {
    pod.netns().sysctl("net/ipv4/tcp_congestion_control", "reno")
}

impl Ground {
    fn new() -> Result<Self> {
        let mesh = Mesh::builder().nodes(2).up();
        pin(SERVER_CPU)?;
        mesh.apply(&Service::vip("near", 1).tcp("tcp", 80).yaml());
        mesh.apply(&Service::vip("far", 2).tcp("tcp", 80).yaml());
        mesh.apply(&Service::vip("guarded", GUARDED.1).tcp("tcp", 80).yaml());
        mesh.apply(&policy("guarded", &GUARDS));
        let mut servers = Vec::new();
        for (node, name) in [(1, "near"), (2, "far")] {
            let mut pod = mesh.pod(node, &format!("{name}-a")).serves(name, "tcp", 8080).outside();
            if node == 1 {
                pod = pod.serves("guarded", "tcp", 8080).serves("guarded", "tcp", 8081);
            }
            let mut pod = pod.up();
            reno(&pod)?;
            let server = nginx(&pod, &[8080, 8081]);
            bulk_file(&pod)?;
            pod.enrol();
            servers.push((pod, server));
        }
        let bare_servers = [1, 2].map(|node| mesh.pod(node, &format!("bare-{node}")).beside().up());
        bare_servers.iter().try_for_each(reno)?;
        let floor = (mesh.pod(1, "floor").beside().up(), mesh.pod(1, "floor-a").beside().up());
        [&floor.0, &floor.1].into_iter().try_for_each(reno)?;
        let floor_programs = [empty_programs(&floor.0)?, empty_programs(&floor.1)?];
        let bare_nginx = bare_servers.iter().chain([&floor.1]).map(|pod| nginx(pod, &[8080])).collect();
        for pod in &bare_servers {
            bulk_file(pod)?;
        }
        for (number, pod) in (3..).zip(&bare_servers) {
            mesh.apply(&Service::vip(pod.name(), number).tcp("tcp", 80).yaml());
            mesh.apply(&endpoint(pod));
        }
        let client = mesh.pod(1, "client").up();
        let outside = mesh.pod(1, "outside").outside().up();
        let bare = mesh.pod(1, "bare").beside().up();
        [&client, &outside, &bare].into_iter().try_for_each(reno)?;
        pin(CLIENT_CPU)?;
        for number in 1..=GUARDED.1 {
            within(Duration::from_secs(20), "the services answer", || {
                Load::to(at(vip4(number), 80)).count(20).run(&client).failed() == 0
            });
        }
        Ok(Self {
            mesh,
            client,
            outside,
            bare,
            bare_servers,
            floor,
            _floor_programs: floor_programs,
            _servers: servers,
            _bare_nginx: bare_nginx,
        })
    }

    /// Beside our programs, on this node.
    fn bare_server(&self, node: u8) -> SocketAddr {
        at(self.bare_servers[usize::from(node) - 1].ip(), 8080)
    }

    fn balanced(&self) -> u64 {
        self.mesh.node(1).verdict(Verdict::Balanced)
    }
}

/// Attaches a program that does nothing wherever ours would be. They go with what is returned.
fn empty_programs(pod: &Pod) -> Result<aya::Ebpf> {
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/empty.o");
    let mut ebpf = aya::Ebpf::load_file(object).context("empty.o: run cargo xtask build-ebpf")?;
    let cgroup = pod.cgroup().open()?;
    for (_, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(p) => {
                p.load().and_then(|()| p.attach(&cgroup, CgroupAttachMode::Single)).map(drop)
            }
            Program::CgroupSock(p) => {
                p.load().and_then(|()| p.attach(&cgroup, CgroupAttachMode::Single)).map(drop)
            }
            Program::SockOps(p) => {
                p.load().and_then(|()| p.attach(&cgroup, CgroupAttachMode::Single)).map(drop)
            }
            other => bail!("an empty program of type {:?}", other.prog_type()),
        }?;
    }
    Ok(ebpf)
}

/// A pod without an agent as an endpoint of the service of its name.
fn endpoint(pod: &Pod) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {{name: {0}, namespace: default}}\nspec:\n\
         \x20 addresses: [{1}]\n  services: [{{service: {0}, portName: tcp, targetPort: 8080}}]\n",
        pod.name(),
        pod.ip()
    )
}

fn bulk_file(pod: &Pod) -> Result<()> {
    Ok(std::fs::write(pod.work().join("files/bulk"), vec![b'x'; BULK])?)
}

/// The situations of connect(): with the server in the mesh, and with the same server for both, which is
/// what the caller's side costs alone.
fn connect_places() -> impl Iterator<Item = (String, u8, u8)> {
    let alone = PLACES.map(|(place, node)| (format!("{place}, client alone"), node, node + 2));
    let guarded = (GUARDED.0.to_owned(), 1, GUARDED.1);
    PLACES.map(|(place, node)| (place.to_owned(), node, node)).into_iter().chain(alone).chain([guarded])
}

/// The cases that were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let traffic_of = |place| TRAFFIC.iter().filter(move |kind| options.wants(GROUP, place, kind.0));
    let connects_of: Vec<_> =
        connect_places().filter(|(place, ..)| options.wants(GROUP, place, "connect")).collect();
    let outside = options.wants(GROUP, OUTSIDE, "connect");
    let floor_too = options.wants(GROUP, FLOOR, "connect");
    let program = options.wants(GROUP, PROGRAM, "run");
    let places =
        PLACES.map(|(place, node)| (place, node, node)).into_iter().chain([(GUARDED.0, 1, GUARDED.1)]);
    let any_traffic = places.clone().any(|(place, ..)| traffic_of(place).next().is_some());
    if !any_traffic && connects_of.is_empty() && !outside && !floor_too && !program {
        return Ok(());
    }
    let ground = Ground::new()?;
    for (place, node, vip) in places {
        for kind in traffic_of(place) {
            traffic(&ground, options, report, place, kind, [at(vip4(vip), 80), ground.bare_server(node)])?;
        }
    }
    for (place, node, vip) in connects_of {
        connects(&ground, options, report, &place, [at(vip4(vip), 80), ground.bare_server(node)])?;
    }
    if floor_too {
        floor(&ground, options, report)?;
    }
    if outside {
        outsiders(&ground, options, report)?;
    }
    if program { program_time(&ground, report) } else { Ok(()) }
}

/// Requests, bulk or short connections, by wrk.
fn traffic(
    ground: &Ground,
    options: &Options,
    report: &mut Report,
    place: &str,
    (metric, path, args): &(&str, &str, &[&str]),
    to: [SocketAddr; 2],
) -> Result<()> {
    let mut balanced = [0; 2];
    let pairs = abba(options.rounds * TRAFFIC_ROUNDS, |ours| {
        let (pod, to) = if ours { (&ground.client, to[0]) } else { (&ground.bare, to[1]) };
        let before = ground.balanced();
        let rate = wrk(pod, args, &format!("http://{to}{path}"))?;
        balanced[usize::from(ours)] += ground.balanced() - before;
        Ok(rate)
    })?;
    prove(balanced)?;
    let unit = "requests/s";
    let goal = if *metric == "short" { Goal::None } else { Goal::RatioAtLeast(0.98) };
    report.pairs(&Case { place, metric, unit, goal, proof: &proof(balanced) }, PEER, &pairs);
    Ok(())
}

/// The median of connect() alone.
fn connects(
    ground: &Ground,
    options: &Options,
    report: &mut Report,
    place: &str,
    to: [SocketAddr; 2],
) -> Result<()> {
    let mut balanced = [0; 2];
    let pairs = abba(options.rounds * CONNECT_ROUNDS, |ours| {
        let (pod, to) = if ours { (&ground.client, to[0]) } else { (&ground.bare, to[1]) };
        let before = ground.balanced();
        let median = connect_median(pod, to)?;
        balanced[usize::from(ours)] += ground.balanced() - before;
        Ok(median)
    })?;
    prove(balanced)?;
    // Who asks for more pays for it.
    let goal = if place == GUARDED.0 { Goal::None } else { Goal::DifferenceAtMost(800.0) };
    let proof = &proof(balanced);
    report.pairs(&Case { place, metric: "connect", unit: "ns", goal, proof }, PEER, &pairs);
    Ok(())
}

/// What programs that do nothing would cost at both ends: no mesh that sees connections from cgroups is below.
fn floor(ground: &Ground, options: &Options, report: &mut Report) -> Result<()> {
    let (client, server) = &ground.floor;
    let to = [at(server.ip(), 8080), ground.bare_server(1)];
    let pairs = abba(options.rounds * CONNECT_ROUNDS, |ours| {
        if ours { connect_median(client, to[0]) } else { connect_median(&ground.bare, to[1]) }
    })?;
    let case = Case { place: FLOOR, metric: "connect", unit: "ns", goal: Goal::None, proof: &Proof::new() };
    report.pairs(&case, PEER, &pairs);
    Ok(())
}

/// What connect() costs a process that is not in the mesh, on a node that is.
fn outsiders(ground: &Ground, options: &Options, report: &mut Report) -> Result<()> {
    let to = ground.bare_server(1);
    let before = ground.balanced();
    let pairs = abba(options.rounds * CONNECT_ROUNDS, |ours| {
        connect_median(if ours { &ground.outside } else { &ground.bare }, to)
    })?;
    let balanced = ground.balanced() - before;
    ensure!(balanced == 0, "an outsider's connections were balanced");
    let (goal, proof) = (Goal::DifferenceAtMost(300.0), &proof([0, 0]));
    report.pairs(&Case { place: OUTSIDE, metric: "connect", unit: "ns", goal, proof }, PEER, &pairs);
    Ok(())
}

/// The kernel's own accounting of our programs, while the client connects.
fn program_time(ground: &Ground, report: &mut Report) -> Result<()> {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let was = std::fs::read_to_string(SWITCH)?;
    std::fs::write(SWITCH, "1")?;
    let before = programs(ground);
    let load = connect_median(&ground.client, at(vip4(1), 80));
    let after = programs(ground);
    std::fs::write(SWITCH, was.trim())?;
    load?;
    for (before, after) in before?.iter().zip(after?) {
        let word = |program: &Value, name: &str| program[name].as_u64().unwrap_or(0);
        let runs = word(&after, "run_cnt") - word(before, "run_cnt");
        let ns = word(&after, "run_time_ns") - word(before, "run_time_ns");
        if runs > 0 {
            let name = after["name"].as_str().unwrap_or("?").to_owned();
            let each = ns as f64 / runs as f64;
            let proof = Proof::from([("runs".to_owned(), runs)]);
            let case = format!("{PROGRAM} {name}");
            let what = Case { place: &case, metric: "run", unit: "ns", goal: Goal::None, proof: &proof };
            report.alone(&what, &[each], each);
        }
    }
    Ok(())
}

/// The programs on node 1's cgroup.
fn programs(ground: &Ground) -> Result<Vec<Value>> {
    let bpftool = |args: &[&str]| -> Result<Value> {
        let text = shell::run(std::process::Command::new("bpftool").arg("-j").args(args), "")?;
        serde_json::from_str(&text).context("bpftool's JSON")
    };
    let cgroup = ground.mesh.node(1).cgroup().path().to_string_lossy().into_owned();
    let attached = bpftool(&["cgroup", "show", &cgroup])?;
    let ids =
        attached.as_array().context("attached programs")?.iter().filter_map(|entry| entry["id"].as_u64());
    let programs: Vec<_> =
        ids.map(|id| bpftool(&["prog", "show", "id", &id.to_string()])).collect::<Result<_>>()?;
    ensure!(!programs.is_empty(), "no program is attached to {cgroup}");
    Ok(programs)
}

fn prove(balanced: [u64; 2]) -> Result<()> {
    ensure!(balanced[1] > 0, "the kernel path was not taken: this measured something else");
    ensure!(balanced[0] == 0, "the peer's connections went through the mesh");
    Ok(())
}

fn proof(balanced: [u64; 2]) -> Proof {
    Proof::from([("balanced_ours".to_owned(), balanced[1]), ("balanced_peer".to_owned(), balanced[0])])
}

/// The median of many connects, nanoseconds.
pub fn connect_median(pod: &Pod, to: SocketAddr) -> Result<f64> {
    let report = Load::to(to).connect_only().count(CONNECTS).run(pod);
    ensure!(report.failed() == 0, "connections failed: {report:?}");
    Ok(report.connect_ns[0] as f64)
}

/// Requests a second that wrk counts; any error is an error.
pub fn wrk(pod: &Pod, args: &[&str], url: &str) -> Result<f64> {
    let output = pod.run("wrk", &[args, &["-d", LEG, url]].concat())?;
    ensure!(!output.contains("Socket errors") && !output.contains("Non-2xx"), "wrk: {output}");
    let rate = output.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok()).with_context(|| format!("wrk said {output}"))
}
