//! Picks the endpoint of a service for one request.
//!
//! route ──`Service`──▶ **balance** ──`Endpoint`──▶ transport
//!
//! How is the service's policy's to say ([`chosen`]): by default weighted round robin, one state a worker. Endpoints with equal weights take plain turns. With unequal ones
//! an endpoint of weight w has w turns spread evenly over a cycle (earliest deadline first), so that shares are
//! exact over a cycle and smooth within it. The deadlines start at a random phase, so that many workers do not
//! turn to the same endpoint at once, and a service that changes often still gives light endpoints their share.
//!
//! Invariant: never returns an endpoint outside the `serving()` of the service it was given.
//! Cost: one look-up and one comparison; with unequal weights a heap of the endpoints, O(log n). No allocation
//! but where a service's endpoints changed.
//! Not here: health and draining (compile sorts those out of `serving()`), limits (the kernel refuses the
//! connection).

mod chosen;

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use mesh_common::pick::mix;

use crate::snapshot::{Endpoint, EndpointId, Service, ServiceId, Snapshot};

pub use chosen::{Balancer, Loads};

/// Round robin over the services of one worker.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turns: HashMap<ServiceId, Turns>,
}

impl RoundRobin {
    /// The endpoint whose turn it is; `None`: the service has none that takes connections.
    /// `random` sets the phase where a cycle is begun; it is not used otherwise.
    pub fn pick<'s>(&mut self, service: &'s Service, random: u64) -> Option<&'s Endpoint> {
        service.serving().get(self.turn(service, random))
    }

    /// The same, by its place among those that serve; 0 where there is none.
    fn turn(&mut self, service: &Service, random: u64) -> usize {
        if service.serving <= 1 {
            return 0;
        }
        let turns = self.turns.entry(service.id).or_insert_with(|| Turns::new(service, random));
        if !turns.follows(service) {
            *turns = Turns::new(service, random);
        }
        turns.next()
    }

    /// Forgets services that are gone: call it when a worker meets a new epoch, else their endpoints stay in
    /// memory.
    pub fn retain(&mut self, snapshot: &Snapshot) {
        self.turns.retain(|id, _| snapshot.services.contains_key(id));
    }
}

/// Another endpoint of the service after these have failed, at random by weight, or a spare one; `None`: all were
/// tried. Takes nobody's turn. Cost: the number of endpoints.
pub fn pick_other<'s>(service: &'s Service, tried: &[EndpointId], random: u64) -> Option<&'s Endpoint> {
    let untried = || service.serving().iter().filter(|endpoint| !tried.contains(&endpoint.id));
    let total: u64 = untried().map(|endpoint| u64::from(endpoint.weight)).sum();
    if total == 0 {
        let spares = untried().count() as u128;
        return untried().nth(((u128::from(random) * spares) >> 64) as usize);
    }
    let mut point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    untried().find(|endpoint| {
        let weight = u64::from(endpoint.weight);
        let found = point < weight;
        point = point.saturating_sub(weight);
        found
    })
}

/// Whose turn it is among one set of endpoints.
#[derive(Debug)]
struct Turns {
    /// Held so that its address stays its identity.
    endpoints: Arc<[Endpoint]>,
    serving: usize,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Equal { next: usize },
    Weighted(BinaryHeap<Reverse<Turn>>),
}

impl Turns {
    fn new(service: &Service, random: u64) -> Self {
        let serving = service.serving();
        let equal = serving.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let order = if equal {
            Order::Equal { next: (random % serving.len().max(1) as u64) as usize }
        } else {
            let weighted = serving.iter().enumerate().filter(|(_, endpoint)| endpoint.weight > 0);
            Order::Weighted(weighted.map(|(index, e)| Reverse(Turn::new(index, e.weight, random))).collect())
        };
        Self { endpoints: service.endpoints.clone(), serving: service.serving, order }
    }

    /// Still the same endpoints and weights. A service whose other fields changed keeps its turns.
    fn follows(&mut self, service: &Service) -> bool {
        if self.serving != service.serving {
            return false;
        }
        if Arc::ptr_eq(&self.endpoints, &service.endpoints) {
            return true;
        }
        let key = |e: &Endpoint| (e.id, e.weight);
        let same = self.endpoints[..self.serving].iter().map(key).eq(service.serving().iter().map(key));
        if same {
            self.endpoints = service.endpoints.clone();
        }
        same
    }

    fn next(&mut self) -> usize {
        match &mut self.order {
            Order::Equal { next } => {
                let index = *next;
                *next = if index + 1 >= self.serving { 0 } else { index + 1 };
                index
            }
            Order::Weighted(heap) => {
                // Once all have had their turns, the first deadline is in the next cycle.
                if heap.peek().is_some_and(|Reverse(turn)| turn.taken >= turn.weight) {
                    let mut turns = std::mem::take(heap).into_vec();
                    for Reverse(turn) in &mut turns {
                        turn.taken = 0;
                    }
                    *heap = turns.into();
                }
                let Some(mut first) = heap.peek_mut() else { return 0 };
                let index = first.0.index;
                first.0.taken += 1;
                index
            }
        }
    }
}

/// One endpoint's next turn. Its deadline is `(taken + phase / 2^32) / weight`: in each cycle (0..1) it has
/// exactly `weight` of them.
#[derive(Debug)]
struct Turn {
    index: usize,
    weight: u32,
    taken: u32,
    phase: u32,
}

impl Turn {
    fn new(index: usize, weight: u32, random: u64) -> Self {
        Self { index, weight, taken: 0, phase: (mix(random ^ index as u64) >> 32) as u32 }
    }

    fn deadline(&self) -> u64 {
        u64::from(self.taken) << 32 | u64::from(self.phase)
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let (mine, theirs) = (u128::from(self.deadline()), u128::from(other.deadline()));
        let by_deadline = (mine * u128::from(other.weight)).cmp(&(theirs * u128::from(self.weight)));
        by_deadline.then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

#[cfg(test)]
pub(crate) mod tests;
