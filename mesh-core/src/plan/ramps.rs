//! Slow start: an endpoint that has just come gets a part of its weight, and more by and by.
//!
//! The weight rises in [`STEPS`] steps, each a table of its own, so that a service under way costs a table a
//! tenth of its window. Endpoints that a service begins with, or that an agent finds when it starts, have
//! their weight at once; one that comes back from being ill is new.

use std::collections::HashMap;
use std::time::Duration;

use crate::snapshot::{EndpointId, Service, ServiceId};

/// Parts that a weight is cut into.
pub(super) const STEPS: u64 = 10;

/// Endpoints of services with slow start.
#[derive(Debug, Default)]
pub(super) struct Ramps(HashMap<ServiceId, Ramp>);

#[derive(Debug, Default)]
struct Ramp {
    window: Duration,
    /// Since when each serves; `None`: for long enough.
    since: HashMap<EndpointId, Option<Duration>>,
}

impl Ramps {
    /// What the service is now; `None`: gone.
    pub fn set(&mut self, id: ServiceId, service: Option<&Service>, now: Duration) {
        let Some((service, window)) = service.and_then(|s| Some((s, s.traffic.slow_start?))) else {
            self.0.remove(&id);
            return;
        };
        let known = self.0.get(&id);
        let begins = known.is_none_or(|ramp| ramp.since.is_empty());
        let since = |endpoint: EndpointId| match known.and_then(|ramp| ramp.since.get(&endpoint)) {
            _ if begins => None,
            Some(since) => since.filter(|&since| now < since + window),
            None => Some(now),
        };
        let since = service.serving().iter().map(|e| (e.id, since(e.id))).collect();
        self.0.insert(id, Ramp { window, since });
    }

    /// How many [`STEPS`] of its weight an endpoint has. `None`: the service has no slow start.
    pub fn steps(&self, service: ServiceId, endpoint: EndpointId, now: Duration) -> Option<u64> {
        let ramp = self.0.get(&service)?;
        let Some(since) = ramp.since.get(&endpoint).copied().flatten() else { return Some(STEPS) };
        let age = now.saturating_sub(since).as_nanos();
        let part = age * u128::from(STEPS) / ramp.window.as_nanos().max(1);
        Some(u64::try_from(part).unwrap_or(STEPS).clamp(1, STEPS))
    }

    /// Services whose tables change by now, or at any time.
    pub fn rising(&self) -> Vec<ServiceId> {
        let rising = self.0.iter().filter(|(_, ramp)| ramp.since.values().any(Option::is_some));
        rising.map(|(&id, _)| id).collect()
    }

    /// When to look again; `None`: all have their weight.
    pub fn next(&self, now: Duration) -> Option<Duration> {
        let rising = self.0.values().filter(|ramp| ramp.since.values().any(Option::is_some));
        rising.map(|ramp| now + ramp.window / STEPS as u32).min()
    }
}
