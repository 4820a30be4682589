//! What the agent does about policies beside writing them to the maps: it says who was refused, and ends
//! connections that a change no longer allows; and it proves who sends where the programs could not.
//!
//! kernel's refusals ──ring──▶ [`denials`] ──▶ log
//! config's epochs ──▶ [`revoke`] ──[`diag`]──▶ connections in the workloads' namespaces
//! sockets there ──[`diag`]──▶ [`senders`] ──▶ `UDP_SENDERS`
//!               ──[`diag`]──▶ [`squatters`] ──▶ conditions
//!
//! Not here: the decision (kernel, and mesh-core's authorise for the proxy).

mod denials;
mod diag;
mod end;
mod revoke;
mod senders;
mod squatters;

pub use end::end_inbound;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_common::policy::{Caller, UNPROVED};
use mesh_core::authorise::{Asked, Seen, at};
use mesh_core::snapshot::Snapshot;

use crate::config::Handle as Config;
use crate::kernel::Kernel;
use crate::path::Proxy;
use crate::sys::monotonic_ns;

/// Connections that a change has ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// A policy allows them no longer.
    pub policy: AtomicU64,
    /// They are plaintext, and their workload takes none any more.
    pub plaintext: AtomicU64,
}

/// Starts its tasks; they run as long as the agent does. `took_over`: see [`revoke::follow`].
pub fn start(kernel: Arc<Kernel>, proxy: Proxy, config: Config, took_over: bool) -> Arc<Ended> {
    let ended = Arc::new(Ended::default());
    let strangers = Arc::default();
    tokio::spawn(denials::follow(kernel.clone(), config.clone(), Arc::clone(&strangers)));
    tokio::spawn(senders::follow(kernel.clone(), proxy.clone(), config.clone(), strangers));
    tokio::spawn(squatters::follow(proxy.clone(), config.clone()));
    tokio::spawn(revoke::follow(kernel, proxy, config, ended.clone(), took_over));
    ended
}

/// Who a workload of this node is; nobody, where it is not known.
fn caller(snapshot: &Snapshot, workload: u32) -> Caller {
    let known = snapshot.workloads.get(&workload);
    known.map_or(UNPROVED, |w| Caller { identity: w.identity, namespace: w.mesh_ns })
}

/// Why this caller may not connect to this workload; `None`: it may.
fn refusal(
    snapshot: &Snapshot,
    called: u32,
    caller: Caller,
    address: IpAddr,
    (port, seen): (u16, Seen<'_>),
) -> Option<String> {
    let set = snapshot.workloads.get(&called)?.policy_set;
    let at = at(address);
    let asked = Asked { caller, addresses: Some(&at), port: Some(port), seen };
    snapshot.policies.get(&set)?.refuses(&asked).map(|refusal| refusal.to_string())
}

/// Lines that may still be logged in this second: a flood of refusals must not become a flood of lines.
#[derive(Debug, Default)]
pub struct Quota(AtomicU64);

impl Quota {
    /// Lines a second.
    const MOST: u64 = 10;
    /// Low bits of the word: lines in the second that the others say.
    const COUNT_BITS: u32 = 16;

    /// None taken.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes a line; `false`: there is none left.
    pub fn take(&self) -> bool {
        self.take_at(monotonic_ns() / 1_000_000_000)
    }

    fn take_at(&self, second: u64) -> bool {
        let next = |word: u64| {
            let (then, count) = (word >> Self::COUNT_BITS, word & ((1 << Self::COUNT_BITS) - 1));
            match () {
                () if then != second => Some(second << Self::COUNT_BITS | 1),
                () if count < Self::MOST => Some(word + 1),
                () => None,
            }
        };
        self.0.fetch_update(Relaxed, Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_second_and_no_more() {
        let quota = Quota::new();
        let taken = |second| (0..100).filter(|_| quota.take_at(second)).count() as u64;
        assert_eq!((taken(5), taken(5), taken(6)), (Quota::MOST, 0, Quota::MOST));
    }
}
