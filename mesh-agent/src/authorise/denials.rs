//! Says in the log who was refused by which policy. The kernel's counters are exact, this is not: the ring
//! holds a few hundred records, and only so many lines a second are written; how many were not is said.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::addr;
use mesh_common::record::{Denial, PROTO_UDP};
use mesh_core::authorise::Seen;
use mesh_core::snapshot::Snapshot;

use super::senders::Strangers;
use super::{Quota, caller, refusal};
use crate::config::Handle as Config;
use crate::kernel::Kernel;

/// Between two looks at the ring.
const LOOK: Duration = Duration::from_millis(200);
/// Records read at one look.
const BATCH: usize = 1024;

/// Reads the ring for as long as the agent runs.
pub(super) async fn follow(kernel: Arc<Kernel>, config: Config, strangers: Arc<Strangers>) {
    let mut ring = match kernel.denials() {
        Ok(ring) => ring,
        Err(error) => {
            tracing::error!(%error, "refusals by policy cannot be read: they are counted and not logged");
            return;
        }
    };
    let quota = Quota::new();
    let mut every = tokio::time::interval(LOOK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let mut unsaid = 0u32;
        let snapshot = config.snapshot();
        for _ in 0..BATCH {
            let Some(denial) = ring.next() else { break };
            strangers.hear(&denial);
            if quota.take() {
                say(&snapshot, &config, &denial);
            } else {
                unsaid += 1;
            }
        }
        if unsaid > 0 {
            tracing::warn!(more = unsaid, "refused by policy");
        }
    }
}

fn say(snapshot: &Snapshot, config: &Config, denial: &Denial) {
    let Denial { source_addr, source, destination, port_be, proto } = *denial;
    let (address, port) = (addr::to_ip(&source_addr), u16::from_be(port_be));
    let names = config.names();
    let destination_name = names.workload(snapshot, destination);
    let from = who(address, (source != 0).then(|| names.workload(snapshot, source)));
    let seen = if proto == u16::from(PROTO_UDP) { Seen::Opaque } else { Seen::Unknown };
    let why = refusal(snapshot, destination, caller(snapshot, source), address, (port, seen));
    let refusal = why.unwrap_or_else(|| {
        "by what was in force: it has changed since, or does not fit the map POLICY".to_owned()
    });
    let protocol = if proto == u16::from(PROTO_UDP) { "udp" } else { "tcp" };
    tracing::warn!(
        source = from,
        destination = destination_name,
        protocol,
        port,
        refusal,
        "refused by policy"
    );
}

/// The name of a workload, else the address.
fn who(address: IpAddr, name: Option<String>) -> String {
    match name {
        Some(name) => name,
        None => address.to_string(),
    }
}
