//! Compiles what this node was told into a [`Snapshot`].
//!
//! xDS ──[`Batch`]──▶ model ──touched──▶ **compile** ──[`Snapshot`], [`Dirty`]──▶ { proxy, plan }
//!
//! One pass a batch, in the order in which things depend on each other: authorisation, ids of service ports,
//! routes, service ports, workloads, endpoints. Each step says what the next has to look at; what comes out as it
//! was is left as it is, shared with the snapshot before.
//!
//! Invariants: whatever a resource refers to that isn't there, or that does not fit, is left out and named in a
//! [`Condition`], and nothing else suffers; the same resources give the same snapshot in any order (but for the numbers).
//! Cost: that of what a change concerns, never of the mesh; but where virtual addresses come or go, one look at each
//! workload. Not here: who refers to whom (model), the maps (plan).

mod authorisation;
mod ext_authz;
mod external;
mod jwt;
mod l4_routes;
mod policy;
mod problems;
mod resilience;
mod route_wire;
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

use mesh_api::proto::v1;

use crate::authorise::PolicySet;
use crate::ids::{IdKind, IdLimits, IdTable, OutOfIds};
use crate::model::{Batch, Interned, Model, Name, RouteName, Touched, join, l4_parents, parents};
use crate::outside::Egress;
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
use workloads::{Changed, Named};

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
            services: snapshot.services.keys().collect(),
            workloads: snapshot.workloads.keys().collect(),
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
    /// Identities and namespaces, which many may have.
    holds: Holds,
    /// Workloads enrolled on this node → service account, whether the control plane knows them or not.
    enrolled: HashMap<Name, String>,
    model: Model,
    ports: HashMap<Name, Vec<Port>>,
    /// Virtual address → its service.
    vips: HashMap<IpAddr, Name>,
    specs: HashMap<RouteName, Arc<RouteSpec>>,
    /// Those of the snapshot, by name.
    workloads: HashSet<Named>,
    /// Addresses that were left out, because a service has them: of few workloads, if any.
    virtual_addresses: HashMap<Name, Box<[IpAddr]>>,
    /// Workloads of this node that the control plane knows.
    locals: BTreeSet<Name>,
    authorizations: BTreeMap<Name, Authorization>,
    transports: BTreeMap<Name, TransportHeld>,
    /// What the mesh says of encryption.
    mtls: v1::MtlsMode,
    /// And of what may be opened to the outside: what is on the list alone.
    egress: Egress,
    /// The number of the last origination of TLS.
    last_origination: u32,
    sets: HashMap<Arc<PolicySet>, PolicySetId>,
    /// The number of the next set.
    next_set: PolicySetId,
    /// Last stamp of a provider of tokens.
    stamps: u64,
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
    /// In no order.
    workloads: Vec<Name>,
    /// Service ports whose endpoints are not what they were, and why.
    endpoints: BTreeMap<ServiceId, Changed>,
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
            holds: Holds::default(),
            enrolled: HashMap::new(),
            model: Model::default(),
            ports: HashMap::new(),
            vips: HashMap::new(),
            specs: HashMap::new(),
            workloads: HashSet::new(),
            virtual_addresses: HashMap::new(),
            locals: BTreeSet::new(),
            authorizations: BTreeMap::new(),
            transports: BTreeMap::new(),
            mtls: v1::MtlsMode::Unset,
            egress: Egress::All,
            last_origination: 0,
            sets: HashMap::new(),
            next_set: mesh_common::policy::FIRST_SET,
            stamps: 0,
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
        let reissued = (touched.mesh || touched.jwt) && self.compile_jwt(&mesh);
        self.take_defaults(&mesh, &mut work);
        let renamed = self.compile(touched, &mut work) || renamed;
        let reissued = self.compile_ext_authz(&mesh) | self.compile_dns(&mesh) || reissued;
        self.conclude(work, renamed || reissued, revision)
    }

    /// The snapshot of what was done.
    fn conclude(&mut self, work: Work, changed: bool, revision: Revision) -> Outcome {
        if changed || !work.dirty.is_empty() {
            self.next.epoch += 1;
        }
        if self.next.epoch != self.current.epoch || self.next.revision != revision {
            self.next.revision = revision;
            self.current = Arc::new(self.next.clone());
        }
        Outcome { snapshot: self.snapshot(), dirty: work.dirty, conditions: self.problems.all() }
    }

    /// `true`: names have changed that no service has.
    fn compile(&mut self, touched: Touched, work: &mut Work) -> bool {
        let Touched {
            services: changed,
            attached,
            mut routes,
            mut l4_routes,
            mut policies,
            mut authorizations,
            transports,
            externals,
            workloads,
            mesh,
            jwt: _,
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
            routes.extend(self.model.children(name).chain(self.model.senders(name)).cloned());
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
            self.check_rivals(name);
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
        let mut workloads = std::mem::take(&mut work.workloads);
        workloads.sort_unstable();
        workloads.dedup();
        for name in workloads {
            self.compile_workload(&name, work);
        }
        self.check_transports(&transports, work.locals);
        self.drop_unused_sets(work);
        for (id, changed) in std::mem::take(&mut work.endpoints) {
            self.gather_endpoints(id, changed, work);
        }
        self.settle_hosts(&externals)
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
        let full = self.workloads.get(&*full).map_or(full, |held| Name::clone(&held.0.full_name));
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
            ports.iter().map(move |port| port_name(name, port.number.into(), port.udp))
        });
        let ports: HashSet<String> = ports.collect();
        for kind in IdKind::ALL {
            let known = |name: &Name| match kind {
                IdKind::Service => ports.contains(&**name),
                IdKind::Workload => self.has_workload(name),
                kind => self.holds.of(kind).contains_key(name),
            };
            let unknown: Vec<Name> =
                self.ids.names(kind).map(|(name, _)| name).filter(|name| !known(name)).cloned().collect();
            for name in unknown {
                self.ids.end(kind, &name);
            }
        }
        let workloads = &self.next.workloads;
        self.ids.end_other_endpoints(|key| {
            workloads.get(&key.workload).is_some_and(|w| w.ports.iter().any(|port| key == w.key(port)))
        });
    }

    /// Numbers for a workload, until [`Compiler::drop_workload`].
    fn hold_workload(
        &mut self,
        name: &Name,
        namespace: &str,
        service_account: &str,
    ) -> Result<WorkloadIds, OutOfIds> {
        let workload = self.ids.assign(IdKind::Workload, name)?;
        let account = identity(namespace, service_account);
        let held = self.hold(IdKind::Identity, &account).and_then(|identity| {
            let mesh_ns = self.hold(IdKind::Namespace, namespace);
            mesh_ns.inspect_err(|_| self.drop_name(IdKind::Identity, &account)).map(|ns| (identity, ns))
        });
        match held {
            Ok((identity, mesh_ns)) => Ok(WorkloadIds { workload, identity, mesh_ns }),
            Err(full) => {
                if !self.has_workload(name) {
                    self.ids.end(IdKind::Workload, name);
                }
                Err(full)
            }
        }
    }

    /// What [`Compiler::hold_workload`] held goes; the workload's own number where nobody has it any more.
    fn drop_workload(&mut self, name: &Name, service_account: &str) {
        self.drop_account(name, service_account);
        if !self.has_workload(name) {
            self.ids.end(IdKind::Workload, name);
        }
    }

    /// The same of all but the workload's own number.
    fn drop_account(&mut self, name: &Name, service_account: &str) {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        self.drop_name(IdKind::Identity, &identity(namespace, service_account));
        self.drop_name(IdKind::Namespace, namespace);
    }

    /// Is it compiled, or enrolled?
    fn has_workload(&self, name: &Name) -> bool {
        self.workloads.contains(&**name) || self.enrolled.contains_key(name)
    }

    /// The number of an identity or a namespace, which its name keeps until [`Compiler::drop_name`].
    fn hold(&mut self, kind: IdKind, name: &str) -> Result<u32, OutOfIds> {
        if let Some(held) = self.holds.of_mut(kind).get_mut(name) {
            held.count += 1;
            return Ok(held.number);
        }
        let name = Name::from(name);
        let number = self.ids.assign(kind, &name)?;
        self.holds.of_mut(kind).insert(name, Hold { number, count: 1 });
        Ok(number)
    }

    fn drop_name(&mut self, kind: IdKind, name: &str) {
        let Some(held) = self.holds.of_mut(kind).get_mut(name) else { return };
        held.count -= 1;
        if held.count == 0 {
            self.holds.of_mut(kind).remove(name);
            self.ids.end(kind, name);
        }
    }
}

/// A name that somebody has.
#[derive(Debug)]
struct Hold {
    number: u32,
    /// How many have it.
    count: u32,
}

/// Names that somebody has.
#[derive(Debug, Default)]
struct Holds {
    identities: HashMap<Name, Hold>,
    namespaces: HashMap<Name, Hold>,
}

impl Holds {
    fn of(&self, kind: IdKind) -> &HashMap<Name, Hold> {
        if kind == IdKind::Identity { &self.identities } else { &self.namespaces }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.identities.is_empty() && self.namespaces.is_empty()
    }

    fn of_mut(&mut self, kind: IdKind) -> &mut HashMap<Name, Hold> {
        if kind == IdKind::Identity { &mut self.identities } else { &mut self.namespaces }
    }
}

/// `<namespace>/<service account>`.
fn identity(namespace: &str, service_account: &str) -> String {
    [namespace, "/", service_account].concat()
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
