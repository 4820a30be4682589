//! Answers that are thrown away, because the route asks for another try.
//!
//! Not here: which those are (tries), the exchange itself.

use mesh_core::error::ProxyError;
use mesh_core::http1::{Limits, parse_response};

use super::super::request::Prepared;
use super::{Exchange, Outcome};
use crate::path::intercept::Session;
use crate::path::routing::Account;
use crate::path::stats::one;

impl Exchange<'_> {
    /// The request, to be sent to somebody else.
    pub(super) async fn once_more(mut self, account: &mut Account) -> Outcome {
        let Session { worker, .. } = &self.connection.session;
        one(&worker.shared.counters.retried);
        let out = self.upstream.take_kept();
        self.upstream.reset();
        let (Some(out), Some(terms)) = (out, self.terms.take()) else {
            return self.failed(ProxyError::Internal, account);
        };
        let cut = std::future::poll_fn(|cx| self.connection.session.watch.poll_call(cx).map(drop));
        let caller = self.connection.caller();
        let next = terms.next(&caller, self.backend.as_ref(), self.hop, cut).await;
        match next {
            Ok(hop) => Outcome::Again(Box::new(Prepared {
                facts: self.facts,
                repeatable: false,
                out,
                head: self.head,
                asked: self.asked,
                body: self.request,
                hop,
                backend: self.backend,
                edits: self.edits,
                granted: None,
                terms: Some(terms),
            })),
            Err(error) => self.failed(error, account),
        }
    }

    /// Is an answer, or a failure, of this status not the last?
    pub(super) fn tries_again(&mut self, status: u16) -> bool {
        let endpoint = self.hop.endpoint;
        let sent = self.request.is_done() && !self.client_ended && !self.connection.session.watch.is_cut();
        sent && self.terms.as_mut().is_some_and(|terms| terms.again(status, endpoint))
    }

    /// The answer is thrown away.
    pub(super) fn is_again(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.is_again())
    }

    /// Status of the head that the endpoint's input begins with, where another try may follow it.
    pub(super) fn refusable(&self, length: usize, limits: &Limits) -> Option<u16> {
        self.terms.as_ref().filter(|terms| terms.keeps())?;
        let input = self.upstream.input().borrow();
        let head = parse_response(input.as_ref()?.data().get(..length)?, self.facts, limits).ok()?;
        // Who is asked to wait has to be told: the client knows how long it can.
        let last = head.is_interim() || head.header("retry-after").is_some();
        (!last).then_some(head.status)
    }
}
