//! Who is enrolled on this node, and the slots that they hold. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use mesh_common::maps;
use mesh_common::record::{Enrolled, EnrolledKey, listener};
use tokio::task::AbortHandle;

use super::cgroup;
use super::persist::Record;
use crate::config::Numbers;
use crate::identity::renew::Accounts;
use crate::session::Name;

/// Workloads that have room.
const SLOTS: u32 = maps::LISTENERS.capacity / listener::STRIDE;

/// An enrolled workload.
pub struct Live {
    /// What is remembered of it.
    pub record: Record,
    /// Its key in the kernel.
    pub key: EnrolledKey,
    /// Its numbers.
    pub numbers: Numbers,
    /// Its first slot in `LISTENERS`.
    pub slot: u32,
    /// It was enrolled by this agent, not by one before.
    pub fresh: bool,
    /// A process has been seen in its cgroup.
    pub lived: Arc<AtomicBool>,
    /// Waits for its end.
    pub watcher: Option<AbortHandle>,
}

impl Live {
    /// Has it ended, although nobody has noticed yet?
    pub fn has_ended(&self) -> bool {
        match cgroup::populated(&self.record.cgroup) {
            Ok(populated) => !populated && self.lived.load(Relaxed),
            Err(_) => true,
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
    }
}

/// All of them.
#[derive(Default)]
pub struct Table {
    live: BTreeMap<Name, Live>,
    /// What an earlier agent left in the kernel and nobody has claimed yet.
    adopted: Vec<(EnrolledKey, Enrolled)>,
}

impl Table {
    /// Nobody; `adopted` is what the kernel has enrolled.
    pub fn new(adopted: Vec<(EnrolledKey, Enrolled)>) -> Self {
        Self { live: BTreeMap::new(), adopted }
    }

    /// One.
    pub fn get(&self, name: &Name) -> Option<&Live> {
        self.live.get(name)
    }

    /// One, to change.
    pub fn get_mut(&mut self, name: &Name) -> Option<&mut Live> {
        self.live.get_mut(name)
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Live> {
        self.live.values()
    }

    /// The workload in this namespace.
    pub fn by_key(&self, key: EnrolledKey) -> Option<&Live> {
        self.live.values().find(|live| live.key == key)
    }

    /// A first slot for the workload of this key: the one that its entry in the kernel names, else a free one.
    /// Numbers of workloads do not tell: an agent that died before it had written them down gave others.
    pub fn slot_for(&self, key: EnrolledKey) -> Option<u32> {
        let adopted = self.adopted.iter().find(|(held, _)| *held == key);
        if let Some((_, value)) = adopted {
            return Some(value.listener_slot);
        }
        let taken = |slot: u32| {
            self.live.values().any(|live| live.slot == slot)
                || self.adopted.iter().any(|(_, value)| value.listener_slot == slot)
        };
        (0..SLOTS).map(|n| n * listener::STRIDE).find(|slot| !taken(*slot))
    }

    /// Enrols.
    pub fn insert(&mut self, live: Live) {
        // Its own entry was overwritten; one under another key is left over, see [`Table::orphans`].
        self.adopted.retain(|(key, _)| *key != live.key);
        self.live.insert((live.record.namespace.clone(), live.record.name.clone()), live);
    }

    /// Withdraws.
    pub fn remove(&mut self, name: &Name) -> Option<Live> {
        self.live.remove(name)
    }

    /// What an earlier agent left and nobody has claimed: to be removed.
    pub fn orphans(&mut self) -> Vec<(EnrolledKey, Enrolled)> {
        std::mem::take(&mut self.adopted)
    }

    /// Namespaces and service accounts of those that the control plane has taken.
    pub fn accounts(&self) -> Accounts {
        let taken = self.live.values().map(|live| &live.record).filter(|record| record.accepted);
        taken.map(|record| (record.namespace.clone(), record.service_account.clone())).collect()
    }

    /// What is remembered of all.
    pub fn records(&self) -> Vec<Record> {
        self.live.values().map(|live| live.record.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_common::record::KIND_NETNS;

    #[test]
    fn a_workload_keeps_the_slot_of_its_entry_and_nobody_elses_is_given_away() {
        let key = |id| EnrolledKey { kind: KIND_NETNS, id };
        let entry = |workload, listener_slot| Enrolled { workload, listener_slot, ..Enrolled::shared(0) };
        let mut table = Table::new(vec![(key(1), entry(7, 4)), (key(2), entry(8, 0))]);
        assert_eq!(table.slot_for(key(1)), Some(4));
        assert_eq!(table.slot_for(key(2)), Some(0));
        assert_eq!(table.slot_for(key(3)), Some(8));
        assert_eq!(table.orphans().len(), 2);
        assert_eq!(table.slot_for(key(3)), Some(0));
    }
}
