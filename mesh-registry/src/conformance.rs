//! What every backend of [`Store`] must do, as one function that its tests call.
//!
//! Each check opens a new, empty store, which may begin at any revision and leave numbers out. Panics say which
//! promise was broken.
//! Not here: what only a durable store can do (survive a restart): the backend's own tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::store::{Change, MAX_COMPARE, MAX_TXN, MAX_VALUE, Store, StoreError, Txn};

/// Opens a new, empty store.
pub type Open<'a> = &'a dyn Fn() -> Box<dyn Store>;

/// Runs every check.
pub fn run(open: Open<'_>) {
    a_write_is_read_back(&*open());
    a_transaction_is_whole_or_nothing(&*open());
    a_large_transaction_is_one_revision(&*open());
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

fn now(store: &dyn Store) -> u64 {
    store.revision().expect("the revision")
}

fn a_write_is_read_back(store: &dyn Store) {
    assert!(!store.id().is_empty(), "a store has an id");
    let begin = now(store);
    assert_eq!(store.get("/a"), Ok(None));
    let first = put(store, "/a", "1");
    assert!(first > begin, "a write is a revision of its own");
    assert_eq!(now(store), first);
    let second = put(store, "/a", "2");
    assert!(second > first);
    let entry = store.get("/a").expect("get").expect("what was put");
    assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (b"2".as_slice(), first, second));
    let gone = store.transact(Txn::default().delete("/a")).expect("a delete");
    assert!(gone > second, "a removal is a revision of its own");
    assert_eq!(store.get("/a"), Ok(None));
    let again = put(store, "/a", "3");
    assert_eq!(
        store.get("/a").expect("get").map(|entry| entry.created),
        Some(again),
        "a new key, not the old"
    );
    assert_eq!(now(store), again);
}

fn a_transaction_is_whole_or_nothing(store: &dyn Store) {
    let first = put(store, "/a", "1");
    let txn = Txn::default().if_at("/a", first).if_at("/b", 7).put("/a", "2").put("/c", "2");
    let conflict = StoreError::Conflict { key: "/b".to_owned(), expected: 7, found: 0 };
    assert_eq!(store.transact(txn), Err(conflict));
    let late = Txn::default().put("/c", "2").put_leased("/d", "2", "nobody");
    assert_eq!(store.transact(late), Err(StoreError::NoLease { lease: "nobody".to_owned() }));
    assert_eq!((now(store), keys(store, "/", None)), (first, vec!["/a".to_owned()]));
    let both = Txn::default().if_at("/a", first).put("/a", "2").put("/b", "2").delete("/none");
    let second = store.transact(both).expect("what holds is done");
    let at = |key: &str| store.get(key).expect("get").map(|entry| entry.modified);
    assert_eq!((at("/a"), at("/b")), (Some(second), Some(second)), "one revision for all of it");
    assert_eq!((value(store, "/a"), value(store, "/b")), (Some("2".to_owned()), Some("2".to_owned())));
}

/// As many operations as a transaction may have: as large as a range, and as whole as a single one.
fn a_large_transaction_is_one_revision(store: &dyn Store) {
    let key = |i: usize| format!("/many/{i:05}");
    let all = (0..MAX_TXN - 1).fold(Txn::default(), |txn, i| txn.put(key(i), "x"));
    let revision = store.transact(all.if_at("/none", 0).delete("/none")).expect("the largest transaction");
    let range = store.range("/many/", None).expect("range");
    assert_eq!(range.entries.len(), MAX_TXN - 1);
    assert!(range.entries.iter().all(|entry| entry.modified == revision), "one revision");
    let gone = (0..MAX_TXN).fold(Txn::default(), |txn, i| txn.delete(key(i)));
    let removed = store.transact(gone).expect("as many removals");
    let changes = store.changes("/many/", revision, 1).expect("changes");
    assert_eq!((changes.upto, changes.changes.len()), (removed, MAX_TXN - 1), "whole");
}

fn comparisons_see_absence_and_revisions(store: &dyn Store) {
    let create = || Txn::default().if_at("/a", 0).put("/a", "x");
    let first = store.transact(create()).expect("absent at first");
    let there = StoreError::Conflict { key: "/a".to_owned(), expected: 0, found: first };
    assert_eq!(store.transact(create()), Err(there));
    let gone = store.transact(Txn::default().if_at("/a", first).delete("/a")).expect("a delete");
    assert!(gone > first);
    assert!(store.transact(create()).expect("absent again") > gone);
}

