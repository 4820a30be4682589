//! Compiles what this node was told into a [`Snapshot`].
//!
//! xDS ──[`Batch`]──▶ model ──touched──▶ **compile** ──[`Snapshot`], [`Dirty`]──▶ { proxy, plan }
//!
//! One pass a batch, in the order in which things depend on each other: authorisation, ids of service ports,
//! routes, service ports, workloads, endpoints. Each step says what the next has to look at; what comes out as it
//! was is left as it is, shared with the snapshot before.
//!
//! Invariants: whatever a resource refers to that isn't there, or that does not fit, is left out and named
//! in a [`Condition`], and nothing else suffers; the same resources give the same snapshot in whatever
//! order they came (but for the numbers).
//! Cost: that of what a change concerns, never of the mesh; but where virtual addresses come or go, one look at each
//! workload. Not here: who refers to whom (model), the maps (plan).

mod authorisation;
mod l4_routes;
mod policy;
mod problems;
mod routes;
mod services;
mod spread;
#[cfg(test)]
pub(crate) mod tests;
mod transport;
mod vips;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::authorise::PolicySet;
use crate::ids::{IdKind, IdLimits, IdTable, OutOfIds};
use crate::model::{Batch, Interned, Model, Name, Touched, join, l4_parents, parents};
use crate::route::RouteSpec;
use crate::snapshot::{PolicySetId, Revision, ServiceId, Snapshot, WorkloadId};

pub use policy::needs_proxy;
pub use problems::Condition;
pub use spread::Ejected;

use authorisation::Authorization;
use problems::Problems;
use services::{Port, port_name};
use spread::Here;
use transport::TransportHeld;
use workloads::Held;

/// Trust domain of a mesh that names none.
const TRUST_DOMAIN: &str = "mesh.local";

/// What differs from the snapshot before, for the planner: everything whose map entries may have to
/// change, those that send to a changed service included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services, removed ones included.
    pub services: BTreeSet<ServiceId>,
    /// Workloads, removed ones included.
    pub workloads: BTreeSet<WorkloadId>,
    /// Policy sets, removed ones included.
    pub policies: BTreeSet<PolicySetId>,
}

impl Dirty {
    /// Everything that a snapshot holds.
    pub fn all(snapshot: &Snapshot) -> Self {
        Self {
            services: snapshot.services.keys().copied().collect(),
            workloads: snapshot.workloads.keys().copied().collect(),
            policies: snapshot.policies.keys().copied().collect(),
        }
    }

    /// Adds what another holds.
    pub fn merge(&mut self, other: &Self) {
        self.services.extend(&other.services);
        self.workloads.extend(&other.workloads);
        self.policies.extend(&other.policies);
    }

    /// Nothing?
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.workloads.is_empty() && self.policies.is_empty()
    }
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The state of now.
    pub snapshot: Arc<Snapshot>,
    /// What this batch changed in it.
    pub dirty: Dirty,
    /// All that is wrong now, by kind and name.
    pub conditions: Arc<[Condition]>,
}

/// The numbers of a workload of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadIds {
    /// Its own.
    pub workload: WorkloadId,
    /// Of its identity.
    pub identity: u32,
    /// Of its mesh namespace.
    pub mesh_ns: u32,
}

/// Holds the resources and the snapshot compiled from them.
#[derive(Debug)]
pub struct Compiler {
    node: Arc<str>,
    here: Here,
    ids: IdTable,
    /// How many hold a name that several may (workload, identity, namespace).
    holds: HashMap<(IdKind, Name), u32>,
    /// Workloads enrolled on this node → service account, whether the control plane knows them or not.
    enrolled: HashMap<Name, String>,
    model: Model,
    ports: HashMap<Name, Vec<Port>>,
    /// Virtual address → its service.
    vips: HashMap<IpAddr, Name>,
    specs: HashMap<Name, Arc<RouteSpec>>,
    workloads: HashMap<Name, Held>,
    /// Workloads of this node that the control plane knows.
    locals: BTreeSet<Name>,
    authorizations: BTreeMap<Name, Authorization>,
    transports: BTreeMap<Name, TransportHeld>,
    sets: HashMap<Arc<PolicySet>, PolicySetId>,
    /// The number of the next set.
    next_set: PolicySetId,
    /// Service port → those whose connections may end there.
    senders: HashMap<ServiceId, BTreeSet<ServiceId>>,
    problems: Problems,
    interned: Interned,
    /// The snapshot in the making.
    next: Snapshot,
    current: Arc<Snapshot>,
}

