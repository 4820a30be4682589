//! HTTP/2, by h2 at both ends: bodies, trailers, many streams, refusals, ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use mesh_api::proto::v1::Protocol;
use mesh_core::route::{
    Action, Backend, DirectResponse, Edits, HeaderEdits, Mirror, PathEdit, PathMatch, Rewrite, RouteSpec,
    RouteTable, RuleSpec,
};
use tokio::net::{TcpListener, TcpStream};

use super::rig::*;
use crate::path::series::RequestKey;
use crate::path::stats::Spoken;
use crate::path::{Budget, Limits};

/// What a server has seen.
#[derive(Default)]
pub(super) struct Seen {
    connections: AtomicU32,
    pub(super) requests: AtomicU32,
    /// Streams that were reset under it.
    resets: AtomicU32,
    /// Bytes that it could send.
    sent: AtomicU64,
}

/// Tells the one stream that is to break off that it may.
static CUT: AtomicBool = AtomicBool::new(false);

/// A server on a thread of its own. By the path: `/echo` sends back body and trailers, `/flood` sends without end,
/// `/cut` breaks off behind the head, `/wait` never answers.
pub(super) fn peer(seen: &Arc<Seen>) -> SocketAddr {
    let (told, hear) = std::sync::mpsc::channel();
    let seen = seen.clone();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                seen.connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(socket, seen.clone()));
            }
        });
    });
    hear.recv().unwrap()
}

async fn serve(socket: TcpStream, seen: Arc<Seen>) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        seen.requests.fetch_add(1, SeqCst);
        let seen = seen.clone();
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let shown = Response::builder()
                .header("x-path", head.uri.path_and_query().unwrap().as_str())
                .header("x-authority", head.uri.authority().unwrap().as_str())
                .header("x-got", head.headers.get("x-a").map_or("", |value| value.to_str().unwrap()));
            let shown = shown.body(()).unwrap();
            match head.uri.path() {
                "/flood" => {
                    let mut to = respond.send_response(shown, false).unwrap();
                    loop {
                        to.reserve_capacity(16_384);
                        let room = std::future::poll_fn(|cx| to.poll_capacity(cx)).await;
                        let Some(Ok(room)) = room else { break };
                        if to.send_data(Bytes::from(vec![0; room]), false).is_err() {
                            break;
                        }
                        seen.sent.fetch_add(room as u64, SeqCst);
                    }
                    seen.resets.fetch_add(1, SeqCst);
                }
                "/cut" => {
                    let mut to = respond.send_response(shown, false).unwrap();
                    to.send_data("begun".into(), false).unwrap();
                    // Once the client has begun to read: a reset takes back what was not sent.
                    while !CUT.swap(false, SeqCst) {
                        tokio::task::yield_now().await;
                    }
                    to.send_reset(Reason::INTERNAL_ERROR);
                }
                "/wait" => {
                    let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    seen.resets.fetch_add(1, SeqCst);
                }
                _ => {
                    let got = all(&mut body).await.unwrap();
                    let trailers = body.trailers().await.unwrap();
                    let mut to = respond.send_response(shown, false).unwrap();
                    to.send_data(got.into(), trailers.is_none()).unwrap();
                    if let Some(trailers) = trailers {
                        to.send_trailers(trailers).unwrap();
                    }
                }
            }
        });
    }
}

async fn all(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut got = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        got.extend_from_slice(&piece);
    }
    Ok(got)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Does it with a connection to the rig, within a time.
