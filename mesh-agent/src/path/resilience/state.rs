//! What is known of services and endpoints for the node as a whole, and each worker's way to it.
//!
//! Only of services whose policy follows requests. A worker holds a [`Table`] of each that it has sent to, made anew where
//! its endpoints have changed; what is in it is shared by all workers, and goes when no table and no request holds it.
//!
//! Invariant: no more is held than the snapshot's services and their endpoints, and what requests are under way to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use mesh_common::record::Load;
use mesh_core::balance::Loads;
use mesh_core::resilience::Resilience;
use mesh_core::resilience::breaker::Breaker;
use mesh_core::resilience::latency;
use mesh_core::resilience::outlier::Record;
use mesh_core::snapshot::{Endpoint, Service, Snapshot};
use parking_lot::Mutex;

use super::super::hash::Quick;
use super::super::sockets::Sockets;
use super::gate::Gate;
use super::hedge::Hedging;
use crate::sys::monotonic_ns;

/// Of a service.
#[derive(Debug, Default)]
pub struct ServiceState {
    /// Requests in flight, and who waits.
    pub gate: Gate,
    /// Where it has one as a whole.
    pub breaker: Mutex<Breaker>,
    /// How often its breakers have opened.
    pub opened: AtomicU64,
    /// When its endpoints are compared next; 0: not known yet.
    pub compared: AtomicU64,
    /// Its second requests.
    pub hedging: Hedging,
    endpoints: Mutex<HashMap<u32, Weak<EndpointState>>>,
}

/// Of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Requests in flight.
    pub requests: AtomicU32,
    /// How soon it is expected to answer.
    pub expected: AtomicU64,
    /// How it fares.
    pub health: Mutex<Health>,
}

/// How an endpoint fares.
#[derive(Debug, Default)]
pub struct Health {
    /// Where each endpoint has one.
    pub breaker: Breaker,
    /// What it answered.
    pub record: Record,
}

/// All services.
#[derive(Debug, Default)]
pub struct Node {
    services: Mutex<HashMap<u32, Weak<ServiceState>>>,
}

/// What is told of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests in flight.
    pub active: u32,
    /// That wait.
    pub waiting: u32,
    /// Breakers that are open: of the service, or of its endpoints.
    pub open: u32,
    /// How often they have opened.
    pub opened: u64,
}

impl Node {
    fn service(&self, id: u32) -> Arc<ServiceState> {
        let mut services = self.services.lock();
        if let Some(held) = services.get(&id).and_then(Weak::upgrade) {
            return held;
        }
        services.retain(|_, held| held.strong_count() > 0);
        let fresh = Arc::new(ServiceState::default());
        services.insert(id, Arc::downgrade(&fresh));
        fresh
    }

    /// What is to be told, by service.
    pub fn seen(&self) -> Vec<(u32, Seen)> {
        let services: Vec<_> =
            self.services.lock().iter().filter_map(|(id, held)| Some((*id, held.upgrade()?))).collect();
        services.into_iter().map(|(id, service)| (id, service.seen())).collect()
    }
}

impl ServiceState {
    fn endpoint(&self, id: u32) -> Arc<EndpointState> {
        let mut endpoints = self.endpoints.lock();
        if let Some(held) = endpoints.get(&id).and_then(Weak::upgrade) {
            return held;
        }
        let fresh = Arc::new(EndpointState::default());
        endpoints.insert(id, Arc::downgrade(&fresh));
        fresh
    }

    fn forget_gone(&self) {
        self.endpoints.lock().retain(|_, held| held.strong_count() > 0);
    }

    fn seen(&self) -> Seen {
        let mut seen = Seen {
            active: 0,
            waiting: self.gate.waiting(),
            open: u32::from(self.breaker.lock().is_open()),
            opened: self.opened.load(Relaxed),
        };
        // Who has passed the gate and looks for a place is not under way yet.
        for endpoint in self.endpoints.lock().values().filter_map(Weak::upgrade) {
            seen.active += endpoint.requests.load(Relaxed);
            seen.open += u32::from(endpoint.health.lock().breaker.is_open());
        }
        seen
    }
}

