//! The store in a directory: a redb file, one writer thread, any number of readers.
//!
//! Invariants: a write is durable when it is acknowledged; one process has the file open; a reader never waits
//! for the writer.
//! Not here: group commit ([`super::writer`]), the file's tables ([`super::tables`]).

use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_registry::store::{Changes, Entry, Hook, Range, Store, StoreError, StoredLease, Txn};
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError};

use super::tables::{
    COMPACTED, ENTRIES, HISTORY, ID, LEASED, LEASES, META, NAMES, REVISION, Tables, changes_after,
    entries_of, entry, failed, keys_of, undo_after,
};
use super::writer::{Ask, Request, Shared, Timings, Writer};

/// The file in the directory.
const FILE: &str = "store.redb";
/// Writes that may wait for the disk.
const QUEUE: usize = 4096;
/// Memory that the file's cache may take.
const CACHE_BYTES: usize = 64 << 20;

/// How a store is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Wait for the disk before a write is acknowledged. Only measurements turn it off, and report
    /// [`RedbStore::timings`] of a durable store beside.
    pub durable: bool,
    /// Revisions of history that are kept for watchers and ranges of the past.
    pub history: u64,
    /// Bytes of history that are kept, about.
    pub history_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { durable: true, history: 10_000, history_bytes: 256 << 20 }
    }
}

/// A store in a directory.
pub struct RedbStore {
    id: String,
    path: String,
    database: Arc<Database>,
    shared: Arc<Shared>,
    /// `None` only while being dropped.
    requests: Option<SyncSender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the store of a directory; makes both if they are not there.
    pub fn open(directory: &Path, options: Options) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let making = |cause: std::io::Error| StoreError::Failed {
            operation: "make its directory and file",
            cause: format!("{}: {cause}", path.display()),
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(making)?;
        // Made here for its mode: it holds hashes of tokens.
        let mut file = std::fs::OpenOptions::new();
        file.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(making)?;
        let database = open_file(&path)?;
        let id = prepare(&database, &path)?;
        let (database, shared) = (Arc::new(database), Arc::new(Shared::default()));
        let (requests, queue) = sync_channel(QUEUE);
        let writer = Writer {
            database: Arc::clone(&database),
            shared: Arc::clone(&shared),
            durable: options.durable,
            history: options.history.max(1),
            history_bytes: options.history_bytes,
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|cause| failed("start its writer thread", cause))?;
        let path = path.display().to_string();
        Ok(Self { id, path, database, shared, requests: Some(requests), writer: Some(writer) })
    }

    /// How long commits took.
    pub fn timings(&self) -> Timings {
        self.shared.timings.lock().clone()
    }

    fn ask(&self, ask: Ask) -> Result<u64, StoreError> {
        let (answer, answered) = sync_channel(1);
        let stopped = || failed("write", "its writer thread has ended: restart mesh-control");
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests.try_send(Request { ask, answer }).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy { waiting: QUEUE },
            TrySendError::Disconnected(_) => stopped(),
        })?;
        answered.recv().map_err(|_| stopped())?
    }

    fn read<T>(&self, read: impl FnOnce(&Reading) -> Result<T, ReadError>) -> Result<T, StoreError> {
        let begin = self.database.begin_read().map_err(|cause| failed("begin a read", cause))?;
        let reading = Reading::new(begin).map_err(|cause| failed("begin a read", cause))?;
        read(&reading).map_err(|error| match error {
            ReadError::Store(error) => error,
            ReadError::File(redb::Error::Corrupted(cause)) => {
                StoreError::Corrupt { path: self.path.clone(), cause }
            }
            ReadError::File(cause) => failed("read", cause),
        })
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // The file closes when its last user is gone; a panic of the writer was reported to its askers.
            let _ = writer.join();
        }
    }
}

/// One consistent view.
struct Reading {
    txn: ReadTransaction,
    revision: u64,
    compacted: u64,
}

enum ReadError {
    Store(StoreError),
    File(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

impl Reading {
    fn new(txn: ReadTransaction) -> Result<Self, redb::Error> {
        let meta = txn.open_table(META)?;
        let number = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |number| number.value()));
        let (revision, compacted) = (number(REVISION)?, number(COMPACTED)?);
        Ok(Self { txn, revision, compacted })
    }

