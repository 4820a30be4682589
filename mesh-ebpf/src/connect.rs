//! `connect()` of an enrolled workload: which endpoint, or the agent, or a refusal.
//!
//! look up: own namespace → enrolled? → service by address and port, else workload by address → way →
//! rewrite the destination, note the flow by the socket's cookie.
//!
//! Every path ends in [`finish`], the one table from verdict to fate.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::addr::{self, Addr};
use mesh_common::decide::{self, Way};
use mesh_common::dns;
use mesh_common::policy::{self, Caller};
use mesh_common::record::{
    Capture, Endpoint, Enrolled, Flow, PROTO_TCP, PROTO_UDP, Service, ServiceKey, Workload, WorkloadKey,
    captured, flags, flow, listener, role,
};
use mesh_common::transport::enrolled;
use mesh_common::verdict::{ECONNREFUSED, Verdict};

use crate::capture::capture;
use crate::maps::CAPTURED;
use crate::pick::{Chosen, admit_leg, pick};
use crate::policy::{self as kernel_policy, Called};
use crate::socket::{add, agent_alive, count, drop_record, record, zero};
use crate::steady::{look, mesh_workload, room};
use crate::{egress, exclude, flows, homes, questions, totals, udp, who};

/// What a program returns that lets the call go on.
pub const ALLOW: i32 = 1;
/// What a program returns that ends the call.
pub const DENY: i32 = 0;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// A call under way.
#[derive(Clone, Copy)]
pub struct Call {
    /// Its context.
    pub ctx: *mut bpf_sock_addr,
    /// The address that the application gave; in `recvmsg` the sender's.
    pub dst: Addr,
    /// Its port.
    pub port_be: u16,
    /// The hook is one of IPv6; the address may still be v4-mapped.
    pub v6: bool,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
}

#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    connect(&call4(ctx.sock_addr, PROTO_TCP))
}

#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    connect(&call6(ctx.sock_addr, PROTO_TCP))
}

/// The call of a hook of IPv4.
#[inline(always)]
pub fn call4(c: *mut bpf_sock_addr, proto: u8) -> Call {
    // SAFETY: the context is valid for the run; volatile, because merged context loads are refused.
    let (ip, port) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*c).user_ip4),
            core::ptr::read_volatile(&raw const (*c).user_port),
        )
    };
    Call { ctx: c, dst: addr::from_v4_be(ip), port_be: port as u16, v6: false, proto }
}

/// The call of a hook of IPv6.
#[inline(always)]
pub fn call6(c: *mut bpf_sock_addr, proto: u8) -> Call {
    // SAFETY: as in `call4`.
    let (words, port) = unsafe {
        (
            [
                core::ptr::read_volatile(&raw const (*c).user_ip6[0]),
                core::ptr::read_volatile(&raw const (*c).user_ip6[1]),
                core::ptr::read_volatile(&raw const (*c).user_ip6[2]),
                core::ptr::read_volatile(&raw const (*c).user_ip6[3]),
            ],
            core::ptr::read_volatile(&raw const (*c).user_port),
        )
    };
    Call { ctx: c, dst: words, port_be: port as u16, v6: true, proto }
}

#[inline(always)]
fn connect(call: &Call) -> i32 {
    // SAFETY: the context is valid for the run.
    let (kind, proto, sk) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*call.ctx).type_),
            core::ptr::read_volatile(&raw const (*call.ctx).protocol),
            (*call.ctx).__bindgen_anon_1.sk,
        )
    };
    let Some(entry) = who::of_namespace(call.ctx) else {
        return ALLOW;
    };
    let Some(me) = who::calls(entry) else {
        return if sk.is_null() { ALLOW } else { legs_of(call, entry, sk.cast()) };
    };
    let mut entry: Service = room();
    if kind != SOCK_STREAM || proto != u32::from(PROTO_TCP) || sk.is_null() || passes_by(call) {
        return if kind == SOCK_DGRAM && proto == u32::from(PROTO_UDP) {
            let call = &Call { proto: PROTO_UDP, ..*call };
            udp::connect(call, me, &mut new_flow(me, call), &mut entry)
        } else {
            ALLOW
        };
    }
    let own = record(&CAPTURED, sk.cast());
    let mut flow = new_flow(me, call);
    if let Some(own) = own {
        if own.role == role::LEG || own.role == role::DIAL {
            return leg(call, own, &mut flow);
        }
        // Left over where the same socket was captured at an earlier attempt.
        if own.role != role::RESOLVES {
            drop_record(&CAPTURED, sk.cast());
        }
    }
    let verdict = if me.flags & enrolled::EXCLUDES != 0 && exclude::outbound(call, me) {
        excluded(call, &mut flow)
    } else {
        decide_and_rewrite(call, me, &mut flow, &mut entry)
    };
    finish(call, &mut flow, verdict)
}

