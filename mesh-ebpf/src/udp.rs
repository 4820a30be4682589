//! UDP: where the datagrams of a workload's socket go, and whom its replies are shown to come from.
//!
//! - [`connect`]: a connected socket has one endpoint, drawn at each `connect()`. The kernel keeps it; later
//!   datagrams run no program of ours. Its flow says what `getpeername()` and `recvfrom()` show.
//! - [`mesh_sendmsg4`]: a datagram with a destination of its own. Virtual addresses lead to the endpoint that
//!   this socket was given for them (`UDP_STICKY`, rules: `mesh_common::udp`).
//! - [`mesh_recvmsg4`]: the sender of what is received. An endpoint that was reached through several virtual
//!   addresses from one socket answers for the one that was used last.
//!
//! Never through the proxy. What goes to neither a virtual address nor a port that serves a UDP service is
//! left alone and counted nowhere: a reply can't be told from a question, nor a conversation from the
//! `connect()` by which a resolver asks for its own address.

use aya_ebpf::Global;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::addr::{self, Addr};
use mesh_common::dns;
use mesh_common::record::{Endpoint, Enrolled, Flow, PROTO_UDP, Service, Workload, app, flow};
use mesh_common::transport::enrolled;
use mesh_common::udp::{
    self, IDLE_NS, Known, MOST_STEPS, SIDE_ASKED, SIDE_HEARD, STICKY_SHARED, Sticky, StickyKey, TOUCH_NS,
};
use mesh_common::verdict::Verdict;

use crate::connect::{
    ALLOW, Call, DENY, call4, call6, find_served, find_service, lead, new_flow, redirect, refuses,
};
use crate::maps::UDP_STICKY;
use crate::pick::{Chosen, pick, slot_of};
use crate::sender::{self, Told};
use crate::socket::{add, count, count_number};
use crate::steady::room;
use crate::{egress, exclude, flows, questions, totals, who};

const ANY: u64 = 0;

// Named in `mesh_common::udp`; the agent sets it when it loads the programs.
#[unsafe(no_mangle)]
pub static UDP_IDLE_NS: Global<u64> = Global::new(IDLE_NS);

/// `connect()` of an enrolled workload's UDP socket. Flow and room for an entry are the caller's, who needs them
/// for TCP: two of each are too many on one stack.
#[inline(always)]
pub fn connect(call: &Call, me: &Enrolled, flow: &mut Flow, entry: &mut Service) -> i32 {
    let cookie = flows::cookie(call.ctx.cast());
    flow.protocol = app::UDP as u8;
    if call.port_be == dns::PORT_BE && questions::connect(call, me, cookie, flow) {
        return ALLOW;
    }
    let alone = me.flags & enrolled::EXCLUDES != 0 && exclude::outbound(call, me);
    let verdict = if alone || addr::is_loopback(&call.dst) {
        Verdict::Outside
    } else if find_service(call, me.scope, entry) {
        flow.service = entry.service;
        match drawn(me, entry, flow.start_ns) {
            Ok(chosen) => lead(call, flow, &chosen),
            Err(verdict) => verdict,
        }
    } else {
        match directly(call, flow) {
            Verdict::Outside if egress::refuses(call, me) => Verdict::EgressDenied,
            verdict => verdict,
        }
    };
    let told = if !sender::asked() || verdict.errno().is_some() {
        Told::Nothing
    } else {
        sender::connects(call, me, flow)
    };
    let verdict = if let Told::Refused(verdict) = told { verdict } else { verdict };
    let outside = matches!(verdict, Verdict::Outside);
    if outside && !matches!(told, Told::Proved) {
        // An earlier connect() of this socket may have led into the mesh.
        if flows::find(cookie).is_some() {
            flows::forget(cookie);
        }
        return ALLOW;
    }
    flow.verdict = verdict as u8;
    let errno = verdict.errno().unwrap_or(0) as u32;
    // The compiler knows what the verifier does not: that it is one of two.
    let settled = core::hint::black_box(mesh_settle(flow, cookie, errno, u32::from(!outside)));
    (settled & 1) as i32
}

