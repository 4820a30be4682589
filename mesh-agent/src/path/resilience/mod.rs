//! What policies ask for of requests, in the path: one piece of code for all versions of HTTP.
//!
//! ```text
//! routing ─▶ **admit**: fault, then room in service and endpoint, or the queue ─▶ acquire ─▶ exchange ─▶ **settle**
//!             (gate, ticket)                                               other endpoints: **go**
//! receiving node: **rate**
//! ```
//!
//! A request holds its ticket in its [`Account`]. One whose service asks for nothing pays one branch.
//!
//! Files: [`gate`] the queue, [`state`] what is known of services and endpoints, [`ticket`] what a request holds, [`hedge`]
//! second requests, [`rate`] how often a workload of this node is asked.
//! Not here: the decisions (mesh-core's resilience), what the kernel limits and ejects.

pub mod gate;
pub mod hedge;
pub mod rate;
pub mod state;
mod ticket;

use std::sync::Arc;

use mesh_core::balance::pick_other;
use mesh_core::error::ProxyError;
use mesh_core::head::Head;
use mesh_core::outcome::NO_GRPC;
use mesh_core::resilience::Resilience;
use mesh_core::resilience::answer::Answer;
use mesh_core::resilience::sticky::Wanted;
use mesh_core::route::HeaderEdits;
use mesh_core::snapshot::Service;

use super::clock::{Call, Watch};
use super::intercept::Hop;
use super::routing::{Account, Caller};
use state::View;
pub use ticket::Ticket;

impl Caller<'_> {
    /// The endpoint whose turn it is among those with room; whoever's where none has: the request may wait.
    pub(super) fn balance_followed(
        &self,
        service: &Service,
        asked: &Resilience,
        wanted: Wanted,
    ) -> Option<Hop> {
        let worker = self.worker;
        let table = worker.tables.of(&worker.common.resilience, service);
        let view = View { sockets: &*worker.sockets, table: &table, asked };
        self.pick(service, wanted, &view).or_else(|| {
            let any = pick_other(service, &[], fastrand::u64(..))?;
            Hop::to(service.id, any, self.prefer_v6)
        })
    }
}

impl Account {
    /// What is to go wrong with a request to this service.
    pub(super) fn strike(&mut self, service: &Service, head: &impl Head) {
        if let Some(fault) = service.resilience.as_ref().and_then(|asked| asked.fault.as_ref()) {
            self.mishap = fault.strikes(head, [fastrand::u64(..), fastrand::u64(..)]);
        }
    }

    /// Whom the request asks for, where its service's policy keeps clients at their endpoints.
    pub(super) fn want(&mut self, service: &Service, head: &impl Head) {
        if let Some(sticky) = service.resilience.as_ref().and_then(|asked| asked.sticky.as_ref()) {
            self.wanted = sticky.wanted(head, service);
        }
    }

    /// What else changes in the response, so that its client asks for this endpoint the next time.
    pub(super) fn stick(
        &self,
        service: Option<&Arc<Service>>,
        hop: &Hop,
        edits: Option<Box<HeaderEdits>>,
    ) -> Option<Box<HeaderEdits>> {
        let Some((service, sticky)) =
            service.and_then(|service| Some((service, service.resilience.as_ref()?.sticky.as_ref()?)))
        else {
            return edits;
        };
        match (sticky.told(self.wanted, hop.endpoint, service), edits) {
            (Some(told), Some(edits)) => Some(Box::new(edits.then(&told))),
            (Some(told), None) => Some(Box::new(told)),
            (None, edits) => edits,
        }
    }

    /// May the request be sent, and where to? Waits for its turn. `backend`: its service, `None`: nobody asks for anything.
    /// `watch`: the connection's, where its end ends the wait.
    pub(super) async fn admit(
        &mut self,
        caller: &Caller<'_>,
        watch: Option<&Watch>,
        backend: Option<&Arc<Service>>,
        hop: &mut Hop,
    ) -> Result<(), ProxyError> {
        let Some((service, asked)) =
            backend.and_then(|service| Some((service, service.resilience.as_ref()?)))
        else {
            return Ok(());
        };
        if let Some(ticket) = &mut self.ticket {
            return ticket.go(hop.endpoint);
        }
        let admitting = Box::pin(admitted(caller, service, asked, self.mishap, hop));
        self.ticket = match watch {
            None => admitting.await?,
            Some(watch) => {
                // The request is here: what is waited for is not its client.
                watch.disarm();
                let cut = std::future::poll_fn(|cx| watch.poll_call(cx).map(|call| call == Call::Cut));
                tokio::select! {
                    biased;
                    admitted = admitting => admitted?,
                    _ = cut => return Err(ProxyError::Draining),
                }
            }
        };
        Ok(())
    }

    /// The request goes to another endpoint.
    pub(super) fn goes(&mut self, hop: &Hop) -> Result<(), ProxyError> {
        self.ticket.as_mut().map_or(Ok(()), |ticket| ticket.go(hop.endpoint))
    }

    /// The head of an answer has come, at this time of the clock.
    pub(super) fn answered(&mut self, at: u64) {
        if let Some(ticket) = &mut self.ticket {
            ticket.answered(at);
        }
    }

    /// What gRPC says of its outcome, in a head or in trailers; [`NO_GRPC`]: nothing.
    pub(super) fn heard(&mut self, code: u8) {
        if let Some(ticket) = &mut self.ticket {
            ticket.heard(Some(code).filter(|code| *code != NO_GRPC));
        }
    }

    /// How a try ended.
    pub(super) fn settle(&mut self, answer: impl FnOnce() -> Answer) {
        if let Some(ticket) = &mut self.ticket {
            ticket.settle(answer());
        }
    }
}

/// A ticket, once there is room; `None`: the service follows no requests.
async fn admitted(
    caller: &Caller<'_>,
    service: &Arc<Service>,
    asked: &Arc<Resilience>,
    mishap: mesh_core::resilience::fault::Mishap,
    hop: &mut Hop,
) -> Result<Option<Box<Ticket>>, ProxyError> {
    if let Some(delay) = mishap.delay {
        tokio::time::sleep(delay).await;
    }
    if let Some(status) = mishap.abort {
        return Err(ProxyError::FaultAbort(status));
    }
    if !asked.follows() {
        return Ok(None);
    }
    let mut ticket = Box::new(Ticket::new(caller.worker, service, asked));
    if ticket.take(caller, service, hop, false)? {
        return Ok(Some(ticket));
    }
    let table = ticket.table().clone();
    let mut waiter = table.shared.gate.join(&asked.limits)?;
    let turn = async {
        loop {
            let (called, first) = waiter.stand();
            if first && ticket.take(caller, service, hop, true)? {
                return Ok(());
            }
            // Its other end is dropped only after it was heard.
            let _ = called.await;
            if ticket.take(caller, service, hop, true)? {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(asked.limits.wait, turn).await.unwrap_or(Err(ProxyError::QueueTimeout))?;
    waiter.entered();
    Ok(Some(ticket))
}
