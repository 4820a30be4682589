//! Reads a request head.
//!
//! Target and Host are checked here because routing believes them: one Host, agreeing with the target by
//! replacing it where the target is absolute (RFC 9112 section 3.2.2).
//! Not here: path normalisation (none is done: `..`, `//` and `%2f` are routed as they are written).

use std::mem::MaybeUninit;

use super::fields::{Fields, Kind};
use super::framing::{connection, declared, diagnose, upgrade_offered};
use super::{Framing, Limits, MAX_HEADERS, Malformed, Side, Version};
use crate::authorise::{Headers, Request};
use crate::error::ProxyError;
use crate::head::Head;

/// A parsed request head. Borrows the buffer it was read into.
#[derive(Clone, Debug)]
pub struct RequestHead<'b> {
    /// Method, case-sensitive.
    pub method: &'b str,
    /// Request target as it was sent.
    pub target: &'b str,
    /// Path of the target, without the query; `*` for `OPTIONS *`, empty for CONNECT.
    pub path: &'b str,
    /// Host and optional port: the target's where it has one, else the Host header's; may be empty.
    pub authority: &'b str,
    /// Version that the client speaks.
    pub version: Version,
    /// Where the body ends: [`Framing::None`], `Length` or `Chunked`.
    pub framing: Framing,
    /// The client leaves its connection open after this exchange.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// The client offers to switch to another protocol (never `h2c`).
    pub upgrade: bool,
    pub(super) buf: &'b [u8],
    pub(super) fields: Fields,
}

/// Methods whose responses end otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// HEAD: the response has no body, whatever it says.
    Head,
    /// CONNECT: a 2xx opens a tunnel.
    Connect,
    /// Any other.
    Other,
}

/// What reading the response needs to know of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// The method, as far as it decides where the response ends.
    pub method: MethodKind,
    /// An upgrade was offered: 101 may be answered.
    pub upgrade: bool,
    /// Version that the client speaks.
    pub version: Version,
    /// The client leaves its connection open.
    pub keep_alive: bool,
}

impl RequestFacts {
    /// May the connection go on as something else than HTTP?
    pub fn may_switch(&self) -> bool {
        self.upgrade || self.method == MethodKind::Connect
    }
}

impl RequestHead<'_> {
    /// What [`parse_response`](super::parse_response) needs of it; it outlives the buffer.
    pub fn facts(&self) -> RequestFacts {
        RequestFacts {
            method: match self.method {
                "HEAD" => MethodKind::Head,
                "CONNECT" => MethodKind::Connect,
                _ => MethodKind::Other,
            },
            upgrade: self.upgrade,
            version: self.version,
            keep_alive: self.keep_alive,
        }
    }

    /// Bytes of the head as it came.
    pub fn length(&self) -> usize {
        self.buf.len()
    }

    /// The method may be sent a second time without a second effect (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }

    /// Takes the fields of this name out (lower case, `_` as `-`): neither policies nor the endpoint see them. For names
    /// that say nothing of the message's length or its connection. Was there any?
    pub fn remove(&mut self, name: &str) -> bool {
        self.fields.remove(self.buf, name)
    }
}

impl RequestHead<'_> {
    /// As policies see it; nothing is known of tokens.
    pub fn request(&self) -> Request<'_> {
        let Self { method, path, authority, .. } = *self;
        Request { method, path, authority, headers: self, claims: None }
    }
}

impl Headers for RequestHead<'_> {
    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
        for field in self.fields.all().iter().filter(|field| field.kind != Kind::Removed) {
            show(field.name(self.buf), field.value(self.buf));
        }
    }
}

impl Head for RequestHead<'_> {
    fn method(&self) -> &str {
        self.method
    }

    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    fn authority(&self) -> &str {
        self.authority
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.fields.find(self.buf, name)
    }

    fn any_header(&self, name: &str, holds: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let named = |f: &&super::fields::Field| f.name(self.buf).eq_ignore_ascii_case(name.as_bytes());
        self.fields.all().iter().filter(named).any(|field| holds(field.value(self.buf)))
    }
}

