//! The body of a request of HTTP/2 on its way to an endpoint, kept so far that it can be sent again.
//!
//! What is kept is not given back as window: it costs no more memory than a body that nobody takes. Once it is more than
//! [`KEPT`], or those of its connection are together more than [`KEPT_ALL`], or the answer has begun, nothing is kept any
//! more, and it goes on as any body does.
//!
//! Invariant: what was sent once and is kept is sent again whole, in the same order, before what comes after it.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::body::{Broken, reason, send};
use super::mirror::Taps;
use super::{CONNECTION_WINDOW, Shared};

/// Bytes that are kept.
const KEPT: usize = 32 * 1024;
/// Bytes of all streams of a connection: a quarter of what its client may send, so that none waits for another.
const KEPT_ALL: usize = CONNECTION_WINDOW as usize / 4;

/// One body.
pub struct Upload {
    shared: Rc<Shared>,
    from: RecvStream,
    /// Pieces that were read; empty where nothing is kept.
    pieces: Vec<Bytes>,
    /// Their bytes.
    held: usize,
    /// Bytes that were read.
    read: Rc<Cell<u64>>,
    /// All of it was read.
    ended: bool,
    trailers: Option<HeaderMap>,
}

impl Upload {
    /// One that has not begun; what is read of it is counted in `read`.
    pub fn new(shared: &Rc<Shared>, from: RecvStream, read: &Rc<Cell<u64>>) -> Self {
        let (shared, read) = (shared.clone(), read.clone());
        Self { shared, from, pieces: Vec::new(), held: 0, read, ended: false, trailers: None }
    }

    /// There is none?
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && (self.ended || self.from.is_end_stream()) && self.trailers.is_none()
    }

    /// Can all of it be sent still? `keep`: as in [`Upload::copy`].
    pub fn is_whole(&self, keep: &Cell<bool>) -> bool {
        self.read.get() == 0 || keep.get()
    }

    /// Sends it, from its beginning where it was sent before. `keep`: still to be kept; cleared once it cannot be.
    /// `moved` is told of every piece, and so are `taps`.
    pub async fn copy(
        &mut self,
        mut to: SendStream<Bytes>,
        mut taps: Taps,
        keep: &Cell<bool>,
        moved: impl Fn(usize),
    ) -> Result<(), Broken> {
        for at in 0..self.pieces.len() {
            let last = self.ended && self.trailers.is_none() && at + 1 == self.pieces.len();
            send(&mut to, self.pieces[at].clone(), last).await?;
            if last {
                return Ok(());
            }
        }
        while !self.ended {
            let piece = tokio::select! {
                biased;
                gone = std::future::poll_fn(|cx| to.poll_reset(cx)) => {
                    return Err(Broken::To(gone.unwrap_or(Reason::CANCEL)));
                }
                piece = self.from.data() => piece,
            };
            let Some(piece) = piece else {
                self.trailers = self.from.trailers().await.map_err(|e| Broken::From(reason(&e)))?;
                self.ended = true;
                taps.end(self.trailers.as_ref());
                break;
            };
            let piece = piece.map_err(|e| Broken::From(reason(&e)))?;
            let length = piece.len();
            moved(length);
            self.read.set(self.read.get() + length as u64);
            taps.data(&piece);
            self.ended = self.from.is_end_stream();
            if self.ended {
                taps.end(None);
            }
            self.keep(&piece, keep);
            send(&mut to, piece, self.ended).await?;
            if !keep.get() {
                // Fails where the stream has ended, and its window with it.
                let _ = self.from.flow_control().release_capacity(length);
            }
            if self.ended {
                return Ok(());
            }
        }
        let sent = match self.trailers.clone() {
            Some(trailers) => to.send_trailers(trailers),
            None => to.send_data(Bytes::new(), true),
        };
        sent.map_err(|e| Broken::To(reason(&e)))
    }

    /// Keeps a piece, or gives up keeping.
    fn keep(&mut self, piece: &Bytes, keep: &Cell<bool>) {
        let (length, all) = (piece.len(), &self.shared.kept);
        if keep.get() && self.held + length <= KEPT && all.get() + length <= KEPT_ALL {
            self.pieces.push(piece.clone());
            self.held += length;
            all.set(all.get() + length);
            return;
        }
        keep.set(false);
        if self.held > 0 {
            let _ = self.from.flow_control().release_capacity(self.held);
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        self.shared.kept.set(self.shared.kept.get() - std::mem::take(&mut self.held));
        self.pieces.clear();
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.let_go();
    }
}
