//! Says of which workloads a program listens at the port of tunnels: nobody of the mesh reaches it there, because what
//! comes to that port of a workload is the agent's, and it may wonder why.
//!
//! Tunnels are not disturbed: `sk_lookup` hands them to the agent's listener, whose port is another one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::hbone::PORT;
use mesh_core::snapshot::WorkloadId;

use super::diag::Diag;
use crate::config::Handle as Config;
use crate::config::conditions::Lines;
use crate::path::Proxy;
use crate::sys;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// The conditions' group.
const GROUP: &str = "squatters";

/// Looks for as long as the agent runs.
pub(super) async fn follow(proxy: Proxy, config: Config) {
    let mut every = tokio::time::interval(LOOK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let snapshot = config.snapshot();
        let mut places = proxy.workloads();
        places.retain(|(id, _)| snapshot.workloads.get(id).is_some_and(|workload| workload.takes_tunnels()));
        let found =
            tokio::task::spawn_blocking(move || places.into_iter().filter(squatted).collect::<Vec<_>>());
        let Ok(found) = found.await else { continue };
        let named = found.iter().filter_map(|(id, _)| snapshot.workloads.get(id));
        let line = |name: &str| (format!("workload {name}, port {PORT}"), CAUSE.to_owned());
        let lines: Lines = named.map(|workload| line(&workload.full_name)).collect();
        config.conditions().replace(GROUP, lines);
    }
}

const CAUSE: &str = "a program of the workload listens there, and what comes there is the mesh's tunnels: give the \
                     program another port, or the workload mtls.mode: off";

/// A namespace that is gone, or can't be asked, has nobody who listens.
fn squatted((_, netns): &(WorkloadId, Arc<OwnedFd>)) -> bool {
    sys::in_netns(netns.as_fd(), || Diag::new()?.listens(PORT)).unwrap_or(false)
}
