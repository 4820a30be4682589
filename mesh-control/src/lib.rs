//! The control plane: registry, configuration and API of a mesh.
#![forbid(unsafe_code)]
pub mod auth;
pub mod clock;
pub mod metrics;
pub mod nodes;
pub mod tls;
pub mod xds;
