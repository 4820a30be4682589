//! What routes do to requests on their way: edits, redirects, deadlines, second tries, copies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use mesh_api::proto::v1::Protocol;
use mesh_core::route::{
    Action, Backend, Condition, DirectResponse, Edits, FieldMatch, HeaderEdits, Line, MatchSpec, Mirror,
    PathEdit, PathMatch, Redirect, Retry, Rewrite, RouteSpec, RouteTable, RuleSpec, ValueMatch,
};

use super::rig::*;
use crate::path::{Budget, Limits};

/// A server that answers with the head that it got.
fn echo() -> std::net::SocketAddr {
    answering(ok)
}

fn lines(lines: &[(&str, &str)]) -> Vec<Line> {
    lines.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn to(service: u32) -> Vec<Backend> {
    vec![Backend { service: Some(service), weight: 1, edits: None }]
}

fn at(prefix: &str) -> Vec<MatchSpec> {
    vec![PathMatch::Prefix(prefix.to_owned()).into()]
}

/// A rule for a prefix with these backends that does this.
fn acting(prefix: &str, backends: Vec<Backend>, action: Action) -> RuleSpec {
    RuleSpec { matches: at(prefix), backends, action: Some(Arc::new(action)), ..RuleSpec::default() }
}

/// Service 1 with these rules; 2 and 3 stand behind it.
fn rig(rules: Vec<RuleSpec>, second: &[std::net::SocketAddr], third: &[std::net::SocketAddr]) -> Rig {
    let spec = RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules };
    let services = vec![
        routed(service(1, Protocol::Http, &[]), RouteTable::new(&[spec])),
        service(2, Protocol::Http, second),
        service(3, Protocol::Http, third),
    ];
    Rig::new(services, Limits::default(), Budget::default())
}

fn retrying(codes: &[u16], attempts: u8) -> Retry {
    Retry { codes: codes.into(), attempts, backoff: Duration::ZERO }
}

#[test]
fn headers_and_parameters_choose_and_edits_are_made_both_ways() {
    let canary = FieldMatch { name: "x-canary".into(), value: ValueMatch::Exact("yes".into()) };
    let condition = Condition { headers: [canary].into(), ..Condition::default() };
    let narrow = MatchSpec { path: PathMatch::Prefix("/".into()), condition };
    let edits = Edits {
        request: HeaderEdits::new(lines(&[("x-a", "set")]), vec![], vec!["x-secret".into()]),
        response: HeaderEdits::new(vec![], lines(&[("x-from", "rule")]), vec![]),
    };
    let own =
        Edits { request: HeaderEdits::new(lines(&[("x-a", "backend")]), vec![], vec![]), ..Edits::default() };
    let backend = Backend { service: Some(2), weight: 1, edits: Some(Arc::new(own)) };
    let rig = rig(
        vec![
            RuleSpec { matches: at("/"), backends: vec![backend], edits, action: None },
            RuleSpec { matches: vec![narrow], backends: to(3), ..RuleSpec::default() },
        ],
        &[echo()],
        &[named("canary")],
    );
    let mut client = rig.connect();
    client.send("GET /x?q HTTP/1.1\r\nHost: shop\r\nX-Secret: s\r\nX-A: mine\r\n\r\n");
    let (head, body) = client.response();
    assert_eq!((header(&head, "x-from"), header(&body, "x-a")), (Some("rule"), Some("backend")));
    assert!(body.starts_with("GET /x?q HTTP/1.1\r\n") && header(&body, "x-secret").is_none(), "{body}");
    client.send("GET / HTTP/1.1\r\nHost: shop\r\nX-Canary: yes\r\n\r\n");
    assert_eq!(client.response().1, "canary");
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let rewrite = Rewrite { host: Some("inside".into()), path: Some(PathEdit::prefix("/v2")) };
    let rig = rig(vec![acting("/api", to(2), Action { rewrite, ..Action::default() })], &[echo()], &[]);
    let body = rig.connect().get("/api/users?id=1");
    assert!(body.starts_with("GET /v2/users?id=1 HTTP/1.1\r\n"), "{body}");
    assert_eq!(header(&body, "host"), Some("inside"));
}

