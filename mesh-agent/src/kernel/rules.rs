//! What policies say of services, and how many of their endpoints are left out.

use std::sync::atomic::Ordering;

use mesh_common::maps as names;
use mesh_common::record::{Load, Rules};

use super::error::ApplyError;
use super::maps::Kernel;
use crate::sys::ticks;

/// Until a SYN is sent again, where a service has a connect timeout.
const FIRST_TIMEOUT_MS: u64 = 200;

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

    /// Says how many endpoints of a service are ejected, as counted, where the programs have counted `seen`.
    /// `false`: their count is another by now.
    pub fn correct_ejected(&self, service: u32, seen: u64, counted: u64) -> bool {
        let at = std::mem::offset_of!(Load, ejected) / size_of::<u64>();
        self.service_load.word(service, at).is_some_and(|word| {
            word.compare_exchange(seen, counted, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }
}
