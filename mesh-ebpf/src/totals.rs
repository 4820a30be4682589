//! Exact counters of flows: one key a (source, destination, protocol, verdict), one value a CPU; with the
//! endpoint, where the agent asked for that.
//!
//! How much is noted is decided when the programs are loaded: the kernel knows the value of a read-only
//! variable, and leaves out what is behind it.

use aya_ebpf::Global;
use mesh_common::record::{Flow, Totals, TotalsKey, telemetry};
use mesh_common::verdict::Verdict;

use crate::maps::FLOW_TOTALS;
use crate::socket::count;

const NOEXIST: u64 = 1;

// Named in `mesh_common::record::telemetry`.
#[unsafe(no_mangle)]
static FLOW_TELEMETRY: Global<u8> = Global::new(telemetry::FULL);
#[unsafe(no_mangle)]
static FLOW_BY_ENDPOINT: Global<u8> = Global::new(0);

/// Are established and ended flows counted?
#[inline(always)]
pub fn wanted() -> bool {
    FLOW_TELEMETRY.load() != telemetry::NONE
}

/// Does an ended flow leave a record?
#[inline(always)]
pub fn recorded() -> bool {
    FLOW_TELEMETRY.load() == telemetry::FULL
}

/// The counters that a flow counts in.
#[inline(always)]
pub fn of(flow: &Flow) -> Option<*mut Totals> {
    let key = TotalsKey::of(flow, FLOW_BY_ENDPOINT.load() != 0);
    slot(&key).or_else(|| {
        count(Verdict::TotalsFull);
        slot(&TotalsKey::OVERFLOW)
    })
}

#[inline(always)]
fn slot(key: &TotalsKey) -> Option<*mut Totals> {
    if let Some(value) = FLOW_TOTALS.get_ptr_mut(key) {
        return Some(value);
    }
    let zero = Totals { opened: 0, closed: 0, failed: 0, refused: 0, sent: 0, received: 0, retransmits: 0 };
    // A race with another CPU is lost with EEXIST: then the key is there too.
    let _ = FLOW_TOTALS.insert(key, &zero, NOEXIST);
    FLOW_TOTALS.get_ptr_mut(key)
}
