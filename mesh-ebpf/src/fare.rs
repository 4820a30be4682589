//! How connections fared: an endpoint that does not answer several times in a row is left out for a while.
//!
//! A failure is a refused handshake or a SYN that had to be sent again, once a connection; an application
//! that gives up before either says nothing of the endpoint. A handshake that is done ends the row.
//!
//! And the time that a handshake may take, where the service asks for less than the kernel's own: a SYN is
//! sent again after 200 ms, and `TCP_USER_TIMEOUT` ends the wait. It is taken back once the handshake is done.
//!
//! Functions of their own, so that connections to services that ask for none of it pay for none of it.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::{bpf_getsockopt, bpf_ktime_get_ns, bpf_setsockopt};
use mesh_common::pick::ejection;
use mesh_common::record::{Flow, Load, flow};

use crate::maps::{LOAD, SERVICE_LOAD};
use crate::pick::rules_of;
use crate::socket::{add, exchange};

const SOL_TCP: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;

/// The connection has failed: counts towards the ejection of its endpoint.
#[inline(never)]
pub fn failed(flow: &mut Flow) {
    if flow.flags & (flow::WATCHED | flow::FAILED) != flow::WATCHED {
        return;
    }
    flow.flags |= flow::FAILED;
    let (Some(rules), Some(load), Some(total)) =
        (rules_of(flow.service), LOAD.get_ptr_mut(flow.endpoint), SERVICE_LOAD.get_ptr_mut(flow.service))
    else {
        return;
    };
    // SAFETY: words of live map values; the clock has no arguments.
    unsafe {
        add(&raw mut (*load).failed_in_a_row, 1);
        let in_a_row = core::ptr::read_volatile(&raw const (*load).failed_in_a_row);
        let before = core::ptr::read_volatile(&raw const (*load).ejections_in_a_row);
        let until = core::ptr::read_volatile(&raw const (*load).ejected_until);
        let ejected = core::ptr::read_volatile(&raw const (*total).ejected);
        let Some(new) = ejection(rules, in_a_row, before, until, ejected, bpf_ktime_get_ns()) else {
            return;
        };
        // Of several that fail at once, one ejects.
        if !exchange(&raw mut (*load).ejected_until, until, new) {
            return;
        }
        if until == 0 {
            add(&raw mut (*total).ejected, 1);
        }
        core::ptr::write_volatile(&raw mut (*load).failed_in_a_row, 0);
        add(&raw mut (*load).ejections_in_a_row, 1);
        add(&raw mut (*load).ejections, 1);
        add(&raw mut (*total).ejections, 1);
    }
}

/// The handshake is done: the endpoint answers.
#[inline(never)]
pub fn answered(ops: *mut bpf_sock_ops, flow: &Flow) {
    if flow.flags & flow::WATCHED != 0
        && let Some(load) = LOAD.get_ptr_mut(flow.endpoint)
    {
        heal(load);
    }
    if flow.flags & flow::HASTY != 0
        && let Some(rules) = rules_of(flow.service)
        && user_timeout(ops) == rules.connect_timeout_ms
    {
        set_user_timeout(ops, 0);
    }
}

#[inline(always)]
fn heal(load: *mut Load) {
    // SAFETY: as in `failed`.
    unsafe {
        if core::ptr::read_volatile(&raw const (*load).failed_in_a_row) != 0 {
            core::ptr::write_volatile(&raw mut (*load).failed_in_a_row, 0);
        }
        if core::ptr::read_volatile(&raw const (*load).ejections_in_a_row) != 0
            && core::ptr::read_volatile(&raw const (*load).ejected_until) <= bpf_ktime_get_ns()
        {
            core::ptr::write_volatile(&raw mut (*load).ejections_in_a_row, 0);
        }
    }
}

/// The SYN is about to leave: from now on the wait is bounded. An application that has set a bound of its own
/// keeps it.
#[inline(never)]
pub fn hurry(ops: *mut bpf_sock_ops, flow: &mut Flow) {
    if flow.flags & flow::HASTY == 0 {
        return;
    }
    match rules_of(flow.service) {
        Some(rules) if rules.connect_timeout_ms != 0 && user_timeout(ops) == 0 => {
            set_user_timeout(ops, rules.connect_timeout_ms);
        }
        _ => flow.flags &= !flow::HASTY,
    }
}

/// Ticks until the SYN is sent again; 0: as always.
#[inline(always)]
pub fn first_timeout(flow: &Flow) -> u32 {
    if flow.flags & flow::HASTY == 0 {
        return 0;
    }
    rules_of(flow.service).map_or(0, |rules| rules.first_timeout_ticks)
}

/// Milliseconds; 0: none, or a kernel that does not tell.
#[inline(always)]
fn user_timeout(ops: *mut bpf_sock_ops) -> u32 {
    let mut value = 0u32;
    // SAFETY: a valid context, and room for the four bytes that are asked for.
    unsafe { bpf_getsockopt(ops.cast(), SOL_TCP, TCP_USER_TIMEOUT, (&raw mut value).cast(), 4) };
    value
}

#[inline(always)]
fn set_user_timeout(ops: *mut bpf_sock_ops, mut millis: u32) {
    // SAFETY: a valid context and four bytes.
    unsafe { bpf_setsockopt(ops.cast(), SOL_TCP, TCP_USER_TIMEOUT, (&raw mut millis).cast(), 4) };
}
