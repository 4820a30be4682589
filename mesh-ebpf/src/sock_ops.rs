//! TCP events of tracked sockets: SYN about to leave, handshake done, connection accepted, state changed.
//!
//! - SYN: counts load, proves the source to a local peer, puts the capture record where the agent's
//!   accepted socket will find it. All before the SYN reaches the other side.
//! - accepted: the record moves onto the accepted socket.
//! - closed: totals, the flow's record, and everything that was put is taken back.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::addr::{self, Addr};
use mesh_common::decide::{self, tcp};
use mesh_common::record::{BUDGET_DIALS, Flow, FlowEvent, FlowKey, FlowSource, SynKey, captured, flow, role};
use mesh_common::verdict::Verdict;

use crate::maps::{BUDGET, CAPTURE_SYN, CAPTURED, FLOW_EVENTS, FLOW_SRC};
use crate::socket::{add, copy_words, count, live, record, zero};
use crate::splice::Moved;
use crate::{fare, flows, splice, totals};

const TIMEOUT_INIT: u32 = 1;
const TCP_CONNECT_CB: u32 = 3;
const ACTIVE_ESTABLISHED_CB: u32 = 4;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const RTO_CB: u32 = 8;
const STATE_CB: u32 = 10;
const RTO_CB_FLAG: i32 = 1;
const STATE_CB_FLAG: i32 = 4;
const AF_INET: u32 = 2;
const ANY: u64 = 0;
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const AVAIL_DATA: u64 = 0;
/// Records that wait before the agent is woken: an eighth of the smallest ring.
const WAKE_BYTES: u64 = 1 << 16;

macro_rules! field {
    ($ops:expr, $($f:tt)+) => {
        // SAFETY: the context is valid for the run; volatile, because merged context loads are refused.
        unsafe { core::ptr::read_volatile(&raw const (*$ops).$($f)+) }
    };
}

#[sock_ops]
pub fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = field!(ops, op);
    if op != TCP_CONNECT_CB
        && op != TIMEOUT_INIT
        && op != ACTIVE_ESTABLISHED_CB
        && op != PASSIVE_ESTABLISHED_CB
        && op != RTO_CB
        && op != STATE_CB
    {
        return 1;
    }
    // SAFETY: as above; the kernel gives null where the socket is not a full one.
    let sk: *mut c_void = unsafe { (*ops).__bindgen_anon_2.sk }.cast();
    if sk.is_null() {
        return 1;
    }
    match op {
        TCP_CONNECT_CB => begun(ops, sk),
        ACTIVE_ESTABLISHED_CB => established(ops, sk),
        PASSIVE_ESTABLISHED_CB => accepted(ops, sk),
        TIMEOUT_INIT => first_timeout(ops),
        RTO_CB => retried(ops),
        _ => state_changed(ops),
    }
    1
}

#[inline(always)]
fn begun(ops: *mut bpf_sock_ops, sk: *mut c_void) {
    let Some(flow) = flows::find(flows::cookie(ops.cast())) else {
        return;
    };
    flow.flags |= flow::BEGUN;
    let leg = flow.flags & flow::LEG != 0;
    if flow.endpoint != 0 {
        flow.flags |= flow::COUNTED;
        if let Some(load) = live(flow.endpoint, flow.service, 1) {
            // SAFETY: a live map value.
            add(unsafe { &raw mut (*load).opened }, 1);
        }
    }
    if flow.flags & flow::PROVE != 0 {
        let value = FlowSource {
            workload: flow.workload,
            identity: flow.identity,
            namespace: flow.namespace,
            authorised: u32::from(leg),
            established_ns: 0,
        };
        if FLOW_SRC.insert(&ends(ops, false), &value, ANY).is_ok() {
            flow.flags |= flow::SOURCED;
        } else {
            count(Verdict::FlowSourceFull);
        }
    }
    hand_over(ops, sk, flow);
    let mut events = STATE_CB_FLAG;
    if flow.flags & (flow::WATCHED | flow::HASTY) != 0 {
        fare::hurry(ops, flow);
        events |= RTO_CB_FLAG;
    }
    // SAFETY: a valid context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, events) };
}

