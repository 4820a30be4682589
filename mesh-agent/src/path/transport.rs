//! How a connection reaches its endpoint. A [`Transport`] opens a [`Stream`] to a [`Target`]; what lies above
//! (pools, HTTP) does not know which transport it was.
//!
//! balance ──Target──▶ **transport** ──Stream──▶ http1, tcp
//!
//! [`open`]: through a tunnel or in TLS where the target says so, else plainly.
//!
//! [`Plain`]: a TCP socket made in the *source workload's* network namespace that dials the endpoint's real
//! address, so that network policy, accounting and the source address hold as without a mesh. It is marked
//! before `connect()`: an unmarked socket of the agent would be captured again.
//!
//! Invariant: a stream for which the application was to see the real client is opened only if the kernel
//! confirms that it will; else it is reset.
//! Not here: tunnels (hbone), TLS with what is outside of the mesh (origin).

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use mesh_core::error::ProxyError;
use mesh_core::outside::Origination;
use rustix::net::{RecvFlags, recv, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::buffers::Buf;
use super::clock::{Call, Clock, Watch};
use super::hbone::client::Via;
use super::hbone::pool;
use super::hbone::stream::TunnelStream;
use super::member::Member;
use super::origin::{self, Originated};
use super::sockets::{Leg, Sockets};
use super::worker::Worker;
use crate::sys::{bind_loopback, bind_port};

/// Where a connection is to go, and on whose behalf.
pub struct Target {
    /// The workload in whose namespace the socket is made.
    pub source: Arc<Member>,
    /// Address and port to dial.
    pub address: SocketAddr,
    /// Service that is called; 0: none.
    pub service: u32,
    /// Endpoint whose load it counts on; 0: none.
    pub endpoint: u32,
    /// The destination lives on this node.
    pub local: bool,
    /// The client that the application is to see.
    pub show: Option<SocketAddr>,
    /// How long opening may take.
    pub within: Duration,
    /// Through this tunnel; `None`: plainly.
    pub via: Option<Via>,
    /// In TLS with who is there; `None`: as it comes. Never both.
    pub origination: Option<Arc<Origination>>,
}

/// Opens connections to endpoints.
pub trait Transport {
    /// Opens one. `watch` is the caller's, disarmed when this returns.
    fn open(&self, target: &Target, watch: &Watch) -> impl Future<Output = Result<Stream, ProxyError>>;
}

/// Opens a connection in the way that its target asks for.
pub async fn open(worker: &Rc<Worker>, target: &Target, watch: &Watch) -> Result<Stream, ProxyError> {
    match (&target.via, &target.origination) {
        (None, None) => worker.transport.open(target, watch).await,
        (None, Some(origination)) => origin::open(worker, target, origination, watch).await,
        (Some(via), _) => pool::open(worker, target, via, watch).await,
    }
}

/// Plain TCP.
pub struct Plain {
    /// The kernel.
    pub sockets: Arc<dyn Sockets>,
    /// The worker's clock.
    pub clock: Rc<Clock>,
}

impl Transport for Plain {
    async fn open(&self, target: &Target, watch: &Watch) -> Result<Stream, ProxyError> {
        self.clock.arm(watch, target.within);
        let mut tries = 0;
        let connected = loop {
            match self.connect(target, watch).await {
                // Another connection has the source port that was drawn.
                Err(Failed::Connect(io::ErrorKind::AddrNotAvailable)) if tries < PORT_TRIES => tries += 1,
                done => break done,
            }
        };
        watch.disarm();
        let io = connected.map_err(|failed| match failed {
            Failed::Connect(kind) => ProxyError::connect(kind),
            Failed::Called(error) => error,
        })?;
        let handed = target.show.is_none() || self.sockets.handed_over(io.as_fd()).unwrap_or(false);
        let stream = Stream { io: Io::Tcp(io), spliced: false };
        if !handed {
            stream.reset();
            return Err(ProxyError::RecordLost);
        }
        Ok(stream)
    }
}

/// Source ports that are drawn for one connection.
const PORT_TRIES: u32 = 8;

/// Why a connection did not come to be.
enum Failed {
    /// `connect()` said so.
    Connect(io::ErrorKind),
    /// Nobody waits for it any more.
    Called(ProxyError),
}

impl Plain {
    async fn connect(&self, target: &Target, watch: &Watch) -> Result<TcpStream, Failed> {
        let failed = |error: io::Error| Failed::Connect(error.kind());
        let socket = self.socket(target).map_err(failed)?;
        let mut connect = pin!(socket.connect(target.address));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = connect.as_mut().poll(cx) {
                return Poll::Ready(done.map_err(failed));
            }
            watch.poll_call(cx).map(|call| {
                Err(Failed::Called(match call {
                    Call::Late => ProxyError::ConnectTimeout,
                    Call::Cut => ProxyError::Draining,
                }))
            })
        })
        .await
    }

    fn socket(&self, target: &Target) -> io::Result<TcpSocket> {
        let fd = self.sockets.socket(target.source.netns.as_fd(), target.address.is_ipv6())?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        if target.show.is_some() {
            // To one address and port, from the same address: ports would run out at the size of their range.
            match target.address.ip() {
                IpAddr::V4(_) => bind_loopback(fd.as_fd(), fastrand::u32(..))?,
                IpAddr::V6(own) => bind_port(fd.as_fd(), own, || fastrand::u16(..))?,
            }
        }
        self.sockets.mark_leg(
            fd.as_fd(),
            &Leg {
                workload: target.source.workload,
                identity: target.source.identity,
                service: target.service,
                endpoint: target.endpoint,
                local: target.local,
                show: target.show,
            },
        )?;
        Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(fd)))
    }
}

