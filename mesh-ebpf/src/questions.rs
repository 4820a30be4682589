//! A workload asks a resolver: the question goes to the agent, which hears it in the workload's namespace.
//!
//! The agent answers names of the mesh and passes everything else on to the resolver that was asked. For it to know
//! which that was: a connected socket's flow says so, and of other sockets `UDP_STICKY`, by the place that the
//! datagram came to ([`mesh_common::dns`]). Both also make the answers come from the resolver.
//!
//! Left alone, so that it goes to the resolver as without a mesh: everything while the agent is not there; sockets
//! bound to an interface, or to the port of resolvers (a resolver's own answers go out there); what the agent
//! itself asks; what a `TransportPolicy` excludes; and what [`dns::askable`] does not name.
//! TCP is taken by `connect()` as any captured connection.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_common::addr::{self, Addr};
use mesh_common::dns;
use mesh_common::record::{Enrolled, Flow, flow, listener, role};
use mesh_common::transport::enrolled;
use mesh_common::udp::{self, IDLE_NS, Sticky, StickyKey};
use mesh_common::verdict::Verdict;

use crate::capture::bind_own;
use crate::connect::{Call, redirect};
use crate::maps::{CAPTURED, UDP_STICKY};
use crate::socket::{agent_alive, count, record};
use crate::udp::{connected, heard, shows, socket, touch};
use crate::{exclude, flows};

const ANY: u64 = 0;

/// Does the agent take what this call asks a resolver?
#[inline(never)]
pub fn taken(call: &Call, me: &Enrolled) -> bool {
    if !dns::askable(&call.dst) || first_be(call, me) == 0 {
        return false;
    }
    if me.flags & enrolled::EXCLUDES != 0 && exclude::outbound(call, me) {
        return false;
    }
    let Some(sk) = socket(call.ctx) else {
        return false;
    };
    // SAFETY: a socket of the context's, valid for the run; volatile, because merged loads are refused.
    let (interface, port) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*sk).bound_dev_if),
            core::ptr::read_volatile(&raw const (*sk).src_port),
        )
    };
    if interface != 0 || port == u32::from(dns::PORT) {
        return false;
    }
    if record(&CAPTURED, sk.cast()).is_some_and(|own| own.role == role::RESOLVES) {
        return false;
    }
    agent_alive(me.listener_slot + listener::DNS, me.heartbeat_slot)
}

#[inline(always)]
fn is_v6(call: &Call) -> bool {
    call.v6 && !addr::is_v4(&call.dst)
}

/// The agent's first place; 0: it hears nothing of this address family.
#[inline(always)]
fn first_be(call: &Call, me: &Enrolled) -> u16 {
    if is_v6(call) { me.port6_be } else { me.port4_be }
}

#[inline(always)]
fn agent(call: &Call) -> Addr {
    if is_v6(call) { addr::LOOPBACK6 } else { addr::LOOPBACK4 }
}

/// `connect()` of a UDP socket to a resolver. `false`: it is not taken.
#[inline(always)]
pub fn connect(call: &Call, me: &Enrolled, cookie: u64, flow: &mut Flow) -> bool {
    if !taken(call, me) {
        return false;
    }
    flow.flags |= flow::SHOW_PEER | flow::CAPTURED;
    flow.verdict = Verdict::Captured as u8;
    // Nothing else says whom to ask.
    if !flows::note(cookie, flow) {
        count(Verdict::RecordFull);
        flow.flags = 0;
        return false;
    }
    bind(call, me);
    redirect(call, &agent(call), first_be(call, me));
    true
}

/// The socket keeps the workload's own address, which `getsockname()` shows and which is right wherever it is
/// connected to next: bound to loopback by the kernel, it could go nowhere else.
#[inline(never)]
fn bind(call: &Call, me: &Enrolled) {
    bind_own(call, if is_v6(call) { &me.addr6 } else { &me.addr4 });
}

/// A datagram to a resolver. `false`: it is not taken.
#[inline(always)]
pub fn send(call: &Call, me: &Enrolled) -> bool {
    let at_be = connected(call).map_or(0, |(_, port_be)| port_be);
    let port_be = place(call, me, at_be);
    if port_be == 0 {
        return false;
    }
    redirect(call, &agent(call), port_be);
    true
}

/// The agent's port for this datagram of a socket that is connected to port `at_be` (0: to none); 0: it is not
/// taken. Reads and writes of the context are the caller's, who knows the address family.
#[inline(never)]
fn place(call: &Call, me: &Enrolled, at_be: u16) -> u16 {
    if !taken(call, me) {
        return 0;
    }
    let cookie = flows::cookie(call.ctx.cast());
    if at_be != 0 {
        // It hears from where it is connected to alone.
        let same = flows::find(cookie).is_some_and(|flow| shows(flow, &call.dst, call.port_be));
        return if same { at_be } else { 0 };
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut key = heard(cookie, &agent(call), 0);
    let mut place = 0;
    while place < dns::PLACES {
        key.port_be = dns::port_be(first_be(call, me), place);
        if speaks(&key, call, now) {
            return key.port_be;
        }
        place += 1;
    }
    0
}

/// Is this place the resolver's, or does it become so?
#[inline(always)]
fn speaks(key: &StickyKey, call: &Call, now: u64) -> bool {
    // SAFETY: a value of the map's, which stays for the run of the program.
    if let Some(held) = UDP_STICKY.get_ptr_mut(key).and_then(|held| unsafe { held.as_mut() }) {
        if held.port_be == call.port_be && addr::same(&held.addr, &call.dst) {
            touch(held, now);
            return true;
        }
        if !udp::quiet(held.seen_ns, now, IDLE_NS) {
            return false;
        }
    }
    let asked = Sticky {
        addr: call.dst,
        seen_ns: now,
        service: 0,
        endpoint: 0,
        generation: 0,
        port_be: call.port_be,
        flags: 0,
    };
    UDP_STICKY.insert(key, &asked, ANY).is_ok()
}
