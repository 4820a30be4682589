//! The endpoint of a request as the service's policy wants it chosen, past those that are ejected.
//!
//! The rules are the kernel's own (`mesh_common::pick`), and so are the counters: what is ejected or busy for
//! the one is so for the other.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_common::addr;
use mesh_common::pick::{self, Choice, Standing};
use mesh_common::record::Load;

use super::{RoundRobin, mix};
use crate::maglev::{self, Item};
use crate::resilience::sticky::Wanted;
use crate::snapshot::{Balancing, Endpoint, EndpointId, Service, ServiceId, Snapshot};

/// What is known of endpoints at this moment: the kernel's counters, and what is known of requests.
pub trait Loads {
    /// Of an endpoint.
    fn load(&self, endpoint: EndpointId) -> Load;
    /// Endpoints of a service that are ejected.
    fn ejected(&self, service: ServiceId) -> u64;
    /// The clock that ejections are measured by, nanoseconds.
    fn now(&self) -> u64;
    /// The ejection of an endpoint that lasted until `until` is over.
    fn let_back(&self, _service: ServiceId, _endpoint: EndpointId, _until: u64) {}
    /// May a request be sent to the endpoint at this place among those that serve?
    fn fits(&self, _place: usize) -> bool {
        true
    }
    /// Requests that it has in flight.
    fn requests(&self, _place: usize) -> u64 {
        0
    }
    /// What one more would cost there ([`crate::resilience::latency`]).
    fn cost(&self, _place: usize) -> u64 {
        0
    }
}

/// Chooses, for one worker.
#[derive(Debug, Default)]
pub struct Balancer {
    turns: RoundRobin,
    maglevs: HashMap<ServiceId, Maglev>,
}

/// A table, and what it was made of.
#[derive(Debug)]
struct Maglev {
    /// Held so that its address stays its identity.
    endpoints: Arc<[Endpoint]>,
    serving: usize,
    table: Vec<u16>,
}