/// Counts a flow's verdict, unless it is outside, and notes the flow; 0: it is refused, 1: it is not. Outside, too, a proof holds as
/// long as the flow.
///
/// A global function: looked at by the verifier anew from each of the ways that lead to it, it was half of what
/// `connect()` takes to load.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mesh_settle(flow: *mut Flow, cookie: u64, errno: u32, counts: u32) -> u64 {
    // SAFETY: the caller's, if not null; the verifier wants to see the question.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 1 };
    if counts != 0 {
        count_number(u32::from(flow.verdict));
        if (errno != 0 || totals::wanted())
            && let Some(totals) = totals::of(flow)
        {
            // SAFETY: a live map value.
            let (opened, refused) = unsafe { (&raw mut (*totals).opened, &raw mut (*totals).refused) };
            add(if errno == 0 { opened } else { refused }, 1);
        }
    }
    if errno != 0 {
        // SAFETY: sets the result of the system call.
        unsafe { bpf_set_retval(-(errno as i32)) };
        return 0;
    }
    if !flows::note(cookie, flow) {
        // Still balanced, but getpeername() shows the endpoint: say so.
        count(Verdict::RecordFull);
    }
    1
}

/// To a workload's own address?
#[inline(never)]
fn directly(call: &Call, flow: &mut Flow) -> Verdict {
    let mut peer: Workload = room();
    if !find_served(call, &mut peer) {
        return Verdict::Outside;
    }
    flow.service = peer.service;
    flow.endpoint = peer.endpoint;
    flow.peer_workload = peer.workload;
    Verdict::Direct
}

/// An endpoint of the service, if it has any.
#[inline(always)]
fn drawn(me: &Enrolled, entry: &Service, now: u64) -> Result<Chosen, Verdict> {
    if entry.table_len == 0 {
        return Err(Verdict::NoEndpoint);
    }
    // What is followed of TCP connections says nothing of datagrams.
    pick(entry, false, me, now)
}

/// Counts a socket that was given an endpoint.
#[inline(always)]
fn opened(flow: &mut Flow, verdict: Verdict) {
    flow.verdict = verdict as u8;
    if totals::wanted()
        && let Some(totals) = totals::of(flow)
    {
        // SAFETY: a live map value.
        add(unsafe { &raw mut (*totals).opened }, 1);
    }
}

#[cgroup_sock_addr(sendmsg4)]
pub fn mesh_sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&call4(ctx.sock_addr, PROTO_UDP))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn mesh_sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&call6(ctx.sock_addr, PROTO_UDP))
}

#[inline(always)]
fn send(call: &Call) -> i32 {
    let Some(me) = who::of_namespace(call.ctx).and_then(who::calls) else {
        return ALLOW;
    };
    if call.port_be == dns::PORT_BE && questions::send(call, me) {
        return ALLOW;
    }
    if addr::is_loopback(&call.dst) {
        return ALLOW;
    }
    let sent = if call.v6 { send_from::<true>(call, me) } else { send_from::<false>(call, me) };
    if sent == ALLOW && sender::asked() {
        let may = if call.v6 { sender::sends::<true>(call, me) } else { sender::sends::<false>(call, me) };
        if !may {
            return DENY;
        }
    }
    if me.flags & enrolled::NOTES != 0 && sent == ALLOW {
        if call.v6 { went::<true>(call, me) } else { went::<false>(call, me) }
    }
    sent
}

/// Notes where a datagram went: the destination is read again, because it may have been rewritten.
#[inline(never)]
fn went<const V6: bool>(call: &Call, me: &Enrolled) {
    let went = if V6 { call6(call.ctx, PROTO_UDP) } else { call4(call.ctx, PROTO_UDP) };
    exclude::asks(&went, me);
}

