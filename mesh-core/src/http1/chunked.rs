//! Follows the chunked coding (RFC 9112 section 7.1), strictly: the bytes go on as they are, so whatever the
//! next hop could read otherwise is refused. Chunk extensions are refused too: nothing sends them but attacks
//! on parsers that skip them differently, and passing bytes on leaves no way to strip them.

use super::scan::is_token;
use super::{Limits, MAX_LENGTH, Malformed};

/// Trailers that would change what the head said. The longest has 17 bytes.
const FORBIDDEN: [&[u8]; 8] = [
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"connection",
    b"upgrade",
    b"te",
    b"trailer",
    b"keep-alive",
];
const NAME_BYTES: usize = 18;

#[derive(Clone, Debug)]
pub(super) struct Chunked {
    at: At,
    /// Bytes of data left in the chunk; while its size is read, the size so far.
    size: u64,
    /// Bytes of the current size line.
    line: usize,
    line_max: usize,
    /// Bytes that the trailers may still have.
    trailers_left: usize,
    name: [u8; NAME_BYTES],
    name_len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// First byte of a trailer line, or of the line that ends them.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
}

impl Chunked {
    pub fn new(limits: &Limits) -> Self {
        Self {
            at: At::Size,
            size: 0,
            line: 0,
            line_max: limits.chunk_line_bytes,
            trailers_left: limits.trailer_bytes,
            name: [0; NAME_BYTES],
            name_len: 0,
        }
    }

    /// How many bytes of `input` belong to the body, and whether it ends there.
    pub fn advance(&mut self, input: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut at = 0;
        while at < input.len() {
            if self.at == At::Data {
                let data = usize::try_from(self.size).unwrap_or(usize::MAX).min(input.len() - at);
                at += data;
                self.size -= data as u64;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            let done = self.byte(input[at])?;
            at += 1;
            if done {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// One byte outside of data; true: it was the last of the body.
    fn byte(&mut self, b: u8) -> Result<bool, Malformed> {
        self.at = match self.at {
            At::Size => self.size_byte(b)?,
            At::SizeLf if b != b'\n' => return Err(Malformed::BareCr),
            At::SizeLf => {
                self.line = 0;
                if self.size == 0 { At::TrailerStart } else { At::Data }
            }
            At::DataCr if b == b'\r' => At::DataLf,
            At::DataLf if b == b'\n' => At::Size,
            At::DataCr | At::DataLf | At::Data => return Err(Malformed::ChunkEnd),
            At::LastLf if b == b'\n' => return Ok(true),
            At::LastLf => return Err(Malformed::BareCr),
            At::TrailerStart if b == b'\r' => At::LastLf,
            _ => self.trailer_byte(b)?,
        };
        Ok(false)
    }

    fn size_byte(&mut self, b: u8) -> Result<At, Malformed> {
        if b == b'\r' && self.line > 0 {
            return Ok(At::SizeLf);
        }
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            b'A'..=b'F' => b - b'A' + 10,
            b'\n' => return Err(Malformed::BareLf),
            b';' | b' ' | b'\t' if self.line > 0 => return Err(Malformed::ChunkExtension),
            _ => return Err(Malformed::ChunkSize),
        };
        self.line += 1;
        if self.line > self.line_max {
            return Err(Malformed::ChunkLine);
        }
        if self.size > MAX_LENGTH >> 4 {
            return Err(Malformed::ChunkSize);
        }
        self.size = self.size << 4 | u64::from(digit);
        Ok(At::Size)
    }

    fn trailer_byte(&mut self, b: u8) -> Result<At, Malformed> {
        self.trailers_left = self.trailers_left.checked_sub(1).ok_or(Malformed::TrailersTooLarge)?;
        match (self.at, b) {
            (At::TrailerLf, b'\n') => {
                self.name_len = 0;
                Ok(At::TrailerStart)
            }
            (At::TrailerLf, _) => Err(Malformed::BareCr),
            (_, b'\n') => Err(Malformed::BareLf),
            (At::TrailerStart, b' ' | b'\t') => Err(Malformed::ObsFold),
            (At::TrailerStart | At::TrailerName, _) if is_token(b) => {
                if self.name_len < NAME_BYTES {
                    self.name[self.name_len] = b;
                }
                self.name_len += 1;
                Ok(At::TrailerName)
            }
            (At::TrailerName, b':') => {
                let name = self.name.get(..self.name_len).unwrap_or_default();
                if FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden)) {
                    return Err(Malformed::TrailerForbidden);
                }
                Ok(At::TrailerValue)
            }
            (At::TrailerName, b' ' | b'\t') => Err(Malformed::SpaceBeforeColon),
            (At::TrailerStart | At::TrailerName, _) => Err(Malformed::HeaderName),
            (_, b'\r') => Ok(At::TrailerLf),
            (_, b'\t' | b' '..=b'~' | 0x80..=0xff) => Ok(At::TrailerValue),
            _ => Err(Malformed::HeaderValue),
        }
    }
}
