//! What it costs to note flows: short connections on the kernel path with agents that note everything, against
//! agents started with `--flow-telemetry none`. Two meshes side by side; one works at a time.
//!
//! Proof: what the kernel has counted in totals during ours and the peer's legs.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod,
    load::Load,
    programs::{Nginx, nginx},
    resources::{Service, at, vip4},
    within,
};

use crate::{
    Options,
    l4::{pin, reno, unpin, wrk},
    report::{Case, Goal, Proof, Report},
    stats::abba,
};

const GROUP: &str = "l4";
const PLACE: &str = "flow telemetry, same-node";
const METRIC: &str = "short";
const PEER: &str = "none";
/// As in the other cases of short connections.
const ARGS: [&str; 4] = ["-t1", "-c8", "-H", "Connection: close"];
const SERVER_CPU: usize = 1;
const CLIENT_CPU: usize = 0;

struct Ground {
    mesh: Mesh,
    client: Pod,
    _server: (Pod, Nginx),
}

impl Ground {
    fn new(mesh: Mesh) -> Result<Self> {
        pin(SERVER_CPU)?;
        mesh.apply(&Service::vip("near", 1).tcp("tcp", 80).yaml());
        let mut pod = mesh.pod(1, "near-a").serves("near", "tcp", 8080).outside().up();
        reno(&pod)?;
        let server = nginx(&pod, &[8080]);
        pod.enrol();
        pin(CLIENT_CPU)?;
        let client = mesh.pod(1, "client").up();
        reno(&client)?;
        within(Duration::from_secs(20), "the service answers", || {
            Load::to(at(vip4(1), 80)).count(20).run(&client).failed() == 0
        });
        Ok(Self { mesh, client, _server: (pod, server) })
    }

    fn rate(&self) -> Result<f64> {
        wrk(&self.client, &ARGS, &format!("http://{}/", at(vip4(1), 80)))
    }

    /// Balanced, and counted as closed.
    fn counts(&self) -> [u64; 2] {
        let closed = self.mesh.node(1).metrics().count("mesh_flow_closed_total", &[]);
        [self.mesh.node(1).verdict(Verdict::Balanced), closed]
    }
}

/// The case, if it was asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    if !options.wants(GROUP, PLACE, METRIC) {
        return Ok(());
    }
    // Agents run anywhere, in both meshes alike.
    unpin()?;
    let [noting, silent]: [&[&str]; 2] = [&[], &["--flow-telemetry", "none"]];
    let [noting, silent] = [noting, silent].map(|args| Mesh::builder().agent_args(args).up());
    let (noting, silent) = (Ground::new(noting)?, Ground::new(silent)?);
    let pairs = abba(options.rounds * 2, |ours| if ours { noting.rate() } else { silent.rate() })?;
    let ([ours, noted], [peer, none]) = (noting.counts(), silent.counts());
    ensure!(ours > 0 && peer > 0, "the kernel path was not taken: this measured something else");
    ensure!(noted > 0 && none == 0, "flows were noted where they should not be, or the other way round");
    let proof =
        [("balanced_ours", ours), ("balanced_peer", peer), ("noted_ours", noted), ("noted_peer", none)];
    let proof = Proof::from(proof.map(|(name, count)| (name.to_owned(), count)));
    let goal = Goal::RatioAtLeast(0.98);
    report.pairs(
        &Case { place: PLACE, metric: METRIC, unit: "requests/s", goal, proof: &proof },
        PEER,
        &pairs,
    );
    Ok(())
}
