//! HTTP/2 between a client and the endpoints of a service, gRPC among it: one task a connection, one a stream.
//!
//! ```text
//! detect ─▶ accept ─▶ route ─▶ balance ─▶ authorise ─▶ peers ─▶ both bodies, with trailers
//!                    (request)                       (lease)    (body)
//! ```
//!
//! A client that begins with HTTP/2's preface is taken at its word, on every port that speaks HTTP; what it says goes on
//! as HTTP/2. The protocol itself is the h2 crate's.
//!
//! Invariants: bodies are streamed, and what waits is bounded by windows; a response that has begun ends with a reset
//! where it breaks off. Not here: HTTP/1 to HTTP/2 and back, server push, extended CONNECT.

mod body;
mod head;
mod hedge;
mod io;
mod mirror;
pub mod peers;
mod request;
pub mod unary;
mod upload;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, server};

use super::account::Parties;
use super::authorise::Whose;
use super::clock::{Call, Watched};
use super::intercept::{Hop, Session, To};
use super::link::Link;
use super::member::{Held, Member};
use super::routing::Caller;
use super::stats::{Direction, one};
use super::worker::Worker;
pub use head::shown;
use io::Io;
use peers::Peers;

/// What a client that knows that it speaks HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams that a client may have open on one connection.
const STREAMS: u32 = 256;
/// Bytes that a peer may send of one stream before they are passed on.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Of all its streams.
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Bytes of a head, names and values and 32 for each (RFC 9113 section 6.5.2).
const HEAD_BYTES: u32 = 32 * 1024;
/// Bytes of a stream that may wait to be sent.
const UNSENT: usize = 64 * 1024;

/// What the streams of one connection share.
struct Shared {
    worker: Rc<Worker>,
    member: Arc<Member>,
    direction: Direction,
    to: To,
    whose: Whose,
    prefer_v6: bool,
    /// Streams that are under way.
    streams: Cell<usize>,
    /// Bytes of their bodies that are kept, to be sent again.
    kept: Cell<usize>,
    /// Bytes or heads have come since the connection was looked at last.
    moved: Cell<bool>,
    /// Inbound: connections to the application show one client, so they are this client's alone.
    own: Peers,
}

impl Shared {
    fn parties(&self) -> Parties<'_> {
        Parties { worker: &self.worker, member: &self.member, direction: self.direction, whose: &self.whose }
    }

    fn caller(&self) -> Caller<'_> {
        Caller { worker: &self.worker, member: &self.member, to: self.to, prefer_v6: self.prefer_v6 }
    }

    fn peers(&self) -> &Peers {
        if self.direction == Direction::In { &self.own } else { &self.worker.peers }
    }
}

/// Does the client speak HTTP/2? Reads until that is known; what was read stays in the link. A client that sends
/// nothing, or ends, is HTTP/1's business.
pub async fn is_spoken(session: &Session) -> bool {
    let Session { worker, client, watch, .. } = session;
    let (mut started, mut drains) = (false, false);
    worker.clock.arm(watch, worker.limits.keep_alive);
    let known = std::future::poll_fn(|cx| {
        loop {
            if let Some(input) = client.input().borrow().as_ref() {
                let read = input.data();
                let compared = read.len().min(PREFACE.len());
                if read[..compared] != PREFACE[..compared] {
                    return Poll::Ready(false);
                }
                if compared == PREFACE.len() {
                    return Poll::Ready(true);
                }
                // Once: a byte at a time is no way to stay.
                if !std::mem::replace(&mut started, true) {
                    worker.clock.arm(watch, worker.limits.head);
                }
            }
            if worker.draining.get() && !started && !std::mem::replace(&mut drains, true) {
                worker.clock.arm(watch, worker.limits.drain_idle);
            }
            if watch.poll_call(cx).is_ready() {
                return Poll::Ready(false);
            }
            match client.poll_input(cx, &worker.buffers) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let known = known.await;
    watch.disarm();
    known
}

/// Serves streams until the connection ends.
pub async fn serve(session: Session) {
    serve_with(session, None).await;
}

/// The same for an inbound connection whose own connection to the application is open already.
pub async fn serve_over(session: Session, hop: Hop, own: Rc<Link>) {
    serve_with(session, Some((hop, own))).await;
}

async fn serve_with(session: Session, own: Option<(Hop, Rc<Link>)>) {
    let Session { worker, member, direction, to, whose, prefer_v6, client, watch, held } = session;
    // Nobody else has it: it was made for this connection.
    let Ok(client) = Rc::try_unwrap(client) else { return };
    let (stream, first) = client.into_parts();
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .max_send_buffer_size(UNSENT);
    let shared = Rc::new(Shared {
        worker,
        member,
        direction,
        to,
        whose,
        prefer_v6,
        streams: Cell::new(0),
        kept: Cell::new(0),
        moved: Cell::new(false),
        own: Peers::default(),
    });
    let worker = &shared.worker;
    if let Some((hop, own)) = own {
        shared.own.adopt(worker, &shared.member, &hop, own).await;
    }
    worker.clock.arm(&watch, worker.limits.head);
    let handshake = builder.handshake::<_, Bytes>(Io::new(stream, first));
    let connection = tokio::select! {
        made = handshake => made,
        _ = std::future::poll_fn(|cx| watch.poll_call(cx)) => return,
    };
    if let Ok(connection) = connection {
        run(&shared, connection, &watch, &held).await;
    }
}

/// What a client's streams hold back at most: what windows allow it, once any of it is used.
fn holds(held: &Held, streams: usize) -> bool {
    held.set((streams * STREAM_WINDOW as usize).min(CONNECTION_WINDOW as usize))
}

async fn run(
    shared: &Rc<Shared>,
    mut connection: server::Connection<Io, Bytes>,
    watch: &Watched,
    held: &Held,
) {
    let worker = &shared.worker;
    let mut ending = false;
    worker.clock.arm(watch, worker.limits.keep_alive);
    std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(call) = watch.poll_call(cx) {
                let rests = shared.streams.get() == 0;
                if call == Call::Cut {
                    one(&worker.shared.counters.cut);
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                    let _ = connection.poll_closed(cx);
                    return Poll::Ready(());
                }
                // Nothing moved for too long: it is told to end, and is cut where nothing moves after that. Streams
                // that live longer are those that move.
                if rests || !shared.moved.replace(false) {
                    if ending {
                        return Poll::Ready(());
                    }
                    connection.graceful_shutdown();
                    ending = true;
                }
                worker.clock.arm(watch, worker.limits.stream_idle);
            }
            if worker.draining.get() && !ending {
                connection.graceful_shutdown();
                ending = true;
            }
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    shared.moved.set(true);
                    worker.clock.arm(watch, worker.limits.stream_idle);
                    if holds(held, shared.streams.get() + 1) {
                        request::begin(shared, request, respond);
                    } else {
                        one(&worker.shared.counters.budget_bytes);
                        request::refused(shared, respond);
                    }
                }
                // An error is told to the client by h2.
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {
                    holds(held, shared.streams.get());
                    return Poll::Pending;
                }
            }
        }
    })
    .await;
    watch.disarm();
}