/// A service and its endpoints, by their places.
pub struct Table {
    /// The service.
    pub shared: Arc<ServiceState>,
    /// By place among the snapshot's endpoints of the service.
    pub states: Box<[Arc<EndpointState>]>,
    /// Held so that its address stays its identity.
    pub endpoints: Arc<[Endpoint]>,
    places: HashMap<u32, usize, BuildHasherDefault<Quick>>,
}

impl Table {
    fn new(node: &Node, service: &Service) -> Self {
        let shared = node.service(service.id);
        shared.forget_gone();
        let endpoints = service.endpoints.clone();
        Self {
            states: endpoints.iter().map(|endpoint| shared.endpoint(endpoint.id)).collect(),
            places: endpoints.iter().enumerate().map(|(place, endpoint)| (endpoint.id, place)).collect(),
            endpoints,
            shared,
        }
    }

    /// The place of an endpoint; `None`: it is not there any more.
    pub fn place(&self, endpoint: u32) -> Option<usize> {
        self.places.get(&endpoint).copied()
    }
}

/// The tables of one worker.
#[derive(Default)]
pub struct Tables(RefCell<HashMap<u32, Rc<Table>, BuildHasherDefault<Quick>>>);

impl Tables {
    /// The table of a service as it is now.
    pub fn of(&self, node: &Node, service: &Service) -> Rc<Table> {
        let mut tables = self.0.borrow_mut();
        if let Some(table) = tables.get(&service.id)
            && Arc::ptr_eq(&table.endpoints, &service.endpoints)
        {
            return table.clone();
        }
        let table = Rc::new(Table::new(node, service));
        tables.insert(service.id, table.clone());
        table
    }

    /// Forgets what a changed snapshot has no more: services, endpoints. What is known of those that stay, stays.
    pub fn retain(&self, node: &Node, snapshot: &Snapshot) {
        self.0.borrow_mut().retain(|id, table| {
            let service = snapshot.services.get(id).filter(|service| service.resilience.is_some());
            let Some(service) = service else { return false };
            if !Arc::ptr_eq(&table.endpoints, &service.endpoints) {
                *table = Rc::new(Table::new(node, service));
            }
            true
        });
    }
}

/// What the balancer sees: the kernel's counters, and ours.
pub struct View<'t> {
    /// The kernel.
    pub sockets: &'t dyn Sockets,
    /// Ours.
    pub table: &'t Table,
    /// What the policy says.
    pub asked: &'t Resilience,
}

impl Loads for View<'_> {
    fn load(&self, endpoint: u32) -> Load {
        self.sockets.load(endpoint)
    }

    fn ejected(&self, service: u32) -> u64 {
        self.sockets.ejected(service)
    }

    fn now(&self) -> u64 {
        monotonic_ns()
    }

    fn let_back(&self, service: u32, endpoint: u32, until: u64) {
        self.sockets.let_back(service, endpoint, until);
    }

    fn fits(&self, place: usize) -> bool {
        let Some(state) = self.table.states.get(place) else { return false };
        let closed = || match &self.asked.breaking {
            Some(breaking) if !breaking.service => {
                state.health.lock().breaker.would_admit(monotonic_ns()).is_ok()
            }
            _ => true,
        };
        self.asked.limits.has_room_at(state.requests.load(Relaxed)) && closed()
    }

    fn requests(&self, place: usize) -> u64 {
        self.table.states.get(place).map_or(0, |state| state.requests.load(Relaxed).into())
    }

    fn cost(&self, place: usize) -> u64 {
        self.table.states.get(place).map_or(0, |state| {
            latency::cost(state.expected.load(Relaxed), state.requests.load(Relaxed), monotonic_ns())
        })
    }
}
