//! Who sends a datagram, where its destination lives on this node and has policies. A caller that they refuse is told
//! so at once at declared ports, all others leave a proof for the destination's `sk_lookup` (rules: `mesh_common::sender`).
//!
//! The proof stands under the sender's address and port, so both have to be known and its own. A socket without an
//! address is given the workload's own one; one that connects without a port, a random one: the kernel would choose
//! it after the hook. Who sends from an address that is another workload's is refused.
//!
//! Nothing of this is looked at while no workload of the node has policies ([`asked`]).

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use mesh_common::addr::{self, Addr};
use mesh_common::policy::{self, Caller};
use mesh_common::record::{Enrolled, Flow, FlowKey, PROTO_TCP, PROTO_UDP, Workload, WorkloadKey, app, flags};
use mesh_common::sender::{PORT_DRAWS, Sender, drawn_port_be};
use mesh_common::udp::{TOUCH_NS, quiet};
use mesh_common::verdict::Verdict;

use crate::capture::bind;
use crate::connect::{Call, call4, call6, new_flow, refuses};
use crate::exclude::is_answer;
use crate::flows::{self, cookie};
use crate::maps::{POLICED, UDP_SENDERS};
use crate::policy::{self as kernel_policy, Called};
use crate::socket::count;
use crate::steady::{look, mesh_sender, mesh_workload, room};
use crate::udp::{connected, socket};

const ANY: u64 = 0;

/// Does any workload of this node have policies?
#[inline(always)]
pub fn asked() -> bool {
    // SAFETY: an aligned word of a live array.
    POLICED.get_ptr(0).is_some_and(|n| unsafe { core::ptr::read_volatile(n) } != 0)
}

/// Is it proved who sends this datagram?
#[inline(always)]
pub fn proved(flow: &FlowKey, to: &mut Sender) -> bool {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    look(mesh_sender, flow, to) && to.proves(now, |cookie| flows::find(cookie).map(|flow| flow.start_ns))
}

/// What a destination has been told of who connects to it.
pub enum Told {
    /// It does not ask, or nobody knows the sender's address.
    Nothing,
    /// Who it is.
    Proved,
    /// It refuses.
    Refused(Verdict),
}

/// What a destination that asks is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Asks {
    set: u32,
    workload: u32,
    service: u32,
    endpoint: u32,
}

/// A UDP socket connects to where its context says by now. Its flow is the proof's for as long as it is there.
#[inline(always)]
pub fn connects(call: &Call, me: &Enrolled, flow: &mut Flow) -> Told {
    let told = if call.v6 { mesh_connects6(call.ctx, me, flow) } else { mesh_connects4(call.ctx, me, flow) };
    match told {
        NO => Told::Nothing,
        YES => Told::Proved,
        FULL => Told::Refused(Verdict::PolicyFull),
        _ => Told::Refused(Verdict::DeniedByPolicy),
    }
}

/// [`connects`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mesh_connects4(ctx: *mut bpf_sock_addr, me: *const Enrolled, flow: *mut Flow) -> u64 {
    // SAFETY: see `mesh_asks`.
    let (Some(me), Some(flow)) = (unsafe { me.as_ref() }, unsafe { flow.as_mut() }) else {
        return NO;
    };
    tell::<false>(&call4(ctx, PROTO_UDP), me, flow)
}

/// [`connects`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mesh_connects6(ctx: *mut bpf_sock_addr, me: *const Enrolled, flow: *mut Flow) -> u64 {
    // SAFETY: see `mesh_asks`.
    let (Some(me), Some(flow)) = (unsafe { me.as_ref() }, unsafe { flow.as_mut() }) else {
        return NO;
    };
    tell::<true>(&call6(ctx, PROTO_UDP), me, flow)
}

