//! Requests and responses: framing, order, routes, refusals.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use mesh_api::proto::v1::Protocol;
use mesh_core::route::{Backend, MatchSpec, PathMatch, RouteSpec, RouteTable, RuleSpec};

use super::rig::*;
use crate::path::{Budget, Limits};

#[test]
fn keep_alive_on_both_sides() {
    let accepted = Arc::new(AtomicU32::new(0));
    let count = accepted.clone();
    let backend = server(move |mut client| {
        count.fetch_add(1, SeqCst);
        while client.head().is_some() {
            client.send(ok("hello"));
        }
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    for _ in 0..50 {
        assert_eq!(client.get("/"), "hello");
    }
    drop(client);
    assert_eq!(rig.connect().get("/"), "hello");
    let counts = rig.proxy.stats().counts;
    assert_eq!(accepted.load(SeqCst), counts.upstream_opened as u32);
    assert!(counts.upstream_opened <= 2 && counts.upstream_reused >= 49, "{counts:?}");
    assert_eq!(rig.counted(200, ""), 51);
    let leg = rig.fake.legs.lock()[0];
    assert_eq!((leg.workload, leg.identity, leg.service, leg.endpoint, leg.local), (CALLER, 3, 1, 1, true));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = answering(|head| ok(head.split(' ').nth(1).unwrap()));
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    let requests: Vec<String> = (0..40).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: shop\r\n\r\n")).collect();
    client.send(requests.concat());
    for n in 0..40 {
        assert_eq!(client.response().1, format!("/{n}"));
    }
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let rig = Rig::http(&[named("a")]);
    let mut client = rig.connect();
    for byte in b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.response().1, "a");
}

#[test]
fn responses_without_a_body() {
    let backend = answering(|head| match head.split(' ').nth(1).unwrap() {
        "/204" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n".into(),
        "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n".into(),
        _ => ok("body"),
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    for (method, path, status) in [("GET", "/204", "204"), ("GET", "/304", "304"), ("HEAD", "/head", "200")] {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        let head = client.head().unwrap();
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
    }
    assert_eq!(client.get("/"), "body");
}

#[test]
fn a_response_that_ends_with_its_connection_ends_the_clients() {
    let backend = server(|mut client| {
        client.head();
        client.send("HTTP/1.1 200 OK\r\n\r\nall of it");
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    let head = client.head().unwrap();
    assert_eq!(header(&head, "connection"), Some("close"));
    assert_eq!(client.rest(), b"all of it");
}

#[test]
fn http_1_0_clients_are_served() {
    let rig = Rig::http(&[answering(|head| {
        assert!(head.starts_with("GET / HTTP/1.0"), "{head}");
        ok("old")
    })]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let (head, body) = client.response();
    assert_eq!((header(&head, "connection"), body.as_str()), (Some("close"), "old"));
    assert!(client.rest().is_empty());
}

#[test]
fn malformed_requests_are_refused_and_the_connection_ends() {
    let rig = Rig::http(&[named("a")]);
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "bad_request",
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
        ("\x16\x03\x01\x02\x00", 400, "not_http"),
    ];
    for (request, status, reason) in cases {
        let mut client = rig.connect();
        client.send(request);
        let (head, _) = client.response();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {head}");
        assert_eq!(header(&head, "x-mesh-reason"), Some(reason), "{request:?}");
        assert!(client.rest().is_empty(), "{request:?}");
    }
    let mut client = rig.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40_000)));
    assert!(client.head().unwrap().starts_with("HTTP/1.1 431"));
    assert_eq!(rig.counted(400, "bad_request"), 4);
}

#[test]
fn a_malformed_response_is_a_502() {
    let backend = answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".into());
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(header(&head, "x-mesh-reason"), Some("upstream_protocol"));
}

#[test]
fn no_endpoints_and_endpoints_that_refuse() {
    let rig = Rig::http(&[]);
    let mut client = rig.connect();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
        let (head, _) = client.response();
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert_eq!(header(&head, "x-mesh-reason"), Some("no_endpoints"));
    }
    rig.change(|s| put(s, service(1, Protocol::Http, &[nobody()])));
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    let (head, _) = client.response();
    assert_eq!(header(&head, "x-mesh-reason"), Some("connect_refused"));
    rig.change(|s| {
        let endpoints = [nobody(), nobody(), named("alive")];
        put(s, service(1, Protocol::Http, &endpoints));
    });
    for _ in 0..6 {
        assert_eq!(client.get("/"), "alive");
    }
    rig.change(|s| drop(s.services.remove(&1)));
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(header(&client.response().0, "x-mesh-reason"), Some("no_endpoints"));
}

fn rule(matches: &[PathMatch], backends: &[(u32, u32)]) -> RuleSpec {
    let backend = |&(service, weight): &(u32, u32)| Backend { service: Some(service), weight, edits: None };
    RuleSpec {
        matches: matches.iter().cloned().map(MatchSpec::from).collect(),
        backends: backends.iter().map(backend).collect(),
        ..RuleSpec::default()
    }
}

#[test]
fn routes_by_path_and_weight() {
    let table = RouteTable::new(&[RouteSpec {
        name: "default/canary".into(),
        created_ms: 1,
        hostnames: vec!["shop".into()],
        rules: vec![
            rule(&[PathMatch::Prefix("/static".into())], &[(4, 1)]),
            rule(&[PathMatch::Prefix("/".into())], &[(2, 90), (3, 10)]),
        ],
    }]);
    let services = vec![
        routed(service(1, Protocol::Http, &[named("parent")]), table),
        service(2, Protocol::Http, &[named("stable")]),
        service(3, Protocol::Http, &[named("canary")]),
        service(4, Protocol::Http, &[named("static")]),
    ];
    let rig = Rig::new(services, Limits::default(), Budget::default());
    let mut client = rig.connect();
    let mut hits: HashMap<String, u32> = HashMap::new();
    for _ in 0..2000 {
        *hits.entry(client.get("/")).or_default() += 1;
    }
    assert_eq!(hits["stable"] + hits["canary"], 2000);
    assert!((130..270).contains(&hits["canary"]), "{hits:?}");
    assert_eq!(client.get("/static/logo.png"), "static");
    client.send("GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n");
    let (head, _) = client.response();
    assert_eq!(header(&head, "x-mesh-reason"), Some("no_route"));
    let stats = rig.proxy.stats();
    let (key, series) = stats.requests.iter().find(|(k, _)| k.service == 3).unwrap();
    assert_eq!((&*key.route, key.source, key.status), ("default/canary/1", CALLER, 200));
    assert_eq!(series.count, u64::from(hits["canary"]));
}

#[test]
fn turns_go_round_the_endpoints() {
    let rig = Rig::http(&[named("a"), named("b"), named("c")]);
    let mut client = rig.connect();
    let seen: Vec<String> = (0..6).map(|_| client.get("/")).collect();
    for i in 0..3 {
        assert_eq!(seen[i], seen[i + 3]);
        assert_ne!(seen[i], seen[i + 1]);
    }
}

#[test]
fn a_reused_connection_that_was_closed_is_replaced_for_safe_requests() {
    // Answers one request a connection without saying that it will close.
    let backend = server(|mut client| {
        client.head();
        client.send(ok("once"));
        let head = client.head();
        drop(head);
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    for _ in 0..5 {
        assert_eq!(client.get("/"), "once");
    }
    let counts = rig.proxy.stats().counts;
    assert!(counts.retried >= 1, "{counts:?}");
    assert_eq!(rig.counted(502, "upstream_closed"), 0);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 502"), "a POST is not repeated");
}

#[test]
fn a_direct_address_is_not_balanced_away() {
    let (a, b) = (named("a"), named("b"));
    let rig = Rig::http(&[a, b]);
    rig.record(b.ip(), b.port(), 1, 2);
    let mut client = rig.connect();
    for _ in 0..4 {
        assert_eq!(client.get("/"), "b");
    }
}

#[test]
fn refusals_to_a_pipelining_client_stay_bounded() {
    let rig = Rig::http(&[]);
    let mut client = rig.connect();
    let mut writer = client.socket.try_clone().unwrap();
    let requests = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n".repeat(5000);
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, requests.as_bytes()));
    for _ in 0..5000 {
        assert!(client.response().0.starts_with("HTTP/1.1 503"));
    }
    sender.join().unwrap().unwrap();
}