/// How long the SYN may be without an answer before it is sent again. Asked right after [`begun`], of every
/// connection.
#[inline(always)]
fn first_timeout(ops: *mut bpf_sock_ops) {
    // Set in `begun`, on connections alone whose failures matter.
    if field!(ops, bpf_sock_ops_cb_flags) & RTO_CB_FLAG as u32 == 0 {
        return;
    }
    if let Some(flow) = flows::find(flows::cookie(ops.cast())) {
        let ticks = fare::first_timeout(flow);
        if ticks != 0 {
            // SAFETY: a valid context; for this operation the reply is the timeout.
            unsafe { core::ptr::write_volatile(&raw mut (*ops).__bindgen_anon_1.reply, ticks) };
        }
    }
}

/// A segment goes unanswered: until the handshake is done, that is the SYN.
#[inline(always)]
fn retried(ops: *mut bpf_sock_ops) {
    if let Some(flow) = flows::find(flows::cookie(ops.cast()))
        && flow.flags & flow::ESTABLISHED == 0
    {
        fare::failed(flow);
    }
}

/// Leaves the capture record for the socket that will be accepted at the other end of loopback.
#[inline(always)]
fn hand_over(ops: *mut bpf_sock_ops, sk: *mut c_void, flow: &mut Flow) {
    if flow.flags & (flow::CAPTURED | flow::LEG) == 0 {
        return;
    }
    let Some(capture) = record(&CAPTURED, sk) else {
        return;
    };
    if capture.role != role::CLIENT && capture.role != role::DIAL {
        return;
    }
    let value = *capture;
    if CAPTURE_SYN.insert(&syn_key(ops, false), &value, ANY).is_err() {
        count(Verdict::HandoverFull);
        return;
    }
    flow.flags |= flow::PENDING;
    if capture.role == role::DIAL {
        capture.role = role::DIALLED;
    }
    waits(value.workload, value.role == role::DIAL, 1);
}

/// Counts a record that waits, for its workload and, if it is a dial's, for the node; `u64::MAX`: one less.
#[inline(always)]
fn waits(workload: u32, dial: bool, n: u64) {
    if let Some(pending) = BUDGET.get_ptr_mut(workload) {
        add(pending, n);
    }
    if dial && let Some(dials) = BUDGET.get_ptr_mut(BUDGET_DIALS) {
        add(dials, n);
    }
}

/// Is this end's address 127/8, v4-mapped or not, or `::1`? All others may be taken for it, but not these for
/// others.
#[inline(always)]
fn on_loopback(ops: *mut bpf_sock_ops) -> bool {
    let (v4, v6) = (field!(ops, local_ip4), field!(ops, local_ip6[3]));
    v4 as u8 == 127 || v6 == addr::LOOPBACK6[3]
}

/// Does any record of a dial wait on this node? Without one an accepted connection needs no look-up.
#[inline(always)]
fn dials() -> bool {
    // SAFETY: an aligned word of a live array.
    BUDGET.get_ptr(BUDGET_DIALS).is_some_and(|n| unsafe { core::ptr::read_volatile(n) } != 0)
}

#[inline(always)]
fn established(ops: *mut bpf_sock_ops, sk: *mut c_void) {
    // Set in `begun`, on tracked sockets alone.
    if field!(ops, bpf_sock_ops_cb_flags) & STATE_CB_FLAG as u32 == 0 {
        return;
    }
    let Some(flow) = flows::find(flows::cookie(ops.cast())) else {
        return;
    };
    flow.flags |= flow::ESTABLISHED;
    if flow.flags & flow::SPLICE != 0 {
        splice::opened(ops, sk);
    }
    if flow.flags & flow::SOURCED != 0
        && let Some(source) = FLOW_SRC.get_ptr_mut(&ends(ops, false))
    {
        // SAFETY: an aligned word of a live map value.
        unsafe { core::ptr::write_volatile(&raw mut (*source).established_ns, bpf_ktime_get_ns()) };
    }
    if flow.flags & (flow::WATCHED | flow::HASTY) != 0 {
        fare::answered(ops, flow);
        // SAFETY: a valid context.
        unsafe { bpf_sock_ops_cb_flags_set(ops, STATE_CB_FLAG) };
    }
    if flow.flags & flow::LEG == 0
        && totals::wanted()
        && let Some(totals) = totals::of(flow)
    {
        // SAFETY: a live map value.
        add(unsafe { &raw mut (*totals).opened }, 1);
    }
}

