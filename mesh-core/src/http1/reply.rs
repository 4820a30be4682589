//! The proxy's own replies.
//!
//! A refusal names its cause twice: the stable reason in `x-mesh-reason`, the sentence in the body.

use std::io::Write as _;

use crate::error::ProxyError;
use crate::ext_authz::Denial;
use crate::jwt::JwtError;
use crate::route::DirectResponse;

/// Appends a complete reply. `head_request`: the request was HEAD, so the body is announced but not sent.
pub fn write_error(error: &ProxyError, keep_alive: bool, head_request: bool, out: &mut Vec<u8>) {
    let status = error.status();
    // The longest sentence has about 100 bytes; on the stack, since Content-Length comes before it.
    let mut body = Body { text: [0; 256], len: 0 };
    let _ = writeln!(body, "{error}");
    let body = &body.text[..body.len];
    // RFC 6750 section 3: no code where there was no token.
    let challenge = match (status, error) {
        (401, ProxyError::Jwt(JwtError::Missing)) => "www-authenticate: Bearer\r\n",
        (401, _) => "www-authenticate: Bearer error=\"invalid_token\"\r\n",
        _ => "",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {}\r\nx-mesh-reason: {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{challenge}",
        phrase(status),
        error.reason(),
        body.len(),
    );
    if let Some(seconds) = error.retry_after() {
        let _ = write!(out, "retry-after: {seconds}\r\n");
    }
    let _ = write!(out, "connection: {connection}\r\n\r\n");
    if !head_request {
        out.extend_from_slice(body);
    }
}

/// Appends the answer of somebody outside who refuses a request. `head_request`: as in [`write_error`].
pub fn write_denial(denial: &Denial, keep_alive: bool, head_request: bool, out: &mut Vec<u8>) {
    let status = denial.status;
    let connection = if keep_alive { "keep-alive" } else { "close" };
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {}\r\nx-mesh-reason: {}\r\n",
        phrase(status),
        ProxyError::ExtAuthzDenied.reason()
    );
    for (name, value) in &denial.lines {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    // Neither has a body (RFC 9110 sections 15.3.5 and 15.4.5).
    let bodyless = matches!(status, 204 | 304);
    if !bodyless {
        let _ = write!(out, "content-length: {}\r\n", denial.body.len());
    }
    let _ = write!(out, "connection: {connection}\r\n\r\n");
    if !(head_request || bodyless) {
        out.extend_from_slice(denial.body.as_bytes());
    }
}

/// Appends an answer without a body that sends the client elsewhere; `location` writes where.
pub fn write_redirect(status: u16, keep_alive: bool, location: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    // Writing to a Vec cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\nlocation: ", phrase(status));
    location(out);
    let _ = write!(out, "\r\ncontent-length: 0\r\nconnection: {connection}\r\n\r\n");
}

/// Appends an answer that a route has. `head_request`: its body is announced but not sent.
pub fn write_direct(answer: &DirectResponse, keep_alive: bool, head_request: bool, out: &mut Vec<u8>) {
    let (status, connection) = (answer.status, if keep_alive { "keep-alive" } else { "close" });
    // Writing to a Vec cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", phrase(status));
    if let Some(kind) = &answer.content_type {
        let _ = write!(out, "content-type: {kind}\r\n");
    }
    // RFC 9110 sections 8.6, 15.3.5 and 15.4.5: none is said where there is none.
    if !matches!(status, 204 | 304) {
        let _ = write!(out, "content-length: {}\r\n", answer.body.len());
    }
    let _ = write!(out, "connection: {connection}\r\n\r\n");
    if !head_request {
        out.extend_from_slice(answer.body.as_bytes());
    }
}

struct Body {
    text: [u8; 256],
    len: usize,
}

impl std::io::Write for Body {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let free = &mut self.text[self.len..];
        let n = bytes.len().min(free.len());
        free[..n].copy_from_slice(&bytes[..n]);
        self.len += n;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        410 => "Gone",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ if status < 400 => "Done",
        _ => "Error",
    }
}