fn bounds_are_refused(store: &dyn Store) {
    let too_large = |txn: Txn| matches!(store.transact(txn), Err(StoreError::TooLarge { .. }));
    assert!(too_large(Txn::default().put("/a", vec![0; MAX_VALUE + 1])));
    assert!(too_large(Txn::default().put("/a", vec![0; MAX_VALUE]).put("/b", vec![0; MAX_VALUE])));
    assert!(too_large(Txn::default().put("", "x")));
    assert!(too_large((0..=MAX_COMPARE).fold(Txn::default(), |txn, i| txn.if_at(format!("/{i}"), 0))));
    let twice = Txn::default().put("/a", "1").delete("/a");
    assert_eq!(store.transact(twice), Err(StoreError::Twice { key: "/a".to_owned() }));
    let most = Txn::default().put("/a", vec![7; MAX_VALUE]);
    assert!(store.transact(most).is_ok(), "the largest value is taken");
    assert_eq!(store.get("/a").expect("get").map(|entry| entry.value.len()), Some(MAX_VALUE));
}

fn a_range_is_sorted_and_of_one_prefix(store: &dyn Store) {
    for key in ["/b/2", "/a", "/b/1", "/b", "/bb", "/b/\u{fff}"] {
        put(store, key, "x");
    }
    assert_eq!(keys(store, "/b/", None), ["/b/1", "/b/2", "/b/\u{fff}"]);
    assert_eq!(keys(store, "/c", None), [""; 0]);
    assert_eq!(keys(store, "", None).len(), 6);
    assert_eq!(store.range("/c", None).map(|range| range.revision), Ok(now(store)));
}

fn a_range_can_be_of_the_past(store: &dyn Store) {
    let begin = now(store);
    let (a1, b1, a2) = (put(store, "/a", "1"), put(store, "/b", "1"), put(store, "/a", "2"));
    let c1 = store.transact(Txn::default().delete("/a").put("/c", "1")).expect("transact");
    let a3 = put(store, "/a", "3");
    let at = |revision: u64| {
        let range = store.range("/", Some(revision)).expect("range of the past");
        assert_eq!(range.revision, revision);
        let text = |entry: &crate::store::Entry| {
            format!("{}={}@{}", entry.key, String::from_utf8_lossy(&entry.value), entry.created)
        };
        range.entries.iter().map(text).collect::<Vec<_>>().join(" ")
    };
    for (revision, want) in [
        (begin, String::new()),
        (a1, format!("/a=1@{a1}")),
        (b1, format!("/a=1@{a1} /b=1@{b1}")),
        (a2, format!("/a=2@{a1} /b=1@{b1}")),
        (c1, format!("/b=1@{b1} /c=1@{c1}")),
        (a3, format!("/a=3@{a3} /b=1@{b1} /c=1@{c1}")),
    ] {
        assert_eq!(at(revision), want, "at revision {revision}");
    }
    assert_eq!(store.range("/", Some(a3 + 1)), Err(StoreError::Future { asked: a3 + 1, newest: a3 }));
}

