//! What Envoys and gRPC clients are told, and when: resources of Envoy's API (v3) made from the registry, and the
//! protocol by which they are handed over, as state. Pure: no clock, no threads, no I/O.
//!
//! ```text
//!             ┌ [`cluster`] [`endpoints`] [`routes`] ─┐
//! registry ──▶│ [`gateway`], [`grpc`]                 ├─JSON─▶ [`codec`] ─▶ [`catalog`] ─▶ [`session`] ─▶ streams
//!             └ raw resources ─▶ [`template`] ────────┘
//! ```
//!
//! - [`codec`]: Envoy's API in JSON to messages, by descriptors that the crate brings along.
//! - [`catalog`]: what each node type and each name has now, made when it is asked for, kept until it may be another.
//! - [`session`]: one stream: what was asked for, sent and answered; what may go next.
//!
//! Not here: streams, tokens, REST (mesh-control's `envoy`).

#![forbid(unsafe_code)]

pub mod catalog;
pub mod check;
pub mod cluster;
pub mod codec;
pub mod endpoints;
pub mod gateway;
pub mod grpc;
pub mod look;
pub mod routes;
pub mod session;
pub mod template;

#[cfg(test)]
mod tests;