/// A datagram of an enrolled workload, in a hook of this address family, which is to be known here: loads behind
/// a branch on it would be merged, and refused. A function of its own: inlined, the compiler keeps halves of what
/// the verifier wants to see whole.
#[inline(never)]
fn send_from<const V6: bool>(made: &Call, me: &Enrolled) -> i32 {
    // For what is inlined alone: what others are shown has to lie on the stack.
    let call = &Call { v6: V6, ..*made };
    if me.flags & enrolled::EXCLUDES != 0 && exclude::outbound(made, me) {
        return ALLOW;
    }
    // The kernel itself names the destination where an IPv6 socket is connected to an IPv4 address.
    let at = connected(call);
    if at.is_some_and(|(to, port_be)| port_be == call.port_be && addr::same(&to, &call.dst)) {
        return ALLOW;
    }
    let mut entry: Service = room();
    if find_service(call, me.scope, &mut entry) {
        return to_service(call, me, &entry, at);
    }
    if to_workload(made, me) { ALLOW } else { egress::sends(made, me) }
}

#[inline(always)]
fn to_service(call: &Call, me: &Enrolled, entry: &Service, at: Option<(Addr, u16)>) -> i32 {
    let cookie = flows::cookie(call.ctx.cast());
    // Replies reach a connected socket from where it is connected to alone.
    if let Some((to, port_be)) = at
        && flows::find(cookie).is_some_and(|flow| shows(flow, &call.dst, call.port_be))
    {
        redirect(call, &to, port_be);
        return ALLOW;
    }
    let key = asked(cookie, call);
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a value of the map's, which stays for the run of the program.
    if let Some(sticky) = UDP_STICKY.get_ptr_mut(&key).and_then(|s| unsafe { s.as_mut() })
        && holds(sticky, &key, entry, now)
    {
        redirect(call, &sticky.addr, sticky.port_be);
        return ALLOW;
    }
    let mut flow = new_flow(me, call);
    flow.protocol = app::UDP as u8;
    flow.service = entry.service;
    let verdict = match drawn(me, entry, now) {
        Ok(chosen) => {
            let verdict = lead(call, &mut flow, &chosen);
            if verdict.errno().is_none() {
                remember(&key, &chosen, now);
                opened(&mut flow, verdict);
            }
            verdict
        }
        Err(verdict) => verdict,
    };
    if refuses(&mut flow, verdict) { DENY } else { ALLOW }
}

/// Counts a socket that sends to a workload's own address, once in a while of its sending; `false`: it is to nobody who
/// serves. Functions of their own, as others here: what each needs of the stack, picking an endpoint needs as well.
#[inline(never)]
fn to_workload(call: &Call, me: &Enrolled) -> bool {
    let mut peer: Workload = room();
    if !find_served(call, &mut peer) {
        return false;
    }
    if is_new(call, peer.endpoint) {
        opened_direct(call, me, peer.service, peer.endpoint, peer.workload);
    }
    true
}

/// Has the socket not sent there lately?
#[inline(never)]
fn is_new(call: &Call, endpoint: u32) -> bool {
    let key = asked(flows::cookie(call.ctx.cast()), call);
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as in `to_service`.
    if let Some(sticky) = UDP_STICKY.get_ptr_mut(&key).and_then(|s| unsafe { s.as_mut() })
        && sticky.endpoint == endpoint
        && !udp::quiet(sticky.seen_ns, now, UDP_IDLE_NS.load())
    {
        touch(sticky, now);
        return false;
    }
    let value = Sticky {
        addr: call.dst,
        seen_ns: now,
        service: 0,
        endpoint,
        generation: 0,
        port_be: call.port_be,
        flags: 0,
    };
    let _ = UDP_STICKY.insert(&key, &value, ANY);
    true
}

#[inline(never)]
fn opened_direct(call: &Call, me: &Enrolled, service: u32, endpoint: u32, workload: u32) {
    let mut flow = new_flow(me, call);
    flow.protocol = app::UDP as u8;
    flow.service = service;
    flow.endpoint = endpoint;
    flow.peer_workload = workload;
    opened(&mut flow, Verdict::Direct);
    count(Verdict::Direct);
}

