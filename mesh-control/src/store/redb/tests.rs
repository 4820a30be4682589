//! The redb backend: conforms, survives restarts, and says what is wrong with its file.

use super::*;

fn open(directory: &Path) -> RedbStore {
    RedbStore::open(directory, Options::default()).expect("opens")
}

/// Keeps the directory as long as the store.
struct Fresh {
    store: RedbStore,
    _directory: tempfile::TempDir,
}

impl Store for Fresh {
    fn id(&self) -> &str {
        self.store.id()
    }
    fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision()
    }
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key)
    }
    fn range(&self, prefix: &str, at: Option<u64>) -> Result<Range, StoreError> {
        self.store.range(prefix, at)
    }
    fn transact(&self, txn: Txn) -> Result<u64, StoreError> {
        self.store.transact(txn)
    }
    fn changes(&self, prefix: &str, after: u64, max: usize) -> Result<Changes, StoreError> {
        self.store.changes(prefix, after, max)
    }
    fn on_commit(&self, hook: Hook) {
        self.store.on_commit(hook);
    }
    fn leases(&self) -> Result<Vec<StoredLease>, StoreError> {
        self.store.leases()
    }
    fn compact(&self, upto: u64) -> Result<(), StoreError> {
        self.store.compact(upto)
    }
}

#[test]
fn it_conforms() {
    for durable in [true, false] {
        mesh_registry::conformance::run(&|| {
            let directory = tempfile::tempdir().expect("a directory");
            let options = Options { durable, ..Options::default() };
            let store = RedbStore::open(directory.path(), options).expect("opens");
            Box::new(Fresh { store, _directory: directory })
        });
    }
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let id = {
        let store = open(directory.path());
        let ttl = Duration::from_secs(30);
        let txn = Txn::default().grant("n1", ttl).put_leased("/a", "1", "n1");
        assert_eq!(store.transact(txn), Ok(1));
        store.id().to_owned()
    };
    let store = open(directory.path());
    assert_eq!((store.id(), store.revision()), (id.as_str(), Ok(1)));
    let entry = store.get("/a").expect("get").expect("is there");
    assert_eq!((entry.value.as_slice(), entry.lease.as_deref()), (b"1".as_slice(), Some("n1")));
    assert_eq!(store.changes("/", 0, 10).expect("changes").changes.len(), 1, "history too");
    assert_eq!(store.leases().expect("leases")[0].keys, ["/a"]);
}

#[test]
fn a_second_opener_is_told_that_it_is_in_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let _first = open(directory.path());
    let error = RedbStore::open(directory.path(), Options::default()).err().expect("refused");
    assert!(matches!(&error, StoreError::Locked { .. }), "{error:?}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

#[test]
fn a_damaged_file_is_told_with_its_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join(FILE), b"not a store at all, but long enough to be read")
        .expect("write");
    let error = RedbStore::open(directory.path(), Options::default()).err().expect("refused");
    assert!(matches!(&error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
}

#[test]
fn a_file_that_was_cut_is_told_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(FILE);
    {
        let store = open(directory.path());
        store.transact(Txn::default().put("/a", vec![7; 300_000])).expect("writes");
    }
    let length = std::fs::metadata(&path).expect("there").len();
    for keep in [length / 2, 4096, 100] {
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("there");
        file.set_len(keep).expect("cut");
        let error = RedbStore::open(directory.path(), Options::default()).err().expect("refused");
        assert!(matches!(&error, StoreError::Corrupt { .. }), "cut to {keep}: {error:?}");
    }
}

#[test]
fn history_is_bounded() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options { durable: false, history: 10, ..Options::default() };
    let store = RedbStore::open(directory.path(), options).expect("opens");
    for i in 0..50 {
        store.transact(Txn::default().put("/a", i.to_string())).expect("writes");
    }
    let gone = StoreError::Compacted { asked: 0, oldest: 40 };
    assert_eq!(store.changes("/", 0, 10), Err(gone));
    assert_eq!(store.changes("/", 40, 100).expect("the last ten").changes.len(), 10);
}

#[test]
fn history_is_bounded_in_bytes_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options { durable: false, history_bytes: 1 << 20, ..Options::default() };
    let store = RedbStore::open(directory.path(), options).expect("opens");
    for _ in 0..20 {
        store.transact(Txn::default().put("/a", vec![7; 100_000])).expect("writes");
    }
    // A change holds what was before and what is after.
    assert!(matches!(store.changes("/", 14, 10), Err(StoreError::Compacted { .. })));
    assert_eq!(store.changes("/", 16, 10).expect("the last").changes.len(), 4);
    assert_eq!(store.revision(), Ok(20));
}

#[test]
fn writers_share_commits() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    std::thread::scope(|scope| {
        for writer in 0..16 {
            let store = &store;
            scope.spawn(move || {
                for i in 0..25 {
                    let txn = Txn::default().put(format!("/{writer}/{i}"), "x");
                    store.transact(txn).expect("writes");
                }
            });
        }
    });
    let timings = store.timings();
    assert_eq!((store.revision(), timings.transactions), (Ok(400), 400));
    assert!(timings.commits < 400, "{} commits of 400 transactions", timings.commits);
    assert!(timings.quantile(0.99) >= timings.quantile(0.5));
}

/// The directory that [`a_killed_writer`] writes to.
const KILLED_IN: &str = "NODEMESH_TEST_KILLED_WRITER";

/// Not a test of its own: what `what_was_acknowledged_survives_a_kill` starts and kills. Without its variable
/// it has nothing to do.
#[test]
fn a_killed_writer() {
    let Some(directory) = std::env::var_os(KILLED_IN) else { return };
    let store = open(Path::new(&directory));
    for i in 1.. {
        let revision =
            store.transact(Txn::default().put(format!("/{}", i % 50), vec![7; 3000])).expect("writes");
        // Acknowledged: from here on it must survive.
        println!("\nwrote {revision}");
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    use std::io::{BufRead as _, BufReader};
    let directory = tempfile::tempdir().expect("a directory");
    for kill in 1..=3_u64 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "store::redb::tests::a_killed_writer", "--nocapture", "--test-threads=1"])
            .env(KILLED_IN, directory.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("starts");
        let mut acknowledged = 0;
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut heard = 0;
        // Killed while it writes; what it still said before it died counts.
        while let Some(Ok(line)) = lines.next() {
            if let Some(revision) = line.strip_prefix("wrote ") {
                acknowledged = revision.parse().expect("a number");
                heard += 1;
                if heard == 30 * kill {
                    child.kill().expect("is there to be killed");
                }
            }
        }
        child.wait().expect("ends");
        assert!(heard >= 30 * kill, "the writer ended by itself after {heard} writes");
        let store = open(directory.path());
        let revision = store.revision().expect("revision");
        assert!(revision >= acknowledged, "{acknowledged} was acknowledged, {revision} is there");
        assert_eq!(store.range("/", None).expect("range").revision, revision);
        let told = store.changes("/", 0, usize::MAX).expect("history");
        assert_eq!((told.upto, told.changes.len() as u64), (revision, revision), "history is whole");
    }
}
