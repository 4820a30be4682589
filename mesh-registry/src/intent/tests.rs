//! Writes of objects and registrations: addresses, owners, races, and what costs no write.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::memory::MemoryStore;

fn uid() -> String {
    "uid-1".to_owned()
}

fn author(owner: Owner) -> Author<'static> {
    let by = By { id: "t1".to_owned(), name: "ann".to_owned() };
    Author { owner, by, dry_run: false, now_ms: 1_700_000_000_000, new_uid: &uid }
}

fn service(name: &str, spec: &Value) -> Resource {
    let value =
        json!({"apiVersion": "nodemesh.io/v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    Resource::parse(&value).expect("a service of the test")
}

fn plain(name: &str) -> Resource {
    service(name, &json!({"ports": [{"port": 80}]}))
}

fn workload(name: &str) -> Resource {
    let value = json!({
        "apiVersion": "nodemesh.io/v1", "kind": "Workload", "metadata": {"name": name},
        "spec": {"addresses": ["10.1.0.1"]},
    });
    Resource::parse(&value).expect("a workload of the test")
}

fn refused(result: Result<Written, WriteError>) -> ApiError {
    match result {
        Err(WriteError::Refused(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_service_is_given_addresses_and_keeps_them() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let rest = author(Owner::rest());
    let first = intents.put(&rest, &plain("web"), None).expect("written");
    assert!(first.created && first.revision == 1);
    let vips = first.resource.status.vips.clone();
    assert!(matches!(vips[..], [IpAddr::V4(_), IpAddr::V6(_)]), "{vips:?}");
    assert_eq!(first.resource.metadata.uid.as_deref(), Some("uid-1"));

    let again = intents.put(&rest, &plain("web"), None).expect("unchanged");
    assert_eq!((again.created, again.revision), (false, 1), "no write");
    let changed = service("web", &json!({"ports": [{"port": 81}]}));
    let changed = intents.put(&rest, &changed, None).expect("written");
    assert_eq!((changed.revision, &changed.resource.status.vips), (2, &vips));
    assert_eq!(intents.get(&plain("web").key()), Ok(Some(changed.resource)));

    // Given addresses replace allocated ones, which are free again.
    let given = service("web", &json!({"vips": ["10.9.9.9"], "ports": [{"port": 80}]}));
    intents.put(&rest, &given, None).expect("written");
    let claims: Vec<String> =
        store.range("/vip/", None).expect("range").entries.into_iter().map(|e| e.key).collect();
    assert_eq!(claims, ["/vip/10.9.9.9"]);
    intents.delete(&rest, &plain("web").key(), None).expect("deleted");
    for prefix in ["/vip/", "/intent/"] {
        assert_eq!(store.range(prefix, None).expect("range").entries, [], "{prefix}");
    }
}

#[test]
fn an_address_belongs_to_one_service() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let rest = author(Owner::rest());
    let given = json!({"vips": ["10.9.9.8", "10.9.9.9"], "ports": [{"port": 80}]});
    intents.put(&rest, &service("web", &given), None).expect("written");
    let error = refused(intents.put(
        &rest,
        &service("shop", &json!({"vips": ["10.9.9.9"], "ports": [{"port": 80}]})),
        None,
    ));
    assert_eq!((error.reason, error.path.as_str()), (Reason::Conflict, "spec.vips[0]"));
    assert!(error.message.contains("belongs to Service default/web"), "{}", error.message);
}

#[test]
fn a_full_pool_says_so() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let rest = author(Owner::rest());
    let mesh = json!({
        "apiVersion": "nodemesh.io/v1", "kind": "Mesh", "metadata": {"name": "mesh"},
        "spec": {"vipPool": {"v4": "10.9.0.0/30"}},
    });
    intents.put(&rest, &Resource::parse(&mesh).expect("a mesh"), None).expect("written");
    intents.put(&rest, &plain("a"), None).expect("the first of two");
    intents.put(&rest, &plain("b"), None).expect("the second of two");
    let error = refused(intents.put(&rest, &plain("c"), None));
    assert_eq!(error.reason, Reason::Exhausted);
    assert!(error.message.contains("10.9.0.0/30"), "{}", error.message);
    let headless = service("c", &json!({"headless": true, "ports": [{"port": 80}]}));
    intents.put(&rest, &headless, None).expect("needs none");
}

#[test]
fn a_write_over_another_revision_or_another_owners_object_is_refused() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let rest = author(Owner::rest());
    intents.put(&rest, &plain("web"), Some(0)).expect("new");
    let error = refused(intents.put(&rest, &plain("web"), Some(0)));
    assert_eq!((error.reason, error.accepted.as_str()), (Reason::Stale, "1"));
    let error = refused(intents.put(&author(Owner::named("file:/etc")), &plain("web"), None));
    assert_eq!(error.reason, Reason::Owned);
    let gone = intents.delete(&rest, &plain("other").key(), None);
    assert!(matches!(gone, Err(WriteError::Refused(ApiError { reason: Reason::NotFound, .. }))), "{gone:?}");
    assert!(intents.delete(&rest, &plain("web").key(), Some(7)).is_err());
    assert_eq!(store.revision(), Ok(1));
}

#[test]
fn a_registration_ends_with_its_lease() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let (owner, lease) = (Owner::node("n1"), LeaseRef::of_node("n1", Duration::from_secs(30)));
    let n1 = author(owner.clone());
    for name in ["a", "b", "c"] {
        intents.register(&n1, &workload(name), &lease).expect("registered");
    }
    let again = intents.register(&n1, &workload("a"), &lease).expect("unchanged");
    assert_eq!((again.created, store.revision()), (false, Ok(3)));
    assert!(intents.registration(&owner, &workload("a").key()).expect("read").is_some());
    intents.deregister(&owner, &[workload("a").key()]).expect("one");
    let leases = || store.leases().expect("leases").into_iter().map(|lease| lease.lease).collect::<Vec<_>>();
    assert_eq!(leases(), ["node:n1"]);
    intents.revoke(&[lease.name]).expect("the rest");
    assert_eq!(store.range("/", None).expect("range").entries, []);

    // A workload's own lease goes with it.
    let key = workload("d").key();
    let own = LeaseRef::of_workload(&key, Duration::from_secs(30));
    intents.register(&author(Owner::rest()), &workload("d"), &own).expect("registered");
    assert_eq!(leases(), ["workload:default/d"]);
    intents.deregister(&Owner::rest(), &[key]).expect("ended");
    assert_eq!((leases(), store.range("/", None).expect("range").entries.len()), (vec![], 0));
}

fn told(intents: &Intents<'_>, key: &Key) -> Vec<String> {
    let one = |past: Past| {
        let port = past.object.map_or(Value::Null, |object| object["spec"]["ports"][0]["port"].clone());
        format!("{} {} by {} ({}): {port}", past.revision, past.what.name(), past.by.id, past.by.name)
    };
    intents.history(key).expect("history").into_iter().map(one).collect()
}

#[test]
fn every_write_is_noted_and_can_be_taken_back() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let rest = author(Owner::rest());
    let of = |port: u16| service("web", &json!({"ports": [{"port": port}]}));
    let key = plain("web").key();
    intents.put(&rest, &of(80), None).expect("written");
    intents.put(&rest, &of(81), None).expect("written");
    intents.put(&rest, &of(81), None).expect("unchanged");
    intents.delete(&rest, &key, None).expect("deleted");
    assert_eq!(
        told(&intents, &key),
        ["3 deleted by t1 (ann): null", "2 updated by t1 (ann): 81", "1 created by t1 (ann): 80"]
    );
    let back = intents.roll_back(&rest, &key, 2, None).expect("taken back");
    assert!(back.created && back.resource.spec == of(81).spec);
    let back = intents.roll_back(&rest, &key, 1, Some(back.revision)).expect("further back");
    assert!(!back.created && back.resource.spec == of(80).spec);
    assert_eq!(told(&intents, &key)[..2], ["5 rolledBack by t1 (ann): 80", "4 rolledBack by t1 (ann): 81"]);
    assert_eq!(refused(intents.roll_back(&rest, &key, 1, Some(4))).reason, Reason::Stale);
    assert_eq!(refused(intents.roll_back(&rest, &key, 3, None)).reason, Reason::Conflict, "a removal");
    let error = refused(intents.roll_back(&rest, &key, 77, None));
    assert_eq!((error.reason, error.accepted.as_str()), (Reason::NotFound, "one of 5, 4, 3, 2, 1"));
    assert_eq!(refused(intents.roll_back(&rest, &plain("x").key(), 1, None)).reason, Reason::NotFound);
}

