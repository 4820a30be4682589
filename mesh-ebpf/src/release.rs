//! A socket is let go by its last holder: a flow that was noted in `connect()` and never begun is forgotten.
//!
//! What has begun is forgotten at its end (`sock_ops`), which may be long after this. Without this hook each
//! `connect()` that fails between our program and the SYN (no route, no free port) would leave an entry.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use mesh_common::record::flow;

use crate::flows;

const ALLOW: i32 = 1;

#[cgroup_sock(sock_release)]
pub fn mesh_release(ctx: SockContext) -> i32 {
    let cookie = flows::cookie(ctx.as_ptr());
    if flows::find(cookie).is_some_and(|flow| flow.flags & flow::BEGUN == 0) {
        flows::forget(cookie);
    }
    ALLOW
}
