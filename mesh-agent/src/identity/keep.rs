//! Keys and certificates of workloads, kept for the agent that comes after this one: a successor, or whoever is
//! started when this one was killed.
//!
//! ```text
//! renew ──sealed records──▶ a BPF map, pinned at <bpffs>/KEYS    memory of the kernel: not swapped, gone at reboot
//!   ▲                       <run-dir>/seal, 0600                  the key that opens them, worth nothing alone
//!   └──at start─────────────┘
//! ```
//!
//! Invariants: no key is ever in a file, sealed or not; bounded ([`CAPACITY`]), what does not fit is counted; what
//! was kept is a help and nothing more: whatever fails here, the agent goes on without.
//! Not here: whether a certificate that was kept is still good (renew). Why so: decision 23.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use aya::maps::{HashMap, Map, MapData};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_HASH;
use mesh_api::proto::v1;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::make::Key;
use super::seal::{self, RECORD, Record, SEAL, Seal};
use super::unix_now;

/// Name of the map, and of its pin.
pub const MAP: &str = "KEYS";
/// Name of the file with the key that seals.
pub const FILE: &str = "seal";
/// Identities of a node that are kept.
const CAPACITY: u32 = 4096;
/// Entries are allocated when they are written.
const NO_PREALLOC: u32 = 1;
/// Between two looks for certificates that have ended.
const SWEEP: Duration = Duration::from_mins(1);

/// Why nothing is kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file with the seal.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The map.
    #[error("map {MAP}: {0}")]
    Map(String),
    /// The library makes no key of it.
    #[error("no key can be made to seal with")]
    Seal,
}

type Records = HashMap<MapData, [u8; 32], Record>;

/// See the file's head. Without a store nothing is kept.
#[derive(Default)]
pub struct Keep {
    store: Option<Store>,
    /// Certificates that were taken from an earlier agent, and that could not be kept for the next.
    adopted: AtomicU64,
    unkept: AtomicU64,
}

struct Store {
    seal: Seal,
    records: Mutex<(Records, Instant)>,
}

impl Keep {
    /// What an earlier agent left, or an empty one. To be called when a predecessor keeps nothing more.
    pub fn open(bpffs: &Path, run_dir: &Path) -> Result<Self, KeepError> {
        let path = run_dir.join(FILE);
        let file = |source| KeepError::File { path: path.clone(), source };
        let (key, fresh) = match read(&path).map_err(file)? {
            Some(key) => (key, false),
            None => (make(&path).map_err(file)?, true),
        };
        let pin = bpffs.join(MAP);
        if fresh {
            // Nobody can open what is in it.
            let _ = fs::remove_file(&pin);
        }
        let seal = Seal::new(&key).ok_or(KeepError::Seal)?;
        let store = Store { seal, records: Mutex::new((records(&pin)?, Instant::now())) };
        sweep(&mut store.records.lock().0);
        Ok(Self { store: Some(store), ..Self::default() })
    }

    /// Keeps this in place of what was kept for the identity. `false`: it is not kept.
    pub fn put(&self, identity: &str, key: &Key, certificate: &v1::Certificate) -> bool {
        let kept = self.store.as_ref().is_some_and(|store| store.put(identity, key, certificate));
        if !kept {
            self.unkept.fetch_add(1, Relaxed);
        }
        kept
    }

    /// What was kept for an identity.
    pub fn get(&self, identity: &str) -> Option<(Key, v1::Certificate)> {
        let store = self.store.as_ref()?;
        let record = store.records.lock().0.get(&seal::name(identity), 0).ok()?;
        store.seal.open(identity, &record)
    }

    /// Nobody has this identity here any more.
    pub fn forget(&self, identity: &str) {
        if let Some(store) = &self.store {
            // It may not have been kept.
            let _ = store.records.lock().0.remove(&seal::name(identity));
        }
    }

    /// What was kept serves again.
    pub fn adopted(&self) {
        self.adopted.fetch_add(1, Relaxed);
    }

