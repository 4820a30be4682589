//! What every store can do: the revisioned keys that intent and registrations are kept in.
//!
//! REST, sources ──[`Txn`]──▶ **store** ──[`Changes`]──▶ [`crate::feed`] ──▶ registry
//!
//! Invariants: one revision counter a store, rising by one with each transaction that changes a key; an entry
//! carries the revision of its last write; a transaction takes effect whole or not at all, and is durable when
//! [`Store::transact`] returns; changes are read in revision order, and whole revisions at a time.
//! Calls block (callers on an async runtime move them to a blocking thread).
//! Not here: meaning of keys and values ([`crate::intent`]); deadlines of leases ([`crate::lease`]): a lease in
//! the store is the durable record of which keys go together, and how long it lasts between heartbeats.

use std::time::Duration;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// Largest value, in bytes.
pub const MAX_VALUE: usize = 2 << 20;
/// Most comparisons and operations of one transaction.
pub const MAX_TXN: usize = 4096;

/// A key and what is stored under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision that made the key.
    pub created: u64,
    /// Revision of the last write.
    pub modified: u64,
    /// Lease that it goes with.
    pub lease: Option<String>,
}

/// Entries at one revision, by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The revision that they are of.
    pub revision: u64,
    /// Sorted by key.
    pub entries: Vec<Entry>,
}

/// Something that must hold for a transaction to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Revision of its last write; 0: it must not exist.
    pub modified: u64,
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// Lease that it goes with; it must exist, or be granted earlier in the transaction.
        lease: Option<String>,
    },
    /// Removes a key; nothing if it is not there.
    Delete {
        /// The key.
        key: String,
    },
    /// Makes a lease, or changes its duration.
    Grant {
        /// Name of the lease.
        lease: String,
        /// How long it lasts between heartbeats.
        ttl: Duration,
    },
    /// Removes a lease and every key that goes with it; nothing if it is not there.
    Revoke {
        /// Name of the lease.
        lease: String,
    },
}

/// Comparisons, and what to do if all of them hold. A key is written or deleted at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// Done in order, at one revision.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Requires that `key` was last written at `modified`; 0: that it does not exist.
    #[must_use]
    pub fn if_at(mut self, key: impl Into<String>, modified: u64) -> Self {
        self.compare.push(Compare { key: key.into(), modified });
        self
    }

    /// Writes a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Writes a key that goes with a lease.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Vec<u8>>,
        lease: impl Into<String>,
    ) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: Some(lease.into()) });
        self
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Makes a lease.
    #[must_use]
    pub fn grant(mut self, lease: impl Into<String>, ttl: Duration) -> Self {
        self.ops.push(Op::Grant { lease: lease.into(), ttl });
        self
    }

    /// Removes a lease and what goes with it.
    #[must_use]
    pub fn revoke(mut self, lease: impl Into<String>) -> Self {
        self.ops.push(Op::Revoke { lease: lease.into() });
        self
    }

    /// Refuses what no backend takes. Every backend calls it first.
    pub fn check(&self) -> Result<(), StoreError> {
        let too_large = |what: String| Err(StoreError::TooLarge { what });
        if self.compare.len() > MAX_TXN || self.ops.len() > MAX_TXN {
            return too_large(format!("a transaction of more than {MAX_TXN} comparisons or operations"));
        }
        let mut written = std::collections::BTreeSet::new();
        for op in &self.ops {
            let (name, value) = match op {
                Op::Put { key, value, .. } => (key, value.len()),
                Op::Delete { key } => (key, 0),
                Op::Grant { lease, .. } | Op::Revoke { lease } => (lease, 0),
            };
            if name.is_empty() || name.len() > MAX_KEY {
                return too_large(format!("a key of {} bytes (1..={MAX_KEY})", name.len()));
            }
            if value > MAX_VALUE {
                return too_large(format!("a value of {value} bytes (up to {MAX_VALUE})"));
            }
            if let Op::Put { key, .. } | Op::Delete { key } = op
                && !written.insert(key)
            {
                return Err(StoreError::Twice { key: key.clone() });
            }
        }
        Ok(())
    }
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Revision that it happened at.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// What is stored since; `None`: removed.
    pub entry: Option<Entry>,
}