/// What is still to be done for a batch.
#[derive(Debug, Default)]
struct Work {
    workloads: BTreeSet<Name>,
    endpoints: BTreeSet<ServiceId>,
    /// A workload of this node came, changed or went.
    locals: bool,
    /// Virtual addresses that have come or gone.
    vips: HashSet<IpAddr>,
    dirty: Dirty,
}

impl Compiler {
    /// Knows nothing but names' numbers. `node` is this node's name.
    pub fn new(node: &str, ids: IdTable, limits: IdLimits) -> Self {
        let next = Snapshot { trust_domain: TRUST_DOMAIN.into(), ..Snapshot::default() };
        Self {
            node: node.into(),
            here: Here::default(),
            ids: ids.with_limits(limits),
            holds: HashMap::new(),
            enrolled: HashMap::new(),
            model: Model::default(),
            ports: HashMap::new(),
            vips: HashMap::new(),
            specs: HashMap::new(),
            workloads: HashMap::new(),
            locals: BTreeSet::new(),
            authorizations: BTreeMap::new(),
            transports: BTreeMap::new(),
            sets: HashMap::new(),
            next_set: mesh_common::policy::FIRST_SET,
            senders: HashMap::new(),
            problems: Problems::default(),
            interned: Interned::default(),
            current: Arc::new(next.clone()),
            next,
        }
    }

    /// Goes on counting from the epoch that an agent before this one had reached.
    #[must_use]
    pub fn after_epoch(mut self, epoch: u64) -> Self {
        self.next.epoch = epoch;
        self.current = Arc::new(self.next.clone());
        self
    }

    /// Applies a change that stands at `revision`.
    pub fn apply(&mut self, batch: Batch, revision: Revision) -> Outcome {
        let touched = self.model.apply(batch);
        let mut work = Work::default();
        let mesh = self.model.mesh();
        let domain = if mesh.trust_domain.is_empty() { TRUST_DOMAIN } else { &mesh.trust_domain };
        let renamed = *self.next.trust_domain != *domain;
        if renamed {
            self.next.trust_domain = domain.into();
        }
        self.compile(touched, &mut work);
        self.conclude(work, renamed, revision)
    }

    /// The snapshot of what was done.
    fn conclude(&mut self, work: Work, renamed: bool, revision: Revision) -> Outcome {
        if renamed || !work.dirty.is_empty() {
            self.next.epoch += 1;
        }
        if self.next.epoch != self.current.epoch || self.next.revision != revision {
            self.next.revision = revision;
            self.current = Arc::new(self.next.clone());
        }
        Outcome { snapshot: self.snapshot(), dirty: work.dirty, conditions: self.problems.all() }
    }

    fn compile(&mut self, touched: Touched, work: &mut Work) {
        let Touched {
            services: changed,
            attached,
            mut routes,
            mut l4_routes,
            mut policies,
            mut authorizations,
            transports,
            workloads,
            mesh,
        } = touched;
        work.workloads.extend(workloads);
        for name in &transports {
            self.compile_transport(name, work);
        }
        if mesh {
            // Identities are named with the mesh's trust domain.
            authorizations.extend(self.authorizations.keys().map(Arc::clone));
        }
        for name in &authorizations {
            self.compile_authorization(name, work);
        }
        for name in &changed {
            self.note_vips(name, work);
            self.allot_ports(name, work);
            routes.extend(self.model.children(name).chain(self.model.senders(name)).map(Arc::clone));
            l4_routes.extend(self.model.l4_children(name).chain(self.model.l4_senders(name)).cloned());
        }
        let mut services = attached;
        for name in &routes {
            self.compile_route(name);
            services.extend(parents(self.model.route(name).as_ref()));
        }
        for route in &l4_routes {
            services.extend(l4_parents(self.model.l4_route(route).as_ref()));
        }
        services.extend(changed);
        if mesh {
            services.extend(self.ports.keys().map(Arc::clone));
        }
        for name in &services {
            self.compile_service(name, work);
            policies.extend(self.model.policies_on(name).map(Arc::clone));
            // One that comes or goes may rule another out.
            l4_routes.extend(self.model.l4_children(name).cloned());
        }
        for route in &l4_routes {
            self.check_l4_route(route);
        }
        for name in &policies {
            self.check_policy(name);
        }
        self.find_touched_by_vips(work);
        for name in std::mem::take(&mut work.workloads) {
            self.compile_workload(&name, work);
        }
        self.check_transports(&transports, work.locals);
        self.drop_unused_sets(work);
        for id in std::mem::take(&mut work.endpoints) {
            self.gather_endpoints(id, work);
        }
    }

