//! The store in a real etcd (Debian's `etcd-server`): the conformance suite, two replicas on one store, and etcd going away.

mod server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_control::store::{EtcdOptions, EtcdStore};
use mesh_registry::conformance;
use mesh_registry::store::{Store, StoreError, Txn};
use server::Etcd;

const PATIENCE: Duration = Duration::from_secs(20);

fn open(etcd: &Etcd, prefix: &str, name: &str) -> EtcdStore {
    let options = EtcdOptions { endpoints: etcd.urls(), prefix: prefix.to_owned(), ..EtcdOptions::default() };
    EtcdStore::open(&options, name).unwrap()
}

#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_conforms() {
    let etcd = Etcd::start(1);
    let number = std::sync::atomic::AtomicUsize::new(0);
    conformance::run(&|| {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::new(open(&etcd, &format!("/conformance/{number}"), "a"))
    });
}

#[test]
fn two_replicas_see_one_store_and_one_of_them_leads() {
    let etcd = Etcd::start(1);
    let (a, b) = (open(&etcd, "/mesh", "a"), open(&etcd, "/mesh", "b"));
    assert_eq!(a.id(), b.id());
    let lease = Duration::from_secs(30);
    let first = a.transact(Txn::default().grant("n", lease).put_leased("/w/a", "1", "n")).unwrap();
    eventually("the other has it", || b.revision().unwrap() >= first);
    assert_eq!(a.revision(), b.revision(), "one number");
    // One revokes while the other registers: nothing is left under a lease that is gone.
    for turn in 0..50 {
        std::thread::scope(|scope| {
            scope.spawn(|| b.transact(Txn::default().revoke("n")).unwrap());
            let put = Txn::default().grant("n", lease).put_leased(format!("/w/{turn}"), "1", "n");
            scope.spawn(|| a.transact(put).unwrap());
        });
        let newest = a.revision().unwrap().max(b.revision().unwrap());
        eventually("both have it", || [&a, &b].iter().all(|store| store.revision().unwrap() >= newest));
        let keys: usize = a.leases().unwrap().iter().map(|lease| lease.keys.len()).sum();
        assert_eq!(a.range("/w/", None).unwrap().entries.len(), keys, "turn {turn}");
    }
    assert_eq!(a.range("/", None), b.range("/", None));

    let now = Instant::now;
    eventually("one leads", || a.replicas().leads(now()) || b.replicas().leads(now()));
    let (leader, other) = if a.replicas().leads(now()) { (a, b) } else { (b, a) };
    assert!(!other.replicas().leads(now()));
    eventually("they know of each other", || other.replicas().list().len() == 2);
    leader.replicas().hears(["node:n1".to_owned()].into());
    let heard = || other.replicas().heard_elsewhere();
    eventually("what one hears the other knows", || heard().contains_key("node:n1"));
    drop(leader);
    eventually("the other leads", || other.replicas().leads(now()));
    eventually("what it heard is gone with it", || heard().is_empty() && other.replicas().list().len() == 1);
}

#[test]
fn who_starts_while_others_write_misses_nothing() {
    let etcd = Etcd::start(1);
    let a = open(&etcd, "/mesh", "a");
    // Several pages of them.
    for i in 0..3000 / 60 {
        let some = (0..60).fold(Txn::default(), |txn, j| txn.put(format!("/many/{i}-{j}"), "x"));
        a.transact(some).unwrap();
    }
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for i in 0.. {
                if ended.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                a.transact(Txn::default().put(format!("/few/{}", i % 500), i.to_string())).unwrap();
            }
        });
        let late: Vec<_> = ["b", "c", "d", "e"].into_iter().map(|name| open(&etcd, "/mesh", name)).collect();
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
        for store in late {
            eventually("it has caught up", || store.revision() == a.revision());
            assert_eq!(store.range("/", None), a.range("/", None));
        }
    });
}

#[test]
fn without_quorum_it_reads_and_says_why_it_does_not_write() {
    let mut etcd = Etcd::start(3);
    let store = Arc::new(open(&etcd, "/mesh", "a"));
    store.transact(Txn::default().put("/a", "1")).unwrap();
    // One of three: no write is lost, and hardly one fails.
    etcd.kill(0);
    let mut acknowledged = 0;
    eventually("writes go on", || {
        acknowledged += u64::from(store.transact(Txn::default().put("/a", "2")).is_ok());
        acknowledged == 20
    });
    etcd.kill(1);
    let begun = Instant::now();
    let refused = store.transact(Txn::default().put("/a", "3")).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(matches!(&refused, StoreError::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains("most of etcd's members"), "{refused}");
    assert!(store.trouble().is_some());
    assert_eq!(store.get("/a").unwrap().unwrap().value, b"2", "read from memory");
    etcd.restart(1);
    eventually("it writes again", || store.transact(Txn::default().put("/a", "4")).is_ok());
    eventually("and says so", || store.trouble().is_none());
    assert_eq!(store.get("/a").unwrap().unwrap().value, b"4");
}

#[test]
fn history_that_etcd_forgot_is_read_anew() {
    let mut etcd = Etcd::start(1);
    let store = open(&etcd, "/mesh", "a");
    let begin = store.transact(Txn::default().put("/a", "1")).unwrap();
    etcd.stop_for_a_while(|etcd| {
        let other = open(etcd, "/mesh", "b");
        for i in 0..5 {
            other.transact(Txn::default().put("/a", i.to_string())).unwrap();
        }
        etcd.forget(other.revision().unwrap());
    });
    eventually("it has caught up", || store.get("/a").unwrap().is_some_and(|entry| entry.value == b"4"));
    match store.changes("/", begin, 100) {
        Ok(changes) => assert_eq!(changes.changes.len(), 5, "each of them"),
        Err(error) => assert!(matches!(error, StoreError::Compacted { .. }), "{error}"),
    }
}

#[test]
fn an_etcd_that_is_not_there_is_one_sentence() {
    let options = EtcdOptions {
        endpoints: vec!["http://127.0.0.1:1".to_owned()],
        prefix: "/mesh".to_owned(),
        ..EtcdOptions::default()
    };
    let begun = Instant::now();
    let Err(error) = EtcdStore::open(&options, "a") else { panic!("opened") };
    assert!(error.to_string().contains("--etcd-endpoints"), "{error}");
    assert!(begun.elapsed() < PATIENCE);
    for (endpoint, why) in
        [("https://127.0.0.1:1", "--etcd-ca"), ("localhost:2379", "not a URL"), ("", "--etcd")]
    {
        let endpoints = if endpoint.is_empty() { Vec::new() } else { vec![endpoint.to_owned()] };
        let Err(error) = EtcdStore::open(&EtcdOptions { endpoints, ..options.clone() }, "a") else {
            panic!("opened")
        };
        assert!(error.to_string().contains(why), "{error}");
    }
}
