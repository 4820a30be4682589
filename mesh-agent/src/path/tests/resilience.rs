//! What policies ask for of requests: limits and the queue, breakers, ejections, rates, faults.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use mesh_api::proto::v1::Protocol;
use mesh_core::resilience::Resilience;
use mesh_core::resilience::admission::Limits as Requests;
use mesh_core::resilience::breaker::Breaking;
use mesh_core::resilience::fault::Fault;
use mesh_core::resilience::outlier::Outliers;
use mesh_core::resilience::rate::{By, Rate};
use mesh_core::snapshot::Ejection;

use super::http2;
use super::rig::*;
use crate::path::{Budget, Limits};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

/// Service 1 whose policy asks for this.
fn rig(asked: Resilience, endpoints: &[SocketAddr]) -> Rig {
    let mut service = service(1, Protocol::Http, endpoints);
    if asked.outliers.is_some() {
        let ejection = Ejection { failures: 5, base: Duration::from_secs(1), max_percent: 50 };
        service.traffic.ejection = Some(ejection);
    }
    service.resilience = Some(Arc::new(asked));
    Rig::new(vec![service], Limits::default(), Budget::default())
}

fn limits(requests: u32, per_endpoint: u32, pending: u32, wait: Duration) -> Resilience {
    Resilience { limits: Requests { requests, per_endpoint, pending, wait }, ..Resilience::default() }
}

/// A server that answers when it is told that it may, and how many requests it has got.
struct Slow {
    at: SocketAddr,
    got: Arc<AtomicU32>,
    may: Arc<AtomicU32>,
}

fn slow(name: &'static str) -> Slow {
    let (got, may) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (seen, allowed) = (got.clone(), may.clone());
    let at = answering(move |_| {
        let number = seen.fetch_add(1, SeqCst) + 1;
        let end = Instant::now() + SOON;
        while allowed.load(SeqCst) < number && Instant::now() < end {
            std::thread::yield_now();
        }
        ok(name)
    });
    Slow { at, got, may }
}

/// A server that answers with a status, and how many requests it has got.
fn failing(status: &'static str) -> (SocketAddr, Arc<AtomicU32>) {
    let got = Arc::new(AtomicU32::new(0));
    let seen = got.clone();
    let at = answering(move |_| {
        seen.fetch_add(1, SeqCst);
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    });
    (at, got)
}

/// Sends a request on a connection of its own.
fn begin(rig: &Rig) -> Client {
    let mut client = rig.connect();
    client.send(GET);
    client
}

#[track_caller]
fn refused(client: &mut Client, status: u16, reason: &str) -> String {
    let (head, _) = client.response();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    assert_eq!(header(&head, "x-mesh-reason"), Some(reason));
    head
}

fn waiting(rig: &Rig) -> (u32, u32) {
    rig.proxy.resilience().first().map_or((0, 0), |(_, seen)| (seen.active, seen.waiting))
}

#[test]
fn what_is_too_much_waits_and_what_is_too_much_for_that_is_refused() {
    let slow = slow("slow");
    let rig = rig(limits(1, 0, 2, Duration::from_secs(20)), &[slow.at]);
    let mut first = begin(&rig);
    eventually("it is in flight", || slow.got.load(SeqCst) == 1);
    let mut second = begin(&rig);
    eventually("the second waits", || waiting(&rig) == (1, 1));
    let mut third = begin(&rig);
    eventually("the third waits", || waiting(&rig) == (1, 2));
    refused(&mut begin(&rig), 503, "queue_full");
    assert_eq!((rig.counted(503, "queue_full"), slow.got.load(SeqCst)), (1, 1));
    slow.may.store(1, SeqCst);
    assert_eq!(first.response().1, "slow");
    eventually("the next has its turn", || slow.got.load(SeqCst) == 2 && waiting(&rig) == (1, 1));
    slow.may.store(9, SeqCst);
    assert_eq!((second.response().1, third.response().1), ("slow".to_owned(), "slow".to_owned()));
    eventually("nothing is left", || waiting(&rig) == (0, 0));
}

#[test]
fn who_waits_too_long_or_gives_up_is_out_of_the_line() {
    let slow = slow("slow");
    let rig = rig(limits(1, 0, 9, Duration::from_millis(60)), &[slow.at]);
    let mut first = begin(&rig);
    eventually("it is in flight", || slow.got.load(SeqCst) == 1);
    let begun = Instant::now();
    refused(&mut begin(&rig), 503, "queue_timeout");
    assert!(begun.elapsed() >= Duration::from_millis(60));
    eventually("nobody waits", || waiting(&rig) == (1, 0));
    slow.may.store(9, SeqCst);
    assert_eq!(first.response().1, "slow");
    assert_eq!(begin(&rig).response().1, "slow");
    let none = self::rig(limits(1, 0, 0, Duration::ZERO), &[slow.at]);
    slow.may.store(slow.got.load(SeqCst), SeqCst);
    let mut held = begin(&none);
    eventually("it is in flight", || waiting(&none) == (1, 0));
    refused(&mut begin(&none), 503, "limit_requests");
    slow.may.store(99, SeqCst);
    held.response();
}

