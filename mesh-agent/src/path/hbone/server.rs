//! This end is called: connections to port 15008 of a workload become tunnels, and CONNECTs in them connections to it.
//!
//! accept ──TCP──▶ **server**: TLS ─▶ HTTP/2 ─▶ CONNECT ─▶ head (mesh-core) ─▶ authorise ─▶ dial ─▶ 200 ─▶ copy, http1
//!
//! The caller is who the tunnel's certificate says, and nobody else: no header of a CONNECT decides anything. What is
//! dialled is the workload's own address, whatever name or form was asked by, and it sees the address of the peer.
//!
//! Invariants: 200 is said only once the application has taken the connection, and then exactly that; a refusal has a
//! status and no body. A handshake takes no longer than [`Limits::tunnel`](super::super::Limits::tunnel).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use mesh_core::authorise::Seen;
use mesh_core::error::ProxyError;
use mesh_core::hbone::{self, Called, Refused};
use mesh_core::snapshot::Snapshot;
use mesh_identity::{tls, verify};
use rustls::ServerConnection;
use tokio::net::TcpStream;

use super::super::authorise::{Whose, opaque};
use super::super::clock::Watched;
use super::super::inbound::way_to_own;
use super::super::intercept::{Hop, Session, To, plain};
use super::super::link::Link;
use super::super::member::{Admitted, Held, Member};
use super::super::stats::{Direction, Spoken, one};
use super::super::transport::{Stream, Transport as _};
use super::super::worker::Worker;
use super::super::{http1, http2, intercept, tcp};
use super::client::of_h2;
use super::drive::{Connection, Driver, Incoming};
use super::stats::{Outcome, Role, Tally};
use super::stream::TunnelStream;
use super::tunnel::{Call, Proved, Slot, Tunnel};
use super::wire::Wire;
use super::{LOGGED, h2_server, shown};

/// Was it opened to the port of tunnels, of one of the member's own addresses?
pub fn is_asked(member: &Member, stream: &Stream) -> bool {
    let wanted = stream.local().map(plain);
    wanted.is_ok_and(|wanted| wanted.port() == hbone::PORT && member.is_at(wanted.ip()))
}

/// Serves one such connection to its end.
pub async fn serve(worker: Rc<Worker>, member: Arc<Member>, stream: Stream) {
    let (Ok(peer), Some(tcp)) = (stream.peer().map(plain), stream.into_tcp()) else { return };
    let begun = tokio::time::timeout(worker.limits.tunnel, begin(&worker, &member, tcp, peer)).await;
    let (outcome, begun) = match begun {
        Ok(Ok(begun)) => (Outcome::Done, Some(begun)),
        Ok(Err(Failed::Named(outcome))) => (outcome, None),
        Ok(Err(Failed::Io(error))) => (Outcome::of(&error), None),
        Err(_) => (Outcome::Timeout, None),
    };
    worker.shared.tunnels.handshake(Role::Server, outcome);
    let Some((connection, wire, tunnel)) = begun else {
        if LOGGED.take() {
            let workload = member.workload;
            tracing::warn!(workload, %peer, ?outcome, "a peer's handshake failed");
        }
        return;
    };
    worker.tunnels.watch(&tunnel);
    let calls = {
        let (worker, tunnel) = (worker.clone(), tunnel.clone());
        move |incoming| {
            // Counted before anything else runs.
            let slot = Slot::new(&tunnel);
            drop(tokio::task::spawn_local(answer(worker.clone(), slot, incoming)));
        }
    };
    let end = Driver::new(Connection::Server(connection), wire, tunnel, worker.limits.ping, calls).await;
    tracing::debug!(%peer, ?end, "a tunnel ended");
}

/// For a peer that was refused to read why.
const PART: Duration = Duration::from_secs(1);