#[inline(always)]
fn tell<const V6: bool>(made: &Call, me: &Enrolled, flow: &mut Flow) -> u64 {
    let mut ends: FlowKey = room();
    let mut asks: Asks = room();
    going::<V6>(made, &mut ends);
    if mesh_asks(&raw const ends, &raw mut asks) == NO {
        return NO;
    }
    flow.peer_workload = asks.workload;
    bound::<V6>(made, &mut ends);
    let whose = mesh_whose(&raw mut ends, me);
    if whose == ANOTHERS || mesh_may(&raw const asks, me, &raw const ends) == NO {
        return match refused(&asks, me, ends.dst_port_be) {
            Verdict::PolicyFull => FULL,
            _ => DENIED,
        };
    }
    if whose == NOBODYS || (ends.src_port_be == 0 && !draw(made, &mut ends)) {
        return NO;
    }
    if leave(&ends, me, flow.start_ns, cookie(made.ctx.cast())) { YES } else { NO }
}

/// A datagram of a socket leaves for where its context says by now. `false`: it is refused.
#[inline(never)]
pub fn sends<const V6: bool>(made: &Call, me: &Enrolled) -> bool {
    let mut ends: FlowKey = room();
    let mut asks: Asks = room();
    going::<V6>(made, &mut ends);
    let tied = tied::<V6>(made, &mut ends);
    if mesh_asks(&raw const ends, &raw mut asks) == NO {
        return true;
    }
    bound::<V6>(made, &mut ends);
    source::<V6>(made, &mut ends);
    let named = !addr::same(&ends.src, &addr::UNSPECIFIED);
    let whose = mesh_whose(&raw mut ends, me);
    if whose == ANOTHERS || mesh_may(&raw const asks, me, &raw const ends) == NO {
        refuse(made, &asks, me, ends.dst_port_be);
        return false;
    }
    // The proof of a connected socket is its connect()'s.
    if tied || whose == NOBODYS {
        return true;
    }
    if !named {
        set_source::<V6>(made, &ends.src);
    }
    // SAFETY: no arguments.
    leave(&ends, me, unsafe { bpf_ktime_get_ns() }, 0);
    true
}

// Small functions that write what they find where it is to be: one's stack is free again when the next is called.

/// Where the call leads, as its context says by now.
#[inline(never)]
fn going<const V6: bool>(made: &Call, ends: &mut FlowKey) {
    let to = if V6 { call6(made.ctx, PROTO_UDP) } else { call4(made.ctx, PROTO_UDP) };
    (ends.dst, ends.dst_port_be) = (to.dst, to.port_be);
}

/// Does a connected socket send to where it is connected? The kernel names that now and then, or leaves it out.
#[inline(never)]
fn tied<const V6: bool>(made: &Call, ends: &mut FlowKey) -> bool {
    // For what is inlined: it is to know the family.
    let Some((to, port_be)) = connected(&Call { v6: V6, ..*made }) else {
        return false;
    };
    if ends.dst_port_be == 0 {
        (ends.dst, ends.dst_port_be) = (to, port_be);
    }
    port_be == ends.dst_port_be && addr::same(&to, &ends.dst)
}

#[inline(never)]
fn leave(ends: &FlowKey, me: &Enrolled, at_ns: u64, cookie: u64) -> bool {
    let (workload, identity, namespace) = (me.workload, me.identity, me.namespace);
    let sender = Sender { at_ns, cookie, workload, identity, namespace, pad: 0 };
    mesh_leave(ends, &raw const sender) == YES
}

const NO: u64 = 0;
const YES: u64 = 1;
const NOBODYS: u64 = 2;
const ANOTHERS: u64 = 3;
const DENIED: u64 = 4;
const FULL: u64 = 5;

// Global functions, which the verifier looks at once each: as parts of their callers they were half of what those
// took to load.