/// Changes after a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The revision up to which these are all: ask from here next.
    pub upto: u64,
    /// By revision.
    pub changes: Vec<Change>,
}

/// A lease as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLease {
    /// Its name.
    pub lease: String,
    /// How long it lasts between heartbeats.
    pub ttl: Duration,
    /// Keys that go with it, sorted.
    pub keys: Vec<String>,
}

/// Called with the newest revision after it is durable; must return at once.
pub type Hook = Box<dyn Fn(u64) + Send + Sync>;

/// Why a store refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A comparison of a transaction did not hold; nothing was changed.
    #[error("{key} is at revision {found}, not {expected}: it changed meanwhile; read it again and retry")]
    Conflict {
        /// The key.
        key: String,
        /// What the transaction expected; 0: no such key.
        expected: u64,
        /// What there is; 0: no such key.
        found: u64,
    },
    /// History before `oldest` is gone: read the whole range again.
    #[error("revision {asked} is compacted; the oldest that can be asked for is {oldest}: read it all again")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// What can be asked for.
        oldest: u64,
    },
    /// A revision that this store has not reached: it is another store, or behind.
    #[error("revision {asked} is not reached; the store is at {newest}")]
    Future {
        /// What was asked for.
        asked: u64,
        /// What there is.
        newest: u64,
    },
    /// A key was to go with a lease that is not there.
    #[error("lease {lease} does not exist: grant it first")]
    NoLease {
        /// The lease.
        lease: String,
    },
    /// A key stands twice in a transaction.
    #[error("{key} is changed twice in one transaction")]
    Twice {
        /// The key.
        key: String,
    },
    /// Over a bound.
    #[error("{what} is more than the store takes")]
    TooLarge {
        /// What.
        what: String,
    },
    /// Too many transactions wait.
    #[error("{waiting} writes wait for the store: its disk is too slow; retry later")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// Another process has it open.
    #[error(
        "{path} is in use by another process: stop the other mesh-control, or give this one its own --data"
    )]
    Locked {
        /// The file.
        path: String,
    },
    /// The file is not what was written.
    #[error("{path} is damaged ({cause}): restore it from a backup, or move it away to start empty")]
    Corrupt {
        /// The file.
        path: String,
        /// What was found.
        cause: String,
    },
    /// The disk, or the connection to the store, failed.
    #[error("the store failed to {operation}: {cause}")]
    Failed {
        /// What it was doing.
        operation: &'static str,
        /// Why.
        cause: String,
    },
}

/// A revisioned store of keys. Threads share it.
pub trait Store: Send + Sync {
    /// Random id, of this store and no other; kept for as long as the revisions are.
    fn id(&self) -> &str;

    /// The newest durable revision; 0: nothing was ever written.
    fn revision(&self) -> Result<u64, StoreError>;

    /// One entry.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Entries whose key starts with `prefix`, now or at an earlier revision.
    fn range(&self, prefix: &str, at: Option<u64>) -> Result<Range, StoreError>;

    /// Does all of it or nothing; returns, when it is durable, the revision of the change (the current one if
    /// nothing changed).
    fn transact(&self, txn: Txn) -> Result<u64, StoreError>;

    /// Changes after revision `after` to keys that start with `prefix`: at least one whole revision if there is
    /// any, and no more revisions once `max` changes are reached. Does not wait.
    fn changes(&self, prefix: &str, after: u64, max: usize) -> Result<Changes, StoreError>;

    /// Adds a hook that learns of new revisions. Hooks are never removed.
    fn on_commit(&self, hook: Hook);

    /// All leases.
    fn leases(&self) -> Result<Vec<StoredLease>, StoreError>;

    /// Forgets history up to and including `upto`: neither ranges before it nor changes after less than it can
    /// be asked for then.
    fn compact(&self, upto: u64) -> Result<(), StoreError>;
}