    fn reach(&self, asked: u64) -> Result<(), ReadError> {
        if asked < self.compacted {
            return Err(ReadError::Store(StoreError::Compacted { asked, oldest: self.compacted }));
        }
        if asked > self.revision {
            return Err(ReadError::Store(StoreError::Future { asked, newest: self.revision }));
        }
        Ok(())
    }
}

impl Store for RedbStore {
    fn id(&self) -> &str {
        &self.id
    }

    fn revision(&self) -> Result<u64, StoreError> {
        self.read(|reading| Ok(reading.revision))
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read(|reading| {
            let row = reading.txn.open_table(ENTRIES)?.get(key)?;
            Ok(row.map(|row| entry(key, row.value())))
        })
    }

    fn range(&self, prefix: &str, at: Option<u64>) -> Result<Range, StoreError> {
        self.read(|reading| {
            let revision = at.unwrap_or(reading.revision);
            reading.reach(revision)?;
            let mut entries = entries_of(&reading.txn.open_table(ENTRIES)?, prefix)?;
            if revision < reading.revision {
                undo_after(&reading.txn.open_table(HISTORY)?, revision, prefix, &mut entries)?;
            }
            Ok(Range { revision, entries: entries.into_values().collect() })
        })
    }

    fn transact(&self, txn: Txn) -> Result<u64, StoreError> {
        txn.check()?;
        self.ask(Ask::Transact(txn))
    }

    fn changes(&self, prefix: &str, after: u64, max: usize) -> Result<Changes, StoreError> {
        self.read(|reading| {
            reading.reach(after)?;
            let history = reading.txn.open_table(HISTORY)?;
            let (upto, changes) = changes_after(&history, reading.revision, after, prefix, max)?;
            Ok(Changes { upto, changes })
        })
    }

    fn on_commit(&self, hook: Hook) {
        self.shared.hooks.lock().push(hook);
    }

    fn leases(&self) -> Result<Vec<StoredLease>, StoreError> {
        self.read(|reading| {
            let (leases, leased) = (reading.txn.open_table(LEASES)?, reading.txn.open_table(LEASED)?);
            let mut out = Vec::new();
            for item in leases.iter()? {
                let (lease, millis) = item?;
                let lease = lease.value().to_owned();
                let keys = keys_of(&leased, &lease)?;
                out.push(StoredLease { lease, ttl: Duration::from_millis(millis.value()), keys });
            }
            Ok(out)
        })
    }

    fn compact(&self, upto: u64) -> Result<(), StoreError> {
        self.ask(Ask::Compact(upto)).map(|_| ())
    }
}

fn open_file(path: &Path) -> Result<Database, StoreError> {
    let shown = path.display().to_string();
    Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::Locked { path: shown }
        }
        DatabaseError::UpgradeRequired(version) => {
            StoreError::Corrupt { path: shown, cause: format!("an old file format, version {version}") }
        }
        DatabaseError::Storage(StorageError::Io(cause)) if !is_damage(&cause) => {
            StoreError::Failed { operation: "open its file", cause: format!("{shown}: {cause}") }
        }
        other => StoreError::Corrupt { path: shown, cause: other.to_string() },
    })
}

/// A file of another form, or one that was cut.
fn is_damage(cause: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(cause.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}

/// Makes what an empty file lacks; returns the store's id.
fn prepare(database: &Database, path: &Path) -> Result<String, StoreError> {
    let run = || -> Result<String, redb::Error> {
        let txn = database.begin_write()?;
        drop(Tables::open(&txn)?);
        let id = {
            let mut names = txn.open_table(NAMES)?;
            let there = names.get(ID)?.map(|id| id.value().to_owned());
            if let Some(id) = there {
                id
            } else {
                let id = random_id()?;
                names.insert(ID, id.as_str())?;
                id
            }
        };
        txn.commit()?;
        Ok(id)
    };
    run().map_err(|cause| {
        let path = path.display().to_string();
        match cause {
            redb::Error::Io(cause) if !is_damage(&cause) => {
                StoreError::Failed { operation: "prepare its file", cause: format!("{path}: {cause}") }
            }
            other => StoreError::Corrupt { path, cause: other.to_string() },
        }
    })
}

fn random_id() -> Result<String, std::io::Error> {
    let mut bytes = [0; 12];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::new(), |mut out, byte| {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
        out
    }))
}

#[cfg(test)]
mod tests;
