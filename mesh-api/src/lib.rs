//! What control plane, agents and CLI say to each other.
//!
//! - [`local`]: what an agent's own Unix socket carries.
//! - [`resource`]: what people write (YAML, JSON) and what is stored; [`error::ApiError`] is what they get back.
//! - [`proto`]: the wire between control plane and agents (delta xDS resources, `Node.Session`); [`wire`]: from
//!   one to the other.
//! - [`spiffe`], [`token`], [`duration`], [`name`], [`http_path`]: text forms that both sides read and write.
//! - [`diff`]: what differs between two objects; [`selector`]: labels that are asked for.
//! - `manifest`: texts of objects (feature `yaml`).
//! - [`jwks`]: sets of keys that tokens are checked with. [`schema`]: JSON schemas of the resources.
//!
//! Not here: I/O of any kind.

#![forbid(unsafe_code)]

pub mod diff;
pub mod duration;
pub mod error;
pub mod http_path;
pub mod jwks;
#[cfg(feature = "yaml")]
pub mod manifest;
pub mod name;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod spiffe;
pub mod token;
mod walk;
pub mod wire;

pub mod local;

/// Generated from `proto/`: `nodemesh.v1`, and the part of Envoy's delta xDS that carries it.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    /// Resources and `Node.Session`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/nodemesh.v1.rs"));
    }
    /// External authorisation, wire-compatible with Envoy's.
    pub mod ext_authz {
        include!(concat!(env!("OUT_DIR"), "/envoy.service.auth.v3.rs"));
    }
    /// Delta discovery, wire-compatible with Envoy's.
    pub mod discovery {
        include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
    }
}