    /// The state of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current)
    }

    /// The resources held.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The numbers, to be written to disk with the resources.
    pub fn ids(&self) -> &IdTable {
        &self.ids
    }

    /// Numbers for a workload that is enrolled on this node, before the control plane tells of it. They
    /// stay its own until [`Compiler::leave`]. Enrolling again changes the service account.
    pub fn enrol(
        &mut self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Result<WorkloadIds, OutOfIds> {
        let full = join(namespace, name);
        let ids = self.hold_workload(&full, namespace, service_account)?;
        if let Some(before) = self.enrolled.insert(Name::clone(&full), service_account.to_owned()) {
            self.drop_workload(&full, &before);
        }
        Ok(ids)
    }

    /// The workload is no longer enrolled on this node.
    pub fn leave(&mut self, namespace: &str, name: &str) {
        let full = join(namespace, name);
        if let Some(service_account) = self.enrolled.remove(&full) {
            self.drop_workload(&full, &service_account);
        }
    }

    /// Frees the numbers of names that have ended and on which `live` counts nothing, and strings that
    /// nothing has any more. For now and then.
    pub fn release_ids(&mut self, live: impl Fn(IdKind, u32) -> u64) {
        self.ids.release(live);
        self.interned.sweep();
    }

    /// Ends every name that nothing here has: what an agent before this one knew and the control plane,
    /// after the first full sync, does not.
    pub fn end_unknown_ids(&mut self) {
        let ports = self.ports.iter().flat_map(|(name, ports)| {
            ports.iter().map(move |port| (IdKind::Service, port_name(name, port.number.into(), port.udp)))
        });
        let members = self.workloads.values().flat_map(|held| &*held.members);
        let known: BTreeSet<(IdKind, String)> = ports
            .chain(members.map(|m| (IdKind::Endpoint, m.name.to_string())))
            .chain(self.holds.keys().map(|(kind, name)| (*kind, name.to_string())))
            .collect();
        for kind in IdKind::ALL {
            let unknown: Vec<String> = self
                .ids
                .of(kind)
                .iter()
                .map(|(name, _)| name.to_owned())
                .filter(|name| !known.contains(&(kind, name.clone())))
                .collect();
            for name in unknown {
                self.ids.end(kind, &name);
            }
        }
    }

    fn hold_workload(
        &mut self,
        name: &Name,
        namespace: &str,
        service_account: &str,
    ) -> Result<WorkloadIds, OutOfIds> {
        let wanted = workload_names(name, namespace, service_account);
        let mut numbers = [0; 3];
        for (i, (kind, name)) in wanted.iter().enumerate() {
            match self.ids.assign(*kind, name) {
                Ok(number) => numbers[i] = number,
                Err(full) => {
                    for held in &wanted[..i] {
                        self.drop_name(held);
                    }
                    return Err(full);
                }
            }
            *self.holds.entry((*kind, Name::clone(name))).or_default() += 1;
        }
        let [workload, identity, mesh_ns] = numbers;
        Ok(WorkloadIds { workload, identity, mesh_ns })
    }

    fn drop_workload(&mut self, name: &Name, service_account: &str) {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        for held in &workload_names(name, namespace, service_account) {
            self.drop_name(held);
        }
    }

    fn drop_name(&mut self, held: &(IdKind, Name)) {
        let Some(count) = self.holds.get_mut(held) else { return };
        *count -= 1;
        if *count == 0 {
            self.holds.remove(held);
            self.ids.end(held.0, &held.1);
        }
    }
}

/// The names whose numbers a workload holds.
fn workload_names(name: &Name, namespace: &str, service_account: &str) -> [(IdKind, Name); 3] {
    [
        (IdKind::Workload, Name::clone(name)),
        (IdKind::Identity, join(namespace, service_account)),
        (IdKind::Namespace, namespace.into()),
    ]
}

/// An address that packets can be sent to, IPv4 as IPv4.
fn address(path: &str, text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| format!("{path}: {text:?} is not an address"))?;
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(format!("{path}: {ip} is not an address that a workload can be reached at"));
    }
    Ok(ip)
}

fn port(number: u32) -> Result<u16, String> {
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("port {number} is not in 1..=65535"))
}
