//! Stories that take minutes: `cargo xtask test --all`.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, ChildStdin, Stdio},
    thread,
    time::{Duration, Instant},
};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh,
    eventually::until,
    load::{Load, Running},
    mesh::CONTROL,
    process,
    resources::{Service, at, transport, vip4, vip6},
    within,
};

use crate::words::{settled, web};

/// The default lease.
const LEASE: Duration = Duration::from_secs(30);

#[test]
fn a_control_plane_away_for_ten_lease_times_deregisters_nobody() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _servers = [web(&mesh, 1, "a", "raw", "tcp", 1), web(&mesh, 2, "b", "raw", "tcp", 1)];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a", "b"]);
    let load = Load::to(at(vip4(1), 80)).rate(100).start(&client);
    mesh.kill_control();
    // The subject is the time that passes: no answer to wait for.
    thread::sleep(LEASE * 10);
    mesh.start_control();
    let begin = Instant::now();
    while begin.elapsed() < LEASE * 2 {
        let before = load.now().servers;
        let after = load.go_on(100).servers;
        assert!(["a", "b"].iter().all(|name| after[*name] > before[*name]), "{before:?} {after:?}");
    }
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
}

/// A second, over IPv4 and IPv6 together.
const RATE: u32 = 5_000;

#[test]
fn five_thousand_short_connections_a_second_for_two_minutes_each_way() {
    const TIME: Duration = Duration::from_mins(2);
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&Service::vip("in", 2).port("tcp", 80, "tcp", "proxy").yaml());
    let servers = [web(&mesh, 1, "a", "site", "http", 1), web(&mesh, 1, "b", "in", "tcp", 1)];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    settled(&client, at(vip4(2), 80), &["b"]);
    for (way, (_, server), number, verdict) in
        [("out", &servers[0], 1, Verdict::Captured), ("in", &servers[1], 2, Verdict::InboundCaptured)]
    {
        let (before, asked) = (mesh.node(1).verdict(verdict), server.hits("/"));
        let loads = [at(vip4(number), 80), at(vip6(number), 80)]
            .map(|to| Load::to(to).threads(8).rate(RATE / 2).time(TIME).start(&client));
        let reports = loads.map(Running::done);
        let ok: u64 = reports.iter().map(|report| report.ok).sum();
        println!("{way}: {:.0} connections a second", ok as f64 / TIME.as_secs_f64());
        assert!(reports.iter().all(|report| report.failed() == 0), "{way}: {reports:?}");
        until(
            Duration::from_secs(10),
            "the server counts as many",
            || server.hits("/") - asked,
            |n| *n == ok,
        );
        // Inbound a SYN that is sent again counts again.
        assert!(mesh.node(1).verdict(verdict) - before >= ok, "{way}: not all were captured");
        let wanted = u64::from(RATE) * TIME.as_secs();
        assert!(ok * 100 >= wanted * 95, "{way}: {ok} of {wanted} in {TIME:?}: {reports:?}");
    }
}

/// Identities of a crowd that are renewed while requests go on, and the time over which agents spread that.
const IDENTITIES: usize = 2_500;
const CROWDS: usize = 4;
const SPREAD: Duration = Duration::from_secs(30);

/// A node of nothing but identities.
struct Crowd {
    child: Child,
    orders: ChildStdin,
    log: PathBuf,
}

impl Crowd {
    fn start(mesh: &Mesh, number: usize) -> Self {
        let name = format!("crowd-{number}");
        let work = mesh.place().work.join(&name);
        fs::create_dir_all(&work).unwrap();
        let token = mesh.meshctl(&["token", "create", "--node", &name, "--allow", "default/*"], "");
        fs::write(work.join("token"), token.trim()).unwrap();
        let mut command = process::command(mesh.fabric().cgroup(), process::own_program("mesh-svids"));
        command.args([&name, &format!("https://{CONTROL}:15012")]).arg(work.join("token")).arg(&work);
        command.args([IDENTITIES.to_string(), SPREAD.as_secs().to_string()]);
        let log = work.join("log");
        command.stdin(Stdio::piped()).stdout(fs::File::create(&log).unwrap());
        let mut child = mesh.fabric().netns.with(|| command.spawn()).unwrap();
        let orders = child.stdin.take().unwrap();
        Self { child, orders, log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

#[test]
fn requests_do_not_notice_that_ten_thousand_certificates_are_rotated() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&transport("strict", &["mtls: {mode: strict}"]));
    let _server = web(&mesh, 1, "a", "site", "http", 1);
    let client = mesh.pod(2, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let mut crowds: Vec<Crowd> = (1..=CROWDS).map(|number| Crowd::start(&mesh, number)).collect();
    for crowd in &crowds {
        within(Duration::from_mins(2), "everything is registered", || crowd.said().contains("registered"));
    }
    let p99 = |name: &str| {
        let load = Load::to(at(vip4(1), 80)).threads(4).rate(200).time(SPREAD);
        let report = load.run(&client);
        assert_eq!(report.failed(), 0, "{report:?}");
        let p99 = Duration::from_nanos(report.total_ns[1]);
        println!(
            "{name}: p99 {:.2} ms, median {:.2} ms",
            p99.as_secs_f64() * 1e3,
            report.total_ns[0] as f64 / 1e6
        );
        p99
    };
    p99("warm");
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=2 {
        without.push(p99("without"));
        for crowd in &mut crowds {
            crowd.orders.write_all(b"go\n").unwrap();
        }
        with.push(p99("with"));
        within(SPREAD, "all are rotated", || {
            crowds.iter().all(|crowd| crowd.said().matches("rotated").count() == round)
        });
        without.push(p99("without"));
    }
    for Crowd { mut child, orders, .. } in crowds {
        drop(orders);
        assert!(child.wait().unwrap().success());
    }
    without.sort();
    let differ = without[without.len() - 1].saturating_sub(without[0]);
    let (with, most) = (with.iter().min().unwrap(), without[without.len() - 1]);
    assert!(*with <= most + differ, "with {with:?}, without {without:?}");
}
