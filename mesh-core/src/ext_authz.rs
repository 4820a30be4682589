//! External authorisation: what a provider is asked about a request, and what its answer means.
//!
//! authorise ──`PolicySet::questions`──▶ the agent ──[`question`]──▶ provider ──[`verdict`]──▶ the agent
//!
//! The protocol is Envoy's (`envoy.service.auth.v3`), so its servers (OPA, oauth2-proxy's, Authorino, …) answer as they
//! are. A header that the answer sets takes the place of what the client said, unless the answer asks to append: who a
//! user is must not be heard from two.
//!
//! Invariant: an answer changes nothing that says where a message ends or what the mesh says itself. Bounded.
//! Not here: how providers are reached, and what becomes of requests while none answers (mesh-agent's path/ext_authz).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::ext_authz as wire;
use wire::check_response::HttpResponse;

use crate::authorise::Request;
use crate::model::Name;
use crate::route::{HeaderEdits, Line};
use crate::snapshot::ServiceId;

/// Most header lines of an answer.
const MAX_LINES: usize = 64;
/// Most bytes of them.
const MAX_BYTES: usize = 16 << 10;
/// The provider's answer to what it refuses without saying how (as Envoy's).
const FORBIDDEN: u16 = 403;

/// A service that decides about requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtAuthz {
    /// By which policies name it.
    pub name: Name,
    /// Who answers; `None`: there is no such service.
    pub service: Option<ServiceId>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Requests are let in while nobody answers.
    pub fail_open: bool,
}

/// All of them, in no order: few.
pub type Providers = Arc<[Arc<ExtAuthz>]>;

/// Who calls whom.
#[derive(Clone, Debug)]
pub struct Ends {
    /// From where.
    pub source: SocketAddr,
    /// The caller's SPIFFE ID; empty: nobody has proved it.
    pub principal: String,
    /// Which workload's port.
    pub destination: SocketAddr,
    /// The called workload's SPIFFE ID.
    pub called: String,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}

/// What is asked about a request. `query`: what stands behind its path's `?`. `told`: header lines that its endpoint
/// will see beside its own. `policy`: why it is asked about.
pub fn question(
    ends: &Ends,
    request: &Request<'_>,
    query: Option<&str>,
    told: &[Line],
    policy: &Name,
) -> wire::CheckRequest {
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    let mut add = |name: &[u8], value: &[u8]| {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(value);
        let joined = headers.entry(name).or_default();
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(&value);
    };
    request.headers.each(&mut add);
    for (name, value) in told {
        add(name.as_bytes(), value.as_bytes());
    }
    let (mark, query) = query.map_or(("", ""), |query| ("?", query));
    let http = wire::HttpRequest {
        id: headers.get("x-request-id").cloned().unwrap_or_default(),
        method: request.method.to_owned(),
        path: format!("{}{mark}{query}", request.path),
        host: request.authority.to_owned(),
        scheme: "http".to_owned(),
        size: headers.get("content-length").and_then(|size| size.parse().ok()).unwrap_or(-1),
        protocol: ends.protocol.to_owned(),
        headers,
    };
    let time = prost_types::Timestamp {
        seconds: (ends.unix_ns / 1_000_000_000).cast_signed(),
        nanos: (ends.unix_ns % 1_000_000_000) as i32,
    };
    wire::CheckRequest {
        attributes: Some(wire::AttributeContext {
            source: Some(peer(ends.source, &ends.principal)),
            destination: Some(peer(ends.destination, &ends.called)),
            request: Some(wire::CheckedRequest { time: Some(time), http: Some(http) }),
            context_extensions: [("policy".to_owned(), policy.to_string())].into(),
        }),
    }
}

fn peer(at: SocketAddr, principal: &str) -> wire::Peer {
    let socket = wire::SocketAddress { address: at.ip().to_string(), port_value: at.port().into() };
    wire::Peer {
        address: Some(wire::Address { socket_address: Some(socket) }),
        principal: principal.to_owned(),
        ..wire::Peer::default()
    }
}

/// What a provider has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request is let in, with these changes.
    Granted(Grant),
    /// The client gets this answer.
    Denied(Box<Denial>),
}

/// Changes of a request that was let in, and of its response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// In place of all lines of the same name.
    pub set: Vec<Line>,
    /// Beside them.
    pub add: Vec<Line>,
    /// Names that are left out.
    pub remove: Vec<Box<str>>,
    /// Of the response.
    pub response: HeaderEdits,
}

