//! Objects and registrations as keys of a store: the only writer of them.
//!
//! REST, files → **Intents** → store → feed → registry; agents → **Intents** (registrations) → store
//!
//! | key | value |
//! |---|---|
//! | `/intent/<plural>/<namespace>/<name>` | owner and object |
//! | `/registered/<owner>/<namespace>/<name>` | owner, Workload, lease |
//! | `/vip/<address>` | the service that has it |
//! | `/history/…` | what was written, by whom: [`crate::history`] |
//!
//! Invariants: an address belongs to one service, claimed in the same transaction that writes the service; an
//! object that is written again unchanged costs no write, one that changes is noted in its history in the same transaction; a write that raced with another is tried again, unless
//! the caller named the revision that it read.
//! Not here: who may write (mesh-control), what it means (registry).

mod health;
mod past;

use std::net::IpAddr;
use std::time::Duration;

use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{Key, Kind, Resource, Spec, VipPool};
use serde_json::Value;

use crate::history::{self, By, Past, What};
use crate::record::{Record, intent_key, namespace_prefix, registered_key, vip_key};
use crate::source::{LeaseRef, Owner};
use crate::store::{Entry, Store, StoreError, Txn};
use crate::vip;

/// How often a write that raced with another is tried again.
const RETRIES: usize = 16;
/// Registrations or leases that one transaction ends: each may be a lease, of which the store takes few at once.
const AT_ONCE: usize = crate::store::MAX_COMPARE / 2;

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The request is at fault.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The store is.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The object as stored.
    pub resource: Resource,
    /// It was not there before.
    pub created: bool,
    /// It was not there before, or said something else.
    pub changed: bool,
    /// The store's revision after the write.
    pub revision: u64,
}

/// What a writer says of its write.
#[derive(Clone)]
pub struct Author<'a> {
    /// Who owns what is written.
    pub owner: Owner,
    /// Who writes, for history.
    pub by: By,
    /// Only says what would be written.
    pub dry_run: bool,
    /// Unix milliseconds.
    pub now_ms: u64,
    /// A random id, for an object that is new.
    pub new_uid: &'a (dyn Fn() -> String + Send + Sync),
}

/// Reads and writes objects.
#[derive(Clone, Copy)]
pub struct Intents<'s> {
    store: &'s dyn Store,
}

impl<'s> Intents<'s> {
    /// Over a store.
    pub fn new(store: &'s dyn Store) -> Self {
        Self { store }
    }

    /// One object, as people wrote it (with its revision).
    pub fn get(&self, key: &Key) -> Result<Option<Resource>, WriteError> {
        Ok(self.read(&intent_key(key))?.map(|record| record.resource))
    }