/// A process that is none of the workloads of a shared namespace: left alone, unless it is the agent with a
/// connection for one of them.
#[inline(never)]
fn legs_of(call: &Call, shared: &Enrolled, sk: *mut c_void) -> i32 {
    if let Some(own) = record(&CAPTURED, sk)
        && (own.role == role::LEG || own.role == role::DIAL)
    {
        let mut flow = new_flow(shared, call);
        return leg(call, own, &mut flow);
    }
    ALLOW
}

/// Left alone. Only where the destination asks who is calling it is told: whether this workload may connect is
/// decided there.
#[inline(never)]
fn excluded(call: &Call, flow: &mut Flow) -> Verdict {
    let mut peer: Workload = room();
    if find_workload(call, &mut peer) && peer.flags & flags::ASKS != 0 {
        flow.flags |= flow::PROVE;
    }
    Verdict::Excluded
}

/// Loopback is nobody's business, but that a resolver may be there.
#[inline(always)]
fn passes_by(call: &Call) -> bool {
    addr::is_loopback(&call.dst) && call.port_be != dns::PORT_BE
}

/// The agent's own connection: counts for its endpoint, as nothing else.
#[inline(always)]
fn leg(call: &Call, own: &Capture, flow: &mut Flow) -> i32 {
    flow.workload = own.workload;
    flow.identity = own.identity;
    flow.service = own.service;
    flow.endpoint = own.endpoint;
    flow.flags = flow::LEG | if own.flags & captured::LOCAL != 0 { flow::PROVE } else { 0 };
    // The agent tries splicing with connections to itself.
    if own.flags & captured::SPLICE != 0 {
        flow.flags |= flow::SPLICE;
    }
    if own.role == role::LEG
        && let Some(verdict) = admit_leg(flow)
    {
        return refuse(verdict);
    }
    note(call, flow)
}

/// A flow of which nothing is decided yet.
#[inline(always)]
pub fn new_flow(me: &Enrolled, call: &Call) -> Flow {
    let zero = zero();
    Flow {
        peer: call.dst,
        // SAFETY: no arguments.
        start_ns: unsafe { bpf_ktime_get_ns() },
        workload: me.workload,
        service: zero,
        endpoint: zero,
        peer_workload: zero,
        flags: zero,
        identity: me.identity,
        at_fin_wait2: zero,
        peer_port_be: call.port_be,
        verdict: 0,
        protocol: 0,
        namespace: me.namespace,
        reserved: zero,
    }
}

#[inline(always)]
fn decide_and_rewrite(call: &Call, me: &Enrolled, flow: &mut Flow, entry: &mut Service) -> Verdict {
    if call.port_be == dns::PORT_BE && questions::taken(call, me) {
        return capture(call, me, flow);
    }
    if find_service(call, me.scope, entry) {
        flow.service = entry.service;
        flow.protocol = entry.protocol as u8;
        let way = decide::way(entry.flags, entry.table_len, entry.fallback_len, alive(call, me, entry.flags));
        return match way {
            Way::Kernel | Way::Bypass => balance(call, me, flow, entry, matches!(way, Way::Bypass)),
            Way::Capture => capture(call, me, flow),
            Way::Refuse(verdict) => verdict,
        };
    }
    let mut asks = Asks { flags: 0, set: 0 };
    if !directly(call, flow, &mut asks) {
        return if egress::refuses(call, me) { Verdict::EgressDenied } else { Verdict::Outside };
    }
    let Asks { flags, set } = asks;
    let flags = needs(me, flags);
    match decide::way_direct(flags, alive(call, me, flags)) {
        Way::Kernel => asked(me, flow, flags, set, call.port_be).unwrap_or(Verdict::Direct),
        Way::Bypass => asked(me, flow, flags, set, call.port_be).unwrap_or(Verdict::Bypassed),
        Way::Capture => capture(call, me, flow),
        Way::Refuse(verdict) => verdict,
    }
}

