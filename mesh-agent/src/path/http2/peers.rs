//! HTTP/2 connections to endpoints: kept, and shared by the requests of one source workload.
//!
//! Key: as the pool's of HTTP/1. A request takes the connection with the fewest streams; another one is opened only
//! where all have as many as their peer allows (or [`STREAMS`]), up to [`MOST`]; beyond that streams wait for their turn.
//! While one is being opened, others wait for it instead of opening theirs.
//!
//! Invariants: bounded by key; nothing rests longer than the idle limit; nothing to an endpoint that the snapshot no
//! longer serves; a workload that leaves takes its connections along.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use mesh_core::error::ProxyError;
use mesh_core::snapshot::Snapshot;
use tokio::sync::Mutex;

use super::super::clock::Watched;
use super::super::intercept::Hop;
use super::super::link::Link;
use super::super::member::Member;
use super::super::pool::{PoolKey, is_plain, number, serves};
use super::super::stats::one;
use super::super::transport;
use super::super::worker::Worker;
use super::io::Io;
use super::{CONNECTION_WINDOW, HEAD_BYTES, STREAM_WINDOW, UNSENT};

/// Streams of a connection before another is opened.
const STREAMS: usize = 100;
/// Connections of a key.
const MOST: usize = 16;

/// The connections of one worker, or of one inbound session.
#[derive(Default)]
pub struct Peers {
    places: RefCell<HashMap<PoolKey, Rc<Place>>>,
}

#[derive(Default)]
struct Place {
    open: RefCell<Vec<Rc<Peer>>>,
    opening: Mutex<()>,
}

/// One connection.
struct Peer {
    /// In no tunnel.
    plain: bool,
    send: SendRequest<Bytes>,
    streams: Cell<usize>,
    dead: Rc<Cell<bool>>,
    idle_since: Cell<u64>,
}

/// The right to one stream.
pub struct Lease {
    peer: Rc<Peer>,
    worker: Rc<Worker>,
}

impl Lease {
    /// To send a request by.
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.peer.send.clone()
    }
}

impl Lease {
    /// Its connection takes no more streams: it is given to nobody else, and ends with those that it has.
    pub fn retire(&self) {
        self.peer.dead.set(true);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.peer.streams.set(self.peer.streams.get() - 1);
        self.peer.idle_since.set(self.worker.clock.now());
    }
}

impl Place {
    /// The connection that is used least, unless another one should be opened.
    fn pick(&self, worker: &Rc<Worker>) -> Option<Lease> {
        let mut open = self.open.borrow_mut();
        open.retain(|peer| !peer.dead.get());
        let full = |peer: &Peer| peer.streams.get() >= peer.send.current_max_send_streams().min(STREAMS);
        let peer = open.iter().min_by_key(|peer| peer.streams.get())?;
        if full(peer) && open.len() < MOST {
            return None;
        }
        peer.streams.set(peer.streams.get() + 1);
        Some(Lease { peer: peer.clone(), worker: worker.clone() })
    }
}

impl Peers {
    /// A stream's place on a connection of this workload to this endpoint.
    pub async fn lease(
        &self,
        worker: &Rc<Worker>,
        member: &Arc<Member>,
        hop: &Hop,
    ) -> Result<Lease, ProxyError> {
        let key = key(worker, member, hop);
        let place = self.places.borrow_mut().entry(key).or_default().clone();
        if let Some(lease) = place.pick(worker) {
            one(&worker.shared.counters.upstream_reused);
            return Ok(lease);
        }
        let opening = place.opening.lock().await;
        if let Some(lease) = place.pick(worker) {
            return Ok(lease);
        }
        let counters = &worker.shared.counters;
        let opened = open(worker, member, hop).await;
        one(if opened.is_ok() { &counters.upstream_opened } else { &counters.upstream_failed });
        let peer = Rc::new(opened?);
        place.open.borrow_mut().push(peer.clone());
        drop(opening);
        Ok(Lease { peer, worker: worker.clone() })
    }

    /// Takes over a connection that is open already.
    pub async fn adopt(&self, worker: &Rc<Worker>, member: &Arc<Member>, hop: &Hop, link: Rc<Link>) {
        // Nobody else has it: it was made for one session.
        let Ok(link) = Rc::try_unwrap(link) else { return };
        let (stream, first) = link.into_parts();
        let plain = stream.tcp().is_some();
        let watch = worker.clock.watch(member);
        // One that fails is replaced by a new one, which says why.
        if let Ok(peer) = run(worker, Io::new(stream, first), plain, watch).await {
            peer.streams.set(0);
            let place: Rc<Place> =
                self.places.borrow_mut().entry(key(worker, member, hop)).or_default().clone();
            place.open.borrow_mut().push(Rc::new(peer));
        }
    }

    /// Drops what has rested for too long, and what a changed snapshot no longer serves: its streams go on.
    pub fn sweep(&self, now: u64, limit: Duration, changed: Option<&Snapshot>) {
        let oldest = now.saturating_sub(limit.as_millis() as u64);
        self.places.borrow_mut().retain(|key, place| {
            let served = changed.is_none_or(|snapshot| serves(snapshot, key));
            // Its source may have done without encryption, and does so no longer; or the other way round.
            let wanted = |peer: &Peer| {
                key.tunnel == 0 || changed.is_none_or(|now| peer.plain == is_plain(now, key.source))
            };
            let mut open = place.open.borrow_mut();
            open.retain(|peer| {
                let rests = peer.streams.get() == 0;
                !peer.dead.get() && served && wanted(peer) && !(rests && peer.idle_since.get() < oldest)
            });
            // Somebody opens one, or waits for it.
            !open.is_empty() || Rc::strong_count(place) > 1
        });
    }

    /// Drops the connections of a workload.
    pub fn forget(&self, workload: u32) {
        self.places.borrow_mut().retain(|key, _| key.source != workload);
    }
}

fn key(worker: &Worker, member: &Member, hop: &Hop) -> PoolKey {
    PoolKey {
        source: member.workload,
        service: hop.service,
        endpoint: hop.endpoint,
        address: hop.address,
        tunnel: hop.tunnel,
        origination: worker.with_snapshot(|snapshot| number(snapshot, hop.service)),
    }
}

/// Opens a connection.
async fn open(worker: &Rc<Worker>, member: &Arc<Member>, hop: &Hop) -> Result<Peer, ProxyError> {
    let watch = worker.clock.watch(member);
    let target = hop.target(worker, member)?;
    let stream = transport::open(worker, &target, &watch).await?;
    let plain = stream.tcp().is_some();
    run(worker, Io::new(stream, None), plain, watch).await
}

/// Lets a connection run until it ends: when nobody holds it any more, or its workload leaves.
async fn run(worker: &Rc<Worker>, io: Io, plain: bool, watch: Watched) -> Result<Peer, ProxyError> {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_BYTES)
        .max_send_buffer_size(UNSENT);
    let shaken = builder.handshake::<_, Bytes>(io).await;
    let (send, mut connection) = shaken.map_err(|_| ProxyError::UpstreamClosed)?;
    let dead = Rc::new(Cell::new(false));
    let ended = dead.clone();
    drop(tokio::task::spawn_local(async move {
        let driven = std::future::poll_fn(|cx| {
            if watch.poll_call(cx).is_ready() {
                return std::task::Poll::Ready(());
            }
            std::pin::Pin::new(&mut connection).poll(cx).map(drop)
        });
        driven.await;
        ended.set(true);
    }));
    Ok(Peer { plain, send, streams: Cell::new(1), dead, idle_since: Cell::new(worker.clock.now()) })
}
