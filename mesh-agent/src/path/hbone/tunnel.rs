//! A tunnel as its streams, its driver and its worker see it: one connection between two agents, of one workload.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_api::spiffe::SpiffeId;
use mesh_common::policy::Caller;
use mesh_core::authorise::Seen;
use mesh_core::snapshot::Snapshot;
use mesh_identity::Bundle;
use rustls_pki_types::CertificateDer;
use slab::Slab;

use super::super::authorise;
use super::super::clock::{Clock, Watch};
use super::super::member::Member;
use super::stats::{Role, Tally};
use super::stream::Left;

/// What a tunnel is told by its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// To go on.
    #[default]
    Serve,
    /// To take no more streams, and to end with the last of them.
    Retire,
    /// To end now, with all of them.
    Cut,
}

/// A tunnel.
pub struct Tunnel {
    /// The workload of this node that it belongs to.
    pub member: Arc<Member>,
    /// Which end it is.
    pub role: Role,
    /// Who is at the other end, as its certificate proves.
    pub peer: SpiffeId,
    /// From where, or where.
    pub address: SocketAddr,
    /// The peer's certificates, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Unix second in which our certificate's time is over.
    pub not_after: u64,
    /// Unix second of the handshake.
    pub proved_at: u64,
    /// The bundle that the chain was last held against.
    pub bundle: RefCell<Arc<Bundle>>,
    tally: Tally,
    streams: Cell<u32>,
    /// Bytes that were read of all its streams.
    read: Cell<u64>,
    order: Cell<Order>,
    dead: Cell<bool>,
    /// When its last stream ended, or it began: the worker's milliseconds.
    pub idle_since: Cell<u64>,
    /// The worker's.
    pub clock: Rc<Clock>,
    driver: RefCell<Option<Waker>>,
    left: RefCell<Vec<Left>>,
    /// Who the peer is to policies, as of an epoch.
    caller: Cell<Option<(u64, Caller)>>,
    /// The workload at its other end, once that was found; 0: not yet. And as of which epoch.
    source: Cell<(u64, u32)>,
    /// Connections to the workload here: to which port, and whose end it is.
    calls: RefCell<Slab<(u16, bool, Rc<Watch>)>>,
}

/// The place of one stream in a tunnel, from before its CONNECT until nothing of it is left.
pub struct Slot(Rc<Tunnel>);

impl Slot {
    /// One more stream.
    pub fn new(tunnel: &Rc<Tunnel>) -> Self {
        tunnel.streams.set(tunnel.streams.get() + 1);
        tunnel.tally.stream(1);
        tunnel.wake();
        Self(tunnel.clone())
    }

    /// Whose.
    pub fn tunnel(&self) -> &Rc<Tunnel> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let tunnel = &self.0;
        tunnel.streams.set(tunnel.streams.get() - 1);
        tunnel.tally.stream(-1);
        tunnel.idle_since.set(tunnel.clock.now());
        tunnel.wake();
    }
}

/// A connection to a port of our workload, ended where policies no longer allow it. Kept for as long as it lives.
pub struct Call {
    tunnel: Rc<Tunnel>,
    key: usize,
}

impl Call {
    /// One that is allowed now. `opaque`: nobody asks about requests on it.
    pub fn new(tunnel: &Rc<Tunnel>, port: u16, opaque: bool, watch: &Rc<Watch>) -> Self {
        let key = tunnel.calls.borrow_mut().insert((port, opaque, watch.clone()));
        Self { tunnel: tunnel.clone(), key }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.tunnel.calls.borrow_mut().try_remove(self.key);
    }
}

/// What is known of a tunnel once both ends have proved who they are.
pub struct Proved {
    /// See [`Tunnel::peer`].
    pub peer: SpiffeId,
    /// See [`Tunnel::address`].
    pub address: SocketAddr,
    /// See [`Tunnel::chain`].
    pub chain: Vec<CertificateDer<'static>>,
    /// See [`Tunnel::not_after`].
    pub not_after: u64,
    /// See [`Tunnel::bundle`].
    pub bundle: Arc<Bundle>,
}