#[test]
fn history_is_bounded_an_object_and_over_all() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let rest = author(Owner::rest());
    for name in ["a", "b"] {
        for port in 1..=30 {
            let spec = json!({"ports": [{"port": port}]});
            intents.put(&rest, &service(name, &spec), None).expect("written");
        }
        let past = intents.history(&plain(name).key()).expect("history");
        assert_eq!(past.len(), history::KEPT as usize);
        assert_eq!(past[0].object.as_ref().expect("kept")["spec"]["ports"][0]["port"], 30);
    }
    assert_eq!(history::trim(&store, 40, 1 << 20), Ok(0));
    assert_eq!(history::trim(&store, 30, 1 << 20), Ok(13), "down to nine tenths");
    let left = |name: &str| intents.history(&plain(name).key()).expect("history").len();
    assert_eq!((left("a"), left("b")), (7, 20), "the oldest go");
    assert!(matches!(history::trim(&store, 1000, 2000), Ok(1..)), "by bytes as well");
}

#[test]
fn a_dry_run_says_what_a_write_would_come_to_and_writes_nothing() {
    let store = MemoryStore::new("s");
    let intents = Intents::new(&store);
    let dry = Author { dry_run: true, ..author(Owner::rest()) };
    let told = intents.put(&dry, &plain("web"), None).expect("it could be");
    assert!(told.created && told.resource.status.vips.len() == 2);
    assert_eq!(store.revision(), Ok(0));
    intents.put(&author(Owner::rest()), &plain("web"), None).expect("written");
    assert!(!intents.put(&dry, &plain("web"), None).expect("the same").changed);
    assert_eq!(intents.delete(&dry, &plain("web").key(), None), Ok(1));
    assert_eq!(refused(intents.put(&dry, &plain("web"), Some(9))).reason, Reason::Stale);
    assert_eq!(store.revision(), Ok(1));
}
