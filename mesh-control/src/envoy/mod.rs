//! Discovery for Envoys and clients of gRPC, :15010: Envoy's xDS v3, both variants, one stream for all types (ADS) or a
//! stream a type.
//!
//! ```text
//! registry ─delta─▶ [`hub`] ─dirty names─▶ [`stream`] ─mesh-envoy's Session─▶ Envoy, gRPC; ACK / NACK ─▶ [`proxies`]
//!                                            ▲ [`port`]: TLS, paths; [`guest`]: who may, as which node type
//! ```
//!
//! Invariants: whoever asks is of the node type that its token or certificate is bound to, whatever its id says; what
//! waits for a slow client are names, never contents; one look at the registry gives a stream all types of one moment.
//!
//! Not here: what is told and in which order (mesh-envoy), REST (`rest::envoy`).

pub mod certificate;
pub mod guest;
pub mod hub;
pub mod port;
pub mod proxies;
pub mod stream;
