//! The tunnels of one worker: found again by who calls, from where, and who is expected there.
//!
//! Key: source workload and its identity, address, identities expected. A pod's address that was given on to another
//! workload is another key, for somebody else is expected there. The first connection of a key dials; those that come
//! meanwhile wait for it, each as long as it may; nobody waits for a place in a tunnel that is full.
//!
//! Invariants: bounded per key ([`PER_KEY`]) and in all ([`TOTAL`], where the one that was idle longest makes room).
//! A tunnel takes no more streams once its workload has left, its certificate's time is over, or it was idle for long;
//! it is cut where its peer's certificate was revoked, or its authority is not believed any more.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::spiffe::SpiffeId;
use mesh_core::error::ProxyError;
use mesh_core::snapshot::Snapshot;
use mesh_identity::Refused;
use mesh_identity::verify::Peer;
use rustls_pki_types::UnixTime;
use tokio::sync::Notify;

use super::super::clock::{Call, Watch};
use super::super::hash::Quick;
use super::super::member::Member;
use super::super::transport::{Stream, Target};
use super::super::worker::Worker;
use super::client::{Asked, Client, Via, dial};
use super::stats::Role;
use super::tunnel::{Order, Slot, Tunnel};
use super::{Identities, LOGGED};

/// Tunnels of one source to one place.
const PER_KEY: usize = 32;
/// Tunnels that this worker dials.
const TOTAL: usize = 4096;
/// Tunnels that one CONNECT is tried in.
const TRIES: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: u32,
    identity: u32,
    address: SocketAddr,
}

struct Entry {
    expected: Arc<[SpiffeId]>,
    clients: Vec<Rc<Client>>,
    dialling: Option<Rc<Dial>>,
}

/// A tunnel that is being dialled.
#[derive(Default)]
struct Dial {
    done: Cell<Option<Result<(), ProxyError>>>,
    notify: Notify,
}

/// The tunnels of one worker.
#[derive(Default)]
pub struct Tunnels {
    entries: RefCell<HashMap<Key, Vec<Entry>, BuildHasherDefault<Quick>>>,
    dialled: Cell<usize>,
    /// All that are open, of both ends.
    open: RefCell<Vec<Rc<Tunnel>>>,
}

/// What a look into the pool found.
enum Found {
    Client(Rc<Client>, Slot),
    Dialling(Rc<Dial>),
    Dial(Rc<Dial>),
    Full,
}

impl Tunnels {
    /// A tunnel has begun: from now on it is looked after.
    pub fn watch(&self, tunnel: &Rc<Tunnel>) {
        self.open.borrow_mut().push(tunnel.clone());
    }

    fn find(&self, key: Key, expected: &Arc<[SpiffeId]>) -> Found {
        let mut entries = self.entries.borrow_mut();
        let list = entries.entry(key).or_default();
        let at = list.iter().position(|entry| entry.expected == *expected).unwrap_or_else(|| {
            list.push(Entry { expected: expected.clone(), clients: Vec::new(), dialling: None });
            list.len() - 1
        });
        let entry = &mut list[at];
        for client in &entry.clients {
            if let Some(slot) = client.slot() {
                return Found::Client(client.clone(), slot);
            }
        }
        if let Some(dialling) = &entry.dialling {
            return Found::Dialling(dialling.clone());
        }
        let before = entry.clients.len();
        entry.clients.retain(|client| client.tunnel().serves());
        self.dialled.set(self.dialled.get() - (before - entry.clients.len()));
        if entry.clients.len() >= PER_KEY {
            return Found::Full;
        }
        let begun = Rc::<Dial>::default();
        entry.dialling = Some(begun.clone());
        Found::Dial(begun)
    }

    fn dialled(&self, key: Key, expected: &Arc<[SpiffeId]>, client: Option<Rc<Client>>) {
        let mut entries = self.entries.borrow_mut();
        let Some(list) = entries.get_mut(&key) else { return };
        if let Some(entry) = list.iter_mut().find(|entry| entry.expected == *expected) {
            entry.dialling = None;
            self.dialled.set(self.dialled.get() + usize::from(client.is_some()));
            entry.clients.extend(client);
        }
    }

    /// Makes room for one more; false: all of them are in use.
    fn make_room(&self) -> bool {
        if self.dialled.get() < TOTAL {
            return true;
        }
        let open = self.open.borrow();
        let idle = open.iter().filter(|t| t.role == Role::Client && t.serves() && t.streams() == 0);
        let Some(oldest) = idle.min_by_key(|tunnel| tunnel.idle_since.get()) else { return false };
        oldest.tell(Order::Retire);
        drop(open);
        self.forget_closed();
        true
    }

    fn forget_closed(&self) {
        let mut dialled = 0;
        self.entries.borrow_mut().retain(|_, list| {
            for entry in &mut *list {
                entry.clients.retain(|client| client.tunnel().serves());
                dialled += entry.clients.len();
            }
            list.retain(|entry| entry.dialling.is_some() || !entry.clients.is_empty());
            !list.is_empty()
        });
        self.dialled.set(dialled);
        self.open.borrow_mut().retain(|tunnel| !tunnel.is_dead());
    }

