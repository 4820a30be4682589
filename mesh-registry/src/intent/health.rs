//! How registered workloads are: kept with their registration, written when it changes.

use mesh_api::resource::{Key, Resource, WorkloadHealth};

use super::{Intents, WriteError, retrying};
use crate::record::{Record, registered_key};
use crate::source::{LeaseRef, Owner};
use crate::store::Txn;

/// A workload that its node's agent has just taken in begins anew; whoever else registers one says nothing of health.
pub(super) fn begin(asked: &Resource, lease: &LeaseRef, new: &mut Resource) {
    let starts = asked.status.health.as_ref().is_some_and(|health| health.starting);
    if starts && lease.name.starts_with("node:") {
        new.status.health = Some(WorkloadHealth { starting: true, ..WorkloadHealth::default() });
    }
}

impl Intents<'_> {
    /// Notes how a registered workload is. `None`: it is not registered by this owner, or nothing has changed; else the
    /// revision of the write.
    pub fn report(
        &self,
        owner: &Owner,
        key: &Key,
        health: &WorkloadHealth,
    ) -> Result<Option<u64>, WriteError> {
        let path = registered_key(owner, key);
        retrying(None, || {
            let Some(Record { owner, mut resource, lease, number }) = self.read(&path)? else {
                return Ok(None);
            };
            let found = resource.metadata.revision;
            let health = health.clone().bounded().since(resource.status.health.as_ref());
            let nothing = health == WorkloadHealth::default();
            let health = (!nothing).then_some(health);
            if resource.status.health == health {
                return Ok(None);
            }
            resource.status.health = health;
            resource.metadata.revision = 0;
            let record = Record { owner, resource, lease, number };
            let txn = Txn::default().if_at(path.clone(), found);
            let txn = match &record.lease {
                Some(lease) => txn.grant(lease.name.clone(), lease.ttl).put_leased(
                    path.clone(),
                    record.write(),
                    lease.name.clone(),
                ),
                None => txn.put(path.clone(), record.write()),
            };
            Ok(Some(self.store.transact(txn)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_api::resource::{CheckState, Health, Spec, WorkloadSpec};

    use super::super::Author;
    use super::*;
    use crate::history::By;
    use crate::memory::MemoryStore;

    fn unhealthy(reason: &str, since_ms: u64) -> WorkloadHealth {
        let check = CheckState {
            service: "web".into(),
            port: 0,
            udp: false,
            health: Health::Unhealthy,
            reason: reason.into(),
            since_ms,
        };
        WorkloadHealth { checks: vec![check], ..WorkloadHealth::default() }
    }

    #[test]
    fn health_is_written_when_it_changes_and_outlives_a_registration_that_is_said_again() {
        let store = MemoryStore::new("s");
        let intents = Intents::new(&store);
        let (owner, lease) = (Owner::node("n1"), LeaseRef::of_node("n1", Duration::from_secs(30)));
        let (by, new_uid) = (By::system(), || "u".to_owned());
        let author = Author { owner: owner.clone(), by, dry_run: false, now_ms: 1, new_uid: &new_uid };
        let spec = WorkloadSpec { addresses: vec!["10.0.0.1".parse().unwrap()], ..WorkloadSpec::default() };
        let mut workload = Resource::new("default", "a", Spec::Workload(spec));
        let key = workload.key();
        assert_eq!(intents.report(&owner, &key, &unhealthy("500", 1)).unwrap(), None, "it is not there");
        workload.status.health = Some(WorkloadHealth { starting: true, ..WorkloadHealth::default() });
        intents.register(&author, &workload, &lease).unwrap();
        let stored = || intents.registration(&owner, &key).unwrap().unwrap().status.health;
        assert!(stored().unwrap().starting);
        assert!(intents.report(&owner, &key, &unhealthy("500", 5)).unwrap().is_some());
        assert_eq!(intents.report(&owner, &key, &unhealthy("503", 9)).unwrap(), None, "still unhealthy");
        workload.status.health = None;
        assert!(!intents.register(&author, &workload, &lease).unwrap().changed);
        assert_eq!(stored(), Some(unhealthy("500", 5)));
        assert!(intents.report(&owner, &key, &WorkloadHealth::default()).unwrap().is_some());
        assert_eq!(stored(), None);
    }
}
