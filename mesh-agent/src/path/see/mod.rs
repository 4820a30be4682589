//! Tells of requests that have ended, one by one: to the access log ([`log`]) and to those who tap ([`tap`]).
//!
//! account ──▶ **see** ──[`RequestLine`]──▶ { log ──▶ standard output or a file, tap ──▶ agent.sock }
//!
//! Both get the same line. What is noted of a head is bounded ([`TEXT`]); queries of paths are left out, because secrets
//! are in them.
//!
//! Invariant: whoever reads slowly, a full disk or a stopped pipe loses lines, which are counted; no request waits.

pub mod log;
pub mod tap;

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use mesh_api::local::RequestLine;
use mesh_core::head::Head;
use mesh_core::outcome::{NO_GRPC, Outcome};
use mesh_core::snapshot::{Service, Snapshot, Workload};
use prost_types::Timestamp;

use super::account::{Account, Parties};
use super::authorise::Whose;
use super::series::{Key, Measured, UNPROVED};
use super::stats::{Direction, Spoken};

/// Bytes of a text of a head that are told at most.
const TEXT: usize = 1024;
/// Of a short one.
const SHORT: usize = 256;

/// What is told of a request's head.
#[derive(Debug, Default)]
pub struct Noted {
    method: Box<str>,
    authority: Box<str>,
    path: Box<str>,
    trace_id: Box<str>,
    request_id: Box<str>,
}

impl Noted {
    /// Of this head.
    pub fn of(head: &impl Head) -> Self {
        let text =
            |name: &str| head.header(name).and_then(|value| str::from_utf8(value).ok()).unwrap_or_default();
        Self {
            method: cut(head.method(), SHORT).into(),
            authority: cut(head.authority(), SHORT).into(),
            path: cut(head.path(), TEXT).into(),
            trace_id: trace_id(text("traceparent"), text("x-b3-traceid"), text("b3")).into(),
            request_id: cut(text("x-request-id"), SHORT).into(),
        }
    }
}

/// The first bytes of a text, whole characters.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The trace's id: of W3C's header, else of B3's, many or one; empty: there is none.
fn trace_id<'a>(traceparent: &'a str, many: &'a str, one: &'a str) -> &'a str {
    let hex = |id: &&str| matches!(id.len(), 16 | 32) && id.bytes().all(|b| b.is_ascii_hexdigit());
    let w3c = traceparent.split('-').nth(1);
    let b3 = one.split('-').next();
    [w3c, Some(many), b3].into_iter().flatten().find(hex).unwrap_or_default()
}

/// A request that has ended.
pub struct Ended<'a> {
    /// Its series.
    pub key: &'a Key,
    /// What it took.
    pub measured: &'a Measured,
    /// The rest.
    pub account: &'a Account,
    /// Of its head; `None`: it had none, or nobody looked then.
    pub noted: Option<&'a Noted>,
}

/// Tells of it. `logged`: is it written down, where it has failed or not?
pub fn tell(at: &Parties<'_>, ended: &Ended<'_>, logged: impl FnOnce(bool) -> bool) {
    let worker = at.worker;
    let outcome = Outcome::of(ended.key.status, ended.key.grpc, ended.key.reason);
    let route = worker.routes.name(ended.key.route, &worker.shared.requests);
    let logged = logged(outcome != Outcome::Ok);
    worker.with_snapshot(|snapshot| {
        let line = line(snapshot, at, ended, outcome, &route);
        if logged {
            worker.log.write(&line, &worker.common.log, worker.draining.get());
        }
        worker.common.taps.show(&line);
    });
}

/// The name of a caller.
fn source(snapshot: &Snapshot, id: u32) -> Cow<'_, str> {
    match id {
        0 => "outside".into(),
        UNPROVED => "unproved".into(),
        id => snapshot.workloads.get(&id).map_or("unknown", |workload| &*workload.full_name).into(),
    }
}

