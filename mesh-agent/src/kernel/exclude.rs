//! What transport policies leave alone, and what they say in the entries of workloads.

use std::time::Instant;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use mesh_common::maps as names;
use mesh_common::transport::{EXCLUDED, ExcludeCidr, ExcludeKey};

use super::error::KernelError;
use super::maps::{Kernel, all, ignore_missing};

/// A prefix: its length in bits, and itself.
pub type Prefix = (u32, ExcludeCidr);

impl Kernel {
    /// What the maps leave alone, for one that takes over.
    pub fn exclusions(&self) -> Result<(Vec<ExcludeKey>, Vec<Prefix>), KernelError> {
        let keys = all(names::EXCLUDE, &self.exclude.lock())?;
        let prefixes: Result<Vec<Prefix>, MapError> = self
            .exclude_cidrs
            .lock()
            .keys()
            .map(|key| key.map(|key| (key.prefix_len(), key.data())))
            .collect();
        let prefixes = prefixes.map_err(|e| KernelError::new("map EXCLUDE_CIDRS, walk", e))?;
        Ok((keys.into_iter().map(|(key, _)| key).collect(), prefixes))
    }

    /// Leaves a port or an interface alone.
    pub fn exclude(&self, key: &ExcludeKey) -> Result<(), KernelError> {
        self.exclude.lock().insert(key, EXCLUDED, 0).map_err(|e| KernelError::new("map EXCLUDE, insert", e))
    }

    /// Ends that.
    pub fn include(&self, key: &ExcludeKey) -> Result<(), KernelError> {
        ignore_missing(self.exclude.lock().remove(key))
            .map_err(|e| KernelError::new("map EXCLUDE, remove", e))
    }

    /// Says whether a range of addresses is left alone.
    pub fn exclude_cidr(&self, (length, prefix): Prefix, value: u32) -> Result<(), KernelError> {
        let key = Key::new(length, prefix);
        let done = self.exclude_cidrs.lock().insert(&key, value, 0);
        done.map_err(|e| KernelError::new("map EXCLUDE_CIDRS, insert", e))
    }

    /// Ends that.
    pub fn include_cidr(&self, (length, prefix): Prefix) -> Result<(), KernelError> {
        let done = self.exclude_cidrs.lock().remove(&Key::new(length, prefix));
        ignore_missing(done).map_err(|e| KernelError::new("map EXCLUDE_CIDRS, remove", e))
    }

    /// Says in a workload's entry what policies ask for; `keep`: beside what an earlier agent has said. Nothing,
    /// where it has no entry.
    pub fn set_transport(
        &self,
        workload: u32,
        flags: u16,
        pending: u16,
        keep: bool,
    ) -> Result<(), KernelError> {
        let failed = |e| KernelError::new("map ENROLLED, insert", e);
        // Held throughout: an entry that is removed meanwhile must not come back.
        let mut enrolled = self.enrolled.lock();
        for (key, mut value) in enrolled.all().map_err(failed)? {
            let flags = if keep { flags | value.flags } else { flags };
            if value.workload == workload && (value.flags, value.budget_pending) != (flags, pending) {
                (value.flags, value.budget_pending) = (flags, pending);
                enrolled.put(&key, &value, Instant::now()).map_err(failed)?;
            }
        }
        Ok(())
    }
}
