//! Resources → snapshot.
mod problems;
use crate::snapshot::{ServiceId, Snapshot, WorkloadId};
pub use problems::Condition;
use std::collections::BTreeSet;

/// What differs from the snapshot before, for the planner: everything whose map entries may have to
/// change, parents of changed backends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services, removed ones included.
    pub services: BTreeSet<ServiceId>,
    /// Workloads, removed ones included.
    pub workloads: BTreeSet<WorkloadId>,
}

impl Dirty {
    /// Everything that a snapshot holds.
    pub fn all(snapshot: &Snapshot) -> Self {
        Self {
            services: snapshot.services.keys().copied().collect(),
            workloads: snapshot.workloads.keys().copied().collect(),
        }
    }

    /// Adds what another holds.
    pub fn merge(&mut self, other: &Self) {
        self.services.extend(&other.services);
        self.workloads.extend(&other.workloads);
    }

    /// Nothing?
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.workloads.is_empty()
    }
}