impl Balancer {
    /// The endpoint for a request; `None`: the service has none that takes connections, or requests for now. `client` is the
    /// same for all requests of one client; `random` is any number; who is `wanted` is taken where that one may be.
    pub fn pick<'s, L: Loads + ?Sized>(
        &mut self,
        service: &'s Service,
        (client, wanted): (u32, Wanted),
        random: u64,
        loads: &L,
    ) -> Option<&'s Endpoint> {
        let serving = service.serving();
        let chooses = service.resilience.as_ref().is_some_and(|asked| asked.chooses());
        if serving.len() <= 1 {
            return serving.first().filter(|_| !chooses || loads.fits(0));
        }
        let ejects = service.traffic.ejection.is_some();
        if !ejects && !chooses {
            return serving.get(match wanted {
                Wanted::Any => self.draw(service, client, random, loads),
                Wanted::Key(key) => self.maglev(service, key),
                Wanted::Place(at) => at,
            });
        }
        let panic = ejects && pick::panic(loads.ejected(service.id), serving.len() as u32);
        let ejected = |slot: u32| {
            let endpoint = serving[slot as usize].id;
            match loads.load(endpoint).ejected_until {
                0 => false,
                until if until > loads.now() => !panic,
                until => {
                    // No program would: it does not meet who is sent to through the proxy.
                    loads.let_back(service.id, endpoint, until);
                    false
                }
            }
        };
        let standing = |slot: u32| {
            Some(match slot {
                slot if ejects && ejected(slot) => Standing::Ejected,
                slot if chooses && !loads.fits(slot as usize) => Standing::Full,
                _ => Standing::Fit,
            })
        };
        let draw = |attempt: u32| {
            let random = if attempt == 0 { random } else { mix(random ^ u64::from(attempt)) };
            Some(match wanted {
                Wanted::Key(key) => self.maglev(service, pick::again(key, attempt)),
                Wanted::Place(at) if attempt == 0 => at,
                _ => self.draw(service, pick::again(client, attempt), random, loads),
            } as u32)
        };
        match pick::choose(serving.len() as u32, draw, standing) {
            Choice::Slot(slot) => serving.get(slot as usize),
            Choice::Full | Choice::Changed => None,
        }
    }

    /// Forgets services that are gone, as [`RoundRobin::retain`].
    pub fn retain(&mut self, snapshot: &Snapshot) {
        self.turns.retain(snapshot);
        self.maglevs.retain(|id, _| snapshot.services.contains_key(id));
    }

    fn draw<L: Loads + ?Sized>(&mut self, service: &Service, client: u32, random: u64, loads: &L) -> usize {
        match service.traffic.balancing {
            Balancing::RoundRobin => self.turns.turn(service, random),
            Balancing::Random => weighted(service, random, None),
            Balancing::LeastConnections => {
                let (one, other) = two(service, random);
                let of = |at: usize| {
                    let endpoint = &service.serving()[at];
                    (loads.load(endpoint.id).live, endpoint.weight)
                };
                let ((live, weight), (other_live, other_weight)) = (of(one), of(other));
                if pick::less_loaded(other_live, other_weight, live, weight) { other } else { one }
            }
            Balancing::LeastRequests => {
                let (one, other) = two(service, random);
                let of = |at: usize| (loads.requests(at), service.serving()[at].weight);
                let ((held, weight), (other_held, other_weight)) = (of(one), of(other));
                if pick::less_loaded(other_held, other_weight, held, weight) { other } else { one }
            }
            Balancing::PeakEwma => {
                let (one, other) = two(service, random);
                if loads.cost(other) < loads.cost(one) { other } else { one }
            }
            Balancing::Maglev => self.maglev(service, client),
        }
    }

    fn maglev(&mut self, service: &Service, client: u32) -> usize {
        let made = self.maglevs.get(&service.id);
        let same = made.is_some_and(|made| {
            made.serving == service.serving && Arc::ptr_eq(&made.endpoints, &service.endpoints)
        });
        if !same {
            self.maglevs.insert(service.id, Maglev::new(service));
        }
        let table = self.maglevs.get(&service.id).map_or(&[][..], |made| &made.table);
        let place = (u64::from(client) * table.len() as u64) >> 32;
        table.get(place as usize).map_or(0, |&slot| slot.into())
    }
}

impl Maglev {
    fn new(service: &Service) -> Self {
        // More than the table can name are left out.
        let named = &service.serving()[..service.serving.min(pick::MAGLEV_SLOTS as usize)];
        let items: Vec<Item> = named
            .iter()
            .map(|endpoint| {
                let address = endpoint.address(false).map_or(addr::UNSPECIFIED, |at| addr::from_ip(at.ip()));
                maglev::item(&address, endpoint.port, endpoint.weight.into())
            })
            .collect();
        let table = maglev::table(&items, pick::maglev_size(items.len() as u32));
        Self { endpoints: Arc::clone(&service.endpoints), serving: service.serving, table }
    }
}

/// Two by weight, which are two where there are two: of a pair of endpoints a slow one would else be drawn twice, and
/// win, each fourth time.
fn two(service: &Service, random: u64) -> (usize, usize) {
    let one = weighted(service, random, None);
    (one, weighted(service, mix(random), Some(one)))
}

/// At random by weight, but not this one; it, where there is no other. Cost: the number of endpoints.
fn weighted(service: &Service, random: u64, but: Option<usize>) -> usize {
    let weight =
        |at: usize, endpoint: &Endpoint| if but == Some(at) { 0 } else { u64::from(endpoint.weight) };
    let all = || service.serving().iter().enumerate();
    let total: u64 = all().map(|(at, endpoint)| weight(at, endpoint)).sum();
    let mut point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    let found = all().position(|(at, endpoint)| {
        let weight = weight(at, endpoint);
        let found = point < weight;
        point = point.saturating_sub(weight);
        found
    });
    found.or(but).unwrap_or(0)
}
