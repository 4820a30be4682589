//! Leases: restarted, renewed, held, and withdrawn with a node's session.

use super::*;
use mesh_api::resource::Kind;

const TTL: Duration = Duration::from_secs(30);

fn key(name: &str) -> Key {
    Key::new(Kind::Workload, "shop", name)
}

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

/// `nodes` leases of `each` registrations.
fn leases(now: Instant, nodes: usize, each: usize) -> Leases {
    let mut leases = Leases::default();
    for node in 0..nodes {
        for i in 0..each {
            leases.join(&LeaseRef::of_node(&format!("n{node}"), TTL), &key(&format!("w{node}-{i}")), now);
        }
    }
    leases
}

#[test]
fn a_lease_ends_unless_it_is_renewed() {
    let now = Instant::now();
    let mut leases = leases(now, 2, 1);
    assert_eq!(leases.heartbeat("node:n0", at(now, 20)), Some(Vec::new()));
    assert_eq!(leases.expire(at(now, 29)), Expiry::default());
    assert_eq!(leases.expire(at(now, 30)).due, ["node:n1"]);
    assert_eq!(leases.next_deadline(), Some(at(now, 30)));
    leases.leave("node:n1", &key("w1-0"));
    assert_eq!(leases.expire(at(now, 40)).due, Vec::<String>::new());
    assert_eq!(leases.heartbeat("node:n1", at(now, 40)), None, "an ended lease is unknown");
}

#[test]
fn when_too_many_would_end_at_once_none_does() {
    let now = Instant::now();
    let mut leases = leases(now, 10, 4);
    let all = leases.expire(at(now, 60));
    assert_eq!((all.due.len(), all.held), (0, Some(Held { due: 40, total: 40 })));
    let said = all.held.map(|held| held.condition().message).unwrap_or_default();
    assert!(said.contains("40 of 40"), "{said}");
    // The others come back: one of ten nodes is 10 %.
    for node in 1..10 {
        leases.heartbeat(&format!("node:n{node}"), at(now, 61));
    }
    assert_eq!(leases.expire(at(now, 62)), Expiry { due: vec!["node:n0".to_owned()], held: None });
    // Two of ten are 20 %.
    for node in 2..10 {
        leases.heartbeat(&format!("node:n{node}"), at(now, 90));
    }
    assert_eq!(leases.expire(at(now, 92)).held, Some(Held { due: 8, total: 40 }));
}

#[test]
fn a_few_may_always_end() {
    let now = Instant::now();
    assert_eq!(leases(now, 3, 1).expire(at(now, 60)).due.len(), 3);
    assert!(leases(now, 4, 1).expire(at(now, 60)).held.is_some());
}

#[test]
fn a_restart_restarts_every_lease() {
    let now = Instant::now();
    let mut leases = leases(now, 2, 1);
    leases.restart(at(now, 300));
    assert_eq!(leases.expire(at(now, 329)), Expiry::default());
    assert_eq!(leases.expire(at(now, 330)).due.len(), 2);
}

#[test]
fn what_a_session_does_not_repeat_is_withdrawn_at_its_first_heartbeat() {
    let now = Instant::now();
    let mut leases = leases(now, 1, 3);
    let lease = LeaseRef::of_node("n0", TTL);
    leases.hello(&lease, at(now, 10));
    leases.confirm(&lease.name, &key("w0-0"));
    leases.join(&lease, &key("w0-1"), at(now, 11));
    leases.join(&lease, &key("w0-9"), at(now, 11));
    assert_eq!(leases.heartbeat(&lease.name, at(now, 12)), Some(vec![key("w0-2")]));
    assert_eq!(leases.heartbeat(&lease.name, at(now, 22)), Some(Vec::new()), "once a session");
    assert_eq!(leases.expire(at(now, 51)), Expiry::default(), "the last heartbeat counts");
}

#[test]
fn a_session_that_registers_nothing_leaves_nothing() {
    let now = Instant::now();
    let mut leases = Leases::default();
    let lease = LeaseRef::of_node("n0", TTL);
    leases.hello(&lease, now);
    assert_eq!(leases.heartbeat(&lease.name, now), Some(Vec::new()));
    assert_eq!(leases.iter().count(), 0);
}

#[test]
fn what_another_replica_hears_is_held_and_not_said_to_be_heard_here() {
    let now = Instant::now();
    let mut leases = leases(now, 2, 1);
    assert!(leases.heard(now).is_empty(), "known from the store alone");
    leases.heartbeat("node:n0", at(now, 10));
    leases.hold([&"node:n1".to_owned(), &"node:none".to_owned()], at(now, 25));
    assert_eq!(leases.heard(at(now, 39)), ["node:n0".to_owned()].into());
    assert!(leases.heard(at(now, 40)).is_empty());
    assert_eq!(leases.expire(at(now, 54)).due, ["node:n0"]);
    assert_eq!(leases.next_deadline(), Some(at(now, 40)));
    assert_eq!(leases.expire(at(now, 55)).due.len(), 2, "its whole time after it was heard of elsewhere");
}
