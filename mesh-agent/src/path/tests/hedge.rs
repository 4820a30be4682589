//! Slow requests that are sent to a second endpoint as well, of HTTP/1 and HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use http::Response;
use mesh_api::proto::v1::Protocol;
use mesh_core::resilience::Resilience;
use mesh_core::resilience::hedge::{FEW, Hedge, When};
use tokio::net::TcpListener;

use super::http2;
use super::rig::*;
use crate::path::{Budget, Limits};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n";
/// When a second request is sent.
const AFTER: Duration = Duration::from_millis(30);
/// What takes longer was not overtaken.
const LONG: Duration = Duration::from_secs(5);

fn rig(when: When, endpoints: &[SocketAddr]) -> Rig {
    let mut service = service(1, Protocol::Http, endpoints);
    let hedge = Some(Hedge { when, max_percent: 100 });
    service.resilience = Some(Arc::new(Resilience { hedge, ..Resilience::default() }));
    Rig::new(vec![service], Limits::default(), Budget::default())
}

/// A server that answers its first `quick` requests at once, and later ones after the test; how many it has got.
fn stalls_after(quick: u32, name: &'static str) -> (SocketAddr, Arc<AtomicU32>) {
    let got = Arc::new(AtomicU32::new(0));
    let seen = got.clone();
    let at = answering(move |_| {
        let end = Instant::now() + SOON;
        if seen.fetch_add(1, SeqCst) >= quick {
            while Instant::now() < end {
                std::thread::park_timeout(SOON);
            }
        }
        ok(name)
    });
    (at, got)
}

/// Sends so many requests on one connection and expects what it answers each time, soon.
fn all_answered(rig: &Rig, count: u32, by: &str) {
    let mut client = rig.connect();
    for number in 0..count {
        let begun = Instant::now();
        client.send(GET);
        let (head, body) = client.response();
        assert_eq!(body, by, "{number}: {head}");
        assert!(begun.elapsed() < LONG, "{number}: {:?}", begun.elapsed());
    }
}

fn counts(rig: &Rig) -> (u64, u64) {
    let counts = rig.proxy.stats().counts;
    (counts.hedged, counts.hedges_won)
}

fn nothing_is_left(rig: &Rig) {
    eventually("nothing is left", || rig.proxy.resilience().iter().all(|(_, seen)| seen.active == 0));
}

#[test]
fn a_slow_endpoint_is_overtaken_by_another() {
    let (slow, got) = stalls_after(0, "slow");
    let rig = rig(When::After(AFTER), &[slow, named("quick")]);
    all_answered(&rig, 20, "quick");
    let slow = u64::from(got.load(SeqCst));
    assert!(slow >= 5, "{slow} of 20 were its turn");
    let (sent, won) = counts(&rig);
    // On a machine that stands still the quick one may be slow as well.
    assert!(sent == slow && (5..=sent).contains(&won), "{won} of {sent}");
    assert_eq!(rig.counted(200, ""), 20, "each request is counted once");
    nothing_is_left(&rig);
}

#[test]
fn what_is_answered_in_time_is_sent_once() {
    let rig = rig(When::After(LONG), &[named("same"), named("same")]);
    all_answered(&rig, 50, "same");
    assert_eq!(counts(&rig), (0, 0));
    nothing_is_left(&rig);
}

#[test]
fn what_must_not_be_sent_twice_is_not() {
    let (slow, got) = stalls_after(0, "slow");
    let (other, asked) = stalls_after(0, "slow");
    let rig = rig(When::After(AFTER), &[slow, other]);
    let mut post = rig.connect();
    post.send(POST);
    eventually("it is there", || got.load(SeqCst) + asked.load(SeqCst) == 1);
    // A request that may be is, though it came later.
    let mut get = rig.connect();
    get.send(GET);
    eventually("the other is doubled", || got.load(SeqCst) + asked.load(SeqCst) == 3);
    assert_eq!(counts(&rig), (1, 0));
}

#[test]
fn a_failure_waits_for_the_other_and_two_are_told_once() {
    // It takes a request, and closes when it is told to.
    let close = Arc::new(AtomicU32::new(0));
    let told = close.clone();
    let breaks = move |mut client: Client| {
        let _ = client.head();
        let end = Instant::now() + SOON;
        while told.load(SeqCst) == 0 && Instant::now() < end {
            std::thread::yield_now();
        }
    };
    let broken = (server(breaks.clone()), server(breaks));
    let rig = rig(When::After(AFTER), &[broken.0, broken.1]);
    let mut client = rig.connect();
    client.send(GET);
    eventually("both have it", || counts(&rig).0 == 1);
    close.store(1, SeqCst);
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert_eq!(rig.counted(502, header(&head, "x-mesh-reason").unwrap()), 1);
    nothing_is_left(&rig);
}

#[test]
fn a_percentile_is_learnt_from_answers() {
    let (slow, _got) = stalls_after(FEW, "one");
    let rig = rig(When::Percentile(90), &[slow, named("one")]);
    // Half of them go to either: what is known is enough before it stalls.
    all_answered(&rig, 2 * FEW, "one");
    let before = counts(&rig).1;
    all_answered(&rig, 20, "one");
    assert!(counts(&rig).1 >= before + 5, "{before}, then {:?}", counts(&rig));
}

/// A server of HTTP/2 that never answers, or does; how many requests it has got.
fn http2_server(answers: bool) -> (SocketAddr, Arc<AtomicU32>) {
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
                let count = count.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    let mut held = Vec::new();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        count.fetch_add(1, SeqCst);
                        if answers {
                            respond.send_response(Response::new(()), true).unwrap();
                        } else {
                            held.push((request, respond));
                        }
                    }
                });
            }
        });
    });
    (hear.recv().unwrap(), got)
}

#[test]
fn a_stream_is_begun_a_second_time_where_its_endpoint_is_slow() {
    let (silent, asked) = http2_server(false);
    let (quick, _) = http2_server(true);
    let rig = rig(When::After(AFTER), &[silent, quick]);
    http2::with(&rig, async |send| {
        for number in 0..20 {
            let answer = tokio::time::timeout(LONG, http2::asked(&send, http2::get("/")));
            let answer = answer.await.unwrap_or_else(|_| panic!("{number}: {:?}", counts(&rig)));
            assert_eq!(answer.0.status, 200);
        }
    });
    let silent = u64::from(asked.load(SeqCst));
    assert!(silent >= 5, "{silent} of 20 were its turn");
    let (sent, won) = counts(&rig);
    assert!(sent == silent && (5..=sent).contains(&won), "{won} of {sent}");
    nothing_is_left(&rig);
}
