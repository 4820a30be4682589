//! Ports that do not say what is spoken on them.

use std::time::{Duration, Instant};

use mesh_api::proto::v1::Protocol;

use super::rig::*;
use crate::path::{Budget, Limits};

fn rig(endpoints: &[std::net::SocketAddr]) -> Rig {
    Rig::new(vec![service(1, Protocol::Auto, endpoints)], Limits::default(), Budget::default())
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_and_remembered() {
    let greeting = server(|mut client| {
        client.send("220 ready\r\n");
        let said = client.take(6);
        client.send(said);
        client.rest();
    });
    let rig = rig(&[greeting]);
    for round in 0..3 {
        let begun = Instant::now();
        let mut client = rig.connect();
        assert_eq!(client.take(11), b"220 ready\r\n");
        assert!(begun.elapsed() < Duration::from_millis(90), "{round}: {:?}", begun.elapsed());
        client.send("QUIT\r\n");
        assert_eq!(client.take(6), b"QUIT\r\n");
    }
    let counts = rig.proxy.stats().counts;
    // Each of two workers finds out for itself.
    assert_eq!(counts.detected_server_first + counts.detected_remembered, 3);
    assert!(counts.detected_server_first <= 2 && counts.detected_remembered >= 1);
}

#[test]
fn http_is_balanced_by_requests_and_all_else_is_passed_on() {
    let either = || {
        server(|mut client| {
            // HTTP, or five bytes.
            while let Some(head) = client.head() {
                client.send(ok(if head.starts_with("GET") { "http" } else { "bytes" }));
            }
        })
    };
    let rig = rig(&[either(), either()]);
    let mut client = rig.connect();
    for _ in 0..4 {
        assert_eq!(client.get("/"), "http");
    }
    eventually("requests are counted", || rig.counted(200, "") == 4);
    let mut client = rig.connect();
    client.send("*1\r\n\r\n");
    assert_eq!(client.response().1, "bytes");
    drop(client);
    // One that takes its time to say what it is.
    let mut client = rig.connect();
    client.send("GE");
    std::thread::park_timeout(Duration::from_millis(20));
    client.send("T / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().1, "http");
    let counts = rig.proxy.stats().counts;
    assert_eq!((counts.detected_http1, counts.detected_opaque), (2, 1));
}

#[test]
fn a_silent_client_reaches_a_silent_server_in_time() {
    let shy = server(|mut client| {
        let said = client.take(2);
        client.send(said);
        client.rest();
    });
    let rig = rig(&[shy]);
    let mut client = rig.connect();
    eventually("it is given up on", || rig.proxy.stats().counts.detected_silent == 1);
    client.send("hi");
    assert_eq!(client.take(2), b"hi");
}

#[test]
fn a_request_line_is_waited_for_where_it_can_be_nothing_else() {
    let rig = rig(&[named("late")]);
    let mut client = rig.connect();
    client.send("GET /");
    std::thread::park_timeout(Duration::from_millis(250));
    client.send(" HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().1, "late");
    assert_eq!(rig.proxy.stats().counts.detected_http1, 1);
}

#[test]
fn http2_is_found_as_well() {
    let rig = rig(&[named("old")]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(rig.out).await.unwrap();
        let (mut send, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::builder().uri("http://shop/").body(()).unwrap();
        send.send_request(request, true).unwrap().0.await.unwrap().status().as_u16()
    });
    assert_eq!((status, rig.proxy.stats().counts.detected_http2), (502, 1), "its endpoint speaks HTTP/1");
}
