//! What etcd is asked for.

use mesh_registry::store::MAX_TXN;

use super::*;

fn layout() -> Layout {
    Layout::new("/m")
}

/// A mirror with a lease `n` (record of revision 5) and a key of it (revision 6).
fn mirror() -> Mirror {
    let mut mirror = Mirror::default();
    let kv = |key: Vec<u8>, value: Vec<u8>, revision: i64| pb::KeyValue {
        key,
        value,
        create_revision: revision,
        mod_revision: revision,
        lease: 0,
    };
    let lease = kv(layout().lease("n"), write_ttl(Duration::from_secs(9)), 5);
    mirror.load(&layout(), &[lease, kv(layout().key("/w"), write_value(b"1", Some("n")), 6)]);
    mirror
}

fn planned(txn: &Txn) -> Option<Plan> {
    plan(&layout(), &mirror(), txn, b"mark").unwrap()
}

/// Operations along the longest path, as etcd counts them.
fn depth(txn: &TxnRequest) -> usize {
    let own = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let inner = txn.success.iter().map(|op| match &op.request {
        Some(Request::RequestTxn(txn)) => depth(txn),
        _ => 0,
    });
    own + inner.max().unwrap_or(0)
}

fn leaves(ops: &[RequestOp]) -> usize {
    let one = |op: &RequestOp| match &op.request {
        Some(Request::RequestTxn(txn)) => leaves(&txn.success),
        _ => 1,
    };
    ops.iter().map(one).sum()
}

#[test]
fn what_changes_nothing_is_not_asked_for() {
    assert!(planned(&Txn::default()).is_none());
    let nothing = Txn::default().delete("/none").revoke("none").grant("n", Duration::from_secs(9));
    assert!(planned(&nothing).is_none());
    let looked = planned(&Txn::default().if_at("/w", 6)).unwrap();
    assert!(!looked.writes && looked.request.success.is_empty());
}

#[test]
fn a_key_under_a_lease_writes_the_leases_record() {
    let plan = planned(&Txn::default().put_leased("/x", "1", "n")).unwrap();
    assert_eq!(plan.guards, [Guard::There("n".to_owned())]);
    assert_eq!(leaves(&plan.request.success), 3, "head, record, key");
    let missing = super::plan(&layout(), &mirror(), &Txn::default().put_leased("/x", "1", "no"), b"m");
    assert_eq!(missing.err(), Some(StoreError::NoLease { lease: "no".to_owned() }));
    let granted =
        planned(&Txn::default().grant("no", Duration::from_secs(1)).put_leased("/x", "1", "no")).unwrap();
    assert!(granted.guards.is_empty());
}

#[test]
fn a_revocation_holds_only_for_what_was_seen() {
    let plan = planned(&Txn::default().revoke("n")).unwrap();
    assert_eq!(plan.guards, [Guard::As("n".to_owned(), 5)]);
    let Some(Request::RequestTxn(key)) = &plan.request.success[2].request else {
        panic!("no nested transaction")
    };
    assert_eq!(key.compare, [modified(layout().key("/w"), 6)]);
    // The same key in one transaction is written once.
    let again =
        planned(&Txn::default().revoke("n").grant("n", Duration::from_secs(1)).put_leased("/w", "2", "n"));
    assert_eq!(leaves(&again.unwrap().request.success), 3);
}

#[test]
fn the_largest_transaction_fits_into_what_etcd_takes() {
    let mut all = (0..MAX_TXN).fold(Txn::default(), |txn, i| txn.put(format!("/{i}"), "x"));
    for i in 0..mesh_registry::store::MAX_COMPARE {
        all = all.if_at(format!("/c{i}"), 0);
    }
    let plan = planned(&all).unwrap();
    assert_eq!(leaves(&plan.request.success), MAX_TXN + 1);
    assert!(depth(&plan.request) < 128, "{}", depth(&plan.request));
    let few = (0..63).fold(Txn::default(), |txn, i| txn.put(format!("/{i}"), "x"));
    assert_eq!(depth(&planned(&few).unwrap().request), 64, "flat");
}
