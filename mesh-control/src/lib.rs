//! The control plane: registry, configuration and API of a mesh.
//!
//! Reading path: [`server`] (what is put together) → [`engine`] (where state changes) → [`store`] (what is
//! durable) → [`rest`] (people) → [`agents`] and [`xds`] (nodes), [`envoy`] → [`auth`], [`ca`] and [`tls`] (who is who); [`jwks`]
//! (keys of those who issue tokens).
//! durable) → [`rest`] (people) → [`agents`] and [`xds`] (nodes) → [`auth`], [`ca`] and [`tls`] (who is who); [`jwks`]
//! (keys of those who issue tokens); [`files`] (objects of a directory); [`audit`] (who did what).
//!
//! Invariant: traffic never waits for anything in here.

#![forbid(unsafe_code)]

pub mod agents;
pub mod audit;
pub mod auth;
pub mod ca;
pub mod clock;
pub mod config;
pub mod engine;
pub mod envoy;
pub mod files;
pub mod hooks;
pub mod jwks;
pub mod metrics;
pub mod nodes;
pub mod replicas;
pub mod rest;
pub mod server;
pub mod stop;
pub mod store;
pub mod tls;
pub mod xds;