/// A connection was accepted: by the agent's listener (its record is inherited), or by an application that
/// the agent dialled (a record waits for it), or by anybody else (nothing waits).
#[inline(always)]
fn accepted(ops: *mut bpf_sock_ops, sk: *mut c_void) {
    // The agent's listeners that need a record are on loopback; the application may be anywhere.
    if !dials() && !on_loopback(ops) {
        return;
    }
    let own = record(&CAPTURED, sk);
    let key = syn_key(ops, true);
    // SAFETY: copied out before it is removed.
    let waiting = unsafe { CAPTURE_SYN.get(&key) }.copied();
    if let Some(own) = own
        && own.role == role::LISTENER
    {
        match waiting {
            Some(mut capture) => {
                let dial = capture.role == role::DIAL;
                capture.role = role::ACCEPTED;
                *own = capture;
                taken(&key, capture.workload, dial);
                if capture.flags & captured::SPLICE != 0 {
                    splice::accepted(ops, sk);
                }
            }
            None => own.role = role::LOST,
        }
        return;
    }
    let Some(capture) = waiting else {
        return;
    };
    if capture.role != role::DIAL {
        return;
    }
    taken(&key, capture.workload, true);
    let zero = zero();
    let flow = Flow {
        peer: capture.addr,
        start_ns: 0,
        workload: zero,
        service: zero,
        endpoint: zero,
        peer_workload: zero,
        flags: flow::SHOW_PEER | flow::BEGUN,
        identity: zero,
        at_fin_wait2: zero,
        peer_port_be: capture.port_be,
        verdict: 0,
        protocol: 0,
        namespace: zero,
        reserved: zero,
    };
    if !flows::note(flows::cookie(ops.cast()), &flow) {
        count(Verdict::RecordFull);
        return;
    }
    // SAFETY: a valid context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, STATE_CB_FLAG) };
}

/// Removes a waiting record. Whoever removes it gives the budget back: exactly one does.
#[inline(always)]
fn taken(key: &SynKey, workload: u32, dial: bool) {
    if CAPTURE_SYN.remove(key).is_ok() {
        waits(workload, dial, u64::MAX);
    }
}

#[inline(always)]
fn state_changed(ops: *mut bpf_sock_ops) {
    // SAFETY: a valid context; for this operation the arguments are the old state and the new one.
    let (old, new) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ops).__bindgen_anon_1.args[0]),
            core::ptr::read_volatile(&raw const (*ops).__bindgen_anon_1.args[1]),
        )
    };
    if new != tcp::CLOSE && new != tcp::FIN_WAIT2 {
        return;
    }
    let cookie = flows::cookie(ops.cast());
    let Some(flow) = flows::find(cookie) else {
        return;
    };
    if new == tcp::FIN_WAIT2 {
        flow.at_fin_wait2 = field!(ops, bytes_received) as u32;
        return;
    }
    let established = flow.flags & flow::ESTABLISHED != 0;
    if flow.flags & flow::COUNTED != 0 {
        // An application that gives up before anything was heard or retried says nothing of the endpoint.
        let failed = !established && (field!(ops, segs_in) > 0 || field!(ops, total_retrans) > 0);
        let load = live(flow.endpoint, flow.service, u64::MAX);
        if failed && let Some(load) = load {
            // SAFETY: a live map value.
            add(unsafe { &raw mut (*load).failures }, 1);
        }
        if failed {
            fare::failed(flow);
        }
    }
    if flow.flags & flow::SOURCED != 0 {
        let _ = FLOW_SRC.remove(&ends(ops, false));
    }
    if flow.flags & flow::PENDING != 0 {
        taken(&syn_key(ops, false), flow.workload, flow.flags & flow::LEG != 0);
    }
    let mut moved = Moved { sent: 0, received: 0 };
    if flow.flags & flow::SPLICE != 0 {
        splice::closed(ops, &mut moved);
    }
    // The agent's legs count in `LOAD` alone, and an accepted socket's record has no source.
    if flow.flags & flow::LEG == 0 && flow.workload != 0 && totals::wanted() {
        ended(ops, flow, established, old, moved);
    }
    flows::forget(cookie);
}

