//! What the mesh is: intent that people wrote and observed state that sources report, turned into the resources
//! that agents are sent. Pure: no clock, no threads, no I/O.
//!
//! ```text
//! REST ───▶ intent ─▶ store ─▶ feed ─▶ ┌──────────┐
//! agents ─▶ intent ─▶ store ─▶ feed ─▶ │ registry │ ─▶ wire resources (xDS)
//! other sources ─────────────────────▶ └──────────┘ ─▶ conditions
//! ```
//!
//! - [`store`]: what a store can do; [`conformance`]: what every backend must pass; [`memory`]: one for tests.
//! - [`intent`]: objects and registrations as keys of a store; [`record`]: as text; [`vip`]: virtual addresses;
//!   [`history`]: what was written.
//! - [`source`]: events; [`feed`]: a store as a source.
//! - [`registry`]: events to wire resources and conditions; [`lease`]: who is still there.
//!
//! Not here: servers, the redb backend (mesh-control).

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod feed;
pub mod history;
pub mod intent;
pub mod lease;
#[cfg(any(test, feature = "conformance"))]
pub mod memory;
pub mod record;
pub mod registry;
pub mod source;
pub mod store;
pub mod vip;
