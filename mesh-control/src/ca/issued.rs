//! Which certificates were issued, and which of them were revoked: durable, bounded.
//!
//! | key in the store | value |
//! |---|---|
//! | `/ca/issued/<number>[-<replica>]` | the certificates of one answer, JSON |
//! | `/ca/revoked/<serial>` | a revoked certificate, JSON, until it would have ended anyway |
//!
//! Invariants: a certificate is on the list before it is handed out; the newest [`ISSUED_MAX`] are kept, and what
//! fell out before its end is counted.
//! Not here: the lists that agents are sent (`authority`).

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_registry::store::{Store, StoreError, Txn};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const ISSUED: &str = "/ca/issued/";
const REVOKED: &str = "/ca/revoked/";
/// Certificates that are remembered.
pub const ISSUED_MAX: usize = 65_536;
/// Certificates that may be revoked at once.
pub const REVOKED_MAX: usize = 8192;
/// Keys of one transaction.
const AT_ONCE: usize = 1000;

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// Hexadecimal.
    pub serial: String,
    /// To whom.
    pub identity: String,
    /// The node that asked.
    pub node: String,
    /// Unix seconds.
    pub at: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// Which intermediate signed it.
    pub generation: u64,
    /// Of which replica; empty where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

/// A certificate that was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Hexadecimal.
    pub serial: String,
    /// Whose.
    pub identity: String,
    /// The node that had asked.
    pub node: String,
    /// Unix seconds.
    pub since: u64,
    /// When it would have ended, Unix seconds.
    pub not_after: u64,
    /// Which intermediate signed it.
    pub generation: u64,
    /// Of which replica; empty where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

/// Which certificates are meant.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Which {
    /// One.
    Serial(String),
    /// All of an identity.
    Identity(String),
    /// All that a node was given, its own among them.
    Node(String),
}

impl Which {
    fn is(&self, one: &Issued) -> bool {
        match self {
            Self::Serial(serial) => one.serial == *serial,
            Self::Identity(identity) => one.identity == *identity,
            Self::Node(node) => one.node == *node,
        }
    }
}

/// Why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// There is no room.
    #[error("{REVOKED_MAX} certificates are revoked already: rotate the intermediate instead, and wait")]
    Full,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Both lists.
pub struct Ledger {
    store: Arc<dyn Store>,
    /// This replica; empty where it is alone.
    me: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Oldest first, by number and replica.
    batches: BTreeMap<String, Vec<Issued>>,
    /// Up to where other replicas' writes are known.
    at: u64,
    held: usize,
    /// Fell out before their end.
    forgotten: u64,
    revoked: BTreeMap<String, Revoked>,
}

impl Ledger {
    /// Reads both lists. `me`: this replica, empty where it is alone.
    pub fn open(store: Arc<dyn Store>, me: &str) -> Result<Self, StoreError> {
        let inner = Mutex::new(Inner::read(&*store)?);
        Ok(Self { store, me: me.to_owned(), inner })
    }

    /// Takes in what other replicas have written.
    pub fn follow(&self) -> Result<(), StoreError> {
        if self.me.is_empty() {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        loop {
            let changes = match self.store.changes("/ca/", inner.at, AT_ONCE) {
                Err(StoreError::Compacted { .. }) => {
                    *inner = Inner { forgotten: inner.forgotten, ..Inner::read(&*self.store)? };
                    return Ok(());
                }
                changes => changes?,
            };
            inner.at = changes.upto;
            if changes.changes.is_empty() {
                return Ok(());
            }
            for change in changes.changes {
                inner.changed(&change.key, change.entry.as_ref().map(|entry| entry.value.as_slice()))?;
            }
        }
    }

    /// Notes what is about to be handed out.
    pub fn note(&self, batch: Vec<Issued>, now: u64) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        // Held while it is written: numbers rise, and two answers never take one.
        let mut inner = self.inner.lock();
        let last =
            inner.batches.last_key_value().and_then(|(key, _)| key.split('-').next()?.parse::<u64>().ok());
        let number = issued_number(last.unwrap_or(0) + 1, &self.me);
        let mut txn = Txn::default().put(format!("{ISSUED}{number}"), write(&batch)?);
        let mut room = (inner.held + batch.len()).saturating_sub(ISSUED_MAX);
        let mut dropped = Vec::new();
        for (number, old) in &inner.batches {
            if room == 0 || dropped.len() == AT_ONCE {
                break;
            }
            room = room.saturating_sub(old.len());
            txn = txn.delete(format!("{ISSUED}{number}"));
            dropped.push(number.clone());
        }
        self.store.transact(txn)?;
        for number in &dropped {
            let old = inner.batches.remove(number).unwrap_or_default();
            inner.held -= old.len();
            inner.forgotten += old.iter().filter(|one| one.not_after > now).count() as u64;
        }
        inner.insert(number, batch);
        Ok(())
    }