#[test]
fn an_endpoint_that_is_busy_is_passed_over() {
    let slow = slow("slow");
    let rig = rig(limits(0, 1, 1, Duration::from_secs(20)), &[slow.at, named("quick")]);
    let mut held = loop {
        let client = begin(&rig);
        let before = slow.got.load(SeqCst);
        if before == 0 {
            // Its turn comes within two requests; the other one answers at once.
            client.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut byte = [0; 1];
            if client.socket.peek(&mut byte).is_err() {
                client.socket.set_read_timeout(Some(SOON)).unwrap();
                break client;
            }
        }
    };
    for _ in 0..20 {
        assert_eq!(begin(&rig).response().1, "quick");
    }
    slow.may.store(99, SeqCst);
    assert_eq!(held.response().1, "slow");
}

fn breaking(service: bool) -> Resilience {
    let breaking = Breaking {
        service,
        in_a_row: 3,
        percent: 0,
        least: 1,
        open_for: Duration::from_secs(60),
        most: Duration::from_secs(60),
    };
    Resilience { breaking: Some(breaking), ..Resilience::default() }
}

#[test]
fn an_endpoint_whose_breaker_is_open_gets_nothing() {
    let (bad, got) = failing("500 Broken");
    let rig = rig(breaking(false), &[bad, named("good")]);
    let mut client = rig.connect();
    let statuses: Vec<bool> = (0..40)
        .map(|_| {
            client.send(GET);
            client.response().0.starts_with("HTTP/1.1 200")
        })
        .collect();
    assert_eq!(got.load(SeqCst), 3, "{statuses:?}");
    assert!(statuses[8..].iter().all(|good| *good), "{statuses:?}");
    let seen = rig.proxy.resilience();
    assert_eq!((seen[0].1.open, seen[0].1.opened, seen[0].1.active), (1, 1, 0));
}

#[test]
fn a_service_whose_breaker_is_open_is_refused_at_once() {
    let (bad, got) = failing("503 Broken");
    let rig = rig(breaking(true), &[bad]);
    let mut client = rig.connect();
    for _ in 0..3 {
        client.send(GET);
        assert!(client.response().0.starts_with("HTTP/1.1 503"));
    }
    let before = got.load(SeqCst);
    for _ in 0..5 {
        client.send(GET);
        refused(&mut client, 503, "breaker_open");
    }
    assert_eq!((got.load(SeqCst), rig.counted(503, "breaker_open")), (before, 5));
    // All endpoints' breakers are open: the same.
    let (bad, got) = failing("503 Broken");
    let each = self::rig(breaking(false), &[bad]);
    let mut client = each.connect();
    for _ in 0..3 {
        client.send(GET);
        client.response();
    }
    client.send(GET);
    refused(&mut client, 503, "breaker_open");
    assert_eq!(got.load(SeqCst), 3);
}

#[test]
fn an_endpoint_is_left_out_for_what_it_answers() {
    let (bad, got) = failing("502 Broken");
    let outliers = Outliers { bad: 0, gateway: 3, rate: None, base: Duration::from_secs(30) };
    let asked = Resilience { outliers: Some(outliers), ..Resilience::default() };
    let rig = rig(asked, &[named("a"), bad, named("b")]);
    let mut client = rig.connect();
    for _ in 0..30 {
        client.send(GET);
        client.response();
    }
    assert_eq!(got.load(SeqCst), 3);
    assert_eq!(*rig.fake.ejected.lock(), [(2, 0)].into());
    // It is back, and fails again: what was sent before says nothing of it.
    rig.fake.ejected.lock().clear();
    for _ in 0..30 {
        client.send(GET);
        client.response();
    }
    assert_eq!((got.load(SeqCst), rig.fake.ejected.lock().get(&2)), (6, Some(&1)));
}

#[test]
fn a_workload_of_this_node_is_asked_as_often_as_it_may_be() {
    let rate = |requests, burst, by| Rate::new(requests, Duration::from_secs(600), burst, by);
    let header = By::Header("x-key".into());
    let rates = [rate(1000, 100, By::Source), rate(10, 2, header)].into();
    let rig = rig(Resilience { rates, ..Resilience::default() }, &[named("a")]);
    // Who is called is a workload of this node.
    let mut client = rig.connect();
    let mut ask = |key: &str| {
        client.send(format!("GET / HTTP/1.1\r\nHost: shop\r\nX-Key: {key}\r\n\r\n"));
        client.response().0
    };
    for key in ["a", "a", "b", "b"] {
        assert!(ask(key).starts_with("HTTP/1.1 200"));
    }
    let head = ask("a");
    assert!(head.starts_with("HTTP/1.1 429 Too Many Requests"), "{head}");
    let after: u32 = header_of(&head, "retry-after").parse().unwrap();
    assert!((1..=60).contains(&after), "{after}");
    assert_eq!(header_of(&head, "x-mesh-reason"), "rate_limited");
    assert!(ask("c").starts_with("HTTP/1.1 200"), "the connection goes on");
    assert_eq!(rig.counted(429, "rate_limited"), 1);
}