fn changes_come_in_order_and_whole(store: &dyn Store) {
    let begin = now(store);
    let first =
        store.transact(Txn::default().put("/a", "1").put("/b", "1").put("/x", "1")).expect("transact");
    let second = store.transact(Txn::default().delete("/a").put("/b", "2")).expect("transact");
    let third = put(store, "/x", "2");
    let told = |changes: &[Change]| {
        let number = |revision| match revision {
            _ if revision == first => 1,
            _ if revision == second => 2,
            _ if revision == third => 3,
            other => panic!("nothing was written at {other}"),
        };
        let one = |change: &Change| {
            let value = change.entry.as_ref().map_or("-".into(), |e| String::from_utf8_lossy(&e.value));
            format!("{}:{}={}", number(change.revision), change.key, value)
        };
        changes.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let all = store.changes("/", begin, 1000).expect("changes");
    let want = "1:/a=1 1:/b=1 1:/x=1 2:/a=- 2:/b=2 3:/x=2";
    assert_eq!((all.upto, told(&all.changes).as_str()), (third, want));
    let one = store.changes("/", begin, 1).expect("changes");
    assert!((first..second).contains(&one.upto));
    assert_eq!(one.changes.len(), 3, "a revision is never cut");
    let next = store.changes("/", one.upto, 1).expect("changes");
    assert!((second..third).contains(&next.upto));
    assert_eq!(told(&next.changes), "2:/a=- 2:/b=2");
    let other = store.changes("/x", first, 1000).expect("changes");
    assert_eq!((other.upto, told(&other.changes).as_str()), (third, "3:/x=2"), "of one prefix");
    let none = store.changes("/", third, 1000).expect("changes");
    assert_eq!((none.upto, none.changes.len()), (third, 0));
    let future = StoreError::Future { asked: third + 1, newest: third };
    assert_eq!(store.changes("/", third + 1, 1), Err(future));
}

fn what_changes_nothing_is_no_revision(store: &dyn Store) {
    let first = put(store, "/a", "1");
    assert_eq!(store.transact(Txn::default()), Ok(first));
    assert_eq!(store.transact(Txn::default().delete("/none").revoke("none")), Ok(first));
    // A lease alone may leave a number out, and changes no key.
    let granted = store.transact(Txn::default().grant("l", Duration::from_secs(1))).expect("a grant");
    assert_eq!(store.changes("/", first, 10).map(|changes| changes.changes), Ok(Vec::new()));
    assert_eq!(store.transact(Txn::default().grant("l", Duration::from_secs(1))), Ok(granted));
    assert!(put(store, "/a", "1") > granted, "a write is one even of the same value");
}

fn compacted_history_is_an_error(store: &dyn Store) {
    let at: Vec<u64> = (0..10).map(|i| put(store, "/a", &i.to_string())).collect();
    store.compact(at[5]).expect("compact");
    let gone = StoreError::Compacted { asked: at[4], oldest: at[5] };
    assert_eq!(store.changes("/", at[4], 10), Err(gone.clone()));
    assert_eq!(store.range("/", Some(at[4])), Err(gone));
    assert_eq!(store.changes("/", at[5], 10).map(|changes| changes.changes.len()), Ok(4));
    let past = store.range("/", Some(at[5])).expect("the oldest that is left");
    assert_eq!(past.entries[0].value, b"5");
    assert_eq!(value(store, "/a").as_deref(), Some("9"), "the present stays");
    store.compact(at[2]).expect("compacting less is nothing");
    assert_eq!(store.compact(at[9] + 1), Err(StoreError::Future { asked: at[9] + 1, newest: at[9] }));
}

fn leases_take_their_keys_with_them(store: &dyn Store) {
    let ttl = Duration::from_millis(30_500);
    let txn = Txn::default().grant("n1", ttl).put_leased("/w/a", "1", "n1").put_leased("/w/b", "1", "n1");
    store.transact(txn).expect("a lease and its keys");
    put(store, "/w/c", "1");
    let leases = store.leases().expect("leases");
    assert_eq!((leases.len(), leases[0].lease.as_str(), leases[0].ttl), (1, "n1", ttl));
    assert_eq!(leases[0].keys, ["/w/a", "/w/b"]);
    // Written without the lease, a key no longer goes with it.
    let last = put(store, "/w/b", "2");
    assert_eq!(store.leases().expect("leases")[0].keys, ["/w/a"]);
    let more =
        store.transact(Txn::default().put_leased("/w/e", "1", "n1")).expect("of a lease that is there");
    let ended = store.transact(Txn::default().revoke("n1")).expect("a revocation");
    assert!(ended > more && more > last);
    assert_eq!(keys(store, "/w/", None), ["/w/b", "/w/c"]);
    assert_eq!(store.leases(), Ok(Vec::new()));
    let removed = store.changes("/", more, 10).expect("changes").changes;
    let all_gone = removed.iter().all(|change| change.entry.is_none() && change.revision == ended);
    assert!(removed.len() == 2 && all_gone, "the removal is a change: {removed:?}");
    let late = Txn::default().put_leased("/w/d", "1", "n1");
    assert_eq!(store.transact(late), Err(StoreError::NoLease { lease: "n1".to_owned() }));
    // And in one step with a new life of it.
    let again = Txn::default().revoke("n1").grant("n1", ttl).put_leased("/w/d", "1", "n1");
    store.transact(again).expect("granted in the same transaction");
    assert_eq!(store.leases().expect("leases")[0].keys, ["/w/d"]);
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
    assert_eq!(count().1, WRITERS * EACH, "no increment was lost, none was done twice");
}
