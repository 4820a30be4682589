//! A proxy on loopback, its snapshot, and servers behind it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_api::proto::v1::Protocol;
use mesh_common::addr;
use mesh_common::record::{Capture, FlowKey, FlowSource, Load, role};
use mesh_core::locality::Nearness;
use mesh_core::mtls::{MtlsMode, MtlsRules};
use mesh_core::route::RouteTable;
use mesh_core::snapshot::{Endpoint, OnProxyLoss, Service, Snapshot, Traffic, Why, Workload, WorkloadPort};
use parking_lot::Mutex;

use crate::dns::clients::Asker;
use crate::path::sockets::tcp_socket;
use crate::path::{Budget, Enrolment, Leg, Limits, Proxy, Sockets};

/// No answer on loopback takes this long.
pub const SOON: Duration = Duration::from_secs(10);
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);
/// The workload that calls.
pub const CALLER: u32 = 7;

/// Stands in for the kernel.
#[derive(Default)]
pub struct Fake {
    /// What an accepted socket carries.
    pub record: Mutex<Option<Capture>>,
    /// Who calls.
    pub source: Mutex<Option<FlowSource>>,
    pub legs: Mutex<Vec<Leg>>,
    pub refuses_handover: AtomicBool,
    pub panics: AtomicBool,
    pub beats: AtomicU64,
    /// Endpoints that are ejected, and how often that came before.
    pub ejected: Mutex<std::collections::BTreeMap<u32, u32>>,
}

impl Sockets for Fake {
    fn capture(&self, _: BorrowedFd<'_>) -> io::Result<Option<Capture>> {
        assert!(!self.panics.load(SeqCst), "a bug, as the test wants one");
        Ok(*self.record.lock())
    }

    fn mark_leg(&self, _: BorrowedFd<'_>, leg: &Leg) -> io::Result<()> {
        let mut legs = self.legs.lock();
        legs.push(*leg);
        // On loopback an inbound leg meets its own listener: one round is enough.
        if self.refuses_handover.load(SeqCst) && legs.len() > 1 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }

    fn handed_over(&self, _: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(!self.refuses_handover.load(SeqCst))
    }

    fn stop_beating(&self, _: u32) {}

    fn beat(&self, _: u32) {
        self.beats.fetch_add(1, SeqCst);
    }

    fn load(&self, endpoint: u32) -> Load {
        let out = self.ejected.lock().contains_key(&endpoint);
        Load { ejected_until: if out { u64::MAX } else { 0 }, ..Load::default() }
    }

    fn ejected(&self, _: u32) -> u64 {
        self.ejected.lock().len() as u64
    }

    fn eject(&self, _: u32, endpoint: u32, before: u32) -> Option<u64> {
        self.ejected.lock().insert(endpoint, before).is_none().then_some(u64::MAX)
    }

    fn let_back(&self, _: u32, endpoint: u32, _: u64) {
        self.ejected.lock().remove(&endpoint);
    }

    fn asked(&self, _: &Asker, _: SocketAddr) -> Option<SocketAddr> {
        None
    }

    fn source_of(&self, _: &FlowKey) -> Option<FlowSource> {
        *self.source.lock()
    }

    fn assigns(&self, _: SocketAddr) -> bool {
        false
    }

    fn resolving(&self, _: BorrowedFd<'_>, v6: bool, _: bool) -> io::Result<OwnedFd> {
        tcp_socket(v6)
    }

    fn socket(&self, _: BorrowedFd<'_>, v6: bool) -> io::Result<OwnedFd> {
        tcp_socket(v6)
    }
}

/// Nobody has a certificate.
struct NoKeys;

impl mesh_identity::Keys for NoKeys {
    fn svid(&self, _: &mesh_api::spiffe::SpiffeId) -> Option<Arc<mesh_identity::Svid>> {
        None
    }

    fn bundle(&self) -> Option<Arc<mesh_identity::Bundle>> {
        None
    }
}

/// A proxy with one enrolled workload.
pub struct Rig {
    pub proxy: Proxy,
    pub fake: Arc<Fake>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Where captured connections arrive.
    pub out: SocketAddr,
    /// Where inbound connections arrive.
    pub inbound: SocketAddr,
}