    /// Revokes what is still valid of those that are meant; what was revoked now.
    pub fn revoke(&self, which: &Which, now: u64) -> Result<Vec<Revoked>, RevokeError> {
        let mut inner = self.inner.lock();
        let all = inner.batches.values().flatten();
        let meant = all.filter(|one| which.is(one) && one.not_after > now);
        let fresh: Vec<Revoked> = meant
            .filter(|one| !inner.revoked.contains_key(&one.serial))
            .map(|one| Revoked {
                serial: one.serial.clone(),
                identity: one.identity.clone(),
                node: one.node.clone(),
                since: now,
                not_after: one.not_after,
                generation: one.generation,
                by: one.by.clone(),
            })
            .collect();
        if inner.revoked.len() + fresh.len() > REVOKED_MAX {
            return Err(RevokeError::Full);
        }
        for some in fresh.chunks(AT_ONCE) {
            let mut txn = Txn::default();
            for one in some {
                txn = txn.put(format!("{REVOKED}{}", one.serial), write(one)?);
            }
            self.store.transact(txn)?;
            inner.revoked.extend(some.iter().map(|one| (one.serial.clone(), one.clone())));
        }
        Ok(fresh)
    }

    /// Forgets revocations of what has ended by now; whether there were any.
    pub fn prune(&self, now: u64) -> Result<bool, StoreError> {
        let mut inner = self.inner.lock();
        let ended: Vec<String> = inner
            .revoked
            .values()
            .filter(|one| one.not_after + super::profile::SKEW <= now)
            .map(|one| one.serial.clone())
            .take(AT_ONCE)
            .collect();
        if ended.is_empty() {
            return Ok(false);
        }
        let keys = ended.iter().map(|serial| format!("{REVOKED}{serial}"));
        self.store.transact(keys.fold(Txn::default(), Txn::delete))?;
        for serial in &ended {
            inner.revoked.remove(serial);
        }
        Ok(true)
    }

    /// What is revoked now, by serial number.
    pub fn revoked(&self) -> Vec<Revoked> {
        self.inner.lock().revoked.values().cloned().collect()
    }

    /// The newest certificates, newest first.
    pub fn newest(&self, most: usize) -> Vec<Issued> {
        let inner = self.inner.lock();
        let all = inner.batches.values().rev().flat_map(|batch| batch.iter().rev());
        all.take(most).cloned().collect()
    }

    /// How many are remembered, how many of them are valid, how many fell out before their end.
    pub fn counts(&self, now: u64) -> (usize, usize, u64) {
        let inner = self.inner.lock();
        let all = inner.batches.values().flatten();
        (inner.held, all.filter(|one| one.not_after > now).count(), inner.forgotten)
    }
}

impl Inner {
    fn read(store: &dyn Store) -> Result<Self, StoreError> {
        let mut inner = Self { at: store.revision()?, ..Self::default() };
        for entry in store.range(ISSUED, None)?.entries.iter().chain(&store.range(REVOKED, None)?.entries) {
            inner.changed(&entry.key, Some(&entry.value))?;
        }
        Ok(inner)
    }

