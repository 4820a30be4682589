//! The exchange of one request and its response, both streamed, at the same time.
//!
//! An endpoint may answer before it has read the request's body; then the answer goes to the client and both
//! connections end, because nobody knows what of the body is still on its way. While the endpoint thinks, the
//! client's side is watched: one that has gone is not waited for.
//!
//! Invariants: once a byte of the response's head has gone to the client, an error resets the client's
//! connection (a clean end would look like a complete response); before that it becomes a reply of our own.
//! A request is repeated unasked once, and only where its endpoint cannot have acted on it twice: idempotent, without
//! a body, on a reused connection that ended before any byte of a response. What a route asks to be tried again is
//! handed back whole ([`Outcome::Again`]).

mod again;

use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use mesh_core::error::ProxyError;
use mesh_core::http1::{
    Framing, HeadScan, MethodKind, RequestFacts, ResponseEdits, Side, Version, parse_response, write_response,
};

use mesh_core::resilience::answer::Answer;
use mesh_core::route::{Edits, HeaderEdits};
use mesh_core::snapshot::Service;
use tokio::time::{Sleep, sleep_until};

use super::super::buffers::Buf;
use super::super::clock::Call;
use super::super::intercept::{Hop, Session};
use super::super::link::Link;
use super::super::pump::{Broken, Pump};
use super::super::routing::{Account, Deadline};
use super::super::stats::one;
use super::super::tries::Terms;
use super::Connection;
use super::acquire::Acquired;
use super::hedge::Part;
use super::request::{GROWTH, Prepared};
use crate::sys::monotonic_ns;

/// Reason label where the client ended its connection before its response was complete.
const CLIENT_GONE: &str = "client_gone";

/// What becomes of the client's connection.
pub(super) enum Outcome {
    /// The next request.
    Next,
    /// A clean end, after everything has been written.
    Close,
    /// A reset.
    Reset,
    /// Not HTTP any more.
    Tunnel(Hop, Rc<Link>),
    /// Nothing is left to do.
    Over,
    /// The answer was thrown away: the request is sent once more.
    Again(Box<Prepared>),
    /// It failed with this, untold: another exchange of the same request is under way.
    Lost(ProxyError),
}

/// How an exchange ended.
enum Fate {
    /// Response complete.
    Done,
    /// The connection goes on as a tunnel.
    Tunnel,
    /// The reused connection had been closed: nothing has happened yet.
    Stale,
    /// The route asks for another try after an answer, or a failure, of this status.
    Again,
    /// The client is gone, or takes nothing, or is to be cut.
    Gone(&'static str),
    /// This.
    Failed(ProxyError),
}

/// A response whose head has been forwarded.
struct Response {
    body: Pump,
    status: u16,
    /// What follows is no body: the connection is not HTTP any more.
    tunnel: bool,
    keep_client: bool,
    keep_upstream: bool,
}

/// One request and its response.
pub(super) struct Exchange<'c> {
    connection: &'c Connection,
    upstream: Rc<Link>,
    hop: Hop,
    facts: RequestFacts,
    request: Pump,
    /// Set aside until [`Exchange::run`] puts it on the link.
    out: Option<Buf>,
    /// Bytes of the head in it.
    head: usize,
    /// The head as it was asked about, where this is another.
    asked: Option<Box<[u8]>>,
    /// Should the connection end now, the request may be sent again on another.
    repeat: bool,
    /// The endpoint takes no more of the request; it may have answered.
    deaf: bool,
    /// The client has ended its side.
    client_ended: bool,
    scan: HeadScan,
    response: Option<Response>,
    backend: Option<Arc<Service>>,
    edits: Option<Arc<Edits>>,
    granted: Option<Box<HeaderEdits>>,
    terms: Option<Box<Terms>>,
    /// Is the time of its head to be known, and which is it?
    answered: (bool, Option<u64>),
    /// The route's deadline of this try.
    deadline: Option<(Pin<Box<Sleep>>, ProxyError)>,
    /// Where there may be another of the same request.
    part: Option<Part>,
}

