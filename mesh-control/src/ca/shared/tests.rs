//! A holder of the root and a replica, over one store.

use std::path::PathBuf;

use mesh_registry::memory::MemoryStore;
use tempfile::TempDir;

use super::*;

const NOW: u64 = 1_800_000_000;
const LIVES: Lives = Lives { svid: 3600, node: 7200 };

struct Two {
    store: Arc<dyn Store>,
    dirs: [TempDir; 2],
    holder: (Authority, Shared),
}

impl Two {
    fn new() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new("s"));
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let holder = Shared::open(dirs[0].path(), None, store.clone(), "a", LIVES, NOW).unwrap();
        Self { store, dirs, holder }
    }

    /// While the holder serves.
    fn replica(&self, secret: &Path) -> Result<(Authority, Shared), SharedError> {
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                while !ended.load(std::sync::atomic::Ordering::SeqCst) {
                    self.serve();
                    std::thread::yield_now();
                }
            });
            let opened = Shared::open(self.dirs[1].path(), Some(secret), self.store.clone(), "b", LIVES, NOW);
            ended.store(true, std::sync::atomic::Ordering::SeqCst);
            serving.join().unwrap();
            opened
        })
    }

    fn secret(&self) -> PathBuf {
        self.dirs[0].path().join("replica.secret")
    }

    fn serve(&self) {
        self.holder.1.tick(&self.holder.0, NOW).unwrap();
    }

    /// The replica hears, asks, is given, and takes.
    fn turn(&self, (authority, shared): &(Authority, Shared), now: u64) {
        for _ in 0..2 {
            self.serve();
            shared.tick(authority, now).unwrap();
        }
    }
}

#[test]
fn a_replica_signs_under_the_one_root_with_a_key_of_its_own() {
    let two = Two::new();
    let replica = two.replica(&two.secret()).unwrap();
    let (holder, live) = (two.holder.0.live(), replica.0.live());
    assert!(holder.holds_root() && !live.holds_root());
    assert_eq!(holder.fingerprint(), live.fingerprint());
    assert_ne!(holder.intermediate, live.intermediate);
    assert!(matches!(replica.0.renew_intermediate(NOW), Err(CaError::Refused(_))), "the root is elsewhere");
    let file = std::fs::read_to_string(two.dirs[1].path().join("authority.json")).unwrap();
    assert_eq!(file.matches("PRIVATE KEY-----").count(), 2, "one key: its intermediate's");
    // Started anew, it asks nobody: the holder may be away.
    drop(replica);
    let again =
        Shared::open(two.dirs[1].path(), Some(&two.secret()), two.store.clone(), "b", LIVES, NOW).unwrap();
    assert_eq!(again.0.live().intermediate, live.intermediate);
}

#[test]
fn it_follows_the_holders_rotations_and_renews_by_itself() {
    let two = Two::new();
    let replica = two.replica(&two.secret()).unwrap();
    let before = replica.0.live();
    two.holder.0.renew_intermediate(NOW).unwrap();
    two.turn(&replica, NOW);
    let live = replica.0.live();
    assert_eq!((before.generation, live.generation), (1, 2));
    assert!(live.retired_until().is_some(), "it can still revoke what the one before signed");

    two.holder.0.announce_root(NOW).unwrap();
    two.turn(&replica, NOW);
    assert_eq!(replica.0.live().roots.len(), 2, "believed before it signs");
    two.holder.0.switch_root(NOW).unwrap();
    two.turn(&replica, NOW);
    two.turn(&replica, NOW);
    assert_eq!(replica.0.live().fingerprint(), two.holder.0.live().fingerprint());
    assert_eq!(replica.0.live().generation, 3);

    let signs = replica.0.live().intermediate.clone();
    let half = NOW + super::super::profile::INTERMEDIATE_LIFE / 2;
    two.turn(&replica, half);
    assert_ne!(replica.0.live().intermediate, signs);
}

#[test]
fn who_has_not_the_secret_gets_nothing_and_says_so() {
    let two = Two::new();
    let none = two.dirs[1].path().join("none");
    assert!(matches!(two.replica(&none), Err(SharedError::Ca(CaError::NoSecret(_)))));
    std::fs::write(&none, "00".repeat(32)).unwrap();
    assert!(matches!(two.replica(&none), Err(SharedError::Ca(CaError::Foreign(_)))));
    assert!(two.store.get("/ca/given/b").unwrap().is_none());
}

#[test]
fn two_meshes_are_not_mixed() {
    let (one, other) = (Two::new(), Two::new());
    let mixed = Shared::open(other.dirs[0].path(), None, one.store.clone(), "c", LIVES, NOW);
    assert!(matches!(mixed, Err(SharedError::Ca(CaError::Foreign(_) | CaError::OtherRoot(_)))));
    // The holder's data directory is lost: not silently another root.
    let empty = tempfile::tempdir().unwrap();
    let lost = Shared::open(empty.path(), Some(&one.secret()), one.store.clone(), "a", LIVES, NOW);
    assert!(matches!(lost, Err(SharedError::Ca(CaError::OtherRoot(_)))));
    assert!(!empty.path().join("authority.json").exists());
}
