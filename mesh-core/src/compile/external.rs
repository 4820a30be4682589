//! External services: who has which host name, and how their ports speak TLS.
//!
//! Invariant: of several that have the same host name the older has it, then the first by name; the others show it.
//! Not here: their endpoints (model), all that they have in common with services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::proto::v1;

use super::{Compiler, Outcome, Work};
use crate::model::{Kind, Name, external::endpoint_of};
use crate::outside::Origination;
use crate::snapshot::ServiceId;

impl Compiler {
    /// What host names outside of the mesh resolve to on this node: all that are known.
    pub fn resolve(&mut self, resolved: BTreeMap<String, Vec<IpAddr>>) -> Outcome {
        let touched = self.model.resolve(resolved);
        let mut work = Work::default();
        self.compile(touched, &mut work);
        let revision = self.next.revision.clone();
        self.conclude(work, false, revision)
    }

    /// Gives out host names, where external services have changed. `true`: they are not what they were.
    pub(super) fn settle_hosts(&mut self, changed: &BTreeSet<Name>) -> bool {
        if changed.is_empty() {
            return false;
        }
        let mut hosts = imbl::OrdMap::<Arc<str>, Name>::new();
        let mut resolves: BTreeSet<Arc<str>> = BTreeSet::new();
        let all = self.model.externals();
        for gone in changed.iter().filter(|name| all.iter().all(|(held, ..)| held != *name)) {
            self.problems.set(Kind::ExternalService, gone, 0, Vec::new());
        }
        for (name, spec, own) in all {
            let mut problems = Vec::new();
            if !own {
                problems.push("a Service has its name, and counts: give one of them another".to_owned());
                self.problems.set(Kind::ExternalService, &name, 0, problems);
                continue;
            }
            for host in &spec.hosts {
                let host: Arc<str> = host.as_str().into();
                match hosts.get(&host) {
                    Some(older) if *older != name => problems.push(format!(
                        "spec.hosts: {host} is a name of the older ExternalService {older}, which keeps it: remove \
                         it from one of them"
                    )),
                    _ => drop(hosts.insert(Arc::clone(&host), Name::clone(&name))),
                }
                if spec.addresses.is_empty() {
                    resolves.insert(host);
                }
            }
            self.problems.set(Kind::ExternalService, &name, 0, problems);
        }
        let resolves: Arc<[Arc<str>]> = resolves.into_iter().collect();
        let same = hosts == self.next.hosts && resolves == self.next.resolves;
        (self.next.hosts, self.next.resolves) = (hosts, resolves);
        !same
    }

    /// Notes how a port speaks TLS with its endpoints. `true`: not as before.
    pub(super) fn note_origination(&mut self, id: ServiceId, tls: Option<Origination>) -> bool {
        let held = self.next.originations.get(&id);
        match (held, tls) {
            (None, None) => false,
            (Some(held), Some(new)) if held.says(&new) => false,
            (_, Some(new)) => {
                self.last_origination = self.last_origination.wrapping_add(1).max(1);
                let new = Origination { number: self.last_origination, ..new };
                self.next.originations.insert(id, Arc::new(new));
                true
            }
            (Some(_), None) => {
                self.next.originations.remove(&id);
                true
            }
        }
    }
}

/// How a port of it speaks TLS; `None`: not at all.
pub(super) fn origination(external: Option<&v1::ExternalService>, port: u16) -> Option<Origination> {
    let port = external?.ports.iter().find(|spec| spec.port == u32::from(port))?;
    port.tls.as_ref().map(|tls| Origination::read(tls, port.protocol()))
}

/// Whom a problem of a workload is told of, and under which number: of one outside of the mesh, its service.
pub(super) fn subject(name: &Name) -> (Kind, Name, u32) {
    let Some((service, address)) = endpoint_of(name) else {
        return (Kind::Workload, Name::clone(name), 0);
    };
    let number =
        address.bytes().fold(0x811c_9dc5_u32, |sum, b| (sum ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (Kind::ExternalService, service.into(), number | 1)
}