fn header_of<'h>(head: &'h str, name: &str) -> &'h str {
    header(head, name).unwrap_or_else(|| panic!("no {name}: {head}"))
}

#[test]
fn faults_are_as_the_policy_wants_them() {
    let fault =
        Fault { delay: Some((100, Duration::from_millis(80))), abort: Some((100, 418)), ..Fault::default() };
    let rig = rig(Resilience { fault: Some(fault), ..Resilience::default() }, &[named("a")]);
    let begun = Instant::now();
    refused(&mut begin(&rig), 418, "fault_abort");
    assert!(begun.elapsed() >= Duration::from_millis(80));
    let late = Fault { delay: Some((100, Duration::from_millis(80))), ..Fault::default() };
    let rig = self::rig(Resilience { fault: Some(late), ..Resilience::default() }, &[named("a")]);
    let begun = Instant::now();
    assert_eq!(begin(&rig).response().1, "a");
    assert!(begun.elapsed() >= Duration::from_millis(80));
}

#[test]
fn streams_of_http2_obey_the_same_rules() {
    let seen = Arc::new(http2::Seen::default());
    let peer = http2::peer(&seen);
    let busy = rig(limits(1, 0, 0, Duration::ZERO), &[peer]);
    let reason = |head: &http::response::Parts| head.headers["x-mesh-reason"].to_str().unwrap().to_owned();
    http2::with(&busy, async |send| {
        let mut held = send.clone().ready().await.unwrap();
        let (_wait, _) = held.send_request(http2::get("/wait"), true).unwrap();
        while seen.requests.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let (head, _) = http2::asked(&send, http2::get("/x")).await;
        assert_eq!((head.status.as_u16(), reason(&head)), (503, "limit_requests".to_owned()));
    });
    let rates = [Rate::new(1, Duration::from_secs(60), 1, By::All)].into();
    let few = rig(Resilience { rates, ..Resilience::default() }, &[peer]);
    http2::with(&few, async |send| {
        assert_eq!(http2::asked(&send, http2::get("/x")).await.0.status, 200);
        let (head, _) = http2::asked(&send, http2::get("/x")).await;
        assert_eq!((head.status.as_u16(), head.headers["retry-after"].to_str().unwrap()), (429, "60"));
    });
    let broken = rig(breaking(true), &[peer]);
    http2::with(&broken, async |send| {
        for _ in 0..3 {
            // What is sent back are trailers that say: unavailable.
            let mut send = send.clone().ready().await.unwrap();
            let (response, mut up) = send.send_request(http2::get("/x"), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", 14.into());
            up.send_trailers(trailers).unwrap();
            let mut body = response.await.unwrap().into_body();
            while let Some(piece) = body.data().await {
                drop(piece.unwrap());
            }
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "14");
        }
        let (head, _) = http2::asked(&send, http2::get("/x")).await;
        assert_eq!((head.status.as_u16(), reason(&head)), (503, "breaker_open".to_owned()));
    });
}

/// Requests that come and go on both workers leave nothing behind.
#[test]
fn many_at_once_leave_nothing_behind() {
    let asked = Resilience { limits: limits(4, 2, 64, Duration::from_secs(20)).limits, ..breaking(false) };
    let most = Arc::new(AtomicU32::new(0));
    let server = |most: Arc<AtomicU32>, now: Arc<AtomicU32>| {
        answering(move |_| {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            let end = Instant::now() + Duration::from_micros(300);
            while Instant::now() < end {
                std::thread::yield_now();
            }
            now.fetch_sub(1, SeqCst);
            ok("x")
        })
    };
    let endpoints: Vec<SocketAddr> = (0..3).map(|_| server(most.clone(), Arc::default())).collect();
    let rig = rig(asked, &endpoints);
    let failed = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..16 {
            threads.spawn(|| {
                let mut client = rig.connect();
                for _ in 0..40 {
                    client.send(GET);
                    let (head, _) = client.response();
                    if !head.starts_with("HTTP/1.1 200") {
                        failed.store(true, SeqCst);
                    }
                }
            });
        }
    });
    assert!(!failed.load(SeqCst));
    assert!(most.load(SeqCst) <= 2, "{most:?} at one endpoint");
    eventually("nothing is in flight", || waiting(&rig) == (0, 0));
}
