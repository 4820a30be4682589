//! What every backend of [`Store`] must do, as one function that its tests call.
//!
//! Each check opens a new, empty store. Panics say which promise was broken.
//! Not here: what only a durable store can do (survive a restart): the backend's own tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::store::{Change, MAX_VALUE, Store, StoreError, Txn};

/// Opens a new, empty store.
pub type Open<'a> = &'a dyn Fn() -> Box<dyn Store>;

/// Runs every check.
pub fn run(open: Open<'_>) {
    a_write_is_read_back(&*open());
    a_transaction_is_whole_or_nothing(&*open());
    comparisons_see_absence_and_revisions(&*open());
    bounds_are_refused(&*open());
    a_range_is_sorted_and_of_one_prefix(&*open());
    a_range_can_be_of_the_past(&*open());
    changes_come_in_order_and_whole(&*open());
    what_changes_nothing_is_no_revision(&*open());
    compacted_history_is_an_error(&*open());
    leases_take_their_keys_with_them(&*open());
    hooks_learn_of_every_revision(&*open());
    one_of_many_racing_writers_wins(&*open());
}

fn put(store: &dyn Store, key: &str, value: &str) -> u64 {
    store.transact(Txn::default().put(key, value)).expect("a plain put")
}

fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = store.get(key).expect("get")?;
    Some(String::from_utf8(entry.value).expect("what was put is text"))
}

fn keys(store: &dyn Store, prefix: &str, at: Option<u64>) -> Vec<String> {
    store.range(prefix, at).expect("range").entries.into_iter().map(|entry| entry.key).collect()
}

fn a_write_is_read_back(store: &dyn Store) {
    assert!(!store.id().is_empty(), "a store has an id");
    assert_eq!(store.revision(), Ok(0), "an empty store is at revision 0");
    assert_eq!(store.get("/a"), Ok(None));
    assert_eq!(put(store, "/a", "1"), 1);
    assert_eq!(put(store, "/a", "2"), 2);
    let entry = store.get("/a").expect("get").expect("what was put");
    assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (b"2".as_slice(), 1, 2));
    assert_eq!(store.transact(Txn::default().delete("/a")), Ok(3));
    assert_eq!(store.get("/a"), Ok(None));
    assert_eq!(put(store, "/a", "3"), 4);
    assert_eq!(store.get("/a").expect("get").map(|entry| entry.created), Some(4), "a new key, not the old");
    assert_eq!(store.revision(), Ok(4));
}

fn a_transaction_is_whole_or_nothing(store: &dyn Store) {
    put(store, "/a", "1");
    let txn = Txn::default().if_at("/a", 1).if_at("/b", 7).put("/a", "2").put("/c", "2");
    let conflict = StoreError::Conflict { key: "/b".to_owned(), expected: 7, found: 0 };
    assert_eq!(store.transact(txn), Err(conflict));
    let late = Txn::default().put("/c", "2").put_leased("/d", "2", "nobody");
    assert_eq!(store.transact(late), Err(StoreError::NoLease { lease: "nobody".to_owned() }));
    assert_eq!((store.revision(), keys(store, "/", None)), (Ok(1), vec!["/a".to_owned()]));
    let both = Txn::default().if_at("/a", 1).put("/a", "2").put("/b", "2").delete("/none");
    assert_eq!(store.transact(both), Ok(2), "one revision for all of it");
    assert_eq!((value(store, "/a"), value(store, "/b")), (Some("2".to_owned()), Some("2".to_owned())));
}

fn comparisons_see_absence_and_revisions(store: &dyn Store) {
    let create = || Txn::default().if_at("/a", 0).put("/a", "x");
    assert_eq!(store.transact(create()), Ok(1));
    let there = StoreError::Conflict { key: "/a".to_owned(), expected: 0, found: 1 };
    assert_eq!(store.transact(create()), Err(there));
    assert_eq!(store.transact(Txn::default().if_at("/a", 1).delete("/a")), Ok(2));
    assert_eq!(store.transact(create()), Ok(3), "absent again");
}

