//! A connection arrives in an enrolled namespace: to the application, to the agent, or dropped. So does a datagram for
//! a socket that is not connected, where the workload has policies or takes answers alone; the kernel finds connected
//! sockets before it asks.
//!
//! From outside, asked in this order: the policies of the workload that is called, then who takes the connection.
//! Skipped: what a pod sends to its own address; whatever no entry names. In the host's namespace the workloads are
//! neighbours on one address: what they send each other comes by `lo` and is asked as well, and entries name single
//! ports; whatever else the host listens on is never looked at. A connection that the agent opened on this node, and
//! has asked everything about, carries a flow source that says so.
//!
//! On loopback: captured connections that `connect()` has spread go to the agent's listener; all others pass.

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::addr::{self, Addr};
use mesh_common::decide::{Inbound, inbound};
use mesh_common::policy::{Caller, UNPROVED, proves};
use mesh_common::record::{
    FlowKey, FlowSource, PROTO_TCP, PROTO_UDP, Workload, WorkloadKey, flags, listener,
};
use mesh_common::sender::Sender;
use mesh_common::spread;
use mesh_common::verdict::Verdict;

use crate::maps::LISTENERS;
use crate::policy::{self, Called};
use crate::socket::{count, worker_alive};
use crate::steady::{look, mesh_flow_source, mesh_workload, room};
use crate::{exclude, sender};

const PASS: u32 = 1;
const DROP: u32 = 0;
const AF_INET: u32 = 2;
/// `lo`; less: a look-up by another program.
const LOOPBACK_IFINDEX: u32 = 1;

macro_rules! field {
    ($ctx:expr, $($f:tt)+) => {
        // SAFETY: the context is valid for the run; volatile, because merged context loads are refused.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx).$($f)+) }
    };
}

/// For a workload without policies: what no entry names passes.
#[sk_lookup]
pub fn mesh_sk_lookup(ctx: SkLookupContext) -> u32 {
    look_up(&ctx, Place::Open, false)
}

/// For a workload with policies: an address that it was not enrolled with (link-local, added later) would be a
/// way around them. Which workload it is cannot be told from here, so nobody is asked: it is closed.
#[sk_lookup]
pub fn mesh_sk_policed(ctx: SkLookupContext) -> u32 {
    look_up(&ctx, Place::Policed, false)
}

/// For a workload without policies that hears nothing over UDP but answers.
#[sk_lookup]
pub fn mesh_sk_no_udp(ctx: SkLookupContext) -> u32 {
    look_up(&ctx, Place::Open, true)
}

/// For a workload with policies that hears nothing over UDP but answers.
#[sk_lookup]
pub fn mesh_sk_closed(ctx: SkLookupContext) -> u32 {
    look_up(&ctx, Place::Policed, true)
}

/// For the host's namespace, which workloads share with everything else that the host does.
#[sk_lookup]
pub fn mesh_sk_host(ctx: SkLookupContext) -> u32 {
    look_up(&ctx, Place::Host, false)
}

/// Whose namespace it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A workload's, without policies.
    Open,
    /// A workload's, with policies.
    Policed,
    /// The host's.
    Host,
}

/// For a workload of which nothing is asked: no entry of its wants the proxy or has policies. What comes from
/// outside passes.
#[sk_lookup]
pub fn mesh_sk_idle(ctx: SkLookupContext) -> u32 {
    let c = ctx.lookup;
    if field!(c, ingress_ifindex) != LOOPBACK_IFINDEX || field!(c, protocol) != u32::from(PROTO_TCP) {
        return PASS;
    }
    captured(&ctx)
}

#[inline(always)]
fn look_up(ctx: &SkLookupContext, place: Place, no_udp: bool) -> u32 {
    let c = ctx.lookup;
    let from = field!(c, ingress_ifindex);
    let (host, here) = (matches!(place, Place::Host), from == LOOPBACK_IFINDEX);
    if from < LOOPBACK_IFINDEX {
        return PASS;
    }
    match field!(c, protocol) as u8 {
        // Connections of the host's workloads are not spread.
        PROTO_TCP if here && !host => captured(ctx),
        PROTO_TCP => connection(ctx, place),
        PROTO_UDP if host && !sender::asked() => PASS,
        PROTO_UDP if host || (!here && (no_udp || matches!(place, Place::Policed))) => {
            datagram(c, place, no_udp)
        }
        _ => PASS,
    }
}

