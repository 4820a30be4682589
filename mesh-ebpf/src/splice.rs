//! Both ends of a captured connection of a workload that asked for it go into `SPLICE`, each when it is
//! established: from then on its `send()` runs `bin/splice.rs`.
//!
//! The client's end comes first; the agent's end finds it by its key and tells it that it is there. What fails
//! here leaves the connection on TCP. Nothing is taken out of `SPLICE`: the kernel does that when a socket ends,
//! and taking out a live one hangs it.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_sock_hash_update;
use mesh_common::record::SynKey;
use mesh_common::splice::{End, other};
use mesh_common::verdict::Verdict;

use crate::maps::{SPLICE, SPLICE_ENDS};
use crate::sock_ops::syn_key;
use crate::socket::count;

const ANY: u64 = 0;

/// Bytes that went past TCP: TCP's own counters don't know of them.
#[derive(Clone, Copy)]
pub struct Moved {
    /// By the client.
    pub sent: u64,
    /// To the client.
    pub received: u64,
}

/// The client's end is established.
#[inline(never)]
pub fn opened(ops: *mut bpf_sock_ops, sk: *mut c_void) {
    enter(ops, &mut syn_key(ops, false), sk, 0);
}

/// The agent's end is established.
#[inline(never)]
pub fn accepted(ops: *mut bpf_sock_ops, sk: *mut c_void) {
    let client = syn_key(ops, true);
    let Some(end) = SPLICE_ENDS.get_ptr_mut(&client) else {
        return;
    };
    // SAFETY: an aligned word of a live map value.
    let peer = unsafe { core::ptr::read_volatile(&raw const (*end).own) };
    if enter(ops, &mut other(&client), sk, peer) {
        // SAFETY: as above. Last: now the client's end has somewhere to send to.
        unsafe { core::ptr::write_volatile(&raw mut (*end).peer, sk as u64) };
    }
}

#[inline(always)]
fn enter(ops: *mut bpf_sock_ops, key: &mut SynKey, sk: *mut c_void, peer: u64) -> bool {
    let end = End { own: sk as u64, peer, moved: 0, times: 0 };
    if SPLICE_ENDS.insert(&*key, &end, ANY).is_err() {
        count(Verdict::SpliceFull);
        return false;
    }
    let map = core::ptr::from_ref(&SPLICE).cast_mut().cast();
    // SAFETY: a valid context, a map of sockets and a key of its size.
    if unsafe { bpf_sock_hash_update(ops, map, core::ptr::from_mut(key).cast(), ANY) } == 0 {
        return true;
    }
    let _ = SPLICE_ENDS.remove(&*key);
    count(Verdict::SpliceFull);
    false
}

/// The client's end is closed: how much went past TCP. What is known of both ends is forgotten.
#[inline(never)]
pub fn closed(ops: *mut bpf_sock_ops, moved: &mut Moved) {
    let client = syn_key(ops, false);
    moved.sent = forget(&client);
    moved.received = forget(&other(&client));
}

#[inline(always)]
fn forget(key: &SynKey) -> u64 {
    // SAFETY: an aligned word of a live map value.
    let moved = SPLICE_ENDS
        .get_ptr(key)
        .map_or(0, |end| unsafe { core::ptr::read_volatile(&raw const (*end).moved) });
    let _ = SPLICE_ENDS.remove(key);
    moved
}
