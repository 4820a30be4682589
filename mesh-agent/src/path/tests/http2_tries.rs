//! Requests of HTTP/2 that are tried again, as a route asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Response;
use mesh_api::proto::v1::Protocol;
use mesh_core::route::{Action, Backend, PathMatch, Retry, RouteSpec, RouteTable, RuleSpec};
use tokio::net::TcpListener;

use super::http2;
use super::rig::*;
use crate::path::{Budget, Limits};

/// What a server makes of a request, told its body.
type Answer = fn(&[u8]) -> Option<Response<()>>;

/// A server on a thread of its own, and how many requests it has got. `None`: it resets the stream.
fn server_of(answer: Answer) -> (std::net::SocketAddr, Arc<AtomicU32>) {
    let (told, hear) = std::sync::mpsc::channel();
    let got = Arc::new(AtomicU32::new(0));
    let count = got.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(socket, answer, count.clone()));
            }
        });
    });
    (hear.recv().unwrap(), got)
}

async fn serve(socket: tokio::net::TcpStream, answer: Answer, count: Arc<AtomicU32>) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        count.fetch_add(1, SeqCst);
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut got = Vec::new();
            while let Some(Ok(piece)) = body.data().await {
                let _ = body.flow_control().release_capacity(piece.len());
                got.extend_from_slice(&piece);
            }
            match answer(&got) {
                Some(head) => drop(respond.send_response(head, true)),
                None => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            }
        });
    }
}

fn head(status: u16, name: &'static str, value: String) -> Option<Response<()>> {
    Some(Response::builder().status(status).header(name, value).body(()).unwrap())
}

fn fine(body: &[u8]) -> Option<Response<()>> {
    head(200, "x-length", body.len().to_string())
}

/// Service 2 behind service 1, with this policy of tries.
fn rig(codes: &[u16], endpoints: &[std::net::SocketAddr]) -> Rig {
    let retry = Retry { codes: codes.into(), attempts: 2, backoff: Duration::from_millis(1) };
    let rule = RuleSpec {
        matches: vec![PathMatch::Prefix("/".to_owned()).into()],
        backends: vec![Backend { service: Some(2), weight: 1, edits: None }],
        action: Some(Arc::new(Action { retry: Some(retry), ..Action::default() })),
        ..RuleSpec::default()
    };
    let spec = RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules: vec![rule] };
    let services = vec![
        routed(service(1, Protocol::Http, &[]), RouteTable::new(&[spec])),
        service(2, Protocol::Http, endpoints),
    ];
    Rig::new(services, Limits::default(), Budget::default())
}

/// Sends a body of this length in two pieces; the head of the answer.
async fn post(send: &SendRequest<Bytes>, length: usize) -> http::response::Parts {
    let mut send = send.clone().ready().await.unwrap();
    let (response, mut up) = send.send_request(http2::get("/x"), false).unwrap();
    let half = length / 2;
    for (part, last) in [(half, false), (length - half, true)] {
        let mut left = part;
        while left > 0 {
            up.reserve_capacity(left);
            let Some(Ok(room)) = std::future::poll_fn(|cx| up.poll_capacity(cx)).await else { break };
            let now = room.min(left);
            left -= now;
            if up.send_data(vec![b'x'; now].into(), last && left == 0).is_err() {
                break;
            }
        }
    }
    response.await.unwrap().into_parts().0
}

#[test]
fn what_the_route_names_is_tried_elsewhere_with_its_body() {
    let (busy, asked) = server_of(|_| head(503, "x-busy", "yes".to_owned()));
    let (unavailable, refused) = server_of(|_| head(200, "grpc-status", "14".to_owned()));
    let (broken, reset) = server_of(|_| None);
    let (good, _) = server_of(fine);
    for (bad, count, code) in [(busy, asked, 503), (unavailable, refused, 503), (broken, reset, 502)] {
        let rig = rig(&[code], &[bad, good]);
        http2::with(&rig, async |send| {
            for _ in 0..10 {
                let head = post(&send, 10_001).await;
                assert_eq!(
                    (head.status.as_u16(), &*head.headers["x-length"].as_bytes()),
                    (200, &b"10001"[..])
                );
            }
        });
        let tried = count.load(SeqCst);
        assert!(tried >= 3, "{tried}");
        assert_eq!(rig.proxy.stats().counts.retried, u64::from(tried));
    }
}

#[test]
fn tries_end_and_what_is_too_long_is_not_kept() {
    let (busy, asked) = server_of(|_| head(503, "x-busy", "yes".to_owned()));
    let rig = rig(&[503], &[busy]);
    http2::with(&rig, async |send| {
        assert_eq!(post(&send, 10).await.status, 503);
        assert_eq!(asked.swap(0, SeqCst), 3);
        assert_eq!(post(&send, 100_000).await.status, 503);
        assert_eq!(asked.swap(0, SeqCst), 1, "more than is kept");
        assert_eq!(post(&send, 10).await.headers["x-busy"], "yes", "nothing is held of the others");
        assert_eq!(asked.swap(0, SeqCst), 3);
    });
    let (patient, asked) = server_of(|_| head(503, "retry-after", "9".to_owned()));
    let rig = self::rig(&[503], &[patient]);
    http2::with(&rig, async |send| assert_eq!(post(&send, 10).await.headers["retry-after"], "9"));
    assert_eq!(asked.load(SeqCst), 1, "who is told to wait is told");
}

/// Many uploads at once, each kept: none waits for another's answer.
#[test]
fn bodies_that_are_kept_do_not_stop_each_other() {
    let (good, _) = server_of(fine);
    let rig = rig(&[503], &[good]);
    http2::with(&rig, async |send| {
        let all: Vec<_> = (0..40).map(|_| post(&send, 60_000)).collect();
        for head in futures_all(all).await {
            assert_eq!(head.headers["x-length"], "60000");
        }
    });
}

/// All of them at once.
async fn futures_all<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|cx| {
        for (one, done) in &mut all {
            if done.is_none()
                && let std::task::Poll::Ready(got) = one.as_mut().poll(cx)
            {
                *done = Some(got);
            }
        }
        if all.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    all.into_iter().filter_map(|(_, done)| done).collect()
}