/// Parses a complete request head: `buf` is exactly what [`HeadScan::end`](super::HeadScan::end) measured.
pub fn parse_request<'b>(buf: &'b [u8], limits: &Limits) -> Result<RequestHead<'b>, ProxyError> {
    let mut head = RequestHead {
        method: "",
        target: "",
        path: "",
        authority: "",
        version: Version::Http11,
        framing: Framing::None,
        keep_alive: false,
        expect_continue: false,
        upgrade: false,
        buf,
        fields: Fields::EMPTY,
    };
    match head.parse(limits) {
        Ok(()) => Ok(head),
        Err(cause) => Err(ProxyError::malformed(Side::Client, cause)),
    }
}

impl RequestHead<'_> {
    fn parse(&mut self, limits: &Limits) -> Result<(), Malformed> {
        let buf = self.buf;
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut []);
        let status = parsed.parse_with_uninit_headers(buf, &mut headers).map_err(|e| diagnose(buf, e))?;
        let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Malformed::StartLine);
        };
        // httparse skips any number of empty lines; one is what RFC 9112 section 2.2 tolerates.
        let start = buf.strip_prefix(b"\r\n").unwrap_or(buf);
        if status != httparse::Status::Complete(buf.len()) || !start.starts_with(method.as_bytes()) {
            return Err(Malformed::StartLine);
        }
        let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        self.fields.fill(buf, parsed.headers, limits)?;
        let options = connection(&mut self.fields, buf)?;
        let fields = &self.fields;
        let host = host(fields, buf, version)?;
        let (path, authority) = split_target(method, target)?;
        (self.method, self.target, self.version) = (method, target, version);
        (self.path, self.authority) = (path, authority.unwrap_or(host));
        self.framing = declared(fields, buf, version)?.unwrap_or(Framing::None);
        if method == "CONNECT" && self.framing != Framing::None {
            return Err(Malformed::ConnectBody);
        }
        self.keep_alive = options.keep_alive(version);
        let newer = version == Version::Http11;
        self.upgrade = newer && options.upgrade && upgrade_offered(fields, buf);
        self.expect_continue = newer
            && self.framing != Framing::None
            && fields.of(Kind::Expect).any(|f| f.value(buf).eq_ignore_ascii_case(b"100-continue"));
        Ok(())
    }
}

/// The Host header's value; empty where HTTP/1.0 has none.
fn host<'b>(fields: &Fields, buf: &'b [u8], version: Version) -> Result<&'b str, Malformed> {
    let mut hosts = fields.of(Kind::Host);
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(Malformed::HostRepeated),
        (None, _) if version == Version::Http10 => Ok(""),
        (None, _) => Err(Malformed::HostMissing),
        (Some(field), None) => match str::from_utf8(field.value(buf)) {
            Ok("") => Ok(""),
            Ok(host) if is_authority(host) => Ok(host),
            _ => Err(Malformed::HostInvalid),
        },
    }
}

/// Path and, where it has one, authority of a request target (RFC 9112 section 3.2).
fn split_target<'b>(method: &str, target: &'b str) -> Result<(&'b str, Option<&'b str>), Malformed> {
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(Malformed::Target);
    }
    if method == "CONNECT" {
        let with_port = target.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty());
        return if with_port && is_authority(target) {
            Ok(("", Some(target)))
        } else {
            Err(Malformed::Target)
        };
    }
    if target.starts_with('/') {
        return Ok((without_query(target), None));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok((target, None));
    }
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let rest = &target[scheme.ok_or(Malformed::Target)?.len()..];
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !is_authority(authority) {
        return Err(Malformed::Target);
    }
    let path = match without_query(path) {
        "" if method == "OPTIONS" && !target.contains('?') => "*",
        "" => "/",
        path => path,
    };
    Ok((path, Some(authority)))
}

fn without_query(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

/// `host[:port]` with a name, an IPv4 address or an IPv6 address in brackets; not empty, no user part.
fn is_authority(text: &str) -> bool {
    let (host, rest) = if text.starts_with('[') {
        let Some(end) = text.find(']') else { return false };
        let literal = &text[1..end];
        if literal.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (literal, &text[end + 1..])
    } else {
        text.split_at(text.find(':').unwrap_or(text.len()))
    };
    let name = text.starts_with('[')
        || host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&b));
    let port = match rest.strip_prefix(':') {
        Some(port) => {
            port.is_empty() || port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
        }
        None => rest.is_empty(),
    };
    !host.is_empty() && name && port
}