/// What the client gets in place of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// 200..=599.
    pub status: u16,
    /// Header lines.
    pub lines: Vec<Line>,
    /// Body.
    pub body: Box<str>,
}

/// An answer that decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// It changes more than it may.
    #[error("more than {MAX_LINES} header lines, or {MAX_BYTES} bytes of them")]
    TooLarge,
    /// It says so itself (`error_response`).
    #[error("the provider says that it failed")]
    Error,
}

/// Reads an answer to `asked`.
pub fn verdict(asked: &wire::CheckRequest, answer: wire::CheckResponse) -> Result<Verdict, Undecided> {
    // An answer without a status is one with code 0, in this protocol.
    if answer.status.is_none_or(|status| status.code == 0) {
        let Some(HttpResponse::OkResponse(ok)) = answer.http_response else {
            return Ok(Verdict::Granted(Grant::default()));
        };
        let there = |name: &str| {
            let http = asked.attributes.as_ref().and_then(|all| all.request.as_ref()?.http.as_ref());
            http.is_some_and(|http| http.headers.contains_key(name))
        };
        let (set, add) = lines(ok.headers, there)?;
        // What the response has is not known yet.
        let (response_set, response_add) = lines(ok.response_headers_to_add, |_| false)?;
        let remove = ok.headers_to_remove.into_iter().filter_map(|name| free_name(&name));
        return Ok(Verdict::Granted(Grant {
            set,
            add,
            remove: remove.take(MAX_LINES).collect(),
            response: HeaderEdits::new(response_set, response_add, Vec::new()),
        }));
    }
    if let Some(HttpResponse::ErrorResponse(_)) = answer.http_response {
        return Err(Undecided::Error);
    }
    let Some(HttpResponse::DeniedResponse(denied)) = answer.http_response else {
        return Ok(Verdict::Denied(Box::new(Denial {
            status: FORBIDDEN,
            lines: Vec::new(),
            body: Box::default(),
        })));
    };
    let (mut set, add) = lines(denied.headers, |_| false)?;
    set.extend(add);
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
    Ok(Verdict::Denied(Box::new(Denial {
        status: status.filter(|status| (200..=599).contains(status)).unwrap_or(FORBIDDEN),
        lines: set,
        body: denied.body.into(),
    })))
}

/// Lines that replace, and lines that are added.
fn lines(
    options: Vec<wire::HeaderValueOption>,
    there: impl Fn(&str) -> bool,
) -> Result<(Vec<Line>, Vec<Line>), Undecided> {
    let (mut set, mut add, mut bytes) = (Vec::new(), Vec::new(), 0);
    for option in options {
        let Some(header) = option.header else { continue };
        let Some(name) = free_name(&header.key) else { continue };
        let value = if header.value.is_empty() {
            String::from_utf8(header.raw_value).unwrap_or_default()
        } else {
            header.value
        };
        let value = value.trim_ascii();
        if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            continue;
        }
        bytes += name.len() + value.len();
        let append = option.append.is_some_and(|append| append.value);
        match option.append_action {
            // ADD_IF_ABSENT, OVERWRITE_IF_EXISTS.
            1 if there(&name) => continue,
            3 if !there(&name) => continue,
            _ if append => add.push((name, value.into())),
            _ => set.push((name, value.into())),
        }
        if set.len() + add.len() > MAX_LINES || bytes > MAX_BYTES {
            return Err(Undecided::TooLarge);
        }
    }
    Ok((set, add))
}