/// The flags of a destination, as they are for this caller: what goes through a tunnel needs the proxy.
#[inline(always)]
fn needs(me: &Enrolled, entry_flags: u32) -> u32 {
    if entry_flags & flags::TUNNEL != 0 && me.flags & enrolled::PLAIN == 0 {
        entry_flags | flags::PROXY
    } else {
        entry_flags
    }
}

/// Flags and policy set of a destination.
struct Asks {
    flags: u32,
    set: u32,
}

/// Is this a workload's own address? A function of its own: what it needs of the stack picking an endpoint and
/// asking policies need as well.
#[inline(never)]
fn directly(call: &Call, flow: &mut Flow, asks: &mut Asks) -> bool {
    let mut peer: Workload = room();
    if !find_workload(call, &mut peer) {
        return false;
    }
    flow.service = peer.service;
    flow.endpoint = peer.endpoint;
    flow.peer_workload = peer.workload;
    flow.protocol = peer.protocol as u8;
    *asks = Asks { flags: peer.flags, set: peer.policy_set };
    true
}

/// Where the destination wants to know who is calling: is told, or refuses. A workload may always call itself.
/// A set that asks for addresses is asked by the destination's `sk_lookup` alone: here the connection has none.
#[inline(always)]
fn asked(me: &Enrolled, flow: &mut Flow, entry_flags: u32, set: u32, port_be: u16) -> Option<Verdict> {
    if entry_flags & flags::ASKS == 0 {
        return None;
    }
    flow.flags |= flow::PROVE;
    if set == 0 || policy::asks_address(set) || flow.peer_workload == me.workload {
        return None;
    }
    let caller = Caller { identity: me.identity, namespace: me.namespace };
    if kernel_policy::allowed(set, policy::OTHER_ADDRESSES, port_be, PROTO_TCP, caller) {
        return None;
    }
    let called = Called { workload: flow.peer_workload, port_be, proto: PROTO_TCP };
    Some(kernel_policy::refused(set, &addr::UNSPECIFIED, me.workload, called))
}

/// Asked only where the answer matters: it costs a socket look-up and a clock.
#[inline(always)]
fn alive(call: &Call, me: &Enrolled, entry_flags: u32) -> bool {
    let v6 = call.v6 && !addr::is_v4(&call.dst);
    let slot = me.listener_slot + if v6 { listener::OUT6 } else { listener::OUT4 };
    entry_flags & flags::PROXY != 0 && agent_alive(slot, me.heartbeat_slot)
}

/// Is this the virtual address of a service, for clients of this scope?
#[inline(always)]
pub fn find_service(call: &Call, scope: u32, to: &mut Service) -> bool {
    let mut key = ServiceKey { addr: call.dst, scope, port_be: call.port_be, proto: call.proto, network: 0 };
    if scope != 0 {
        if homes::service(&key, to) {
            return true;
        }
        key.scope = 0;
    }
    homes::service(&key, to)
}

/// Is this a workload's own address: its port, or any port?
#[inline(always)]
fn find_workload(call: &Call, to: &mut Workload) -> bool {
    let key = WorkloadKey { addr: call.dst, port_be: 0, proto: PROTO_TCP, network: 0 };
    find_served(call, to) || look(mesh_workload, &key, to)
}

/// Does a workload serve a service at this address and port?
#[inline(always)]
pub fn find_served(call: &Call, to: &mut Workload) -> bool {
    let key = WorkloadKey { addr: call.dst, port_be: call.port_be, proto: call.proto, network: 0 };
    look(mesh_workload, &key, to)
}