/// Does the destination ask who sends?
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mesh_asks(ends: *const FlowKey, asks: *mut Asks) -> u64 {
    // SAFETY: the callers', if not null; the verifier wants to see the question. So below.
    let (Some(ends), Some(asks)) = (unsafe { ends.as_ref() }, unsafe { asks.as_mut() }) else {
        return NO;
    };
    let mut peer: Workload = room();
    let mut key = WorkloadKey { addr: ends.dst, port_be: ends.dst_port_be, proto: PROTO_UDP, network: 0 };
    if !look(mesh_workload, &key, &mut peer) {
        (key.port_be, key.proto) = (0, PROTO_TCP);
        if !look(mesh_workload, &key, &mut peer) {
            return NO;
        }
    }
    asks.set = peer.policy_set;
    asks.workload = peer.workload;
    asks.service = peer.service;
    asks.endpoint = peer.endpoint;
    if peer.flags & flags::ASKS != 0 && peer.policy_set != 0 { YES } else { NO }
}

/// Whose is the source address? An unspecified one becomes the workload's own. [`YES`]: its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mesh_whose(ends: *mut FlowKey, me: *const Enrolled) -> u64 {
    // SAFETY: see `mesh_asks`.
    let (Some(ends), Some(me)) = (unsafe { ends.as_mut() }, unsafe { me.as_ref() }) else {
        return NOBODYS;
    };
    let own = if addr::is_v4(&ends.dst) { &me.addr4 } else { &me.addr6 };
    if addr::same(&ends.src, &addr::UNSPECIFIED) {
        ends.src = *own;
    }
    if addr::same(&ends.src, own) {
        return if addr::same(own, &addr::UNSPECIFIED) { NOBODYS } else { YES };
    }
    let key = WorkloadKey { addr: ends.src, port_be: 0, proto: PROTO_TCP, network: 0 };
    let mut peer: Workload = room();
    match look(mesh_workload, &key, &mut peer) {
        false => NOBODYS,
        true if peer.workload == me.workload => YES,
        true => ANOTHERS,
    }
}

/// May this workload send there, as far as that can be said here? What asks for addresses says it at the other end;
/// so do ports that are not declared, behind which may be a connected socket that has asked. An answer is welcome
/// whatever the policies say, and a workload may always call itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mesh_may(asks: *const Asks, me: *const Enrolled, ends: *const FlowKey) -> u64 {
    // SAFETY: see `mesh_asks`.
    let (Some(asks), Some(me), Some(ends)) =
        (unsafe { asks.as_ref() }, unsafe { me.as_ref() }, unsafe { ends.as_ref() })
    else {
        return NO;
    };
    let caller = Caller { identity: me.identity, namespace: me.namespace };
    let may = asks.endpoint == 0
        || asks.workload == me.workload
        || policy::asks_address(asks.set)
        || kernel_policy::allowed(asks.set, policy::OTHER_ADDRESSES, ends.dst_port_be, PROTO_UDP, caller)
        || is_answer(asks.workload, u32::from(u16::from_be(ends.dst_port_be)), &ends.src, ends.src_port_be);
    if may { YES } else { NO }
}

/// Leaves the proof, if it is not there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mesh_leave(ends: *const FlowKey, sender: *const Sender) -> u64 {
    // SAFETY: see `mesh_asks`.
    let (Some(ends), Some(sender)) = (unsafe { ends.as_ref() }, unsafe { sender.as_ref() }) else {
        return NO;
    };
    // SAFETY: read at once.
    if let Some(held) = unsafe { UDP_SENDERS.get(ends) }
        && sender.cookie == 0
        && held.cookie == 0
        && held.workload == sender.workload
        && held.identity == sender.identity
        && !quiet(held.at_ns, sender.at_ns, TOUCH_NS)
    {
        return YES;
    }
    if UDP_SENDERS.insert(ends, sender, ANY).is_ok() {
        return YES;
    }
    count(Verdict::FlowSourceFull);
    NO
}

#[inline(never)]
fn refused(asks: &Asks, me: &Enrolled, port_be: u16) -> Verdict {
    let called = Called { workload: asks.workload, port_be, proto: PROTO_UDP };
    kernel_policy::refused(asks.set, &addr::UNSPECIFIED, me.workload, called)
}

