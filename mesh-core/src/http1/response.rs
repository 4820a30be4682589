//! Reads a response head.
//!
//! Needs the request's facts: a response to HEAD has no body, 2xx to CONNECT and 101 end HTTP on the
//! connection, HTTP/1.0 clients are not sent chunks.

use std::mem::MaybeUninit;

use super::fields::{Fields, Kind};
use super::framing::{connection, declared, diagnose};
use super::{Framing, Limits, MAX_HEADERS, Malformed, MethodKind, RequestFacts, Side, Version};
use crate::error::ProxyError;

/// A parsed response head. Borrows the buffer it was read into.
#[derive(Clone, Debug)]
pub struct ResponseHead<'b> {
    /// Status, 100..=599.
    pub status: u16,
    /// Version that the endpoint speaks.
    pub version: Version,
    /// Where the body ends.
    pub framing: Framing,
    /// The endpoint's connection can be used again after this response.
    pub keep_alive: bool,
    /// The client's connection can be used again after this response, as far as both heads go: a response
    /// that ends with its connection ends the client's too.
    pub client_keep_alive: bool,
    pub(super) buf: &'b [u8],
    pub(super) fields: Fields,
}

impl ResponseHead<'_> {
    /// Another head follows for the same request (1xx but 101). Not for HTTP/1.0 clients: drop it there.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Value of the first header of this name (any case).
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.fields.find(self.buf, name)
    }
}

/// Parses a complete response head: `buf` is exactly what [`HeadScan::end`](super::HeadScan::end) measured.
pub fn parse_response<'b>(
    buf: &'b [u8],
    request: RequestFacts,
    limits: &Limits,
) -> Result<ResponseHead<'b>, ProxyError> {
    let mut head = ResponseHead {
        status: 0,
        version: Version::Http11,
        framing: Framing::None,
        keep_alive: false,
        client_keep_alive: false,
        buf,
        fields: Fields::EMPTY,
    };
    match head.parse(request, limits) {
        Ok(()) => Ok(head),
        Err(cause) => Err(ProxyError::malformed(Side::Upstream, cause)),
    }
}

impl ResponseHead<'_> {
    fn parse(&mut self, request: RequestFacts, limits: &Limits) -> Result<(), Malformed> {
        let buf = self.buf;
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let complete = config
            .parse_response_with_uninit_headers(&mut parsed, buf, &mut headers)
            .map_err(|e| diagnose(buf, e))?;
        let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
            return Err(Malformed::StartLine);
        };
        if complete != httparse::Status::Complete(buf.len()) || !buf.starts_with(b"HTTP/1.") {
            return Err(Malformed::StartLine);
        }
        if !(100..=599).contains(&status) {
            return Err(Malformed::Status);
        }
        self.status = status;
        self.version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        self.fields.fill(buf, parsed.headers, limits)?;
        let options = connection(&mut self.fields, buf)?;
        let declared = declared(&self.fields, buf, self.version)?;
        let (framing, clean) = framing(status, request, declared)?;
        self.framing = framing;
        self.keep_alive = options.keep_alive(self.version) && framing.is_delimited() && clean;
        self.client_keep_alive = request.keep_alive && framing.is_delimited();
        Ok(())
    }
}

/// RFC 9112 section 6.3; and whether the endpoint kept to it, so that its connection can be trusted further.
fn framing(
    status: u16,
    request: RequestFacts,
    declared: Option<Framing>,
) -> Result<(Framing, bool), Malformed> {
    let bodiless = matches!(declared, None | Some(Framing::None));
    match status {
        101 if request.upgrade => Ok((Framing::Tunnel, true)),
        101 => Err(Malformed::UpgradeUnasked),
        200..=299 if request.method == MethodKind::Connect => Ok((Framing::Tunnel, true)),
        // These have no body. One that is announced may follow all the same, and be read as the next head.
        100..=199 if !bodiless => Err(Malformed::InterimBody),
        100..=199 | 204 => Ok((Framing::None, bodiless)),
        304 => Ok((Framing::None, true)),
        _ if request.method == MethodKind::Head => Ok((Framing::None, true)),
        // The request went on as HTTP/1.0: its client cannot read chunks.
        _ if declared == Some(Framing::Chunked) && request.version == Version::Http10 => {
            Err(Malformed::EncodingInHttp10)
        }
        _ => Ok((declared.unwrap_or(Framing::UntilClose), true)),
    }
}

/// Fields that say where a body ends make no sense on these (RFC 9110 sections 8.6 and 9.3.6).
pub(super) fn drops_length(head: &ResponseHead<'_>) -> bool {
    head.framing == Framing::Tunnel || head.status < 200 || head.status == 204
}

/// Whether a field of this kind goes on to the client.
pub(super) fn forwards(head: &ResponseHead<'_>, kind: Kind) -> bool {
    match kind {
        Kind::Hop | Kind::Connection | Kind::Te => false,
        Kind::Upgrade => head.status == 101,
        Kind::ContentLength | Kind::TransferEncoding => !drops_length(head),
        _ => true,
    }
}
