//! A workload that is called through tunnels, served by a whole proxy, and a worker that calls it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use mesh_api::proto::v1::Protocol;
use mesh_api::spiffe::SpiffeId;
use mesh_core::error::ProxyError;
use mesh_core::snapshot::Snapshot;
use mesh_identity::maker::{Authority, Leaf};
use mesh_identity::{Bundle, Keys, Svid};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;

use super::super::super::member::Member;
use super::super::super::see::log::AccessLog;
use super::super::super::tests::rig::{CALLER, Fake, workload};
use super::super::super::transport::{self, Stream, Target};
use super::super::super::worker::{self, Common, Seat, Shared, Worker};
use super::super::super::{Budget, Enrolment, Limits, Proxy};
use super::super::client::Via;
use super::super::stats::TunnelCounts;

/// No answer on loopback takes this long.
pub const SOON: Duration = Duration::from_secs(20);

/// Who is called.
pub const CART: &str = "spiffe://mesh.local/ns/default/sa/cart";
/// Who calls.
pub const PAY: &str = "spiffe://mesh.local/ns/default/sa/pay";

/// Certificates by identity.
#[derive(Default)]
pub struct FakeKeys {
    pub svids: Mutex<HashMap<SpiffeId, Arc<Svid>>>,
    pub bundle: Mutex<Option<Arc<Bundle>>>,
}

impl Keys for FakeKeys {
    fn svid(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        self.svids.lock().get(id).cloned()
    }

    fn bundle(&self) -> Option<Arc<Bundle>> {
        self.bundle.lock().clone()
    }
}

impl FakeKeys {
    /// Of `authority`, for this identity.
    pub fn new(authority: &Authority, id: &str) -> Arc<Self> {
        let keys = Self::default();
        *keys.bundle.lock() = Some(Arc::new(authority.bundle("mesh.local")));
        keys.show(authority, &Leaf::of(id, SystemTime::now()));
        Arc::new(keys)
    }

    /// What the identity shows from now on.
    pub fn show(&self, authority: &Authority, leaf: &Leaf) {
        let svid = Arc::new(authority.svid(leaf));
        self.svids.lock().insert(svid.id.clone(), svid);
    }

    /// The same under another name.
    pub fn show_as(&self, id: &str, authority: &Authority, leaf: &Leaf) {
        self.svids.lock().insert(id.parse().unwrap(), Arc::new(authority.svid(leaf)));
    }
}

/// The called side.
pub struct Called {
    pub proxy: Proxy,
    pub keys: Arc<FakeKeys>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Its own address.
    pub ip: Ipv4Addr,
    /// Where its application listens.
    pub application: SocketAddr,
}

/// An address of loopback that no other test of this process uses.
pub fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    Ipv4Addr::new(127, 64 | (pid >> 8) as u8 & 63, pid as u8, NEXT.fetch_add(1, SeqCst))
}

fn snapshot(at: SocketAddr, account: &str, protocol: Protocol) -> Arc<ArcSwap<Snapshot>> {
    let mut snapshot = Snapshot { epoch: 1, trust_domain: "mesh.local".into(), ..Snapshot::default() };
    let mut own = workload(CALLER, at, protocol);
    own.service_account = account.into();
    snapshot.workloads.insert(CALLER, Arc::new(own));
    Arc::new(ArcSwap::from_pointee(snapshot))
}

impl Called {
    /// One whose application listens at the address that `serve` is given.
    pub fn new(authority: &Authority, limits: Limits, serve: impl FnOnce(TcpListener)) -> Self {
        Self::speaking(Protocol::Tcp, authority, limits, serve)
    }

    pub fn speaking(
        protocol: Protocol,
        authority: &Authority,
        limits: Limits,
        serve: impl FnOnce(TcpListener),
    ) -> Self {
        let ip = own_ip();
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let application = listener.local_addr().unwrap();
        serve(listener);
        let keys = FakeKeys::new(authority, CART);
        let snapshot = snapshot(application, "cart", protocol);
        let fake = Arc::new(Fake::default());
        let proxy = Proxy::start(1, snapshot.clone(), fake, keys.clone(), limits).unwrap();
        proxy
            .add_workload(Enrolment {
                workload: CALLER,
                identity: 3,
                namespace: 1,
                netns: Arc::new(std::fs::File::open("/proc/self/ns/net").unwrap().into()),
                out4: None,
                out6: None,
                inbound: Some(TcpListener::bind((ip, 15_008)).unwrap()),
                dns: None,
                addr4: Some(ip),
                addr6: None,
                budget: Budget::default(),
            })
            .unwrap();
        Self { proxy, keys, snapshot, ip, application }
    }

