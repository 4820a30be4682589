//! Heads of HTTP/2: as routes read them, with the edits that they ask for, and the proxy's own answers.
//!
//! A client of gRPC is answered in its own form: status 200, no body, and the cause as `grpc-status` and
//! `grpc-message`. HTTP/2 itself has refused what belongs to connections (`connection`, `transfer-encoding`, …).

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode, Version};
use mesh_core::authorise::Headers;
use mesh_core::error::ProxyError;
use mesh_core::ext_authz::Denial;
use mesh_core::head::Head;
use mesh_core::outcome::NO_GRPC;
use mesh_core::route::{DirectResponse, HeaderEdits, Redirect};

use super::super::routing::Routed;

/// A request's head as routes see it.
pub struct Asked<'a>(pub &'a Parts);

impl Head for Asked<'_> {
    fn method(&self) -> &str {
        self.0.method.as_str()
    }

    fn path(&self) -> &str {
        if self.0.method == Method::CONNECT { "" } else { self.0.uri.path() }
    }

    fn query(&self) -> Option<&str> {
        self.0.uri.query()
    }

    fn authority(&self) -> &str {
        let named = || self.0.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        self.0.uri.authority().map_or_else(|| named().unwrap_or_default(), http::uri::Authority::as_str)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn any_header(&self, name: &str, holds: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.headers.get_all(name).iter().any(|value| holds(value.as_bytes()))
    }
}

/// The fields of a head, as policies see them.
struct Fields<'a>(&'a HeaderMap);

impl Headers for Fields<'_> {
    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
        for (name, value) in self.0 {
            show(name.as_str().as_bytes(), value.as_bytes().trim_ascii());
        }
    }
}

/// Shows an outgoing head to policies, as it is.
pub fn shown<T>(head: &Request<()>, look: impl FnOnce(&mesh_core::authorise::Request<'_>) -> T) -> T {
    let path = if head.method() == Method::CONNECT { "" } else { head.uri().path() };
    look(&mesh_core::authorise::Request {
        method: head.method().as_str(),
        path,
        authority: head.uri().authority().map_or("", http::uri::Authority::as_str),
        headers: &Fields(head.headers()),
        claims: None,
    })
}

/// The head as its endpoint shall see it.
pub fn outgoing(mut parts: Parts, routed: &Routed<'_>) -> Result<Request<()>, ProxyError> {
    let rewrite = routed.action.map(|action| &action.rewrite);
    let host = rewrite.and_then(|rewrite| rewrite.host.as_deref());
    let asked = Asked(&parts);
    let authority = host.unwrap_or_else(|| asked.authority()).to_owned();
    let target = match routed.path(parts.uri.path()) {
        Some((path, rest)) => {
            let (mark, query) = parts.uri.query().map_or(("", ""), |query| ("?", query));
            PathAndQuery::try_from(format!("{path}{rest}{mark}{query}")).map_err(|_| ProxyError::Internal)?
        }
        None => parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
    };
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(target);
    parts.uri = uri.build().map_err(|_| ProxyError::Internal)?;
    parts.version = Version::HTTP_2;
    parts.headers.remove(http::header::HOST);
    if let Some(edits) = routed.edits {
        edit(&mut parts.headers, &edits.request);
    }
    Ok(Request::from_parts(parts, ()))
}

/// Makes a route's edits.
pub fn edit(headers: &mut HeaderMap, edits: &HeaderEdits) {
    for name in edits.dropped() {
        headers.remove(name);
    }
    for (name, value) in edits.lines() {
        // Checked where the route was stored.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(&**name), HeaderValue::try_from(&**value)) {
            headers.append(name, value);
        }
    }
}

/// A request of gRPC?
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// gRPC's status in headers or trailers; [`NO_GRPC`]: there is none.
pub fn code_in(headers: &HeaderMap) -> u8 {
    let code = headers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    code.unwrap_or(NO_GRPC)
}

/// The code that a client of gRPC is refused with.
pub fn refused_as(error: ProxyError) -> u8 {
    grpc_status(error).parse().unwrap_or(NO_GRPC)
}

/// What gRPC calls it (the codes of google.rpc.Code).
fn grpc_status(error: ProxyError) -> &'static str {
    if error == ProxyError::NoBackend { "14" } else { grpc_code(error.status()) }
}

