//! Bodies: large, chunked, early, cut, upgraded, and slow to be read.

use std::sync::Arc;
use std::sync::mpsc;

use super::rig::*;

/// More than the buffers of three sockets hold.
const LENGTH: usize = 64 << 20;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn large_bodies_both_ways() {
    let backend = server(|mut client| {
        while let Some(head) = client.head() {
            let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
            let body = client.take(length);
            client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            client.send(body);
        }
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    for length in [1, 100, 2_000, 16_384, 32_768, 100 * 1024, 3 << 20] {
        let body = pattern(length);
        client.send(format!("PUT / HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n"));
        let mut writer = client.socket.try_clone().unwrap();
        let sent = body.clone();
        let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &sent));
        let head = client.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(client.take(length) == body, "{length} bytes came back changed");
        sender.join().unwrap().unwrap();
    }
}

#[test]
fn chunks_pass_as_they_are() {
    let backend = server(|mut client| {
        while let Some(head) = client.head() {
            assert_eq!(header(&head, "transfer-encoding"), Some("chunked"));
            let mut seen = Vec::new();
            while !seen.ends_with(b"0\r\nA: b\r\n\r\n") {
                seen.extend(client.take(1));
            }
            client.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send(seen);
        }
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    let body = [&b"5\r\nhello\r\n"[..], b"10000\r\n", &pattern(65_536), b"\r\n0\r\nA: b\r\n\r\n"].concat();
    for split in [1, 7, 1000, 70_000] {
        client.send("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(&body[..split.min(body.len())]);
        client.send(&body[split.min(body.len())..]);
        client.head().unwrap();
        assert!(client.take(body.len()) == body, "split at {split}");
    }
}

#[test]
fn a_client_that_expects_100_gets_the_endpoints() {
    let backend = server(|mut client| {
        let head = client.head().unwrap();
        assert_eq!(header(&head, "expect"), Some("100-continue"));
        client.send("HTTP/1.1 100 Continue\r\n\r\n");
        client.take(5);
        client.send(ok("thanks"));
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 100"));
    client.send("hello");
    assert_eq!(client.response().1, "thanks");
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let backend = server(|mut client| {
        client.head();
        client.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
        client.rest();
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\nabc");
    let (head, body) = client.response();
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    assert_eq!((header(&head, "connection"), body.as_str()), (Some("close"), "no"));
    assert!(client.rest().is_empty());
}

#[test]
fn an_early_answer_waits_for_a_client_that_sends_all_before_it_looks() {
    const BODY: usize = 16 << 20;
    let backend = server(|mut client| {
        client.head();
        client.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
        client.rest();
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {BODY}\r\n\r\n"));
    client.send("m".repeat(BODY));
    let (head, body) = client.response();
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    assert_eq!(body, "no");
}

#[test]
fn a_response_cut_short_is_a_reset_and_not_an_end() {
    let backend = server(|mut client| {
        client.head();
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert!(client.is_reset());
    eventually("counted", || rig.counted(200, "upstream_closed") == 1);
}

#[test]
fn an_endpoint_that_resets_before_it_answers_is_a_502() {
    let backend = server(|mut client| {
        client.head();
        client.reset();
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(header(&head, "x-mesh-reason"), Some("upstream_reset"));
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    let backend = server(|mut client| {
        client.head();
        client.send(ok("still HTTP"));
        let head = client.head().unwrap();
        assert_eq!(header(&head, "upgrade"), Some("websocket"));
        client
            .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhi");
        let mut said = client.take(4);
        said.extend(client.take(200_000));
        client.send(said);
        client.rest();
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    // The tunnel begins on a reused connection.
    assert_eq!(client.get("/"), "still HTTP");
    client.send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(client.take(2), b"hi");
    client.send([0xff, 0x00, b'\r', b'\n']);
    client.send(pattern(200_000));
    assert_eq!(client.take(4), [0xff, 0x00, b'\r', b'\n']);
    assert!(client.take(200_000) == pattern(200_000));
}

#[test]
fn a_client_that_leaves_stops_the_endpoints_work() {
    let (told, hear) = mpsc::channel();
    let told = Arc::new(parking_lot::Mutex::new(told));
    let backend = server(move |mut client| {
        client.head();
        let _ = told.lock().send("asked");
        client.rest();
        let _ = told.lock().send("ended");
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(hear.recv_timeout(SOON), Ok("asked"));
    client.reset();
    assert_eq!(hear.recv_timeout(SOON), Ok("ended"));
    eventually("counted", || rig.counted(0, "client_gone") == 1);
}

#[test]
fn a_slow_reader_stops_its_sender() {
    let (told, hear) = mpsc::channel();
    let told = Arc::new(parking_lot::Mutex::new(told));
    let backend = server(move |mut client| {
        client.head();
        client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        let chunk = vec![7; 65_536];
        let mut sent = 0;
        client.socket.set_write_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        while sent < LENGTH {
            match std::io::Write::write(&mut client.socket, &chunk) {
                Ok(n) => sent += n,
                Err(_) => break,
            }
        }
        let _ = told.lock().send(sent);
    });
    let rig = Rig::http(&[backend]);
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    client.head().unwrap();
    let sent = hear.recv_timeout(SOON).unwrap();
    assert!(sent < LENGTH / 2, "the sender was not stopped: {sent} bytes");
}
