//! The node daemon: loads the BPF programs, keeps their maps in step with the control plane, carries the
//! connections that need a proxy.
//!
//! - [`agent`]: start and end. [`args`]: the command line.
//! - [`kernel`]: programs and maps. [`sys`]: raw calls.
//! - [`config`]: control plane → snapshot → maps. [`session`]: this node's workloads → control plane.
//! - [`handover`]: one agent takes over from another.
//! - [`enrol`]: who is part of the mesh. [`admin`]: `agent.sock`.
//! - [`identity`]: certificates of this node and its workloads.
//! - [`jwt`]: tokens that requests carry.
//! - [`path`]: a proxied connection, from accept to close.
//! - [`dns`]: names of the mesh, for workloads that ask their resolvers.
//! - [`authorise`]: refusals by policy are said, connections that a change no longer allows are ended.
//! - [`health`]: asks workloads whether they are well.
//! - [`external`]: host names of external services are resolved.
//! - `carriage`: how transport policies want connections carried.
//! - [`telemetry`]: what Prometheus sees.

#![deny(unsafe_code)]

pub mod admin;
pub mod agent;
pub mod args;
pub mod authorise;
mod carriage;
mod cgroups;
pub mod config;
pub mod dns;
pub mod enrol;
pub mod external;
pub mod handover;
pub mod health;
pub mod identity;
pub mod jwt;
pub mod kernel;
pub mod path;
pub mod session;
pub mod sys;
pub mod telemetry;
