//! The node daemon: loads the BPF programs, keeps their maps in step with the control plane, carries the
//! connections that need a proxy.

#![deny(unsafe_code)]

pub mod admin;
pub mod config;
pub mod enrol;
pub mod kernel;
pub mod path;
pub mod session;
pub mod sys;
