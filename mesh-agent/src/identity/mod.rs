//! The certificates of this node and of the workloads that it hosts: made, kept and renewed here.
//!
//! ```text
//! enrol ──accounts──▶ [`renew`] ──keys, CSRs ([`make`])──▶ control plane (Identity.Sign)
//! config ──bundle──▶     │ decides by [`plan`]               │
//!                        ▼                                   │
//!                   [`held`] ◀──────certificates─────────────┤
//!                        └──▶ tunnels, as `mesh_identity::Keys`; admin, metrics
//!                                  [`keep`] ◀──▶ sealed ([`seal`]), for the agent that comes after this one
//! [`member`]: the node's own certificate, which opens every connection to the control plane
//! ```
//!
//! Invariants: a workload's private key is in memory alone, this process' and sealed the kernel's, and wiped when it is
//! dropped; a certificate is kept until a newer one is there, whatever fails; nothing is asked for that no workload of this node has.
//! Not here: what certificates are shown to and what peers must show (mesh-identity), who may have which
//! (mesh-control).

mod credentials;
pub mod held;
pub mod keep;
pub mod make;
pub mod member;
mod plan;
pub mod renew;
mod seal;
mod show;

use std::time::{SystemTime, UNIX_EPOCH};

pub use credentials::Credentials;
pub use held::Identities;

/// Unix seconds; 0 for a clock set before the epoch.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Inverse of [`hex`].
fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = text.as_bytes().chunks_exact(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
