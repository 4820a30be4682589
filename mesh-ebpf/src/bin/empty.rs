//! Programs that do nothing, where ours are attached: what the bench calls the floor. No agent loads this.

#![no_std]
#![no_main]

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext};

const ALLOW: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn empty_connect4(_: SockAddrContext) -> i32 {
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn empty_peer4(_: SockAddrContext) -> i32 {
    ALLOW
}

#[cgroup_sock(sock_release)]
pub fn empty_release(_: SockContext) -> i32 {
    ALLOW
}

#[sock_ops]
pub fn empty_sock_ops(_: SockOpsContext) -> u32 {
    1
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
