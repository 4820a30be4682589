//! Pure traffic logic: no I/O, no clock, no runtime; `now` and randomness are arguments.
//!
//! Configuration: xDS resources → [`model`] → [`compile`] → [`snapshot`] → [`plan`] → BPF maps.

#![forbid(unsafe_code)]

pub mod alias;
pub mod authorise;
pub mod balance;
pub mod by_id;
pub mod check;
pub mod compile;
pub mod detect;
pub mod error;
pub mod explain;
pub mod ext_authz;
pub mod hbone;
pub mod head;
pub mod health;
pub mod hello;
pub mod http1;
pub mod ids;
pub mod jwt;
pub mod locality;
pub mod maglev;
pub mod model;
pub mod mtls;
pub mod outcome;
pub mod outside;
pub mod plan;
pub mod resilience;
pub mod retry;
pub mod route;
pub mod snapshot;