impl Rig {
    /// Calls to service 1, HTTP, whose endpoints are these.
    pub fn http(endpoints: &[SocketAddr]) -> Self {
        Self::new(vec![service(1, Protocol::Http, endpoints)], Limits::default(), Budget::default())
    }

    /// Calls to service 1, opaque.
    pub fn tcp(endpoint: SocketAddr) -> Self {
        Self::new(vec![service(1, Protocol::Tcp, &[endpoint])], Limits::default(), Budget::default())
    }

    pub fn new(services: Vec<Service>, limits: Limits, budget: Budget) -> Self {
        Self::with_keys(services, limits, budget, Arc::new(NoKeys))
    }

    pub fn with_keys(
        services: Vec<Service>,
        limits: Limits,
        budget: Budget,
        keys: Arc<dyn mesh_identity::Keys>,
    ) -> Self {
        let mut snapshot = Snapshot { epoch: 1, ..Snapshot::default() };
        for service in services {
            put(&mut snapshot, service);
        }
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let fake = Arc::new(Fake::default());
        let proxy = Proxy::start(2, snapshot.clone(), fake.clone(), keys, limits).unwrap();
        let (out4, inbound) = (listener(), listener());
        let (out, inbound_at) = (out4.local_addr().unwrap(), inbound.local_addr().unwrap());
        proxy
            .add_workload(Enrolment {
                workload: CALLER,
                identity: 3,
                namespace: 1,
                netns: Arc::new(std::fs::File::open("/proc/self/ns/net").unwrap().into()),
                out4: Some(out4),
                out6: None,
                inbound: Some(inbound),
                dns: None,
                addr4: Some(Ipv4Addr::LOCALHOST),
                addr6: None,
                budget,
            })
            .unwrap();
        let rig = Self { proxy, fake, snapshot, out, inbound: inbound_at };
        rig.record(VIP.into(), 80, 1, 1);
        rig
    }

    /// What connections from now on were captured for.
    pub fn record(&self, address: IpAddr, port: u16, service: u32, endpoint: u32) {
        *self.fake.record.lock() = Some(Capture {
            addr: addr::from_ip(address),
            epoch: 1,
            workload: CALLER,
            service,
            endpoint,
            role: role::ACCEPTED,
            port_be: port.to_be(),
            identity: 0,
            flags: 0,
        });
    }

    /// A captured connection.
    pub fn connect(&self) -> Client {
        Client::to(self.out)
    }

    /// Changes the snapshot.
    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = Snapshot::clone(&self.snapshot.load());
        next.epoch += 1;
        change(&mut next);
        self.snapshot.store(Arc::new(next));
    }

    /// Makes the caller's own port an inbound one.
    pub fn serve_inbound(&self, protocol: Protocol) {
        let workload = Arc::new(workload(CALLER, self.inbound, protocol));
        self.change(|s| drop(s.workloads.insert(CALLER, workload.clone())));
    }

    /// How many requests ended with this status and reason.
    pub fn counted(&self, status: u16, reason: &str) -> u64 {
        let stats = self.proxy.stats();
        let of = stats.requests.iter().filter(|(k, _)| k.status == status && k.reason == reason);
        of.map(|(_, series)| series.count).sum()
    }
}

/// A service, and the workloads behind it.
pub fn put(snapshot: &mut Snapshot, service: Service) {
    for endpoint in service.endpoints.iter() {
        let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), endpoint.port);
        let behind = workload(endpoint.workload, at, service.protocol);
        snapshot.workloads.insert(endpoint.workload, Arc::new(behind));
    }
    snapshot.services.insert(service.id, Arc::new(service));
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A service whose endpoints have ids from its id × 100 on; service 1's from 1 on.
pub fn service(id: u32, protocol: Protocol, endpoints: &[SocketAddr]) -> Service {
    let first = if id == 1 { 1 } else { id * 100 };
    let endpoints: Vec<Endpoint> = (first..)
        .zip(endpoints)
        .map(|(id, address)| Endpoint {
            id,
            workload: id,
            v4: Some(Ipv4Addr::LOCALHOST),
            v6: None,
            port: address.port(),
            weight: 1,
            local: true,
            policy_set: 0,
            mtls: MtlsMode::Off,
            tunnel: false,
        })
        .collect();
    Service {
        id,
        namespace: "default".into(),
        name: format!("service-{id}").into(),
        port: 80,
        port_name: "".into(),
        vips: vec![VIP.into()],
        protocol,
        why: Some(Why::Http),
        on_proxy_loss: OnProxyLoss::Bypass,
        traffic: Traffic::default(),
        resilience: None,
        inbound_proxy: false,
        serving: endpoints.len(),
        endpoints: endpoints.into(),
        routes: None,
        consumers: None,
        fallback: Vec::new(),
        split: false,
        backends: Vec::new(),
        health: None,
        dns_ttl: None,
    }
}