#[inline(never)]
fn refuse(call: &Call, asks: &Asks, me: &Enrolled, port_be: u16) {
    let mut flow = new_flow(me, call);
    flow.protocol = app::UDP as u8;
    flow.service = asks.service;
    flow.endpoint = asks.endpoint;
    flow.peer_workload = asks.workload;
    let verdict = refused(asks, me, port_be);
    refuses(&mut flow, verdict);
}

/// Binds a socket that has no port. `false`: so many random ports are taken.
#[inline(never)]
fn draw(call: &Call, ends: &mut FlowKey) -> bool {
    let mut draws = 0;
    while draws < PORT_DRAWS {
        // SAFETY: no arguments.
        ends.src_port_be = drawn_port_be(unsafe { bpf_get_prandom_u32() });
        if bind(call, &ends.src, ends.src_port_be) {
            return true;
        }
        draws += 1;
    }
    count(Verdict::FlowSourceFull);
    false
}

/// Address and port that the call's socket is bound to; zeros: none.
#[inline(never)]
fn bound<const V6: bool>(call: &Call, ends: &mut FlowKey) {
    let Some(sk) = socket(call.ctx) else {
        return;
    };
    // SAFETY: a socket of the context's, valid for the run; volatile, because merged loads are refused.
    unsafe {
        ends.src_port_be = (core::ptr::read_volatile(&raw const (*sk).src_port) as u16).to_be();
        if !V6 {
            ends.src = v4(core::ptr::read_volatile(&raw const (*sk).src_ip4));
            return;
        }
        ends.src[0] = core::ptr::read_volatile(&raw const (*sk).src_ip6[0]);
        ends.src[1] = core::ptr::read_volatile(&raw const (*sk).src_ip6[1]);
        ends.src[2] = core::ptr::read_volatile(&raw const (*sk).src_ip6[2]);
        ends.src[3] = core::ptr::read_volatile(&raw const (*sk).src_ip6[3]);
    }
}

/// The source address of a datagram under way; unspecified: the kernel is to choose it.
#[inline(never)]
fn source<const V6: bool>(call: &Call, ends: &mut FlowKey) {
    let ctx = call.ctx;
    // SAFETY: the context is valid for the run; volatile, because merged context loads are refused.
    unsafe {
        if !V6 {
            ends.src = v4(core::ptr::read_volatile(&raw const (*ctx).msg_src_ip4));
            return;
        }
        ends.src[0] = core::ptr::read_volatile(&raw const (*ctx).msg_src_ip6[0]);
        ends.src[1] = core::ptr::read_volatile(&raw const (*ctx).msg_src_ip6[1]);
        ends.src[2] = core::ptr::read_volatile(&raw const (*ctx).msg_src_ip6[2]);
        ends.src[3] = core::ptr::read_volatile(&raw const (*ctx).msg_src_ip6[3]);
    }
}

#[inline(never)]
fn set_source<const V6: bool>(call: &Call, source: &Addr) {
    let ctx = call.ctx;
    // SAFETY: as in `source`.
    unsafe {
        if !V6 {
            core::ptr::write_volatile(&raw mut (*ctx).msg_src_ip4, addr::to_v4_be(source));
            return;
        }
        core::ptr::write_volatile(&raw mut (*ctx).msg_src_ip6[0], source[0]);
        core::ptr::write_volatile(&raw mut (*ctx).msg_src_ip6[1], source[1]);
        core::ptr::write_volatile(&raw mut (*ctx).msg_src_ip6[2], source[2]);
        core::ptr::write_volatile(&raw mut (*ctx).msg_src_ip6[3], source[3]);
    }
}

/// The unspecified IPv4 address as that of both families.
#[inline(always)]
fn v4(ip_be: u32) -> Addr {
    if ip_be == 0 { addr::UNSPECIFIED } else { addr::from_v4_be(ip_be) }
}
