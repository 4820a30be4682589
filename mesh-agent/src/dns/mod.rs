//! Answers what workloads ask resolvers about names of the mesh, and passes on everything else.
//!
//! ```text
//! workload ─▶ kernel: port 53 leads to loopback ─▶ udp, tcp ─▶ wire: is it the mesh's?
//!                                                    yes ─▶ zone: snapshot ─▶ answer
//!                                                    no  ─▶ the resolver that was asked, from the workload's namespace
//! ```
//! - [`open`]: the sockets in a workload's namespace. [`clients`]: which socket a datagram came from.
//! - [`udp`], [`tcp`]: hearing, answering, passing on. [`wire`]: bytes. [`zone`]: names.
//!
//! Invariants: bytes that are passed on are those that came, both ways; a workload has at most
//! [`udp::IN_FLIGHT`] questions at its resolvers, and what is more is refused at once. Runs on the workload's home
//! worker, whose heartbeat tells the kernel whether anybody hears. Not here: what is taken from where
//! (`mesh-ebpf/src/questions.rs`).

pub mod clients;
pub mod open;
pub mod tcp;
pub mod udp;
mod wire;
pub mod zone;

use std::net::SocketAddr;

use mesh_common::addr;
use mesh_common::dns::PORT_BE;
use mesh_common::record::Capture;
use mesh_core::snapshot::Snapshot;

/// The resolver that a captured TCP connection was to; `None`: it was to something else.
pub fn resolver(record: &Capture) -> Option<SocketAddr> {
    let asks = record.service == 0 && record.endpoint == 0 && record.port_be == PORT_BE;
    asks.then(|| SocketAddr::new(addr::to_ip(&record.addr), u16::from_be(record.port_be)))
}

/// What the mesh says to a question, if it is about a name of the mesh.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// An answer.
    Answer(Vec<u8>),
    /// A failure.
    Failure(Vec<u8>),
    /// Nothing: others know.
    Nothing,
}

/// The mesh's own answer. `udp`: it must be small.
pub fn say(snapshot: &Snapshot, bytes: &[u8], udp: bool) -> Said {
    let question = wire::Question::read(bytes);
    match question.and_then(|question| question.answer(snapshot, udp)) {
        Some((answer, true)) => Said::Answer(answer),
        Some((failure, false)) => Said::Failure(failure),
        None => Said::Nothing,
    }
}