/// Picks an endpoint and goes there.
#[inline(always)]
fn balance(call: &Call, me: &Enrolled, flow: &mut Flow, entry: &Service, mut fallback: bool) -> Verdict {
    let chosen = match pick(entry, fallback, me, flow.start_ns) {
        Ok(chosen) => chosen,
        Err(verdict) => return verdict,
    };
    let (asks, set, port_be) = chosen.asks();
    let asks = needs(me, asks);
    if asks & flags::PROXY != 0 {
        aim(flow, chosen.endpoint);
        if !chosen.still() {
            return Verdict::TableChanged;
        }
        match decide::way_direct(asks, alive(call, me, asks)) {
            Way::Capture => return capture(call, me, flow),
            Way::Refuse(verdict) => return verdict,
            Way::Kernel | Way::Bypass => fallback = true,
        }
    }
    let verdict = lead(call, flow, &chosen);
    flow.flags |= chosen.followed;
    if let Some(refused) = asked(me, flow, asks, set, port_be) {
        return refused;
    }
    if fallback && matches!(verdict, Verdict::Balanced) { Verdict::Bypassed } else { verdict }
}

/// Goes to the endpoint, and says so in the flow.
#[inline(always)]
pub fn lead(call: &Call, flow: &mut Flow, chosen: &Chosen) -> Verdict {
    aim(flow, chosen.endpoint);
    redirect(call, &chosen.endpoint.addr, chosen.endpoint.port_be);
    if chosen.still() { Verdict::Balanced } else { Verdict::TableChanged }
}

/// Says in the flow which endpoint was chosen.
#[inline(always)]
fn aim(flow: &mut Flow, endpoint: &Endpoint) {
    flow.endpoint = endpoint.endpoint;
    flow.peer_workload = endpoint.workload;
    flow.flags |= flow::SHOW_PEER;
}

/// Writes an address and port into the call's context.
#[inline(always)]
pub fn redirect(call: &Call, dst: &Addr, port_be: u16) {
    if call.v6 {
        set_v6(call.ctx, dst, u32::from(port_be));
        return;
    }
    // SAFETY: the context is valid; volatile, because merged context stores are refused.
    unsafe {
        core::ptr::write_volatile(&raw mut (*call.ctx).user_ip4, addr::to_v4_be(dst));
        core::ptr::write_volatile(&raw mut (*call.ctx).user_port, u32::from(port_be));
    }
}

/// Writes an IPv6 address and port into a context.
#[inline(always)]
pub fn set_v6(ctx: *mut bpf_sock_addr, words: &[u32; 4], port_be: u32) {
    // SAFETY: as in `redirect`.
    unsafe {
        core::ptr::write_volatile(&raw mut (*ctx).user_ip6[0], words[0]);
        core::ptr::write_volatile(&raw mut (*ctx).user_ip6[1], words[1]);
        core::ptr::write_volatile(&raw mut (*ctx).user_ip6[2], words[2]);
        core::ptr::write_volatile(&raw mut (*ctx).user_ip6[3], words[3]);
        core::ptr::write_volatile(&raw mut (*ctx).user_port, port_be);
    }
}

/// Counts the verdict and turns it into what `connect()` does.
#[inline(always)]
fn finish(call: &Call, flow: &mut Flow, verdict: Verdict) -> i32 {
    if refuses(flow, verdict) { DENY } else { note(call, flow) }
}

/// Counts the verdict. `true`: it refuses, and the system call's result says why.
#[inline(always)]
pub fn refuses(flow: &mut Flow, verdict: Verdict) -> bool {
    flow.verdict = verdict as u8;
    count(verdict);
    let Some(errno) = verdict.errno() else {
        return false;
    };
    if let Some(totals) = totals::of(flow) {
        // SAFETY: a live map value.
        add(unsafe { &raw mut (*totals).refused }, 1);
    }
    // SAFETY: sets the result of the system call.
    unsafe { bpf_set_retval(-errno) };
    true
}

/// Refuses a connection of the agent's own, which counts in no totals.
#[inline(always)]
fn refuse(verdict: Verdict) -> i32 {
    count(verdict);
    // SAFETY: as in `finish`.
    unsafe { bpf_set_retval(-verdict.errno().unwrap_or(ECONNREFUSED)) };
    DENY
}

/// Lets the connection go, known by its socket from now on.
#[inline(always)]
fn note(call: &Call, flow: &Flow) -> i32 {
    if !flows::note(flows::cookie(call.ctx.cast()), flow) {
        // Still balanced, but nobody counts it and getpeername() shows the endpoint: say so.
        count(Verdict::RecordFull);
    }
    ALLOW
}
