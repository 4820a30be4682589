//! Gets the connection for a request: one that an earlier request has left, else a new one; and sends the
//! request on it.
//!
//! A connect that fails is tried at up to [`OTHERS`] other endpoints: nothing has been sent, so any method may
//! be. Inbound, the connection shows one client to the application, so it is this client's alone.

use std::rc::Rc;

use mesh_core::error::ProxyError;
use mesh_core::head::Head as _;
use mesh_core::http1::{Limits, parse_request};
use mesh_core::resilience::answer::Answer;

use super::super::authorise::request;
use super::super::buffers::Buf;
use super::super::intercept::{Hop, Session};
use super::super::link::Link;
use super::super::pool::{PoolKey, is_plain, number};
use super::super::resilience::rate::limit;
use super::super::routing::Account;
use super::super::stats::{Direction, one};
use super::super::transport;
use super::super::worker::Worker;
use super::Connection;
use super::request::Prepared;

/// Other endpoints that are tried after a connect has failed.
const OTHERS: usize = 2;

/// A connection with a request on it.
pub(super) struct Acquired {
    pub upstream: Rc<Link>,
    pub hop: Hop,
    /// It has carried a request before: its endpoint may have closed it meanwhile.
    pub reused: bool,
}

impl Connection {
    /// A connection for the request.
    pub(super) async fn acquire(
        &self,
        mut prepared: Prepared,
        account: &mut Account,
    ) -> Result<(Acquired, Prepared), ProxyError> {
        let mut hop = prepared.hop;
        let watch = Some(&*self.session.watch);
        account.admit(&self.caller(), watch, prepared.backend.as_ref(), &mut hop).await?;
        let mut tried = [0; OTHERS + 1];
        let mut failed = 0;
        loop {
            account.sent_to(&hop);
            self.ask(&hop, &mut prepared, account).await?;
            if let Some(upstream) = self.reuse(&hop) {
                one(&self.session.worker.shared.counters.upstream_reused);
                prepared.granted = account.stick(prepared.backend.as_ref(), &hop, prepared.granted);
                return Ok((Acquired { upstream, hop, reused: true }, prepared));
            }
            let error = match self.open(&hop).await {
                Ok(upstream) => {
                    prepared.granted = account.stick(prepared.backend.as_ref(), &hop, prepared.granted);
                    return Ok((Acquired { upstream, hop, reused: false }, prepared));
                }
                Err(error) => error,
            };
            account.settle(|| Answer::of_error(&error));
            tried[failed] = hop.endpoint;
            failed += 1;
            let other = prepared
                .backend
                .as_ref()
                .filter(|_| failed <= OTHERS)
                .and_then(|service| self.caller().other(service, &tried[..failed]));
            match other {
                Some(other) if !self.session.watch.is_cut() => hop = other,
                _ => return Err(error),
            }
            account.goes(&hop)?;
            one(&self.session.worker.shared.counters.retried);
        }
    }

    /// May the request go there? Then it is as the endpoint gets it.
    async fn ask(&self, hop: &Hop, prepared: &mut Prepared, account: &mut Account) -> Result<(), ProxyError> {
        let Session { worker, member, whose, .. } = &self.session;
        let now = prepared.out.data().get(..prepared.head).unwrap_or_default();
        // Another endpoint is asked of the request as it came.
        let head = prepared.asked.as_deref().unwrap_or(now);
        let (told, granted) = request(worker, member, whose, hop, head, account).await?;
        prepared.granted = granted;
        if prepared.facts.may_switch() {
            account.asked = Some(head.into());
        }
        if told.is_some() || prepared.asked.is_some() {
            let came: Box<[u8]> = head.into();
            let head = told.as_deref().unwrap_or(&came);
            let out = with_head(worker, head, &prepared.out, prepared.head);
            (prepared.out, prepared.head) = (out, head.len());
            prepared.asked = Some(came);
        }
        let backend = prepared.backend.as_deref();
        limit(worker, (member, whose), hop, backend, |name| {
            let head = prepared.out.data().get(..prepared.head).unwrap_or_default();
            let head = parse_request(head, &Limits::default()).ok()?;
            head.header(name).map(<[u8]>::to_vec)
        })
    }

    /// A new connection.
    pub(super) async fn open(&self, hop: &Hop) -> Result<Rc<Link>, ProxyError> {
        let Session { worker, member, watch, .. } = &self.session;
        let counters = &worker.shared.counters;
        let opened = match hop.target(worker, member) {
            Ok(target) => transport::open(worker, &target, watch).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(stream) => {
                one(&counters.upstream_opened);
                let link = Rc::new(Link::new(stream));
                link.own(Some(watch.rc().clone()));
                Ok(link)
            }
            Err(error) => {
                one(&counters.upstream_failed);
                Err(error)
            }
        }
    }

    fn reuse(&self, hop: &Hop) -> Option<Rc<Link>> {
        let Session { worker, watch, direction, .. } = &self.session;
        let link = match direction {
            Direction::In => self.own.borrow_mut().take().filter(|link| link.usable()),
            Direction::Out => worker.upstreams.take(&self.pool_key(hop)),
        }?;
        link.own(Some(watch.rc().clone()));
        Some(link)
    }

    /// The request is over and the connection can carry another.
    pub(super) fn release(&self, hop: &Hop, link: Rc<Link>) {
        let Session { worker, member, direction, .. } = &self.session;
        match direction {
            Direction::In => *self.own.borrow_mut() = Some(link),
            Direction::Out => {
                let plain = hop.tunnel != 0 && link.stream().tcp().is_some();
                if plain && !worker.with_snapshot(|snapshot| is_plain(snapshot, member.workload)) {
                    // It was opened when its workload did not ask for encryption.
                    return;
                }
                worker.upstreams.put(self.pool_key(hop), link, worker.clock.now());
            }
        }
    }

    fn pool_key(&self, hop: &Hop) -> PoolKey {
        PoolKey {
            source: self.session.member.workload,
            service: hop.service,
            endpoint: hop.endpoint,
            address: hop.address,
            tunnel: hop.tunnel,
            origination: self.session.worker.with_snapshot(|snapshot| number(snapshot, hop.service)),
        }
    }
}

/// A request with this head in place of its own, the first `length` bytes.
pub(super) fn with_head(worker: &Worker, head: &[u8], of: &Buf, length: usize) -> Buf {
    let body = of.data().get(length..).unwrap_or_default();
    let mut out = worker.buffers.fitting(head.len() + body.len());
    out.bytes().extend_from_slice(head);
    out.bytes().extend_from_slice(body);
    out
}
