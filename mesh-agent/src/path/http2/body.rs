//! Moves one body of HTTP/2 from one connection to another, as it comes, with its trailers.
//!
//! Window is given back to the sender only as the receiver's window takes what came: a slow reader stops its sender,
//! and what waits is one frame and what the windows allow.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::mirror::Taps;

/// Why a body did not get across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The sender reset it, or its connection ended.
    From(Reason),
    /// The receiver did.
    To(Reason),
}

pub(super) fn reason(error: &h2::Error) -> Reason {
    error.reason().unwrap_or(Reason::CANCEL)
}

/// All of it, to `taps` as well. `moved` is told of every piece, `ended` of the trailers.
pub async fn copy(
    mut from: RecvStream,
    mut to: SendStream<Bytes>,
    mut taps: Taps,
    moved: impl Fn(usize),
    ended: impl FnOnce(&HeaderMap),
) -> Result<(), Broken> {
    loop {
        let piece = tokio::select! {
            biased;
            gone = std::future::poll_fn(|cx| to.poll_reset(cx)) => {
                return Err(Broken::To(gone.unwrap_or(Reason::CANCEL)));
            }
            piece = from.data() => piece,
        };
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|e| Broken::From(reason(&e)))?;
        let length = piece.len();
        moved(length);
        taps.data(&piece);
        let last = length > 0 && from.is_end_stream();
        send(&mut to, piece, last).await?;
        if last {
            taps.end(None);
            return Ok(());
        }
        // Fails where the stream has ended, and its window with it.
        let _ = from.flow_control().release_capacity(length);
    }
    let trailers = from.trailers().await.map_err(|e| Broken::From(reason(&e)))?;
    taps.end(trailers.as_ref());
    let sent = match trailers {
        Some(trailers) => {
            ended(&trailers);
            to.send_trailers(trailers)
        }
        None => to.send_data(Bytes::new(), true),
    };
    sent.map_err(|e| Broken::To(reason(&e)))
}

/// One piece of it, as windows take it. `last`: nothing comes behind it.
pub(super) async fn send(to: &mut SendStream<Bytes>, mut piece: Bytes, last: bool) -> Result<(), Broken> {
    if piece.is_empty() && last {
        return to.send_data(piece, true).map_err(|e| Broken::To(reason(&e)));
    }
    while !piece.is_empty() {
        to.reserve_capacity(piece.len());
        let room = std::future::poll_fn(|cx| to.poll_capacity(cx)).await;
        let room = match room {
            Some(Ok(room)) => room,
            Some(Err(error)) => return Err(Broken::To(reason(&error))),
            None => return Err(Broken::To(Reason::CANCEL)),
        };
        let part = piece.split_to(room.min(piece.len()));
        let ends = piece.is_empty() && last;
        to.send_data(part, ends).map_err(|e| Broken::To(reason(&e)))?;
    }
    Ok(())
}
