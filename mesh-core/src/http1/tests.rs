//! The codec's tests, by what they show. What they share is here.

mod body;
mod reject;
mod rewrite;
mod semantics;
mod split;

use super::*;
use crate::error::ProxyError;

const LIMITS: Limits =
    Limits { head_bytes: MAX_HEAD_BYTES, headers: MAX_HEADERS, chunk_line_bytes: 32, trailer_bytes: 8192 };

const GET: RequestFacts =
    RequestFacts { method: MethodKind::Other, upgrade: false, version: Version::Http11, keep_alive: true };

/// Reads a request that `input` begins with, as the proxy does.
fn request(input: &[u8]) -> Result<(RequestHead<'_>, usize), ProxyError> {
    let end = HeadScan::new(Side::Client).end(input, &LIMITS)?.expect("a complete head");
    Ok((parse_request(&input[..end], &LIMITS)?, end))
}

/// Reads a response that `input` begins with, as the proxy does.
fn response(input: &[u8], facts: RequestFacts) -> Result<ResponseHead<'_>, ProxyError> {
    let end = HeadScan::new(Side::Upstream).end(input, &LIMITS)?.expect("a complete head");
    parse_response(&input[..end], facts, &LIMITS)
}

/// A request head with these lines after the request line.
fn get(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\n{lines}\r\n").into_bytes()
}
