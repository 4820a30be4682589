//! HTTP/1.1 between a client and the endpoints of a service: one task a connection, one request at a time.
//!
//! ```text
//! read head ─▶ route ─▶ balance ─▶ (pool | transport) ─▶ exchange ─▶ keep-alive: next head
//!            (request)          (acquire)              (exchange)
//! ```
//!
//! Pipelined requests wait in the client's input buffer and are answered in order. A head is parsed in the
//! buffer that it was read into and written, with its edits and what is there of its body, into one output
//! buffer: one write a message. Bodies are streamed (pump).
//!
//! Invariants: the client's connection is used on only where both messages were complete; after anything
//! malformed it is closed. The snapshot is looked at once a request. No timer is armed a request.
//! Not here: HTTP/2, retries once the client has seen a byte of a response.

mod acquire;
mod exchange;
mod hedge;
mod mirror;
mod request;

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use mesh_core::error::ProxyError;
use mesh_core::ext_authz::Denial;
use mesh_core::http1::{HeadScan, Side, write_denial, write_error};

use super::authorise::opaque;
use super::clock::Call;
use super::intercept::{Session, To};
use super::judged::Judged;
use super::link::Link;
use super::routing::{Account, Caller};
use super::stats::{Spoken, one};
use super::tcp;
use exchange::Outcome;

/// How long a request may go on after its answer, its bytes read and thrown away. Bounded by time alone, as
/// nginx's `lingering_time`: whoever uploads does not look for an answer before its socket is full, and a
/// reset then takes the answer away.
const LINGER_MOST: Duration = Duration::from_secs(30);

/// One connection.
struct Connection {
    session: Session,
    /// Inbound: the one upstream connection, which carries no other client's requests.
    own: RefCell<Option<Rc<Link>>>,
}

/// How waiting for a head ended, where it did not end with a head.
enum Ended {
    /// Nothing more is asked.
    Clean,
    /// The client is gone or is to be cut.
    Broken,
    /// The client is to be told.
    Refused(ProxyError),
}

/// Serves requests until the connection ends.
pub async fn serve(session: Session) {
    let connection = Connection { session, own: RefCell::default() };
    connection.run().await;
}

/// The same for an inbound connection whose own connection to the application is open already.
pub async fn serve_over(session: Session, own: Rc<Link>) {
    let connection = Connection { session, own: RefCell::new(Some(own)) };
    connection.run().await;
}

/// Answers whatever comes with this, and closes.
pub async fn refuse(session: Session, error: ProxyError) {
    let connection = Connection { session, own: RefCell::default() };
    connection.refuse(error);
    connection.finish().await;
}

impl Connection {
    async fn run(self) {
        loop {
            let head = match self.read_head().await {
                Ok(length) => length,
                Err(Ended::Clean) => return self.finish().await,
                Err(Ended::Broken) => return self.session.client.reset(),
                Err(Ended::Refused(ProxyError::NotHttp)) if !self.is_opaque_allowed() => {
                    let error = ProxyError::DeniedByPolicy;
                    self.account(&Account { reason: error.reason(), ..Account::begun_now() });
                    return self.session.client.reset();
                }
                Err(Ended::Refused(error)) => {
                    self.refuse(error);
                    return self.finish().await;
                }
            };
            // In a place of its own: a connection that waits for a request holds no room for one.
            match Box::pin(self.carry_out(head)).await {
                Outcome::Next => {}
                Outcome::Close => return self.finish().await,
                Outcome::Over => return,
                Outcome::Reset | Outcome::Tunnel(..) | Outcome::Again(_) | Outcome::Lost(_) => {
                    return self.session.client.reset();
                }
            }
        }
    }

    /// One request, and what follows where it ends HTTP.
    async fn carry_out(&self, head: usize) -> Outcome {
        let s = &self.session;
        one(&s.worker.shared.counters.requests);
        let mut account = Account::begun_now();
        let outcome = self.request(head, &mut account).await;
        self.account(&account);
        let Outcome::Tunnel(hop, upstream) = outcome else { return outcome };
        let _judged = account
            .asked
            .take()
            .map(|head| Judged::add(&s.worker, (&s.member, &s.whose), hop, Some(head), s.watch.rc()));
        drop(account);
        tcp::copy(&s.worker, &s.watch, &s.client, &upstream, &s.held).await;
        Outcome::Over
    }

