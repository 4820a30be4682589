//! A TLS connection that holds its place in the port's limit for as long as it lives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::ca::peer::{Guest, Peer};

/// Where a call comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Addresses.
    pub tcp: TcpConnectInfo,
    /// The node that showed a certificate; `None`: nobody did, or not a node.
    pub peer: Option<Arc<Peer>>,
    /// The Envoy or client of gRPC that showed one.
    pub guest: Option<Arc<Guest>>,
}

/// One client.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Option<Arc<Peer>>,
    guest: Option<Arc<Guest>>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(stream: TlsStream<TcpStream>, slot: OwnedSemaphorePermit) -> Self {
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = shown.and_then(Peer::of).map(Arc::new);
        let guest = shown.and_then(Guest::of).map(Arc::new);
        Self { stream, peer, guest, _slot: slot }
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        Origin {
            tcp: self.stream.get_ref().0.connect_info(),
            peer: self.peer.clone(),
            guest: self.guest.clone(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
