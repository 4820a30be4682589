//! The lives of tunnels.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

use mesh_api::proto::v1::Protocol;
use mesh_core::error::ProxyError;
use mesh_core::snapshot::Workload;
use mesh_identity::maker::Leaf;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::super::tests::rig::{CALLER, Client, Rig, header, ok, service, workload};
use super::super::super::{Budget, Limits};
use super::super::STREAMS_OUT;
use super::super::stats::Role;
use super::rig::*;

/// Says one byte and waits for the end.
fn hello(mut socket: TcpStream) {
    let _ = socket.write_all(b"x");
    let _ = socket.read_to_end(&mut Vec::new());
}

#[test]
fn connections_share_a_tunnel_until_it_is_full() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), each(hello));
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let port = called.application.port();
        // All at once: one handshake, for which the others wait.
        let all = (0..STREAMS_OUT).map(|_| caller.open(called.via(port)));
        let mut streams = futures_util::future::join_all(all).await;
        assert!(streams.iter().all(Result::is_ok));
        assert_eq!((caller.counts().tunnels, caller.counts().streams), ([1, 0], [STREAMS_OUT as i64, 0]));
        streams.push(caller.open(called.via(port)).await);
        assert_eq!(caller.counts().tunnels, [2, 0]);
        drop(streams);
        caller.eventually("all have gone", |counts| counts.streams == [0, 0]).await;
        // Another identity expected is another tunnel, and another peer is there.
        let other = caller.open(called.via_as(port, PAY)).await;
        assert_eq!(other.err(), Some(ProxyError::TlsWrongIdentity));
    });
}

#[test]
fn a_tunnel_that_has_ended_is_dialled_again() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), each(hello));
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let via = called.via(called.application.port());
        let mut stream = caller.open(via.clone()).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        // The far end lets go of everything, as a workload that leaves does.
        called.proxy.remove_workload(CALLER);
        assert_eq!(rest(&mut stream).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        caller.eventually("seen here", |counts| counts.tunnels == [0, 0]).await;
        assert_eq!(caller.open(via).await.err(), Some(ProxyError::ConnectRefused));
    });
}

#[test]
fn an_agent_that_drains_lets_streams_end_and_takes_no_more() {
    let root = authority();
    let (go, wait) = channel();
    let wait = Mutex::new(wait);
    let called = Called::new(
        &root,
        Limits::default(),
        each(move |mut socket| {
            socket.write_all(b"x").unwrap();
            wait.lock().recv_timeout(SOON).unwrap();
            socket.write_all(b"last words").unwrap();
        }),
    );
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let via = called.via(called.application.port());
        let mut stream = caller.open(via.clone()).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        let proxy = called.proxy.clone();
        let drained = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(proxy.drain(SOON));
        });
        // The tunnel takes no more; what comes goes over another one, for the listener is still there.
        let end = std::time::Instant::now() + SOON;
        while caller.counts().tunnels == [1, 0] && std::time::Instant::now() < end {
            drop(caller.open(via.clone()).await);
        }
        assert_eq!(caller.counts().handshakes, [(Role::Client, "ok", "", 2)]);
        go.send(()).unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), b"last words");
        drop(stream);
        drop(go);
        drained.join().unwrap();
    });
}

/// Passes bytes on to a tunnel's port until it is told to be silent.
fn relay(to: std::net::SocketAddr) -> (std::net::SocketAddr, Arc<Mutex<bool>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, silent) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(false)));
    let told = silent.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (near, far) = (socket.unwrap(), TcpStream::connect(to).unwrap());
            for (mut from, mut into) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                let silent = told.clone();
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 65_536];
                    while let Ok(n) = from.read(&mut bytes) {
                        if n == 0 {
                            break;
                        }
                        if !*silent.lock() && into.write_all(&bytes[..n]).is_err() {
                            break;
                        }
                    }
                    std::mem::forget(into);
                });
            }
        }
    });
    (at, silent)
}

#[test]
fn a_peer_that_goes_without_a_word_is_noticed() {
    let limits =
        Limits { ping: (Duration::from_millis(100), Duration::from_millis(300)), ..Limits::default() };
    let root = authority();
    let called = Called::new(&root, limits.clone(), each(hello));
    let (at, silent) = relay((called.ip, 15_008).into());
    Caller::run(FakeKeys::new(&root, PAY), limits, async |caller| {
        let mut via = called.via(called.application.port());
        via.address = at;
        let mut stream = caller.open(via).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        // PINGs are answered for a while.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(caller.counts().tunnels, [1, 0]);
        *silent.lock() = true;
        assert_eq!(rest(&mut stream).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(caller.counts().tunnels, [0, 0]);
    });
    called.eventually("noticed there too", |counts| counts.tunnels == [0, 0]);
}

#[test]
fn a_peer_whose_certificate_is_revoked_loses_its_tunnel() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), each(hello));
    let keys = FakeKeys::new(&root, PAY);
    let mut leaf = Leaf::of(PAY, SystemTime::now());
    leaf.serial = 9;
    keys.show(&root, &leaf);
    Caller::run(keys.clone(), Limits::default(), async |caller| {
        let via = called.via(called.application.port());
        let mut stream = caller.open(via.clone()).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        // A new bundle that says nothing of it changes nothing.
        let mut bundle = root.bundle("mesh.local");
        bundle.revoked.push(root.revoke(&[8], SystemTime::now()));
        *called.keys.bundle.lock() = Some(Arc::new(bundle.clone()));
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(caller.counts().tunnels, [1, 0]);
        bundle.revoked = vec![root.revoke(&[8, 9], SystemTime::now())];
        *called.keys.bundle.lock() = Some(Arc::new(bundle));
        assert_eq!(rest(&mut stream).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(caller.open(via).await.err(), Some(ProxyError::TlsRefusedByPeer));
    });
}