impl<'c> Exchange<'c> {
    pub fn new(connection: &'c Connection, acquired: Acquired, prepared: Prepared) -> Self {
        Self {
            connection,
            upstream: acquired.upstream,
            hop: acquired.hop,
            facts: prepared.facts,
            request: prepared.body,
            out: Some(prepared.out),
            head: prepared.head,
            asked: prepared.asked,
            repeat: acquired.reused && prepared.repeatable,
            deaf: false,
            client_ended: false,
            scan: HeadScan::new(Side::Upstream),
            response: None,
            backend: prepared.backend,
            edits: prepared.edits,
            answered: (false, None),
            granted: prepared.granted,
            deadline: prepared.terms.as_ref().and_then(|terms| terms.deadline()).map(alarm),
            terms: prepared.terms,
            part: None,
        }
    }

    /// There may be another of the same request.
    pub fn with(self, part: Option<Part>) -> Self {
        Self { part, ..self }
    }

    /// It ends then.
    pub fn until(self, deadline: Option<Deadline>) -> Self {
        Self { deadline: deadline.map(alarm), ..self }
    }

    /// Carries it out.
    pub async fn run(mut self, account: &mut Account) -> Outcome {
        let Session { worker, watch, .. } = &self.connection.session;
        self.answered.0 = account.ticket.is_some();
        loop {
            if let Some(out) = self.out.take() {
                self.upstream.set_out(out);
            }
            if self.repeat || self.terms.as_ref().is_some_and(|terms| terms.keeps()) {
                self.upstream.keep_written();
            }
            worker.flush.push(&self.upstream);
            worker.clock.arm(watch, worker.limits.response);
            let fate = std::future::poll_fn(|cx| self.poll(cx)).await;
            watch.disarm();
            account.status = self.response.as_ref().map_or(0, |response| response.status);
            account.received.set(self.request.bytes());
            account.sent.set(self.response.as_ref().map_or(0, |response| response.body.bytes()));
            self.settle_account(&fate, account);
            return match fate {
                Fate::Done => self.done(),
                Fate::Tunnel => {
                    self.upstream.forget();
                    Outcome::Tunnel(self.hop, self.upstream)
                }
                Fate::Gone(reason) => {
                    account.reason = reason;
                    self.upstream.reset();
                    Outcome::Reset
                }
                Fate::Failed(error) => self.failed(error, account),
                Fate::Again => self.once_more(account).await,
                Fate::Stale => {
                    one(&worker.shared.counters.retried);
                    self.out = self.upstream.take_kept();
                    self.repeat = false;
                    match self.connection.open(&self.hop).await {
                        Ok(fresh) => self.upstream = fresh,
                        Err(error) => return self.failed(error, account),
                    }
                    continue;
                }
            };
        }
    }

    /// Tells how the try ended, unless it goes on.
    fn settle_account(&self, fate: &Fate, account: &mut Account) {
        if let Fate::Stale = fate {
            return;
        }
        if let Some(at) = self.answered.1 {
            account.answered(at);
        }
        let status = account.status;
        account.settle(|| match fate {
            Fate::Done | Fate::Tunnel => Answer::of_status(status),
            Fate::Again => Answer::of_status(self.terms.as_ref().map_or(0, |terms| terms.refused())),
            Fate::Failed(error) => Answer::of_error(error),
            Fate::Stale | Fate::Gone(_) => Answer::Nothing,
        });
    }

    fn done(self) -> Outcome {
        let complete = self.request.is_done() && !self.deaf;
        self.upstream.forget();
        let Some(response) = self.response else { return Outcome::Reset };
        if response.keep_upstream && complete && self.upstream.pending() == 0 {
            self.connection.release(&self.hop, self.upstream);
        }
        if response.keep_client && complete && !self.client_ended { Outcome::Next } else { Outcome::Close }
    }

    fn failed(self, error: ProxyError, account: &mut Account) -> Outcome {
        let Session { worker, .. } = &self.connection.session;
        self.upstream.reset();
        account.reason = error.reason();
        if self.response.is_some() {
            one(&worker.shared.counters.resets);
            return Outcome::Reset;
        }
        account.status = error.status();
        if self.part.as_ref().is_some_and(Part::yields) {
            return Outcome::Lost(error);
        }
        let keep = self.request.is_done()
            && self.facts.keep_alive
            && error.keeps_client()
            && !self.client_ended
            && !worker.draining.get();
        self.connection.reply(error, keep, self.facts.method == MethodKind::Head);
        if keep { Outcome::Next } else { Outcome::Close }
    }