    /// All objects of a kind, of one namespace or of all, and the revision that they are of.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Result<(u64, Vec<Resource>), WriteError> {
        let range = self.store.range(&namespace_prefix(kind, namespace), None)?;
        let read = |entry: &Entry| Record::read(entry).map(|record| record.resource);
        let resources = range.entries.iter().map(read).collect::<Result<_, _>>()?;
        Ok((range.revision, resources))
    }

    /// Writes an object; with `expect`, only over that revision (0: only if it is new).
    pub fn put(
        &self,
        author: &Author<'_>,
        resource: &Resource,
        expect: Option<u64>,
    ) -> Result<Written, WriteError> {
        self.put_as(author, resource, expect, None)
    }

    /// The same; `what` history shall say, where it is not what it looks like.
    fn put_as(
        &self,
        author: &Author<'_>,
        resource: &Resource,
        expect: Option<u64>,
        what: Option<What>,
    ) -> Result<Written, WriteError> {
        let key = resource.key();
        let path = intent_key(&key);
        retrying(expect.map(|_| path.as_str()), || {
            let old = self.read(&path)?;
            let found = old.as_ref().map_or(0, |record| record.resource.metadata.revision);
            check_expected(&key, expect, found)?;
            if let Some(old) = &old {
                check_owner(&key, &old.owner, &author.owner)?;
            }
            let before = old.as_ref().map(|record| &record.resource);
            let mut new = resource.clone().admitted(before, author.now_ms, author.new_uid);
            let mut txn = Txn::default().if_at(path.clone(), found);
            txn = self.claim_addresses(txn, before, &mut new)?;
            if let Some(before) = before
                && before.asks_the_same(&new)
                && before.status == new.status
            {
                let revision = self.store.revision()?;
                return Ok(Written { resource: before.clone(), created: false, changed: false, revision });
            }
            let created = old.is_none();
            if author.dry_run {
                let revision = self.store.revision()?;
                return Ok(Written { resource: new, created, changed: true, revision });
            }
            let what = what.unwrap_or(if created { What::Created } else { What::Updated });
            let (txn, number) = self.noted(txn, author, &key, old.as_ref(), what, Past::of(&new))?;
            let record = Record { owner: author.owner.clone(), resource: new, lease: None, number };
            let revision = self.store.transact(txn.put(path.clone(), record.write()))?;
            let mut resource = record.resource;
            resource.metadata.revision = revision;
            Ok(Written { resource, created, changed: true, revision })
        })
        .map_err(|error| stale(&key, &path, error))
    }

    /// Removes an object; with `expect`, only that revision of it.
    pub fn delete(&self, author: &Author<'_>, key: &Key, expect: Option<u64>) -> Result<u64, WriteError> {
        let path = intent_key(key);
        retrying(expect.map(|_| path.as_str()), || {
            let Some(old) = self.read(&path)? else { return Err(key.not_found().into()) };
            let found = old.resource.metadata.revision;
            check_expected(key, expect, found)?;
            check_owner(key, &old.owner, &author.owner)?;
            if author.dry_run {
                return Ok(self.store.revision()?);
            }
            let txn = Txn::default().if_at(path.clone(), found).delete(path.clone());
            let (mut txn, _) = self.noted(txn, author, key, Some(&old), What::Deleted, None)?;
            for address in addresses(&old.resource) {
                txn = txn.delete(vip_key(address));
            }
            Ok(self.store.transact(txn)?)
        })
        .map_err(|error| stale(key, &path, error))
    }

    /// Registers a Workload that goes with a lease. Costs no write if nothing changed.
    pub fn register(
        &self,
        author: &Author<'_>,
        workload: &Resource,
        lease: &LeaseRef,
    ) -> Result<Written, WriteError> {
        let path = registered_key(&author.owner, &workload.key());
        retrying(None, || {
            let old = self.read(&path)?;
            let found = old.as_ref().map_or(0, |record| record.resource.metadata.revision);
            let before = old.as_ref().map(|record| &record.resource);
            let mut new = workload.clone().admitted(before, author.now_ms, author.new_uid);
            health::begin(workload, lease, &mut new);
            if let Some(old) = &old
                && old.resource.asks_the_same(&new)
                && old.resource.status == new.status
                && old.lease.as_ref() == Some(lease)
            {
                let revision = self.store.revision()?;
                return Ok(Written {
                    resource: old.resource.clone(),
                    created: false,
                    changed: false,
                    revision,
                });
            }
            if author.dry_run {
                let revision = self.store.revision()?;
                return Ok(Written { resource: new, created: found == 0, changed: true, revision });
            }
            let (owner, lease_of) = (author.owner.clone(), Some(lease.clone()));
            let record = Record { owner, resource: new, lease: lease_of, number: 0 };
            let txn = Txn::default()
                .if_at(path.clone(), found)
                .grant(lease.name.clone(), lease.ttl)
                .put_leased(path.clone(), record.write(), lease.name.clone());
            let revision = self.store.transact(txn)?;
            let mut resource = record.resource;
            resource.metadata.revision = revision;
            Ok(Written { resource, created: found == 0, changed: true, revision })
        })
    }

    /// Ends registrations of an owner; those that are not there are skipped. A lease of one workload's own ends
    /// with it, that of a node stays.
    pub fn deregister(&self, owner: &Owner, keys: &[Key]) -> Result<u64, WriteError> {
        let mut revision = self.store.revision()?;
        for keys in keys.chunks(AT_ONCE) {
            let mut txn = Txn::default();
            for key in keys {
                let path = registered_key(owner, key);
                let lease = self.store.get(&path)?.and_then(|entry| entry.lease);
                txn = txn.delete(path);
                let own = LeaseRef::of_workload(key, Duration::ZERO).name;
                if let Some(lease) = lease.filter(|lease| *lease == own) {
                    txn = txn.revoke(lease);
                }
            }
            revision = self.store.transact(txn)?;
        }
        Ok(revision)
    }

    /// One registration of an owner.
    pub fn registration(&self, owner: &Owner, key: &Key) -> Result<Option<Resource>, WriteError> {
        Ok(self.read(&registered_key(owner, key))?.map(|record| record.resource))
    }

    /// Ends leases and every registration that goes with them.
    pub fn revoke(&self, leases: &[String]) -> Result<u64, WriteError> {
        let mut revision = self.store.revision()?;
        for leases in leases.chunks(AT_ONCE) {
            let txn = leases.iter().fold(Txn::default(), |txn, lease| txn.revoke(lease.clone()));
            revision = self.store.transact(txn)?;
        }
        Ok(revision)
    }

    /// Adds to a transaction that its change is noted in the object's history; the note's number.
    fn noted(
        &self,
        txn: Txn,
        author: &Author<'_>,
        key: &Key,
        before: Option<&Record>,
        what: What,
        object: Option<Value>,
    ) -> Result<(Txn, u32), WriteError> {
        // A record says what its last note was; only of what is new history must be asked.
        let number = match before.map_or(0, |record| record.number) {
            0 => history::last(self.store, key)?,
            number => number,
        } + 1;
        let (by, owner) = (author.by.clone(), author.owner.clone());
        let past = Past { revision: 0, at_ms: author.now_ms, by, owner, what, object };
        Ok((history::note(txn, key, number, &past), number))
    }

    fn read(&self, path: &str) -> Result<Option<Record>, WriteError> {
        let entry = self.store.get(path)?;
        Ok(entry.as_ref().map(Record::read).transpose()?)
    }

    /// Claims the addresses that a service asks for or is given, and lets go of those that it no longer has.
    fn claim_addresses(
        &self,
        mut txn: Txn,
        before: Option<&Resource>,
        new: &mut Resource,
    ) -> Result<Txn, WriteError> {
        let given = match &new.spec {
            Spec::Service(spec) => spec.headless || !spec.vips.is_empty(),
            Spec::ExternalService(_) => false,
            _ => return Ok(txn),
        };
        if given {
            new.status.vips.clear();
        } else if new.status.vips.is_empty() {
            new.status.vips = self.allocate(&new.metadata.namespace, &new.metadata.name)?;
        }
        let name = new.key().wire_name();
        if before.is_none() {
            // Names and virtual addresses stand for either of them.
            let other = other_kind(new);
            let path = intent_key(&other);
            if self.store.get(&path)?.is_some() {
                return Err(named(&other).into());
            }
            txn = txn.if_at(path, 0);
        }
        let (had, has) = (before.map(addresses).unwrap_or_default(), addresses(new));
        for (i, address) in has.iter().enumerate() {
            if had.contains(address) {
                continue;
            }
            if let Some(claim) = self.store.get(&vip_key(*address))? {
                let holder = String::from_utf8_lossy(&claim.value).into_owned();
                return Err(taken(i, *address, &holder).into());
            }
            txn = txn.if_at(vip_key(*address), 0).put(vip_key(*address), name.clone());
        }
        for address in had.iter().filter(|address| !has.contains(address)) {
            txn = txn.delete(vip_key(*address));
        }
        Ok(txn)
    }

    /// One address of each family.
    fn allocate(&self, namespace: &str, name: &str) -> Result<Vec<IpAddr>, WriteError> {
        let mesh = self.get(&Key::mesh())?;
        let pool = match mesh.map(|mesh| mesh.spec) {
            Some(Spec::Mesh(spec)) => spec.vip_pool,
            _ => VipPool::default(),
        };
        let mut failed = None;
        let mut taken = |address: IpAddr| match self.store.get(&vip_key(address)) {
            Ok(claim) => claim.is_some(),
            // Ends the search; the failure is what is reported.
            Err(error) => {
                failed = Some(error);
                false
            }
        };
        let v4 = vip::allocate_v4(&pool, namespace, name, &mut taken);
        let v6 = vip::allocate_v6(&pool, namespace, name, &mut taken);
        if let Some(error) = failed {
            return Err(error.into());
        }
        let full = |full: vip::PoolFull| {
            let error =
                ApiError::new(Reason::Exhausted, "spec.vips", full.pool.clone().into(), "given addresses");
            error.saying(full.to_string())
        };
        Ok(vec![v4.map_err(full)?.into(), v6.map_err(full)?.into()])
    }
}

