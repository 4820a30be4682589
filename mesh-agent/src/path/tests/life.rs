//! Workloads, workers and connections come and go; budgets; inbound.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use mesh_api::proto::v1::Protocol;

use super::rig::*;
use crate::path::{Budget, Limits};

#[test]
fn workers_beat() {
    let rig = Rig::http(&[]);
    let before = rig.fake.beats.load(SeqCst);
    eventually("heartbeats", || rig.fake.beats.load(SeqCst) > before + 4);
}

#[test]
fn connections_of_one_workload_spread_over_the_workers() {
    let rig = Rig::http(&[named("a")]);
    let mut clients: Vec<Client> = (0..64).map(|_| rig.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/"), "a");
    }
    let counts = rig.proxy.stats().counts;
    assert_eq!(counts.open, 64);
    assert!((24..=40).contains(&counts.handed_on), "{counts:?}");
    drop(clients);
    eventually("all closed", || rig.proxy.open() == 0);
}

#[test]
fn a_budget_of_connections_is_kept() {
    let services = vec![service(1, Protocol::Http, &[named("a")])];
    let rig = Rig::new(services, Limits::default(), Budget { connections: 3, ..Budget::default() });
    let mut clients: Vec<Client> = (0..3).map(|_| rig.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/"), "a");
    }
    assert!(rig.connect().is_reset());
    assert_eq!(rig.proxy.stats().counts.budget_connections, 1);
    drop(clients);
    eventually("given back", || rig.proxy.open() == 0);
    assert_eq!(rig.connect().get("/"), "a");
}

#[test]
fn a_budget_of_bytes_ends_what_goes_over_it() {
    let backend = server(|mut client| {
        client.send(vec![7; 64 << 20]);
    });
    let services = vec![service(1, Protocol::Tcp, &[backend])];
    let rig = Rig::new(services, Limits::default(), Budget { buffered: 1000, ..Budget::default() });
    let _stopped = rig.connect();
    eventually("cut", || rig.proxy.stats().counts.budget_bytes == 1);
    eventually("closed", || rig.proxy.open() == 0);
}

#[test]
fn a_panic_ends_one_connection() {
    let rig = Rig::http(&[named("a")]);
    let mut alive = rig.connect();
    assert_eq!(alive.get("/"), "a");
    rig.fake.panics.store(true, SeqCst);
    let mut victim = rig.connect();
    assert!(victim.head().is_none());
    rig.fake.panics.store(false, SeqCst);
    assert_eq!(alive.get("/"), "a");
    assert_eq!(rig.connect().get("/"), "a");
    eventually("counted", || rig.proxy.stats().counts.panics == 1);
    drop(alive);
    eventually("nothing leaks", || rig.proxy.open() == 0);
}

#[test]
fn a_connection_waits_for_a_snapshot_that_is_behind_the_kernel() {
    let rig = Rig::http(&[named("a")]);
    let services = rig.snapshot.load().services.clone();
    rig.change(|snapshot| snapshot.services.clear());
    let now = rig.snapshot.load().epoch;
    rig.fake.record.lock().as_mut().unwrap().epoch = now + 1;
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    eventually("it is held", || rig.proxy.open() == 1);
    rig.change(|snapshot| snapshot.services = services);
    assert_eq!(client.response().1, "a");
    // In step, what nobody knows goes nowhere.
    rig.record(VIP.into(), 80, 77, 0);
    assert!(rig.connect().is_reset());
}

#[test]
fn a_workload_that_leaves_loses_its_connections_and_listeners() {
    let rig = Rig::http(&[named("a")]);
    let mut client = rig.connect();
    assert_eq!(client.get("/"), "a");
    rig.proxy.remove_workload(CALLER);
    assert!(client.is_reset());
    eventually("listener closed", || std::net::TcpStream::connect(rig.out).is_err());
}

#[test]
fn a_drain_ends_idle_connections_and_lets_requests_finish() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = server(move |mut client| {
        while let Some(head) = client.head() {
            if head.starts_with("GET /slow") {
                wait.lock().unwrap().recv_timeout(SOON).unwrap();
            }
            client.send(ok("done"));
        }
    });
    let rig = Rig::http(&[backend]);
    let mut idle = rig.connect();
    assert_eq!(idle.get("/"), "done");
    let mut busy = rig.connect();
    busy.send("GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n");
    eventually("asked", || rig.proxy.stats().counts.requests == 2);
    let proxy = rig.proxy.clone();
    let drain = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(proxy.drain(SOON));
    });
    assert!(idle.rest().is_empty());
    go.send(()).unwrap();
    let (head, body) = busy.response();
    assert_eq!((header(&head, "connection"), body.as_str()), (Some("close"), "done"));
    drop((idle, busy));
    drain.join().unwrap();
    assert_eq!(rig.proxy.stats().counts.cut, 0);
}

#[test]
fn a_head_that_never_ends_is_timed_out() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let rig = Rig::new(vec![service(1, Protocol::Http, &[named("a")])], limits, Budget::default());
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHo");
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 408"), "{head}");
    assert_eq!(header(&head, "x-mesh-reason"), Some("header_timeout"));
}

#[test]
fn an_endpoint_that_never_answers_is_timed_out() {
    let limits = Limits { response: Duration::from_millis(300), ..Limits::default() };
    let silent = server(|mut client| drop(client.rest()));
    let rig = Rig::new(vec![service(1, Protocol::Http, &[silent])], limits, Budget::default());
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 504"), "{head}");
}

#[test]
fn inbound_goes_to_the_workload_itself_and_shows_the_client() {
    // On loopback the destination is the listener itself: what is tested is where the leg goes and whom it
    // shows, not that something answers.
    for protocol in [Protocol::Tcp, Protocol::Http] {
        let rig = Rig::http(&[]);
        rig.fake.refuses_handover.store(true, SeqCst);
        rig.serve_inbound(protocol);
        let mut client = Client::to(rig.inbound);
        let me = client.socket.local_addr().unwrap();
        if protocol == Protocol::Http {
            client.send("GET / HTTP/1.1\r\nHost: me\r\n\r\n");
            assert!(client.head().unwrap().starts_with("HTTP/1.1 503"));
        } else {
            assert!(client.is_reset());
        }
        let leg = rig.fake.legs.lock()[0];
        assert_eq!((leg.show, leg.workload, leg.service, leg.local), (Some(me), CALLER, 1, true));
    }
}
