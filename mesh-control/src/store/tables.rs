//! The tables of the file, and what one transaction does to them.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number (revision, what is compacted) |
//! | `names` | name | text (the store's id) |
//! | `entries` | key | created, modified, lease, value |
//! | `history` | revision, place in it | key, entry after, entry before |
//! | `leases` | lease | duration in ms |
//! | `leased` | lease, key | — |
//!
//! Invariants: everything that can refuse a transaction is looked at before the first of its changes is made,
//! so that transactions of one batch don't hurt each other; the past is the present with history undone.
//! Not here: threads, commits.

use std::collections::{BTreeMap, BTreeSet};

use mesh_registry::store::{Change, Entry, Op, StoreError, Txn};
use redb::{ReadableTable, StorageError, Table, TableDefinition, TableError, WriteTransaction};

/// Created, modified, lease, value.
type Row = (u64, u64, Option<&'static str>, &'static [u8]);
/// Key, entry after, entry before.
type Past = (&'static str, Option<Row>, Option<Row>);

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(super) const NAMES: TableDefinition<&str, &str> = TableDefinition::new("names");
pub(super) const ENTRIES: TableDefinition<&str, Row> = TableDefinition::new("entries");
pub(super) const HISTORY: TableDefinition<(u64, u32), Past> = TableDefinition::new("history");
pub(super) const LEASES: TableDefinition<&str, u64> = TableDefinition::new("leases");
pub(super) const LEASED: TableDefinition<(&str, &str), ()> = TableDefinition::new("leased");

pub(super) const REVISION: &str = "revision";
pub(super) const COMPACTED: &str = "compacted";
const HISTORY_BYTES: &str = "history bytes";
pub(super) const ID: &str = "id";

/// Most revisions that one commit forgets, so that no writer waits for a long clean-up.
const FORGET_AT_ONCE: u64 = 512;

/// A failure of the file, as the trait says it.
pub(super) fn failed(operation: &'static str, cause: impl std::fmt::Display) -> StoreError {
    let mut cause = cause.to_string();
    // redb trusts nothing that it has in memory once its disk has failed.
    if cause.contains("Previous I/O error") {
        "its disk failed before: free space on it or mend it, then restart mesh-control"
            .clone_into(&mut cause);
    }
    StoreError::Failed { operation, cause }
}

/// Every table of one write transaction.
pub(super) struct Tables<'t> {
    pub(super) meta: Table<'t, &'static str, u64>,
    entries: Table<'t, &'static str, Row>,
    history: Table<'t, (u64, u32), Past>,
    leases: Table<'t, &'static str, u64>,
    leased: Table<'t, (&'static str, &'static str), ()>,
    pub(super) revision: u64,
    pub(super) compacted: u64,
    /// About how much history holds.
    history_bytes: u64,
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, TableError> {
        let meta = txn.open_table(META)?;
        let number = |name| Ok::<_, StorageError>(meta.get(name)?.map_or(0, |number| number.value()));
        let (revision, compacted) = (number(REVISION)?, number(COMPACTED)?);
        let history_bytes = number(HISTORY_BYTES)?;
        Ok(Self {
            meta,
            entries: txn.open_table(ENTRIES)?,
            history: txn.open_table(HISTORY)?,
            leases: txn.open_table(LEASES)?,
            leased: txn.open_table(LEASED)?,
            revision,
            compacted,
            history_bytes,
        })
    }

    /// Does all of a transaction or nothing. The outer error is the file's: nothing of the batch may be
    /// committed then.
    pub(super) fn transact(&mut self, txn: Txn) -> Result<Result<u64, StoreError>, StorageError> {
        if let Some(refusal) = self.refusal(&txn)? {
            return Ok(Err(refusal));
        }
        let (revision, mut place) = (self.revision + 1, 0);
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    self.write(revision, &mut place, &key, Some((value, lease)))?;
                }
                Op::Delete { key } => self.write(revision, &mut place, &key, None)?,
                Op::Grant { lease, ttl } => {
                    let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                    self.leases.insert(lease.as_str(), millis)?;
                }
                Op::Revoke { lease } => {
                    for key in keys_of(&self.leased, &lease)? {
                        self.write(revision, &mut place, &key, None)?;
                    }
                    self.leases.remove(lease.as_str())?;
                }
            }
        }
        if place > 0 {
            self.revision = revision;
            self.meta.insert(REVISION, revision)?;
            self.meta.insert(HISTORY_BYTES, self.history_bytes)?;
        }
        Ok(Ok(self.revision))
    }

    fn refusal(&self, txn: &Txn) -> Result<Option<StoreError>, StorageError> {
        for compare in &txn.compare {
            let found = self.entries.get(compare.key.as_str())?.map_or(0, |row| row.value().1);
            if found != compare.modified {
                let (key, expected) = (compare.key.clone(), compare.modified);
                return Ok(Some(StoreError::Conflict { key, expected, found }));
            }
        }
        let (mut granted, mut revoked) = (BTreeSet::new(), BTreeSet::new());
        for op in &txn.ops {
            match op {
                Op::Grant { lease, .. } => {
                    granted.insert(lease);
                    revoked.remove(lease);
                }
                Op::Revoke { lease } => {
                    revoked.insert(lease);
                    granted.remove(lease);
                }
                Op::Put { lease: Some(lease), .. } => {
                    let there = self.leases.get(lease.as_str())?.is_some() && !revoked.contains(lease);
                    if !there && !granted.contains(lease) {
                        return Ok(Some(StoreError::NoLease { lease: lease.clone() }));
                    }
                }
                Op::Put { .. } | Op::Delete { .. } => {}
            }
        }
        Ok(None)
    }

    fn write(
        &mut self,
        revision: u64,
        place: &mut u32,
        key: &str,
        write: Option<(Vec<u8>, Option<String>)>,
    ) -> Result<(), StorageError> {
        let before = self.entries.get(key)?.map(|row| entry(key, row.value()));
        if let Some(lease) = before.as_ref().and_then(|entry| entry.lease.as_deref()) {
            self.leased.remove((lease, key))?;
        }
        let after = match write {
            Some((value, lease)) => {
                let created = before.as_ref().map_or(revision, |entry| entry.created);
                Some(Entry { key: key.to_owned(), value, created, modified: revision, lease })
            }
            None if before.is_none() => return Ok(()),
            None => None,
        };
        match &after {
            Some(entry) => {
                self.entries.insert(key, row(entry))?;
                if let Some(lease) = entry.lease.as_deref() {
                    self.leased.insert((lease, key), ())?;
                }
            }
            None => {
                self.entries.remove(key)?;
            }
        }
        let past = (key, after.as_ref().map(row), before.as_ref().map(row));
        self.history_bytes += size(&past);
        self.history.insert((revision, *place), past)?;
        *place += 1;
        Ok(())
    }

    /// Forgets revisions up to `upto`.
    pub(super) fn forget(&mut self, upto: u64) -> Result<(), StorageError> {
        if upto <= self.compacted {
            return Ok(());
        }
        let mut freed = 0;
        self.history.retain_in((self.compacted, 0)..=(upto, u32::MAX), |_, past| {
            freed += size(&past);
            false
        })?;
        self.history_bytes = self.history_bytes.saturating_sub(freed);
        self.compacted = upto;
        self.meta.insert(COMPACTED, upto)?;
        self.meta.insert(HISTORY_BYTES, self.history_bytes)?;
        Ok(())
    }

    /// Forgets the oldest revisions beyond a number of them and of bytes, or as many as one commit may.
    pub(super) fn forget_beyond(&mut self, revisions: u64, bytes: u64) -> Result<(), StorageError> {
        let mut upto = self.revision.saturating_sub(revisions);
        // Removing costs milliseconds however little is removed: done rarely, few writers wait for it.
        let slack = (revisions / 8).clamp(1, FORGET_AT_ONCE / 2);
        if upto < self.compacted + slack && self.history_bytes <= bytes {
            return Ok(());
        }
        let mut left = self.history_bytes;
        for item in self.history.iter()? {
            let (place, past) = item?;
            let (revision, _) = place.value();
            if left <= bytes || revision > self.compacted + FORGET_AT_ONCE {
                break;
            }
            left = left.saturating_sub(size(&past.value()));
            upto = upto.max(revision);
        }
        self.forget(upto.min(self.compacted + FORGET_AT_ONCE))
    }
}

