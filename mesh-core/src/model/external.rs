//! External services: services of which nobody tells the endpoints. They are made here, as workloads outside of any
//! node, of the addresses that were given, or of what this node's agent has resolved.
//!
//! Their names hold a `=`, which no name of a resource does: `<namespace>/<service>=<address>`.
//! Invariant: where a Service has the name of an external service, that has no endpoints and is nobody's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_api::proto::v1;

use super::resource::decode;
use super::{Kind, Model, Name, Touched, join};
use crate::outside::Outside;

/// Endpoints outside of the mesh, and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Externals {
    /// Host name → addresses.
    resolved: BTreeMap<String, Vec<IpAddr>>,
    /// By name.
    made: BTreeMap<Name, (v1::Workload, Outside)>,
}

impl Externals {
    pub fn get(&self, name: &str) -> Option<&(v1::Workload, Outside)> {
        self.made.get(name)
    }
}

/// Of the endpoint's name: its service's, and its address.
pub(crate) fn endpoint_of(name: &str) -> Option<(&str, &str)> {
    name.split_once('=')
}

impl Model {
    /// The external service of that name, unless a Service has it.
    pub fn external(&self, name: &str) -> Option<v1::ExternalService> {
        if self.resources.raw(Kind::Service, name).is_some() {
            return None;
        }
        self.get(name)
    }

    /// All of them, the older ones first; `false`: a Service has the name.
    pub(crate) fn externals(&self) -> Vec<(Name, v1::ExternalService, bool)> {
        let own = |name: &str| self.resources.raw(Kind::Service, name).is_none();
        let all = self.resources.of(Kind::ExternalService);
        let mut all: Vec<(Name, v1::ExternalService, bool)> =
            all.map(|(name, raw)| (Name::clone(name), decode(raw), own(name))).collect();
        all.sort_by(|(a, old, _), (b, new, _)| (old.created_ms, a).cmp(&(new.created_ms, b)));
        all
    }

    /// What an endpoint outside of the mesh is made of; `None`: it is a workload.
    pub(crate) fn outside(&self, name: &str) -> Option<Outside> {
        self.externals.get(name).map(|(_, outside)| *outside)
    }

    /// What host names resolve to by now: all that are known.
    pub(crate) fn resolve(&mut self, resolved: BTreeMap<String, Vec<IpAddr>>) -> Touched {
        let mut touched = Touched::default();
        self.externals.resolved = resolved;
        for (name, ..) in self.externals() {
            self.settle_external(&name, &mut touched);
        }
        touched
    }

    /// Makes the endpoints of an external service anew; of one that is gone, or hidden, there are none.
    pub(super) fn settle_external(&mut self, name: &Name, touched: &mut Touched) {
        let wanted = self.external(name).map(|spec| self.endpoints(&spec)).unwrap_or_default();
        let first: Name = format!("{name}=").into();
        let held = self.externals.made.range(Name::clone(&first)..);
        let held: Vec<Name> =
            held.map(|(held, _)| held).take_while(|held| held.starts_with(&*first)).cloned().collect();
        let service = BTreeSet::from([Name::clone(name)]);
        for gone in held.into_iter().filter(|held| !wanted.contains_key(held)) {
            self.externals.made.remove(&gone);
            self.members.replace(&gone, &service, &BTreeSet::new());
            touched.workloads.push(gone);
        }
        for (endpoint, new) in wanted {
            let old = self.externals.made.get(&endpoint);
            if old == Some(&new) {
                continue;
            }
            if old.is_none() {
                self.members.replace(&endpoint, &BTreeSet::new(), &service);
            }
            self.externals.made.insert(Name::clone(&endpoint), new);
            touched.workloads.push(endpoint);
        }
    }

    fn endpoints(&self, spec: &v1::ExternalService) -> BTreeMap<Name, (v1::Workload, Outside)> {
        let given = spec.addresses.iter().filter_map(|text| text.parse().ok()).map(|ip| (ip, Outside::Given));
        let mut all: BTreeMap<IpAddr, Outside> = given.collect();
        if spec.addresses.is_empty() {
            let resolved = spec.hosts.iter().filter_map(|host| self.externals.resolved.get(host)).flatten();
            all.extend(resolved.map(|ip| (*ip, Outside::Resolved)));
        }
        let services: Vec<v1::WorkloadService> = spec
            .ports
            .iter()
            .map(|port| v1::WorkloadService {
                namespace: spec.namespace.clone(),
                service: spec.name.clone(),
                service_port: port.port,
                target_port: port.target_port,
                weight: 1,
                ..v1::WorkloadService::default()
            })
            .collect();
        let made = all.into_iter().map(|(ip, outside)| {
            let workload = v1::Workload {
                namespace: spec.namespace.clone(),
                name: format!("{}={ip}", spec.name),
                addresses: vec![ip.to_string()],
                services: services.clone(),
                // No port of the address but these is its own.
                host_network: true,
                ..v1::Workload::default()
            };
            (join(&workload.namespace, &workload.name), (workload, outside))
        });
        made.collect()
    }
}

/// In the form of a service, as which it is compiled.
pub(super) fn as_service(external: v1::ExternalService) -> v1::Service {
    let port = |port: &v1::ExternalPort| v1::ServicePort {
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol,
        inbound_proxy: false,
        health_check: None,
    };
    let ports = external.ports.iter().map(port).collect();
    v1::Service {
        namespace: external.namespace,
        name: external.name,
        vips: external.vips,
        ports,
        ..v1::Service::default()
    }
}