enum Failed {
    Named(Outcome),
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

type Begun = (h2::server::Connection<Wire, super::piece::Piece>, Wire, Rc<Tunnel>);

async fn begin(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    tcp: TcpStream,
    address: SocketAddr,
) -> Result<Begun, Failed> {
    let shown = shown(worker, member).await.map_err(|_| Failed::Named(Outcome::NoCertificate))?;
    let config = tls::server(&worker.identities.provider, &shown.svid, &shown.roots);
    let tls = config
        .and_then(|config| ServerConnection::new(Arc::new(config)))
        .map_err(|error| Failed::Io(io::Error::other(error)))?;
    let wire = Wire::new(tcp, tls.into(), worker.buffers.clone());
    if let Err(error) = wire.handshake().await {
        wire.part(PART).await;
        return Err(Failed::Io(error));
    }
    let chain = wire.peer();
    let leaf = chain.first().ok_or(mesh_identity::Refused::Missing);
    let peer = leaf.and_then(verify::identity_in);
    let peer = peer.map_err(|refused| Failed::Named(Outcome::Theirs(refused)))?;
    let mut handshake = std::pin::pin!(h2_server().handshake(wire.clone()));
    // Our settings go out while the client's preface is waited for.
    let connection = std::future::poll_fn(|cx| {
        let shaken = handshake.as_mut().poll(cx);
        if let Poll::Ready(Err(error)) = wire.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        shaken.map_err(of_h2)
    })
    .await
    .map_err(|error| wire.cause(error))?;
    let proved = Proved { peer, address, chain, not_after: shown.svid.not_after, bundle: shown.bundle };
    let tunnel =
        Rc::new(Tunnel::new(member, proved, Tally::new(&worker.shared, Role::Server), &worker.clock));
    Ok((connection, wire, tunnel))
}

/// The workload as a CONNECT's head sees it.
struct Own<'a> {
    member: &'a Member,
    snapshot: &'a Snapshot,
}

impl Called for Own<'_> {
    fn is_at(&self, address: IpAddr) -> bool {
        self.member.is_at(address)
    }

    fn has(&self, port: u16) -> bool {
        self.snapshot.workloads.get(&self.member.workload).is_some_and(|workload| {
            !workload.host_network || workload.ports.iter().any(|own| own.port == port && !own.udp())
        })
    }

    /// `NAME.NAMESPACE.svc.…` or `NAME.NAMESPACE.…`, and the service's port.
    fn serves(&self, host: &str, port: u16) -> Option<u16> {
        let mut labels = host.split('.');
        let (name, namespace) = (labels.next()?, labels.next()?);
        let workload = self.snapshot.workloads.get(&self.member.workload)?;
        workload.ports.iter().find_map(|own| {
            let service = self.snapshot.services.get(&own.service)?;
            let named = &*service.name == name && &*service.namespace == namespace;
            (named && service.port == port && !own.udp()).then_some(own.port)
        })
    }
}

/// Where a CONNECT goes, and what is spoken there.
fn way(worker: &Worker, tunnel: &Rc<Tunnel>, incoming: &Incoming) -> Result<(Hop, Spoken), Refused> {
    let member = &*tunnel.member;
    let request = &incoming.0;
    worker.with_snapshot(|snapshot| {
        let own = Own { member, snapshot };
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        let port = hbone::port(request.method().as_str(), authority, &own)?;
        let from = tunnel.address.ip();
        let address = match (from, member.addr4, member.addr6) {
            (IpAddr::V4(_), Some(v4), _) | (_, Some(v4), None) => IpAddr::V4(v4),
            (_, _, Some(v6)) => IpAddr::V6(v6),
            (_, None, None) => return Err(Refused::Address),
        };
        if !tunnel.admits(snapshot, port, Seen::Unknown) {
            return Err(Refused::Denied);
        }
        let (whose, ends) = (Whose::Tunnel(tunnel.clone()), (SocketAddr::new(address, port), tunnel.address));
        Ok(way_to_own(snapshot, &*worker.sockets, member.workload, &whose, ends))
    })
}

/// A connection to the application, and what it holds.
struct Opened {
    hop: Hop,
    spoken: Spoken,
    admitted: Admitted,
    watch: Watched,
    upstream: Stream,
    _call: Call,
}

