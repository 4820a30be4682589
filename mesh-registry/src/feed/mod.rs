//! A store as a source: first everything, then changes; everything again where history was compacted away.
//!
//! store → **StoreSource** → registry
//!
//! Invariants: events of one revision come in one batch; owners that claim a name come in the order in which
//! they wrote it, on every replica; a record that can't be read is named and left out, the rest goes on.
//! Not here: writes ([`crate::intent`]), waiting for news (`Store::on_commit`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::resource::Key;

use crate::record::{INTENT, REGISTERED, Record, parse_key};
use crate::source::{Batch, Change, Event, Owner, Source, SourceError, What};
use crate::store::{self, Entry, Store, StoreError};

/// Reads a store's changes.
pub struct StoreSource {
    store: Arc<dyn Store>,
    /// Up to where it was told; `None`: nothing yet.
    at: Option<u64>,
    /// What was told, by the store's key: whose, and as which object.
    told: BTreeMap<String, (Owner, Key)>,
}

impl StoreSource {
    /// From the beginning.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, at: None, told: BTreeMap::new() }
    }

    /// Everything, and removals of what was told before and is no longer there.
    fn everything(&mut self) -> Result<Batch, StoreError> {
        let mut range = self.store.range(INTENT, None)?;
        // Of the same revision; history, which may be much, is not read.
        range.entries.extend(self.store.range(REGISTERED, Some(range.revision))?.entries);
        let mut batch = Batch { revision: range.revision, ..Batch::default() };
        let there: BTreeSet<&String> = range.entries.iter().map(|entry| &entry.key).collect();
        let gone: Vec<String> = self.told.keys().filter(|key| !there.contains(key)).cloned().collect();
        for key in gone {
            self.removed(&key, &mut batch);
        }
        let mut entries: Vec<&Entry> = range.entries.iter().collect();
        entries.sort_by_key(|entry| (entry.created, &entry.key));
        for entry in entries {
            self.written(entry, &mut batch);
        }
        if self.at.is_none() {
            batch.events.push(Event { owner: Owner::store(), what: What::Synced });
        }
        Ok(batch)
    }

    fn written(&mut self, entry: &Entry, batch: &mut Batch) {
        let Some((registrant, key)) = parse_key(&entry.key) else { return };
        let record = match Record::read(entry) {
            Ok(record) => record,
            Err(cause) => {
                batch.refused.push((entry.key.clone(), cause.to_string()));
                // What it was before is no longer true.
                return self.removed(&entry.key, batch);
            }
        };
        self.told.insert(entry.key.clone(), (record.owner.clone(), key));
        let change = Change::Upsert { resource: Box::new(record.resource), lease: record.lease };
        let what = if registrant.is_some() { What::Observed(change) } else { What::Intent(change) };
        batch.events.push(Event { owner: record.owner, what });
    }

    fn removed(&mut self, stored: &str, batch: &mut Batch) {
        let Some((owner, key)) = self.told.remove(stored) else { return };
        let observed = matches!(parse_key(stored), Some((Some(_), _)));
        let change = Change::Remove(key);
        let what = if observed { What::Observed(change) } else { What::Intent(change) };
        batch.events.push(Event { owner, what });
    }
}

impl Source for StoreSource {
    fn poll(&mut self, max: usize) -> Result<Batch, SourceError> {
        let changes = match self.at {
            None => None,
            Some(at) => match self.store.changes("/", at, max) {
                Ok(changes) => Some(changes),
                Err(StoreError::Compacted { .. }) => None,
                Err(error) => return Err(error.into()),
            },
        };
        let batch = match changes {
            None => self.everything()?,
            Some(store::Changes { upto, changes }) => {
                let mut batch = Batch { revision: upto, ..Batch::default() };
                for change in changes {
                    match change.entry {
                        Some(entry) => self.written(&entry, &mut batch),
                        None => self.removed(&change.key, &mut batch),
                    }
                }
                batch
            }
        };
        self.at = Some(batch.revision);
        Ok(batch)
    }
}

#[cfg(test)]
mod tests;
