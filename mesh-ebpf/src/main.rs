//! The kernel half of the data plane: what happens inside `connect()`, at a handshake, at an accept and at
//! a close. One file a program; decisions are `mesh_common::decide`'s.
//!
//! - [`connect`]: an enrolled workload calls `connect()`: endpoint, capture or refusal.
//! - [`capture`]: how it comes to the agent.
//! - [`udp`]: the same for datagrams, and whom replies come from.
//! - [`who`]: which workload makes a call.
//! - [`questions`]: those to resolvers go to the agent.
//! - [`pick`]: the endpoint of a service that a connection gets.
//! - [`fare`]: how connections fared: endpoints that fail are left out.
//! - [`names`]: what `getpeername()` and `accept()` show.
//! - [`sock_ops`]: source proofs, hand-over of the capture record, counters.
//! - [`splice`]: both ends of a captured connection are put where `bin/splice.rs` finds them.
//! - [`release`]: a socket that never came to a handshake is let go.
//! - [`sk_lookup`]: an inbound connection of an enrolled namespace: pass, hand to the agent, drop.
//! - [`policy`]: may this caller connect? [`sender`]: who sends a datagram, and may it?
//! - [`exclude`]: what is left alone, and which datagrams are answers.
//! - [`flows`]: what is known of a connection while it lives.
//! - [`going`]: a signal or an exit ends the agent.
//! - [`maps`], [`socket`], [`totals`]: what they share.
//!
//! Invariants: no L7, no policy language, no loop without a constant bound; every refusal has an errno and
//! a counted verdict; a socket that belongs to no enrolled workload costs one look-up.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod capture;
mod connect;
mod egress;
mod exclude;
mod fare;
mod flows;
mod going;
mod homes;
mod maps;
mod names;
mod pick;
mod policy;
mod questions;
mod release;
mod sender;
mod sk_lookup;
mod sock_ops;
mod socket;
mod splice;
mod steady;
mod totals;
mod udp;
mod who;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// Helpers that only GPL programs may call are used; the kernel reads this section.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