fn service(snapshot: &Snapshot, id: u32) -> Cow<'static, str> {
    match snapshot.services.get(&id) {
        _ if id == 0 => "unknown".into(),
        Some(service) => format!("{}/{}:{}", service.namespace, service.name, service.port).into(),
        None => "unknown".into(),
    }
}

/// Who the caller is to policies; empty: nothing is proved.
fn identity(snapshot: &Snapshot, at: &Parties<'_>, source: u32) -> String {
    if let Whose::Tunnel(tunnel) = at.whose {
        return tunnel.peer.to_string();
    }
    let of = |workload: &Workload| {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            snapshot.trust_domain,
            workload.namespace(),
            workload.service_account
        )
    };
    snapshot.workloads.get(&source).map(|workload| of(workload)).unwrap_or_default()
}

/// The workload that it was sent to; empty: none.
fn endpoint<'s>(snapshot: &'s Snapshot, at: &Parties<'_>, ended: &Ended<'_>) -> &'s str {
    let name = |id: u32| snapshot.workloads.get(&id).map_or("", |workload| &*workload.full_name);
    if at.direction == Direction::In {
        return name(at.member.workload);
    }
    let found = |service: &Service| {
        service.endpoints.iter().find(|e| e.id == ended.account.endpoint).map(|e| e.workload)
    };
    snapshot.services.get(&ended.key.service).and_then(|service| found(service)).map_or("", name)
}

fn line<'a>(
    snapshot: &'a Snapshot,
    at: &Parties<'_>,
    ended: &Ended<'a>,
    outcome: Outcome,
    route: &'a str,
) -> RequestLine<'a> {
    let Ended { key, measured, account, noted } = ended;
    let took = Duration::from_micros(measured.us);
    let of = |text: fn(&Noted) -> &str| Cow::from(noted.map_or("", text));
    let bytes = |n: u64| (!matches!(key.spoken, Spoken::Tcp | Spoken::Tls)).then_some(n);
    RequestLine {
        time: time(SystemTime::now() - took).into(),
        direction: key.direction.name().into(),
        source: source(snapshot, key.source),
        identity: identity(snapshot, at, key.source).into(),
        destination: service(snapshot, key.service),
        route: route.into(),
        endpoint: endpoint(snapshot, at, ended).into(),
        address: account.address.map(|address| address.to_string()).unwrap_or_default().into(),
        protocol: key.spoken.name().into(),
        method: of(|noted| &noted.method),
        authority: of(|noted| &noted.authority),
        path: of(|noted| &noted.path),
        status: key.status,
        grpc_status: (key.grpc != NO_GRPC).then_some(key.grpc),
        outcome: outcome.name().into(),
        reason: key.reason.into(),
        seconds: took.as_secs_f64(),
        request_bytes: bytes(measured.received),
        response_bytes: bytes(measured.sent),
        tries: account.tries,
        trace_id: of(|noted| &noted.trace_id),
        request_id: of(|noted| &noted.request_id),
    }
}

/// RFC 3339, to the millisecond.
fn time(at: SystemTime) -> String {
    let at = Timestamp::from(at);
    Timestamp { nanos: at.nanos - at.nanos % 1_000_000, ..at }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_known_by_their_headers() {
        let w3c = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(trace_id(w3c, "463ac35c9f6413ad", ""), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(trace_id("nonsense", "463ac35c9f6413ad", ""), "463ac35c9f6413ad");
        assert_eq!(
            trace_id("", "", "463ac35c9f6413ad48485a3953bb6124-e457b5a2e4d86bd1-1"),
            "463ac35c9f6413ad48485a3953bb6124"
        );
        assert_eq!(trace_id("00-\"evil\"-x", "", "0"), "");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!((cut("abc", 5), cut("abc", 2), cut("aüb", 2)), ("abc", "ab", "a"));
    }

    #[test]
    fn times_are_of_rfc_3339() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_763_798_400_123_456);
        assert_eq!(time(at), "2025-11-22T08:00:00.123Z");
    }
}
