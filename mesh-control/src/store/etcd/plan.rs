//! A transaction as etcd does it: comparisons, and what is written if they hold. Pure.
//!
//! Leases of workloads are records of ours: putting a key under one writes the record again, and revoking one compares
//! the record, so that of two replicas that do both at once one is told to look again. A revoked lease's keys are removed
//! each only if it is still as it was seen: one that has left the lease meanwhile stays.
//!
//! etcd takes 128 operations along each path of nested transactions: what is more than a flat transaction holds is put
//! into a tree, which is one revision all the same.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_registry::store::{Op, StoreError, Txn};

use super::layout::{Layout, write_ttl, write_value};
use super::mirror::Mirror;
use super::pb::{
    self, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

/// Operations of the outermost transaction: as many comparisons may stand beside them, and the rest of the way is
/// twice [`INNER`] and a removal's own comparison.
const OUTER: usize = 64;
const INNER: usize = 31;

/// What must hold of the records of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// The lease is there.
    There(String),
    /// Its record is as it was seen.
    As(String, u64),
}

/// What to ask of etcd.
#[derive(Debug)]
pub(super) struct Plan {
    pub request: TxnRequest,
    /// Of the failure's answers, after those of the transaction's own comparisons.
    pub guards: Vec<Guard>,
    /// Something changes: a revision of its own.
    pub writes: bool,
}

enum Written {
    Put(Vec<u8>, Option<String>),
    Delete,
    /// With the lease that it went with, if it is still of this revision.
    DeleteAt(u64),
}

#[derive(Clone, Copy)]
enum Lease {
    Put(Duration),
    Delete,
}

#[derive(Default)]
struct Effect {
    keys: BTreeMap<String, Written>,
    leases: BTreeMap<String, Lease>,
    guards: BTreeMap<String, Guard>,
}

/// The plan of a transaction that passed `check`, given what is known; `None`: nothing to ask for.
pub(super) fn plan(
    layout: &Layout,
    mirror: &Mirror,
    txn: &Txn,
    mark: &[u8],
) -> Result<Option<Plan>, StoreError> {
    let mut effect = Effect::default();
    for op in &txn.ops {
        effect.op(mirror, op)?;
    }
    let writes = !effect.leases.is_empty()
        || effect
            .keys
            .iter()
            .any(|(key, written)| matches!(written, Written::Put(..)) || mirror.modified(key) > 0);
    if !writes && txn.compare.is_empty() {
        return Ok(None);
    }
    let guards: Vec<Guard> = effect.guards.into_values().collect();
    let own = txn.compare.iter().map(|one| modified(layout.key(&one.key), one.modified));
    let compare: Vec<Compare> = own.chain(guards.iter().map(|guard| guard.compare(layout))).collect();
    let failure = compare.iter().map(|compare| look(compare.key.clone())).collect();
    let mut success = Vec::new();
    if writes {
        success.push(put(layout.head(), mark.to_vec()));
        success.extend(effect.leases.iter().map(|(name, lease)| match lease {
            Lease::Put(ttl) => put(layout.lease(name), write_ttl(*ttl)),
            Lease::Delete => delete(layout.lease(name)),
        }));
        success.extend(effect.keys.into_iter().map(|(key, written)| match written {
            Written::Put(value, lease) => put(layout.key(&key), write_value(&value, lease.as_deref())),
            Written::Delete => delete(layout.key(&key)),
            Written::DeleteAt(revision) => {
                nested(vec![modified(layout.key(&key), revision)], vec![delete(layout.key(&key))])
            }
        }));
    }
    Ok(Some(Plan { request: TxnRequest { compare, success: pack(success), failure }, guards, writes }))
}