type RowRef<'a> = (u64, u64, Option<&'a str>, &'a [u8]);

/// About what a change takes in the file.
fn size(past: &(&str, Option<RowRef<'_>>, Option<RowRef<'_>>)) -> u64 {
    let row = |row: &Option<RowRef<'_>>| {
        row.map_or(0, |(_, _, lease, value)| value.len() + lease.map_or(0, str::len))
    };
    (64 + past.0.len() + row(&past.1) + row(&past.2)) as u64
}

fn row(entry: &Entry) -> RowRef<'_> {
    (entry.created, entry.modified, entry.lease.as_deref(), &entry.value)
}

pub(super) fn entry(key: &str, row: RowRef<'_>) -> Entry {
    let (created, modified, lease, value) = row;
    Entry { key: key.to_owned(), value: value.to_vec(), created, modified, lease: lease.map(str::to_owned) }
}

/// Keys that go with a lease.
pub(super) fn keys_of(
    leased: &impl ReadableTable<(&'static str, &'static str), ()>,
    lease: &str,
) -> Result<Vec<String>, StorageError> {
    let mut out = Vec::new();
    for item in leased.range((lease, "")..)? {
        let (key, ()) = item.map(|(key, _)| (key, ()))?;
        let (of, key) = key.value();
        if of != lease {
            break;
        }
        out.push(key.to_owned());
    }
    Ok(out)
}

