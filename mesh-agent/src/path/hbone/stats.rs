//! What is counted of tunnels. Each worker counts alone; a scrape adds the workers up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use mesh_core::hbone;
use mesh_identity::{Fault, Refused};

use super::super::worker::Shared;

/// Which end of a tunnel this agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A workload of this node calls.
    Client,
    /// A workload of this node is called.
    Server,
}

impl Role {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Client, Self::Server];

    /// Label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both ends believe each other.
    Done,
    /// It took too long.
    Timeout,
    /// The connection broke, or HTTP/2 did not begin.
    Broken,
    /// We have no certificate to show, or do not know whom to believe.
    NoCertificate,
    /// We do not believe the peer.
    Theirs(Refused),
    /// The peer does not believe us.
    Ours(Refused),
}

/// Outcomes that are no refusals.
const PLAIN: [(Outcome, &str); 4] = [
    (Outcome::Done, "ok"),
    (Outcome::Timeout, "timeout"),
    (Outcome::Broken, "broken"),
    (Outcome::NoCertificate, "no_certificate"),
];
const REFUSALS: usize = Refused::ALL.len();
/// Handshakes: those four, what we refuse, what peers refuse.
const OUTCOMES: usize = PLAIN.len() + 2 * REFUSALS;

impl Outcome {
    /// What a broken handshake was.
    pub fn of(error: &std::io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls.and_then(Fault::of) {
            Some(Fault::Theirs(refused)) => Self::Theirs(refused),
            Some(Fault::Ours(refused)) => Self::Ours(refused),
            None => Self::Broken,
        }
    }

    fn index(self) -> usize {
        let of = |refused: Refused| Refused::ALL.iter().position(|r| *r == refused).unwrap_or(0);
        match self {
            Self::Theirs(refused) => PLAIN.len() + of(refused),
            Self::Ours(refused) => PLAIN.len() + REFUSALS + of(refused),
            plain => PLAIN.iter().position(|(outcome, _)| *outcome == plain).unwrap_or(0),
        }
    }

    /// Labels: outcome, and who found fault.
    fn labels(index: usize) -> (&'static str, &'static str) {
        let refusal = index.checked_sub(PLAIN.len());
        match refusal {
            None => (PLAIN[index].1, ""),
            Some(at) if at < REFUSALS => (Refused::ALL[at].reason(), "us"),
            Some(at) => (Refused::ALL[at - REFUSALS].reason(), "peer"),
        }
    }
}

/// Counters of one worker.
#[derive(Debug)]
pub struct TunnelCounters {
    tunnels: [AtomicI64; 2],
    streams: [AtomicI64; 2],
    handshakes: [[AtomicU64; OUTCOMES]; 2],
    refused: [AtomicU64; hbone::Refused::ALL.len()],
}

impl Default for TunnelCounters {
    fn default() -> Self {
        Self {
            tunnels: Default::default(),
            streams: Default::default(),
            handshakes: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            refused: Default::default(),
        }
    }
}

impl TunnelCounters {
    /// A handshake ended so.
    pub fn handshake(&self, role: Role, outcome: Outcome) {
        self.handshakes[role as usize][outcome.index()].fetch_add(1, Relaxed);
    }

    /// A CONNECT was refused.
    pub fn refused(&self, refused: hbone::Refused) {
        let index = hbone::Refused::ALL.iter().position(|r| *r == refused).unwrap_or(0);
        self.refused[index].fetch_add(1, Relaxed);
    }
}

/// Everything, of all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelCounts {
    /// Tunnels that are open, as client and as server.
    pub tunnels: [i64; 2],
    /// Streams in them.
    pub streams: [i64; 2],
    /// Handshakes: role, outcome, who found fault (empty: nobody did), how many. Those that occurred.
    pub handshakes: Vec<(Role, &'static str, &'static str, u64)>,
    /// CONNECTs that were refused here, by reason. Those that occurred.
    pub refused: Vec<(&'static str, u64)>,
}

/// Adds workers up.
pub fn merge<'a>(workers: &(impl Iterator<Item = &'a TunnelCounters> + Clone)) -> TunnelCounts {
    let sum = |of: &dyn Fn(&TunnelCounters) -> u64| workers.clone().map(of).sum::<u64>();
    let gauge = |of: &dyn Fn(&TunnelCounters) -> i64| workers.clone().map(of).sum::<i64>();
    let mut counts = TunnelCounts::default();
    for role in Role::ALL {
        let at = role as usize;
        counts.tunnels[at] = gauge(&|w| w.tunnels[at].load(Relaxed));
        counts.streams[at] = gauge(&|w| w.streams[at].load(Relaxed));
        for outcome in 0..OUTCOMES {
            let n = sum(&|w| w.handshakes[at][outcome].load(Relaxed));
            let (name, by) = Outcome::labels(outcome);
            counts.handshakes.extend((n > 0).then_some((role, name, by, n)));
        }
    }
    for (index, refused) in hbone::Refused::ALL.iter().enumerate() {
        let n = sum(&|w| w.refused[index].load(Relaxed));
        counts.refused.extend((n > 0).then_some((refused.reason(), n)));
    }
    counts
}

/// Counts a tunnel and its streams.
pub struct Tally {
    shared: Arc<Shared>,
    /// Which end it is.
    pub role: Role,
}

impl Tally {
    /// One more tunnel.
    pub fn new(shared: &Arc<Shared>, role: Role) -> Self {
        shared.tunnels.tunnels[role as usize].fetch_add(1, Relaxed);
        Self { shared: shared.clone(), role }
    }

    /// One tunnel less.
    pub fn ended(&self) {
        self.shared.tunnels.tunnels[self.role as usize].fetch_sub(1, Relaxed);
    }

    /// So many more streams.
    pub fn stream(&self, more: i64) {
        self.shared.tunnels.streams[self.role as usize].fetch_add(more, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_own_row() {
        let counters = TunnelCounters::default();
        counters.handshake(Role::Client, Outcome::Done);
        counters.handshake(Role::Server, Outcome::Theirs(Refused::Expired));
        counters.handshake(Role::Client, Outcome::Ours(Refused::Expired));
        counters.refused(hbone::Refused::Denied);
        let counts = merge(&[&counters, &counters].into_iter());
        let rows = [
            (Role::Client, "ok", "", 2),
            (Role::Client, "expired", "peer", 2),
            (Role::Server, "expired", "us", 2),
        ];
        assert_eq!(counts.handshakes, rows);
        assert_eq!(counts.refused, [("denied_by_policy", 2)]);
    }
}