fn bounds_are_refused(store: &dyn Store) {
    let large = Txn::default().put("/a", vec![0; MAX_VALUE + 1]);
    assert!(matches!(store.transact(large), Err(StoreError::TooLarge { .. })));
    assert!(matches!(store.transact(Txn::default().put("", "x")), Err(StoreError::TooLarge { .. })));
    let twice = Txn::default().put("/a", "1").delete("/a");
    assert_eq!(store.transact(twice), Err(StoreError::Twice { key: "/a".to_owned() }));
    let most = Txn::default().put("/a", vec![7; MAX_VALUE]);
    assert_eq!(store.transact(most), Ok(1), "the largest value is taken");
    assert_eq!(store.get("/a").expect("get").map(|entry| entry.value.len()), Some(MAX_VALUE));
}

fn a_range_is_sorted_and_of_one_prefix(store: &dyn Store) {
    for key in ["/b/2", "/a", "/b/1", "/b", "/bb", "/b/\u{fff}"] {
        put(store, key, "x");
    }
    assert_eq!(keys(store, "/b/", None), ["/b/1", "/b/2", "/b/\u{fff}"]);
    assert_eq!(keys(store, "/c", None), [""; 0]);
    assert_eq!(keys(store, "", None).len(), 6);
    assert_eq!(store.range("/c", None).map(|range| range.revision), Ok(6));
}

fn a_range_can_be_of_the_past(store: &dyn Store) {
    put(store, "/a", "1");
    put(store, "/b", "1");
    put(store, "/a", "2");
    store.transact(Txn::default().delete("/a").put("/c", "1")).expect("transact");
    put(store, "/a", "3");
    let at = |revision: u64| {
        let range = store.range("/", Some(revision)).expect("range of the past");
        assert_eq!(range.revision, revision);
        let text = |entry: &crate::store::Entry| {
            format!("{}={}@{}", entry.key, String::from_utf8_lossy(&entry.value), entry.created)
        };
        range.entries.iter().map(text).collect::<Vec<_>>().join(" ")
    };
    let want = ["", "/a=1@1", "/a=1@1 /b=1@2", "/a=2@1 /b=1@2", "/b=1@2 /c=1@4", "/a=3@5 /b=1@2 /c=1@4"];
    for (revision, want) in want.iter().enumerate() {
        assert_eq!(at(revision as u64), *want, "at revision {revision}");
    }
    assert_eq!(store.range("/", Some(6)), Err(StoreError::Future { asked: 6, newest: 5 }));
}

