//! What one request holds of its service and its endpoint, from its admission to its end.
//!
//! Invariants: what it holds is given back when it drops, however it ends; each try is settled once, and one whose end
//! nobody knows (its client has gone) as such.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_core::error::ProxyError;
use mesh_core::resilience::Resilience;
use mesh_core::resilience::answer::Answer;
use mesh_core::resilience::breaker::{Breaker, Breaking, Pass};
use mesh_core::resilience::hedge::{Hedge, When};
use mesh_core::resilience::latency;
use mesh_core::resilience::outlier::outliers;
use mesh_core::resilience::sticky::Wanted;
use mesh_core::snapshot::Service;

use super::super::intercept::Hop;
use super::super::routing::Caller;
use super::super::worker::Worker;
use super::state::{Table, View};
use crate::sys::monotonic_ns;

/// One request.
pub struct Ticket {
    worker: Rc<Worker>,
    asked: Arc<Resilience>,
    table: Rc<Table>,
    service: u32,
    /// It is counted among those in flight.
    inside: bool,
    /// Of the service's breaker.
    pass: Option<Pass>,
    place: Option<Place>,
    grpc: Option<u8>,
    /// Of a second request: the first one's time is what counts.
    second: bool,
}

/// Its endpoint.
struct Place {
    at: usize,
    /// Of the endpoint's breaker.
    pass: Option<Pass>,
    /// Of the endpoint's record.
    epoch: u32,
    begun: u64,
    /// Until the head of the answer.
    took: Option<u64>,
    settled: bool,
}

impl Ticket {
    /// One that holds nothing yet.
    pub fn new(worker: &Rc<Worker>, service: &Service, asked: &Arc<Resilience>) -> Self {
        Self {
            table: worker.tables.of(&worker.common.resilience, service),
            worker: worker.clone(),
            asked: asked.clone(),
            service: service.id,
            inside: false,
            pass: None,
            place: None,
            grpc: None,
            second: false,
        }
    }

    /// One of a second request.
    pub fn second(worker: &Rc<Worker>, service: &Service, asked: &Arc<Resilience>) -> Self {
        let mut ticket = Self::new(worker, service, asked);
        ticket.second = true;
        ticket
    }

    /// When a second request is sent; `None`: never.
    pub fn hedge(&self) -> Option<Hedge> {
        self.asked.hedge
    }

    /// The endpoints and what is known of them.
    pub fn table(&self) -> &Rc<Table> {
        &self.table
    }

    /// Takes all that it needs, at this endpoint or at another one that has room. `called`: it was its turn. `false`:
    /// there is no room, and nothing was taken.
    pub fn take(
        &mut self,
        caller: &Caller<'_>,
        service: &Service,
        hop: &mut Hop,
        called: bool,
    ) -> Result<bool, ProxyError> {
        let (limits, gate) = (&self.asked.limits, &self.table.shared.gate);
        let entered = if called { gate.enter_called(limits) } else { gate.enter(limits) };
        if !entered {
            return Ok(false);
        }
        self.inside = true;
        let found = self.pass_service().and_then(|()| self.find(caller, service, hop));
        if !matches!(found, Ok(true)) {
            self.settle_service(Answer::Nothing);
            self.inside = false;
            self.table.shared.gate.back_out();
        }
        found
    }

    /// Of the service's breaker, where there is one.
    fn pass_service(&mut self) -> Result<(), ProxyError> {
        let Some(breaking) = self.asked.breaking.as_ref().filter(|breaking| breaking.service) else {
            return Ok(());
        };
        if self.pass.is_none() {
            let admitted = self.table.shared.breaker.lock().admit(breaking, monotonic_ns());
            self.pass = Some(admitted.map_err(|_| ProxyError::BreakerOpen)?);
        }
        Ok(())
    }

    /// A place at this endpoint, or at any that has one.
    fn find(&mut self, caller: &Caller<'_>, service: &Service, hop: &mut Hop) -> Result<bool, ProxyError> {
        if self.stand(hop.endpoint).is_ok() {
            return Ok(true);
        }
        let view = View { sockets: &*self.worker.sockets, table: &self.table, asked: &self.asked };
        let other = caller.pick(service, Wanted::Any, &view);
        if let Some(other) = other
            && self.stand(other.endpoint).is_ok()
        {
            *hop = other;
            return Ok(true);
        }
        let serving = &self.table.states[..service.serving.min(self.table.states.len())];
        let full = |at: usize| !self.asked.limits.has_room_at(serving[at].requests.load(Relaxed));
        if (0..serving.len()).any(full) || serving.is_empty() {
            Ok(false)
        } else {
            Err(ProxyError::BreakerOpen)
        }
    }

