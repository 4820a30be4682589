//! Moves one body from one side to the other, as it comes.
//!
//! Bytes are read straight into the other side's output buffer and looked at there: nothing is copied but what
//! had been read together with a head. While that buffer holds bytes that its peer does not take, nothing more
//! is read: a slow reader stops the sender, and memory stays at one buffer a direction.
//!
//! What was read short has nothing behind it and goes to the flush queue; a read that filled the buffer is
//! written at once, because reading on needs the room.

use std::io::ErrorKind;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use mesh_core::error::ProxyError;
use mesh_core::http1::{BodyReader, Framing, Limits, Side};

use super::buffers::Buf;
use super::link::Link;
use super::worker::Worker;

/// Reads of one connection before other tasks run.
const TURN: usize = 8;

/// Why a body did not get across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The sender's connection failed.
    From(ErrorKind),
    /// The receiver's connection failed.
    To(ErrorKind),
    /// The sender ended its side before the body was complete.
    Short,
    /// The body breaks HTTP.
    Malformed(ProxyError),
}

/// One body on its way.
pub struct Pump {
    body: BodyReader,
    moved: bool,
    bytes: u64,
}

impl Pump {
    /// A body at its first byte.
    pub fn new(framing: Framing, side: Side, limits: &Limits) -> Self {
        Self { body: BodyReader::new(framing, side, limits), moved: false, bytes: 0 }
    }

    /// Opaque bytes until their sender ends its side.
    pub fn opaque(side: Side) -> Self {
        Self::new(Framing::UntilClose, side, &Limits::default())
    }

    /// All of it is in the receiver's output.
    pub fn is_done(&self) -> bool {
        self.body.is_done()
    }

    /// Bytes of it that have moved, as they were framed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Have bytes moved since this was last asked?
    pub fn moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Appends as much of the body from the front of `bytes` to `out` as there is room for; how much it was.
    pub fn append(&mut self, bytes: &[u8], out: &mut Buf) -> Result<usize, ProxyError> {
        let fits = &bytes[..bytes.len().min(out.room())];
        let used = self.body.advance(fits)?.consume;
        self.moved |= used > 0;
        self.bytes += used as u64;
        Ok(out.append(&fits[..used]))
    }

    /// Moves what `from` has read already into the output of `to`, as far as there is room.
    fn take_unused(&mut self, from: &Link, to: &Link) -> Result<(), ProxyError> {
        let used = {
            let (input, mut out) = (from.input().borrow(), to.out().borrow_mut());
            let (Some(input), Some(out)) = (input.as_ref(), out.as_mut()) else { return Ok(()) };
            self.append(input.data(), out)?
        };
        from.consume(used);
        Ok(())
    }

    /// Moves bytes until the body is complete, which is then in the receiver's output and on its way.
    pub fn poll(
        &mut self,
        worker: &Worker,
        from: &Rc<Link>,
        to: &Rc<Link>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..TURN {
            if self.body.is_done() {
                return Poll::Ready(Ok(()));
            }
            if to.stuck() > 0 || to.is_tight() {
                ready!(to.poll_flush(cx)).map_err(|e| Broken::To(e.kind()))?;
            }
            let ended = if from.unused() > 0 {
                to.out().borrow_mut().get_or_insert_with(|| worker.buffers.large());
                self.take_unused(from, to).map_err(Broken::Malformed)?;
                false
            } else {
                ready!(self.read(worker, from, to, cx))?
            };
            if ended {
                if !self.body.may_end() {
                    return Poll::Ready(Err(Broken::Short));
                }
                return Poll::Ready(Ok(()));
            }
            if !to.is_tight() || self.body.is_done() {
                worker.flush.push(to);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read into the receiver's output; true: the sender has ended its side.
    fn read(
        &mut self,
        worker: &Worker,
        from: &Rc<Link>,
        to: &Rc<Link>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, Broken>> {
        let mut slot = to.out().borrow_mut();
        let out = slot.get_or_insert_with(|| worker.buffers.large());
        let before = out.len();
        let read = from.poll_into(cx, out);
        if out.is_empty() {
            *slot = None;
            return read.map(|read| read.map(|_| true).map_err(|e| Broken::From(e.kind())));
        }
        let n = ready!(read).map_err(|e| Broken::From(e.kind()))?;
        if n == 0 {
            return Poll::Ready(Ok(true));
        }
        self.moved = true;
        let used = match self.body.advance(&out.data()[before..]) {
            Ok(advance) => advance.consume,
            Err(e) => return Poll::Ready(Err(Broken::Malformed(e))),
        };
        self.bytes += used as u64;
        if used < n {
            // The next message has begun.
            let mut rest = worker.buffers.large();
            rest.append(&out.data()[before + used..]);
            out.truncate(before + used);
            *from.input().borrow_mut() = Some(rest);
        }
        Poll::Ready(Ok(false))
    }
}