/// The service with routes.
pub fn routed(mut service: Service, table: RouteTable) -> Service {
    service.routes = Some(Arc::new(table));
    service
}

/// A server: one thread a connection, until the process ends.
pub fn server(serve: impl Fn(Client) + Send + Sync + 'static) -> SocketAddr {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(Client::over(socket.unwrap())));
        }
    });
    address
}

/// A server that answers each request (head only) with what `answer` makes of its head.
pub fn answering(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> SocketAddr {
    server(move |mut client| {
        while let Some(head) = client.head() {
            client.send(answer(&head));
        }
    })
}

/// A server that says its name.
pub fn named(name: &'static str) -> SocketAddr {
    answering(move |_| ok(name))
}

/// A response with a body.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Bound as long as the process lives, and never listening: no other test is given the port.
    std::mem::forget(socket);
    address
}

/// One end of a connection, for tests: blocking, with a time limit.
pub struct Client {
    pub socket: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub fn to(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.set_write_timeout(Some(SOON)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, unread: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The other side may have ended on purpose; tests look at what it said.
        let _ = self.socket.write_all(bytes.as_ref());
    }

    /// More bytes; false: the end.
    fn more(&mut self) -> bool {
        let mut bytes = vec![0; 65_536];
        match self.socket.read(&mut bytes) {
            Ok(n) => {
                self.unread.extend_from_slice(&bytes[..n]);
                n > 0
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => false,
            Err(e) => panic!("no answer: {e}; so far {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }

    /// A head with its empty line; `None`: the connection ended.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                return Some(String::from_utf8(self.unread.drain(..at + 4).collect()).unwrap());
            }
            if !self.more() {
                return None;
            }
        }
    }

    pub fn take(&mut self, length: usize) -> Vec<u8> {
        while self.unread.len() < length {
            assert!(self.more(), "ended after {} of {length} bytes", self.unread.len());
        }
        self.unread.drain(..length).collect()
    }

    /// A response with Content-Length: status line and headers, body.
    pub fn response(&mut self) -> (String, String) {
        let head = self.head().expect("a response");
        let length = header(&head, "content-length").map_or(0, |v| v.parse().unwrap());
        (head, String::from_utf8(self.take(length)).unwrap())
    }

    /// Sends a request and returns the body of its answer.
    pub fn get(&mut self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        let (head, body) = self.response();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}{body}");
        body
    }

    /// Everything until the end.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.unread)
    }

    /// Waits for a reset. False: a clean end.
    pub fn is_reset(&mut self) -> bool {
        let mut bytes = vec![0; 65_536];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(e) => return e.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Makes dropping it a reset.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO)).unwrap();
    }
}

/// Value of a header.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// Waits until it holds.
#[track_caller]
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

/// A workload of this node that serves service 1 at an address.
pub fn workload(id: u32, at: SocketAddr, protocol: Protocol) -> Workload {
    let port = WorkloadPort {
        port: at.port(),
        service: 1,
        endpoint: 1,
        weight: 1,
        healthy: true,
        proxy: false,
        on_proxy_loss: OnProxyLoss::Bypass,
        inbound_proxy: true,
        protocol,
    };
    Workload {
        id,
        identity: 3,
        mesh_ns: 1,
        policy_set: 0,
        looks: None,
        transport: None,
        full_name: "default/caller".into(),
        service_account: "default".into(),
        node: "here".into(),
        local: true,
        host_network: false,
        outside: None,
        hbone: false,
        mtls: MtlsRules::default(),
        nearness: Nearness::Node,
        priority: 0,
        addresses: [at.ip()].into(),
        ports: [port].into(),
    }
}