pub(super) fn with<T>(rig: &Rig, work: impl AsyncFnOnce(SendRequest<Bytes>) -> T) -> T {
    runtime().block_on(async {
        let socket = TcpStream::connect(rig.out).await.unwrap();
        let (send, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let send = send.ready().await.unwrap();
        tokio::time::timeout(SOON, work(send)).await.expect("in time")
    })
}

pub(super) fn get(path: &str) -> Request<()> {
    Request::builder().uri(format!("http://shop{path}")).body(()).unwrap()
}

/// Head and body of a request without a body.
pub(super) async fn asked(
    send: &SendRequest<Bytes>,
    request: Request<()>,
) -> (http::response::Parts, Vec<u8>) {
    let mut send = send.clone().ready().await.unwrap();
    let (response, _) = send.send_request(request, true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    (head, all(&mut body).await.unwrap())
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn bodies_and_trailers_pass_both_ways_on_many_streams_of_one_connection() {
    let seen = Arc::new(Seen::default());
    let rig = Rig::http(&[peer(&seen)]);
    with(&rig, async |send| {
        let one = async |n: usize| {
            let mut send = send.clone().ready().await.unwrap();
            let (response, mut up) = send.send_request(get("/echo?x=1"), false).unwrap();
            let body = vec![n as u8; n * 1000];
            let mut rest = Bytes::from(body.clone());
            while !rest.is_empty() {
                up.reserve_capacity(rest.len());
                let room = std::future::poll_fn(|cx| up.poll_capacity(cx)).await.unwrap().unwrap();
                up.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            up.send_trailers(trailers).unwrap();
            let (head, mut down) = response.await.unwrap().into_parts();
            assert_eq!(header(&head.headers, "x-path"), "/echo?x=1");
            assert_eq!(header(&head.headers, "x-authority"), "shop");
            assert_eq!(all(&mut down).await.unwrap(), body);
            let trailers = down.trailers().await.unwrap().expect("trailers");
            assert_eq!(header(&trailers, "grpc-status"), "0");
        };
        futures_util::future::join_all((0..100).map(one)).await;
    });
    assert_eq!((seen.connections.load(SeqCst), seen.requests.load(SeqCst)), (1, 100));
    eventually("all were counted", || rig.counted(200, "") == 100);
}

#[test]
fn calls_of_grpc_are_counted_by_their_status() {
    let rig = Rig::http(&[peer(&Arc::default())]);
    with(&rig, async |mut send| {
        let call = Request::builder()
            .method("POST")
            .uri("http://shop/echo")
            .header("content-type", "application/grpc");
        let (response, mut up) = send.send_request(call.body(()).unwrap(), false).unwrap();
        up.send_data("12345".into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        up.send_trailers(trailers).unwrap();
        let (_, mut down) = response.await.unwrap().into_parts();
        assert_eq!(all(&mut down).await.unwrap(), b"12345");
    });
    eventually("it is counted", || {
        let stats = rig.proxy.stats();
        let is = |key: &RequestKey| (key.spoken, key.status, key.grpc) == (Spoken::Grpc, 200, 5);
        stats.requests.iter().any(|(key, series)| is(key) && (series.received, series.sent) == (5, 5))
    });
}

#[test]
fn routes_choose_edit_and_rewrite() {
    let seen = Arc::new(Seen::default());
    let line = |name: &str, value: &str| (name.into(), value.into());
    let edits = Edits {
        request: HeaderEdits::new(vec![line("x-a", "rule")], vec![], vec![]),
        response: HeaderEdits::new(vec![], vec![line("x-from", "rule")], vec![]),
    };
    let rewrite = Rewrite { host: Some("inside".into()), path: Some(PathEdit::prefix("/echo")) };
    let rule = RuleSpec {
        matches: vec![PathMatch::Prefix("/api".into()).into()],
        backends: vec![Backend { service: Some(2), weight: 1, edits: None }],
        edits,
        action: Some(Arc::new(Action { rewrite, ..Action::default() })),
    };
    let spec = RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules: vec![rule] };
    let services = vec![
        routed(service(1, Protocol::Http, &[]), RouteTable::new(&[spec])),
        service(2, Protocol::Http, &[peer(&seen)]),
    ];
    let rig = Rig::new(services, Limits::default(), Budget::default());
    with(&rig, async |send| {
        let (head, _) = asked(&send, get("/api/x?y")).await;
        assert_eq!(header(&head.headers, "x-path"), "/echo/x?y");
        assert_eq!(header(&head.headers, "x-authority"), "inside");
        assert_eq!((header(&head.headers, "x-got"), header(&head.headers, "x-from")), ("rule", "rule"));
        let (head, body) = asked(&send, get("/other")).await;
        assert_eq!((head.status.as_u16(), header(&head.headers, "x-mesh-reason")), (404, "no_route"));
        assert!(String::from_utf8_lossy(&body).contains("no route"));
        let grpc = Request::builder().uri("http://shop/other").header("content-type", "application/grpc");
        let (head, body) = asked(&send, grpc.body(()).unwrap()).await;
        assert_eq!((head.status.as_u16(), header(&head.headers, "grpc-status")), (200, "12"));
        assert!(body.is_empty() && !header(&head.headers, "grpc-message").is_empty());
    });
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_and_none_is_503() {
    let seen = Arc::new(Seen::default());
    let rig = Rig::http(&[nobody(), peer(&seen)]);
    with(&rig, async |send| {
        for _ in 0..6 {
            assert_eq!(asked(&send, get("/echo")).await.0.status, 200);
        }
    });
    assert!(rig.proxy.stats().counts.retried >= 2);
    let rig = Rig::http(&[nobody()]);
    with(&rig, async |send| {
        let (head, _) = asked(&send, get("/echo")).await;
        assert_eq!((head.status.as_u16(), header(&head.headers, "x-mesh-reason")), (503, "connect_refused"));
    });
}

#[test]
fn an_endpoint_that_speaks_no_http2_is_502() {
    let old = answering(|_| "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_owned());
    let rig = Rig::http(&[old]);
    with(&rig, async |send| {
        assert_eq!(asked(&send, get("/")).await.0.status, 502);
    });
}

#[test]
fn a_client_that_gives_up_ends_the_endpoints_stream() {
    let seen = Arc::new(Seen::default());
    let rig = Rig::http(&[peer(&seen)]);
    with(&rig, async |send| {
        let mut ready = send.clone().ready().await.unwrap();
        let (response, mut up) = ready.send_request(get("/wait"), false).unwrap();
        while seen.requests.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        up.send_reset(Reason::CANCEL);
        assert!(response.await.is_err());
        while seen.resets.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked(&send, get("/echo")).await.0.status, 200, "the connection goes on");
    });
    eventually("it was counted", || rig.counted(0, "client_gone") == 1);
}

#[test]
fn a_response_that_breaks_off_is_reset() {
    let seen = Arc::new(Seen::default());
    let rig = Rig::http(&[peer(&seen)]);
    with(&rig, async |send| {
        let mut ready = send.clone().ready().await.unwrap();
        let (response, _) = ready.send_request(get("/cut"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "begun");
        CUT.store(true, SeqCst);
        assert_eq!(all(&mut body).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    });
    eventually("it was counted", || rig.counted(200, "upstream_reset") == 1);
}

#[test]
fn a_reader_that_stalls_stops_its_sender_and_nobody_else() {
    let seen = Arc::new(Seen::default());
    let rig = Rig::http(&[peer(&seen)]);
    with(&rig, async |send| {
        let mut ready = send.clone().ready().await.unwrap();
        let (response, _) = ready.send_request(get("/flood"), true).unwrap();
        let stalled = response.await.unwrap();
        // Until nothing more can be sent.
        let mut before = u64::MAX;
        while before != seen.sent.load(SeqCst) || before == 0 {
            before = seen.sent.load(SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(before < 1 << 20, "{before} bytes wait");
        for _ in 0..20 {
            assert_eq!(asked(&send, get("/echo")).await.0.status, 200);
        }
        drop(stalled);
    });
    eventually("its sender is told", || seen.resets.load(SeqCst) == 1);
}

#[test]
fn a_preface_may_arrive_byte_by_byte_and_what_only_begins_like_it_is_http1() {
    let rig = Rig::http(&[named("a")]);
    let mut client = rig.connect();
    for byte in b"PRI * HTTP/1.1\r\n" {
        client.send([*byte]);
    }
    client.send("Host: shop\r\n\r\n");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 400"), "a method of nobody's, target no path");
    let seen = Arc::new(Seen::default());
    let rig = Rig::http(&[peer(&seen)]);
    let mut client = rig.connect();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        client.send([*byte]);
    }
    // SETTINGS of the proxy: its type, behind the length.
    assert_eq!(client.take(9)[3], 4);
}

#[test]
fn copies_take_bodies_with_them_and_nobody_waits_for_one() {
    let (seen, shadow) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    let rules = |mirror: u32| {
        let mirrors = vec![Mirror { service: Some(mirror), fraction: (1, 1) }];
        vec![RuleSpec {
            backends: vec![Backend { service: Some(2), weight: 1, edits: None }],
            action: Some(Arc::new(Action { mirrors, ..Action::default() })),
            ..RuleSpec::default()
        }]
    };
    let rig = |mirror: u32, copies: SocketAddr| {
        let rules = rules(mirror);
        let spec = RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules };
        let services = vec![
            routed(service(1, Protocol::Http, &[]), RouteTable::new(&[spec])),
            service(2, Protocol::Http, &[peer(&seen)]),
            service(3, Protocol::Http, &[copies]),
        ];
        Rig::new(services, Limits::default(), Budget::default())
    };
    let ask = async |send: &SendRequest<Bytes>, path: &str, size: usize| {
        let mut send = send.clone().ready().await.unwrap();
        let (response, mut up) = send.send_request(get(path), false).unwrap();
        let mut rest = Bytes::from(vec![7; size]);
        while !rest.is_empty() {
            up.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|cx| up.poll_capacity(cx)).await.unwrap().unwrap();
            up.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
        }
        up.send_data(Bytes::new(), true).unwrap();
        all(&mut response.await.unwrap().into_body()).await.unwrap().len()
    };
    let counts = |rig: &Rig| rig.proxy.stats().counts;
    let mirrored = rig(3, peer(&shadow));
    with(&mirrored, async |send| {
        for _ in 0..5 {
            assert_eq!(ask(&send, "/echo", 50_000).await, 50_000);
        }
        assert_eq!(asked(&send, get("/echo")).await.0.status, 200);
        while shadow.requests.load(SeqCst) < 6 {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!((counts(&mirrored).mirrored, counts(&mirrored).mirror_failed), (6, 0));
    // One that never takes a body: the request goes on without it.
    let deaf = rig(3, server(|mut client| drop(client.rest())));
    with(&deaf, async |send| assert_eq!(ask(&send, "/echo", 3_000_000).await, 3_000_000));
    // And one that is not there.
    let nowhere = rig(3, nobody());
    with(&nowhere, async |send| assert_eq!(ask(&send, "/echo", 10).await, 10));
    eventually("it is counted", || counts(&nowhere).mirror_failed == 1);
    let unknown = rig(9, nobody());
    with(&unknown, async |send| assert_eq!(ask(&send, "/echo", 10).await, 10));
    assert_eq!(counts(&unknown).mirror_skipped, 1);
}

#[test]
fn a_route_answers_in_the_form_that_its_client_speaks() {
    let direct =
        DirectResponse { status: 403, content_type: Some("text/plain".into()), body: "closed".into() };
    let rules = vec![RuleSpec {
        action: Some(Arc::new(Action { direct: Some(direct), ..Action::default() })),
        ..RuleSpec::default()
    }];
    let spec = RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules };
    let services = vec![routed(service(1, Protocol::Http, &[]), RouteTable::new(&[spec]))];
    let rig = Rig::new(services, Limits::default(), Budget::default());
    with(&rig, async |send| {
        let (head, body) = asked(&send, get("/")).await;
        assert_eq!((head.status.as_u16(), &body[..]), (403, &b"closed"[..]));
        let grpc = Request::builder().uri("http://shop/a.B/C").header("content-type", "application/grpc");
        let (head, body) = asked(&send, grpc.body(()).unwrap()).await;
        assert_eq!((head.status.as_u16(), header(&head.headers, "grpc-status")), (200, "7"));
        assert!(body.is_empty());
    });
}
