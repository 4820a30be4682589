//! `bench mtls`: tunnels between two agents against a pair of Envoys, in the same run, between the same nodes.
//!
//! Everything crosses from node 1 to node 2: wrk in a pod, nginx in another. Ours: an enrolled client dials a virtual
//! address; the peer's client dials its Envoy on loopback. Both sides' proxies have one worker.
//!
//! What counts is what the two proxies of a side burn together: user and system time of their processes, as the
//! kernel accounts it to them. Proof: connections to each side's tunnel port, as `ss` shows them in the server's
//! namespace, and requests that nginx has answered.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use mesh_tests::{
    Mesh, Pod,
    programs::{Nginx, nginx},
    resources::{Service, at, vip4},
    within,
};

use crate::{
    Options,
    envoy::{FAR, Pair, REQUESTS, TUNNEL},
    load::{processor_seconds, wrk},
    report::{Case, Goal, Proof, Report},
    stats::abba,
};

const GROUP: &str = "mtls";
const PEER: &str = "envoy-pair";
const LEG: &str = "2s";
const BULK: usize = 1 << 20;
/// HBONE's port.
const HBONE: u16 = 15008;

/// What is measured of a leg.
#[derive(Clone, Copy)]
enum Measure {
    /// Microseconds of processor time of both proxies, a request.
    Cpu,
    /// Mebibytes a second of processor time of both proxies.
    Bulk,
    /// Requests a second.
    Rate,
    /// Microseconds, the median.
    Median,
}

struct Kind {
    place: &'static str,
    metric: &'static str,
    unit: &'static str,
    measure: Measure,
    /// Through HTTP, or any TCP.
    http: bool,
    path: &'static str,
    args: &'static [&'static str],
    goal: fn() -> Goal,
}

const CLOSE: &[&str] = &["-t1", "-c8", "-H", "Connection: close"];

const KINDS: [Kind; 8] = [
    Kind {
        place: "http, 64 connections",
        metric: "cpu",
        unit: "us/request",
        measure: Measure::Cpu,
        http: true,
        path: "/",
        args: &["-t1", "-c64"],
        goal: || Goal::RatioAtMost(0.7),
    },
    Kind {
        place: "http, 64 connections",
        metric: "requests",
        unit: "requests/s",
        measure: Measure::Rate,
        http: true,
        path: "/",
        args: &["-t1", "-c64"],
        goal: || Goal::None,
    },
    Kind {
        place: "http, 1 connection",
        metric: "median",
        unit: "us",
        measure: Measure::Median,
        http: true,
        path: "/",
        args: &["-t1", "-c1"],
        goal: || Goal::RatioAtMost(0.5),
    },
    Kind {
        place: "tcp, 64 connections",
        metric: "cpu",
        unit: "us/request",
        measure: Measure::Cpu,
        http: false,
        path: "/",
        args: &["-t1", "-c64"],
        goal: || Goal::RatioAtMost(0.7),
    },
    Kind {
        place: "tcp, 1 connection",
        metric: "median",
        unit: "us",
        measure: Measure::Median,
        http: false,
        path: "/",
        args: &["-t1", "-c1"],
        goal: || Goal::RatioAtMost(0.5),
    },
    Kind {
        place: "tcp, bulk",
        metric: "cpu",
        unit: "MiB/cpu-s",
        measure: Measure::Bulk,
        http: false,
        path: "/files/bulk",
        args: &["-t1", "-c4"],
        goal: || Goal::RatioAtLeast(1.5),
    },
    Kind {
        place: "tcp, new connections",
        metric: "rate",
        unit: "connections/s",
        measure: Measure::Rate,
        http: false,
        path: "/",
        args: CLOSE,
        goal: || Goal::RatioAtLeast(2.0),
    },
    Kind {
        place: "tcp, new connections",
        metric: "cpu",
        unit: "us/connection",
        measure: Measure::Cpu,
        http: false,
        path: "/",
        args: CLOSE,
        goal: || Goal::None,
    },
];

struct Ground {
    mesh: Mesh,
    client: Pod,
    bare: Pod,
    server: (Pod, Nginx),
    bare_server: (Pod, Nginx),
    envoys: Pair,
}