#[test]
fn a_redirect_is_answered_and_the_connection_goes_on() {
    let redirect = Redirect { scheme: Some("https".into()), host: None, path: None, port: None, status: 301 };
    let action = Action { redirect: Some(redirect), ..Action::default() };
    let rig = rig(
        vec![
            acting("/old", vec![], action),
            RuleSpec { matches: at("/"), backends: to(2), ..RuleSpec::default() },
        ],
        &[named("new")],
        &[],
    );
    let mut client = rig.connect();
    client.send("GET /old/a?b HTTP/1.1\r\nHost: shop:8080\r\n\r\n");
    let (head, body) = client.response();
    assert!(head.starts_with("HTTP/1.1 301 ") && body.is_empty(), "{head}");
    assert_eq!(header(&head, "location"), Some("https://shop/old/a?b"));
    assert_eq!(client.get("/"), "new");
    client.send("POST /old HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(header(&client.response().0, "connection"), Some("close"), "its body is not waited for");
    assert_eq!(rig.counted(301, ""), 2);
}

#[test]
fn what_takes_too_long_is_answered_504() {
    let slow = server(|mut client| {
        client.head();
        client.rest();
    });
    let timeout = Some(Duration::from_millis(80));
    let whole = Action { timeout, ..Action::default() };
    let one = Action { try_timeout: timeout, ..Action::default() };
    let rig = rig(vec![acting("/whole", to(2), whole), acting("/one", to(2), one)], &[slow], &[]);
    for (path, reason) in [("/whole", "request_timeout"), ("/one", "try_timeout")] {
        let (mut client, begun) = (rig.connect(), Instant::now());
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        let (head, _) = client.response();
        assert!(head.starts_with("HTTP/1.1 504"), "{head}");
        assert_eq!(header(&head, "x-mesh-reason"), Some(reason));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(80) && took < Duration::from_secs(3), "{took:?}");
    }
}

#[test]
fn a_status_that_the_route_names_is_tried_again_elsewhere() {
    let (asked, count) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let bad = {
        let asked = asked.clone();
        server(move |mut client| {
            while client.head().is_some() {
                asked.fetch_add(1, SeqCst);
                client.send("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy");
            }
        })
    };
    let good = {
        let count = count.clone();
        server(move |mut client| {
            while client.head().is_some() {
                assert_eq!(client.take(4), b"body");
                count.fetch_add(1, SeqCst);
                client.send(ok("good"));
            }
        })
    };
    let action = Action { retry: Some(retrying(&[503], 2)), ..Action::default() };
    let rig = rig(vec![acting("/", to(2), action)], &[bad, good], &[]);
    let mut client = rig.connect();
    for _ in 0..20 {
        client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(client.response().1, "good");
    }
    assert_eq!((count.load(SeqCst), rig.counted(200, "")), (20, 20));
    assert!(asked.load(SeqCst) >= 5, "the busy one was asked as well");
    assert_eq!(rig.proxy.stats().counts.retried, u64::from(asked.load(SeqCst)));
}

#[test]
fn tries_end_and_the_last_answer_is_the_clients() {
    let asked = Arc::new(AtomicU32::new(0));
    let bad = |head: &'static str| {
        let asked = asked.clone();
        answering(move |_| {
            asked.fetch_add(1, SeqCst);
            head.to_owned()
        })
    };
    let action = Action { retry: Some(retrying(&[503, 502], 2)), ..Action::default() };
    let rule = |path, service| acting(path, to(service), action.clone());
    let patient = bad("HTTP/1.1 503 Busy\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n");
    let busy = bad("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy");
    let rig = rig(vec![rule("/", 2), rule("/patient", 3)], &[busy], &[patient]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(client.response().1, "busy");
    assert_eq!((asked.swap(0, SeqCst), rig.proxy.stats().counts.retried), (3, 2));
    client.send("GET /patient HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(header(&client.response().0, "retry-after"), Some("9"));
    assert_eq!(asked.load(SeqCst), 1, "who is told to wait is told");
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(client.response().1, "busy", "the connection is as it was");
}

#[test]
fn a_failure_counts_as_the_status_that_it_would_be() {
    let (broken, fine) = (server(|mut client| drop(client.head())), named("fine"));
    let action = Action { retry: Some(retrying(&[502], 1)), ..Action::default() };
    let rule = acting("/", to(2), action);
    let rig = rig(vec![rule], &[broken, fine], &[]);
    for _ in 0..10 {
        let mut client = rig.connect();
        client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.response().1, "fine");
    }
}