#[inline(always)]
fn asked(cookie: u64, call: &Call) -> StickyKey {
    StickyKey { cookie, addr: call.dst, port_be: call.port_be, side: SIDE_ASKED, pad: 0 }
}

/// Does the socket keep its endpoint? If so, both of its entries are kept alive.
#[inline(always)]
fn holds(sticky: &mut Sticky, key: &StickyKey, entry: &Service, now: u64) -> bool {
    let known = udp::known(sticky, entry, now, UDP_IDLE_NS.load());
    if matches!(known, Known::Other) {
        return false;
    }
    if matches!(known, Known::Idle) {
        // SAFETY: read at once.
        let heard = unsafe { UDP_STICKY.get(&heard(key.cookie, &sticky.addr, sticky.port_be)) };
        if heard.is_none_or(|heard| udp::quiet(heard.seen_ns, now, UDP_IDLE_NS.load())) {
            return false;
        }
    }
    if !matches!(known, Known::Good) {
        if !found(sticky, entry) {
            return false;
        }
        sticky.generation = entry.generation;
    }
    if touch(sticky, now) || sticky.flags & STICKY_SHARED != 0 {
        answer(key, sticky, now);
    }
    true
}

/// Is the endpoint still in the service's table, where it was?
#[inline(always)]
fn found(sticky: &Sticky, entry: &Service) -> bool {
    let mut range = (0, entry.table_len);
    let mut steps = 0;
    while steps < MOST_STEPS {
        let Some(slot) = slot_of(entry, entry.table + udp::middle(range)) else {
            return false;
        };
        range = udp::halve(range, slot.endpoint, sticky.endpoint);
        steps += 1;
    }
    slot_of(entry, entry.table + range.0).is_some_and(|slot| {
        slot.endpoint == sticky.endpoint
            && slot.port_be == sticky.port_be
            && addr::same(&slot.addr, &sticky.addr)
    })
}

/// Notes a new choice: first whom the replies come from. Three functions, and not one: one's stack is free again
/// when the next is called.
#[inline(always)]
fn remember(key: &StickyKey, chosen: &Chosen, now: u64) {
    let flags = shared(key, chosen);
    expect(key, chosen, now, flags);
    keep(key, chosen, now, flags);
}

#[inline(never)]
fn keep(key: &StickyKey, chosen: &Chosen, now: u64, flags: u16) {
    // The map makes room by forgetting: without memory the next datagram is a choice of its own.
    let _ = UDP_STICKY.insert(key, &choice(chosen, now, flags), ANY);
}

#[inline(never)]
fn expect(key: &StickyKey, chosen: &Chosen, now: u64, flags: u16) {
    let Endpoint { addr, port_be, .. } = chosen.endpoint;
    let shown = Sticky { addr: key.addr, port_be: key.port_be, ..choice(chosen, now, flags) };
    let _ = UDP_STICKY.insert(&heard(key.cookie, addr, *port_be), &shown, ANY);
}

#[inline(always)]
fn choice(chosen: &Chosen, now: u64, flags: u16) -> Sticky {
    let Endpoint { addr, port_be, service, endpoint, .. } = *chosen.endpoint;
    Sticky { addr, seen_ns: now, service, endpoint, generation: chosen.generation, port_be, flags }
}

/// Did this socket reach the endpoint through another address before? Then that one's entry is told, too.
#[inline(never)]
fn shared(key: &StickyKey, chosen: &Chosen) -> u16 {
    let heard = heard(key.cookie, &chosen.endpoint.addr, chosen.endpoint.port_be);
    // SAFETY: read at once.
    let Some(before) = (unsafe { UDP_STICKY.get(&heard) }) else {
        return 0;
    };
    if before.port_be == key.port_be && addr::same(&before.addr, &key.addr) {
        return before.flags;
    }
    let other = StickyKey { addr: before.addr, port_be: before.port_be, ..*key };
    // SAFETY: as in `to_service`.
    if let Some(other) = UDP_STICKY.get_ptr_mut(&other).and_then(|s| unsafe { s.as_mut() }) {
        other.flags |= STICKY_SHARED;
    }
    STICKY_SHARED
}

