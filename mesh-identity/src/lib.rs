//! Who is who on the wire: certificates that carry a SPIFFE identity, and what a peer's certificate must be.
//!
//! mesh-control issues ([`Svid`]s, [`Bundle`]s), mesh-agent holds and shows them; both judge a peer by the same
//! functions, so that what one side issues the other side takes.
//!
//! Invariants: no clock is read and nothing is sent or stored here; a private key can't be read back out of an
//! [`Svid`]. Not here: issuing (mesh-control), renewal and tunnels (mesh-agent).

#![forbid(unsafe_code)]

mod bundle;
mod keys;
#[cfg(any(test, feature = "maker"))]
pub mod maker;
pub mod outside;
mod refused;
mod svid;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod verify;

pub use bundle::Bundle;
pub use keys::Keys;
pub use refused::{Fault, Refused};
pub use svid::Svid;
