//! What is known of services whose policies follow requests, as series.

use mesh_core::snapshot::Snapshot;
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use super::names;
use crate::path::resilience::state::Seen;

/// The families.
pub fn families(seen: &[(u32, Seen)], snapshot: &Snapshot) -> [MetricFamily; 4] {
    let [mut in_flight, mut waiting, mut open, mut opened] =
        [&m::IN_FLIGHT, &m::WAITING, &m::BREAKERS_OPEN, &m::BREAKER_OPENED].map(Family::new);
    for (id, seen) in seen {
        let Some(service) = snapshot.services.get(id) else { continue };
        let Some(asked) = service.resilience.as_ref().filter(|asked| asked.follows()) else { continue };
        let name = names::service_name(service);
        in_flight.add(&[&name], seen.active.into());
        if asked.limits.pending > 0 {
            waiting.add(&[&name], seen.waiting.into());
        }
        if asked.breaking.is_some() {
            open.add(&[&name], seen.open.into());
            opened.add(&[&name], seen.opened as f64);
        }
    }
    [in_flight.finish(), waiting.finish(), open.finish(), opened.finish()]
}
