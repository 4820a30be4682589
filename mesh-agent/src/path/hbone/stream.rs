//! One connection inside a tunnel: a CONNECT stream that behaves as a TCP socket does.
//!
//! Half-close is END_STREAM. A reset is RST_STREAM with CONNECT_ERROR, in both directions, so that what was cut short
//! is seen as such; the one reset that is none is NO_ERROR behind END_STREAM. Dropped, a stream ends cleanly: what
//! waits is still sent ([`Left`]).
//!
//! Invariants: window is given back as bytes are taken, so a slow reader stops its sender; no more than [`SEND`] bytes
//! and one buffer wait to be sent. Not here: the tunnel (tunnel, drive), who opened it.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::buffers::Buf;
use super::piece::Piece;
use super::tunnel::{Slot, Tunnel};

/// Bytes of a stream that may wait in HTTP/2 to be sent.
pub const SEND: usize = 128 * 1024;

/// An open CONNECT stream.
pub struct TunnelStream {
    /// `None` only while it drops.
    halves: Option<(SendStream<Piece>, RecvStream)>,
    /// Received and not yet taken.
    chunk: Bytes,
    unsent: Rc<Cell<usize>>,
    slot: Option<Slot>,
    tunnel: Rc<Tunnel>,
    /// We have ended our side.
    ended: bool,
    /// The peer has ended its side.
    finished: bool,
    /// Dropping it is a reset.
    reset: Cell<bool>,
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl TunnelStream {
    /// A stream whose CONNECT was answered with 200.
    pub fn new(send: SendStream<Piece>, recv: RecvStream, slot: Slot) -> Self {
        Self {
            halves: Some((send, recv)),
            chunk: Bytes::new(),
            unsent: Rc::default(),
            tunnel: slot.tunnel().clone(),
            slot: Some(slot),
            ended: false,
            finished: false,
            reset: Cell::new(false),
        }
    }

    /// Its tunnel.
    pub fn tunnel(&self) -> &Rc<Tunnel> {
        &self.tunnel
    }

    /// Bytes that wait to be sent.
    pub fn unsent(&self) -> usize {
        self.unsent.get()
    }

    /// Makes dropping it a reset.
    pub fn reset(&self) {
        self.reset.set(true);
    }

    /// Nothing has arrived, not even an end, and its tunnel goes on: one whose certificate has ended carries what it
    /// has to its end, and nothing new.
    pub fn quiet(&mut self) -> bool {
        if !self.tunnel.serves() {
            return false;
        }
        let mut nobody = Context::from_waker(Waker::noop());
        self.chunk.is_empty() && !self.finished && self.poll_chunk(&mut nobody).is_pending()
    }

    /// The next bytes into `chunk`; ready with none: the peer's end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some((_, recv)) = self.halves.as_mut() else { return Poll::Ready(Err(gone())) };
        loop {
            match ready!(recv.poll_data(cx)) {
                // An empty frame says nothing.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    self.chunk = bytes;
                    return Poll::Ready(Ok(()));
                }
                None => {
                    self.finished = true;
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => {
                    self.reset.set(true);
                    let kind = io::ErrorKind::ConnectionReset;
                    return Poll::Ready(Err(io::Error::new(kind, error)));
                }
            }
        }
    }

    /// Room for more to be sent.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some((send, _)) = self.halves.as_mut() else { return Poll::Ready(Err(gone())) };
        if self.ended {
            return Poll::Ready(Err(gone()));
        }
        while send.capacity() == 0 {
            send.reserve_capacity(1);
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(gone())),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, piece: Piece, end: bool) -> io::Result<()> {
        let Some((send, _)) = self.halves.as_mut() else { return Err(gone()) };
        send.send_data(piece, end).map_err(|_| gone())
    }

    /// Sends a whole buffer, which is taken.
    pub fn poll_hand_over(&mut self, cx: &mut Context<'_>, out: &mut Option<Buf>) -> Poll<io::Result<()>> {
        if out.as_ref().is_none_or(Buf::is_empty) {
            *out = None;
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_room(cx))?;
        let Some(buf) = out.take() else { return Poll::Ready(Ok(())) };
        let piece = Piece::buf(buf, &self.unsent);
        Poll::Ready(self.send(piece, false))
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.chunk.is_empty() {
            if this.finished {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_chunk(cx))?;
        }
        let before = buf.filled().len();
        loop {
            let n = this.chunk.len().min(buf.remaining());
            buf.put_slice(&this.chunk[..n]);
            this.chunk.advance(n);
            // What has come in many small frames is taken at once.
            if buf.remaining() == 0 || this.finished || !matches!(this.poll_chunk(cx), Poll::Ready(Ok(()))) {
                break;
            }
        }
        let taken = buf.filled().len() - before;
        this.tunnel.took(taken);
        if let Some((_, recv)) = this.halves.as_mut() {
            // Fails where the stream is gone, with its window.
            let _ = recv.flow_control().release_capacity(taken);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_room(cx))?;
        let piece = Piece::copy(bytes, &this.unsent);
        this.send(piece, false)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        this.ended = true;
        Poll::Ready(this.send(Piece::none(), true))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let (Some((mut send, recv)), Some(slot)) = (self.halves.take(), self.slot.take()) else { return };
        if self.reset.get() || std::thread::panicking() {
            return send.send_reset(Reason::CONNECT_ERROR);
        }
        if !self.ended && send.send_data(Piece::none(), true).is_err() {
            return;
        }
        if !self.finished || self.unsent.get() > 0 {
            let (finished, unsent) = (self.finished, self.unsent.clone());
            self.tunnel.leave(Left { send, recv, finished, unsent, until: 0, _slot: slot });
        }
    }
}

/// A stream that nobody uses any more: what waits is sent, what comes is thrown away until the peer has ended too.
pub struct Left {
    send: SendStream<Piece>,
    recv: RecvStream,
    finished: bool,
    unsent: Rc<Cell<usize>>,
    /// Time by which it is told to stop; 0: not set yet.
    pub until: u64,
    _slot: Slot,
}

impl Left {
    /// Ready once it has gone, by itself or (`late`) by being told.
    pub fn poll(&mut self, cx: &mut Context<'_>, late: bool) -> Poll<()> {
        while !self.finished {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    let _ = self.recv.flow_control().release_capacity(bytes.len());
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(()),
                Poll::Ready(None) => self.finished = true,
                Poll::Pending => break,
            }
        }
        if self.unsent.get() == 0 && self.finished {
            return Poll::Ready(());
        }
        if late {
            // All was sent: a clean end, behind which nothing is read. Else it is cut short, and must look so.
            let reason = if self.unsent.get() == 0 { Reason::NO_ERROR } else { Reason::CONNECT_ERROR };
            self.send.send_reset(reason);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}