/// Entries of a prefix.
pub(super) fn entries_of(
    entries: &impl ReadableTable<&'static str, Row>,
    prefix: &str,
) -> Result<BTreeMap<String, Entry>, StorageError> {
    let mut out = BTreeMap::new();
    for item in entries.range(prefix..)? {
        let (key, row) = item?;
        let key = key.value();
        if !key.starts_with(prefix) {
            break;
        }
        out.insert(key.to_owned(), entry(key, row.value()));
    }
    Ok(out)
}

/// Takes back what happened after `revision` to the keys of a prefix.
pub(super) fn undo_after(
    history: &impl ReadableTable<(u64, u32), Past>,
    revision: u64,
    prefix: &str,
    entries: &mut BTreeMap<String, Entry>,
) -> Result<(), StorageError> {
    let mut undone = BTreeSet::new();
    for item in history.range((revision + 1, 0)..)? {
        let past = item?.1;
        let (key, _, before) = past.value();
        // The first change after the revision knows what was before it.
        if !key.starts_with(prefix) || !undone.insert(key.to_owned()) {
            continue;
        }
        match before {
            Some(row) => entries.insert(key.to_owned(), entry(key, row)),
            None => entries.remove(key),
        };
    }
    Ok(())
}

/// Changes after `after`, whole revisions at a time, and up to where they are all.
pub(super) fn changes_after(
    history: &impl ReadableTable<(u64, u32), Past>,
    newest: u64,
    after: u64,
    prefix: &str,
    max: usize,
) -> Result<(u64, Vec<Change>), StorageError> {
    let mut out: Vec<Change> = Vec::new();
    for item in history.range((after + 1, 0)..)? {
        let (place, past) = item?;
        let (revision, _) = place.value();
        let begins = out.last().is_none_or(|last| last.revision < revision);
        if begins && out.len() >= max.max(1) {
            return Ok((revision - 1, out));
        }
        let (key, row, _) = past.value();
        if key.starts_with(prefix) {
            out.push(Change { revision, key: key.to_owned(), entry: row.map(|row| entry(key, row)) });
        }
    }
    Ok((newest, out))
}
