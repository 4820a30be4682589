//! A connection in TLS with the outside that behaves as a TCP socket does.
//!
//! What is written is reported as written when the socket has all of it: until then a write is pending, and is to be
//! repeated with the same bytes first, as links do. So nothing waits here that nobody knows of.
//! A clean end of the peer is its `close_notify`: TCP's end alone is an error, so that nobody can cut an answer short
//! unseen.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::ClientConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes sealed at a time: two records.
const PIECE: usize = 32 * 1024;

/// An open connection.
pub struct Originated {
    tcp: TcpStream,
    tls: ClientConnection,
    /// Bytes of the write that is pending, sealed already.
    owed: usize,
    ended: bool,
}

/// The socket as rustls knows one.
struct Raw<'a>(&'a TcpStream);

impl io::Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl io::Write for Raw<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn blocks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl Originated {
    /// After the handshake.
    pub fn new(tcp: TcpStream, mut tls: ClientConnection) -> Self {
        // Bounded here, by what is sealed at a time.
        tls.set_buffer_limit(None);
        Self { tcp, tls, owed: 0, ended: false }
    }

    /// Makes dropping it send a reset.
    pub fn reset(&self) {
        // Fails only on a socket that is gone already.
        let _ = sockopt::set_socket_linger(&self.tcp, Some(Duration::ZERO));
    }

    /// Nothing has arrived, not even an end.
    pub fn quiet(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        let mut byte = [0];
        self.poll_plain(&mut nobody, &mut byte).is_pending()
    }

    /// Writes what is sealed. Ready: all of it.
    fn poll_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Raw(&self.tcp)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if blocks(&error) => ready!(self.tcp.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_plain(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.tls.reader().read(buf) {
                Err(error) if blocks(&error) => {}
                done => return Poll::Ready(done),
            }
            match self.tls.read_tls(&mut Raw(&self.tcp)) {
                Ok(_) => {
                    let told = self.tls.process_new_packets();
                    // An answer of TLS itself: a new key, an alert. What the socket does not take goes with the next.
                    if self.poll_sealed(cx).is_pending() {
                        tracing::trace!("TLS waits to be written");
                    }
                    told.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                }
                Err(error) if blocks(&error) => ready!(self.tcp.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Originated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.poll_plain(cx, buf.initialize_unfilled()))?;
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Originated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.owed == 0 {
            let piece = &bytes[..bytes.len().min(PIECE)];
            self.owed = self.tls.writer().write(piece)?;
        }
        ready!(self.poll_sealed(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.owed)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sealed(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            self.tls.send_close_notify();
        }
        ready!(self.poll_sealed(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
