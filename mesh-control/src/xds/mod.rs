//! Configuration to agents: incremental xDS over one stream a node.
//!
//! registry ──changes──▶ [`hub`] ──dirty names──▶ [`stream`] ──[`subscription`]──▶ agent, ACK / NACK back
//!
//! Invariants: what waits for a slow agent are names, never contents; the first response of a subscribed
//! type is sent even when it is empty (agents wait for all types before they let anything shrink); a
//! response is built under one lock, so that its revision is true of everything in it.
//!
//! Not here: what the resources say (mesh-registry), who may connect (`agents`).

pub mod hub;
pub mod stream;
pub mod subscription;

use mesh_api::resource::Kind;

/// How many types there are; arrays by type are indexed with `kind as usize`.
pub const KINDS: usize = Kind::ALL.len();
