//! One request from its head to its outcome: parse, route, write, acquire, exchange.
//!
//! Routing sees the head where it lies; what is kept of it is [`Facts`](RequestFacts) and the bytes for the
//! endpoint, in a buffer of their own. A redirect is answered at once.

use std::sync::Arc;

use mesh_core::error::ProxyError;
use mesh_core::head::Head as _;
use mesh_core::http1::{
    Framing, MethodKind, RequestEdits, RequestFacts, RequestHead, Side, parse_request, write_direct,
    write_redirect, write_request,
};
use mesh_core::route::{DirectResponse, Edits, HeaderEdits, Redirect};
use mesh_core::snapshot::Service;

use super::super::buffers::Buf;
use super::super::intercept::{Hop, Session};
use super::super::pump::Pump;
use super::super::routing::{Account, Routed, Way, within};
use super::super::tries::Terms;
use super::exchange::{Exchange, Outcome};
use super::{Connection, hedge};

/// Bytes by which the head may grow on its way: the fields of the connection, said anew.
pub(super) const GROWTH: usize = 256;

/// A request, ready to be sent.
pub(super) struct Prepared {
    pub facts: RequestFacts,
    /// May be sent a second time: idempotent, and without a body.
    pub repeatable: bool,
    /// Head and what was there of the body, as the endpoint shall get it.
    pub out: Buf,
    /// Bytes of the head.
    pub head: usize,
    /// The head as it was asked about, where the endpoint gets another.
    pub asked: Option<Box<[u8]>>,
    /// The rest of the body.
    pub body: Pump,
    /// First choice.
    pub hop: Hop,
    /// Whom to ask for another; `None`: nobody else will do.
    pub backend: Option<Arc<Service>>,
    /// What changes in the response; `None`: nothing.
    pub edits: Option<Arc<Edits>>,
    /// What external authorisation changes in the response.
    pub granted: Option<Box<HeaderEdits>>,
    /// What the route says of tries and times; `None`: nothing.
    pub terms: Option<Box<Terms>>,
}

/// What became of a head.
#[expect(clippy::large_enum_variant, reason = "one a request, on the stack")]
enum Ready {
    /// A request.
    Send(Prepared),
    /// It was answered. The connection goes on, or not.
    Answered(bool),
}

impl Connection {
    /// Carries out the request whose head is the first `length` bytes of the client's input.
    pub(super) async fn request(&self, length: usize, account: &mut Account) -> Outcome {
        let mut head_request = false;
        let mut bodyless = false;
        let ready = self.prepare(length, account, &mut head_request, &mut bodyless);
        let prepared = match ready {
            Ok(Ready::Send(prepared)) => prepared,
            Ok(Ready::Answered(true)) => return Outcome::Next,
            Ok(Ready::Answered(false)) => return Outcome::Close,
            Err(error) => {
                account.failed(error);
                if bodyless {
                    self.session.client.consume(length);
                }
                let keep = bodyless && error.keeps_client() && !self.session.worker.draining.get();
                self.reply(error, keep, head_request);
                return if keep { Outcome::Next } else { Outcome::Close };
            }
        };
        self.tries(prepared, account).await
    }

    /// Sends the request until there is an answer that its route lets pass.
    async fn tries(&self, mut prepared: Prepared, account: &mut Account) -> Outcome {
        loop {
            let facts = prepared.facts;
            let requested = prepared.body.is_done();
            let deadline = prepared.terms.as_mut().and_then(|terms| {
                terms.begin();
                terms.deadline()
            });
            match within(deadline, self.acquire(prepared, account)).await {
                Ok((acquired, sent)) => {
                    let outcome = match hedge::seed(&acquired, &sent, account) {
                        None => Exchange::new(self, acquired, sent).run(account).await,
                        Some(seed) => Box::pin(self.hedged(seed, acquired, sent, account)).await,
                    };
                    match outcome {
                        Outcome::Again(again) => prepared = *again,
                        outcome => return outcome,
                    }
                }
                Err(error) => {
                    self.session.watch.disarm();
                    account.failed(error);
                    if self.session.watch.is_cut() {
                        return Outcome::Reset;
                    }
                    let keep = requested
                        && facts.keep_alive
                        && error.keeps_client()
                        && !self.session.worker.draining.get();
                    match account.denial.take() {
                        Some(denial) => self.deny(&denial, keep, facts.method == MethodKind::Head),
                        None => self.reply(error, keep, facts.method == MethodKind::Head),
                    }
                    return if keep { Outcome::Next } else { Outcome::Close };
                }
            }
        }
    }

