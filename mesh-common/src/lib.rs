//! What the kernel and user space share: the ABI of the maps, and the small pure functions that both run.
//!
//! - [`app`]: protocols, as labels tell them.
//! - [`addr`]: addresses as map keys (16 bytes, IPv4 v4-mapped).
//! - [`maps`]: the name, capacity and ABI hash of every map. A map's name stands there and nowhere else.
//! - [`record`]: keys and values, `repr(C)`, sizes asserted.
//! - [`verdict`]: why a connection went where it went: one [`verdict::Verdict`] a connection.
//! - [`decide`]: the decisions of the BPF programs, as functions of values: tested on the host.
//! - [`dns`]: questions to resolvers.
//! - [`policy`]: who may connect: classes of sources, and the look-up that decides.
//! - [`pick`]: which slot of a table a connection gets, and when an endpoint is ejected.
//! - [`transport`]: what is left alone, and which datagrams are answers. [`sender`]: who sends a datagram.
//! - [`going`]: the agent is ending: who it is, and what ends it.
//! - [`homes`]: arrays in front of hashes.
//! - [`spread`]: where captured connections go on loopback. [`splice`]: when their bytes may go past TCP.
//! - [`flows`], [`udp`]: where what is known of a socket lives, and for how long it holds.
//!
//! Invariants: `no_std`, no dependency (aya's `Pod` behind feature `pod`); no padding in a key; fields in
//! network byte order end in `_be`.

#![no_std]
// BPF has no call that a verifier likes better than none.
#![allow(clippy::inline_always)]

pub mod addr;
pub mod app;
pub mod decide;
pub mod dns;
pub mod flows;
pub mod going;
pub mod homes;
pub mod maps;
pub mod pick;
#[cfg(feature = "pod")]
mod pod;
pub mod policy;
pub mod record;
pub mod sender;
pub mod splice;
pub mod spread;
pub mod transport;
pub mod udp;
pub mod verdict;