impl Effect {
    fn op(&mut self, mirror: &Mirror, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::Put { key, value, lease } => {
                if let Some(name) = lease {
                    self.keep(mirror, name)?;
                }
                self.keys.insert(key.clone(), Written::Put(value.clone(), lease.clone()));
            }
            Op::Delete { key } => drop(self.keys.insert(key.clone(), Written::Delete)),
            Op::Grant { lease, ttl } => {
                if mirror.lease(lease).is_none_or(|record| record.ttl != *ttl)
                    || self.leases.contains_key(lease)
                {
                    self.leases.insert(lease.clone(), Lease::Put(*ttl));
                }
            }
            Op::Revoke { lease } => self.revoke(mirror, lease),
        }
        Ok(())
    }

    /// A key is put under a lease: its record is written again.
    fn keep(&mut self, mirror: &Mirror, name: &str) -> Result<(), StoreError> {
        let missing = || StoreError::NoLease { lease: name.to_owned() };
        match (self.leases.get(name), mirror.lease(name)) {
            (Some(Lease::Put(_)), _) => {}
            (None, Some(record)) => {
                self.leases.insert(name.to_owned(), Lease::Put(record.ttl));
                let guard = Guard::There(name.to_owned());
                self.guards.entry(name.to_owned()).or_insert(guard);
            }
            (Some(Lease::Delete), _) | (None, None) => return Err(missing()),
        }
        Ok(())
    }

    fn revoke(&mut self, mirror: &Mirror, name: &str) {
        let of_lease = |written: &Written| matches!(written, Written::Put(_, Some(lease)) if lease == name);
        let fresh: Vec<String> =
            self.keys.iter().filter(|(_, written)| of_lease(written)).map(|(key, _)| key.clone()).collect();
        for key in fresh {
            self.keys.insert(key, Written::Delete);
        }
        for key in mirror.keys_of(name) {
            let revision = mirror.modified(key);
            self.keys.entry(key.clone()).or_insert(Written::DeleteAt(revision));
        }
        match mirror.lease(name) {
            Some(record) => {
                self.leases.insert(name.to_owned(), Lease::Delete);
                self.guards.insert(name.to_owned(), Guard::As(name.to_owned(), record.modified));
            }
            None => drop(self.leases.remove(name)),
        }
    }
}

impl Guard {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::There(name) | Self::As(name, _) => name,
        }
    }

    fn compare(&self, layout: &Layout) -> Compare {
        match self {
            Self::As(name, revision) => modified(layout.lease(name), *revision),
            Self::There(name) => Compare {
                result: CompareResult::Greater.into(),
                target: CompareTarget::Create.into(),
                key: layout.lease(name),
                target_union: Some(TargetUnion::CreateRevision(0)),
            },
        }
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

pub(super) fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    op(Request::RequestPut(PutRequest { key, value, lease: 0 }))
}

pub(super) fn put_under(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    op(Request::RequestPut(PutRequest { key, value, lease }))
}

pub(super) fn delete(key: Vec<u8>) -> RequestOp {
    op(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end: Vec::new() }))
}

fn look(key: Vec<u8>) -> RequestOp {
    op(Request::RequestRange(RangeRequest { key, keys_only: true, ..RangeRequest::default() }))
}

fn nested(compare: Vec<Compare>, success: Vec<RequestOp>) -> RequestOp {
    op(Request::RequestTxn(TxnRequest { compare, success, failure: Vec::new() }))
}

/// Last written at `revision`; 0: not there.
pub(super) fn modified(key: Vec<u8>, revision: u64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision as i64)),
    }
}

/// Of a value.
pub(super) fn says(key: Vec<u8>, value: Vec<u8>) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key,
        target_union: Some(TargetUnion::Value(value)),
    }
}

/// As a tree that etcd takes.
fn pack(mut ops: Vec<RequestOp>) -> Vec<RequestOp> {
    while ops.len() > OUTER {
        let mut groups = Vec::with_capacity(ops.len() / INNER + 1);
        while !ops.is_empty() {
            let rest = ops.split_off(ops.len().min(INNER));
            groups.push(nested(Vec::new(), ops));
            ops = rest;
        }
        ops = groups;
    }
    ops
}

/// What a failed comparison found: the revision of each key's last write, in the order of the comparisons.
pub(super) fn found(answer: &pb::TxnResponse) -> Vec<u64> {
    use pb::response_op::Response;
    let one = |op: &pb::ResponseOp| match &op.response {
        Some(Response::ResponseRange(range)) => range.kvs.first().map_or(0, |kv| kv.mod_revision as u64),
        _ => 0,
    };
    answer.responses.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
