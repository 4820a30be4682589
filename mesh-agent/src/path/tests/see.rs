//! What is told of requests one by one, and what is not.

use std::time::Duration;

use mesh_api::local::{RequestLine, TapQuery};
use mesh_api::proto::v1::Protocol;
use mesh_core::outcome::LogRule;
use mesh_core::route::{Backend, PathMatch, RouteSpec, RouteTable, RuleSpec};

use super::rig::*;
use crate::path::see::log::Target;
use crate::path::see::tap::Reader;
use crate::path::{Budget, Limits};

fn next(reader: &mut Reader) -> RequestLine<'static> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON, reader.lines.recv()).await.unwrap().unwrap() })
}

#[test]
fn a_request_is_told_with_all_that_is_known_of_it() {
    let rule = RuleSpec {
        matches: vec![PathMatch::Prefix("/api".into()).into()],
        backends: vec![Backend { service: Some(2), weight: 1, edits: None }],
        ..RuleSpec::default()
    };
    let spec = RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules: vec![rule] };
    let services = vec![
        routed(service(1, Protocol::Http, &[]), RouteTable::new(&[spec])),
        service(2, Protocol::Http, &[named("a")]),
    ];
    let rig = Rig::new(services, Limits::default(), Budget::default());
    rig.serve_inbound(Protocol::Http);
    let mut reader = rig.proxy.taps().add(TapQuery::default()).unwrap();
    let mut client = rig.connect();
    client.send("GET /api/x?token=1 HTTP/1.1\r\nHost: shop\r\nX-Request-Id: r-1\r\n\r\n");
    client.response();
    let line = next(&mut reader);
    let told = [
        &line.direction,
        &line.source,
        &line.destination,
        &line.route,
        &line.method,
        &line.authority,
        &line.path,
    ];
    assert_eq!(told, ["out", "default/caller", "default/service-2:80", "d/r/0", "GET", "shop", "/api/x"]);
    assert_eq!((line.status, &*line.outcome, line.tries, line.response_bytes), (200, "ok", 1, Some(1)));
    assert_eq!((&*line.request_id, &*line.endpoint), ("r-1", "default/caller"));
    assert!(
        line.address.starts_with("127.0.0.1:") && line.identity.ends_with("/ns/default/sa/default"),
        "{line:?}"
    );

    // Refused, and malformed.
    client.send("GET /other HTTP/1.1\r\nHost: shop\r\n\r\n");
    client.response();
    let line = next(&mut reader);
    assert_eq!((line.status, &*line.reason, &*line.path, line.tries), (404, "no_route", "/other", 0));
    client.send("GET / HTTP/9.9\r\n\r\n");
    let line = next(&mut reader);
    assert_eq!((line.status, &*line.reason, &*line.path), (400, "bad_request", ""));
}

#[test]
fn the_log_has_what_its_rule_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let backend = answering(|head| {
        if head.starts_with("GET /bad") {
            "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".to_owned()
        } else {
            ok("fine")
        }
    });
    let rig = Rig::http(&[backend]);
    rig.proxy.access_log().to(Target::File(path.clone())).unwrap();
    let mut client = rig.connect();
    client.get("/before");
    rig.proxy.set_log(CALLER, LogRule { percent: 0, errors: true });
    client.get("/good");
    client.send("GET /bad HTTP/1.1\r\nHost: shop\r\n\r\n");
    client.response();
    rig.proxy.set_log(CALLER, LogRule { percent: 100, errors: false });
    client.get("/all");
    let text = || std::fs::read_to_string(&path).unwrap();
    eventually("two lines", || text().lines().count() == 2);
    let paths: Vec<String> = text()
        .lines()
        .map(|line| serde_json::from_str::<RequestLine<'static>>(line).unwrap().path.into_owned())
        .collect();
    assert_eq!(paths, ["/bad", "/all"]);
    assert_eq!(rig.proxy.stats().lines, (2, 0));
}

#[test]
fn the_last_lines_are_written_before_the_agent_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let rig = Rig::http(&[named("a")]);
    rig.proxy.access_log().to(Target::File(path.clone())).unwrap();
    rig.proxy.set_log(CALLER, LogRule { percent: 100, errors: false });
    let mut client = rig.connect();
    for _ in 0..5 {
        client.get("/");
    }
    drop(client);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(rig.proxy.drain(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 5);
}

#[test]
fn a_connection_that_drains_answers_what_comes_just_then() {
    let limits = Limits { drain_idle: Duration::from_secs(5), ..Limits::default() };
    let rig = Rig::new(vec![service(1, Protocol::Http, &[named("a")])], limits, Budget::default());
    let mut client = rig.connect();
    client.get("/");
    let (proxy, fresh) = (rig.proxy.clone(), rig.connect());
    let drain = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(proxy.drain(SOON));
    });
    let mut answered = 0;
    for mut client in [client, fresh] {
        client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
        let (head, body) = client.response();
        answered += u32::from(body == "a");
        // It may have come before the drain did.
        if header(&head, "connection") != Some("close") {
            client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
            assert_eq!(client.response().1, "a");
        }
    }
    assert_eq!(answered, 2);
    drain.join().unwrap();
}
