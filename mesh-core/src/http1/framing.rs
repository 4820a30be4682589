//! Decides from a head's fields where its message ends and whether the connection stays (RFC 9112 sections 6
//! and 9.3). Here is what request smuggling plays with, so nothing is repaired: one meaning or an error.

use super::fields::{Field, Fields, Kind, list};
use super::scan::is_token;
use super::{Framing, MAX_LENGTH, Malformed, Version};

/// Most options in the Connection headers of a message: each is compared with every header.
const OPTIONS: usize = 16;

/// What the length fields say, before status and method have their say.
pub(super) fn declared(fields: &Fields, buf: &[u8], version: Version) -> Result<Option<Framing>, Malformed> {
    let mut lengths = fields.of(Kind::ContentLength);
    let mut encodings = fields.of(Kind::TransferEncoding);
    let (length, encoding) = (lengths.next(), encodings.next());
    match (length, encoding) {
        (Some(_), Some(_)) => Err(Malformed::LengthAndEncoding),
        (None, None) => Ok(None),
        (Some(_), None) if lengths.next().is_some() => Err(Malformed::LengthRepeated),
        (Some(field), None) => {
            let length = content_length(field.value(buf)).ok_or(Malformed::LengthInvalid)?;
            Ok(Some(if length == 0 { Framing::None } else { Framing::Length(length) }))
        }
        (None, Some(_)) if version == Version::Http10 => Err(Malformed::EncodingInHttp10),
        (None, Some(field)) => {
            let only = encodings.next().is_none();
            let chunked = field.value(buf).eq_ignore_ascii_case(b"chunked");
            if only && chunked { Ok(Some(Framing::Chunked)) } else { Err(Malformed::EncodingUnsupported) }
        }
    }
}

/// `1*DIGIT` and nothing else: no sign, no list, no white space; and no number that the next hop could take
/// for a negative one.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let length = value.iter().try_fold(0u64, |n, &b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })?;
    (length <= MAX_LENGTH).then_some(length)
}

/// What the Connection headers say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    close: bool,
    keep_alive: bool,
    pub upgrade: bool,
}

impl Options {
    /// Whether the sender leaves the connection open after this message.
    pub fn keep_alive(self, version: Version) -> bool {
        match version {
            Version::Http11 => !self.close,
            Version::Http10 => self.keep_alive && !self.close,
        }
    }
}

/// Reads the Connection headers, and marks the fields that they name as hop-by-hop.
pub(super) fn connection(fields: &mut Fields, buf: &[u8]) -> Result<Options, Malformed> {
    let mut options = Options::default();
    let mut count = 0;
    for index in 0..fields.all().len() {
        let field: Field = fields.all()[index];
        if field.kind != Kind::Connection {
            continue;
        }
        for option in list(field.value(buf)) {
            let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
            count += 1;
            let essential = is("host") || is("content-length") || is("transfer-encoding");
            if count > OPTIONS || essential || !option.iter().all(|&b| is_token(b)) {
                return Err(Malformed::Connection);
            }
            if is("close") {
                options.close = true;
            } else if is("keep-alive") {
                options.keep_alive = true;
            } else if is("upgrade") {
                options.upgrade = true;
            } else {
                fields.drop_named(buf, option);
            }
        }
    }
    Ok(options)
}

/// Whether the Upgrade fields ask for a protocol that can be passed on. `h2c` cannot: RFC 9113 dropped it, and
/// what follows it would pass unread.
pub(super) fn upgrade_offered(fields: &Fields, buf: &[u8]) -> bool {
    let mut offered = false;
    for field in fields.of(Kind::Upgrade) {
        for protocol in list(field.value(buf)) {
            if protocol.len() >= 3 && protocol[..3].eq_ignore_ascii_case(b"h2c") {
                return false;
            }
            offered = true;
        }
    }
    offered
}

/// Why httparse refused `head`. It names the token it was at; this names the shape.
pub(super) fn diagnose(head: &[u8], error: httparse::Error) -> Malformed {
    use httparse::Error;
    let bare_cr = head.windows(2).any(|pair| pair[0] == b'\r' && pair[1] != b'\n');
    match error {
        Error::TooManyHeaders => Malformed::TooManyHeaders,
        _ if bare_cr => Malformed::BareCr,
        Error::HeaderName if space_before_colon(head) => Malformed::SpaceBeforeColon,
        Error::HeaderName => Malformed::HeaderName,
        Error::HeaderValue => Malformed::HeaderValue,
        Error::Version => Malformed::Version,
        Error::Status => Malformed::Status,
        Error::NewLine | Error::Token => Malformed::StartLine,
    }
}

fn space_before_colon(head: &[u8]) -> bool {
    head.split(|&b| b == b'\n').skip(1).any(|line| {
        let token = line.iter().take_while(|&&b| is_token(b)).count();
        let rest = &line[token..];
        let spaces = rest.iter().take_while(|&&b| b == b' ' || b == b'\t').count();
        token > 0 && spaces > 0 && rest.get(spaces) == Some(&b':')
    })
}