    /// Certificates that were taken from an earlier agent, and that could not be kept for the next.
    pub fn counts(&self) -> (u64, u64) {
        (self.adopted.load(Relaxed), self.unkept.load(Relaxed))
    }
}

impl Store {
    fn put(&self, identity: &str, key: &Key, certificate: &v1::Certificate) -> bool {
        let Some(record) = self.seal.close(identity, key, certificate) else {
            tracing::debug!(identity, "its chain is too long to be kept for the next agent");
            return false;
        };
        let mut held = self.records.lock();
        if held.1.elapsed() >= SWEEP {
            held.1 = Instant::now();
            sweep(&mut held.0);
        }
        let put = held.0.insert(seal::name(identity), *record, 0);
        if let Err(error) = &put {
            tracing::debug!(identity, %error, "a certificate cannot be kept for the next agent");
        }
        put.is_ok()
    }
}

/// Forgets what has ended: of workloads, say, that left while no agent ran.
fn sweep(records: &mut Records) {
    let now = unix_now();
    let ended = |name: &[u8; 32]| records.get(name, 0).is_ok_and(|record| seal::ends(&record) <= now);
    let gone: Vec<[u8; 32]> = records.keys().flatten().filter(ended).collect();
    for name in gone {
        let _ = records.remove(&name);
    }
}

/// The key that an earlier agent made; `None`: there is none that can be used.
fn read(path: &Path) -> io::Result<Option<Zeroizing<[u8; SEAL]>>> {
    let mut key = Zeroizing::new([0; SEAL]);
    match fs::File::open(path).and_then(|mut file| file.read_exact(&mut *key)) {
        Ok(()) => Ok(Some(key)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => Ok(None),
        Err(e) => Err(e),
    }
}

fn make(path: &Path) -> io::Result<Zeroizing<[u8; SEAL]>> {
    let mut key = Zeroizing::new([0; SEAL]);
    rand::fill(&mut *key).map_err(|_| io::Error::other("no random numbers"))?;
    let _ = fs::remove_file(path);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)?.write_all(&*key)?;
    Ok(key)
}

/// The pinned map; one of another size, or none, is made anew.
fn records(pin: &Path) -> Result<Records, KeepError> {
    let failed = |error: &dyn std::fmt::Display| KeepError::Map(error.to_string());
    let typed = |data: MapData| Records::try_from(Map::HashMap(data));
    if let Some(found) = MapData::from_pin(pin).ok().and_then(|data| typed(data).ok()) {
        return Ok(found);
    }
    let spec =
        aya_obj::Map::new_from_params(BPF_MAP_TYPE_HASH as u32, 32, RECORD as u32, CAPACITY, NO_PREALLOC);
    let data = MapData::create(spec, MAP, None).map_err(|e| failed(&e))?;
    let _ = fs::remove_file(pin);
    data.pin(pin).map_err(|e| failed(&e))?;
    typed(data).map_err(|e| failed(&e))
}

/// Takes away what opens what was kept: overwritten first.
pub fn cleanup(run_dir: &Path) -> io::Result<bool> {
    let path = run_dir.join(FILE);
    match fs::OpenOptions::new().write(true).open(&path) {
        Ok(mut file) => {
            file.write_all(&[0; SEAL])?;
            fs::remove_file(&path).map(|()| true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seal_is_made_once_is_roots_alone_and_a_damaged_one_is_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(read(&path).unwrap().is_none());
        let key = make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(*read(&path).unwrap().unwrap(), *key);
        fs::write(&path, [1; 7]).unwrap();
        assert!(read(&path).unwrap().is_none());
        assert_ne!(*make(&path).unwrap(), *key);
        assert!(cleanup(dir.path()).unwrap() && !path.exists());
        assert!(!cleanup(dir.path()).unwrap());
    }

    #[test]
    fn without_a_store_nothing_is_kept_and_that_is_counted() {
        let keep = Keep::default();
        let (key, _) = super::super::make::key(None).unwrap();
        assert!(!keep.put("a", &key, &v1::Certificate::default()));
        assert!(keep.get("a").is_none());
        assert_eq!(keep.counts(), (0, 1));
    }
}
