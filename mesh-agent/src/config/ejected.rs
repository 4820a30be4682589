//! Looks who is ejected, so that what their level can't carry any more goes to the next, and comes back.
//!
//! `LOAD` ──who is out──▶ **here** ──▶ compiler ──▶ { snapshot, tables }
//!
//! Only for services whose load is split; a node without such never looks. Between two looks the programs and the
//! proxy pass over who is ejected by themselves.

use std::time::{Duration, Instant};

use mesh_core::compile::Ejected;

use super::owner::Owner;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

impl Owner {
    /// Looks now; `true`: something was put in force.
    pub(super) fn look(&mut self) -> bool {
        self.look_later();
        let snapshot = self.compiler.snapshot();
        let mut all = Ejected::new();
        for id in snapshot.spreads.keys() {
            let Some(service) = snapshot.services.get(id).filter(|s| s.traffic.ejection.is_some()) else {
                continue;
            };
            let endpoints: Vec<u32> = service.endpoints.iter().map(|e| e.id).collect();
            let out = self.maps.ejected(*id, &endpoints);
            if !out.is_empty() {
                all.insert(*id, out.into_iter().collect());
            }
        }
        let began = Instant::now();
        let Some(outcome) = self.compiler.eject(all) else { return false };
        self.publish(outcome, began);
        let epoch = self.compiler.snapshot().epoch;
        tracing::debug!(epoch, took = ?began.elapsed(), "load split anew: endpoints were ejected or are back");
        true
    }

    /// Sees to the next look, where one is needed.
    pub(super) fn look_later(&mut self) {
        let needed = self.begun && !self.compiler.snapshot().spreads.is_empty();
        if !needed {
            self.timers.look = None;
        } else if self.timers.look.is_none() {
            self.timers.look = Some(Instant::now() + LOOK);
        }
    }
}
