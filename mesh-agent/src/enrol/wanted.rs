//! What somebody wants enrolled, parsed: names are names, addresses can be reached.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use mesh_api::local::{Membership, Request};
use mesh_api::proto::v1;
use mesh_api::resource::PRIORITY_MAX;
use mesh_core::locality::Locality;

use super::persist::Record;
use super::{Settings, addresses, primary};
use crate::session::Name;

/// Labels and memberships, at most.
const MAX: usize = 64;

/// A workload to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) service_account: String,
    labels: BTreeMap<String, String>,
    addresses: Vec<IpAddr>,
    memberships: Vec<Membership>,
    /// It shares the host's network namespace.
    pub(super) host_network: bool,
    priority: u8,
}

impl Wanted {
    /// From a request; an error names the field, the value and what is accepted.
    pub fn parse(request: Request) -> Result<Self, String> {
        let Request {
            namespace,
            name,
            service_account,
            labels,
            addresses,
            memberships,
            host_network,
            priority,
            ..
        } = request;
        let namespace = label("namespace", or_default(namespace))?;
        let name = label("name", name)?;
        let service_account = label("serviceAccount", or_default(service_account))?;
        if labels.len() > MAX || memberships.len() > MAX {
            return Err(format!("at most {MAX} labels and {MAX} memberships are accepted"));
        }
        for (i, m) in memberships.iter().enumerate() {
            label(&format!("memberships[{i}].service"), m.service.clone())?;
            if m.target_port == 0 {
                return Err(format!("memberships[{i}].targetPort: 0 is not in 1..=65535"));
            }
        }
        if let Some(bad) = addresses.iter().find(|ip| !addresses::usable(ip)) {
            return Err(format!(
                "addresses: {bad} is not one that others can reach (loopback, link-local, multicast)"
            ));
        }
        if priority > PRIORITY_MAX {
            return Err(format!("priority: {priority} is not in 0..={PRIORITY_MAX}"));
        }
        Ok(Self { namespace, name, service_account, labels, addresses, memberships, host_network, priority })
    }

    /// From what is remembered.
    pub(super) fn of(record: &Record) -> Self {
        Self {
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            service_account: record.service_account.clone(),
            labels: record.labels.clone(),
            addresses: record.addresses.clone(),
            memberships: record.memberships.clone(),
            host_network: record.host_network,
            priority: record.priority,
        }
    }

    /// Namespace and name.
    pub fn name(&self) -> Name {
        (self.namespace.clone(), self.name.clone())
    }

    /// Its addresses: those given, else those of its namespace.
    pub(super) fn addresses_or(&self, found: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
        let chosen = primary(if self.addresses.is_empty() { found } else { &self.addresses });
        if chosen.is_empty() {
            return Err(
                "its network namespace has no address of global scope: give it an interface with one \
                        before it is enrolled, or name its addresses"
                    .into(),
            );
        }
        Ok(chosen)
    }

    /// Where it listens.
    pub(super) fn ports(&self) -> Vec<u16> {
        self.memberships.iter().map(|m| m.target_port).collect()
    }

    /// What the control plane is told.
    pub(super) fn upsert(&self, settings: &Settings, addresses: &[IpAddr]) -> v1::WorkloadUpsert {
        let here = &settings.locality;
        let workload = v1::Workload {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            service_account: self.service_account.clone(),
            node: settings.node.clone(),
            addresses: addresses.iter().map(IpAddr::to_string).collect(),
            labels: self.labels.clone().into_iter().collect(),
            services: Vec::new(),
            host_network: self.host_network,
            hbone: true,
            locality: (*here != Locality::default())
                .then(|| v1::Locality { region: here.region.clone(), zone: here.zone.clone() }),
            priority: self.priority.into(),
        };
        let membership = |m: &Membership| v1::Membership {
            service: m.service.clone(),
            port_name: m.port_name.clone(),
            target_port: m.target_port.into(),
            weight: m.weight.into(),
        };
        v1::WorkloadUpsert {
            request: 0,
            workload: Some(workload),
            memberships: self.memberships.iter().map(membership).collect(),
            starting: false,
        }
    }

    pub(super) fn into_record(self, addresses: Vec<IpAddr>, cgroup: PathBuf, own_cgroup: bool) -> Record {
        Record {
            namespace: self.namespace,
            name: self.name,
            service_account: self.service_account,
            labels: self.labels,
            addresses,
            memberships: self.memberships,
            cgroup,
            own_cgroup,
            host_network: self.host_network,
            priority: self.priority,
            accepted: false,
        }
    }
}

fn or_default(name: String) -> String {
    if name.is_empty() { "default".into() } else { name }
}

/// A DNS label: also what keeps a name from walking a path.
fn label(field: &str, name: String) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends = |b: Option<u8>| b.is_some_and(|b| b != b'-');
    let good = name.len() <= 63
        && name.bytes().all(allowed)
        && ends(name.bytes().next())
        && ends(name.bytes().last());
    if good {
        Ok(name)
    } else {
        Err(format!("{field}: {name:?} is not 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str) -> Request {
        Request { v: 1, op: "enrol".into(), name: name.into(), ..Request::default() }
    }

    #[test]
    fn names_are_labels_and_have_defaults() {
        let wanted = Wanted::parse(request("cart-1")).unwrap();
        assert_eq!(wanted.name(), ("default".into(), "cart-1".into()));
        assert_eq!(wanted.service_account, "default");
        for bad in ["", "..", "a/b", "-a", "a-", "A", &"a".repeat(64)] {
            assert!(Wanted::parse(request(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_address_a_family_is_taken_and_unreachable_ones_are_refused() {
        let found: Vec<IpAddr> =
            ["10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3"].iter().map(|s| s.parse().unwrap()).collect();
        let wanted = Wanted::parse(request("a")).unwrap();
        assert_eq!(wanted.addresses_or(&found).unwrap(), [found[0], found[2]]);
        assert!(wanted.addresses_or(&[]).unwrap_err().contains("no address"));
        let mut given = request("a");
        given.addresses = vec!["127.0.0.1".parse().unwrap()];
        assert!(Wanted::parse(given).unwrap_err().contains("127.0.0.1"));
    }

    #[test]
    fn a_target_port_of_zero_is_refused_by_path() {
        let mut given = request("a");
        let zero = Membership { service: "cart".into(), port_name: String::new(), target_port: 0, weight: 1 };
        given.memberships = vec![zero];
        assert!(Wanted::parse(given).unwrap_err().starts_with("memberships[0].targetPort"));
    }
}
