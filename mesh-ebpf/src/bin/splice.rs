//! Runs at each `send()` of a spliced socket: do its bytes go straight into the other end's queue?
//!
//! An object of its own, which the agent loads when somebody asks for splicing: a kernel that has no such
//! programs, or whose structures are not as they are thought to be, goes without. Whatever is not certain goes
//! through TCP: `mesh_common::splice::may_move`.
//!
//! Sockets are looked at by address. That of the other end may be stale: then it has left `SPLICE` as well, and
//! the redirection finds nobody.

#![no_std]
#![no_main]

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::sk_msg_md;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_msg_redirect_hash, bpf_probe_read_kernel};
use aya_ebpf::macros::{map, sk_msg};
use aya_ebpf::maps::{HashMap, SockHash};
use aya_ebpf::programs::SkMsgContext;
use aya_ebpf::{EbpfContext as _, Global};
use mesh_common::addr::{self, Addr};
use mesh_common::maps as m;
use mesh_common::record::{FlowKey, SynKey};
use mesh_common::splice::{End, may_move, other};

const AF_INET: u32 = 2;
/// `BPF_F_INGRESS`: into the queue of what the socket reads.
const INGRESS: u64 = 1;

#[map]
static SPLICE: SockHash<SynKey> = SockHash::with_max_entries(m::SPLICE.capacity, 0);
#[map]
static SPLICE_ENDS: HashMap<SynKey, End> =
    HashMap::with_max_entries(m::SPLICE_ENDS.capacity, BPF_F_NO_PREALLOC);

// Named in `mesh_common::splice::offset`; the agent fills them in from what the kernel says of its structures.
#[unsafe(no_mangle)]
static SPLICE_WRITE_SEQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SPLICE_COPIED_SEQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SPLICE_RMEM_ALLOC: Global<u32> = Global::new(0);

macro_rules! field {
    ($msg:expr, $($f:tt)+) => {
        // SAFETY: the context is valid for the run; volatile, because merged context loads are refused.
        unsafe { core::ptr::read_volatile(&raw const (*$msg).$($f)+) }
    };
}

#[sk_msg]
pub fn mesh_splice(ctx: SkMsgContext) -> u32 {
    let own = own_key(&ctx);
    let Some(end) = SPLICE_ENDS.get_ptr_mut(&own) else {
        return SK_PASS;
    };
    // SAFETY: aligned words of a live map value.
    let (this, peer) = unsafe {
        (core::ptr::read_volatile(&raw const (*end).own), core::ptr::read_volatile(&raw const (*end).peer))
    };
    if peer == 0 || !moves(this, peer) {
        return SK_PASS;
    }
    let size = field!(ctx.msg, size);
    let mut to = other(&own);
    let map = core::ptr::from_ref(&SPLICE).cast_mut().cast();
    // SAFETY: a valid context, a map of sockets and a key of its size.
    let redirected = unsafe { bpf_msg_redirect_hash(ctx.msg, map, (&raw mut to).cast(), INGRESS) };
    if redirected as u32 == SK_PASS {
        // SAFETY: as above; only this socket, which is locked, counts here.
        unsafe {
            core::ptr::write_volatile(&raw mut (*end).moved, (*end).moved + u64::from(size));
            core::ptr::write_volatile(&raw mut (*end).times, (*end).times + 1);
        }
    }
    SK_PASS
}

/// What the two sockets say.
#[inline(always)]
fn moves(this: u64, peer: u64) -> bool {
    let (Some(written), Some(copied), Some(unread)) = (
        word(this, SPLICE_WRITE_SEQ.load()),
        word(peer, SPLICE_COPIED_SEQ.load()),
        word(peer, SPLICE_RMEM_ALLOC.load()),
    ) else {
        return false;
    };
    may_move(written, copied, unread)
}

/// A word of a socket; `None`: there is no such memory.
#[inline(always)]
fn word(socket: u64, offset: u32) -> Option<u32> {
    let mut word = 0u32;
    let from = (socket + u64::from(offset)) as *const core::ffi::c_void;
    // SAFETY: the kernel writes four bytes, or fails where the address is none.
    let read = unsafe { bpf_probe_read_kernel((&raw mut word).cast(), 4, from) };
    (read == 0).then_some(word)
}

/// This end's key: as `sock_ops` makes it.
#[inline(always)]
fn own_key(ctx: &SkMsgContext) -> SynKey {
    let msg: *mut sk_msg_md = ctx.msg;
    // All of both forms, before any branch: loads behind one are merged, which the verifier refuses.
    let v4 = [field!(msg, local_ip4), field!(msg, remote_ip4)];
    let local6: Addr = [
        field!(msg, local_ip6[0]),
        field!(msg, local_ip6[1]),
        field!(msg, local_ip6[2]),
        field!(msg, local_ip6[3]),
    ];
    let remote6: Addr = [
        field!(msg, remote_ip6[0]),
        field!(msg, remote_ip6[1]),
        field!(msg, remote_ip6[2]),
        field!(msg, remote_ip6[3]),
    ];
    let (src, dst) = if field!(msg, family) == AF_INET {
        (addr::from_v4_be(v4[0]), addr::from_v4_be(v4[1]))
    } else {
        (local6, remote6)
    };
    let flow = FlowKey {
        src,
        dst,
        src_port_be: (field!(msg, local_port) as u16).to_be(),
        // The kernel shows it in network order in the upper half.
        dst_port_be: (field!(msg, remote_port) >> 16) as u16,
    };
    // SAFETY: a valid context.
    SynKey { netns: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }, flow, pad: 0 }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// `bpf_probe_read_kernel` is for GPL programs alone; the kernel reads this section.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
