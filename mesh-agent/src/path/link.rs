//! One side of a proxied connection: a stream, the bytes read from it and not yet used, and the bytes that
//! wait to be written to it.
//!
//! **Read everything that is ready, then send.** Output that ends a message is not written at once: the link
//! goes into its worker's flush queue, which runs behind the tasks that are ready now. A peer is then woken
//! once for what one turn of the worker had for it, and not once a message. Output in the middle of a message
//! (a long body) is written directly, because reading on depends on it.
//!
//! Invariants: at most one buffer waits to be written and one to be used; nothing more is read for a link
//! whose output has no room (back-pressure). A write that failed in the queue is seen at the next use.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncReadExt, AsyncWrite};

use super::buffers::{Buf, LARGE, Pool};
use super::clock::Watch;
use super::transport::Stream;

/// Output with less room than this is written before more is added.
const TIGHT: usize = 1024;

/// One side of a connection. Lives on one worker.
pub struct Link {
    io: RefCell<Stream>,
    /// Read and not used yet.
    input: RefCell<Option<Buf>>,
    /// To be written.
    out: RefCell<Option<Buf>>,
    /// Written output is kept, so that it can be sent again on another connection.
    keep: Cell<bool>,
    queued: Cell<bool>,
    failed: Cell<Option<io::ErrorKind>>,
    closed: Cell<bool>,
    /// Woken when the flush queue could not write everything.
    owner: RefCell<Option<Rc<Watch>>>,
}

impl Link {
    /// A link over a stream.
    pub fn new(io: Stream) -> Self {
        Self {
            io: RefCell::new(io),
            input: RefCell::new(None),
            out: RefCell::new(None),
            keep: Cell::new(false),
            queued: Cell::new(false),
            failed: Cell::new(None),
            closed: Cell::new(false),
            owner: RefCell::new(None),
        }
    }

    /// The stream, and what was read of it and not used.
    pub fn into_parts(self) -> (Stream, Option<Buf>) {
        (self.io.into_inner(), self.input.into_inner())
    }

    /// Whose task uses it from now on; `None`: nobody, it goes into a pool.
    pub fn own(&self, owner: Option<Rc<Watch>>) {
        *self.owner.borrow_mut() = owner;
    }

    /// What was read and not used yet.
    pub fn input(&self) -> &RefCell<Option<Buf>> {
        &self.input
    }

    /// Bytes read and not used yet.
    pub fn unused(&self) -> usize {
        self.input.borrow().as_ref().map_or(0, Buf::len)
    }

    /// Drops the first `n` bytes of the input, and the buffer with the last of them.
    pub fn consume(&self, n: usize) {
        let mut input = self.input.borrow_mut();
        if let Some(buf) = input.as_mut() {
            buf.consume(n);
            if buf.is_empty() {
                *input = None;
            }
        }
    }

    /// Reads more into the input: `Ok(0)`: the peer has ended its side, or the buffer is full.
    pub fn poll_input(&self, cx: &mut Context<'_>, pool: &Rc<Pool>) -> Poll<io::Result<usize>> {
        let mut input = self.input.borrow_mut();
        let buf = input.get_or_insert_with(|| pool.large());
        if buf.room() < LARGE / 2 {
            buf.compact();
        }
        let read = self.poll_into(cx, buf);
        if buf.is_empty() {
            *input = None;
        }
        read
    }

    /// Reads once into a buffer's room; without room: `Ok(0)`.
    pub fn poll_into(&self, cx: &mut Context<'_>, buf: &mut Buf) -> Poll<io::Result<usize>> {
        if buf.room() == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut io = self.io.borrow_mut();
        pin!(io.read_buf(buf.bytes())).poll(cx)
    }

    /// Bytes that wait to be written.
    pub fn pending(&self) -> usize {
        self.out.borrow().as_ref().map_or(0, Buf::len)
    }

    /// Bytes that wait because the peer is slow to read: those in the flush queue are on their way.
    pub fn stuck(&self) -> usize {
        if self.queued.get() { 0 } else { self.pending() }
    }

    /// Bytes that this connection holds back in the agent.
    pub fn held(&self) -> usize {
        self.stuck() + self.io.borrow().unsent()
    }

    /// Output can take no more, or too little to be worth a read.
    pub fn is_tight(&self) -> bool {
        self.out.borrow().as_ref().is_some_and(|out| out.room() < TIGHT)
    }