    /// What becomes of it, where a failure may be tried again.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fate> {
        if let Some((at, error)) = &mut self.deadline
            && at.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Fate::Failed(*error)).map(|fate| self.settle(fate));
        }
        self.poll_both(cx).map(|fate| self.settle(fate))
    }

    fn settle(&mut self, fate: Fate) -> Fate {
        match fate {
            Fate::Failed(error)
                if error != ProxyError::RequestTimeout
                    && self.response.is_none()
                    && self.tries_again(error.status()) =>
            {
                Fate::Again
            }
            Fate::Done if self.is_again() => Fate::Again,
            fate => fate,
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Fate> {
        let Session { worker, watch, client, held, .. } = &self.connection.session;
        if let Poll::Ready(call) = watch.poll_call(cx) {
            return Poll::Ready(match call {
                Call::Cut => {
                    one(&worker.shared.counters.cut);
                    Fate::Gone(ProxyError::Draining.reason())
                }
                Call::Late if client.stuck() > 0 => Fate::Gone("client_idle"),
                Call::Late => Fate::Failed(ProxyError::UpstreamTimeout),
            });
        }
        if let Poll::Ready(fate) = self.poll_request(cx) {
            return Poll::Ready(fate);
        }
        let answered = self.poll_response(cx);
        let moved =
            self.request.moved() | self.response.as_mut().is_some_and(|response| response.body.moved());
        if moved {
            worker.clock.arm(watch, worker.limits.stream_idle);
        }
        match answered {
            Poll::Ready(Ok(())) if self.response.as_ref().is_some_and(|r| r.tunnel) => {
                return Poll::Ready(Fate::Tunnel);
            }
            Poll::Ready(Ok(())) => return Poll::Ready(Fate::Done),
            Poll::Ready(Err(broken)) => return Poll::Ready(self.broken(broken)),
            Poll::Pending => {}
        }
        if self.response.is_none() && self.poll_client(cx).is_ready() {
            return Poll::Ready(Fate::Gone(CLIENT_GONE));
        }
        if !held.set(client.held() + self.upstream.held()) {
            one(&worker.shared.counters.budget_bytes);
            return Poll::Ready(Fate::Failed(ProxyError::BudgetBytes));
        }
        Poll::Pending
    }

    /// Sends on with the request; ready only where that ends the exchange.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Fate> {
        let Session { worker, client, .. } = &self.connection.session;
        if self.deaf {
            return Poll::Pending;
        }
        if self.request.is_done() {
            if self.upstream.stuck() > 0 {
                self.deaf = matches!(self.upstream.poll_flush(cx), Poll::Ready(Err(_)));
            }
            return Poll::Pending;
        }
        match self.request.poll(worker, client, &self.upstream, cx) {
            Poll::Ready(Err(Broken::From(_) | Broken::Short)) => Poll::Ready(Fate::Gone(CLIENT_GONE)),
            Poll::Ready(Err(Broken::Malformed(error))) => Poll::Ready(Fate::Failed(error)),
            Poll::Ready(Err(Broken::To(_))) => {
                self.deaf = true;
                Poll::Pending
            }
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// While the endpoint thinks: is the client still there? What it sends meanwhile is its next request, of
    /// which one buffer is read.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Session { worker, client, .. } = &self.connection.session;
        if client.stuck() > 0 && matches!(client.poll_flush(cx), Poll::Ready(Err(_))) {
            return Poll::Ready(());
        }
        if !self.request.is_done() || self.client_ended || client.unused() > 0 {
            return Poll::Pending;
        }
        match client.poll_input(cx, &worker.buffers) {
            Poll::Ready(Ok(n)) => {
                self.client_ended = n == 0;
                Poll::Pending
            }
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Session { worker, client, .. } = &self.connection.session;
        loop {
            if self.is_again() {
                return Poll::Ready(Ok(()));
            }
            if let Some(response) = &mut self.response {
                if response.tunnel {
                    return Poll::Ready(Ok(()));
                }
                return response.body.poll(worker, &self.upstream, client, cx);
            }
            let length = match self.upstream.input().borrow().as_ref() {
                Some(input) => self.scan.end(input.data(), &worker.limits.http).map_err(Broken::Malformed)?,
                None => None,
            };
            match length {
                Some(length) => ready!(self.forward_head(length, cx))?,
                None => match ready!(self.upstream.poll_input(cx, &worker.buffers)) {
                    Ok(0) => return Poll::Ready(Err(Broken::Short)),
                    Ok(_) => self.repeat = false,
                    Err(e) => return Poll::Ready(Err(Broken::From(e.kind()))),
                },
            }
        }
    }

    /// Puts the head that the endpoint's input begins with, and what is there of its body, into the client's
    /// output.
    fn forward_head(&mut self, length: usize, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Session { worker, client, .. } = &self.connection.session;
        // Earlier output that leaves too little room goes first.
        if client.out().borrow().as_ref().is_some_and(|out| out.room() < length + GROWTH) {
            ready!(client.poll_flush(cx)).map_err(|e| Broken::To(e.kind()))?;
        }
        let limits = &worker.limits.http;
        if let Some(status) = self.refusable(length, limits)
            && self.tries_again(status)
        {
            return Poll::Ready(Ok(()));
        }
        if self.part.as_ref().is_some_and(|part| !part.take()) {
            return Poll::Pending;
        }
        let Session { worker, client, .. } = &self.connection.session;
        let limits = &worker.limits.http;
        let mut used = length;
        {
            let input = self.upstream.input().borrow();
            let (bytes, rest) = input.as_ref().map_or(&[][..], Buf::data).split_at(length);
            let head = parse_response(bytes, self.facts, limits).map_err(Broken::Malformed)?;
            let interim = head.is_interim();
            // Nobody would send the rest of a request that has been refused already.
            let sending = head.status < 300 || self.request.is_done() && !self.deaf;
            let keep = head.client_keep_alive && sending && !self.client_ended && !worker.draining.get();
            if !interim || self.facts.version == Version::Http11 {
                let mut slot = client.out().borrow_mut();
                let out = slot.get_or_insert_with(|| worker.buffers.fitting(length + GROWTH + rest.len()));
                let before = out.len();
                let own = self.edits.as_ref().map(|edits| &edits.response);
                let both = own.zip(self.granted.as_deref()).map(|(own, granted)| own.then(granted));
                let headers = both.as_ref().or(self.granted.as_deref()).or(own).filter(|_| !interim);
                let edits = ResponseEdits { keep_alive: keep, client: self.facts.version, headers };
                write_response(&head, &edits, out.bytes());
                if !interim {
                    self.answered.1 = self.answered.0.then(monotonic_ns);
                    let mut body = Pump::new(head.framing, Side::Upstream, limits);
                    let tunnel = head.framing == Framing::Tunnel;
                    if !tunnel {
                        used += body.append(rest, out).map_err(|error| {
                            out.truncate(before);
                            Broken::Malformed(error)
                        })?;
                    }
                    self.response = Some(Response {
                        body,
                        status: head.status,
                        tunnel,
                        keep_client: keep,
                        keep_upstream: head.keep_alive,
                    });
                }
            }
        }
        self.upstream.consume(used);
        self.scan = HeadScan::new(Side::Upstream);
        worker.flush.push(client);
        Poll::Ready(Ok(()))
    }

    /// The error of a response that broke off.
    fn broken(&self, broken: Broken) -> Fate {
        let error = match broken {
            Broken::To(_) => return Fate::Gone(CLIENT_GONE),
            Broken::Malformed(error) => return Fate::Failed(error),
            Broken::Short => ProxyError::UpstreamClosed,
            Broken::From(kind) => ProxyError::upstream(kind),
        };
        if self.repeat { Fate::Stale } else { Fate::Failed(error) }
    }
}

fn alarm((at, error): Deadline) -> (Pin<Box<Sleep>>, ProxyError) {
    (Box::pin(sleep_until(at)), error)
}
