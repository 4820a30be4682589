//! The certificate authority: who gets which certificate, and whom everybody believes.
//!
//! ```text
//! agents ─Join, Sign─▶ [`office`] ──[`csr`]──▶ [`authority`] ──[`profile`]──▶ certificate
//!                        │  member? granted? hosted?        │ keys: [`files`]
//!                        ▼                                  ▼
//!                     [`issued`] (store)              [`rotation`] ─▶ bundle ─▶ xDS
//! ```
//!
//! Several replicas: one holds the root, each signs with an intermediate of its own: [`shared`].
//!
//! Invariants: a node gets a certificate for an identity only if it may host it and has a workload of it; nothing is
//! handed out that is not on the list of what was issued; no private key of a workload or node is ever seen here.
//! Not here: what agents do with certificates (mesh-agent), TLS between nodes (mesh-identity).

pub mod authority;
pub(crate) mod csr;
mod files;
pub mod issued;
pub mod names;
pub mod office;
pub mod peer;
mod profile;
mod rotation;
mod secret;
pub mod shared;
pub mod verify;

pub use files::CaError;

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Inverse of [`hex`]; what is no hexadecimal is left out.
fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks_exact(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests;
