//! Everything that listens here speaks TLS 1.3 with a certificate of the mesh's own authority; the REST
//! port may show a given one ([`given`]).
//!
//! [`accept`] turns a listening socket into finished handshakes: both servers (REST and agents) take their
//! connections from it, so limits and timeouts stand in one place.
//!
//! Invariant: a port has at most [`CONNECTIONS`] connections, handshakes included, and a handshake takes at
//! most [`HANDSHAKE_TIME`]; further clients wait in the listening socket's backlog.

mod connection;
pub mod given;

pub use connection::{Connection, Origin};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::ca::verify::Clients;
use crate::stop::stopped;

/// Connections at once, a port.
const CONNECTIONS: usize = 4096;
/// Finished handshakes that wait for the server to take them.
const ACCEPTED: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Pause after a failed accept (no descriptors left): the cause does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The certificate that is shown now; replaced while the server runs.
#[derive(Debug)]
pub struct ServerCert(RwLock<Arc<CertifiedKey>>);

impl ServerCert {
    /// Starts with `key`.
    pub fn new(key: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(key)))
    }

    /// Connections from now on see `key`.
    pub fn replace(&self, key: Arc<CertifiedKey>) {
        *self.0.write() = key;
    }
}

impl ResolvesServerCert for ServerCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

/// TLS 1.3 only, `alpn` as the protocols offered; a client may show a certificate where there are `clients`, who
/// judge it.
pub fn acceptor(
    cert: Arc<ServerCert>,
    clients: Option<Arc<Clients>>,
    alpn: &[&[u8]],
) -> Result<TlsAcceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(cert);
    // A resumed session would bring the certificate of before, ended or revoked meanwhile.
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accepts on `listener` until `stop` turns true; finished handshakes come out of the channel.
pub fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    mut stop: watch::Receiver<bool>,
) -> mpsc::Receiver<Connection> {
    let (done, taken) = mpsc::channel(ACCEPTED);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped(&mut stop) => return,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, done) = (acceptor.clone(), done.clone());
            tokio::spawn(async move {
                if let Some(stream) = handshake(&acceptor, socket, peer).await {
                    // The server is gone: so is the connection.
                    let _ = done.send(Connection::new(stream, slot)).await;
                }
            });
        }
    });
    taken
}

async fn handshake(
    acceptor: &TlsAcceptor,
    socket: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    // A failure shows in latency only.
    let _ = socket.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%peer, "TLS handshake took too long");
            None
        }
    }
}
