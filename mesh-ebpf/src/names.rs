//! What an application is told of its peer: the address that it asked for, or the client that the agent
//! speaks for. `accept()` asks here as well.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::addr;
use mesh_common::record::{Flow, flow};

use crate::flows;

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn mesh_peer4(ctx: SockAddrContext) -> i32 {
    if let Some(flow) = shown(ctx.sock_addr) {
        let (ip, port) = (addr::to_v4_be(&flow.peer), u32::from(flow.peer_port_be));
        // SAFETY: the context is valid for the run; the hook may write address and port. Volatile: merged
        // stores to a context are refused by the verifier.
        unsafe {
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, ip);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, port);
        }
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn mesh_peer6(ctx: SockAddrContext) -> i32 {
    if let Some(flow) = shown(ctx.sock_addr) {
        crate::connect::set_v6(ctx.sock_addr, &flow.peer, u32::from(flow.peer_port_be));
    }
    ALLOW
}

#[inline(always)]
fn shown(ctx: *mut bpf_sock_addr) -> Option<&'static Flow> {
    let flow = flows::find(flows::cookie(ctx.cast()))?;
    (flow.flags & flow::SHOW_PEER != 0).then_some(flow)
}
