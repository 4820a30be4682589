//! What is known of a request when it has ended, and who is told: the series, the access log, those who tap.
//!
//! accept, routing, exchange ──fields──▶ **account** ──▶ { series, see }
//!
//! One for HTTP/1, HTTP/2 and connections of opaque bytes. Nobody looks: two numbers are read, nothing is kept of a head.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use mesh_core::error::ProxyError;
use mesh_core::ext_authz::Denial;
use mesh_core::head::Head;
use mesh_core::outcome::{LogRule, NO_GRPC};
use mesh_core::resilience::fault::Mishap;
use mesh_core::resilience::sticky::Wanted;

use super::authorise::Whose;
use super::intercept::{Hop, Session};
use super::member::Member;
use super::resilience::Ticket;
use super::see::{self, Noted};
use super::series::{Key, Measured, UNPROVED};
use super::stats::{Direction, Spoken};
use super::worker::Worker;

/// Who calls whom, on which worker.
#[derive(Clone, Copy)]
pub struct Parties<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// The workload of this node.
    pub member: &'a Arc<Member>,
    /// Does it call, or is it called?
    pub direction: Direction,
    /// Who calls.
    pub whose: &'a Whose,
}

impl Session {
    /// Its ends.
    pub fn parties(&self) -> Parties<'_> {
        let Self { worker, member, direction, whose, .. } = self;
        Parties { worker, member, direction: *direction, whose }
    }
}

impl Parties<'_> {
    /// See [`Key::source`].
    fn source(&self) -> u32 {
        let found = match (self.direction, self.whose) {
            (Direction::Out, _) | (_, Whose::Member) => return self.member.workload,
            (_, Whose::Other(other)) => other.source(&*self.worker.sockets),
            (_, Whose::Tunnel(tunnel)) => self.worker.with_snapshot(|snapshot| tunnel.source(snapshot)),
        };
        if found == 0 { UNPROVED } else { found }
    }
}

/// What is counted and told of a request.
pub struct Account {
    /// When it came.
    pub begun: Instant,
    /// See [`Key::service`].
    pub service: u32,
    /// See [`Key::route`].
    pub route: u32,
    /// See [`Key::status`].
    pub status: u16,
    /// See [`Key::reason`].
    pub reason: &'static str,
    /// It is gRPC's.
    pub grpc: bool,
    /// See [`Key::grpc`].
    pub grpc_status: u8,
    /// The endpoint that it was sent to last; 0: none.
    pub endpoint: u32,
    /// Its address.
    pub address: Option<SocketAddr>,
    /// How often it was sent, or was to be.
    pub tries: u8,
    /// Bytes of its body that were read.
    pub received: Cell<u64>,
    /// Bytes of its response's body that were passed on.
    pub sent: Cell<u64>,
    /// Its head, where it may end HTTP: policies may ask for it later.
    pub asked: Option<Box<[u8]>>,
    /// Whom it asks for.
    pub wanted: Wanted,
    /// What is to go wrong with it.
    pub mishap: Mishap,
    /// What it holds of its service, where that follows requests.
    pub ticket: Option<Box<Ticket>>,
    /// What the client gets in place of a response, where somebody outside has decided that.
    pub denial: Option<Box<Denial>>,
    /// It is one of the access log's sample; `None`: nobody has drawn yet.
    pub(super) sampled: Option<bool>,
    /// What is told of its head, where somebody looks.
    pub(super) noted: Option<Box<Noted>>,
}

impl Account {
    /// Of a request that has come now.
    pub fn begun_now() -> Self {
        Self {
            begun: Instant::now(),
            service: 0,
            route: 0,
            status: 0,
            reason: "",
            grpc: false,
            grpc_status: NO_GRPC,
            endpoint: 0,
            address: None,
            tries: 0,
            received: Cell::new(0),
            sent: Cell::new(0),
            asked: None,
            wanted: Wanted::Any,
            mishap: Mishap::default(),
            ticket: None,
            denial: None,
            sampled: None,
            noted: None,
        }
    }

    /// It was refused, or failed.
    pub fn failed(&mut self, error: ProxyError) {
        self.status = self.denial.as_ref().map_or_else(|| error.status(), |denial| denial.status);
        self.reason = error.reason();
    }

    /// It is sent there now.
    pub fn sent_to(&mut self, hop: &Hop) {
        (self.service, self.endpoint, self.address) = (hop.service, hop.endpoint, Some(hop.address));
        self.tries = self.tries.saturating_add(1);
    }

    /// Keeps of its head what will be told, where somebody looks.
    pub fn note(&mut self, worker: &Worker, member: &Member, head: &impl Head) {
        let rule = LogRule::unpacked(member.log.load(Relaxed));
        let tapped = worker.common.taps.any();
        if !tapped && rule.is_off() {
            return;
        }
        let sampled = rule.samples(fastrand::u64(..));
        self.sampled = Some(sampled);
        if tapped || sampled || rule.errors {
            self.noted = Some(Box::new(Noted::of(head)));
        }
    }

    /// Counts and tells it as ended.
    pub fn record(&self, at: &Parties<'_>, spoken: Spoken) {
        let Parties { worker, member, direction, .. } = at;
        let key = Key {
            source: at.source(),
            service: self.service,
            route: self.route,
            status: self.status,
            grpc: self.grpc_status,
            direction: *direction,
            spoken: if self.grpc { Spoken::Grpc } else { spoken },
            reason: self.reason,
        };
        let us = self.begun.elapsed().as_micros() as u64;
        let measured = Measured { us, received: self.received.get(), sent: self.sent.get() };
        worker.shared.requests.record(&key, &measured, worker.clock.now());
        let rule = member.log.load(Relaxed);
        if rule != 0 || worker.common.taps.any() {
            self.tell(at, &key, &measured, LogRule::unpacked(rule));
        }
    }

    #[cold]
    fn tell(&self, at: &Parties<'_>, key: &Key, measured: &Measured, rule: LogRule) {
        let sampled = self.sampled.unwrap_or_else(|| rule.samples(fastrand::u64(..)));
        let ended = see::Ended { key, measured, account: self, noted: self.noted.as_deref() };
        see::tell(at, &ended, |failed| sampled || rule.errors && failed);
    }
}
