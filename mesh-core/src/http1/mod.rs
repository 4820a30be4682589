//! HTTP/1.1 without I/O: bytes in, decisions out.
//!
//! ```text
//! buffer ─HeadScan─▶ where the head ends ─parse_request─▶ RequestHead ─write_request─▶ bytes for upstream
//!    └── the bytes after it ─BodyReader─▶ how many of them are this message's body (forwarded as they are)
//! ```
//!
//! A message is read in two steps, so that a slow sender costs no repeated parsing: [`HeadScan::end`] remembers
//! how far it has looked and says when the head is complete; [`parse_request`] / [`parse_response`] take exactly
//! that many bytes. The heads borrow from the buffer and hold offsets; there is no header map and no allocation.
//! [`write_request`] / [`write_response`] copy the head out of that buffer in runs, with edits between them.
//!
//! Invariants: whatever two HTTP implementations could read differently is refused ([`Malformed`]), never
//! repaired, so what is forwarded has one meaning. The result does not depend on how the input was split.
//! One call consumes one message: pipelined bytes stay with the caller.
//! Not here: timeouts, connections, buffers (the agent's path), HTTP/2.

mod body;
mod chunked;
mod fields;
mod framing;
mod malformed;
mod reply;
mod request;
mod response;
mod scan;
mod write;

#[cfg(test)]
mod tests;

pub use body::{Advance, BodyReader};
pub use malformed::Malformed;
pub use reply::{write_denial, write_direct, write_error, write_redirect};
pub use request::{MethodKind, RequestFacts, RequestHead, parse_request};
pub use response::{ResponseHead, parse_response};
pub use scan::HeadScan;
pub use write::{RequestEdits, ResponseEdits, write_request, write_response};

/// Most header fields that a head can have, whatever the limits say.
pub const MAX_HEADERS: usize = 128;
/// Most bytes that a head can have, whatever the limits say: offsets are 16 bits.
pub const MAX_HEAD_BYTES: usize = 65_536;
/// Largest Content-Length and chunk size: what a signed number holds.
pub const MAX_LENGTH: u64 = i64::MAX as u64;

/// How much of a message's structure is accepted. Bodies have no limit here: they are not buffered.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head, its empty line included; at most [`MAX_HEAD_BYTES`].
    pub head_bytes: usize,
    /// Header fields of a head; at most [`MAX_HEADERS`].
    pub headers: usize,
    /// Bytes of the line with a chunk's size, without its CRLF.
    pub chunk_line_bytes: usize,
    /// Bytes of all trailer fields of a message.
    pub trailer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: MAX_HEAD_BYTES,
            headers: MAX_HEADERS,
            chunk_line_bytes: 32,
            trailer_bytes: 8 * 1024,
        }
    }
}

/// Who sent the bytes, hence whom an error blames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client: requests.
    Client,
    /// The endpoint: responses.
    Upstream,
}

/// Version in a start line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// Where a message's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// After this many bytes (above 0).
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// Where the sender closes its side. Responses only.
    UntilClose,
    /// Not HTTP any more: both directions are copied until closed (101, 2xx to CONNECT). Responses only.
    Tunnel,
}

impl Framing {
    /// The message says itself where it ends, so that another can follow on the connection.
    pub const fn is_delimited(self) -> bool {
        matches!(self, Self::None | Self::Length(_) | Self::Chunked)
    }
}
