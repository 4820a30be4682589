//! TLS over a TCP connection, written to once a turn.
//!
//! HTTP/2 hands over a frame at a time and asks for each to be flushed. What is small is gathered into one record, and
//! nothing reaches the socket before [`Wire::poll_send`], which the tunnel's driver calls behind everything that it had
//! to do in its turn. So 64 answers to 64 streams are a few records and one system call.
//!
//! Invariants: at most [`UNSENT`] bytes wait for the socket; what is more waits in the streams. A clean end of the
//! peer is its `close_notify`: TCP's end alone is an error, so that nobody can cut a tunnel short unseen.
//! Not here: what a certificate must be (mesh-identity).

use std::cell::RefCell;
use std::io::{self, BufRead as _, IoSlice, Write};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::Connection;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::super::buffers::{Buf, Pool};

/// Bytes that may wait for the socket.
const UNSENT: usize = 256 * 1024;
/// A record's worth: what is smaller is gathered.
const RECORD: usize = 16 * 1024;

/// One end of a TLS connection. Its clones are the same.
#[derive(Clone)]
pub struct Wire {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    tcp: TcpStream,
    tls: Connection,
    /// Read from the socket and not yet understood.
    raw: Option<Buf>,
    pool: Rc<Pool>,
    /// Gathered, not sealed yet.
    plain: Vec<u8>,
    /// Bytes sealed since the socket took everything.
    sealed: usize,
    /// What TLS found wrong: HTTP/2 passes the kind of an error on, and not its cause.
    fault: Option<rustls::Error>,
    /// `close_notify` is among what is to be sent.
    said_end: bool,
}

impl Wire {
    /// TLS that has not begun.
    pub fn new(tcp: TcpStream, mut tls: Connection, pool: Rc<Pool>) -> Self {
        // Bounded here, by what the socket takes.
        tls.set_buffer_limit(None);
        let inner =
            Inner { tcp, tls, raw: None, pool, plain: Vec::new(), sealed: 0, fault: None, said_end: false };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Carries the handshake out.
    pub async fn handshake(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.inner.borrow_mut().poll_handshake(cx)).await
    }

    /// Writes what waits, as far as the socket takes it. Ready: everything.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.borrow_mut().poll_send(cx)
    }

    /// The peer's certificates, leaf first; known after the handshake.
    pub fn peer(&self) -> Vec<CertificateDer<'static>> {
        let inner = self.inner.borrow();
        let chain = inner.tls.peer_certificates().unwrap_or_default();
        chain.iter().map(|certificate| certificate.clone().into_owned()).collect()
    }

    /// What was wrong, where it was TLS that found it.
    pub fn cause(&self, error: io::Error) -> io::Error {
        match &self.inner.borrow().fault {
            Some(fault) => io::Error::new(io::ErrorKind::InvalidData, fault.clone()),
            None => error,
        }
    }

    /// Ends a connection so that the peer can read why: our end first, then what it still sends is thrown away.
    pub async fn part(&self, within: Duration) {
        let parting = std::future::poll_fn(|cx| {
            let mut inner = self.inner.borrow_mut();
            if ready!(inner.poll_send(cx)).is_err()
                || ready!(Pin::new(&mut inner.tcp).poll_shutdown(cx)).is_err()
            {
                return Poll::Ready(());
            }
            inner.raw = None;
            loop {
                let mut thrown = [0; 4096];
                let mut bytes = ReadBuf::new(&mut thrown);
                match ready!(Pin::new(&mut inner.tcp).poll_read(cx, &mut bytes)) {
                    Ok(()) if !bytes.filled().is_empty() => {}
                    _ => return Poll::Ready(()),
                }
            }
        });
        // The peer may be one that never ends.
        let _ = tokio::time::timeout(within, parting).await;
    }
}

impl Inner {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let sent = self.poll_send(cx)?;
            if !self.tls.is_handshaking() {
                return sent.map(Ok);
            }
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Takes more from the socket and understands it; 0: TCP's end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.raw.as_ref().is_none_or(Buf::is_empty) {
            let buf = self.raw.get_or_insert_with(|| self.pool.large());
            buf.compact();
            let read = pin!(self.tcp.read_buf(buf.bytes())).poll(cx);
            if buf.is_empty() {
                self.raw = None;
            }
            if ready!(read)? == 0 {
                // TLS is told, so that it says what that means.
                let _ = self.tls.read_tls(&mut io::empty());
                return Poll::Ready(Ok(0));
            }
        }
        let Some(raw) = self.raw.as_mut() else { return Poll::Ready(Ok(0)) };
        let mut bytes = raw.data();
        let taken = self.tls.read_tls(&mut bytes)?;
        raw.consume(taken);
        if raw.is_empty() {
            self.raw = None;
        }
        if let Err(error) = self.tls.process_new_packets() {
            // The alert says why. One try: the peer need not listen.
            let _ = self.poll_send(cx);
            self.fault = Some(error.clone());
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(taken.max(1)))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok([]) => return Poll::Ready(Ok(())),
                Ok(bytes) => {
                    let n = bytes.len().min(out.remaining());
                    out.put_slice(&bytes[..n]);
                    reader.consume(n);
                    if out.remaining() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.poll_more(cx) {
                        Poll::Ready(Ok(_)) => {}
                        // What was understood goes first.
                        Poll::Ready(Err(_)) | Poll::Pending if out.filled().len() > before => {
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Err(_) if out.filled().len() > before => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Room for more, or the socket makes some.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sealed + self.plain.len() < UNSENT {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(cx)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if total < RECORD / 2 {
            for slice in slices {
                self.plain.extend_from_slice(slice);
            }
            if self.plain.len() >= RECORD {
                self.seal()?;
            }
            return Ok(total);
        }
        self.seal()?;
        let n = self.tls.writer().write_vectored(slices)?;
        self.sealed += n;
        Ok(n)
    }

    fn seal(&mut self) -> io::Result<()> {
        if !self.plain.is_empty() {
            self.tls.writer().write_all(&self.plain)?;
            self.sealed += self.plain.len();
            self.plain.clear();
        }
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seal()?;
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(&self.tcp)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.sealed = 0;
        Poll::Ready(Ok(()))
    }
}

/// The socket as TLS writes to it.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner.borrow_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        ready!(inner.poll_room(cx))?;
        Poll::Ready(inner.write(&[IoSlice::new(bytes)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        ready!(inner.poll_room(cx))?;
        Poll::Ready(inner.write(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // At the end of the turn.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        if !inner.said_end {
            inner.said_end = true;
            inner.seal()?;
            inner.tls.send_close_notify();
        }
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.tcp).poll_shutdown(cx)
    }
}