impl Ground {
    fn new() -> Result<Self> {
        let mesh = Mesh::builder().nodes(2).mtls().agent_args(&["--workers", "1"]).up();
        mesh.apply(&Service::vip("web", 1).http("http", 80).tcp("tcp", 81).yaml());
        let pod = mesh.pod(2, "web-0").serves("web", "http", 8080).serves("web", "tcp", 8080).outside();
        let mut server = pod.up();
        let server_nginx = nginx(&server, &[8080]);
        server.enrol();
        let bare_server = mesh.pod(2, "bare-web").beside().up();
        let bare_nginx = nginx(&bare_server, &[8080]);
        for pod in [&server, &bare_server] {
            fs::write(pod.work().join("files/bulk"), vec![b'x'; BULK])?;
        }
        let (client, bare) = (mesh.pod(1, "client").up(), mesh.pod(1, "bare").beside().up());
        let envoys = Pair::start(&bare, &bare_server, 8080)?;
        for port in [80, 81] {
            within(Duration::from_secs(30), "the service answers through a tunnel", || {
                let url = format!("http://{}/", at(vip4(1), port));
                client.run("curl", &["-sf", "-m", "2", &url]).is_ok() && tunnels(&server, HBONE) > 0
            });
        }
        let (server, bare_server) = ((server, server_nginx), (bare_server, bare_nginx));
        Ok(Self { mesh, client, bare, server, bare_server, envoys })
    }

    /// Seconds of processor time that a side's proxies have burnt.
    fn burnt(&self, ours: bool) -> Result<f64> {
        let pids = if ours {
            [self.mesh.node(1).agent_pid(), self.mesh.node(2).agent_pid()]
        } else {
            [self.envoys.processes[0].pid(), self.envoys.processes[1].pid()]
        };
        pids.into_iter().map(processor_seconds).sum()
    }

    fn leg(&self, ours: bool, kind: &Kind) -> Result<f64> {
        let pod = if ours { &self.client } else { &self.bare };
        let before = self.burnt(ours)?;
        let url = url(ours, kind);
        let done = wrk(pod, &[kind.args, &["-d", LEG, &url]].concat())?;
        let burnt = self.burnt(ours)? - before;
        Ok(match kind.measure {
            Measure::Cpu => burnt * 1e6 / done.requests,
            Measure::Bulk => done.requests * (BULK as f64 / 1_048_576.0) / burnt,
            Measure::Rate => done.rate,
            Measure::Median => done.median_us,
        })
    }

    /// Tunnels of ours, and connections between the Envoys; requests answered of each.
    fn proof(&self) -> Proof {
        let envoys: u64 = FAR.iter().map(|port| tunnels(&self.bare_server.0, *port)).sum();
        let ours = tunnels(&self.server.0, HBONE);
        let answered = |nginx: &Nginx| nginx.access_log().lines().count() as u64;
        let [ours_answered, peer_answered] = [&self.server.1, &self.bare_server.1].map(answered);
        Proof::from(
            [
                ("tunnels_ours", ours),
                ("tunnels_peer", envoys),
                ("answered_ours", ours_answered),
                ("answered_peer", peer_answered),
            ]
            .map(|(name, count)| (name.to_owned(), count)),
        )
    }
}

/// Where a leg goes.
fn url(ours: bool, kind: &Kind) -> String {
    let to = match (ours, kind.http) {
        (true, true) => at(vip4(1), 80),
        (true, false) => at(vip4(1), 81),
        (false, true) => at([127, 0, 0, 1], REQUESTS),
        (false, false) => at([127, 0, 0, 1], TUNNEL),
    };
    format!("http://{to}{}", kind.path)
}

/// Established connections to a port of a pod.
fn tunnels(pod: &Pod, port: u16) -> u64 {
    let filter = format!("sport = :{port}");
    let shown = pod.run("ss", &["-Htn", "state", "established", &filter]).unwrap_or_default();
    shown.lines().count() as u64
}

/// The cases that were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let wanted: Vec<_> = KINDS.iter().filter(|kind| options.wants(GROUP, kind.place, kind.metric)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let ground = Ground::new()?;
    for kind in wanted {
        let pairs = abba(options.rounds, |ours| ground.leg(ours, kind))?;
        let proof = ground.proof();
        ensure!(proof["tunnels_ours"] > 0 && proof["tunnels_peer"] > 0, "not through tunnels: {proof:?}");
        let case = Case {
            place: kind.place,
            metric: kind.metric,
            unit: kind.unit,
            goal: (kind.goal)(),
            proof: &proof,
        };
        report.pairs(&case, PEER, &pairs);
    }
    Ok(())
}
