//! Says in the log who was refused by which policy. The kernel's counters are exact, this is not: the ring
//! holds a few hundred records, and only so many lines a second are written; how many were not is said.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::addr;
use mesh_common::policy::OUTWARD;
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
    let (quota, outward) = (Quota::new(), Quota::new());
    let mut every = tokio::time::interval(LOOK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let (mut unsaid, mut unsaid_outward) = (0u32, 0u32);
        let snapshot = config.snapshot();
        for _ in 0..BATCH {
            let Some(denial) = ring.next() else { break };
            strangers.hear(&denial);
            if denial.proto & OUTWARD != 0 {
                if outward.take() {
                    say_outward(&snapshot, &config, &denial);
                } else {
                    unsaid_outward += 1;
                }
                continue;
            }
            if quota.take() {
                say(&snapshot, &config, &denial);
            } else {
                unsaid += 1;
            }
        }
        if unsaid > 0 {
            tracing::warn!(more = unsaid, "refused by policy");
        }
        if unsaid_outward > 0 {
            tracing::warn!(more = unsaid_outward, "refused by egress");
        }
    }
}

/// Something outside of the mesh that is not on the list.
fn say_outward(snapshot: &Snapshot, config: &Config, denial: &Denial) {
    let Denial { source_addr, source, port_be, proto, .. } = *denial;
    let destination = SocketAddr::new(addr::to_ip(&source_addr), u16::from_be(port_be));
    let source = config.names().workload(snapshot, source);
    let protocol = protocol(proto);
    tracing::warn!(
        source, %destination, protocol,
        "refused by egress: no ExternalService names it, and mode allowList holds for the workload"
    );
}

fn protocol(proto: u16) -> &'static str {
    if proto & !OUTWARD == u16::from(PROTO_UDP) { "udp" } else { "tcp" }
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
    let protocol = protocol(proto);
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
