//! This end calls: a tunnel is dialled, and connections are opened in it.
//!
//! A tunnel counts as open once the peer's SETTINGS have come: with TLS 1.3 a client does not know before that the
//! peer believes it, and how many streams it may open. That costs one round trip a tunnel, and none a connection.
//!
//! Invariants: dialling takes no longer than [`Limits::tunnel`](super::super::Limits::tunnel), whatever the peer does.
//! A CONNECT is repeated elsewhere only where the peer cannot have acted on it, or its tunnel has broken before the
//! answer: nothing was sent but its head.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use mesh_api::spiffe::SpiffeId;
use mesh_core::error::ProxyError;
use mesh_identity::{Refused, tls, verify};
use rustls::ClientConnection;

use super::super::member::Member;
use super::super::transport::{Target, Transport as _};
use super::super::worker::Worker;
use super::drive::{Connection, Driver, End};
use super::piece::Piece;
use super::stats::{Outcome, Role, Tally};
use super::stream::TunnelStream;
use super::tunnel::{Proved, Slot, Tunnel};
use super::wire::Wire;
use super::{LOGGED, STREAMS_OUT, UNTOLD, h2_client, shown};

/// The way to an endpoint through a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// Where the tunnel goes: the workload's address and port 15008, or a gateway's.
    pub address: SocketAddr,
    /// What is asked for there.
    pub authority: SocketAddr,
    /// Who may be there.
    pub expected: Arc<[SpiffeId]>,
    /// The workload's `NAMESPACE/NAME`, for an address that several share.
    pub workload: Arc<str>,
}

/// A tunnel that connections can be opened in.
pub struct Client {
    tunnel: Rc<Tunnel>,
    /// `None`: no more.
    send: RefCell<Option<SendRequest<Piece>>>,
}

/// What became of a CONNECT that brought no stream.
pub enum Asked {
    /// Nothing happened there: another tunnel may be asked.
    Again,
    /// This.
    Refused(ProxyError),
}

impl Client {
    /// Its tunnel.
    pub fn tunnel(&self) -> &Rc<Tunnel> {
        &self.tunnel
    }

    /// A place for one more stream; `None`: it takes none now.
    pub fn slot(&self) -> Option<Slot> {
        let send = self.send.borrow();
        let most = send.as_ref()?.current_max_send_streams().min(STREAMS_OUT);
        (self.tunnel.serves() && (self.tunnel.streams() as usize) < most).then(|| Slot::new(&self.tunnel))
    }

    /// Opens no more.
    pub fn close(&self) {
        *self.send.borrow_mut() = None;
    }

    /// Opens a connection in it.
    pub async fn connect(&self, authority: SocketAddr, slot: Slot) -> Result<TunnelStream, Asked> {
        let failed = |error: &h2::Error| {
            if error.is_go_away() || error.is_io() {
                self.close();
            }
            let untouched = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            if untouched || error.is_go_away() || error.is_io() {
                return Asked::Again;
            }
            Asked::Refused(ProxyError::TunnelRefused)
        };
        let send = self.send.borrow().clone();
        let send = send.ok_or(Asked::Again)?;
        let Ok(mut send) = send.ready().await else {
            self.close();
            return Err(Asked::Again);
        };
        let request = connect(authority).map_err(|_| Asked::Refused(ProxyError::Internal))?;
        let (answer, body) = send.send_request(request, false).map_err(|error| failed(&error))?;
        drop(send);
        let answer = answer.await.map_err(|error| failed(&error))?;
        match answer.status() {
            StatusCode::OK => Ok(TunnelStream::new(body, answer.into_body(), slot)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Asked::Refused(ProxyError::DeniedByPolicy))
            }
            _ => Err(Asked::Refused(ProxyError::TunnelRefused)),
        }
    }
}

fn connect(authority: SocketAddr) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder().authority(authority.to_string()).build()?;
    Request::builder().method(Method::CONNECT).uri(uri).body(())
}

/// Dials a tunnel on behalf of a workload.
pub async fn dial(worker: &Rc<Worker>, member: &Arc<Member>, via: &Via) -> Result<Rc<Client>, ProxyError> {
    let limit = worker.limits.tunnel;
    let dialled = tokio::time::timeout(limit, begin(worker, member, via)).await;
    let (outcome, result) = match dialled {
        Ok(Ok(client)) => (Outcome::Done, Ok(client)),
        Ok(Err(Failed::Refused(error))) => {
            // Not reached: no handshake was begun.
            return Err(error);
        }
        Ok(Err(Failed::Handshake(error))) => {
            let outcome = Outcome::of(&error);
            (outcome, Err(refused(worker, member, via, outcome, &error)))
        }
        Err(_) => (Outcome::Timeout, Err(ProxyError::TunnelTimeout)),
    };
    worker.shared.tunnels.handshake(Role::Client, outcome);
    result
}

