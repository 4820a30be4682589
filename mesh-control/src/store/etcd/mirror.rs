//! What the store holds, in this process' memory: all keys, and the last of their changes. Pure.
//!
//! range, watch ([`super::follow`]) ──▶ **mirror** ──▶ reads of everybody
//!
//! Invariants: it is what etcd held at one revision, never a mixture; revisions rise; what is forgotten of the past is
//! asked for in vain, never answered wrongly.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mesh_registry::store::{Change, Changes, Entry, Range, StoreError, StoredLease};

use super::layout::{Layout, Stands, read_ttl, read_value};
use super::pb::{self, event::EventType};

/// Changes that are remembered, and about how many bytes of them.
const LOG_MAX: usize = 10_000;
const LOG_BYTES: usize = 64 << 20;
/// Writers whose marks are remembered.
const MARKS_MAX: usize = 4096;

/// A key's change.
struct Past {
    revision: u64,
    key: String,
    before: Option<Arc<Entry>>,
    after: Option<Arc<Entry>>,
}

impl Past {
    fn bytes(&self) -> usize {
        let of = |entry: &Option<Arc<Entry>>| entry.as_ref().map_or(0, |entry| entry.value.len());
        128 + self.key.len() + of(&self.before) + of(&self.after)
    }
}

/// A lease's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseRecord {
    pub ttl: Duration,
    pub modified: u64,
}

/// All of it.
#[derive(Default)]
pub(super) struct Mirror {
    pub id: String,
    revision: u64,
    /// Changes after this are known.
    floor: u64,
    entries: BTreeMap<String, Arc<Entry>>,
    leases: BTreeMap<String, LeaseRecord>,
    keys_of: BTreeMap<String, BTreeSet<String>>,
    log: VecDeque<Past>,
    log_bytes: usize,
    /// Who wrote which revision, the last ones.
    marks: VecDeque<(u64, Vec<u8>)>,
    /// What holds while replicas live, by name.
    pub here: BTreeMap<String, Vec<u8>>,
    /// Keys whose value this version cannot read, for the log.
    pub unread: Vec<String>,
}

impl Mirror {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    /// Revision of a key's last write; 0: there is none.
    pub(super) fn modified(&self, key: &str) -> u64 {
        self.entries.get(key).map_or(0, |entry| entry.modified)
    }

    pub(super) fn lease(&self, name: &str) -> Option<LeaseRecord> {
        self.leases.get(name).copied()
    }

    pub(super) fn keys_of(&self, lease: &str) -> impl Iterator<Item = &String> {
        self.keys_of.get(lease).into_iter().flatten()
    }

    /// The revision that a writer's mark stands at, if it is not long ago.
    pub(super) fn marked(&self, mark: &[u8]) -> Option<u64> {
        self.marks.iter().rev().find(|(_, written)| written == mark).map(|(revision, _)| *revision)
    }

    /// Everything anew, as a range says it. What was known of the past is forgotten.
    pub(super) fn load(&mut self, layout: &Layout, kvs: &[pb::KeyValue]) {
        *self = Self { id: std::mem::take(&mut self.id), revision: self.revision, ..Self::default() };
        for kv in kvs {
            self.put(layout, kv, false);
        }
        self.floor = self.revision;
    }