/// Adds a flow to the totals, and leaves a record of it.
///
/// User space adds what open sockets show to the totals of ended ones. So that it never counts a flow as
/// both, the flow says that it has ended before the totals change.
#[inline(always)]
fn ended(ops: *mut bpf_sock_ops, flow: &mut Flow, established: bool, last: u32, moved: Moved) {
    // SAFETY: a live map value; volatile, so that it is stored here and not later.
    unsafe { (&raw mut flow.flags).write_volatile(flow.flags | flow::ENDED) };
    let retransmits = field!(ops, total_retrans);
    let (sent, received) = if established {
        let all_acked = field!(ops, snd_una) == field!(ops, snd_nxt);
        (
            decide::sent(field!(ops, bytes_acked), last, all_acked) + moved.sent,
            decide::received(field!(ops, bytes_received), last, flow.at_fin_wait2) + moved.received,
        )
    } else {
        (0, 0)
    };
    if let Some(totals) = totals::of(flow) {
        // SAFETY: a live map value.
        unsafe {
            if established {
                add(&raw mut (*totals).closed, 1);
                add(&raw mut (*totals).sent, sent);
                add(&raw mut (*totals).received, received);
            } else {
                add(&raw mut (*totals).failed, 1);
            }
            if retransmits != 0 {
                add(&raw mut (*totals).retransmits, u64::from(retransmits));
            }
        }
    }
    if !totals::recorded() {
        return;
    }
    let Some(mut record) = FLOW_EVENTS.reserve::<FlowEvent>(0) else {
        count(Verdict::EventLost);
        return;
    };
    let event = record.as_mut_ptr();
    let srtt_us = field!(ops, srtt_us) >> 3;
    // SAFETY: room for one event in the ring, ours until it is submitted; every field is written.
    unsafe {
        copy_words(&raw mut (*event).flow, flow);
        (*event).end_ns = bpf_ktime_get_ns();
        (*event).sent = sent;
        (*event).received = received;
        (*event).srtt_us = srtt_us;
        (*event).retransmits = retransmits;
    }
    // Waking the agent for each record would cost more than the record: it comes by itself every while.
    let filled = FLOW_EVENTS.query(AVAIL_DATA);
    record.submit(if filled >= WAKE_BYTES { FORCE_WAKEUP } else { NO_WAKEUP });
}

/// The two ends, from the one that opened the connection; `passive`: this is the other one.
#[inline(always)]
fn ends(ops: *mut bpf_sock_ops, passive: bool) -> FlowKey {
    // All of both forms, before any branch: loads behind one are merged into one load at a computed offset,
    // which the verifier refuses for a context.
    let v4 = [field!(ops, local_ip4), field!(ops, remote_ip4)];
    let local6: Addr = [
        field!(ops, local_ip6[0]),
        field!(ops, local_ip6[1]),
        field!(ops, local_ip6[2]),
        field!(ops, local_ip6[3]),
    ];
    let remote6: Addr = [
        field!(ops, remote_ip6[0]),
        field!(ops, remote_ip6[1]),
        field!(ops, remote_ip6[2]),
        field!(ops, remote_ip6[3]),
    ];
    let (local, remote) = if field!(ops, family) == AF_INET {
        (addr::from_v4_be(v4[0]), addr::from_v4_be(v4[1]))
    } else {
        (local6, remote6)
    };
    let local_port = (field!(ops, local_port) as u16).to_be();
    // The kernel shows it in network order in the upper half.
    let remote_port = (field!(ops, remote_port) >> 16) as u16;
    if passive {
        FlowKey { src: remote, dst: local, src_port_be: remote_port, dst_port_be: local_port }
    } else {
        FlowKey { src: local, dst: remote, src_port_be: local_port, dst_port_be: remote_port }
    }
}

/// A connection inside one namespace, from the end that opened it; `passive`: this is the other one.
#[inline(always)]
pub fn syn_key(ops: *mut bpf_sock_ops, passive: bool) -> SynKey {
    // SAFETY: a valid context.
    SynKey { netns: unsafe { bpf_get_netns_cookie(ops.cast()) }, flow: ends(ops, passive), pad: 0 }
}