enum Failed {
    /// Before the handshake.
    Refused(ProxyError),
    /// In it.
    Handshake(io::Error),
}

fn refused(worker: &Worker, member: &Member, via: &Via, outcome: Outcome, error: &io::Error) -> ProxyError {
    if LOGGED.take() {
        let source = worker.with_snapshot(|snapshot| {
            snapshot.workloads.get(&member.workload).map(|workload| workload.full_name.clone())
        });
        let expected: Vec<String> = via.expected.iter().map(ToString::to_string).collect();
        tracing::warn!(
            source = source.as_deref().unwrap_or_default(), destination = %via.workload, address = %via.address,
            ?expected, ?outcome, %error, "no tunnel"
        );
    }
    match outcome {
        Outcome::Theirs(Refused::WrongIdentity) => ProxyError::TlsWrongIdentity,
        Outcome::Theirs(_) => ProxyError::TlsPeerUntrusted,
        Outcome::Ours(_) => ProxyError::TlsRefusedByPeer,
        _ => ProxyError::TunnelFailed,
    }
}

async fn begin(worker: &Rc<Worker>, member: &Arc<Member>, via: &Via) -> Result<Rc<Client>, Failed> {
    let shown = shown(worker, member).await.map_err(|error| {
        worker.shared.tunnels.handshake(Role::Client, Outcome::NoCertificate);
        Failed::Refused(error)
    })?;
    let target = Target {
        source: member.clone(),
        address: via.address,
        service: 0,
        endpoint: 0,
        local: false,
        show: None,
        within: worker.limits.connect,
        via: None,
        origination: None,
    };
    let watch = worker.clock.watch(member);
    let stream = worker.transport.open(&target, &watch).await.map_err(Failed::Refused)?;
    drop(watch);
    let tcp = stream.into_tcp().ok_or(Failed::Refused(ProxyError::Internal))?;
    let config = tls::client(&worker.identities.provider, &shown.svid, &shown.roots, via.expected.to_vec());
    let tls = config
        .and_then(|config| ClientConnection::new(Arc::new(config), tls::server_name(&via.workload)))
        .map_err(|error| Failed::Handshake(io::Error::other(error)))?;
    let wire = Wire::new(tcp, tls.into(), worker.buffers.clone());
    let broken = |error: h2::Error| Failed::Handshake(wire.cause(of_h2(error)));
    wire.handshake().await.map_err(Failed::Handshake)?;
    let (send, mut connection) = h2_client().handshake::<_, Piece>(wire.clone()).await.map_err(broken)?;
    std::future::poll_fn(|cx| {
        use std::task::Poll;
        let ended = std::pin::Pin::new(&mut connection).poll(cx);
        if let Poll::Ready(Err(error)) = wire.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        match ended {
            Poll::Ready(Ok(())) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(of_h2(error))),
            Poll::Pending if connection.max_concurrent_send_streams() == UNTOLD => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        }
    })
    .await
    .map_err(|error| Failed::Handshake(wire.cause(error)))?;
    let chain = wire.peer();
    let peer = chain.first().map_or(Err(Refused::Missing), verify::identity_in);
    let peer = peer.map_err(|_| Failed::Refused(ProxyError::TlsPeerUntrusted))?;
    let proved =
        Proved { peer, address: via.address, chain, not_after: shown.svid.not_after, bundle: shown.bundle };
    let tunnel =
        Rc::new(Tunnel::new(member, proved, Tally::new(&worker.shared, Role::Client), &worker.clock));
    worker.tunnels.watch(&tunnel);
    let driver =
        Driver::new(Connection::Client(connection), wire, tunnel.clone(), worker.limits.ping, |_| {});
    tokio::task::spawn_local({
        let address = via.address;
        async move {
            let end = driver.await;
            if end != End::Clean {
                tracing::debug!(%address, ?end, "a tunnel ended");
            }
        }
    });
    Ok(Rc::new(Client { tunnel, send: RefCell::new(Some(send)) }))
}

/// The cause of HTTP/2's error, where it is one of TLS.
pub(super) fn of_h2(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::other(error)
}
