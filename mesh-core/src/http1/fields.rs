//! A head's header fields as offsets, each classified once.
//!
//! No obs-fold is accepted, so a field's line runs from its name to the next field's name: that is what lets
//! the writer copy runs of lines and skip single ones.

use super::{Limits, MAX_HEAD_BYTES, MAX_HEADERS, Malformed};

/// What a field is to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Forwarded as it is.
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Te,
    Upgrade,
    Expect,
    ForwardedFor,
    RequestId,
    /// For this connection only: never forwarded.
    Hop,
    /// Not for the endpoint, whatever it says: as if it had not been sent.
    Removed,
}

impl Kind {
    fn of(name: &str) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::Hop,
            12 if is("x-request-id") => Self::RequestId,
            12 if is("proxy-status") => Self::Other, // end to end (RFC 9209)
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::Hop,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            _ if name.len() > 6 && name.as_bytes()[..6].eq_ignore_ascii_case(b"proxy-") => Self::Hop,
            _ => Self::Other,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub kind: Kind,
    pub start: u16,
    name_len: u16,
    value: u16,
    value_len: u16,
}

impl Field {
    const EMPTY: Self = Self { kind: Kind::Other, start: 0, name_len: 0, value: 0, value_len: 0 };

    pub fn name<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        &buf[self.start as usize..][..self.name_len as usize]
    }

    pub fn value<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        &buf[self.value as usize..][..self.value_len as usize]
    }
}

/// All fields of one head, in order.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    count: usize,
    at: [Field; MAX_HEADERS],
}

impl Fields {
    /// None yet.
    pub const EMPTY: Self = Self { count: 0, at: [Field::EMPTY; MAX_HEADERS] };

    /// Takes over `parsed`, which are slices of `buf`. httparse also takes LF for a line's end: that is refused
    /// here. Filled in place, because a thousand bytes are not moved for nothing.
    pub fn fill(
        &mut self,
        buf: &[u8],
        parsed: &[httparse::Header<'_>],
        limits: &Limits,
    ) -> Result<(), Malformed> {
        if buf.len() > MAX_HEAD_BYTES {
            return Err(Malformed::HeadTooLarge);
        }
        if parsed.len() > limits.headers.min(MAX_HEADERS) {
            return Err(Malformed::TooManyHeaders);
        }
        let mut crlf = buf.ends_with(b"\r\n\r\n");
        // Offsets fit 16 bits because a head is at most MAX_HEAD_BYTES long.
        let offset = |part: *const u8| (part as usize - buf.as_ptr() as usize) as u16;
        for (field, header) in self.at.iter_mut().zip(parsed) {
            *field = Field {
                kind: Kind::of(header.name),
                start: offset(header.name.as_ptr()),
                name_len: header.name.len() as u16,
                value: offset(header.value.as_ptr()),
                value_len: header.value.len() as u16,
            };
            crlf &= buf[..field.start as usize].ends_with(b"\r\n");
        }
        self.count = parsed.len();
        if crlf { Ok(()) } else { Err(Malformed::BareLf) }
    }

    pub fn all(&self) -> &[Field] {
        &self.at[..self.count]
    }

    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Field> {
        self.all().iter().filter(move |f| f.kind == kind)
    }

    pub fn find<'b>(&self, buf: &'b [u8], name: &str) -> Option<&'b [u8]> {
        let field = self.all().iter().find(|f| f.name(buf).eq_ignore_ascii_case(name.as_bytes()))?;
        Some(field.value(buf))
    }

    /// Takes the fields of this name out, and those that a server may take for it (`X-A` and `X_A` are both `HTTP_X_A`
    /// to one that passes headers on as variables). Was there any?
    pub fn remove(&mut self, buf: &[u8], name: &str) -> bool {
        let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        let mut any = false;
        for field in &mut self.at[..self.count] {
            let own = field.name(buf);
            if own.len() == name.len() && own.iter().zip(name.as_bytes()).all(|(a, b)| plain(*a) == plain(*b))
            {
                field.kind = Kind::Removed;
                any = true;
            }
        }
        any
    }

    /// Makes the fields of this name hop-by-hop. Those that the mesh itself adds to stay: a client must not be
    /// able to take the trace of a request away from the next hop.
    pub fn drop_named(&mut self, buf: &[u8], name: &[u8]) {
        for field in &mut self.at[..self.count] {
            if matches!(field.kind, Kind::Other | Kind::Expect)
                && field.name(buf).eq_ignore_ascii_case(name)
                && !name.eq_ignore_ascii_case(b"traceparent")
                && !name.eq_ignore_ascii_case(b"tracestate")
            {
                field.kind = Kind::Hop;
            }
        }
    }
}

/// Elements of a comma-separated list, without white space and empty ones.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}