/// A connection, whichever transport opened or accepted it. Owned by one worker.
pub struct Stream {
    io: Io,
    /// It has two queues: a read that was short says nothing of the other one.
    spliced: bool,
}

enum Io {
    Tcp(TcpStream),
    Tunnel(Box<TunnelStream>),
    Tls(Box<Originated>),
}

/// What asks for a socket of a connection inside a tunnel.
fn tunnelled() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

impl Stream {
    /// A connection inside a tunnel.
    pub fn tunnelled(stream: TunnelStream) -> Self {
        Self { io: Io::Tunnel(Box::new(stream)), spliced: false }
    }

    /// A connection in TLS.
    pub fn originated(stream: Originated) -> Self {
        Self { io: Io::Tls(Box::new(stream)), spliced: false }
    }

    /// Its socket; `None`: it is inside a tunnel or TLS.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.io {
            Io::Tcp(tcp) => Some(tcp),
            Io::Tunnel(_) | Io::Tls(_) => None,
        }
    }

    /// Gives its socket away.
    pub fn into_tcp(self) -> Option<TcpStream> {
        match self.io {
            Io::Tcp(tcp) => Some(tcp),
            Io::Tunnel(_) | Io::Tls(_) => None,
        }
    }

    /// Whole buffers can be handed over to it.
    pub fn takes_buffers(&self) -> bool {
        matches!(self.io, Io::Tunnel(_))
    }

    /// Hands a whole buffer over; ready: it was taken.
    pub fn poll_hand_over(&mut self, cx: &mut Context<'_>, out: &mut Option<Buf>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(_) | Io::Tls(_) => Poll::Ready(Err(tunnelled())),
            Io::Tunnel(stream) => stream.poll_hand_over(cx, out),
        }
    }

    /// Bytes that were handed over and have not been sent.
    pub fn unsent(&self) -> usize {
        match &self.io {
            Io::Tcp(_) | Io::Tls(_) => 0,
            Io::Tunnel(stream) => stream.unsent(),
        }
    }

    /// An accepted connection.
    pub fn accepted(io: TcpStream) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&io, true)?;
        Ok(Self { io: Io::Tcp(io), spliced: false })
    }

    /// What comes to it may go past TCP: it is read until nothing is left, however short a read was.
    #[must_use]
    pub fn spliced(self) -> Self {
        Self { spliced: true, ..self }
    }

    /// Our own end.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.tcp().ok_or_else(tunnelled)?.local_addr()
    }

    /// The other end.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.tcp().ok_or_else(tunnelled)?.peer_addr()
    }

    /// Makes dropping it send a reset instead of a clean end.
    pub fn reset(&self) {
        match &self.io {
            // Fails only on a socket that is gone already.
            Io::Tcp(tcp) => drop(sockopt::set_socket_linger(tcp, Some(Duration::ZERO))),
            Io::Tunnel(stream) => stream.reset(),
            Io::Tls(stream) => stream.reset(),
        }
    }

    /// Nothing has arrived, not even an end.
    pub fn quiet(&mut self) -> bool {
        let tcp = match &mut self.io {
            Io::Tcp(tcp) => tcp,
            Io::Tunnel(stream) => return stream.quiet(),
            Io::Tls(stream) => return stream.quiet(),
        };
        let mut nobody = Context::from_waker(Waker::noop());
        if tcp.poll_read_ready(&mut nobody).is_pending() {
            return true;
        }
        let mut byte = [0];
        matches!(tcp.try_read(&mut byte), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let spliced = self.spliced;
        let tcp = match &mut self.io {
            Io::Tcp(tcp) => tcp,
            Io::Tunnel(stream) => return Pin::new(&mut **stream).poll_read(cx, buf),
            Io::Tls(stream) => return Pin::new(&mut **stream).poll_read(cx, buf),
        };
        if !spliced {
            return Pin::new(tcp).poll_read(cx, buf);
        }
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            // Readable until the kernel says otherwise: tokio would take a short read for the last one.
            let receive = || Ok(recv(&*tcp, buf.initialize_unfilled(), RecvFlags::empty())?.0);
            match tcp.try_io(Interest::READABLE, receive) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Io::Tunnel(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tunnel(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rig::{Client, Fake, nobody, server};
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Instant;

    fn open(address: SocketAddr, show: bool, refuses: bool) -> Result<Stream, ProxyError> {
        let fake = Arc::new(Fake::default());
        fake.refuses_handover.store(refuses, SeqCst);
        let clock = Rc::new(Clock::new(Instant::now()));
        let source = Member::for_tests();
        let watched = clock.watch(&source);
        let plain = Plain { sockets: fake, clock };
        let show = show.then_some(address);
        let within = Duration::from_secs(5);
        let target = Target {
            source,
            address,
            service: 1,
            endpoint: 1,
            local: true,
            show,
            within,
            via: None,
            origination: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(plain.open(&target, &watched))
    }

    #[test]
    fn a_client_that_the_application_would_not_see_is_refused() {
        let (told, hear) = std::sync::mpsc::channel();
        let told = std::sync::Mutex::new(told);
        let application = server(move |mut client: Client| {
            let _ = told.lock().unwrap().send(client.is_reset());
        });
        assert!(open(application, true, false).is_ok());
        assert!(!hear.recv().unwrap(), "a clean end");
        assert_eq!(open(application, true, true).err(), Some(ProxyError::RecordLost));
        assert!(hear.recv().unwrap(), "a reset");
        assert!(open(application, false, true).is_ok(), "nobody is to be shown");
        assert_eq!(open(nobody(), false, false).err(), Some(ProxyError::ConnectRefused));
    }

    #[test]
    fn a_spliced_stream_is_read_until_nothing_is_left() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            for spliced in [false, true] {
                let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let stream = Stream::accepted(listener.accept().await.unwrap().0).unwrap();
                let mut stream = if spliced { stream.spliced() } else { stream };
                client.write_all(b"hello").await.unwrap();
                let mut read = [0; 64];
                assert_eq!(stream.read(&mut read).await.unwrap(), 5);
                assert_eq!(&read[..5], b"hello");
                let mut nobody = Context::from_waker(Waker::noop());
                assert_eq!(
                    stream.tcp().unwrap().poll_read_ready(&mut nobody).is_ready(),
                    spliced,
                    "after a short read"
                );
                drop(client);
                assert_eq!(stream.read(&mut read).await.unwrap(), 0, "its end");
            }
        });
    }
}
