//! What a `TransportPolicy` leaves alone, and the questions whose answers are let in. Look-ups alone; the rules
//! are `mesh_common::transport`'s.
//!
//! Asked only where an entry that is loaded already says that there is something to look at.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::addr::Addr;
use mesh_common::record::Enrolled;
use mesh_common::transport::{self, Asked, AskedKey, EXCLUDED, End, ExcludeCidr, INBOUND, THEY, WE};
use mesh_common::udp::{TOUCH_NS, quiet};

use crate::connect::Call;
use crate::maps::{EXCLUDE, EXCLUDE_CIDRS, UDP_ASKED};
use crate::udp::{UDP_IDLE_NS, socket};

/// Bits of a whole key: whose, and an address.
const WHOLE: u32 = 8 * size_of::<ExcludeCidr>() as u32;
const ANY: u64 = 0;

/// The map's key, which aya packs: unaligned, each word of it would be written byte by byte.
#[repr(C)]
struct Aligned {
    length: u32,
    prefix: ExcludeCidr,
}

/// Is what this call opens left alone?
#[inline(never)]
pub fn outbound(call: &Call, me: &Enrolled) -> bool {
    let interface = socket(call.ctx).map_or(0, |sk| {
        // SAFETY: a socket of the context's, valid for the run; volatile, because merged loads are refused.
        unsafe { core::ptr::read_volatile(&raw const (*sk).bound_dev_if) }
    });
    let port = u32::from(u16::from_be(call.port_be));
    excluded(&End { workload: me.workload, inbound: 0, port, interface, addr: call.dst })
}

/// Is what comes to this port of a workload left alone? `port` in host order.
#[inline(never)]
pub fn inbound(workload: u32, port: u32, remote: &Addr, interface: u32) -> bool {
    excluded(&End { workload, inbound: INBOUND, port, interface, addr: *remote })
}

#[inline(always)]
fn excluded(end: &End) -> bool {
    transport::excluded(
        end,
        // SAFETY: only asked whether it is there.
        |key| unsafe { EXCLUDE.get(key) }.is_some(),
        |prefix| {
            let key = Aligned { length: WHOLE, prefix: *prefix };
            // SAFETY: of the same size and fields, and aligned better.
            let key = unsafe { &*(&raw const key).cast::<Key<ExcludeCidr>>() };
            EXCLUDE_CIDRS.get(key).is_some_and(|said| *said == EXCLUDED)
        },
    )
}

/// Notes whom a datagram goes to, as it was decided: from there an answer may come, unless it is one itself.
#[inline(never)]
pub fn asks(went: &Call, me: &Enrolled) {
    let Some(sk) = socket(went.ctx) else {
        return;
    };
    // SAFETY: as in `outbound`.
    let local_port = unsafe { core::ptr::read_volatile(&raw const (*sk).src_port) } as u16;
    let key = AskedKey { addr: went.dst, workload: me.workload, port_be: went.port_be, local_port };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: read at once.
    let held = unsafe { UDP_ASKED.get(&key) };
    let began = held.map_or(WE, |held| held.sent(now, UDP_IDLE_NS.load()));
    note(&key, held, began, now);
}

/// Are datagrams from there to this port of a workload answers to its questions? `port` in host order.
#[inline(never)]
pub fn is_answer(workload: u32, port: u32, remote: &Addr, remote_port_be: u16) -> bool {
    let key = AskedKey { addr: *remote, workload, port_be: remote_port_be, local_port: port as u16 };
    // SAFETY: read at once; the clock takes no arguments.
    unsafe { UDP_ASKED.get(&key) }
        .is_some_and(|asked| asked.welcomes(unsafe { bpf_ktime_get_ns() }, UDP_IDLE_NS.load()))
}

/// Notes that a datagram that is no answer was let in: what is sent back is no question. `port` in host order.
#[inline(never)]
pub fn lets_in(workload: u32, port: u32, remote: &Addr, remote_port_be: u16) {
    let key = AskedKey { addr: *remote, workload, port_be: remote_port_be, local_port: port as u16 };
    // SAFETY: read at once; the clock takes no arguments.
    let (held, now) = unsafe { (UDP_ASKED.get(&key), bpf_ktime_get_ns()) };
    note(&key, held, THEY, now);
}

#[inline(always)]
fn note(key: &AskedKey, held: Option<&Asked>, began: u32, now: u64) {
    if held.is_some_and(|held| held.began == began && !quiet(held.at_ns, now, TOUCH_NS)) {
        return;
    }
    // The map makes room by forgetting.
    let _ = UDP_ASKED.insert(key, &Asked { at_ns: now, began, pad: 0 }, ANY);
}