    /// The way to a port of it.
    pub fn via(&self, port: u16) -> Via {
        self.via_as(port, CART)
    }

    pub fn via_as(&self, port: u16, expected: &str) -> Via {
        Via {
            address: (self.ip, 15_008).into(),
            authority: (self.ip, port).into(),
            expected: [expected.parse().unwrap()].into(),
            workload: "default/cart".into(),
        }
    }

    /// The same for a test that runs on the calling worker.
    pub async fn soon(&self, what: &str, holds: impl Fn(&TunnelCounts) -> bool) {
        let end = Instant::now() + SOON;
        while !holds(&self.proxy.tunnels()) {
            assert!(Instant::now() < end, "never: {what}: {:?}", self.proxy.tunnels());
            tokio::task::yield_now().await;
        }
    }

    /// Waits until its counters say so.
    #[track_caller]
    pub fn eventually(&self, what: &str, holds: impl Fn(&TunnelCounts) -> bool) {
        let end = Instant::now() + SOON;
        while !holds(&self.proxy.tunnels()) {
            assert!(Instant::now() < end, "never: {what}: {:?}", self.proxy.tunnels());
            std::thread::yield_now();
        }
    }
}

/// The calling side: a worker, with one workload.
pub struct Caller {
    pub worker: Rc<Worker>,
    pub member: Arc<Member>,
    pub shared: Arc<Shared>,
}

impl Caller {
    /// Runs a test on a worker of its own.
    pub fn run<T>(keys: Arc<FakeKeys>, limits: Limits, test: impl AsyncFnOnce(Caller) -> T) -> T {
        let (jobs, _) = tokio::sync::mpsc::channel(1);
        let shared = Arc::new(Shared { beat_ns: AtomicU64::new(0), ..Shared::default() });
        let common = Arc::new(Common {
            seats: vec![Seat { jobs, shared: shared.clone() }],
            snapshot: snapshot((Ipv4Addr::LOCALHOST, 1).into(), "pay", Protocol::Tcp),
            sockets: Arc::new(Fake::default()),
            keys,
            limits,
            taps: Arc::default(),
            log: AccessLog::default(),
            resilience: Default::default(),
            buckets: Default::default(),
            shed: Default::default(),
            members: Arc::default(),
        });
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let worker = Rc::new(Worker::new(0, common));
            let tasks = worker::begin(&worker);
            let caller = Caller { worker, member: Member::for_tests(), shared };
            let done = tokio::time::timeout(SOON * 3, test(caller)).await.expect("in time");
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            done
        })
    }

    /// Opens a connection.
    pub async fn open(&self, via: Via) -> Result<Stream, ProxyError> {
        let watch = self.worker.clock.watch(&self.member);
        let target = Target {
            source: self.member.clone(),
            address: via.authority,
            origination: None,
            service: 0,
            endpoint: 0,
            local: false,
            show: None,
            within: SOON,
            via: Some(via),
        };
        transport::open(&self.worker, &target, &watch).await
    }

    pub fn counts(&self) -> TunnelCounts {
        super::super::stats::merge(&[&self.shared.tunnels].into_iter())
    }

    /// Waits until it holds.
    pub async fn eventually(&self, what: &str, holds: impl Fn(&TunnelCounts) -> bool) {
        let end = Instant::now() + SOON;
        while !holds(&self.counts()) {
            assert!(Instant::now() < end, "never: {what}: {:?}", self.counts());
            tokio::task::yield_now().await;
        }
    }
}

/// Everything until the end.
pub async fn rest(stream: &mut Stream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.map(|_| all)
}

/// A server: a thread for each connection.
pub fn each(serve: impl Fn(std::net::TcpStream) + Send + Sync + 'static) -> impl FnOnce(TcpListener) {
    move |listener| {
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (serve, socket) = (serve.clone(), socket.unwrap());
                socket.set_read_timeout(Some(SOON)).unwrap();
                std::thread::spawn(move || serve(socket));
            }
        });
    }
}

/// An authority of now.
pub fn authority() -> Authority {
    Authority::new("root", SystemTime::now())
}
