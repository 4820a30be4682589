//! A store as a source: everything, changes, and everything again where history is gone.

use serde_json::json;

use super::*;
use crate::history::By;
use crate::intent::{Author, Intents};
use crate::memory::MemoryStore;
use crate::source::LeaseRef;
use crate::store::Txn;
use mesh_api::resource::Resource;

fn uid() -> String {
    "uid-1".to_owned()
}

fn rest() -> Author<'static> {
    Author { owner: Owner::rest(), by: By::system(), dry_run: false, now_ms: 1, new_uid: &uid }
}

fn put(store: &dyn Store, name: &str) {
    let value = json!({
        "apiVersion": "nodemesh.io/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]},
    });
    Intents::new(store).put(&rest(), &Resource::parse(&value).expect("parses"), None).expect("written");
}

fn told(batch: &Batch) -> Vec<String> {
    let one = |event: &Event| match &event.what {
        What::Intent(Change::Upsert { resource, .. }) => {
            format!("{} intends {}", event.owner, resource.key())
        }
        What::Intent(Change::Remove(key)) => format!("{} takes back {key}", event.owner),
        What::Observed(Change::Upsert { resource, .. }) => format!("{} sees {}", event.owner, resource.key()),
        What::Observed(Change::Remove(key)) => format!("{} no longer sees {key}", event.owner),
        What::Synced => "synced".to_owned(),
    };
    batch.events.iter().map(one).collect()
}

#[test]
fn first_everything_then_changes() {
    let store = Arc::new(MemoryStore::new("s"));
    put(&*store, "b");
    put(&*store, "a");
    let mut source = StoreSource::new(store.clone());
    let batch = source.poll(100).expect("poll");
    assert_eq!(told(&batch), ["rest intends Service default/b", "rest intends Service default/a", "synced"]);
    assert_eq!(source.poll(100).map(|batch| told(&batch)), Ok(Vec::new()));

    let value = json!({
        "apiVersion": "nodemesh.io/v1", "kind": "Workload", "metadata": {"name": "w"},
        "spec": {"addresses": ["10.1.0.1"]},
    });
    let workload = Resource::parse(&value).expect("parses");
    let owner = Owner::node("n1");
    let author = Author { owner: owner.clone(), ..rest() };
    let lease = LeaseRef::of_node("n1", std::time::Duration::from_secs(30));
    let intents = Intents::new(&*store);
    intents.register(&author, &workload, &lease).expect("registered");
    intents
        .delete(&rest(), &Key::new(mesh_api::resource::Kind::Service, "default", "b"), None)
        .expect("deleted");
    let batch = source.poll(100).expect("poll");
    assert_eq!(told(&batch), ["node:n1 sees Workload default/w", "rest takes back Service default/b"]);
    assert_eq!(batch.revision, store.revision().expect("revision"));
    intents.revoke(&[lease.name]).expect("revoked");
    assert_eq!(told(&source.poll(100).expect("poll")), ["node:n1 no longer sees Workload default/w"]);
}

#[test]
fn after_compaction_what_is_gone_is_taken_back() {
    let store = Arc::new(MemoryStore::new("s"));
    put(&*store, "a");
    put(&*store, "b");
    let mut source = StoreSource::new(store.clone());
    source.poll(100).expect("poll");
    Intents::new(&*store)
        .delete(&rest(), &Key::new(mesh_api::resource::Kind::Service, "default", "a"), None)
        .expect("deleted");
    put(&*store, "c");
    store.compact(store.revision().expect("revision")).expect("compact");
    let told = told(&source.poll(100).expect("poll"));
    assert_eq!(
        told,
        [
            "rest takes back Service default/a",
            "rest intends Service default/b",
            "rest intends Service default/c"
        ]
    );
}

#[test]
fn a_record_that_cannot_be_read_is_named_and_the_rest_goes_on() {
    let store = Arc::new(MemoryStore::new("s"));
    let txn = Txn::default().put("/intent/services/default/bad", "{}").put("/tokens/t", "not ours");
    store.transact(txn).expect("written");
    put(&*store, "good");
    let batch = StoreSource::new(store).poll(100).expect("poll");
    assert_eq!(told(&batch), ["rest intends Service default/good", "synced"]);
    assert_eq!(batch.refused.len(), 1);
    assert_eq!(batch.refused[0].0, "/intent/services/default/bad");
}