fn changes_come_in_order_and_whole(store: &dyn Store) {
    store.transact(Txn::default().put("/a", "1").put("/b", "1").put("/x", "1")).expect("transact");
    store.transact(Txn::default().delete("/a").put("/b", "2")).expect("transact");
    put(store, "/x", "2");
    let told = |changes: &[Change]| {
        let one = |change: &Change| {
            let value = change.entry.as_ref().map_or("-".into(), |e| String::from_utf8_lossy(&e.value));
            format!("{}:{}={}", change.revision, change.key, value)
        };
        changes.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let all = store.changes("/", 0, 1000).expect("changes");
    assert_eq!((all.upto, told(&all.changes).as_str()), (3, "1:/a=1 1:/b=1 1:/x=1 2:/a=- 2:/b=2 3:/x=2"));
    let first = store.changes("/", 0, 1).expect("changes");
    assert_eq!((first.upto, first.changes.len()), (1, 3), "a revision is never cut");
    let next = store.changes("/", first.upto, 1).expect("changes");
    assert_eq!((next.upto, told(&next.changes).as_str()), (2, "2:/a=- 2:/b=2"));
    let other = store.changes("/x", 1, 1000).expect("changes");
    assert_eq!((other.upto, told(&other.changes).as_str()), (3, "3:/x=2"), "of one prefix");
    let none = store.changes("/", 3, 1000).expect("changes");
    assert_eq!((none.upto, none.changes.len()), (3, 0));
    assert_eq!(store.changes("/", 4, 1), Err(StoreError::Future { asked: 4, newest: 3 }));
}

fn what_changes_nothing_is_no_revision(store: &dyn Store) {
    put(store, "/a", "1");
    assert_eq!(store.transact(Txn::default()), Ok(1));
    assert_eq!(store.transact(Txn::default().delete("/none").revoke("none")), Ok(1));
    assert_eq!(store.transact(Txn::default().grant("l", Duration::from_secs(1))), Ok(1));
    assert_eq!(put(store, "/a", "1"), 2, "a write is one even of the same value");
}

fn compacted_history_is_an_error(store: &dyn Store) {
    for i in 0..10 {
        put(store, "/a", &i.to_string());
    }
    store.compact(6).expect("compact");
    let gone = StoreError::Compacted { asked: 5, oldest: 6 };
    assert_eq!(store.changes("/", 5, 10), Err(gone.clone()));
    assert_eq!(store.range("/", Some(5)), Err(gone));
    assert_eq!(store.changes("/", 6, 10).map(|changes| changes.changes.len()), Ok(4));
    let past = store.range("/", Some(6)).expect("the oldest that is left");
    assert_eq!(past.entries[0].value, b"5");
    assert_eq!(value(store, "/a").as_deref(), Some("9"), "the present stays");
    store.compact(3).expect("compacting less is nothing");
    assert_eq!(store.compact(11), Err(StoreError::Future { asked: 11, newest: 10 }));
}

fn leases_take_their_keys_with_them(store: &dyn Store) {
    let ttl = Duration::from_millis(30_500);
    let txn = Txn::default().grant("n1", ttl).put_leased("/w/a", "1", "n1").put_leased("/w/b", "1", "n1");
    assert_eq!(store.transact(txn), Ok(1));
    put(store, "/w/c", "1");
    let leases = store.leases().expect("leases");
    assert_eq!((leases.len(), leases[0].lease.as_str(), leases[0].ttl), (1, "n1", ttl));
    assert_eq!(leases[0].keys, ["/w/a", "/w/b"]);
    // Written without the lease, a key no longer goes with it.
    put(store, "/w/b", "2");
    assert_eq!(store.leases().expect("leases")[0].keys, ["/w/a"]);
    assert_eq!(store.transact(Txn::default().revoke("n1")), Ok(4));
    assert_eq!(keys(store, "/w/", None), ["/w/b", "/w/c"]);
    assert_eq!(store.leases(), Ok(Vec::new()));
    let removed = store.changes("/", 3, 10).expect("changes").changes;
    assert!(removed.len() == 1 && removed[0].entry.is_none(), "the removal is a change: {removed:?}");
    let late = Txn::default().put_leased("/w/d", "1", "n1");
    assert_eq!(store.transact(late), Err(StoreError::NoLease { lease: "n1".to_owned() }));
}

fn hooks_learn_of_every_revision(store: &dyn Store) {
    let seen = Arc::new(AtomicU64::new(0));
    let hook = Arc::clone(&seen);
    store.on_commit(Box::new(move |revision| {
        hook.fetch_max(revision, Ordering::SeqCst);
    }));
    let revision = put(store, "/a", "1");
    // The hook runs before the writer is told, so that whoever reads after a write has been woken.
    assert_eq!(seen.load(Ordering::SeqCst), revision);
}

fn one_of_many_racing_writers_wins(store: &dyn Store) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 20;
    let count = || {
        let found = store.get("/n").expect("get");
        let number = |text: Vec<u8>| String::from_utf8(text).expect("text").parse::<u64>().expect("number");
        found.map_or((0, 0), |entry| (entry.modified, number(entry.value)))
    };
    let add_one = || {
        loop {
            let (modified, n) = count();
            match store.transact(Txn::default().if_at("/n", modified).put("/n", (n + 1).to_string())) {
                Ok(_) => return,
                Err(StoreError::Conflict { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| (0..EACH).for_each(|_| add_one()));
        }
    });
    assert_eq!(count(), (WRITERS * EACH, WRITERS * EACH), "no increment was lost, none was done twice");
}
