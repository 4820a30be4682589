//! The entries of `WORKLOADS`, many with one call.
//!
//! Every workload of the mesh has some: one call for each of a hundred thousand is most of a second.
//! Invariant: the program that an entry needs is linked before the entry is there, and until it is not.

use std::os::fd::AsFd;

use mesh_common::maps as names;
use mesh_common::record::{Workload, WorkloadKey};
use mesh_core::plan::MapOp;

use super::error::{ApplyError, KernelError};
use super::maps::{Kernel, del, put};
use crate::sys::bpf;

/// Entries a call, at most.
const BATCH: usize = 1024;

/// The entries that the first operations put, if they do.
pub(super) fn batch(ops: &[MapOp]) -> Vec<(WorkloadKey, Workload)> {
    let puts = ops.iter().map_while(|op| match op {
        MapOp::PutWorkload { key, value } => Some((*key, *value)),
        _ => None,
    });
    puts.take(BATCH).collect()
}

impl Kernel {
    pub(super) fn put_workloads(&self, entries: &[(WorkloadKey, Workload)]) -> Result<(), ApplyError> {
        let mut inbound = self.inbound.lock();
        // Awake before the entry asks for it, at rest after none does.
        entries.iter().try_for_each(|(key, value)| inbound.wake(key, value)).map_err(|e| not_linked(&e))?;
        let mut map = self.workloads.lock();
        // One by one where the kernel cannot do it, and where it stopped half-way: then the error says why.
        if entries.len() < 2 || bpf::update_batch(self.workloads_fd.as_fd(), entries).is_err() {
            entries.iter().try_for_each(|(key, value)| put(names::WORKLOADS, &mut map, key, value))?;
        }
        let rested = entries.iter().try_for_each(|(key, value)| inbound.rest(key, Some(value)));
        rested.map_err(|e| not_linked(&e))
    }

    pub(super) fn del_workload(&self, key: &WorkloadKey) -> Result<(), ApplyError> {
        let mut inbound = self.inbound.lock();
        del(names::WORKLOADS, &mut self.workloads.lock(), key)?;
        inbound.rest(key, None).map_err(|e| not_linked(&e))
    }
}

fn not_linked(error: &KernelError) -> ApplyError {
    ApplyError { map: names::WORKLOADS.name, full: false, source: error.to_string().into() }
}