/// A datagram for a socket that is not connected. Answers come in; of all else `udp: deny` is asked first, then the
/// policies. An address that the workload was not enrolled with is closed, as in [`mesh_sk_policed`].
#[inline(always)]
fn datagram(c: *mut bpf_sk_lookup, place: Place, no_udp: bool) -> u32 {
    let host = matches!(place, Place::Host);
    let (local, remote) = ends(c);
    if addr::is_loopback(&local) || (!host && addr::same(&local, &remote)) {
        return PASS;
    }
    let (port, remote_port_be) = (field!(c, local_port), field!(c, remote_port));
    let port_be = (port as u16).to_be();
    // What holds for a pod's address holds for all of its ports.
    let found = if host { at(&local, port_be, PROTO_UDP) } else { at(&local, 0, PROTO_TCP) };
    let Some(entry) = found else {
        if host {
            return PASS;
        }
        let called = Called { workload: 0, port_be, proto: PROTO_UDP };
        count(if no_udp { Verdict::UdpDenied } else { policy::refused(0, &remote, 0, called) });
        return DROP;
    };
    if (no_udp || entry.policy_set != 0) && exclude::is_answer(entry.workload, port, &remote, remote_port_be)
    {
        return PASS;
    }
    if no_udp && !left_alone(&entry, port, &remote, field!(c, ingress_ifindex)) {
        count(Verdict::UdpDenied);
        return DROP;
    }
    if entry.policy_set == 0 {
        return PASS;
    }
    let flow = FlowKey { src: remote, dst: local, src_port_be: remote_port_be, dst_port_be: port_be };
    if let Some(verdict) = from(&entry, &flow) {
        count(verdict);
        return DROP;
    }
    exclude::lets_in(entry.workload, port, &remote, remote_port_be);
    PASS
}

/// Do the policies refuse a datagram?
#[inline(never)]
fn from(entry: &Workload, flow: &FlowKey) -> Option<Verdict> {
    let mut sender: Sender = room();
    let (caller, who) = if sender::proved(flow, &mut sender) {
        (Caller { identity: sender.identity, namespace: sender.namespace }, sender.workload)
    } else {
        (UNPROVED, 0)
    };
    let called = Called { workload: entry.workload, port_be: flow.dst_port_be, proto: PROTO_UDP };
    refused(entry.policy_set, caller, who, &flow.src, called)
}

/// Is what comes from there to this port of the workload excluded? `port` in host order.
#[inline(always)]
fn left_alone(entry: &Workload, port: u32, remote: &Addr, interface: u32) -> bool {
    entry.flags & flags::EXCLUDES != 0 && exclude::inbound(entry.workload, port, remote, interface)
}

/// What is served at this address and port; 0 of TCP: at any other port.
#[inline(always)]
fn at(local: &Addr, port_be: u16, proto: u8) -> Option<Workload> {
    let key = WorkloadKey { addr: *local, port_be, proto, network: 0 };
    let mut entry: Workload = room();
    look(mesh_workload, &key, &mut entry).then_some(entry)
}

#[inline(always)]
fn connection(ctx: &SkLookupContext, place: Place) -> u32 {
    let c = ctx.lookup;
    let host = matches!(place, Place::Host);
    let (local, remote) = ends(c);
    if addr::is_loopback(&local) || (!host && addr::same(&local, &remote)) {
        return PASS;
    }
    let port_be = (field!(c, local_port) as u16).to_be();
    // On the host's address entries name single ports.
    let any = || if host { None } else { at(&local, 0, PROTO_TCP) };
    let Some(entry) = at(&local, port_be, PROTO_TCP).or_else(any) else {
        if matches!(place, Place::Policed) {
            let called = Called { workload: 0, port_be, proto: PROTO_TCP };
            count(policy::refused(0, &remote, 0, called));
            return DROP;
        }
        return PASS;
    };
    if entry.flags & (flags::INBOUND_PROXY | flags::STRICT) == 0 && entry.policy_set == 0 {
        return PASS;
    }
    let flow = FlowKey { src: remote, dst: local, src_port_be: field!(c, remote_port), dst_port_be: port_be };
    let mut source: FlowSource = room();
    // SAFETY: no arguments.
    let proved = look(mesh_flow_source, &flow, &mut source)
        && proves(source.established_ns, unsafe { bpf_ktime_get_ns() });
    let source = proved.then_some(&source);
    let authorised = source.is_some_and(|source| source.authorised != 0);
    if entry.policy_set != 0 && !authorised {
        // Who has no flow source here has an address and no identity.
        let (caller, who) = source.map_or((UNPROVED, 0), |source| {
            (Caller { identity: source.identity, namespace: source.namespace }, source.workload)
        });
        let called = Called { workload: entry.workload, port_be, proto: PROTO_TCP };
        if let Some(verdict) = refused(entry.policy_set, caller, who, &remote, called) {
            count(verdict);
            return DROP;
        }
    }
    // Without a tunnel an address is all that there is, and that proves nobody.
    if entry.flags & flags::STRICT != 0
        && source.is_none()
        && !left_alone(&entry, field!(c, local_port), &remote, field!(c, ingress_ifindex))
    {
        count(Verdict::PlaintextDenied);
        return DROP;
    }
    if entry.flags & flags::INBOUND_PROXY == 0 {
        return PASS;
    }
    if !authorised
        && entry.flags & flags::REQUESTS == 0
        && left_alone(&entry, field!(c, local_port), &remote, field!(c, ingress_ifindex))
    {
        count(Verdict::InboundExcluded);
        return PASS;
    }
    act(ctx, &entry, authorised)
}

