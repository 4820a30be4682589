//! Asks the workloads of this node whether they are well, as their services want it.
//!
//! ```text
//! config's epochs ─▶ [`watch`]: which checks ─▶ [`task`]: one each ─▶ [`probe`] ─▶ the workload
//!                        ▲                          └─▶ [`recover`]: drain, eject, webhook, restart
//!                        └── what has changed ─▶ session ─▶ control plane ─▶ everybody's snapshot
//! ```
//! - [`http`], [`grpc`], [`command`]: how is asked. [`commands`]: the node's own file of commands.
//!
//! A check is made from within the workload's own network namespace to its own address, on a socket that the kernel's
//! programs know as the agent's: no policy is asked, nothing is counted as traffic, and nobody else can open such a one.
//!
//! Invariants: at most [`MOST`] checks, [`MOST_COMMANDS`] of them commands, each in a task of its own and one at a
//! time: a slow one delays nobody but itself. What was known stays until a check says otherwise, also over a restart of
//! the agent. Not here: when a workload counts as unhealthy (mesh-core's health), what follows elsewhere (compile).

mod command;
pub mod commands;
mod grpc;
mod http;
mod probe;
mod recover;
mod task;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::config::Handle as Config;
use crate::enrol::Enrolments;
use crate::kernel::Kernel;
use crate::path::Proxy;
use crate::session::Handle as Session;

/// Most checks of a node.
pub const MOST: usize = 1024;
/// Most of them that run a command.
pub const MOST_COMMANDS: usize = 128;

/// What checks need of the agent.
#[derive(Clone)]
pub struct Health {
    /// Marks sockets as the agent's own.
    pub kernel: Arc<Kernel>,
    /// The namespaces of workloads.
    pub proxy: Proxy,
    /// Which checks there are.
    pub config: Config,
    /// Whose workloads.
    pub enrolments: Enrolments,
    /// Who is told.
    pub session: Session,
    /// The node's own commands, if it has any.
    pub commands: Option<PathBuf>,
    /// What is counted.
    pub stats: Arc<Stats>,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Stats {
    /// By kind of probe: passed, failed.
    pub checks: [[AtomicU64; 2]; KINDS.len()],
    /// By action of a recovery: done, failed.
    pub actions: [[AtomicU64; 2]; ACTIONS.len()],
    /// How often a workload became healthy or unhealthy.
    pub changes: AtomicU64,
    /// Checks that are made.
    pub running: AtomicU64,
    /// Of those, by which a workload is not healthy.
    pub unhealthy: AtomicU64,
    /// Checks for which there is no room.
    pub left_out: AtomicU64,
}

/// Kinds of probes, as they are counted.
pub const KINDS: [&str; 4] = ["http", "grpc", "tcp", "command"];
/// Actions of a recovery, as they are counted.
pub const ACTIONS: [&str; 5] = ["drain", "eject", "readmit", "webhook", "restart"];

impl Stats {
    fn checked(&self, kind: usize, passed: bool) {
        self.checks[kind][usize::from(!passed)].fetch_add(1, Relaxed);
    }

    fn acted(&self, action: &str, done: bool) {
        if let Some(place) = ACTIONS.iter().position(|known| *known == action) {
            self.actions[place][usize::from(!done)].fetch_add(1, Relaxed);
        }
    }
}

/// Unix milliseconds.
fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
