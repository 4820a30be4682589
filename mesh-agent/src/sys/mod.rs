//! Calls to the kernel that no library makes for us. `unsafe` of the agent lives here and nowhere else.

pub mod bpf;
mod confine;
pub mod inspect;
mod mapped;
mod memory;
pub mod netlink;
mod netns;
mod ready;
mod source;
mod trial;

pub use confine::confine;
pub use mapped::{Mapped, read_pod};
pub use memory::{limit_allocator, trim};
pub use netns::{in_netns, netns_cookie};
pub use ready::watch;
pub use source::{bind_loopback, bind_port};
pub use trial::{defer_accept, in_private_netns};

/// So many milliseconds in ticks of the kernel's clock, whose length the coarse clock's resolution is.
pub fn ticks(millis: u64) -> u32 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse).tv_nsec.max(1) as u64;
    u32::try_from(millis * 1_000_000 / tick).unwrap_or(u32::MAX).max(1)
}

/// `CLOCK_MONOTONIC` in nanoseconds: what `bpf_ktime_get_ns` reads.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
