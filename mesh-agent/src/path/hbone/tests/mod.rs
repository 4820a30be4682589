//! Tunnels over loopback, with certificates made for the occasion.

mod bytes;
mod foreign;
mod refusals;
pub mod rig;
mod tunnels;
