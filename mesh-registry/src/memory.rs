//! A store in memory, for tests: simple enough to be right by reading, and what the conformance suite was
//! written against.
//!
//! Not here: durability.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::{Change, Changes, Entry, Hook, Op, Range, Store, StoreError, StoredLease, Txn};

/// A store that is gone when dropped.
pub struct MemoryStore {
    id: String,
    state: Mutex<State>,
    hooks: Mutex<Vec<Hook>>,
}

#[derive(Clone, Default)]
struct State {
    revision: u64,
    compacted: u64,
    entries: BTreeMap<String, Entry>,
    leases: BTreeMap<String, Duration>,
    history: Vec<Change>,
}

impl MemoryStore {
    /// An empty one of this id.
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), state: Mutex::default(), hooks: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of a test's thread in between leaves whole states only: they are replaced at once.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, key: &str, write: Option<(Vec<u8>, Option<String>)>) {
        let revision = self.revision + 1;
        let entry = match write {
            Some((value, lease)) => {
                let created = self.entries.get(key).map_or(revision, |entry| entry.created);
                let entry = Entry { key: key.to_owned(), value, created, modified: revision, lease };
                self.entries.insert(key.to_owned(), entry.clone());
                Some(entry)
            }
            None if self.entries.remove(key).is_none() => return,
            None => None,
        };
        self.history.push(Change { revision, key: key.to_owned(), entry });
    }

    fn keys_of(&self, lease: &str) -> Vec<String> {
        let with = self.entries.values().filter(|entry| entry.lease.as_deref() == Some(lease));
        with.map(|entry| entry.key.clone()).collect()
    }

    fn op(&mut self, op: Op) -> Result<(), StoreError> {
        match op {
            Op::Put { key, value, lease } => {
                if let Some(lease) = &lease
                    && !self.leases.contains_key(lease)
                {
                    return Err(StoreError::NoLease { lease: lease.clone() });
                }
                self.write(&key, Some((value, lease)));
            }
            Op::Delete { key } => self.write(&key, None),
            Op::Grant { lease, ttl } => {
                self.leases.insert(lease, ttl);
            }
            Op::Revoke { lease } => {
                for key in self.keys_of(&lease) {
                    self.write(&key, None);
                }
                self.leases.remove(&lease);
            }
        }
        Ok(())
    }

    fn reachable(&self, revision: u64) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { asked: revision, oldest: self.compacted });
        }
        if revision > self.revision {
            return Err(StoreError::Future { asked: revision, newest: self.revision });
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn id(&self) -> &str {
        &self.id
    }

    fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.state().revision)
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.state().entries.get(key).cloned())
    }

    fn range(&self, prefix: &str, at: Option<u64>) -> Result<Range, StoreError> {
        let state = self.state();
        let revision = at.unwrap_or(state.revision);
        state.reachable(revision)?;
        // Replayed from the beginning: compaction only moves the bound here.
        let mut entries = BTreeMap::new();
        for change in state.history.iter().filter(|change| change.revision <= revision) {
            match &change.entry {
                Some(entry) => entries.insert(&change.key, entry),
                None => entries.remove(&change.key),
            };
        }
        let of_prefix = entries.into_iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(Range { revision, entries: of_prefix.map(|(_, entry)| entry.clone()).collect() })
    }

    fn transact(&self, txn: Txn) -> Result<u64, StoreError> {
        txn.check()?;
        let mut state = self.state();
        for compare in &txn.compare {
            let found = state.entries.get(&compare.key).map_or(0, |entry| entry.modified);
            if found != compare.modified {
                let (key, expected) = (compare.key.clone(), compare.modified);
                return Err(StoreError::Conflict { key, expected, found });
            }
        }
        let mut next = state.clone();
        txn.ops.into_iter().try_for_each(|op| next.op(op))?;
        if next.history.len() == state.history.len() {
            *state = next;
            return Ok(state.revision);
        }
        next.revision += 1;
        *state = next;
        let revision = state.revision;
        drop(state);
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|hook| hook(revision));
        Ok(revision)
    }

    fn changes(&self, prefix: &str, after: u64, max: usize) -> Result<Changes, StoreError> {
        let state = self.state();
        state.reachable(after)?;
        let mut out = Changes { upto: state.revision, changes: Vec::new() };
        for change in state.history.iter().filter(|change| change.revision > after) {
            let begins = out.changes.last().is_none_or(|last: &Change| last.revision < change.revision);
            if begins && out.changes.len() >= max.max(1) {
                out.upto = change.revision - 1;
                break;
            }
            if change.key.starts_with(prefix) {
                out.changes.push(change.clone());
            }
        }
        Ok(out)
    }

    fn on_commit(&self, hook: Hook) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(hook);
    }

    fn leases(&self) -> Result<Vec<StoredLease>, StoreError> {
        let state = self.state();
        let lease = |(lease, ttl): (&String, &Duration)| StoredLease {
            lease: lease.clone(),
            ttl: *ttl,
            keys: state.keys_of(lease),
        };
        Ok(state.leases.iter().map(lease).collect())
    }

    fn compact(&self, upto: u64) -> Result<(), StoreError> {
        let mut state = self.state();
        state.reachable(upto.max(state.compacted))?;
        state.compacted = state.compacted.max(upto);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_conforms() {
        crate::conformance::run(&|| Box::new(MemoryStore::new("memory")));
    }
}
