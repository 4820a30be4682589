//! The agent's hold on the kernel: programs, maps, links. One handle, shared by everything; calls are
//! cheap, and those on the request path take no lock.
//!
//! - [`load`](mod@load): adopt what is pinned, load, attach, swap; `cleanup`.
//! - [`maps`]: typed access: executing a plan, enrolment, reading counters.
//! - [`homes`]: a hash and the array in front of it. [`typed`]: how maps are had.
//! - [`inbound`]: which program looks at what arrives. [`exclude`]: what is left alone.
//! - [`slots`]: tables, written under readers. [`rules`]: what policies say of services.
//! - [`sockets`]: records on the agent's own sockets. [`datagrams`]: what is noted of datagrams.
//! - [`events`]: ended flows, as they come.
//! - [`open`]: flows under way, and how they stand. [`diag`]: what their sockets show.
//! - [`going`]: the kernel learns of the agent's end.
//! - [`splice`]: can this kernel splice? Tried once somebody asks.
//! - [`view`]: what is attached, how full the maps are, what the programs cost.
//!
//! Invariant: dropping the handle detaches nothing that a connection meets; all of that is pinned.
//! Not here: what to write (mesh-core's plan), who is enrolled (`enrol`).

mod datagrams;
mod diag;
mod error;
mod events;
mod exclude;
mod going;
mod homes;
mod inbound;
mod load;
mod maps;
mod open;
mod rules;
mod slots;
mod sockets;
mod splice;
mod typed;
mod view;
mod workloads;

pub use diag::Standing;
pub use error::{ApplyError, KernelError, LoadError};
pub use events::Events;
pub use exclude::Prefix;
pub use homes::watch as watch_homes;
pub use load::{FlowTelemetry, LoadOptions, cleanup, pin_directory, verify};
pub use maps::{Denials, Kernel};
pub use open::OpenFlow;
pub use sockets::Leg;
pub use splice::{Splicing, Step};
pub use view::Fill;