/// From a workload's own address to where only captured connections go: the workload's listener takes it.
#[inline(always)]
fn captured(ctx: &SkLookupContext) -> u32 {
    let c = ctx.lookup;
    let (ip_be, port, v4) =
        (field!(c, local_ip4), field!(c, local_port) as u16, field!(c, family) == AF_INET);
    if !spread::perhaps(v4, ip_be, port) {
        return PASS;
    }
    let (local, remote) = ends(c);
    if addr::is_loopback(&remote) || !(v4 || spread::is_loopback6(&local)) {
        return PASS;
    }
    let key = WorkloadKey { addr: remote, port_be: 0, proto: PROTO_TCP, network: 0 };
    let mut entry: Workload = room();
    let slot = if look(mesh_workload, &key, &mut entry) { entry.inbound_slot } else { 0 };
    if slot >= listener::IN {
        let offset = if v4 { listener::OUT4 } else { listener::OUT6 };
        // Where the agent has just gone nobody listens, and the connection is refused.
        let _ = LISTENERS.redirect_sk_lookup(ctx, slot - listener::IN + offset, 0);
    }
    PASS
}

/// Does a policy set refuse what comes from a workload (0: nobody has proved which) at this address?
#[inline(always)]
fn refused(set: u32, caller: Caller, who: u32, remote: &Addr, called: Called) -> Option<Verdict> {
    if policy::allowed(set, policy::range_of(set, remote), called.port_be, called.proto, caller) {
        return None;
    }
    // A workload may always call itself; on the host's address that comes by here.
    if who != 0 && who == called.workload {
        return None;
    }
    Some(policy::refused(set, remote, who, called))
}

#[inline(always)]
fn act(ctx: &SkLookupContext, entry: &Workload, authorised: bool) -> u32 {
    let alive = worker_alive(entry.heartbeat_slot);
    match inbound(entry.flags, authorised, alive) {
        Inbound::Pass => PASS,
        Inbound::Assign => {
            if LISTENERS.redirect_sk_lookup(ctx, entry.inbound_slot, 0).is_ok() {
                count(Verdict::InboundCaptured);
                return PASS;
            }
            // The socket is gone although its worker still beats: as if it did not.
            lost(entry.flags)
        }
        Inbound::PassBypassed | Inbound::Drop => lost(entry.flags),
    }
}

#[inline(always)]
fn lost(entry_flags: u32) -> u32 {
    if entry_flags & flags::BYPASS != 0 {
        count(Verdict::InboundBypassed);
        PASS
    } else {
        count(Verdict::InboundProxyLost);
        DROP
    }
}

#[inline(always)]
fn ends(c: *mut bpf_sk_lookup) -> (Addr, Addr) {
    // All of both forms, before any branch, as in `sock_ops`.
    let v4 = [field!(c, local_ip4), field!(c, remote_ip4)];
    let local6: Addr =
        [field!(c, local_ip6[0]), field!(c, local_ip6[1]), field!(c, local_ip6[2]), field!(c, local_ip6[3])];
    let remote6: Addr = [
        field!(c, remote_ip6[0]),
        field!(c, remote_ip6[1]),
        field!(c, remote_ip6[2]),
        field!(c, remote_ip6[3]),
    ];
    if field!(c, family) == AF_INET {
        (addr::from_v4_be(v4[0]), addr::from_v4_be(v4[1]))
    } else {
        (local6, remote6)
    }
}
