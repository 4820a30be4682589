//! Active health: what is asked of a workload, which checks there are, and what their outcomes come to.
//!
//! ```text
//! snapshot ─[`wanted`]─▶ checks of a workload ─agent asks─▶ outcome ─[`machine`]─▶ state, actions
//!                                                                        └─▶ control plane ─▶ everybody's snapshot
//! ```
//!
//! Invariant: which checks there are follows from the snapshot alone; what an outcome comes to, from the outcomes
//! before it and the time that is given. Not here: asking (mesh-agent), ejection for what clients saw (resilience, the
//! kernel).

pub mod machine;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{Snapshot, Workload, WorkloadPort};

/// Most checks of one workload: what is told of it is bounded.
pub const MOST: usize = 64;

/// How the workloads behind a service port are asked, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub check: Check,
    /// The port says so itself, for itself.
    pub own: bool,
    /// What follows where one is unhealthy.
    pub recovery: Recovery,
}

/// What is asked, where and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub probe: Probe,
    /// Port of the workload; `None`: where it serves the service's.
    pub port: Option<u16>,
    /// How often, and how many count.
    pub rules: Rules,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A GET.
    Http(Http),
    /// grpc.health.v1, of this service.
    Grpc(String),
    /// A connection.
    Tcp,
    /// A command of the node's own configuration.
    Command(String),
}

/// A GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Path and query.
    pub path: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Answers that pass, first and last.
    pub statuses: Vec<(u32, u32)>,
}

/// How often is asked, and how many answers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// From one check to the next.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// By how much of a hundred the interval is drawn apart.
    pub jitter_percent: u32,
    /// Passes in a row that make it healthy.
    pub healthy: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy: u32,
    /// How long failures do not count after the start.
    pub grace: Duration,
}

impl Rules {
    /// From the beginning of a check to the next. `random`: 0.0..1.0.
    pub fn wait(&self, random: f64) -> Duration {
        let spread = f64::from(self.jitter_percent.min(100)) / 100.0;
        self.interval.mul_f64(1.0 + spread * (random.clamp(0.0, 1.0) - 0.5))
    }

    /// Until the first check: soon, and not all at once.
    pub fn first(&self, random: f64) -> Duration {
        self.interval.min(Duration::from_secs(1)).mul_f64(random.clamp(0.0, 1.0) / 4.0)
    }
}

/// What follows where a workload is unhealthy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Each once, but for restarts.
    pub steps: Vec<Step>,
    /// Passes in a row until it comes back; 0: as the rules say.
    pub readmit: u32,
}

/// Something that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// After so many failures in a row.
    pub after: u32,
    /// What.
    pub action: Action,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing new is sent to the workload.
    Drain,
    /// The same, and what is open is reset.
    Eject,
    /// This URL is told.
    Webhook(String),
    /// This command of the node's is run.
    Restart {
        /// Its name.
        command: String,
        /// So many times.
        at_most: u32,
    },
}

impl Action {
    /// As people read it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Eject => "eject",
            Self::Webhook(_) => "webhook",
            Self::Restart { .. } => "restart",
        }
    }
}

/// Which check of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Which {
    /// `<namespace>/<name>` of the service.
    pub service: Arc<str>,
    /// The port that says so itself, and whether it is one of UDP; `None`: the service as a whole.
    pub port: Option<(u16, bool)>,
}

impl Which {
    /// The service's name within its namespace.
    pub fn name(&self) -> &str {
        self.service.split_once('/').map_or(&*self.service, |(_, name)| name)
    }
}

/// A check that is to be made of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub which: Which,
    /// How, and what follows.
    pub health: Arc<Health>,
    /// Where; of a command: any of its addresses.
    pub target: SocketAddr,
    /// How the control plane says that it is.
    pub healthy: bool,
}

/// The checks of a workload, by [`Which`], at most [`MOST`]; and how many more there are.
pub fn wanted(snapshot: &Snapshot, workload: &Workload) -> (Vec<Wanted>, usize) {
    let own = workload.v4().map(IpAddr::V4).or(workload.v6().map(IpAddr::V6));
    let Some(address) = own.filter(|_| workload.outside.is_none()) else { return (Vec::new(), 0) };
    let mut found: Vec<(Wanted, usize)> = Vec::new();
    for port in &*workload.ports {
        let Some(service) = snapshot.services.get(&port.service) else { continue };
        let Some(health) = &service.health else { continue };
        let full: String = [&*service.namespace, "/", &*service.name].concat();
        let place = place(snapshot, &full, port);
        let which = Which { service: full.into(), port: health.own.then_some((service.port, service.udp())) };
        let dials = !matches!(health.check.probe, Probe::Command(_)) && health.check.port.is_none();
        if dials && port.udp() {
            // Another port of the service is the one to connect to.
            continue;
        }
        let target = SocketAddr::new(address, health.check.port.unwrap_or(port.port));
        match found.iter_mut().find(|(known, _)| known.which == which) {
            None => {
                let healthy = port.healthy;
                found.push((Wanted { which, health: Arc::clone(health), target, healthy }, place));
            }
            Some((known, first)) if place < *first => (known.target, *first) = (target, place),
            Some(_) => {}
        }
    }
    let mut all: Vec<Wanted> = found.into_iter().map(|(wanted, _)| wanted).collect();
    all.sort_by(|a, b| a.which.cmp(&b.which));
    let more = all.len().saturating_sub(MOST);
    all.truncate(MOST);
    (all, more)
}

/// Where the port stands in its service's list: the first one is the one that the service's check is made at.
fn place(snapshot: &Snapshot, service: &str, port: &WorkloadPort) -> usize {
    let ports = snapshot.names.get(service);
    ports.and_then(|ids| ids.iter().position(|id| *id == port.service)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
