//! Who is refused, and under which name.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::authorise::{Action, Policy, PolicySet, Rule, Terms};
use mesh_core::error::ProxyError;
use mesh_core::snapshot::Snapshot;
use mesh_identity::maker::{Authority, Leaf};

use super::super::super::Limits;
use super::super::super::tests::rig::CALLER;
use super::super::stats::Role;
use super::rig::*;

/// Both ends of a handshake that must fail: the caller's error, then what each end counts.
#[track_caller]
fn check(
    change: impl FnOnce(&FakeKeys, &FakeKeys, &Authority),
    want: ProxyError,
    (outcome, by): (&'static str, &'static str),
    theirs: (&'static str, &'static str),
) {
    let root = authority();
    let called = Called::new(&root, Limits::default(), |_| {});
    let keys = FakeKeys::new(&root, PAY);
    change(&keys, &called.keys, &root);
    Caller::run(keys, Limits::default(), async |caller| {
        let opened = caller.open(called.via(called.application.port())).await;
        assert_eq!(opened.err(), Some(want));
        assert_eq!(caller.counts().handshakes, [(Role::Client, outcome, by, 1)]);
    });
    called
        .eventually("named there too", |counts| counts.handshakes == [(Role::Server, theirs.0, theirs.1, 1)]);
    assert_eq!(called.proxy.tunnels().tunnels, [0, 0]);
}

#[test]
fn a_caller_who_is_not_believed() {
    let now = SystemTime::now();
    let other = Authority::new("other", now);
    let refused = ProxyError::TlsRefusedByPeer;
    check(
        |ours, _, _| ours.show(&other, &Leaf::of(PAY, now)),
        refused,
        ("unknown_ca", "peer"),
        ("unknown_ca", "us"),
    );
    let mut old = Leaf::of(PAY, now);
    old.valid.1 = now - Duration::from_mins(1);
    check(|ours, _, root| ours.show(root, &old), refused, ("expired", "peer"), ("expired", "us"));
    let foreign = Leaf::of("spiffe://elsewhere/ns/default/sa/pay", now);
    check(
        |ours, _, root| ours.show_as(PAY, root, &foreign),
        refused,
        ("wrong_identity", "peer"),
        ("wrong_trust_domain", "us"),
    );
    let mut two = Leaf::of(PAY, now);
    two.uris.push(CART.to_owned());
    check(
        |ours, _, root| ours.show(root, &two),
        refused,
        ("wrong_identity", "peer"),
        ("two_identities", "us"),
    );
    let mut ca = Leaf::of(PAY, now);
    ca.ca = true;
    check(|ours, _, root| ours.show(root, &ca), refused, ("wrong_identity", "peer"), ("is_ca", "us"));
    let mut revoked = Leaf::of(PAY, now);
    revoked.serial = 9;
    check(
        |ours, theirs, root| {
            ours.show(root, &revoked);
            let mut bundle = root.bundle("mesh.local");
            bundle.revoked.push(root.revoke(&[9], now));
            *theirs.bundle.lock() = Some(Arc::new(bundle));
        },
        refused,
        ("revoked", "peer"),
        ("revoked", "us"),
    );
}

#[test]
fn a_place_that_is_not_believed() {
    let now = SystemTime::now();
    let other = Authority::new("other", now);
    check(
        |_, theirs, root| theirs.show_as(CART, root, &Leaf::of(PAY, now)),
        ProxyError::TlsWrongIdentity,
        ("wrong_identity", "us"),
        ("wrong_identity", "peer"),
    );
    check(
        |_, theirs, _| theirs.show(&other, &Leaf::of(CART, now)),
        ProxyError::TlsPeerUntrusted,
        ("unknown_ca", "us"),
        ("unknown_ca", "peer"),
    );
}

#[test]
fn who_has_no_certificate_does_not_call() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), |_| {});
    let keys = FakeKeys::new(&root, PAY);
    keys.svids.lock().clear();
    let limits = Limits { tunnel: Duration::from_millis(200), ..Limits::default() };
    Caller::run(keys, limits, async |caller| {
        let opened = caller.open(called.via(called.application.port())).await;
        assert_eq!(opened.err(), Some(ProxyError::NoCertificate));
        assert_eq!(caller.counts().handshakes, [(Role::Client, "no_certificate", "", 1)]);
    });
}

