//! Keeps a tunnel going: one task for each, which alone touches its connection.
//!
//! A turn: what the worker wants of it, windows, streams that were left behind, PING, HTTP/2 itself; then everything
//! that came of it is written at once. The task is woken by its streams and so runs behind those that are ready.
//!
//! PING: some time after the last answer, and the tunnel ends where none comes in time ([`Limits::ping`]): the one way to notice a
//! peer that has gone without a word. Answers also measure the line ([`Growth`]).
//!
//! [`Limits::ping`]: super::super::Limits::ping
//!
//! Invariant: when it ends, for whatever cause, every stream of it ends with a reset.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong, RecvStream, client, server};
use http::Request;
use tokio::time::{Instant, Sleep, sleep_until};

use super::FIRST;
use super::piece::Piece;
use super::tunnel::{Order, Tunnel};
use super::windows::{Growth, sizes};
use super::wire::Wire;

/// Milliseconds for which a stream that nobody uses any more waits for its peer's end.
const LINGER_MS: u64 = 2000;

/// A CONNECT that has come.
pub type Incoming = (Request<RecvStream>, server::SendResponse<Piece>);

/// One end's connection.
pub enum Connection {
    /// That called.
    Client(client::Connection<Wire, Piece>),
    /// That was called.
    Server(server::Connection<Wire, Piece>),
}

impl Connection {
    fn ping_pong(&mut self) -> Option<PingPong> {
        match self {
            Self::Client(connection) => connection.ping_pong(),
            Self::Server(connection) => connection.ping_pong(),
        }
    }

    fn set_windows(&mut self, stream: Option<u32>, connection: u32) -> bool {
        let done = match self {
            Self::Client(c) => {
                c.set_target_window_size(connection);
                stream.is_none_or(|size| c.set_initial_window_size(size).is_ok())
            }
            Self::Server(c) => {
                c.set_target_window_size(connection);
                stream.is_none_or(|size| c.set_initial_window_size(size).is_ok())
            }
        };
        // One change of settings at a time: the next one waits for its acknowledgement.
        done
    }

    /// Ready: a CONNECT, or its end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Incoming>, h2::Error>> {
        match self {
            Self::Client(connection) => Pin::new(connection).poll(cx).map_ok(|()| None),
            Self::Server(connection) => connection.poll_accept(cx).map(Option::transpose),
        }
    }
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Clean,
    /// HTTP/2 or its connection broke.
    Broken,
    /// The peer answered no PING.
    Silent,
    /// The worker cut it.
    Cut,
}

/// The driver.
pub struct Driver<F> {
    connection: Connection,
    wire: Wire,
    tunnel: Rc<Tunnel>,
    /// Takes CONNECTs.
    serve: F,
    retiring: bool,
    /// To the next PING, and for its answer.
    pings: (Duration, Duration),
    ping: Option<PingPong>,
    /// When the PING that is not answered was sent.
    pinged: Option<Instant>,
    /// When the next PING is due, or its answer.
    timer: Pin<Box<Sleep>>,
    begun: Instant,
    growth: Growth,
    /// Windows as they were set last.
    windows: (u32, u32),
}

impl<F: FnMut(Incoming) + Unpin> Driver<F> {
    /// Of a connection as the builders made it.
    pub fn new(
        mut connection: Connection,
        wire: Wire,
        tunnel: Rc<Tunnel>,
        pings: (Duration, Duration),
        serve: F,
    ) -> Self {
        let begun = Instant::now();
        Self {
            ping: connection.ping_pong(),
            connection,
            wire,
            tunnel,
            serve,
            retiring: false,
            pinged: None,
            timer: Box::pin(sleep_until(begun + pings.0)),
            begun,
            growth: Growth::default(),
            windows: FIRST,
            pings,
        }
    }

    fn retire(&mut self) {
        if !std::mem::replace(&mut self.retiring, true)
            && let Connection::Server(connection) = &mut self.connection
        {
            connection.graceful_shutdown();
        }
        // A client's connection ends by itself, once its pool and its streams have let go of it.
    }

    fn set_windows(&mut self) {
        let member = &self.tunnel.member;
        let budget = member.usage.share(&member.budget());
        let wanted = sizes(self.growth.window(), self.tunnel.streams(), budget);
        if wanted != self.windows {
            let stream = (wanted.0 != self.windows.0).then_some(wanted.0);
            if self.connection.set_windows(stream, wanted.1) {
                self.windows = wanted;
            }
        }
    }

    /// Ready: the peer is silent.
    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ping) = self.ping.as_mut() else { return Poll::Pending };
        let read = self.tunnel.read();
        // An error is the connection's end, which it says itself.
        if let (Some(_), Poll::Ready(Ok(_))) = (self.pinged, ping.poll_pong(cx)) {
            let now = Instant::now();
            self.growth.answered(now - self.begun, read);
            self.pinged = None;
            self.timer.as_mut().reset(now + self.pings.0);
        }
        let due = self.timer.as_mut().poll(cx).is_ready();
        if self.pinged.is_some() {
            return if due { Poll::Ready(()) } else { Poll::Pending };
        }
        let now = if due || read > 0 { Instant::now() } else { return Poll::Pending };
        if (due || self.growth.asks(now - self.begun, read)) && ping.send_ping(Ping::opaque()).is_ok() {
            self.growth.sent(now - self.begun, read);
            self.pinged = Some(now);
            self.timer.as_mut().reset(now + self.pings.1);
            let _ = self.timer.as_mut().poll(cx);
        }
        Poll::Pending
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.tunnel.register(cx);
        match self.tunnel.order() {
            Order::Serve => {}
            Order::Retire => self.retire(),
            Order::Cut => return Poll::Ready(End::Cut),
        }
        self.set_windows();
        self.tunnel.poll_left(cx, LINGER_MS);
        if self.poll_ping(cx).is_ready() {
            return Poll::Ready(End::Silent);
        }
        let ended = loop {
            match self.connection.poll(cx) {
                Poll::Ready(Ok(Some(incoming))) => (self.serve)(incoming),
                Poll::Ready(Ok(None)) => break Some(End::Clean),
                Poll::Ready(Err(error)) => break Some(end_of(&error)),
                Poll::Pending => break None,
            }
        };
        let sent = self.wire.poll_send(cx);
        match (ended, sent) {
            (Some(end), _) => Poll::Ready(end),
            (None, Poll::Ready(Err(_))) => Poll::Ready(End::Broken),
            (None, _) => Poll::Pending,
        }
    }
}

fn end_of(error: &h2::Error) -> End {
    let eof = error.get_io().is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof);
    let clean = error.reason() == Some(h2::Reason::NO_ERROR);
    if clean && !eof { End::Clean } else { End::Broken }
}

impl<F: FnMut(Incoming) + Unpin> Future for Driver<F> {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        self.get_mut().turn(cx)
    }
}

impl<F> Drop for Driver<F> {
    fn drop(&mut self) {
        self.tunnel.died();
    }
}