    fn prepare(
        &self,
        length: usize,
        account: &mut Account,
        head_request: &mut bool,
        bodyless: &mut bool,
    ) -> Result<Ready, ProxyError> {
        let Session { worker, client, .. } = &self.session;
        let limits = &worker.limits.http;
        let (ready, used) = {
            let input = client.input().borrow();
            let bytes = input.as_ref().map_or(&[][..], Buf::data);
            let (head, rest) = bytes.split_at(length.min(bytes.len()));
            let head = parse_request(head, limits)?;
            *head_request = head.method == "HEAD";
            *bodyless = head.framing == Framing::None && head.keep_alive;
            worker.with_snapshot(|snapshot| match self.caller().route(snapshot, &head, account)? {
                Way::To(routed) => {
                    let (prepared, used) = self.write(&head, rest, &routed)?;
                    if let Some(action) = routed.action.filter(|action| !action.mirrors.is_empty()) {
                        let edits = RequestEdits { close: true, ..request_edits(&routed, &head) };
                        let body = prepared.body.is_done().then_some(&rest[..used]);
                        self.mirror(snapshot, &action.mirrors, &head, &edits, body);
                    }
                    Ok((Ready::Send(prepared), used))
                }
                Way::Answered(answer) => {
                    let keep = *bodyless && !worker.draining.get();
                    self.direct(answer, keep, *head_request);
                    account.status = answer.status;
                    Ok((Ready::Answered(keep), 0))
                }
                Way::Elsewhere(redirect, matched) => {
                    let keep = *bodyless && !worker.draining.get();
                    self.redirect(&head, redirect, matched, keep);
                    account.status = redirect.status;
                    Ok((Ready::Answered(keep), 0))
                }
            })?
        };
        client.consume(length + used);
        Ok(ready)
    }

    /// The request as its endpoint shall get it, and how many bytes of `rest` are its body's.
    fn write(
        &self,
        head: &RequestHead<'_>,
        rest: &[u8],
        routed: &Routed<'_>,
    ) -> Result<(Prepared, usize), ProxyError> {
        let Session { worker, .. } = &self.session;
        let edits = request_edits(routed, head);
        let grown = edits.headers.map_or(0, HeaderEdits::bytes) + edits.host.map_or(0, str::len);
        let size = head.length() + GROWTH + grown + rest.len().min(usize::from(u16::MAX));
        let mut out = worker.buffers.fitting(size);
        write_request(head, &edits, out.bytes());
        let written = out.data().len();
        let mut body = Pump::new(head.framing, Side::Client, &worker.limits.http);
        let used = body.append(rest, &mut out)?;
        let whole = body.is_done();
        let prepared = Prepared {
            facts: head.facts(),
            repeatable: head.is_idempotent() && head.framing == Framing::None,
            out,
            head: written,
            asked: None,
            body,
            hop: routed.hop,
            backend: routed.backend.clone(),
            edits: routed.edits.cloned(),
            granted: None,
            terms: routed.action.and_then(|action| Terms::new(worker, action, routed.hop.service, whole)),
        };
        Ok((prepared, used))
    }

    fn direct(&self, answer: &DirectResponse, keep: bool, head_request: bool) {
        let Session { worker, client, .. } = &self.session;
        let mut slot = client.out().borrow_mut();
        let out = slot.get_or_insert_with(|| worker.buffers.large());
        write_direct(answer, keep, head_request, out.bytes());
        drop(slot);
        worker.flush.push(client);
    }

    fn redirect(&self, head: &RequestHead<'_>, to: &Redirect, matched: usize, keep: bool) {
        let Session { worker, client, .. } = &self.session;
        let mut slot = client.out().borrow_mut();
        let out = slot.get_or_insert_with(|| worker.buffers.large());
        let asked = (head.authority, head.path, head.query());
        write_redirect(to.status, keep, |out| to.write(asked, matched, out), out.bytes());
        drop(slot);
        worker.flush.push(client);
    }
}

/// What changes in this head on its way to the endpoint.
fn request_edits<'e>(routed: &Routed<'e>, head: &'e RequestHead<'_>) -> RequestEdits<'e> {
    let rewrite = routed.action.map(|action| &action.rewrite);
    RequestEdits {
        path: routed.path(head.path),
        host: rewrite.and_then(|rewrite| rewrite.host.as_deref()),
        headers: routed.edits.map(|edits| &edits.request).filter(|edits| !edits.is_empty()),
        ..RequestEdits::default()
    }
}