#[test]
fn a_try_that_takes_too_long_may_be_tried_again_within_the_whole() {
    let slow = server(|mut client| {
        client.head();
        client.rest();
    });
    let action = Action {
        retry: Some(retrying(&[504], 3)),
        try_timeout: Some(Duration::from_millis(60)),
        timeout: Some(Duration::from_millis(150)),
        ..Action::default()
    };
    let rule = acting("/", to(2), action);
    let rig = rig(vec![rule], &[slow], &[]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(header(&client.response().0, "x-mesh-reason"), Some("request_timeout"));
    assert!(rig.proxy.stats().counts.retried >= 1);
}

#[test]
fn copies_go_where_the_route_says_and_nobody_sees_their_answers() {
    let seen = Arc::new(AtomicU32::new(0));
    let shadow = {
        let seen = seen.clone();
        server(move |mut client| {
            let head = client.head().unwrap();
            assert_eq!((header(&head, "connection"), client.take(4)), (Some("close"), b"body".to_vec()));
            seen.fetch_add(1, SeqCst);
            client.send("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        })
    };
    let mirrors = vec![Mirror { service: Some(3), fraction: (100, 100) }];
    let action = Action { mirrors, ..Action::default() };
    let rule = acting("/", to(2), action);
    let main = server(|mut client| {
        while client.head().is_some() {
            client.take(4);
            client.send(ok("main"));
        }
    });
    let rig = rig(vec![rule], &[main], &[shadow]);
    let mut client = rig.connect();
    for _ in 0..10 {
        client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(client.response().1, "main");
    }
    eventually("all copies have arrived", || seen.load(SeqCst) == 10);
    let counts = || rig.proxy.stats().counts;
    assert_eq!((counts().mirrored, counts().mirror_skipped), (10, 0));
    // A body that comes later is not copied.
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\n");
    std::thread::yield_now();
    eventually("it is skipped", || counts().mirror_skipped == 1);
    client.send("body");
    assert_eq!(client.response().1, "main");
}

#[test]
fn a_route_answers_itself_and_the_connection_goes_on() {
    let direct =
        DirectResponse { status: 503, content_type: Some("text/html".into()), body: "<p>later</p>".into() };
    let action = Action { direct: Some(direct), ..Action::default() };
    let empty = DirectResponse { status: 204, content_type: None, body: "".into() };
    let rig = rig(
        vec![
            acting("/closed", vec![], action),
            acting("/none", vec![], Action { direct: Some(empty), ..Action::default() }),
            RuleSpec { matches: at("/"), backends: to(2), ..RuleSpec::default() },
        ],
        &[named("open")],
        &[],
    );
    let mut client = rig.connect();
    client.send("GET /closed HTTP/1.1\r\nHost: shop\r\n\r\n");
    let (head, body) = client.response();
    assert!(
        head.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && body == "<p>later</p>",
        "{head}{body}"
    );
    assert_eq!((header(&head, "content-type"), header(&head, "x-mesh-reason")), (Some("text/html"), None));
    client.send("HEAD /closed HTTP/1.1\r\nHost: shop\r\n\r\nGET /none HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(header(&client.head().unwrap(), "content-length"), Some("12"));
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 204 ") && header(&head, "content-length").is_none(), "{head}");
    assert_eq!(client.get("/"), "open");
    eventually("they are counted", || rig.counted(503, "") == 2 && rig.counted(204, "") == 1);
}

#[test]
fn a_namespaces_own_routes_hold_for_its_clients() {
    let table = |to_service| {
        let rules = vec![RuleSpec { backends: to(to_service), ..RuleSpec::default() }];
        RouteTable::new(&[RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules }])
    };
    let rig = Rig::new(
        vec![
            routed(service(1, Protocol::Http, &[]), table(2)),
            service(2, Protocol::Http, &[named("producer's")]),
            service(3, Protocol::Http, &[named("own")]),
        ],
        Limits::default(),
        Budget::default(),
    );
    rig.serve_inbound(Protocol::Http);
    let own = |namespace: &str| {
        rig.change(|snapshot| {
            let mut called = (**snapshot.services.get(&1).unwrap()).clone();
            called.consumers = Some(Arc::new([(namespace.into(), Arc::new(table(3)))].into()));
            snapshot.services.insert(1, Arc::new(called));
        });
    };
    assert_eq!(rig.connect().get("/"), "producer's");
    own("elsewhere");
    assert_eq!(rig.connect().get("/"), "producer's");
    // The rig's caller is of this one.
    own("default");
    assert_eq!(rig.connect().get("/"), "own");
}
