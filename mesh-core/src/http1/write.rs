//! Writes a head on to the next hop: the bytes it was read from, with edits.
//!
//! Lines between two edits are copied in one piece. What belongs to one connection only is left out, and said
//! anew for the other one. Nothing is allocated but the output's growth.

use std::io::Write as _;
use std::net::IpAddr;

use super::fields::{Field, Fields, Kind, list};
use super::response::forwards;
use super::{RequestHead, ResponseHead, Version};
use crate::head::Head as _;
use crate::route::HeaderEdits;

/// What changes in a request on its way to the endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestEdits<'a> {
    /// Appended to `x-forwarded-for`.
    pub forwarded_for: Option<IpAddr>,
    /// `x-request-id`, where the request has none.
    pub request_id: Option<&'a str>,
    /// Tell the endpoint to close after this exchange.
    pub close: bool,
    /// Whole lines that the endpoint gets besides, each with its CRLF: nothing of them is checked.
    pub lines: &'a [u8],
    /// A path in place of the request's, in two parts that follow each other; the query stays.
    pub path: Option<(&'a str, &'a str)>,
    /// A host in place of the request's.
    pub host: Option<&'a str>,
    /// What a route asks for.
    pub headers: Option<&'a HeaderEdits>,
}

/// What changes in a response on its way to the client.
#[derive(Clone, Copy, Debug)]
pub struct ResponseEdits<'a> {
    /// The client's connection stays open: the caller's decision, not above `client_keep_alive`.
    pub keep_alive: bool,
    /// Version that the client speaks.
    pub client: Version,
    /// What a route asks for.
    pub headers: Option<&'a HeaderEdits>,
}

