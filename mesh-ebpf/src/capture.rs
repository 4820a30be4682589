//! A connection that needs the proxy goes to the agent's listener in the workload's own namespace, and its record
//! of where it wanted to go lies on the client's socket.
//!
//! Where on loopback it goes: `mesh_common::spread`. Not here: the other end, where the record moves on
//! (`sock_ops`), and the listener that takes what was spread (`sk_lookup`).

use aya_ebpf::bindings::sockaddr;
use aya_ebpf::helpers::generated::{bpf_bind, bpf_get_prandom_u32};
use mesh_common::addr::{self, Addr};
use mesh_common::record::{
    Capture, Enrolled, Flow, PROTO_TCP, Workload, WorkloadKey, captured, flow, listener, role,
};
use mesh_common::spread;
use mesh_common::transport::enrolled;
use mesh_common::verdict::Verdict;

use crate::connect::{Call, redirect};
use crate::maps::{BUDGET, CAPTURED, EPOCH};
use crate::socket::put_record;
use crate::steady::{look, mesh_workload, room};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Sends the connection to the agent's listener in this namespace, with a record of where it wanted to go.
#[inline(always)]
pub fn capture(call: &Call, me: &Enrolled, flow: &mut Flow) -> Verdict {
    if let Some(pending) = BUDGET.get_ptr(me.workload) {
        // SAFETY: an aligned word of a live array.
        if unsafe { core::ptr::read_volatile(pending) } >= u64::from(me.budget_pending) {
            return Verdict::BudgetPending;
        }
    }
    // Where no service is served the workload itself is what the agent has to know.
    let chosen = if flow.service == 0 { flow.peer_workload } else { flow.endpoint };
    let followed = follow(call, me, flow.service, chosen);
    if followed == UNFOLLOWED {
        return Verdict::RecordFull;
    }
    flow.flags |= flow::SHOW_PEER | flow::CAPTURED;
    if me.flags & enrolled::SPLICE != 0 {
        flow.flags |= flow::SPLICE;
    }
    // The client's connection to the agent is not load of any endpoint; the agent's own leg is.
    flow.endpoint = 0;
    flow.flags &= !flow::PROVE;
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    match (!call.v6 || addr::is_v4(&call.dst), followed == SPREAD) {
        (true, true) => redirect(call, &spread::address4(random), me.port4_be),
        (true, false) => redirect(call, &addr::LOOPBACK4, me.port4_be),
        (false, true) => redirect(call, &addr::LOOPBACK6, spread::port6_be(random)),
        (false, false) => redirect(call, &addr::LOOPBACK6, me.port6_be),
    }
    Verdict::Captured
}

/// No memory for the record.
const UNFOLLOWED: u32 = 0;
/// To the listener where it is bound.
const PLAIN: u32 = 1;
/// To one of the places that `sk_lookup` gives to the listener.
const SPREAD: u32 = 2;

/// Puts the record on the client's socket, and binds it to the workload's own address.
/// A function of its own: what it needs of the stack, picking an endpoint needs as well.
#[inline(never)]
fn follow(call: &Call, me: &Enrolled, service: u32, endpoint: u32) -> u32 {
    let mut capture = Capture {
        addr: call.dst,
        // SAFETY: a live array.
        epoch: EPOCH.get_ptr(0).map_or(0, |e| unsafe { core::ptr::read_volatile(e) }),
        workload: me.workload,
        service,
        endpoint,
        role: role::CLIENT,
        identity: me.identity,
        port_be: call.port_be,
        flags: if me.flags & enrolled::SPLICE != 0 { captured::SPLICE } else { 0 }
            | if service == 0 { captured::WORKLOAD } else { 0 },
    };
    // SAFETY: the context is valid and `sk` was checked by the caller.
    let sk = unsafe { (*call.ctx).__bindgen_anon_1.sk };
    if put_record(&CAPTURED, sk.cast(), &mut capture).is_none() {
        return UNFOLLOWED;
    }
    let own = if !call.v6 || addr::is_v4(&call.dst) { &me.addr4 } else { &me.addr6 };
    if bind_own(call, own) && found_by(own, me) { SPREAD } else { PLAIN }
}

/// Does `sk_lookup` find the workload's listeners by this address? Not yet while it is being enrolled, nor where
/// it shares the address with others.
#[inline(always)]
fn found_by(own: &Addr, me: &Enrolled) -> bool {
    let key = WorkloadKey { addr: *own, port_be: 0, proto: PROTO_TCP, network: 0 };
    let mut at: Workload = room();
    look(mesh_workload, &key, &mut at)
        && at.workload == me.workload
        && at.inbound_slot == me.listener_slot + listener::IN
}

#[repr(C)]
struct SockAddr4 {
    family: u16,
    port_be: u16,
    addr_be: u32,
    zero: [u8; 8],
}

#[repr(C)]
struct SockAddr6 {
    family: u16,
    port_be: u16,
    flow_info: u32,
    addr: Addr,
    scope: u32,
}

/// Binds to the workload's own address, so that `getsockname()` shows it although the connection stays on
/// loopback. A socket that the application has bound itself keeps what it has: `false`, harmlessly.
#[inline(always)]
pub fn bind_own(call: &Call, own: &Addr) -> bool {
    !addr::same(own, &addr::UNSPECIFIED) && bind(call, own, 0)
}

/// Binds the call's socket; port 0: to the address alone.
#[inline(always)]
pub fn bind(call: &Call, own: &Addr, port_be: u16) -> bool {
    if call.v6 {
        let mut sa = SockAddr6 { family: AF_INET6, port_be, flow_info: 0, addr: *own, scope: 0 };
        // SAFETY: a valid context and an address of the size given.
        unsafe { bpf_bind(call.ctx, (&raw mut sa).cast::<sockaddr>(), size_of::<SockAddr6>() as i32) == 0 }
    } else {
        let mut sa = SockAddr4 { family: AF_INET, port_be, addr_be: addr::to_v4_be(own), zero: [0; 8] };
        // SAFETY: as above.
        unsafe { bpf_bind(call.ctx, (&raw mut sa).cast::<sockaddr>(), size_of::<SockAddr4>() as i32) == 0 }
    }
}