/// The virtual addresses that a service holds.
fn addresses(resource: &Resource) -> Vec<IpAddr> {
    match &resource.spec {
        Spec::Service(spec) if !spec.vips.is_empty() => spec.vips.clone(),
        Spec::Service(spec) if !spec.headless => resource.status.vips.clone(),
        Spec::ExternalService(_) => resource.status.vips.clone(),
        _ => Vec::new(),
    }
}

/// Tries again what raced with another write, unless it is a race for `pinned`.
fn retrying<T>(
    pinned: Option<&str>,
    mut attempt: impl FnMut() -> Result<T, WriteError>,
) -> Result<T, WriteError> {
    for _ in 1..RETRIES {
        match attempt() {
            Err(WriteError::Store(StoreError::Conflict { key, .. })) if pinned != Some(key.as_str()) => {}
            result => return result,
        }
    }
    attempt()
}

fn check_expected(key: &Key, expect: Option<u64>, found: u64) -> Result<(), WriteError> {
    match expect {
        Some(expected) if expected != found => {
            let accepted = found.to_string();
            let message = format!(
                "{key} is at revision {found}, not {expected}: it changed since it was read; read it again"
            );
            Err(ApiError::new(Reason::Stale, "metadata.revision", expected.into(), accepted)
                .saying(message)
                .into())
        }
        _ => Ok(()),
    }
}

