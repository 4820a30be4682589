//! What control plane, agents and CLI say to each other.
//!
//! - [`proto`]: the wire between control plane and agents (delta xDS resources, `Node.Session`).
//!
//! Not here: I/O of any kind.

#![forbid(unsafe_code)]

/// Generated from `proto/`: `nodemesh.v1`, and the part of Envoy's delta xDS that carries it.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    /// Resources and `Node.Session`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/nodemesh.v1.rs"));
    }
    /// Delta discovery, wire-compatible with Envoy's.
    pub mod discovery {
        include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
    }
}
