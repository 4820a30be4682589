//! What every store can do: the revisioned keys that intent and registrations are kept in.
//!
//! REST, sources ──[`Txn`]──▶ **store** ──[`Changes`]──▶ [`crate::feed`] ──▶ registry
//!
//! Invariants: one revision counter a store, which rises with each transaction that changes a key (by one or more:
//! where others share the counter, or for leases alone, numbers are left out); an entry carries the revision of its
//! last write; a transaction takes effect whole or not at all, and is durable when [`Store::transact`] returns; changes
//! are read in revision order, and whole revisions at a time; who reads where it wrote reads what it wrote.
//! Calls block (callers on an async runtime move them to a blocking thread).
//! Not here: meaning of keys and values ([`crate::intent`]); deadlines of leases ([`crate::lease`]): a lease in
//! the store is the durable record of which keys go together, and how long it lasts between heartbeats.

use std::time::Duration;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// Largest value, in bytes: an object of people, and what is noted beside it.
pub const MAX_VALUE: usize = 1280 << 10;
/// Most operations of one transaction.
pub const MAX_TXN: usize = 4096;
/// Most comparisons of one transaction; each lease that it revokes, or puts keys under, counts as one.
pub const MAX_COMPARE: usize = 64;
/// Most bytes of one transaction, keys and values together: etcd takes 1.5 MiB with all that is around them.
pub const MAX_TXN_BYTES: usize = 1400 << 10;

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
        if self.ops.len() > MAX_TXN {
            return too_large(format!("a transaction of more than {MAX_TXN} operations"));
        }
        if self.compare.len() + self.leases() > MAX_COMPARE {
            return too_large(format!("a transaction of more than {MAX_COMPARE} comparisons and leases"));
        }
        let mut written = std::collections::BTreeSet::new();
        let mut bytes = 0;
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
            bytes += name.len() + value;
            if let Op::Put { key, .. } | Op::Delete { key } = op
                && !written.insert(key)
            {
                return Err(StoreError::Twice { key: key.clone() });
            }
        }
        if bytes > MAX_TXN_BYTES {
            return too_large(format!("a transaction of {bytes} bytes (up to {MAX_TXN_BYTES})"));
        }
        Ok(())
    }

    /// How many leases it revokes, or puts keys under.
    fn leases(&self) -> usize {
        let lease = |op: &'_ Op| match op {
            Op::Put { lease: Some(lease), .. } | Op::Revoke { lease } => Some(lease.clone()),
            _ => None,
        };
        self.ops.iter().filter_map(lease).collect::<std::collections::BTreeSet<_>>().len()
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
    /// The store is elsewhere, and cannot be written now.
    #[error(
        "the store cannot be written now: {cause}; what is there is served on from memory; see that most of etcd's members run \
         and are reached (etcdctl endpoint health), then try again"
    )]
    Unavailable {
        /// Why.
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

    /// The newest durable revision; a new store may begin at any.
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

    /// Why the store cannot be written now, although it can be read.
    fn trouble(&self) -> Option<String> {
        None
    }
}