fn check_owner(key: &Key, holder: &Owner, owner: &Owner) -> Result<(), WriteError> {
    if holder == owner {
        return Ok(());
    }
    let message =
        format!("{key} belongs to {holder}, not to {owner}: change it there, or choose another name");
    let value = key.name.clone().into();
    Err(ApiError::new(Reason::Owned, "metadata.name", value, "a name of one's own").saying(message).into())
}

/// A race that the caller's revision lost.
fn stale(key: &Key, path: &str, error: WriteError) -> WriteError {
    match &error {
        WriteError::Store(StoreError::Conflict { key: raced, expected, found }) if raced == path => {
            check_expected(key, Some(*expected), *found).err().unwrap_or(error)
        }
        _ => error,
    }
}

/// The object of the other kind that would have the same name.
fn other_kind(resource: &Resource) -> Key {
    let kind = if resource.kind() == Kind::Service { Kind::ExternalService } else { Kind::Service };
    Key::new(kind, &resource.metadata.namespace, &resource.metadata.name)
}

fn named(other: &Key) -> ApiError {
    let accepted = "a name that neither a Service nor an ExternalService of the namespace has";
    ApiError::new(Reason::Conflict, "metadata.name", other.name.clone().into(), accepted)
        .saying(format!("metadata.name: {other} has it: choose another, or remove that"))
}

fn taken(index: usize, address: IpAddr, holder: &str) -> ApiError {
    let path = format!("spec.vips[{index}]");
    ApiError::new(
        Reason::Conflict,
        path.clone(),
        address.to_string().into(),
        "an address that no service has",
    )
    .saying(format!("{path}: {address} belongs to Service {holder}"))
}

#[cfg(test)]
mod tests;
