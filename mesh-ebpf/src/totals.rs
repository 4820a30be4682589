//! Exact counters of flows: one key a (source, destination, protocol, verdict), one value a CPU.

use mesh_common::record::{
    DEST_OUTSIDE, DEST_OVERFLOW, DEST_SERVICE, DEST_WORKLOAD, Flow, Totals, TotalsKey,
};
use mesh_common::verdict::Verdict;

use crate::maps::FLOW_TOTALS;
use crate::socket::count;

const NOEXIST: u64 = 1;

/// The counters that a flow counts in.
#[inline(always)]
pub fn of(flow: &Flow) -> Option<*mut Totals> {
    let (kind, dest) = if flow.service != 0 {
        (DEST_SERVICE, flow.service)
    } else if flow.peer_workload != 0 {
        (DEST_WORKLOAD, flow.peer_workload)
    } else {
        (DEST_OUTSIDE, 0)
    };
    let key = TotalsKey {
        source: flow.workload,
        dest,
        kind,
        protocol: flow.protocol,
        verdict: flow.verdict,
        pad: 0,
    };
    slot(&key).or_else(|| {
        count(Verdict::TotalsFull);
        slot(&TotalsKey { source: 0, dest: 0, kind: DEST_OVERFLOW, protocol: 0, verdict: 0, pad: 0 })
    })
}

#[inline(always)]
fn slot(key: &TotalsKey) -> Option<*mut Totals> {
    if let Some(value) = FLOW_TOTALS.get_ptr_mut(key) {
        return Some(value);
    }
    let zero = Totals { opened: 0, closed: 0, failed: 0, refused: 0, sent: 0, received: 0 };
    // A race with another CPU is lost with EEXIST: then the key is there too.
    let _ = FLOW_TOTALS.insert(key, &zero, NOEXIST);
    FLOW_TOTALS.get_ptr_mut(key)
}