/// Appends the request head as the endpoint shall see it. The version stays the client's: an HTTP/1.0 client
/// could not read what an endpoint may answer to HTTP/1.1. An absolute target becomes its path, and Host its
/// authority.
pub fn write_request(head: &RequestHead<'_>, edits: &RequestEdits<'_>, out: &mut Vec<u8>) {
    let absolute = !head.target.starts_with('/') && head.target != "*" && head.method != "CONNECT";
    let mut lines = Lines::new(head.buf, &head.fields, out);
    let renamed = absolute || edits.host.is_some();
    if renamed || edits.path.is_some() {
        write_start(head, edits, renamed, &mut lines);
    }
    let dropped = |field: &Field| edits.headers.is_some_and(|edits| edits.drops(field.name(head.buf)));
    let last_forwarded = head.fields.of(Kind::ForwardedFor).last().map(|f| f.start);
    let mut trailers = false;
    let mut has_id = false;
    for (index, field) in head.fields.all().iter().enumerate() {
        match field.kind {
            Kind::Hop | Kind::Connection | Kind::Removed => lines.skip(index),
            Kind::Host if renamed => lines.skip(index),
            Kind::Upgrade if !head.upgrade => lines.skip(index),
            Kind::Te => {
                trailers |=
                    list(field.value(head.buf)).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
                lines.skip(index);
            }
            Kind::Other | Kind::ForwardedFor | Kind::RequestId if dropped(field) => lines.skip(index),
            Kind::ForwardedFor if last_forwarded == Some(field.start) => {
                if let Some(address) = edits.forwarded_for {
                    lines.append(index, field, address);
                }
            }
            Kind::RequestId if field.value(head.buf).is_empty() => lines.skip(index),
            Kind::RequestId => has_id = true,
            _ => {}
        }
    }
    lines.finish();
    out.extend_from_slice(edits.lines);
    write_lines(edits.headers, out);
    if let (Some(address), None) = (edits.forwarded_for, last_forwarded) {
        line(out, format_args!("x-forwarded-for: {address}"));
    }
    if let (Some(id), false) = (edits.request_id, has_id) {
        line(out, format_args!("x-request-id: {id}"));
    }
    if trailers {
        line(out, format_args!("te: trailers"));
    }
    let keeps = head.version == Version::Http10 && !edits.close;
    let options =
        [(edits.close, "close"), (keeps, "keep-alive"), (head.upgrade, "upgrade"), (trailers, "te")];
    let mut separator = "connection: ";
    for (_, option) in options.into_iter().filter(|(set, _)| *set) {
        out.extend_from_slice(separator.as_bytes());
        out.extend_from_slice(option.as_bytes());
        separator = ", ";
    }
    if separator == ", " {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The lines that a route adds.
fn write_lines(edits: Option<&HeaderEdits>, out: &mut Vec<u8>) {
    for (name, value) in edits.map_or(&[][..], HeaderEdits::lines) {
        line(out, format_args!("{name}: {value}"));
    }
}

/// Request line in origin form with the path that the endpoint shall see; `renamed`: and a Host of our own.
fn write_start(head: &RequestHead<'_>, edits: &RequestEdits<'_>, renamed: bool, lines: &mut Lines<'_>) {
    let version = if head.version == Version::Http10 { "1.0" } else { "1.1" };
    let (path, rest) = match edits.path {
        // What names no path has none to be replaced.
        Some(parts) if head.path.starts_with('/') => parts,
        _ if head.method == "CONNECT" => (head.target, ""),
        _ => (head.path, ""),
    };
    let (mark, query) = head.query().map_or(("", ""), |query| ("?", query));
    line(lines.out, format_args!("{} {path}{rest}{mark}{query} HTTP/{version}", head.method));
    if renamed {
        line(lines.out, format_args!("host: {}", edits.host.unwrap_or(head.authority)));
    }
    lines.from = head.fields.all().first().map_or(lines.end, |f| f.start as usize);
}

/// Appends the response head as the client shall see it: always as HTTP/1.1, which an HTTP/1.0 client reads
/// too, with what the connection does said explicitly.
pub fn write_response(head: &ResponseHead<'_>, edits: &ResponseEdits<'_>, out: &mut Vec<u8>) {
    let first = head.fields.all().first().map_or(head.buf.len() - 2, |f| f.start as usize);
    // "HTTP/1.x 200" and then " Reason" or nothing.
    let reason = head.buf[b"HTTP/1.x 200".len()..first].trim_ascii_end();
    out.extend_from_slice(b"HTTP/1.1");
    out.extend_from_slice(&head.buf[b"HTTP/1.x".len()..b"HTTP/1.x 200".len()]);
    out.extend_from_slice(if reason.is_empty() { b" " } else { reason });
    out.extend_from_slice(b"\r\n");
    let mut lines = Lines::new(head.buf, &head.fields, out);
    lines.from = first;
    for (index, field) in head.fields.all().iter().enumerate() {
        let ours = matches!(field.kind, Kind::Other | Kind::RequestId | Kind::ForwardedFor | Kind::Expect);
        let dropped = || edits.headers.is_some_and(|edits| edits.drops(field.name(head.buf)));
        if !forwards(head, field.kind) || ours && dropped() {
            lines.skip(index);
        }
    }
    lines.finish();
    write_lines(edits.headers, out);
    if head.status == 101 {
        line(out, format_args!("connection: upgrade"));
    } else if head.status >= 200 && head.framing != super::Framing::Tunnel {
        if !edits.keep_alive {
            line(out, format_args!("connection: close"));
        } else if edits.client == Version::Http10 {
            line(out, format_args!("connection: keep-alive"));
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn line(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(text);
    out.extend_from_slice(b"\r\n");
}

/// A head's bytes on their way to the output, from `from` on; what was skipped lies before it.
struct Lines<'a> {
    buf: &'a [u8],
    fields: &'a Fields,
    out: &'a mut Vec<u8>,
    from: usize,
    /// Where the empty line begins.
    end: usize,
}

impl<'a> Lines<'a> {
    fn new(buf: &'a [u8], fields: &'a Fields, out: &'a mut Vec<u8>) -> Self {
        // An empty line before the start line is not passed on.
        let from = if buf.starts_with(b"\r\n") { 2 } else { 0 };
        Self { buf, fields, out, from, end: buf.len() - 2 }
    }

    fn line_end(&self, index: usize) -> usize {
        self.fields.all().get(index + 1).map_or(self.end, |next| next.start as usize)
    }

    fn skip(&mut self, index: usize) {
        let start = self.fields.all()[index].start as usize;
        self.out.extend_from_slice(&self.buf[self.from..start]);
        self.from = self.line_end(index);
    }

    /// Adds an element to the list that the line holds.
    fn append(&mut self, index: usize, field: &Field, address: IpAddr) {
        self.skip(index);
        self.out.extend_from_slice(field.name(self.buf));
        self.out.extend_from_slice(b": ");
        let value = field.value(self.buf);
        self.out.extend_from_slice(value);
        let separator = if value.is_empty() { "" } else { ", " };
        line(self.out, format_args!("{separator}{address}"));
    }

    fn finish(self) {
        self.out.extend_from_slice(&self.buf[self.from..self.end]);
    }
}