/// The same of a status.
fn grpc_code(status: u16) -> &'static str {
    match status {
        200 => "0",
        400 | 431 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        504 => "4",
        429 => "8",
        _ => "14",
    }
}

/// Status that another try may follow; `None`: the client has to be told, for it knows how long it can wait. What gRPC
/// refuses without having begun has a status of its own, which counts as HTTP's would.
pub fn refusable(headers: &HeaderMap, status: u16) -> Option<u16> {
    if headers.contains_key(http::header::RETRY_AFTER) {
        return None;
    }
    let said = headers.get("grpc-status").and_then(|value| value.to_str().ok());
    Some(match said {
        None => status,
        Some("14") => 503,
        Some("4") => 504,
        Some("8") => 429,
        Some("2" | "13" | "15") => 500,
        Some(_) => status,
    })
}

/// Answers in the endpoint's place.
pub fn refuse(respond: &mut SendResponse<Bytes>, error: ProxyError, grpc: bool) {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert("x-mesh-reason", HeaderValue::from_static(error.reason()));
    if let Some(seconds) = error.retry_after() {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    let text = error.to_string();
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(grpc_status(error)));
        if let Ok(text) = HeaderValue::try_from(text) {
            headers.insert("grpc-message", text);
        }
        // Fails where the client has gone, as below.
        let _ = respond.send_response(response, true);
        return;
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    *response.status_mut() = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    if let Ok(mut body) = respond.send_response(response, false) {
        let _ = body.send_data(Bytes::from(text + "\n"), true);
    }
}

/// Answers as somebody outside has decided.
pub fn deny(respond: &mut SendResponse<Bytes>, denial: &Denial, grpc: bool) {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    for (name, value) in &denial.lines {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(&**name), HeaderValue::try_from(&**value)) {
            headers.append(name, value);
        }
    }
    headers.insert("x-mesh-reason", HeaderValue::from_static(ProxyError::ExtAuthzDenied.reason()));
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(grpc_code(denial.status)));
        if let Ok(text) = HeaderValue::try_from(denial.body.replace(|c: char| c.is_control(), " ")) {
            headers.insert("grpc-message", text);
        }
        let _ = respond.send_response(response, true);
        return;
    }
    *response.status_mut() = StatusCode::from_u16(denial.status).unwrap_or(StatusCode::FORBIDDEN);
    if let Ok(mut body) = respond.send_response(response, denial.body.is_empty()) {
        let _ = body.send_data(Bytes::copy_from_slice(denial.body.as_bytes()), true);
    }
}

/// Sends the client elsewhere.
pub fn redirect(respond: &mut SendResponse<Bytes>, asked: &Asked<'_>, to: &Redirect, matched: usize) {
    let mut location = Vec::new();
    to.write((asked.authority(), asked.path(), asked.query()), matched, &mut location);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(to.status).unwrap_or(StatusCode::FOUND);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    let _ = respond.send_response(response, true);
}

/// Answers as a route says. A call of gRPC is told what the status means to it.
pub fn direct(respond: &mut SendResponse<Bytes>, answer: &DirectResponse, grpc: bool, head_request: bool) {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(grpc_code(answer.status)));
        let _ = respond.send_response(response, true);
        return;
    }
    let kind = answer.content_type.as_deref().map(HeaderValue::try_from);
    if let Some(Ok(kind)) = kind {
        headers.insert(CONTENT_TYPE, kind);
    }
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let whole = head_request || answer.body.is_empty();
    if let Ok(mut body) = respond.send_response(response, whole)
        && !whole
    {
        let _ = body.send_data(Bytes::copy_from_slice(answer.body.as_bytes()), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_known_by_its_content_type() {
        let of = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            is_grpc(&headers)
        };
        assert!(of("application/grpc") && of("application/grpc+proto") && of("application/grpc;x"));
        assert!(!of("application/grpc-web") && !of("application/json") && !is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn refusals_have_grpcs_names() {
        let of = |error: ProxyError| grpc_status(error);
        assert_eq!(
            [of(ProxyError::NoRoute), of(ProxyError::DeniedByPolicy), of(ProxyError::RequestTimeout)],
            ["12", "7", "4"]
        );
        assert_eq!(of(ProxyError::NoEndpoints), "14");
    }
}