#[test]
fn a_certificate_that_is_on_its_way_is_waited_for() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), each(drop));
    let keys = FakeKeys::new(&root, PAY);
    let late = std::mem::take(&mut *keys.svids.lock());
    Caller::run(keys.clone(), Limits::default(), async move |caller| {
        let signed = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            *keys.svids.lock() = late;
        };
        let (opened, ()) = tokio::join!(caller.open(called.via(called.application.port())), signed);
        assert!(opened.is_ok(), "{:?}", opened.err());
    });
}

#[test]
fn a_place_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let root = authority();
    let limits = Limits { tunnel: Duration::from_millis(200), ..Limits::default() };
    let called = Called::new(&root, limits.clone(), |_| {});
    let mut via = called.via(1);
    via.address = silent.local_addr().unwrap();
    Caller::run(FakeKeys::new(&root, PAY), limits, async |caller| {
        let begun = Instant::now();
        assert_eq!(caller.open(via).await.err(), Some(ProxyError::TunnelTimeout));
        assert!(begun.elapsed() < Duration::from_secs(3));
        assert_eq!(caller.counts().handshakes, [(Role::Client, "timeout", "", 1)]);
    });
    // And the same for who calls and says nothing.
    let _mute = std::net::TcpStream::connect((called.ip, 15_008)).unwrap();
    called.eventually("given up", |counts| counts.handshakes == [(Role::Server, "timeout", "", 1)]);
}

#[test]
fn a_connect_that_is_not_for_the_workload() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), |_| {});
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut foreign = called.via(80);
        foreign.authority = "127.0.0.1:80".parse().unwrap();
        for via in [foreign, called.via(15_008), called.via(15_001), called.via(called.application.port())] {
            assert_eq!(caller.open(via).await.err(), Some(ProxyError::TunnelRefused));
        }
        assert_eq!(caller.counts().tunnels, [1, 0], "the tunnel stays");
    });
    let refused = [("foreign_address", 1), ("reserved_port", 2), ("unreachable", 1)];
    assert_eq!(called.proxy.tunnels().refused, refused);
}

#[test]
fn policies_ask_who_the_certificate_proves() {
    let root = authority();
    let called = Called::new(
        &root,
        Limits::default(),
        each(|mut socket| drop(std::io::Read::read(&mut socket, &mut [0]))),
    );
    let set = |called: &Called, deny: bool| {
        let mut next = Snapshot::clone(&called.snapshot.load());
        let mut own = next.workloads.get(&CALLER).unwrap().as_ref().clone();
        own.policy_set = 4;
        // The caller's identity, as one of the mesh.
        let mut pay = own.clone();
        (pay.id, pay.identity, pay.mesh_ns) = (8, 30, 2);
        pay.service_account = "pay".into();
        next.workloads.insert(CALLER, Arc::new(own));
        next.workloads.insert(8, Arc::new(pay));
        let identities = [mesh_common::policy::Caller { identity: 30, namespace: 2 }].into();
        let terms = Terms { identities, ..Terms::default() };
        let rule = Rule { from: [terms].into(), ..Rule::default() };
        let action = if deny { Action::Deny } else { Action::Allow };
        let policy = Policy { name: "default/p".into(), action, rules: [rule].into() };
        next.policies.insert(4, Arc::new(PolicySet::new([Arc::new(policy)].into())));
        next.epoch += 1;
        called.snapshot.store(Arc::new(next));
    };
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        set(&called, false);
        let mut open = caller.open(called.via(called.application.port())).await.unwrap();
        set(&called, true);
        // What was open under the old policy ends, and its tunnel stays.
        assert_eq!(rest(&mut open).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(caller.counts().tunnels, [1, 0]);
        let denied = caller.open(called.via(called.application.port())).await;
        assert_eq!(denied.err(), Some(ProxyError::DeniedByPolicy));
    });
    assert_eq!(called.proxy.tunnels().refused, [("denied_by_policy", 1)]);
}
