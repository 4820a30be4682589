//! Finds what depends on what without looking at everything: by label, by selector, by name, by address.
//!
//! Not here: whether a candidate really matches ([`super::resolve`]): an index may name too many, never too few.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_api::resource::{Key, Kind, Resource, Spec, WorkloadSpec};

/// Namespace, label key, label value.
type Label = (String, String, String);

/// What is found by what.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Services, by the first pair of their selector.
    selecting: BTreeMap<Label, BTreeSet<String>>,
    /// Workloads, by each label.
    labelled: BTreeMap<Label, BTreeSet<String>>,
    /// Workloads that name a service: by namespace and service.
    naming: BTreeMap<(String, String), BTreeSet<String>>,
    /// Workloads by address.
    addressed: BTreeMap<IpAddr, BTreeSet<Key>>,
}

impl Index {
    pub(super) fn insert(&mut self, resource: &Resource) {
        let name = &resource.metadata.name;
        match &resource.spec {
            Spec::Service(_) => {
                if let Some(label) = first_pair(resource) {
                    self.selecting.entry(label).or_default().insert(name.clone());
                }
            }
            Spec::Workload(spec) => {
                for label in labels(resource) {
                    self.labelled.entry(label).or_default().insert(name.clone());
                }
                for service in named(resource) {
                    self.naming.entry(service).or_default().insert(name.clone());
                }
                for address in own_addresses(spec) {
                    self.addressed.entry(*address).or_default().insert(resource.key());
                }
            }
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, resource: &Resource) {
        let name = &resource.metadata.name;
        match &resource.spec {
            Spec::Service(_) => {
                if let Some(label) = first_pair(resource) {
                    drop_from(&mut self.selecting, &label, name);
                }
            }
            Spec::Workload(spec) => {
                labels(resource).for_each(|label| drop_from(&mut self.labelled, &label, name));
                named(resource).for_each(|service| drop_from(&mut self.naming, &service, name));
                for address in own_addresses(spec) {
                    drop_from(&mut self.addressed, address, &resource.key());
                }
            }
            _ => {}
        }
    }

    /// Workloads whose memberships may depend on a Service: those that name it, and those with its selector's
    /// first label. Nothing for other kinds.
    pub(super) fn dependents(&self, resource: &Resource) -> BTreeSet<Key> {
        let Spec::Service(_) = &resource.spec else { return BTreeSet::new() };
        let namespace = &resource.metadata.namespace;
        let naming = self.naming.get(&(namespace.clone(), resource.metadata.name.clone()));
        let labelled = first_pair(resource).and_then(|label| self.labelled.get(&label));
        let names = [naming, labelled].into_iter().flatten().flatten();
        names.map(|name| Key::new(Kind::Workload, namespace, name)).collect()
    }

    /// Services whose selector may match a Workload.
    pub(super) fn selecting(&self, workload: &Resource) -> BTreeSet<&String> {
        labels(workload).filter_map(|label| self.selecting.get(&label)).flatten().collect()
    }

    /// Workloads that have an address to themselves.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        self.addressed.get(&address).into_iter().flatten()
    }
}

/// Those that nobody else may have: a host's are its workloads' all together.
fn own_addresses(spec: &WorkloadSpec) -> &[IpAddr] {
    if spec.host_network { &[] } else { &spec.addresses }
}

fn first_pair(service: &Resource) -> Option<Label> {
    let Spec::Service(spec) = &service.spec else { return None };
    let (key, value) = spec.selector.iter().next()?;
    Some((service.metadata.namespace.clone(), key.clone(), value.clone()))
}

fn labels(workload: &Resource) -> impl Iterator<Item = Label> {
    let namespace = &workload.metadata.namespace;
    workload.metadata.labels.iter().map(|(key, value)| (namespace.clone(), key.clone(), value.clone()))
}

fn named(workload: &Resource) -> impl Iterator<Item = (String, String)> {
    let services = match &workload.spec {
        Spec::Workload(spec) => &spec.services[..],
        _ => &[],
    };
    services.iter().map(|one| (workload.metadata.namespace.clone(), one.service.clone()))
}

fn drop_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
