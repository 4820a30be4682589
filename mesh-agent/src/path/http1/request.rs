//! One request from its head to its outcome: parse, route, write, acquire, exchange.
//!
//! Routing sees the head where it lies; what is kept of it is [`Facts`](RequestFacts) and the bytes for the
//! endpoint, in a buffer of their own.

use std::sync::Arc;

use mesh_core::balance::pick_other;
use mesh_core::error::ProxyError;
use mesh_core::http1::{
    Framing, MethodKind, RequestEdits, RequestFacts, RequestHead, Side, parse_request, write_request,
};
use mesh_core::snapshot::{Service, Snapshot};

use super::super::buffers::Buf;
use super::super::intercept::{Hop, Session, To};
use super::super::pump::Pump;
use super::exchange::{Exchange, Outcome};
use super::{Account, Connection};

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
    /// The rest of the body.
    pub body: Pump,
    /// First choice.
    pub hop: Hop,
    /// Whom to ask for another; `None`: nobody else will do.
    pub backend: Option<Arc<Service>>,
}

impl Connection {
    /// Carries out the request whose head is the first `length` bytes of the client's input.
    pub(super) async fn request(&self, length: usize, account: &mut Account) -> Outcome {
        let mut head_request = false;
        let mut bodyless = false;
        let prepared = self.prepare(length, account, &mut head_request, &mut bodyless);
        let prepared = match prepared {
            Ok(prepared) => prepared,
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
        let facts = prepared.facts;
        let requested = prepared.body.is_done();
        match self.acquire(prepared, account).await {
            Ok((acquired, prepared)) => Exchange::new(self, acquired, prepared).run(account).await,
            Err(error) => {
                account.failed(error);
                if self.session.watch.is_cut() {
                    return Outcome::Reset;
                }
                let keep = requested
                    && facts.keep_alive
                    && error.keeps_client()
                    && !self.session.worker.draining.get();
                self.reply(error, keep, facts.method == MethodKind::Head);
                if keep { Outcome::Next } else { Outcome::Close }
            }
        }
    }

    fn prepare(
        &self,
        length: usize,
        account: &mut Account,
        head_request: &mut bool,
        bodyless: &mut bool,
    ) -> Result<Prepared, ProxyError> {
        let Session { worker, client, .. } = &self.session;
        let limits = &worker.limits.http;
        let (prepared, used) = {
            let input = client.input().borrow();
            let bytes = input.as_ref().map_or(&[][..], Buf::data);
            let (head, rest) = bytes.split_at(length.min(bytes.len()));
            let head = parse_request(head, limits)?;
            *head_request = head.method == "HEAD";
            *bodyless = head.framing == Framing::None && head.keep_alive;
            let (hop, backend) = worker.with_snapshot(|snapshot| self.route(snapshot, &head, account))?;
            let mut out = worker.buffers.fitting(length + GROWTH + rest.len().min(usize::from(u16::MAX)));
            write_request(&head, &RequestEdits::default(), out.bytes());
            let written = out.data().len();
            let mut body = Pump::new(head.framing, Side::Client, limits);
            let used = body.append(rest, &mut out)?;
            let prepared = Prepared {
                facts: head.facts(),
                repeatable: head.is_idempotent() && head.framing == Framing::None,
                out,
                head: written,
                body,
                hop,
                backend,
            };
            (prepared, used)
        };
        client.consume(length + used);
        Ok(prepared)
    }

    /// Which endpoint gets the request, and of which service it is.
    fn route(
        &self,
        snapshot: &Snapshot,
        head: &RequestHead<'_>,
        account: &mut Account,
    ) -> Result<(Hop, Option<Arc<Service>>), ProxyError> {
        let id = match self.session.to {
            To::Hop(hop) => {
                account.service = hop.service;
                return Ok((hop, None));
            }
            To::Service(id) => id,
        };
        account.service = id;
        let asked = snapshot.services.get(&id).ok_or(ProxyError::NoEndpoints)?;
        let backend = match &asked.routes {
            None => asked,
            Some(routes) => {
                let rule = routes.find(head).ok_or(ProxyError::NoRoute)?;
                account.route = rule.name.clone();
                let chosen = rule.pick(fastrand::u64(..))?;
                account.service = chosen;
                snapshot.services.get(&chosen).ok_or(ProxyError::NoBackend)?
            }
        };
        Ok((self.balance(backend)?, Some(backend.clone())))
    }

    /// Any endpoint but these.
    pub(super) fn another(&self, service: &Service, tried: &[u32]) -> Option<Hop> {
        let endpoint = pick_other(service, tried, fastrand::u64(..))?;
        Hop::to(service.id, endpoint, self.session.prefer_v6)
    }

    /// The endpoint whose turn it is.
    pub(super) fn balance(&self, service: &Service) -> Result<Hop, ProxyError> {
        let Session { worker, member, .. } = &self.session;
        let mut balancer = worker.balance.borrow_mut();
        let endpoint = balancer
            .pick(service, member.number(), fastrand::u64(..), &*worker.sockets)
            .ok_or(ProxyError::NoEndpoints)?;
        Hop::to(service.id, endpoint, self.session.prefer_v6).ok_or(ProxyError::NoEndpoints)
    }
}