/// The name in lower case, where an answer may say something of it.
fn free_name(name: &str) -> Option<Box<str>> {
    const RESERVED: [&str; 9] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
    ];
    let name = name.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let good = !name.is_empty() && name.bytes().all(token);
    let reserved = RESERVED.contains(&&*name) || name.starts_with("proxy-") || name.starts_with("x-mesh-");
    (good && !reserved).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Sample;

    fn asked(headers: &[(&str, &str)]) -> wire::CheckRequest {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let sample = Sample { headers: headers.iter().map(own).collect(), ..Sample::default() };
        let request =
            Request { method: "POST", path: "/a", authority: "shop:80", headers: &sample, claims: None };
        let ends = Ends {
            source: "10.0.0.1:5000".parse().unwrap(),
            principal: "spiffe://mesh.local/ns/d/sa/cart".into(),
            destination: "10.0.0.2:8080".parse().unwrap(),
            called: "spiffe://mesh.local/ns/d/sa/shop".into(),
            protocol: "HTTP/1.1",
            unix_ns: 1_500_000_000,
        };
        question(&ends, &request, Some("q=1"), &[("x-user".into(), "bob".into())], &"d/p".into())
    }

    fn option(key: &str, value: &str, append: Option<bool>, action: i32) -> wire::HeaderValueOption {
        let header = wire::HeaderValue { key: key.into(), value: value.into(), ..Default::default() };
        let append = append.map(|value| wire::BoolValue { value });
        wire::HeaderValueOption { header: Some(header), append, append_action: action }
    }

    #[test]
    fn a_question_has_the_request_as_its_endpoint_will_get_it() {
        let all = asked(&[("X-A", "1"), ("x-a", "2"), ("X-Request-Id", "id")]).attributes.unwrap();
        let request = all.request.unwrap();
        assert_eq!(request.time.unwrap(), prost_types::Timestamp { seconds: 1, nanos: 500_000_000 });
        let http = request.http.unwrap();
        assert_eq!((&*http.method, &*http.path, &*http.host, &*http.id), ("POST", "/a?q=1", "shop:80", "id"));
        assert_eq!((&*http.headers["x-a"], &*http.headers["x-user"], http.size), ("1,2", "bob", -1));
        let source = all.source.unwrap();
        assert_eq!(source.principal, "spiffe://mesh.local/ns/d/sa/cart");
        assert_eq!(source.address.unwrap().socket_address.unwrap().port_value, 5000);
        assert_eq!(all.context_extensions["policy"], "d/p");
    }

    #[test]
    fn what_a_grant_says_replaces_unless_it_asks_to_append() {
        let headers = vec![
            option("X-User", "alice", None, 0),
            option("x-role", "admin", Some(true), 0),
            option("x-a", "no", None, 1),
            option("x-b", "yes", None, 1),
            option("x-c", "no", None, 3),
            option("Host", "evil", None, 0),
            option("content-length", "0", None, 0),
            option("x-mesh-reason", "fine", None, 0),
            option("bad name", "x", None, 0),
            option("x-bad", "a\r\nb: c", None, 0),
        ];
        let ok = wire::OkHttpResponse {
            headers,
            headers_to_remove: vec!["Authorization".into(), "Host".into()],
            response_headers_to_add: vec![option("set-cookie", "a=b", Some(true), 0)],
        };
        let answer = wire::CheckResponse { status: None, http_response: Some(HttpResponse::OkResponse(ok)) };
        let Verdict::Granted(grant) = verdict(&asked(&[("x-a", "1")]), answer).unwrap() else {
            panic!("granted")
        };
        assert_eq!(grant.set, [("x-user".into(), "alice".into()), ("x-b".into(), "yes".into())]);
        assert_eq!(grant.add, [("x-role".into(), "admin".into())]);
        assert_eq!(grant.remove, ["authorization".into()]);
        assert_eq!(grant.response.lines(), [("set-cookie".into(), "a=b".into())]);
        assert!(!grant.response.drops(b"set-cookie"), "it is added");
    }

    #[test]
    fn a_denial_is_told_as_the_provider_says_it() {
        let status = || Some(wire::RpcStatus { code: 7, message: String::new() });
        let plain = wire::CheckResponse { status: status(), http_response: None };
        let Ok(Verdict::Denied(denial)) = verdict(&asked(&[]), plain) else { panic!("denied") };
        assert_eq!((denial.status, denial.lines.len()), (403, 0));
        let denied = |code: i32| {
            let denied = wire::DeniedHttpResponse {
                status: Some(wire::HttpStatus { code }),
                headers: vec![option("location", "https://login.example/", None, 0)],
                body: "log in".into(),
            };
            let http_response = Some(HttpResponse::DeniedResponse(denied));
            match verdict(&asked(&[]), wire::CheckResponse { status: status(), http_response }) {
                Ok(Verdict::Denied(denial)) => *denial,
                other => panic!("{other:?}"),
            }
        };
        let denial = denied(302);
        assert_eq!((denial.status, &*denial.body), (302, "log in"));
        assert_eq!(denial.lines, [("location".into(), "https://login.example/".into())]);
        assert_eq!((denied(0).status, denied(100).status, denied(777).status), (403, 403, 403));
    }

    #[test]
    fn an_answer_has_bounds() {
        let headers = (0..65).map(|n| option(&format!("x-{n}"), "v", None, 0)).collect();
        let ok = wire::OkHttpResponse { headers, ..Default::default() };
        let answer = wire::CheckResponse { status: None, http_response: Some(HttpResponse::OkResponse(ok)) };
        assert_eq!(verdict(&asked(&[]), answer), Err(Undecided::TooLarge));
    }
}