    /// What a watch says, in order.
    pub(super) fn apply(&mut self, layout: &Layout, events: &[pb::Event]) {
        for event in events {
            let Some(kv) = &event.kv else { continue };
            if event.r#type() == EventType::Delete {
                self.delete(layout, kv);
            } else {
                self.put(layout, kv, true);
            }
        }
        self.forget();
    }

    fn put(&mut self, layout: &Layout, kv: &pb::KeyValue, told: bool) {
        let revision = kv.mod_revision as u64;
        match layout.read(&kv.key) {
            Some(Stands::Id) => self.id = String::from_utf8_lossy(&kv.value).into_owned(),
            Some(Stands::Head) => self.head(revision, kv.value.clone()),
            Some(Stands::Here(name)) => drop(self.here.insert(name.to_owned(), kv.value.clone())),
            Some(Stands::Lease(name)) => match read_ttl(&kv.value) {
                Some(ttl) => {
                    self.leases.insert(name.to_owned(), LeaseRecord { ttl, modified: revision });
                }
                None => self.unread.push(name.to_owned()),
            },
            Some(Stands::Key(key)) => {
                let Some((value, lease)) = read_value(&kv.value) else {
                    self.unread.push(key.to_owned());
                    return;
                };
                let (key, created) = (key.to_owned(), kv.create_revision as u64);
                let entry = Entry { key: key.clone(), value, created, modified: revision, lease };
                self.change(revision, key, Some(Arc::new(entry)), told);
            }
            None => {}
        }
    }

    fn delete(&mut self, layout: &Layout, kv: &pb::KeyValue) {
        match layout.read(&kv.key) {
            Some(Stands::Here(name)) => drop(self.here.remove(name)),
            Some(Stands::Lease(name)) => drop(self.leases.remove(name)),
            Some(Stands::Key(key)) => self.change(kv.mod_revision as u64, key.to_owned(), None, true),
            Some(Stands::Id | Stands::Head) | None => {}
        }
    }

    fn head(&mut self, revision: u64, mark: Vec<u8>) {
        self.revision = revision.max(self.revision);
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((revision, mark));
    }

    fn change(&mut self, revision: u64, key: String, after: Option<Arc<Entry>>, told: bool) {
        let before = match &after {
            Some(entry) => self.entries.insert(key.clone(), entry.clone()),
            None => self.entries.remove(&key),
        };
        if let Some(lease) = before.as_ref().and_then(|entry| entry.lease.as_ref())
            && let Some(keys) = self.keys_of.get_mut(lease)
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.keys_of.remove(lease);
            }
        }
        if let Some(lease) = after.as_ref().and_then(|entry| entry.lease.clone()) {
            self.keys_of.entry(lease).or_default().insert(key.clone());
        }
        self.revision = revision.max(self.revision);
        if told && (before.is_some() || after.is_some()) {
            let past = Past { revision, key, before, after };
            self.log_bytes += past.bytes();
            self.log.push_back(past);
        }
    }

    /// Forgets the oldest changes beyond the bounds, whole revisions of them.
    fn forget(&mut self) {
        while self.log.len() > LOG_MAX || self.log_bytes > LOG_BYTES {
            let Some(revision) = self.log.front().map(|past| past.revision) else { return };
            self.forget_upto(revision);
        }
    }

    fn forget_upto(&mut self, upto: u64) {
        while let Some(past) = self.log.front().filter(|past| past.revision <= upto) {
            self.log_bytes = self.log_bytes.saturating_sub(past.bytes());
            self.log.pop_front();
        }
        self.floor = self.floor.max(upto);
    }

    fn reach(&self, asked: u64) -> Result<(), StoreError> {
        if asked < self.floor {
            return Err(StoreError::Compacted { asked, oldest: self.floor });
        }
        if asked > self.revision {
            return Err(StoreError::Future { asked, newest: self.revision });
        }
        Ok(())
    }

    pub(super) fn compact(&mut self, upto: u64) -> Result<(), StoreError> {
        self.reach(upto.max(self.floor))?;
        self.forget_upto(upto);
        Ok(())
    }

    pub(super) fn range(&self, prefix: &str, at: Option<u64>) -> Result<Range, StoreError> {
        let revision = at.unwrap_or(self.revision);
        self.reach(revision)?;
        let from =
            self.entries.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        let of_prefix = from.take_while(|(key, _)| key.starts_with(prefix));
        let mut entries: BTreeMap<&String, &Arc<Entry>> = of_prefix.collect();
        // Backwards to the revision: the last word on a key is what was before the first change after it.
        for past in self.log.iter().rev().take_while(|past| past.revision > revision) {
            if !past.key.starts_with(prefix) {
                continue;
            }
            match &past.before {
                Some(entry) => entries.insert(&past.key, entry),
                None => entries.remove(&past.key),
            };
        }
        let entries = entries.into_values().map(|entry| Entry::clone(entry)).collect();
        Ok(Range { revision, entries })
    }

    pub(super) fn changes(&self, prefix: &str, after: u64, max: usize) -> Result<Changes, StoreError> {
        self.reach(after)?;
        let mut out = Changes { upto: self.revision, changes: Vec::new() };
        let begin = self.log.partition_point(|past| past.revision <= after);
        for past in self.log.range(begin..) {
            let begins = out.changes.last().is_none_or(|last: &Change| last.revision < past.revision);
            if begins && out.changes.len() >= max.max(1) {
                out.upto = past.revision - 1;
                break;
            }
            if past.key.starts_with(prefix) {
                let entry = past.after.as_deref().cloned();
                out.changes.push(Change { revision: past.revision, key: past.key.clone(), entry });
            }
        }
        Ok(out)
    }

    pub(super) fn leases(&self) -> Vec<StoredLease> {
        let one = |(name, record): (&String, &LeaseRecord)| StoredLease {
            lease: name.clone(),
            ttl: record.ttl,
            keys: self.keys_of(name).cloned().collect(),
        };
        self.leases.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests;
