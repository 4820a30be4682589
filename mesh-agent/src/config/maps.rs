//! The BPF maps, as far as configuration needs them: a narrow trait, so that the task can be tested without
//! a kernel.

use mesh_common::maps as names;
use mesh_core::ids::IdKind;
use mesh_core::plan::{Adopted, Capacities, MapOp};

use crate::kernel::{ApplyError, Kernel, KernelError};

/// The maps that a plan writes.
pub trait Maps: Send + Sync + 'static {
    /// Executes a plan in its order.
    fn apply(&self, ops: &[MapOp]) -> Result<(), ApplyError>;
    /// What the maps hold.
    fn held(&self) -> Result<Adopted, KernelError>;
    /// Entries that they have room for.
    fn capacities(&self) -> Capacities;
    /// Numbers that the counters by service have room for, and those by endpoint.
    fn counters(&self) -> (u32, u32);
    /// The epoch that they hold.
    fn epoch(&self) -> u64;
    /// Connections counted on a number; an endpoint's counters are zeroed where there are none, because the
    /// number is about to be given out again.
    fn settle(&self, kind: IdKind, id: u32) -> u64;
    /// Who of a service's endpoints is ejected now. Whose time is over is let back.
    fn ejected(&self, service: u32, endpoints: &[u32]) -> Vec<u32>;
    /// Numbers (of services, of workloads) that flows have been counted under: they keep their names.
    fn counted(&self) -> Vec<(IdKind, u32)>;
}

impl Maps for Kernel {
    fn apply(&self, ops: &[MapOp]) -> Result<(), ApplyError> {
        Self::apply(self, ops)
    }

    fn held(&self) -> Result<Adopted, KernelError> {
        Self::held(self)
    }

    fn capacities(&self) -> Capacities {
        Capacities {
            services: self.capacity(names::SERVICES),
            workloads: self.capacity(names::WORKLOADS),
            endpoints: self.capacity(names::ENDPOINTS),
            policy: self.capacity(names::POLICY),
            policy_cidrs: self.capacity(names::POLICY_CIDRS),
        }
    }

    fn counters(&self) -> (u32, u32) {
        (self.capacity(names::SERVICE_LOAD), self.capacity(names::LOAD))
    }

    fn epoch(&self) -> u64 {
        Self::epoch(self).unwrap_or(0)
    }

    fn settle(&self, kind: IdKind, id: u32) -> u64 {
        match kind {
            IdKind::Service => self.service_load_of(id).live,
            IdKind::Endpoint => {
                let live = self.load_of(id).live;
                if live == 0 {
                    self.reset_load(id);
                }
                live
            }
            IdKind::Workload | IdKind::Identity | IdKind::Namespace => 0,
        }
    }

    fn ejected(&self, service: u32, endpoints: &[u32]) -> Vec<u32> {
        Self::ejected(self, service, endpoints)
    }

    fn counted(&self) -> Vec<(IdKind, u32)> {
        use mesh_common::record::{DEST_SERVICE, DEST_WORKLOAD};
        let totals = self.totals().unwrap_or_else(|error| {
            tracing::warn!(%error, "flow totals cannot be read");
            Vec::new()
        });
        let numbers = |(key, _): &(mesh_common::record::TotalsKey, _)| {
            let destination = match key.kind {
                DEST_SERVICE => Some((IdKind::Service, key.dest)),
                DEST_WORKLOAD => Some((IdKind::Workload, key.dest)),
                _ => None,
            };
            std::iter::once((IdKind::Workload, key.source)).chain(destination)
        };
        totals.iter().flat_map(numbers).collect()
    }
}
