//! Application protocols as small numbers, for labels.

/// Opaque.
pub const TCP: u32 = 0;
/// HTTP/1.1.
pub const HTTP: u32 = 1;
/// TLS of the application's own.
pub const TLS: u32 = 2;
/// Datagrams.
pub const UDP: u32 = 3;
