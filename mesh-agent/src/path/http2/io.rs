//! Bytes under HTTP/2: what was read before it was known to be HTTP/2 comes first, and what is written is gathered
//! until the connection asks for it to be sent, once a turn.
//!
//! Invariant: at most [`GATHERED`] bytes and one frame wait for the socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::buffers::Buf;
use super::super::transport::Stream;

/// Bytes that wait before the socket is asked to take them.
const GATHERED: usize = 64 * 1024;

/// A connection's bytes.
pub struct Io {
    first: Option<Buf>,
    stream: Stream,
    out: Vec<u8>,
    sent: usize,
}

impl Io {
    /// Over a stream of which `first` was read already.
    pub fn new(stream: Stream, first: Option<Buf>) -> Self {
        Self { first, stream, out: Vec::new(), sent: 0 }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        self.out.clear();
        self.sent = 0;
        // A connection that rests holds nothing.
        if self.out.capacity() > GATHERED / 4 {
            self.out = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(first) = &mut self.first {
            let n = first.len().min(buf.remaining());
            buf.put_slice(&first.data()[..n]);
            first.consume(n);
            if first.is_empty() {
                self.first = None;
            }
            if n > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.out.len() >= GATHERED {
            ready!(self.poll_send(cx))?;
        }
        self.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.out.len() >= GATHERED {
            ready!(self.poll_send(cx))?;
        }
        for slice in slices {
            self.out.extend_from_slice(slice);
        }
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
