//! What policies say of services, and how many of their endpoints are left out.

use std::sync::atomic::{AtomicU64, Ordering};

use mesh_common::maps as names;
use mesh_common::pick::ejection;
use mesh_common::record::{Load, Rules};

use super::error::ApplyError;
use super::maps::Kernel;
use crate::sys::{monotonic_ns, ticks};

/// Until a SYN is sent again, where a service has a connect timeout.
const FIRST_TIMEOUT_MS: u64 = 200;

/// Number of the word at an offset.
const fn word(at: usize) -> usize {
    at / size_of::<u64>()
}

impl Kernel {
    /// Replaces the rules of a service.
    pub(super) fn put_rules(&self, service: u32, mut rules: Rules) -> Result<(), ApplyError> {
        if rules.connect_timeout_ms > 0 {
            rules.first_timeout_ticks = ticks(FIRST_TIMEOUT_MS);
        }
        if self.rules.set(service, rules) {
            return Ok(());
        }
        let source = format!("service {service} is beyond {}", self.rules.len());
        Err(ApplyError { map: names::RULES.name, full: true, source: source.into() })
    }

    /// Who of a service's endpoints is ejected now. Whose time is over is let back here: a spare is not drawn, so no
    /// program would meet it.
    pub fn ejected(&self, service: u32, endpoints: &[u32]) -> Vec<u32> {
        if self.service_load_of(service).ejected == 0 {
            return Vec::new();
        }
        let now = monotonic_ns();
        let out = |endpoint: &u32| match self.load_of(*endpoint).ejected_until {
            0 => false,
            until if until > now => true,
            until => {
                self.let_back(service, *endpoint, until);
                false
            }
        };
        endpoints.iter().copied().filter(out).collect()
    }

    /// The ejection that lasted until `until` is over; of several who say so one is heard.
    pub fn let_back(&self, service: u32, endpoint: u32, until: u64) {
        let ours =
            self.load.word(endpoint, word(std::mem::offset_of!(Load, ejected_until))).is_some_and(|held| {
                held.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            });
        if ours
            && let Some(ejected) = self.service_load.word(service, word(std::mem::offset_of!(Load, ejected)))
        {
            ejected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Leaves an endpoint out for another reason than that it does not answer connections, by the same rules. `before`:
    /// ejections that make this one longer. Until when; `None`: it is left out already, or may not be.
    pub fn eject(&self, service: u32, endpoint: u32, before: u32) -> Option<u64> {
        let rules = self.rules.get(service)?;
        let (load, total) = (self.load_of(endpoint), self.service_load_of(service));
        let before = load.ejections_in_a_row.max(before.into());
        let held = load.ejected_until;
        let until = ejection(&rules, rules.failures.into(), before, held, total.ejected, monotonic_ns())?;
        let at = word(std::mem::offset_of!(Load, ejected_until));
        // Of several that eject at once, programs among them, one does.
        let word_of = self.load.word(endpoint, at)?;
        word_of.compare_exchange(held, until, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        let more =
            |counter: Option<&AtomicU64>| counter.map(|counter| counter.fetch_add(1, Ordering::Relaxed));
        if held == 0 {
            more(self.service_load.word(service, word(std::mem::offset_of!(Load, ejected))));
        }
        let ejections = word(std::mem::offset_of!(Load, ejections));
        more(self.load.word(endpoint, ejections));
        more(self.service_load.word(service, ejections));
        Some(until)
    }

    /// Says how many endpoints of a service are ejected, as counted, where the programs have counted `seen`.
    /// `false`: their count is another by now.
    pub fn correct_ejected(&self, service: u32, seen: u64, counted: u64) -> bool {
        let at = std::mem::offset_of!(Load, ejected) / size_of::<u64>();
        self.service_load.word(service, at).is_some_and(|word| {
            word.compare_exchange(seen, counted, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }
}
