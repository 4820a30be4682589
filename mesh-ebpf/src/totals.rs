//! Exact counters of flows: one key a (source, destination, protocol, verdict), one value a CPU; with the
//! endpoint, where the agent asked for that.
//!
//! How much is noted is decided when the programs are loaded: the kernel knows the value of a read-only
//! variable, and leaves out what is behind it.

use aya_ebpf::Global;
use mesh_common::record::{Flow, Totals, TotalsHome, TotalsKey, telemetry};
use mesh_common::verdict::Verdict;

use crate::maps::{FLOW_TOTALS, TOTALS_HOMES};
use crate::socket::{count, exchange};

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
    at_home(key).or_else(|| in_hash(key))
}

/// The counters at this CPU's home for the key: it moves in, if nobody has.
#[inline(always)]
fn at_home(key: &TotalsKey) -> Option<*mut Totals> {
    let home = TOTALS_HOMES.get_ptr_mut(key.home())?;
    // SAFETY: a live value of this CPU's; volatile, because another program may run between two instructions.
    // Nobody moves out.
    unsafe {
        match core::ptr::read_volatile(&raw const (*home).state) {
            TotalsHome::TAKEN => same(&(*home).key, key).then(|| &raw mut (*home).totals),
            TotalsHome::EMPTY if exchange(&raw mut (*home).state, TotalsHome::EMPTY, TotalsHome::CLAIMED) => {
                (*home).key = *key;
                core::ptr::write_volatile(&raw mut (*home).state, TotalsHome::TAKEN);
                Some(&raw mut (*home).totals)
            }
            _ => None,
        }
    }
}

#[inline(always)]
fn same(a: &TotalsKey, b: &TotalsKey) -> bool {
    a.source == b.source
        && a.dest == b.dest
        && a.kind == b.kind
        && a.protocol == b.protocol
        && a.verdict == b.verdict
        && a.endpoint == b.endpoint
}

#[inline(always)]
fn in_hash(key: &TotalsKey) -> Option<*mut Totals> {
    if let Some(value) = FLOW_TOTALS.get_ptr_mut(key) {
        return Some(value);
    }
    let zero = Totals { opened: 0, closed: 0, failed: 0, refused: 0, sent: 0, received: 0, retransmits: 0 };
    // A race with another CPU is lost with EEXIST: then the key is there too.
    let _ = FLOW_TOTALS.insert(key, &zero, NOEXIST);
    FLOW_TOTALS.get_ptr_mut(key)
}