impl Tunnel {
    /// One that has just begun.
    pub fn new(member: &Arc<Member>, proved: Proved, tally: Tally, clock: &Rc<Clock>) -> Self {
        member.usage.tunnels(1);
        Self {
            member: member.clone(),
            role: tally.role,
            peer: proved.peer,
            address: proved.address,
            chain: proved.chain,
            not_after: proved.not_after,
            proved_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            bundle: RefCell::new(proved.bundle),
            tally,
            streams: Cell::new(0),
            read: Cell::new(0),
            order: Cell::default(),
            dead: Cell::new(false),
            idle_since: Cell::new(clock.now()),
            clock: clock.clone(),
            driver: RefCell::default(),
            left: RefCell::default(),
            caller: Cell::new(None),
            source: Cell::new((0, 0)),
            calls: RefCell::default(),
        }
    }

    /// Streams that are open or being opened.
    pub fn streams(&self) -> u32 {
        self.streams.get()
    }

    /// May its peer connect to this port of our workload?
    pub fn admits(&self, snapshot: &Snapshot, port: u16, seen: Seen<'_>) -> bool {
        let caller = |snapshot: &Snapshot| self.caller(snapshot);
        authorise::admits(snapshot, &self.member, (&self.peer, caller), self.address.ip(), (port, seen))
    }

    /// Its peer, as policies know it.
    pub fn caller(&self, snapshot: &Snapshot) -> Caller {
        match self.caller.get() {
            Some((epoch, caller)) if epoch == snapshot.epoch => caller,
            _ => {
                let caller = snapshot.caller(self.peer.namespace(), self.peer.service_account());
                self.caller.set(Some((snapshot.epoch, caller)));
                caller
            }
        }
    }

    /// The workload at its other end, by its identity and its address; 0: the snapshot has none such. A tunnel is one
    /// workload's, so it is looked for until it is found.
    pub fn source(&self, snapshot: &Snapshot) -> u32 {
        let (epoch, found) = self.source.get();
        if found != 0 || epoch == snapshot.epoch {
            return found;
        }
        let (namespace, account) = (self.peer.namespace(), self.peer.service_account());
        let found = snapshot.workload_at(self.address.ip(), namespace, account).unwrap_or(0);
        self.source.set((snapshot.epoch, found));
        found
    }

    /// Ends the connections that policies no longer allow.
    pub fn judge(&self, snapshot: &Snapshot) {
        for (_, (port, opaque, watch)) in self.calls.borrow().iter() {
            let seen = if *opaque { Seen::Opaque } else { Seen::Unknown };
            if !self.admits(snapshot, *port, seen) {
                watch.end();
            }
        }
    }

    /// A stream was read.
    pub fn took(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes as u64);
    }

    /// Bytes read.
    pub fn read(&self) -> u64 {
        self.read.get()
    }

    /// Tells it.
    pub fn tell(&self, order: Order) {
        let worse = matches!((self.order.get(), order), (Order::Serve, _) | (Order::Retire, Order::Cut));
        if worse && self.order.replace(order) != order {
            self.wake();
        }
    }

    /// What it was told last.
    pub fn order(&self) -> Order {
        self.order.get()
    }

    /// Takes new streams.
    pub fn serves(&self) -> bool {
        !self.dead.get() && self.order.get() == Order::Serve
    }

    /// Has it ended?
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// It has ended.
    pub fn died(&self) {
        if self.dead.replace(true) {
            return;
        }
        self.tally.ended();
        self.member.usage.tunnels(-1);
        self.left.borrow_mut().clear();
    }

    /// Takes a stream that nobody uses any more to its end.
    pub fn leave(&self, left: Left) {
        if !self.dead.get() {
            self.left.borrow_mut().push(left);
            self.wake();
        }
    }

    /// Looks after those: true, some are left.
    pub fn poll_left(&self, cx: &mut Context<'_>, linger: u64) -> bool {
        let now = self.clock.now();
        let mut left = self.left.take();
        left.retain_mut(|one| {
            if one.until == 0 {
                one.until = now + linger;
            }
            one.poll(cx, now >= one.until).is_pending()
        });
        let mut more = self.left.borrow_mut();
        left.append(&mut more);
        *more = left;
        !more.is_empty()
    }

    /// Whose task to wake.
    pub fn register(&self, cx: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        match driver.as_ref() {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *driver = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.driver.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.died();
    }
}