/// From now on what comes from the endpoint is shown to come from the address that was asked for.
#[inline(never)]
fn answer(key: &StickyKey, sticky: &Sticky, now: u64) {
    let shown = Sticky { addr: key.addr, seen_ns: now, port_be: key.port_be, ..*sticky };
    let _ = UDP_STICKY.insert(&heard(key.cookie, &sticky.addr, sticky.port_be), &shown, ANY);
}

#[inline(always)]
pub fn heard(cookie: u64, addr: &Addr, port_be: u16) -> StickyKey {
    StickyKey { cookie, addr: *addr, port_be, side: SIDE_HEARD, pad: 0 }
}

/// Notes a datagram, now and then. `true`: it did.
#[inline(always)]
pub fn touch(sticky: &mut Sticky, now: u64) -> bool {
    if !udp::quiet(sticky.seen_ns, now, TOUCH_NS) {
        return false;
    }
    sticky.seen_ns = now;
    true
}

#[cgroup_sock_addr(recvmsg4)]
pub fn mesh_recvmsg4(ctx: SockAddrContext) -> i32 {
    receive(&call4(ctx.sock_addr, PROTO_UDP))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn mesh_recvmsg6(ctx: SockAddrContext) -> i32 {
    receive(&call6(ctx.sock_addr, PROTO_UDP))
}

/// The verifier lets no other result pass than this one.
#[inline(always)]
fn receive(call: &Call) -> i32 {
    let cookie = flows::cookie(call.ctx.cast());
    if let Some((from, port_be)) = connected(call)
        && port_be == call.port_be
        && addr::same(&from, &call.dst)
    {
        if let Some(flow) = flows::find(cookie)
            && flow.flags & flow::SHOW_PEER != 0
        {
            redirect(call, &flow.peer, flow.peer_port_be);
        }
        return ALLOW;
    }
    let key = heard(cookie, &call.dst, call.port_be);
    // SAFETY: as in `to_service`.
    if let Some(sticky) = UDP_STICKY.get_ptr_mut(&key).and_then(|s| unsafe { s.as_mut() }) {
        // SAFETY: no arguments.
        touch(sticky, unsafe { bpf_ktime_get_ns() });
        redirect(call, &sticky.addr, sticky.port_be);
    }
    ALLOW
}

#[inline(always)]
pub fn shows(flow: &Flow, addr: &Addr, port_be: u16) -> bool {
    flow.flags & flow::SHOW_PEER != 0 && flow.peer_port_be == port_be && addr::same(&flow.peer, addr)
}

/// Where the kernel says that the call's socket is connected to.
#[inline(always)]
pub fn connected(call: &Call) -> Option<(Addr, u16)> {
    let sk = socket(call.ctx)?;
    // SAFETY: a socket of the context's, valid for the run; volatile, because merged loads are refused.
    unsafe {
        let port_be = core::ptr::read_volatile(&raw const (*sk).dst_port);
        if port_be == 0 {
            return None;
        }
        if !call.v6 {
            return Some((addr::from_v4_be(core::ptr::read_volatile(&raw const (*sk).dst_ip4)), port_be));
        }
        let words = [
            core::ptr::read_volatile(&raw const (*sk).dst_ip6[0]),
            core::ptr::read_volatile(&raw const (*sk).dst_ip6[1]),
            core::ptr::read_volatile(&raw const (*sk).dst_ip6[2]),
            core::ptr::read_volatile(&raw const (*sk).dst_ip6[3]),
        ];
        Some((words, port_be))
    }
}

/// The call's socket.
#[inline(always)]
pub fn socket(ctx: *mut bpf_sock_addr) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid for the run.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    (!sk.is_null()).then_some(sk)
}
