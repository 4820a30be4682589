//! Datagrams, one question and one answer at a time: kernel path against no mesh, from sockets that are
//! connected and from such that are not, same node and across.
//!
//! Both servers answer from a socket that is not connected. The proof is how many sockets the kernel gave an
//! endpoint: one a leg, of ours alone.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod,
    process::{Process, own_program},
    resources::{Service, at, vip4},
};

use crate::{
    Options,
    l4::{CLIENT_CPU, GROUP, PEER, PLACES, SERVER_CPU, pin},
    report::{Case, Goal, Proof, Report},
    stats::abba,
};

const PORT: u16 = 9000;
/// Names of the cases, and whether the asking socket is connected.
const KINDS: [(&str, bool); 2] = [("udp", false), ("udp-connected", true)];
/// A leg's seconds, and how many times as many rounds as others: the rate of a ping-pong moves with every
/// wake-up, and many short legs even that out.
const LEG: &str = "0.5";
const ROUNDS: usize = 2;

/// Clients and servers.
struct Ground {
    mesh: Mesh,
    client: Pod,
    bare: Pod,
    /// Beside our programs, on nodes 1 and 2.
    bare_servers: [Pod; 2],
    _servers: Vec<(Pod, Process)>,
    _bare: Vec<Process>,
}

impl Ground {
    fn new() -> Result<Self> {
        let mesh = Mesh::builder().nodes(2).up();
        pin(SERVER_CPU)?;
        let mut servers = Vec::new();
        for (node, name) in [(1, "near"), (2, "far")] {
            mesh.apply(&Service::vip(name, node).udp("udp", 80).yaml());
            let mut pod = mesh.pod(node, &format!("{name}-a")).serves(name, "udp", PORT).outside().up();
            let server = serve(&pod);
            pod.enrol();
            servers.push((pod, server));
        }
        let bare_servers = [1, 2].map(|node| mesh.pod(node, &format!("bare-{node}")).beside().up());
        let programs = bare_servers.iter().map(serve).collect();
        let client = mesh.pod(1, "client").up();
        let bare = mesh.pod(1, "bare").beside().up();
        pin(CLIENT_CPU)?;
        Ok(Self { mesh, client, bare, bare_servers, _servers: servers, _bare: programs })
    }

    fn balanced(&self) -> u64 {
        self.mesh.node(1).verdict(Verdict::Balanced)
    }
}

fn serve(pod: &Pod) -> Process {
    pod.start("mesh-udp", own_program("mesh-udp"), &["serve", &PORT.to_string()])
}

/// The cases that were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let all = PLACES.iter().flat_map(|place| KINDS.iter().map(move |kind| (place, kind)));
    let wanted: Vec<_> =
        all.filter(|((place, _), (metric, _))| options.wants(GROUP, place, metric)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let ground = Ground::new()?;
    for ((place, node), (metric, connected)) in wanted {
        let bare = &ground.bare_servers[usize::from(*node) - 1];
        let to = [at(vip4(*node), 80), at(bare.ip(), PORT)];
        within_reach(&ground, to);
        case(&ground, options, report, (*place, *metric), *connected, to)?;
    }
    Ok(())
}

/// Both servers answer.
fn within_reach(ground: &Ground, to: [SocketAddr; 2]) {
    mesh_tests::within(Duration::from_secs(20), "the servers answer", || {
        rate(&ground.client, to[0], "0.01", false).is_ok() && rate(&ground.bare, to[1], "0.01", false).is_ok()
    });
}

fn case(
    ground: &Ground,
    options: &Options,
    report: &mut Report,
    (place, metric): (&str, &str),
    connected: bool,
    to: [SocketAddr; 2],
) -> Result<()> {
    let mut balanced = [0; 2];
    let pairs = abba(options.rounds * ROUNDS, |ours| {
        let (pod, to) = if ours { (&ground.client, to[0]) } else { (&ground.bare, to[1]) };
        let before = ground.balanced();
        let rate = rate(pod, to, LEG, connected)?;
        balanced[usize::from(ours)] += ground.balanced() - before;
        Ok(rate)
    })?;
    let legs = (options.rounds * ROUNDS * 2 + 1) as u64;
    ensure!(balanced == [0, legs], "{balanced:?} sockets were given an endpoint, not [0, {legs}]");
    let proof =
        Proof::from([("balanced_ours".to_owned(), balanced[1]), ("balanced_peer".to_owned(), balanced[0])]);
    let what = Case { place, metric, unit: "answers/s", goal: Goal::RatioAtLeast(0.95), proof: &proof };
    report.pairs(&what, PEER, &pairs);
    Ok(())
}

/// Answers a second.
fn rate(pod: &Pod, to: SocketAddr, seconds: &str, connected: bool) -> Result<f64> {
    let program = own_program("mesh-udp");
    let program = program.to_str().context("a path that is text")?;
    let to = to.to_string();
    let connected = if connected { &["--connected"][..] } else { &[] };
    let said = pod.run(program, &[&["ask", &to, seconds][..], connected].concat())?;
    said.trim().parse().with_context(|| format!("mesh-udp said {said}"))
}