    /// The output buffer.
    pub fn out(&self) -> &RefCell<Option<Buf>> {
        &self.out
    }

    /// Keep what is written until [`Link::forget`].
    pub fn keep_written(&self) {
        self.keep.set(true);
    }

    /// What was kept is not needed any more.
    pub fn forget(&self) {
        if self.keep.replace(false) {
            let mut out = self.out.borrow_mut();
            if out.as_ref().is_some_and(Buf::is_empty) {
                *out = None;
            }
        }
    }

    /// What is written next. Whatever waited before is dropped.
    pub fn set_out(&self, buf: Buf) {
        *self.out.borrow_mut() = Some(buf);
    }

    /// Takes what was kept, unread again.
    pub fn take_kept(&self) -> Option<Buf> {
        if !self.keep.replace(false) {
            return None;
        }
        let mut out = self.out.borrow_mut().take();
        if let Some(buf) = out.as_mut() {
            buf.rewind();
        }
        out
    }

    /// Writes until nothing is left.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(kind) = self.failed.get() {
            return Poll::Ready(Err(kind.into()));
        }
        let mut out = self.out.borrow_mut();
        let Some(buf) = out.as_mut() else { return Poll::Ready(Ok(())) };
        let mut io = self.io.borrow_mut();
        if io.takes_buffers() && !self.keep.get() {
            let sent = ready!(io.poll_hand_over(cx, &mut out));
            return Poll::Ready(sent.map_err(|e| self.fail(e.kind())));
        }
        while !buf.is_empty() {
            match Pin::new(&mut *io).poll_write(cx, buf.data()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.fail(io::ErrorKind::WriteZero))),
                Poll::Ready(Ok(n)) => buf.consume(n),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(self.fail(e.kind()))),
                Poll::Pending => return Poll::Pending,
            }
        }
        if !self.keep.get() {
            *out = None;
        }
        Poll::Ready(Ok(()))
    }

    fn fail(&self, kind: io::ErrorKind) -> io::Error {
        self.failed.set(Some(kind));
        kind.into()
    }

    /// Ends our side, after everything has been written.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        if self.closed.replace(true) {
            return Poll::Ready(Ok(()));
        }
        // Fails where the peer has gone altogether; then there is nobody to tell.
        let _ = ready!(Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx));
        Poll::Ready(Ok(()))
    }

    /// Could this idle connection carry another request? False once its peer has closed it or has sent
    /// anything unasked. No system call unless the driver has seen something.
    pub fn usable(&self) -> bool {
        if self.failed.get().is_some() || self.closed.get() || self.pending() > 0 || self.unused() > 0 {
            return false;
        }
        self.io.borrow_mut().quiet()
    }

    /// The peer is to see a reset.
    pub fn reset(&self) {
        *self.out.borrow_mut() = None;
        self.io.borrow().reset();
    }

    /// The stream under it.
    pub fn stream(&self) -> std::cell::Ref<'_, Stream> {
        self.io.borrow()
    }
}

/// The links of a worker that have something to write.
#[derive(Default)]
pub struct FlushQueue {
    links: RefCell<Vec<Rc<Link>>>,
    spare: RefCell<Vec<Rc<Link>>>,
    waker: RefCell<Option<Waker>>,
}

impl FlushQueue {
    /// Writes this link's output behind the tasks that are ready now.
    pub fn push(&self, link: &Rc<Link>) {
        if link.queued.replace(true) {
            return;
        }
        let mut links = self.links.borrow_mut();
        links.push(link.clone());
        if links.len() == 1
            && let Some(waker) = self.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// Writes what waits; never ready. Polled by a task of its own, which the first push of a turn wakes and
    /// so puts behind all tasks that are ready.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut links = std::mem::replace(&mut *self.links.borrow_mut(), self.spare.take());
        let mut nobody = Context::from_waker(Waker::noop());
        for link in links.drain(..) {
            link.queued.set(false);
            // The waker of whom it belongs to is registered when its task polls the link again.
            if !matches!(link.poll_flush(&mut nobody), Poll::Ready(Ok(())))
                && let Some(owner) = link.owner.borrow().as_ref()
            {
                owner.wake();
            }
        }
        *self.spare.borrow_mut() = links;
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}