/// Opens what a CONNECT asks for; `None`: the peer has given up meanwhile.
async fn open(
    worker: &Rc<Worker>,
    tunnel: &Rc<Tunnel>,
    incoming: &mut Incoming,
) -> Result<Option<Opened>, Refused> {
    let member = &tunnel.member;
    let (hop, spoken) = way(worker, tunnel, incoming)?;
    if spoken == Spoken::Tcp {
        let whose = Whose::Tunnel(tunnel.clone());
        opaque(worker, member, &whose, &hop).map_err(|_| Refused::Denied)?;
    }
    let Some(admitted) = Admitted::new(member, &worker.shared) else {
        one(&worker.shared.counters.budget_connections);
        return Err(Refused::Budget);
    };
    let watch = worker.clock.watch(member);
    // From here on: a policy that changes while it is dialled counts.
    let call = Call::new(tunnel, hop.address.port(), spoken == Spoken::Tcp, watch.rc());
    let dialled = dial(worker, member, &hop, &watch, incoming).await;
    let stream = dialled.map_err(|_| Refused::Unreachable)?;
    Ok(stream.map(|upstream| Opened { hop, spoken, admitted, watch, upstream, _call: call }))
}

/// Answers one CONNECT, and serves its connection.
async fn answer(worker: Rc<Worker>, slot: Slot, mut incoming: Incoming) {
    let tunnel = slot.tunnel().clone();
    let member = tunnel.member.clone();
    let opened = open(&worker, &tunnel, &mut incoming).await;
    let (request, mut respond) = incoming;
    let Opened { hop, spoken, admitted, watch, upstream, _call } = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(refused) => return refuse(&worker, &tunnel, &request, respond, refused),
    };
    let Ok(send) = respond.send_response(Response::new(()), false) else { return upstream.reset() };
    let stream = TunnelStream::new(send, request.into_body(), slot);
    let client = Rc::new(Link::new(Stream::tunnelled(stream)));
    client.own(Some(watch.rc().clone()));
    let upstream = Rc::new(Link::new(upstream));
    upstream.own(Some(watch.rc().clone()));
    let session = Session {
        direction: Direction::In,
        to: To::Hop(hop),
        whose: Whose::Tunnel(tunnel),
        prefer_v6: hop.address.is_ipv6(),
        held: Held::new(&member),
        worker,
        member,
        client,
        watch,
    };
    match spoken {
        Spoken::Http1 | Spoken::Http2 | Spoken::Grpc if http2::is_spoken(&session).await => {
            http2::serve_over(session, hop, upstream).await;
        }
        Spoken::Http1 | Spoken::Http2 | Spoken::Grpc => http1::serve_over(session, upstream).await,
        Spoken::Tcp | Spoken::Tls => {
            let begun = Instant::now();
            let end =
                tcp::copy(&session.worker, &session.watch, &session.client, &upstream, &session.held).await;
            intercept::record_tcp(&session, &hop, end.reason(), begun);
        }
    }
    drop(admitted);
}

/// Dials the application; `None`: the peer has given up meanwhile.
async fn dial(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    hop: &Hop,
    watch: &Watched,
    incoming: &mut Incoming,
) -> Result<Option<Stream>, ProxyError> {
    let target = hop.target(worker, member)?;
    let mut opening = std::pin::pin!(worker.transport.open(&target, watch));
    let opened = std::future::poll_fn(|cx| {
        if let Poll::Ready(opened) = opening.as_mut().poll(cx) {
            return Poll::Ready(opened.map(Some));
        }
        incoming.1.poll_reset(cx).map(|_| Ok(None))
    })
    .await;
    let counters = &worker.shared.counters;
    one(if opened.is_ok() { &counters.upstream_opened } else { &counters.upstream_failed });
    opened
}

fn refuse(
    worker: &Worker,
    tunnel: &Tunnel,
    request: &http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<super::piece::Piece>,
    refused: Refused,
) {
    worker.shared.tunnels.refused(refused);
    if LOGGED.take() {
        let (workload, uri) = (tunnel.member.workload, request.uri());
        tracing::warn!(workload, peer = %tunnel.peer, address = %tunnel.address, %uri, reason = refused.reason(), "a CONNECT is refused");
    }
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::from_u16(refused.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    // The peer may have gone.
    let _ = respond.send_response(answer, true);
}