    /// May bytes come that are no HTTP? Where requests decide they are not answered.
    fn is_opaque_allowed(&self) -> bool {
        let Session { worker, member, whose, to, .. } = &self.session;
        match to {
            To::Hop(hop) => opaque(worker, member, whose, hop).is_ok(),
            To::Service(_) => true,
        }
    }

    /// Waits for a complete request head; its length.
    async fn read_head(&self) -> Result<usize, Ended> {
        let Session { worker, client, watch, .. } = &self.session;
        let mut scan = HeadScan::new(Side::Client);
        let (mut started, mut drains) = (false, false);
        worker.clock.arm(watch, worker.limits.keep_alive);
        std::future::poll_fn(|cx| {
            loop {
                // A client that does not take its answers is asked for no more requests.
                let full = client.stuck() > 0 || client.is_tight();
                let flushed = if full { client.poll_flush(cx) } else { Poll::Ready(Ok(())) };
                if let Poll::Ready(Err(_)) = flushed {
                    return Poll::Ready(Err(Ended::Broken));
                }
                if flushed.is_ready()
                    && let Some(input) = client.input().borrow().as_ref()
                {
                    match scan.end(input.data(), &worker.limits.http) {
                        Ok(Some(length)) => return Poll::Ready(Ok(length)),
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(Err(Ended::Refused(error))),
                    }
                    if !started && scan.started(input.data()) {
                        started = true;
                        worker.clock.arm(watch, worker.limits.head);
                    }
                }
                if let Poll::Ready(call) = watch.poll_call(cx) {
                    return Poll::Ready(Err(match (call, started) {
                        (Call::Cut, _) => Ended::Broken,
                        (Call::Late, true) => Ended::Refused(ProxyError::HeaderTimeout),
                        (Call::Late, false) => Ended::Clean,
                    }));
                }
                // Ended at once, it would meet the request that is just on its way.
                if worker.draining.get() && !started && !std::mem::replace(&mut drains, true) {
                    worker.clock.arm(watch, worker.limits.drain_idle);
                }
                if flushed.is_pending() {
                    return Poll::Pending;
                }
                match client.poll_input(cx, &worker.buffers) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(Ended::Clean)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Ended::Broken)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Answers in the endpoint's place, and closes.
    fn refuse(&self, error: ProxyError) {
        let account = Account { status: error.status(), reason: error.reason(), ..Account::begun_now() };
        self.reply(error, false, false);
        self.account(&account);
    }

    /// Puts our own answer into the client's output.
    fn reply(&self, error: ProxyError, keep_alive: bool, head_request: bool) {
        let Session { worker, client, .. } = &self.session;
        let mut out = client.out().borrow_mut();
        let buf = out.get_or_insert_with(|| worker.buffers.small());
        write_error(&error, keep_alive, head_request, buf.bytes());
        drop(out);
        worker.flush.push(client);
    }

    /// Puts the answer of somebody outside into the client's output.
    fn deny(&self, denial: &Denial, keep_alive: bool, head_request: bool) {
        let Session { worker, client, .. } = &self.session;
        let mut out = client.out().borrow_mut();
        let buf = out.get_or_insert_with(|| worker.buffers.small());
        write_denial(denial, keep_alive, head_request, buf.bytes());
        drop(out);
        worker.flush.push(client);
    }

    /// Ends the connection so that the client gets what was written: our end first, then what it still sends
    /// is thrown away for a while. Closing with unread bytes would reset the connection under our answer.
    async fn finish(&self) {
        let Session { worker, client, watch, .. } = &self.session;
        let (begun, most) = (worker.clock.now(), LINGER_MOST.as_millis() as u64);
        worker.clock.arm(watch, worker.limits.linger);
        std::future::poll_fn(|cx| {
            if watch.poll_call(cx).is_ready() {
                return Poll::Ready(());
            }
            match client.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            loop {
                client.consume(usize::MAX);
                match client.poll_input(cx, &worker.buffers) {
                    Poll::Ready(Ok(n)) if n > 0 && worker.clock.now() - begun < most => {
                        worker.clock.arm(watch, worker.limits.linger);
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    fn account(&self, account: &Account) {
        account.record(&self.session.parties(), Spoken::Http1);
    }

    fn caller(&self) -> Caller<'_> {
        let Session { worker, member, to, prefer_v6, .. } = &self.session;
        Caller { worker, member, to: *to, prefer_v6: *prefer_v6 }
    }
}