    /// A key is so now; those that are neither list's are passed over.
    fn changed(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        if let Some(number) = key.strip_prefix(ISSUED) {
            match value {
                Some(value) => self.insert(number.to_owned(), read(key, value)?),
                None => self.held -= self.batches.remove(number).map_or(0, |old| old.len()),
            }
        } else if let Some(serial) = key.strip_prefix(REVOKED) {
            match value {
                Some(value) => drop(self.revoked.insert(serial.to_owned(), read(key, value)?)),
                None => drop(self.revoked.remove(serial)),
            }
        }
        Ok(())
    }

    fn insert(&mut self, number: String, batch: Vec<Issued>) {
        self.held += batch.len();
        self.held -= self.batches.insert(number, batch).map_or(0, |old| old.len());
    }
}

fn issued_number(number: u64, me: &str) -> String {
    if me.is_empty() { format!("{number:020}") } else { format!("{number:020}-{me}") }
}

fn read<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value)
        .map_err(|cause| StoreError::Corrupt { path: key.to_owned(), cause: cause.to_string() })
}

fn write(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let operation = "write what was issued";
    serde_json::to_vec(value).map_err(|cause| StoreError::Failed { operation, cause: cause.to_string() })
}

#[cfg(test)]
mod tests {
    use mesh_registry::memory::MemoryStore;

    use super::*;

    fn issued(serial: &str, node: &str, not_after: u64) -> Issued {
        let identity = format!("spiffe://m/ns/a/sa/{serial}");
        Issued {
            serial: serial.into(),
            identity,
            node: node.into(),
            at: 1,
            not_after,
            generation: 1,
            by: String::new(),
        }
    }

    #[test]
    fn what_was_issued_and_revoked_outlives_a_restart() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new("s"));
        let ledger = Ledger::open(store.clone(), "").unwrap();
        ledger.note(vec![issued("01", "n1", 100), issued("02", "n2", 100)], 1).unwrap();
        ledger.note(vec![issued("03", "n1", 50)], 1).unwrap();
        assert_eq!(ledger.revoke(&Which::Node("n1".into()), 60).unwrap().len(), 1, "03 has ended");
        assert_eq!(ledger.revoke(&Which::Node("n1".into()), 60).unwrap().len(), 0, "once");
        assert_eq!(ledger.revoke(&Which::Serial("99".into()), 60).unwrap().len(), 0);

        let again = Ledger::open(store, "").unwrap();
        assert_eq!(again.counts(60), (3, 2, 0));
        assert_eq!(again.newest(2).iter().map(|one| &*one.serial).collect::<Vec<_>>(), ["03", "02"]);
        assert_eq!(again.revoked()[0].serial, "01");
        assert!(!again.prune(100).unwrap(), "clocks differ");
        assert!(again.prune(100 + super::super::profile::SKEW).unwrap());
        assert!(again.revoked().is_empty());
    }

    #[test]
    fn the_list_is_bounded_and_what_fell_out_too_early_is_counted() {
        let ledger = Ledger::open(Arc::new(MemoryStore::new("s")), "").unwrap();
        let batch = |n: usize| (0..4096).map(|i| issued(&format!("{n}-{i}"), "n", 100)).collect::<Vec<_>>();
        for n in 0..=ISSUED_MAX / 4096 {
            ledger.note(batch(n), 1).unwrap();
        }
        assert_eq!(ledger.counts(1), (ISSUED_MAX, ISSUED_MAX, 4096));
    }

    #[test]
    fn two_replicas_keep_one_list() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new("s"));
        let (a, b) = (Ledger::open(store.clone(), "a").unwrap(), Ledger::open(store, "b").unwrap());
        a.note(vec![issued("01", "n1", 100)], 1).unwrap();
        b.note(vec![issued("02", "n1", 100)], 1).unwrap();
        a.follow().unwrap();
        assert_eq!(a.counts(1), (2, 2, 0));
        assert_eq!(a.revoke(&Which::Node("n1".into()), 1).unwrap().len(), 2, "whoever issued them");
        b.follow().unwrap();
        assert_eq!((b.revoked().len(), b.counts(1)), (2, (2, 2, 0)));
        b.note(vec![issued("03", "n1", 100)], 1).unwrap();
        a.follow().unwrap();
        assert_eq!(a.newest(1)[0].serial, "03");
    }
}
