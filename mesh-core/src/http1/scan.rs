//! Finds the end of a head while it arrives.
//!
//! Reads each byte once, however the bytes are split: a sender of one byte at a time costs as much as one of a
//! whole head. Refuses at once what can never become a head: first bytes that are not HTTP, a bare LF, a
//! folded line, a size over the limits.
//! Not here: what the lines say (request, response).

use memchr::memchr;

use super::{Limits, MAX_HEAD_BYTES, MAX_HEADERS, Malformed, Side};
use crate::error::ProxyError;

/// Longest method that is taken for one. The longest registered has 16 letters.
const METHOD_BYTES: usize = 32;

/// Progress over a head that is still arriving. One a message: make a new one for the next.
#[derive(Clone, Debug)]
pub struct HeadScan {
    side: Side,
    /// All bytes before this one have been looked at.
    scanned: usize,
    /// Where the current line began.
    line: usize,
    /// Lines completed, without the empty one before the start line.
    lines: usize,
}

impl HeadScan {
    /// At the beginning of a message.
    pub const fn new(side: Side) -> Self {
        Self { side, scanned: 0, line: 0, lines: 0 }
    }

    /// Length of the head that `buf` begins with, its empty line included; `None`: more bytes are needed.
    /// `buf` begins where it began on the last call, and has grown.
    pub fn end(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, ProxyError> {
        self.advance(buf, limits).map_err(|cause| ProxyError::malformed(self.side, cause))
    }

    /// Bytes of a message have arrived (an empty line is none yet).
    pub fn started(&self, buf: &[u8]) -> bool {
        self.lines > 0 || buf.len() > self.line
    }

    #[cfg(test)]
    pub(super) fn scanned_bytes(&self) -> usize {
        self.scanned
    }

    fn advance(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Malformed> {
        let limit = limits.head_bytes.min(MAX_HEAD_BYTES);
        let seen = &buf[..buf.len().min(limit)];
        loop {
            if self.lines == 0 {
                check_start(self.side, &seen[self.line..])?;
            }
            let Some(at) = seen.get(self.scanned..).and_then(|rest| memchr(b'\n', rest)) else {
                self.scanned = seen.len();
                return if buf.len() >= limit { Err(Malformed::HeadTooLarge) } else { Ok(None) };
            };
            let lf = self.scanned + at;
            if self.line_end(&seen[self.line..lf], limits)? {
                return Ok(Some(lf + 1));
            }
            self.scanned = lf + 1;
            self.line = lf + 1;
        }
    }

    /// `line` is complete, without its LF; true: the head is.
    fn line_end(&mut self, line: &[u8], limits: &Limits) -> Result<bool, Malformed> {
        let Some((b'\r', line)) = line.split_last() else { return Err(Malformed::BareLf) };
        if line.is_empty() {
            // One empty line before a request is tolerated (RFC 9112 section 2.2), and only one.
            return if self.lines > 0 {
                Ok(true)
            } else if self.line == 0 && self.side == Side::Client {
                Ok(false)
            } else {
                Err(Malformed::NotHttp)
            };
        }
        if self.lines > 0 && matches!(line[0], b' ' | b'\t') {
            return Err(Malformed::ObsFold);
        }
        self.lines += 1;
        if self.lines > limits.headers.min(MAX_HEADERS) + 1 {
            Err(Malformed::TooManyHeaders)
        } else {
            Ok(false)
        }
    }
}

/// Whether `line`, as far as it is there, can begin a message.
fn check_start(side: Side, line: &[u8]) -> Result<(), Malformed> {
    let possible = match (side, line) {
        (_, []) | (Side::Client, [b'\r'] | [b'\r', b'\n', ..]) => true,
        (Side::Client, _) => {
            let method = &line[..line.len().min(METHOD_BYTES + 1)];
            let length = method.iter().position(|&b| b == b' ');
            length.unwrap_or(method.len()) <= METHOD_BYTES
                && length != Some(0)
                && method[..length.unwrap_or(method.len())].iter().all(|&b| is_token(b))
        }
        (Side::Upstream, _) => {
            let length = line.len().min(b"HTTP/".len());
            line[..length] == b"HTTP/"[..length]
        }
    };
    if possible { Ok(()) } else { Err(Malformed::NotHttp) }
}

/// `tchar` of RFC 9110.
pub(super) const fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}