#[test]
fn a_tunnel_that_carries_nothing_is_closed() {
    let limits = Limits { tunnel_idle: Duration::from_secs(1), ..Limits::default() };
    let root = authority();
    let called = Called::new(&root, Limits::default(), each(hello));
    Caller::run(FakeKeys::new(&root, PAY), limits, async |caller| {
        let stream = caller.open(called.via(called.application.port())).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(caller.counts().tunnels, [1, 0], "it is in use");
        drop(stream);
        caller.eventually("closed", |counts| counts.tunnels == [0, 0]).await;
    });
    called.eventually("there too", |counts| counts.tunnels == [0, 0]);
}

#[test]
fn http_of_a_port_that_asks_for_it_goes_through_the_http_path() {
    let root = authority();
    let serve = each(|mut socket| {
        let mut request = vec![0; 4096];
        while socket.read(&mut request).is_ok_and(|n| n > 0) {
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").unwrap();
        }
    });
    let called = Called::speaking(Protocol::Http, &root, Limits::default(), serve);
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"done") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
            }
        }
    });
    // Requests were seen as such, and went over the one connection that the CONNECT had opened.
    let counts = called.proxy.stats().counts;
    assert_eq!((counts.requests, counts.upstream_opened), (2, 1));
}

/// The calling side as a whole proxy, whose service 1 has the called workload behind it, on another node.
fn calling(called: &Called, keys: Arc<FakeKeys>, protocol: Protocol) -> Rig {
    let service = service(1, protocol, &[called.application]);
    let rig = Rig::with_keys(vec![service], Limits::default(), Budget::default(), keys);
    rig.change(|snapshot| {
        snapshot.trust_domain = "mesh.local".into();
        let mut pay = workload(CALLER, called.application, protocol);
        pay.service_account = "pay".into();
        let cart = Workload { id: 1, service_account: "cart".into(), local: false, ..pay.clone() };
        snapshot.workloads.insert(CALLER, Arc::new(pay));
        snapshot.workloads.insert(1, Arc::new(cart));
        let mut service = snapshot.services.get(&1).unwrap().as_ref().clone();
        let mut endpoint = service.endpoints[0].clone();
        (endpoint.v4, endpoint.local, endpoint.tunnel) = (Some(called.ip), false, true);
        service.endpoints = [endpoint].into();
        snapshot.services.insert(1, Arc::new(service));
    });
    rig
}

#[test]
fn captured_connections_go_through_tunnels() {
    let root = authority();
    let called = Called::new(
        &root,
        Limits::default(),
        each(|mut socket| {
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            write!(socket, "{} bytes", all.len()).unwrap();
        }),
    );
    let rig = calling(&called, FakeKeys::new(&root, PAY), Protocol::Tcp);
    for _ in 0..3 {
        let mut client = rig.connect();
        for _ in 0..100 {
            client.send([b'x'; 10_000]);
        }
        client.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.rest(), b"1000000 bytes");
    }
    let streams = called.proxy.tunnels();
    assert_eq!(streams.handshakes.len(), 1, "{streams:?}");
}

#[test]
fn requests_go_over_connections_that_are_kept_inside_tunnels() {
    let root = authority();
    let called = Called::new(
        &root,
        Limits::default(),
        each(|socket| {
            let mut client = Client::over(socket);
            while let Some(head) = client.head() {
                if head.starts_with("GET /end") {
                    return;
                }
                client.send(ok(head.split(' ').nth(1).unwrap()));
            }
        }),
    );
    let rig = calling(&called, FakeKeys::new(&root, PAY), Protocol::Http);
    for _ in 0..3 {
        let mut client = rig.connect();
        for n in 0..10 {
            assert_eq!(client.get(&format!("/{n}")), format!("/{n}"));
        }
    }
    let counts = rig.proxy.stats().counts;
    assert!(counts.upstream_opened <= 2, "one a worker: {counts:?}");
    // One that its endpoint has closed is not used again.
    let mut client = rig.connect();
    client.send("GET /end HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 502"));
    assert_eq!(rig.connect().get("/again"), "/again");
}

#[test]
fn a_reset_passes_through_tunnels_and_both_proxies() {
    let root = authority();
    let (told, hear) = channel();
    let told = Mutex::new(told);
    let called = Called::new(
        &root,
        Limits::default(),
        each(move |mut socket| {
            let mut first = [0];
            socket.read_exact(&mut first).unwrap();
            if first == *b"r" {
                return Client::over(socket).reset();
            }
            socket.write_all(&first).unwrap();
            let _ = told.lock().send(Client::over(socket).is_reset());
        }),
    );
    let rig = calling(&called, FakeKeys::new(&root, PAY), Protocol::Tcp);
    let mut client = rig.connect();
    client.send("r");
    assert!(client.is_reset());
    let mut client = rig.connect();
    client.send("x");
    client.take(1);
    client.reset();
    assert_eq!(hear.recv_timeout(SOON), Ok(true));
}

#[test]
fn a_place_that_is_somebody_elses_is_told_to_who_asks() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), each(hello));
    let rig = calling(&called, FakeKeys::new(&root, PAY), Protocol::Http);
    called.keys.show_as(CART, &root, &Leaf::of(PAY, SystemTime::now()));
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    let head = client.head().unwrap();
    assert_eq!(header(&head, "x-mesh-reason"), Some("tls_wrong_identity"), "{head}");
}