    /// Ends what has no business any more.
    pub fn sweep(&self, identities: &Identities, now_ms: u64, idle: Duration) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for tunnel in self.open.borrow().iter() {
            if tunnel.member.usage.gone() {
                tunnel.tell(Order::Cut);
            } else if let Err(refused) = believed(tunnel, identities) {
                if LOGGED.take() {
                    tracing::warn!(peer = %tunnel.peer, address = %tunnel.address, reason = refused.reason(), "a tunnel is cut");
                }
                tunnel.tell(Order::Cut);
            } else if tunnel.not_after <= unix {
                tunnel.tell(Order::Retire);
            }
            let unused = tunnel.streams() == 0
                && now_ms.saturating_sub(tunnel.idle_since.get()) >= idle.as_millis() as u64;
            if unused && tunnel.role == Role::Client {
                tunnel.tell(Order::Retire);
            }
        }
        self.forget_closed();
    }

    /// Holds all connections that came through tunnels against policies that are new.
    pub fn judge(&self, snapshot: &Snapshot) {
        for tunnel in self.open.borrow().iter().filter(|tunnel| tunnel.role == Role::Server) {
            tunnel.judge(snapshot);
        }
    }

    /// Lets all tunnels end with the streams that they have.
    pub fn retire(&self) {
        for tunnel in self.open.borrow().iter() {
            tunnel.tell(Order::Retire);
        }
        self.forget_closed();
    }
}

/// Holds a tunnel's peer against a bundle that is new: revoked since, or of an authority that has gone.
fn believed(tunnel: &Tunnel, identities: &Identities) -> Result<(), Refused> {
    let Some((bundle, roots)) = identities.roots() else { return Ok(()) };
    if Arc::ptr_eq(&tunnel.bundle.borrow(), &bundle) {
        return Ok(());
    }
    let then = UnixTime::since_unix_epoch(Duration::from_secs(tunnel.proved_at));
    let expected = [tunnel.peer.clone()];
    let peer = if tunnel.role == Role::Client { Peer::Server(&expected) } else { Peer::Client };
    roots.verify(peer, &tunnel.chain, then)?;
    *tunnel.bundle.borrow_mut() = bundle;
    Ok(())
}

/// Opens a connection through a tunnel. `watch` is the caller's, disarmed when this returns.
pub async fn open(
    worker: &Rc<Worker>,
    target: &Target,
    via: &Via,
    watch: &Watch,
) -> Result<Stream, ProxyError> {
    worker.clock.arm(watch, target.within);
    let mut connecting = std::pin::pin!(connect(worker, &target.source, via));
    let opened = std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = connecting.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        watch.poll_call(cx).map(|call| {
            Err(match call {
                Call::Late => ProxyError::ConnectTimeout,
                Call::Cut => ProxyError::Draining,
            })
        })
    })
    .await;
    watch.disarm();
    opened
}

async fn connect(worker: &Rc<Worker>, member: &Arc<Member>, via: &Via) -> Result<Stream, ProxyError> {
    for _ in 0..TRIES {
        let (client, slot) = place(worker, member, via).await?;
        match client.connect(via.authority, slot).await {
            Ok(stream) => return Ok(Stream::tunnelled(stream)),
            Err(Asked::Again) => {}
            Err(Asked::Refused(error)) => return Err(error),
        }
    }
    Err(ProxyError::TunnelFailed)
}

/// A place in a tunnel, which is dialled if there is none.
async fn place(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    via: &Via,
) -> Result<(Rc<Client>, Slot), ProxyError> {
    let key = Key { source: member.workload, identity: member.identity, address: via.address };
    loop {
        let dial = match worker.tunnels.find(key, &via.expected) {
            Found::Client(client, slot) => return Ok((client, slot)),
            Found::Full => return Err(ProxyError::TunnelLimit),
            Found::Dialling(dial) => dial,
            Found::Dial(dial) => {
                begin(worker, member, via, key, &dial);
                dial
            }
        };
        let done = loop {
            match dial.done.get() {
                Some(done) => break done,
                None => dial.notify.notified().await,
            }
        };
        done?;
    }
}

/// Dials in a task of its own: whoever asked for it may give up meanwhile.
fn begin(worker: &Rc<Worker>, member: &Arc<Member>, via: &Via, key: Key, begun: &Rc<Dial>) {
    let (worker, member, via, begun) = (worker.clone(), member.clone(), via.clone(), begun.clone());
    let mut guard =
        Guard { worker: worker.clone(), key, expected: via.expected.clone(), dial: begun, done: false };
    tokio::task::spawn_local(async move {
        let dialled = if worker.tunnels.make_room() {
            dial(&worker, &member, &via).await
        } else {
            Err(ProxyError::TunnelLimit)
        };
        guard.done(dialled);
    });
}

/// Tells those who wait, also where dialling ended with a panic.
struct Guard {
    worker: Rc<Worker>,
    key: Key,
    expected: Arc<[SpiffeId]>,
    dial: Rc<Dial>,
    done: bool,
}

impl Guard {
    fn done(&mut self, dialled: Result<Rc<Client>, ProxyError>) {
        self.done = true;
        let (client, done) = match dialled {
            Ok(client) => (Some(client), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.worker.tunnels.dialled(self.key, &self.expected, client);
        self.dial.done.set(Some(done));
        self.dial.notify.notify_waiters();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.done {
            self.done(Err(ProxyError::Internal));
        }
    }
}