    /// Takes a place at an endpoint; `Err`: why it gets none.
    fn stand(&mut self, endpoint: u32) -> Result<(), ProxyError> {
        let now = monotonic_ns();
        let Some(at) = self.table.place(endpoint) else { return Err(ProxyError::NoEndpoints) };
        let state = &self.table.states[at];
        let limits = &self.asked.limits;
        let more = |requests: u32| limits.has_room_at(requests).then_some(requests + 1);
        if state.requests.fetch_update(Relaxed, Relaxed, more).is_err() {
            return Err(ProxyError::LimitRequests);
        }
        let mut health = state.health.lock();
        let breaking = self.asked.breaking.as_ref().filter(|breaking| !breaking.service);
        let admitted = breaking.map(|breaking| health.breaker.admit(breaking, now)).transpose();
        let Ok(pass) = admitted else {
            state.requests.fetch_sub(1, Relaxed);
            return Err(ProxyError::BreakerOpen);
        };
        let epoch = health.record.epoch;
        drop(health);
        self.place = Some(Place { at, pass, epoch, begun: now, took: None, settled: false });
        Ok(())
    }

    /// The next try goes to this endpoint.
    pub fn go(&mut self, endpoint: u32) -> Result<(), ProxyError> {
        let unused = self.place.as_ref().is_some_and(|place| !place.settled);
        if unused && self.place.as_ref().map(|place| place.at) == self.table.place(endpoint) {
            return Ok(());
        }
        self.leave_place();
        self.table.shared.gate.nudge();
        self.pass_service()?;
        self.stand(endpoint)
    }

    /// The head of the answer is there.
    pub fn answered(&mut self, at: u64) {
        let Some(place) = &mut self.place else { return };
        let took = at.saturating_sub(place.begun);
        let first = place.took.replace(place.took.unwrap_or(took)).is_none();
        let counts = self.asked.hedge.is_some_and(|hedge| matches!(hedge.when, When::Percentile(_)));
        if counts && first && !self.second {
            self.table.shared.hedging.note(Duration::from_nanos(took));
        }
    }

    /// What gRPC says of its outcome.
    pub fn heard(&mut self, status: Option<u8>) {
        self.grpc = status.or(self.grpc);
    }

    /// How the try ended.
    pub fn settle(&mut self, answer: Answer) {
        let answer = match (answer, self.grpc.take()) {
            (Answer::Good, Some(status)) => Answer::of_grpc(status),
            (answer, _) => answer,
        };
        self.settle_service(answer);
        self.settle_place(answer);
        self.compare();
    }

    fn settle_service(&mut self, answer: Answer) {
        if let (Some(pass), Some(breaking)) = (self.pass.take(), &self.asked.breaking) {
            self.settle_breaker(&mut self.table.shared.breaker.lock(), breaking, pass, answer);
        }
    }

    fn settle_breaker(&self, breaker: &mut Breaker, breaking: &Breaking, pass: Pass, answer: Answer) {
        let before = breaker.opened();
        breaker.settle(breaking, pass, answer.failed(), monotonic_ns(), fastrand::u64(..));
        self.table.shared.opened.fetch_add(breaker.opened() - before, Relaxed);
    }

    fn settle_place(&mut self, answer: Answer) {
        let Some(place) = self.place.as_mut().filter(|place| !place.settled) else { return };
        place.settled = true;
        let (at, epoch, pass) = (place.at, place.epoch, place.pass.take());
        let now = monotonic_ns();
        let took = place.took.unwrap_or_else(|| now.saturating_sub(place.begun));
        let state = &self.table.states[at];
        if self.asked.weighs {
            let after = |expected| Some(latency::after(expected, answer, Duration::from_nanos(took), now));
            // Never refused.
            let _ = state.expected.fetch_update(Relaxed, Relaxed, after);
        }
        let mut health = state.health.lock();
        if let (Some(pass), Some(breaking)) = (pass, &self.asked.breaking) {
            self.settle_breaker(&mut health.breaker, breaking, pass, answer);
        }
        let ejects = self.asked.outliers.is_some_and(|rules| health.record.note(&rules, epoch, answer));
        drop(health);
        if ejects {
            self.eject(at, now);
        }
    }

    /// Leaves an endpoint out, where it may be.
    fn eject(&self, at: usize, now: u64) {
        let Some(rules) = self.asked.outliers else { return };
        let mut health = self.table.states[at].health.lock();
        let (endpoint, before) = (self.table.endpoints[at].id, health.record.before(&rules, now));
        if let Some(until) = self.worker.sockets.eject(self.service, endpoint, before) {
            health.record.ejected(&rules, now, until);
            tracing::info!(service = self.service, endpoint, "an endpoint is left out for what it answers");
        }
    }

    /// Compares the endpoints, where it is time to.
    fn compare(&self) {
        let Some(rates) = self.asked.outliers.and_then(|rules| rules.rate) else { return };
        let now = monotonic_ns();
        let next = now.saturating_add(u64::try_from(rates.interval.as_nanos()).unwrap_or(u64::MAX));
        let compared = &self.table.shared.compared;
        let due = compared.load(Relaxed);
        if due > now || compared.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let counted: Vec<_> =
            self.table.states.iter().map(|state| state.health.lock().record.interval()).collect();
        // What was counted before anybody looked is no interval.
        if due != 0 {
            for at in outliers(&rates, &counted) {
                self.eject(at, now);
            }
        }
    }

    fn leave_place(&mut self) {
        self.settle_place(Answer::Nothing);
        if let Some(place) = self.place.take() {
            self.table.states[place.at].requests.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle_service(Answer::Nothing);
        self.leave_place();
        if self.inside {
            self.table.shared.gate.leave();
        }
    }
}
